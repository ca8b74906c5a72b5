"""Provokes every alert of ops/alerts.yml on a running service, sees it fire in a real Prometheus, and sees it end.

  python3 ops/drills/alerts.py [--binary target/debug/oncepay] [--show]

The rules are those of the one file. Only times are shortened, by the function `shorten` below: windows, offsets and `for`.
Ages that the rules compare with seconds are made by moving times in the database into the past. While an alert fires, the
commands of its section in ops/runbook.md are run, as an operator would; `--show` prints what they write. Everything is on
this machine and goes away at the end. Takes about a minute with a debug build.
"""

import argparse
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid

from drill import ROOT, Task, eventually, free_port
from stack import OPS, Stack, Traffic, prometheus_binaries, request

SCRAPE = "1s"
# A day is 144 s long, but no window is shorter than five scrapes, and none longer than the drill wants to wait.
FACTOR, WINDOW_MIN_S, WINDOW_MAX_S, FOR_MAX_S = 600, 5, 20, 2
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
UNKNOWN_CHARGE = "ch_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"
UNKNOWN_PAYOUT = "po_0193b2f0c1d87a3e9a4b5c6d7e8f9a0b"
# Without the workers that finish, clean up and compare.
IDLE = {"recovery_interval_ms": 86_400_000, "reaper_interval_ms": 86_400_000, "reconcile_interval_ms": 86_400_000,
        "audit_interval_s": "never"}
BRISK = {"metrics_interval_ms": 300, "processor_timeout_ms": 3_000, "processor_request_timeout_ms": 2_500, "lease_ms": 3_500,
         "processor_probe_interval_ms": 300, "processor_event_overdue_after_s": 1, "processor_event_interval_ms": 200,
         "reconcile_grace_s": 0, "void_orphans_after_s": "never"}


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|[smhdw])", text).groups()
    return int(number) * UNITS[unit]


def shorten(rules):
    """The rules with all windows, offsets and `for` divided by the factor, within the bounds."""
    def window(match):
        short = min(max(seconds(match[2]) / FACTOR, WINDOW_MIN_S), WINDOW_MAX_S)
        return f"{match[1]}{short:.0f}s{match[3]}"

    rules = re.sub(r"(\[)(\d+(?:ms|[smhdw]))(\])", window, rules)
    rules = re.sub(r"(offset )(\d+(?:ms|[smhdw]))()", window, rules)
    return re.sub(r"(\n +for: )(\S+)", lambda match: f"{match[1]}{min(seconds(match[2]), FOR_MAX_S):.0f}s", rules)


def alerts_of(rules):
    return re.findall(r"- alert: (\w+)", rules)


def look_commands(runbook):
    """The commands of each section, by alert."""
    sections = re.split(r"\n## ", runbook)
    return {
        section.split("\n", 1)[0].strip(): re.findall(r"^\$ ((?:.*\\\n)*.+)", section, re.MULTILINE)
        for section in sections[1:]
    }


class Watch:
    """Notes which alerts have fired, and runs the runbook's commands while they do."""

    def __init__(self, stack, commands, show):
        self.stack, self.commands, self.show = stack, commands, show
        self.firing, self.fired, self.complaints = set(), {}, []
        self.begun, self.ended = time.monotonic(), threading.Event()
        self.runners = []
        self.task = Task(self.watch)

    def watch(self):
        while not self.ended.is_set():
            status, answer = request(f"{self.stack.prometheus_url}/api/v1/alerts")
            if status == 200:
                self.firing = {alert["labels"]["alertname"] for alert in answer["data"]["alerts"] if alert["state"] == "firing"}
                for name in sorted(self.firing - self.fired.keys()):
                    self.fired[name] = time.monotonic() - self.begun
                    print(f"  {self.fired[name]:5.1f} s  {name} fires", flush=True)
                    self.runners.append(Task(self.look, name))
            self.ended.wait(0.3)

    def look(self, name):
        for command in self.commands.get(name, []):
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=self.stack.environment())
            said = done.stdout + done.stderr
            # An audit, a comparison and a list of keys end with 1 if they find what they look for.
            finds = re.match(r"oncepay (audit|reconcile|keys list)", command)
            if done.returncode not in ((0, 1) if finds else (0,)) or not said.strip():
                self.complaints.append(f"{name}: `{command}` ended with {done.returncode} and said {said!r}")
            if self.show:
                print(f"--- {name}\n$ {command}\n{said}---", flush=True)

    def join_runners(self):
        for runner in list(self.runners):
            runner.join(timeout=60)

    def is_quiet(self):
        """Whether no alert fires."""
        self.expect_looking()
        return not self.firing

    def expect_looking(self):
        """Fails if nobody looks any more, which would seem quiet. What ended it isn't taken for an alert that is missing."""
        if self.task.failure:
            raise RuntimeError("nobody watches the alerts any more") from self.task.failure

    def end(self):
        self.ended.set()
        self.task.join(timeout=60)
        self.join_runners()

    def forget(self, names):
        self.fired = {name: at for name, at in self.fired.items() if name not in names}

    def expect(self, *names, seconds=60):
        def missing():
            self.expect_looking()
            return [name for name in names if name not in self.fired]

        try:
            eventually("", lambda: not missing(), seconds)
        except SystemExit:
            sys.exit(f"didn't fire: {', '.join(missing())}")


