"""See webhooks.sh. Its argument is a folder with the receivers' packages and the data of a running `oncepay dev`."""

import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

from standardwebhooks.webhooks import Webhook

WORK = pathlib.Path(sys.argv[1])
ENV = dict(line.split("=", 1) for line in (WORK / "dev" / "dev.env").read_text().splitlines())
ONCEPAY = "target/debug/oncepay"
processes = []


def http(method, path, body=None, headers=None):
    """Status, headers and body of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(ENV["ONCEPAY_URL"] + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as answer:
        return answer.status, answer.headers, json.load(answer)


def api(method, path, body=None):
    """Asks as the merchant; the answer must be a good one."""
    headers = {"Authorization": "Bearer " + ENV["ONCEPAY_API_KEY"]}
    if method != "GET":
        headers["Idempotency-Key"] = str(uuid.uuid4())
    status, _, answer = http(method, path, body, headers)
    assert status < 300, f"{method} {path}: {status} {answer}"
    return answer


def charge():
    return api("POST", "/v1/charges", {"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"})["id"]


def eventually(what, condition):
    for _ in range(300):
        if condition():
            print(f"ok: {what}")
            return
        time.sleep(0.1)
    raise AssertionError(f"{what}: not so after 30 s")


def check(what, condition):
    assert condition, what
    print(f"ok: {what}")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(command, cwd=None, stdout=None, **env):
    processes.append(subprocess.Popen(command, cwd=cwd, stdout=stdout, env={**os.environ, "ONCEPAY_SHUTDOWN_DELAY_MS": "0", **env}))


def inbound():
    """What PyPI's library signs is taken, once."""
    webhook, event_id = Webhook(ENV["ONCEPAY_WEBHOOK_SECRET"]), f"evt_{uuid.uuid4().hex}"
    payload = json.dumps({"type": "nothing.known", "data": {"emoji": "\u2615"}}, ensure_ascii=False)

    def deliver(sent, ago=0):
        when = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=ago)
        headers = {
            "webhook-id": event_id,
            "webhook-timestamp": str(int(when.timestamp())),
            "webhook-signature": webhook.sign(event_id, when, payload),
        }
        return http("POST", "/v1/webhooks/acquirer", sent.encode(), headers)

    check("a forged event is refused", deliver(payload.replace("known", "heard of"))[0] == 401)
    check("an old one is refused", deliver(payload, ago=400)[0] == 401)
    status, headers, answer = deliver(payload)
    check("what PyPI's library signs is taken", (status, answer["state"]) == (200, "unknown"))
    check("for the first time", headers["Idempotent-Replayed"] == "false")
    check("and once", deliver(payload)[1]["Idempotent-Replayed"] == "true")


class Receiver:
    """A receiver of examples/, with an endpoint of its own."""

    def __init__(self, name, command, count, **env):
        self.name, self.count, port = name, count, free_port()
        body = {"url": f"http://127.0.0.1:{port}/", "event_types": ["charge.succeeded"]}
        endpoint = api("POST", "/v1/webhook-endpoints", body)
        self.id = endpoint["id"]
        start([*command, str(port), *([str(WORK / "receiver.db")] if name == "Python" else [])],
              WEBHOOK_SECRET=endpoint["secret"], **env)
        # Until it listens, deliveries fail and are tried again seconds later.
        eventually(f"the receiver in {name} listens", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        # Anybody's request may break off, which is no reason to end.
        with socket.create_connection(("127.0.0.1", port)) as broken:
            broken.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")

    def effects(self, charge_id=None):
        """How many effects there were."""
        where = f" WHERE what = 'charge.succeeded {charge_id}'" if charge_id else ""
        return self.count(f"SELECT count(*) FROM effects{where}")


def outbound():
    """What we send is verified by both libraries, and has its effect once however often it comes."""
    def sqlite(query):
        import sqlite3
        with sqlite3.connect(WORK / "receiver.db") as db:
            return db.execute(query).fetchone()[0]

    owner = ENV["ONCEPAY_OWNER_DATABASE_URL"]
    psql = lambda query: subprocess.check_output(["psql", "-XAtq", owner, "-c", query], text=True).strip()
    psql("CREATE SCHEMA receiver")
    separator = "&" if "?" in owner else "?"
    receivers = [
        Receiver("Python", [sys.executable, "examples/receivers/receiver.py"], sqlite),
        Receiver("TypeScript", ["node", "--import", "tsx", "receiver.ts"],
                 lambda query: int(psql("SET search_path = receiver; " + query)), cwd=WORK,
                 DATABASE_URL=f"{owner}{separator}options=-csearch_path%3Dreceiver"),
    ]
    charges = [charge() for _ in range(5)]
    for receiver in receivers:
        eventually(f"{receiver.name} has seen all charges", lambda: receiver.effects() == len(charges))
        check("each of them once", all(receiver.effects(charge_id) == 1 for charge_id in charges))

    event = api("GET", "/v1/events?type=charge.succeeded&limit=1")["data"][0]["id"]
    api("POST", f"/v1/events/{event}/redeliver", {})
    deliveries = lambda: api("GET", f"/v1/events/{event}/deliveries")["data"]
    eventually("a redelivery arrives", lambda: [d["status"] for d in deliveries()] == ["succeeded"] * 4)
    check("and has no effect", all(receiver.effects() == len(charges) for receiver in receivers))

    for receiver in receivers:
        api("POST", f"/v1/webhook-endpoints/{receiver.id}/rotate-secret", {"overlap_seconds": 60})
    last = charge()
    for receiver in receivers:
        eventually(f"{receiver.name} goes on with the secret before", lambda: receiver.effects(last) == 1)
        api("DELETE", f"/v1/webhook-endpoints/{receiver.id}")


def listening():
    """`oncepay listen` forwards what `oncepay trigger` makes."""
    port, secret, db = free_port(), "whsec_" + "c2VjcmV0" * 4, WORK / "listen.db"
    start([sys.executable, "examples/receivers/receiver.py", str(port), str(db)], WEBHOOK_SECRET=secret)
    eventually("a receiver listens", lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    log = (WORK / "listen.log").open("w")
    start([ONCEPAY, "listen", "--forward-to", f"http://localhost:{port}/hook"], stdout=log, ONCEPAY_LISTEN_SECRET=secret)
    said = lambda: (WORK / "listen.log").read_text()
    eventually("oncepay listen is ready", lambda: "Listening" in said())
    for kind in ["dispute.lost", "charge.failed", "refund.failed", "payout.paid", "settlement.paid"]:
        subprocess.run([ONCEPAY, "trigger", kind], check=True, stdout=subprocess.DEVNULL)
        eventually(f"oncepay listen forwards {kind}", lambda: any(
            kind in line and " 204 in " in line for line in said().splitlines()))


try:
    inbound()
    outbound()
    listening()
finally:
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()
print("Webhooks work both ways.")
