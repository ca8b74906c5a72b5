"""See clients.sh. Its arguments are a folder with the built clients and the data of a running `oncepay dev`, and the program
of the service."""

import asyncio
import collections
import email.utils
import http.client
import json
import os
import pathlib
import random
import subprocess
import sys
import time
import urllib.parse
import uuid

BEGUN = time.monotonic()
WORK, ONCEPAY = pathlib.Path(sys.argv[1]), sys.argv[2]
ENV = dict(line.split("=", 1) for line in (WORK / "dev" / "dev.env").read_text().splitlines() if "=" in line)
CHARGES, WORKERS, KILLS, LOST_PERCENT = 1000, 8, 20, 30
# Each driver: see clients/typescript/tests/driver.ts.
DRIVERS = {
    "typescript": ["node", str(WORK / "clients/typescript/dist/tests/driver.js")],
    "python": [str(WORK / "venv/bin/python"), str(WORK / "clients/python/tests/driver.py")],
    "rust": ["target/clients/debug/examples/driver"],
}


class Failed(Exception):
    """What a check expects isn't so."""


def check(what, is_so, seen=""):
    if not is_so:
        raise Failed(f"{what}{seen and f': {seen}'}")


class Api:
    """The service, as the owner of `key` sees it. For one thread."""

    def __init__(self, key):
        url = urllib.parse.urlsplit(ENV["ONCEPAY_URL"])
        self.key, self.connection = key, http.client.HTTPConnection(url.hostname, url.port, timeout=30)

    def send(self, method, path, body=None):
        """The body of the answer, which must be a good one."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        if body:
            headers["Idempotency-Key"] = str(uuid.uuid4())
        self.connection.request(method, path, body and json.dumps(body), headers)
        answer = self.connection.getresponse()
        text = answer.read()
        check(f"{method} {path} is answered", answer.status < 300, text)
        return json.loads(text)

    def charges(self):
        """All of them, newest first."""
        page, after = {"has_more": True}, ""
        while page["has_more"]:
            page = self.send("GET", f"/v1/charges?limit=100{after}")
            yield from page["data"]
            after = f"&starting_after={page['data'][-1]['id']}"


class Driver:
    """Runs of one client's driver, which share a store."""

    def __init__(self, name, url, key, folder):
        self.name, self.url, self.key, self.folder = name, url, key, folder
        folder.mkdir(parents=True)

    async def run(self, orders, workers=WORKERS, seconds=60, amount="12.50", url=None, kill=None):
        """What the driver writes of each order. `kill` is asked after each line whether to kill it."""
        environment = os.environ | {"ONCEPAY_URL": url or self.url, "ONCEPAY_API_KEY": self.key,
                                    "PYTHONPATH": str(WORK / "clients/python")}
        process = await asyncio.create_subprocess_exec(
            *DRIVERS[self.name], str(self.folder), str(workers), str(seconds), amount, *orders,
            env=environment, stdout=subprocess.PIPE, limit=1 << 20,
        )
        lines, is_killed = [], False
        try:
            async for line in process.stdout:
                # The last line of a process that was killed may not be whole.
                if not line.endswith(b"\n"):
                    break
                lines.append(json.loads(line))
                if kill and not is_killed and kill(lines[-1]):
                    is_killed = True
                    await asyncio.sleep(random.uniform(0, 0.05))
                    process.kill()
        except BaseException:
            process.kill()
            raise
        status = await process.wait()
        check(f"the driver of {self.name} ends well", is_killed or status == 0, f"{status} after {lines[-1:]}")
        return lines


class Listening:
    """A server on a port of its own, which does with each connection what `_serve` says."""

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = "http://127.0.0.1:%d" % self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()