class Server(http.server.ThreadingHTTPServer):
    """A server for clients that may leave before they get their answer."""

    daemon_threads = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, *_):
        pass


class Receiver:
    """A merchant's receiver of webhooks, slow until it's told otherwise."""

    def __init__(self):
        self.is_slow = threading.Event()
        self.is_slow.set()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                if receiver.is_slow.is_set():
                    time.sleep(2)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = Server(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Mixer:
    """Something between us and the processor that mixes up answers: each names the key of another call."""

    def __init__(self, target):
        class Handler(http.server.BaseHTTPRequestHandler):
            def forward(self):
                length = int(self.headers.get("Content-Length") or 0)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "content-length")}
                status, body = request(target + self.path, self.command, self.rfile.read(length) if length else None, headers=headers)
                if isinstance(body, dict) and "idempotency_key" in body:
                    body["idempotency_key"] = "another-call"
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status or 502)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = forward

            def log_message(self, *_):
                pass

        self.server = Server(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Drill:
    def __init__(self, stack, receiver):
        self.stack, self.receiver = stack, receiver
        self.ports = {name: free_port() for name in ("main", "second", "spare", "mixed", "rejected")}

    def prepare(self):
        """A healthy service, with some books and a backlog of events."""
        stack = self.stack
        stack.start_simulator(self.ports["main"])
        main = stack.serve("main", self.ports["main"], **BRISK, **IDLE)
        for number in range(10):
            self.ok(stack.charge(main, f"first-{number}", "500.00"))
        endpoint = {"url": self.receiver.url, "event_types": ["*"]}
        self.ok(stack.send(main, "/v1/webhook-endpoints", endpoint))
        main.stop()
        # The comparison was last made two hours ago.
        stack.postgres.sql("UPDATE acquirer_reads SET since = past, read_at = past, due_at = now() + interval '1 hour' "
                           "FROM (SELECT now() - interval '2 hours' AS past) AS time")
        # For what the key table's growth needs: fillers that aren't compressed.
        stack.postgres.sql("ALTER TABLE idempotency_keys ALTER response_body SET STORAGE EXTERNAL")

    def ok(self, answer):
        if answer[0] not in (200, 201):
            sys.exit(f"{answer}")
        return answer[1]

    def start(self, mixer):
        stack = self.stack
        slow = {"delivery_concurrency_per_endpoint": 1, "delivery_concurrency": 4}
        stack.serve("main", self.ports["main"], **BRISK, **IDLE, **slow)
        stack.serve("second", self.ports["second"], clock_offset_s=120, pool_size=2, pool_timeout_ms=1_000, **BRISK, **IDLE, **slow)
        stack.serve("spare", self.ports["spare"], **BRISK, **IDLE, **slow)
        stack.serve("mixed", self.ports["mixed"], processor_url=mixer.url, **BRISK, **IDLE, **slow)
        stack.serve("rejected", self.ports["rejected"], processor_api_key="outdated", **BRISK, **IDLE, **slow)

    def disturb(self, traffic):
        """All causes that can be there at the same time."""
        stack, main, second = self.stack, self.stack.instances["main"], self.stack.instances["second"]
        first = self.ok(stack.charge(main, "disputed-1"))
        other = self.ok(stack.charge(main, "disputed-2"))
        stack.faults({"fault": "delay", "kinds": ["authorize"], "delay_ms": 1_200}, {"fault": "error_before", "kinds": ["payout"]})
        for _ in range(3):
            traffic.keep(lambda: stack.charge(main))
        payout = {"amount": "1.00", "currency": "USD", "destination": "ba_main"}
        traffic.keep(lambda: stack.send(main, "/v1/payouts", payout), 0.3)
        traffic.keep(lambda: self.retry_impatiently(main), 0.1)
        traffic.keep(lambda: stack.charge(main, "first-0", "99.00"), 0.1)
        # The processor's calls of two instances go wrong.
        traffic.keep(lambda: stack.charge(stack.instances["mixed"]), 1)
        traffic.keep(lambda: stack.send(stack.instances["rejected"], "/v1/payouts", payout), 1)
        traffic.keep(lambda: self.overtake(main), 0.5)
        # Somebody without the secret, the processor about something unknown, and the processor against what it has said.
        forged = {"type": "payout.paid", "data": {}}
        traffic.keep(lambda: request(f"{main.url}/v1/webhooks/acquirer", "POST", forged), 0.2)
        unknown = {"merchant": stack.merchant, "reference": UNKNOWN_PAYOUT}
        stack.control("events", {"type": "payout.paid", "data": unknown})
        for charge in (first, other):
            dispute = {"merchant": stack.merchant, "reference": charge["id"], "dispute": "one", "reason": "fraudulent"}
            stack.control("events", {"type": "dispute.opened", "data": dispute})
            time.sleep(0.5)
        self.hold_table(second, traffic)
        # Time passes.
        postgres = stack.postgres
        eventually("an unfinished payout", lambda: postgres.sql("SELECT count(*) FROM idempotency_keys WHERE state = 'in_progress'") != "0")
        postgres.sql("UPDATE idempotency_keys SET created_at = created_at - interval '1 hour', "
                     "lease_expires_at = now() - interval '10 minutes', recover_at = now() - interval '10 minutes' "
                     "WHERE state = 'in_progress' AND operation = 'payouts.create'", guards=False)
        postgres.sql("UPDATE idempotency_keys SET created_at = created_at - interval '26 hours', "
                     "expires_at = expires_at - interval '26 hours' WHERE key = 'first-1'; "
                     "UPDATE merchant_pricing SET effective_at = effective_at - interval '27 hours'", guards=False)
        traffic.keep(lambda: postgres.sql(
            "UPDATE webhook_deliveries SET due_at = now() - interval '1 hour' WHERE state = 'pending' AND attempt_count = 0", guards=False), 1)

    def retry_impatiently(self, instance):
        key = str(uuid.uuid4())
        tries = [Task(self.stack.charge, instance, key) for _ in range(8)]
        for attempt in tries:
            attempt.join()

    def overtake(self, instance):
        """An attempt comes back from the processor after its lease, and another has taken over."""
        key = str(uuid.uuid4())
        first = Task(self.stack.charge, instance, key)
        lease_ends = f"UPDATE idempotency_keys SET lease_expires_at = now() WHERE key = '{key}' AND state = 'in_progress' RETURNING 1"
        eventually("the claim", lambda: self.stack.postgres.sql(lease_ends), 2)
        self.stack.charge(instance, key)
        first.join()

    def hold_table(self, instance, traffic):
        """Somebody's long transaction has a lock, so reads hold their connections until they give up."""
        holder = "BEGIN; LOCK TABLE disputes IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(8); COMMIT"
        traffic.tasks.append(Task(self.stack.postgres.sql, holder))
        ends = time.monotonic() + 9

        def read():
            if time.monotonic() < ends:
                request(f"{instance.url}/v1/disputes", key=self.stack.api_key)
            else:
                time.sleep(1)

        for _ in range(6):
            traffic.keep(read)

    def grow(self):
        """Keys with large answers, as many as a day of much traffic leaves."""
        self.stack.postgres.sql(
            "CREATE TABLE filler AS SELECT * FROM idempotency_keys WHERE key = 'first-2'; "
            "ALTER TABLE filler ALTER response_body SET STORAGE EXTERNAL; "
            "UPDATE filler SET response_body = convert_to(repeat('x', 40000), 'UTF8'), resource_id = NULL, resource_type = NULL; "
            "INSERT INTO idempotency_keys SELECT (jsonb_populate_record(f, jsonb_build_object('key', 'filler-' || n))).* "
            "FROM filler f, generate_series(1, 2500) n", guards=False)

    def change_causes(self):
        """The workers work again, and other things break."""
        stack, postgres = self.stack, self.stack.postgres
        stack.instances["spare"].stop(signal.SIGKILL)
        stack.faults({"fault": "error_before", "kinds": ["payout"]})
        postgres.sql("DELETE FROM idempotency_keys WHERE key LIKE 'filler-%'; DROP TABLE filler; "
                     "UPDATE acquirer_reads SET due_at = '-infinity'", guards=False)
        postgres.sql("SELECT ledger_roll_up(merchant_id, id) FROM ledger_accounts")
        self.checkpoint = postgres.sql("UPDATE ledger_checkpoints SET balance = balance + 1 "
                                       "WHERE account_id = (SELECT min(account_id::text)::uuid FROM ledger_checkpoints) RETURNING account_id", guards=False)
        at_work = {"recovery_interval_ms": 200, "recovery_attempts_max": 1, "recovery_delay_ms": 100, "reaper_interval_ms": 200,
                   "reconcile_interval_ms": 1_000, "audit_interval_s": 1}
        stack.serve("main", self.ports["main"], **BRISK, **at_work)
        stack.serve("second", self.ports["second"], **BRISK, **IDLE)
        # A second payment that nobody here has asked for.
        hold = {"amount": "6.00", "currency": "USD", "payment_method": "pm_card_visa", "merchant": stack.merchant, "reference": UNKNOWN_CHARGE}
        self.orphan = self.ok(self.at_processor("/authorizations", hold))

    def at_processor(self, path, body):
        return request(f"{self.stack.simulator_url}{path}", "POST", body, "simulator-key", {"Idempotency-Key": str(uuid.uuid4())})

    def mend(self):
        """Does what the runbook says."""
        stack, postgres = self.stack, self.stack.postgres
        main = stack.instances["main"]
        stack.faults()
        eventually("the processor", lambda: request(f"{stack.simulator_url}/health", key="simulator-key")[0] == 200)
        self.receiver.is_slow.clear()
        for name in ("spare", "mixed", "rejected"):
            stack.serve(name, self.ports[name], **BRISK, **IDLE)
        postgres.sql(f"UPDATE ledger_checkpoints SET balance = balance - 1 WHERE account_id = '{self.checkpoint}'", guards=False)
        self.ok(self.at_processor(f"/authorizations/{self.orphan['authorization_id']}/void",
                                  {"merchant": stack.merchant, "reference": UNKNOWN_CHARGE}))
        for state in ("parked", "contradicted"):
            events = request(f"{main.url}/v1/operator/acquirer-events?state={state}", key=stack.operator_key)[1]["data"]
            for event in events:
                headers = {"Idempotency-Key": str(uuid.uuid4())}
                self.ok(request(f"{main.url}/v1/operator/acquirer-events/{event['id']}/dismiss", "POST",
                                {"reason": "a drill"}, stack.operator_key, headers))

        def retry_parked():
            subprocess.run([stack.binary, "keys", "retry", "--all-parked"], env=stack.environment(), check=True, capture_output=True)
            return postgres.sql("SELECT count(*) FROM idempotency_keys WHERE state = 'in_progress'") == "0"

        eventually("the end of all requests", retry_parked)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(ROOT, "target", "debug", "oncepay"))
    parser.add_argument("--show", action="store_true", help="print what the runbook's commands write")
    options = parser.parse_args()
    binaries = prometheus_binaries()
    rules = open(os.path.join(OPS, "alerts.yml")).read()
    names = alerts_of(rules)
    commands = look_commands(open(os.path.join(OPS, "runbook.md")).read())

    begun = time.monotonic()
    receiver, traffic = Receiver(), Traffic()
    stack = Stack(options.binary, binaries[0])
    try:
        drill = Drill(stack, receiver)
        drill.prepare()
        drill.start(Mixer(stack.simulator_url))
        short = os.path.join(stack.folder, "alerts.yml")
        with open(short, "w") as file:
            file.write(shorten(rules))
        stack.watch(short, SCRAPE)
        watch = Watch(stack, commands, options.show)
        drill.disturb(traffic)
        # The key table's size has a past by now.
        time.sleep(max(0, WINDOW_MAX_S + 2 - (time.monotonic() - watch.begun)))
        drill.grow()
        later = {"OncepayInstanceDown", "OncepayRequestsParked", "OncepayBooksNotClean", "OncepayReconciliationDifferences",
                 "OncepayProcessorDown"}
        watch.expect(*(set(names) - later))
        traffic.end()
        # What a busy machine has set off by itself doesn't count.
        watch.forget(later)
        drill.change_causes()
        watch.expect(*(later - {"OncepayProcessorDown"}))
        watch.join_runners()
        stack.control("refuse", {"for_ms": 8_000})
        watch.expect("OncepayProcessorDown")
        drill.mend()
        try:
            eventually("", watch.is_quiet, 90)
        except SystemExit:
            sys.exit(f"don't end: {', '.join(sorted(watch.firing))}")
        watch.end()
        audit = subprocess.run([stack.binary, "audit"], env=stack.environment(), capture_output=True, text=True)
        if audit.returncode != 0:
            sys.exit(f"the books aren't in order after the drill:\n{audit.stdout}{audit.stderr}")
        if watch.complaints:
            sys.exit("commands of the runbook don't work:\n" + "\n".join(watch.complaints))
        looked = sum(len(commands.get(name, [])) for name in names)
        print(f"All {len(names)} alerts fired and ended, and {looked} commands of the runbook work, in {time.monotonic() - begun:.0f} s.")
    finally:
        traffic.ended.set()
        stack.stop()


if __name__ == "__main__":
    main()
