#!/usr/bin/env python3
"""Checks that the peers do what is said of them, against a running `oncepay dev`.

  load/peers/django/check.py [.oncepay/dev.env]
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid

from peer import ROOT, Peer

BODY = {"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"}


class Oncepay:
    def __init__(self, path):
        settings = dict(line.strip().split("=", 1) for line in open(path) if "=" in line)
        self.settings = {name: value.strip("'\"") for name, value in settings.items()}
        self.url = self.settings["ONCEPAY_URL"]
        merchant = {"name": "Check", "fee_rate": "0.029", "fee_fixed": "0.30"}
        operator_key = self.settings["ONCEPAY_OPERATOR_KEY"]
        _, answer = send(self.url + "/v1/operator/merchants", str(uuid.uuid4()), merchant, operator_key)
        self.api_key = json.loads(answer)["api_key"]["key"]
        self.merchant_id = self.api_key.removeprefix("sk_test_")[:32]

    def sql(self, statement):
        url = self.settings["ONCEPAY_OWNER_DATABASE_URL"]
        command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", url, "-c", statement]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def charges(self):
        return int(self.sql(f"SELECT count(*) FROM charges WHERE merchant_id = '{self.merchant_id}'"))

    def violations(self):
        request = urllib.request.Request(self.url + "/v1/operator/audit")
        request.add_header("Authorization", f"Bearer {self.settings['ONCEPAY_OPERATOR_KEY']}")
        checks = json.load(urllib.request.urlopen(request))["checks"]
        return {check["name"]: check["violations"] for check in checks if check["violations"]}


def send(url, key, body, api_key):
    """Status and body of the answer; 0 if there was none."""
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json", "Idempotency-Key": key}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def expect(what, is_so):
    print(f"  {'ok' if is_so else 'WRONG':<6}{what}")
    expect.failures += not is_so


expect.failures = 0


def at_once(charge, count=20):
    """The statuses of `count` requests that are sent at the same time."""
    statuses, barrier = [], threading.Barrier(count)

    def run():
        barrier.wait()
        statuses.append(charge()[0])

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(statuses)


def die_before_storing(oncepay, peer, charge):
    """Kills the workers when the charge is written (handrolled: not committed yet), but not its answer."""
    request = threading.Thread(target=charge)
    if peer.kind == "handrolled":
        # Writing the event, the last row before the answer, waits for this.
        lock = "BEGIN; LOCK TABLE events IN EXCLUSIVE MODE; SELECT pg_sleep(2); COMMIT"
        threading.Thread(target=oncepay.sql, args=[lock]).start()
        time.sleep(0.5)
    else:
        pause = ["redis-cli", "-s", peer.redis_socket, "CLIENT", "PAUSE", "3000", "WRITE"]
        subprocess.run(pause, check=True, capture_output=True)
    request.start()
    time.sleep(1)
    for pid in peer.pids()[1:]:
        os.kill(int(pid), signal.SIGKILL)
    request.join()
    # Until nothing is blocked any more and there are new workers.
    time.sleep(4)


def check(kind, oncepay, folder):
    settings = oncepay.settings
    peer = Peer(kind, settings["DATABASE_URL"], settings["ONCEPAY_OWNER_DATABASE_URL"], folder)
    print(f"{kind} ({peer.rss_mib():.0f} MiB)")

    def charge(key, body=BODY, url=peer.url):
        return send(url + "/v1/charges", key, body, oncepay.api_key)

    known = oncepay.violations()

    def made(action):
        before = oncepay.charges()
        return action(), oncepay.charges() - before

    try:
        first, same, crash = (str(uuid.uuid4()) for _ in range(3))
        (status, body), count = made(lambda: charge(first))
        expect(f"first: {status}, {count} charge", (status, count) == (201, 1))
        (status, second), count = made(lambda: charge(first))
        is_same = second == body
        expect(f"again: {status}, {count} charges, same body: {is_same}", (status, count, is_same) == (201, 0, True))

        (status, _), count = made(lambda: charge(first, BODY | {"amount": "99.00"}))
        expect(f"another body: {status}, {count} charges", (status, count) == (422, 0) or kind == "library")
        statuses, count = made(lambda: at_once(lambda: charge(same)))
        expect(f"20 at once: {statuses}, {count} charges", count == 1 or kind == "library")

        _, count = made(lambda: die_before_storing(oncepay, peer, lambda: charge(crash)))
        expect(f"worker killed before the answer is stored: {count} charges", count == (kind == "library"))
        (status, _), count = made(lambda: charge(crash))
        expect(f"… again: {status}, {count} charges", (status, count) == (409, 0) or kind == "library")
        if kind == "handrolled":
            oncepay.sql(f"UPDATE idempotency_keys SET lease_expires_at = now() WHERE key = '{crash}'")
            (status, _), count = made(lambda: charge(crash))
            expect(f"… again after its lease: {status}, {count} charge", (status, count) == (201, 1))
            (status, second), count = made(lambda: charge(first, url=oncepay.url))
            expect(f"again, sent to Oncepay: {status}, same body: {second == body}", (status, second) == (201, body))
        now = oncepay.violations()
        violations = {name: now[name] - known.get(name, 0) for name in now if now[name] > known.get(name, 0)}
        expect(f"new violations in the audit: {violations or 'none'}", not violations or kind == "library")
    finally:
        peer.stop()


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, ".oncepay", "dev.env")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("handrolled", "library"):
            # A merchant each, so that nothing is counted twice.
            check(kind, Oncepay(path), folder)
    sys.exit(1 if expect.failures else 0)


if __name__ == "__main__":
    main()