class Lossy(Listening):
    """A proxy that loses a part of the service's answers: it breaks the connection, before the answer or in its middle."""

    def __init__(self):
        self.answers, self.lost, self.tasks = 0, 0, []

    async def __aexit__(self, *_):
        await super().__aexit__()
        for task in self.tasks:
            task.cancel()

    async def _serve(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        url = urllib.parse.urlsplit(ENV["ONCEPAY_URL"])
        service = await asyncio.open_connection(url.hostname, url.port)
        forward = asyncio.create_task(self._forward(reader, service[1]))
        try:
            # Clients send one request at a time on a connection, so what comes at once is an answer.
            while answer := await service[0].read(1 << 16):
                self.answers += 1
                if random.uniform(0, 100) < LOST_PERCENT:
                    self.lost += 1
                    writer.write(answer[: random.choice([0, len(answer) // 2])])
                    break
                writer.write(answer)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            forward.cancel()
            for end in (writer, service[1]):
                end.close()

    @staticmethod
    async def _forward(reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()


async def storm(name):
    """A client makes its charges, through losses and kills; a row of the table."""
    merchant = {"name": name, "fee_rate": "0.029", "fee_fixed": "0.30"}
    key = Api(ENV["ONCEPAY_OPERATOR_KEY"]).send("POST", "/v1/operator/merchants", merchant)["api_key"]["key"]
    begun = time.monotonic()
    orders = [f"{name}-{number}" for number in range(CHARGES)]
    paid = {}

    def take(line):
        check(f"{name}: an order is paid", "charge" in line, line)
        first = paid.setdefault(line["order"], line["charge"])
        check(f"{name}: an order has one answer", first == line["charge"], (first, line))

    async with Lossy() as lossy:
        driver = Driver(name, lossy.url, key, WORK / "stores" / name)
        kills = sorted(random.sample(range(CHARGES * 49 // 50), KILLS))
        while True:
            def kill(line):
                take(line)
                return bool(kills) and len(paid) > kills[0]
            for line in await driver.run(orders, kill=kill):
                take(line)
            if not kills:
                break
            kills.pop(0)
        check(f"{name}: all orders are paid", len(paid) == CHARGES, len(paid))
    took = time.monotonic() - begun

    # Nothing listens there, so these answers come from the store.
    for line in await driver.run(orders, seconds=1, url="http://127.0.0.1:9"):
        take(line)

    # What the service has: each charge once, as its answer said.
    api = Api(key)
    charges = await asyncio.to_thread(lambda: list(api.charges()))
    by_order = collections.Counter(charge["reference"] for charge in charges)
    lost = [order for order in orders if not by_order[order]]
    duplicates = [order for order, count in by_order.items() if count > 1]
    print(f"{name}: {CHARGES} charges in {took:.1f} s, {KILLS} kills, {lossy.lost} of {lossy.answers} answers lost on the way, "
          f"{len(duplicates)} duplicated, {len(lost)} lost", flush=True)
    check(f"{name}: no charge is lost", not lost, lost)
    check(f"{name}: no charge is there twice", not duplicates and len(charges) == CHARGES, duplicates)

    def differing():
        return [order for order, charge in paid.items() if api.send("GET", f"/v1/charges/{charge['id']}") != charge]
    differ = await asyncio.to_thread(differing)
    check(f"{name}: the stored answers are the charges", not differ, differ)


# Seconds after which a client gives up, and a moment that clocks may differ by.
PATIENCE, SOON = 6, 0.1
PROBLEM = {"type": "/problems/x", "title": "x", "detail": "x", "instance": "/v1/charges", "request_id": "req_1"}


def problem(status, code, retryable, headers=""):
    return status, headers, PROBLEM | {"status": status, "code": code, "retryable": retryable}


class Pretender(Listening):
    """Answers in place of the service, each order by its name, with the last answer again and again; notes each request's key
    and time."""

    BUSY = problem(503, "database_unavailable", True, "Retry-After: 1")
    ANSWERS = {
        "in-seconds": [problem(429, "rate_limited", True, "Retry-After: 2"), 201],
        "at-a-time": [problem(503, "overloaded", True, "Retry-After: {date}"), 201],
        "in-progress": [problem(409, "idempotency_request_in_progress", True, "Retry-After: 1"), 201],
        "by-a-proxy": [(502, "", "<html>Bad gateway</html>"), (200, "", "<html>Log in</html>"), 201],
        "broken-off": [None, 201],
        "unanswered": ["silence", 201],
        "never": [BUSY],
        "much-later": [problem(503, "database_unavailable", True, "Retry-After: 3600"), 201],
        "declined": [problem(402, "card_declined", False, "Idempotency-Expires: Sun, 01 Feb 2026 09:30:00 GMT"), 201],
        "wrong-api-key": [problem(401, "api_key_invalid", False), 201],
        "revoked-api-key": [None, problem(401, "api_key_revoked", False), 201],
        "unknown": [problem(503, "outcome_unknown", False, "Location: /v1/charges/ch_1"), 201],
    }

    def __init__(self):
        self.seen = collections.defaultdict(list)

    async def _serve(self, reader, writer):
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n"))}
                body = json.loads(await reader.readexactly(int(fields["content-length"])))
                order = body["reference"]
                self.seen[order].append((fields["idempotency-key"], time.monotonic()))
                answer = self.ANSWERS[order][: len(self.seen[order])][-1]
                if answer is None:
                    break
                if answer == "silence":
                    await asyncio.sleep(10)
                    break
                if answer == 201:
                    names = ("amount_captured", "amount_refunded", "fee", "created_at", "id")
                    nothing = dict.fromkeys(("canceled_at", "captured_at", "description", "failure"))
                    answer = 201, "", body | dict.fromkeys(names, "x") | nothing | {
                        "object": "charge", "status": "succeeded", "metadata": {}}
                status, headers, body = answer
                headers = headers.replace("{date}", email.utils.formatdate(time.time() + 3, usegmt=True))
                body = (body if isinstance(body, str) else json.dumps(body)).encode()
                lines = [f"HTTP/1.1 {status} x", "Content-Type: application/json", f"Content-Length: {len(body)}", headers]
                writer.write("".join(f"{line}\r\n" for line in lines if line).encode() + b"\r\n" + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


async def obedience(name):
    """What a client makes of each answer."""
    async with Pretender() as service:
        driver = Driver(name, service.url, "sk_test_1", WORK / "stores" / f"{name}-obedience")
        orders = list(service.ANSWERS)

        async def outcomes(**options):
            lines = await driver.run(orders, workers=len(orders), seconds=PATIENCE, **options)
            return {line["order"]: line.get("error", "charge") for line in lines}

        first = await outcomes()
        refused = {"never": "Unanswered", "much-later": "Unanswered", "declined": "Refused", "wrong-api-key": "Refused",
                   # It may have been paid before the key was revoked.
                   "revoked-api-key": "Unanswered", "unknown": "OutcomeUnknown"}
        check(f"{name}: each answer has its outcome", first == dict.fromkeys(orders, "charge") | refused, first)
        sent = {order: [at - service.seen[order][0][1] for _, at in service.seen[order]] for order in orders}
        # The latest is far off, since this machine may be busy.
        times = {"in-seconds": (2, 4), "at-a-time": (2, 5), "in-progress": (1, 3), "broken-off": (0, 2), "unanswered": (3, 5)}
        for order, (earliest, latest) in times.items():
            check(f"{name}: {order} is sent again in time", earliest - SOON <= sent[order][1] < latest, sent[order])
        pauses = [after - before for before, after in zip(sent["never"], sent["never"][1:])]
        check(f"{name}: each pause is as long as it was told", min(pauses) > 1 - SOON, pauses)
        check(f"{name}: pauses differ", max(pauses) - min(pauses) > SOON / 10, pauses)
        check(f"{name}: gives up in time", len(pauses) > 1 and sent["never"][-1] < PATIENCE, sent["never"])

        # Another body under these names is refused without a word to the service.
        before = {order: len(requests) for order, requests in service.seen.items()}
        reused = await outcomes(amount="99.00")
        check(f"{name}: a name stands for one request", set(reused.values()) == {"NameReused"}, reused)
        check(f"{name}: which isn't sent", before == {order: len(requests) for order, requests in service.seen.items()})

        # A later process goes on where this one gave up, and asks again for nothing that is settled.
        service.ANSWERS = service.ANSWERS | {"never": [201]}
        later = await outcomes()
        settled = {"declined": "Refused", "unknown": "OutcomeUnknown"}
        check(f"{name}: goes on later", later == dict.fromkeys(orders, "charge") | settled, later)
        again = {order for order in orders if len(service.seen[order]) > before[order]}
        check(f"{name}: with what isn't settled", again == {"never", "much-later", "wrong-api-key", "revoked-api-key"}, again)
        keys = {order: {key for key, _ in requests} for order, requests in service.seen.items()}
        check(f"{name}: each order has one key", all(len(of) == 1 for of in keys.values()), keys)
        check(f"{name}: and no other has it", len(set.union(*keys.values())) == len(orders), keys)
    print(f"{name}: obeys what it's told, after {time.monotonic() - BEGUN:.0f} s", flush=True)


def examples_are_shown():
    readme = pathlib.Path("clients/README.md").read_text()
    for example in ("typescript/example.ts", "python/example.py", "rust/examples/charge.rs"):
        check(f"the README shows {example}", f"\n{pathlib.Path('clients', example).read_text()}```" in readme)


async def main():
    examples_are_shown()
    await asyncio.gather(*map(obedience, DRIVERS))

    control = urllib.parse.urlsplit(ENV["ONCEPAY_SIMULATOR_CONTROL_URL"])
    connection = http.client.HTTPConnection(control.hostname, control.port)
    rule = {"fault": "drop_answer", "kinds": ["authorize", "capture"], "percent": LOST_PERCENT}
    connection.request("PUT", f"{control.path}/faults", json.dumps({"rules": [rule]}), {"Content-Type": "application/json"})
    check("the simulator takes the fault", connection.getresponse().status == 200)
    connection.close()
    storms = await asyncio.gather(*map(storm, DRIVERS), return_exceptions=True)
    failures = [failure for failure in storms if failure]
    check("every client charges once", not failures, failures)
    for command in ("audit", "reconcile"):
        done = subprocess.run([ONCEPAY, command], env=os.environ | ENV, capture_output=True, text=True)
        print(done.stdout)
        check(f"oncepay {command} finds nothing", done.returncode == 0, done.stdout + done.stderr)


try:
    asyncio.run(main())
except Failed as failure:
    sys.exit(f"FAILED: {failure}")
print(f"Each client charges once: {time.monotonic() - BEGUN:.0f} s.")
