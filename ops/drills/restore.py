"""Loses a database and restores it, and proves that no payment is lost or made twice.

  python3 ops/drills/restore.py [--requests 150] [--binary FILE]

A service with an archived Postgres and a processor of its own takes charges, captures, refunds and payouts. A base backup and
a dump are taken meanwhile. Later, at some time under load, a mistake happens; it's noticed after more requests. Then:

1. The server and the service are killed, and the server's data is deleted.
2. The base backup and the archive restore the database as it was right before the mistake. The audit is clean, and every
   answer from before is replayed byte for byte.
3. What the processor did afterwards is found by `oncepay reconcile` and resolved by the commands of ops/RESTORE.md: clients
   send their requests again, the processor sends its events again, holds are voided, an operator books the rest. The processor
   has done nothing twice, and both sides' books agree to the cent.
4. The dump is restored, too, with the same promises for all from before it was taken.

Needs Postgres' server binaries, pg_basebackup, pg_dump and psql. Prints how long each step took.
"""

import argparse
import collections
import datetime
import http.client
import json
import os
import random
import re
import shutil
import tempfile
import threading
import time
import uuid

from drill import Client, Cluster, Process, Stopwatch, Task, build, create_database, eventually, expect, find, free_port, oncepay, run, serve

MASTER_KEY = "a-master-key-for-drills-of-40-characters"
PROCESSOR_KEY = "processor-key"
WEBHOOK_SECRET = "whsec_ZHJpbGwtZHJpbGwtZHJpbGwtZHJpbGwtZHJpbGwtMDA="
# Requests of the kinds by which money moves, and how often each comes.
KINDS = {"charge": 6, "hold": 3, "capture": 2, "refund": 2, "payout": 1, "later": 1}

Sent = collections.namedtuple("Sent", "path body key answer answered_at kind")


class Merchant(Client):
    """A client that keeps what it sent, to send it again."""

    def __init__(self, url, key, seed):
        super().__init__(url, key)
        self.random, self.sent, self.lock = random.Random(seed), [], threading.Lock()
        self.paid, self.held = [], []

    def post(self, path, body, kind):
        key = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
        answer = self.send("POST", path, body, key)
        expect(answer.status in (200, 201), f"{path} was answered {answer.status}: {answer.body}")
        with self.lock:
            self.sent.append(Sent(path, body, key, answer, time.time(), kind))
        return answer.json()["id"]

    def act(self):
        """Something that a merchant does."""
        kind = self.random.choices(list(KINDS), KINDS.values())[0]
        amount = f"{self.random.randint(500, 5000) / 100:.2f}"
        charge = {"amount": amount, "currency": "USD", "payment_method": "pm_card_visa"}
        if kind == "hold":
            self.held.append(self.post("/v1/charges", charge | {"capture": False}, kind))
        elif kind == "later":
            self.post("/v1/charges", charge | {"payment_method": "pm_card_async"}, kind)
        elif kind == "capture" and self.held:
            charge = self.held.pop(self.random.randrange(len(self.held)))
            self.post(f"/v1/charges/{charge}/capture", {}, kind)
        elif kind == "refund" and self.paid:
            self.post("/v1/refunds", {"charge_id": self.random.choice(self.paid), "amount": "0.10"}, kind)
        elif kind == "payout" and len(self.paid) > 5:
            self.post("/v1/payouts", {"amount": "1.00", "currency": "USD", "destination": "ba_main"}, kind)
        else:
            self.paid.append(self.post("/v1/charges", charge, "charge"))

    def again(self, sent):
        return self.send("POST", sent.path, sent.body, sent.key)


def under_load(merchant, work):
    """Does `work` while the merchant goes on."""
    stop = threading.Event()

    def go_on():
        while not stop.is_set():
            merchant.act()

    load = Task(go_on)
    try:
        return work()
    finally:
        stop.set()
        load.join()


class Processor:
    """The processor: another company, whose database nobody loses."""

    def __init__(self, binary, folder, webhook_url):
        self.cluster = Cluster(os.path.join(folder, "processor")).create().start()
        self.cluster.sql("CREATE DATABASE processor", "postgres")
        port, control = free_port(), free_port()
        self.url, self.control = f"http://127.0.0.1:{port}", Client(f"http://127.0.0.1:{control}", "")
        environment = os.environ | {
            "ONCEPAY_SIMULATOR_DATABASE_URL": self.cluster.url(database="processor"),
            "ONCEPAY_SIMULATOR_API_KEY": PROCESSOR_KEY, "ONCEPAY_WEBHOOK_SECRET": WEBHOOK_SECRET,
        }
        command = [binary, "simulator", "--listen", f"127.0.0.1:{port}", "--control-listen", f"127.0.0.1:{control}"]
        command += ["--webhook-url", webhook_url, "--decide-after-ms", "2000"]
        self.process = Process(command, os.path.join(folder, "processor.log"), environment)
        eventually("the processor", lambda: _answers(self.url))

    def rows(self, query):
        return [line.split("|") for line in self.cluster.sql(query, "processor").splitlines()]

    def calls(self):
        """The idempotency key of each operation, in order: what it has done."""
        return [row[0] for row in self.rows("SELECT idempotency_key FROM operations ORDER BY idempotency_key")]

    def owed(self):
        """What it owes, by its own books: captures less refunds."""
        return self.rows(
            "SELECT sum(CASE kind WHEN 'capture' THEN amount ELSE -amount END)::numeric(16, 2) FROM operations "
            "WHERE kind IN ('capture', 'refund') AND status IN ('succeeded', 'paid', 'pending')"
        )[0][0]

    def send_again(self, after):
        answer = self.control.send("POST", "/control/redeliveries", {"after": after})
        expect(answer.status == 200, f"redeliveries were answered {answer.status}: {answer.body}")
        return answer.json()["events"]

    def stop(self):
        self.process.stop()
        self.cluster.stop()


def _answers(url):
    try:
        return Client(url, "").send("GET", "/health").status == 200
    except (OSError, http.client.HTTPException):
        return False


class Drill:
    def __init__(self, binary, folder):
        self.binary, self.folder, self.watch, self.clusters = binary, folder, Stopwatch(), []
        self.instance = self.processor = None
        self.port = free_port()

    def cluster(self, name, archive=None):
        self.clusters.append(Cluster(os.path.join(self.folder, name), archive))
        return self.clusters[-1]

    def environment(self, cluster, database="oncepay"):
        """The settings of everything that acts for the service."""
        return {
            "DATABASE_URL": cluster.url("oncepay_app", database),
            "ONCEPAY_OWNER_DATABASE_URL": cluster.url("oncepay_owner", database),
            "ONCEPAY_MASTER_KEY": MASTER_KEY, "ONCEPAY_WEBHOOK_SECRET": WEBHOOK_SECRET,
            "ONCEPAY_PROCESSOR_URL": self.processor.url, "ONCEPAY_PROCESSOR_API_KEY": PROCESSOR_KEY,
            "ONCEPAY_LEASE_MS": "9000", "ONCEPAY_SHUTDOWN_DELAY_MS": "0", "RUST_LOG": "error",
        }

    def serve(self, cluster, database="oncepay", **settings):
        """An instance, always at the address to which the processor sends its events."""
        log = os.path.join(self.folder, f"service-{len(os.listdir(self.folder))}.log")
        environment = self.environment(cluster, database) | settings
        self.instance = serve(self.binary, environment, log, port=self.port)
        return self.instance.url

    def oncepay(self, cluster, *arguments, database="oncepay", may_fail=False):
        return oncepay(self.binary, self.environment(cluster, database), *arguments, may_fail=may_fail)

    def reconcile(self, cluster, *arguments):
        """Differences as (difference, kind, reference, operation), when the processor's list shows everything."""
        time.sleep(1)
        command = ["reconcile", "--reconcile-grace-s", "0", *arguments]
        agrees, said = self.oncepay(cluster, *command, may_fail=True)
        # What has been voided just now is settled.
        found = re.findall(r"^(\w+): (\w+) of (\S+) \((\S+)\): .*[A-Z]$", said, re.M)
        expect(agrees == (not found), f"oncepay reconcile:\n{said}")
        return found

    def audit_is_clean(self, cluster, database="oncepay"):
        environment = self.environment(cluster, database)
        # As of the last reading of the processor's books.
        environment["ONCEPAY_PROCESSOR_URL"] = environment["ONCEPAY_PROCESSOR_API_KEY"] = ""
        environment = {name: value for name, value in environment.items() if value}
        oncepay(self.binary, environment, "audit")

    def stop(self):
        if self.instance and self.instance.process.poll() is None:
            self.instance.process.kill()
            self.instance.process.wait()
        if self.processor:
            self.processor.stop()
        for cluster in self.clusters:
            cluster.stop("immediate")


def set_up(drill):
    primary = drill.cluster("primary", os.path.join(drill.folder, "archive")).create().start()
    create_database(primary.sql)
    primary.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT CREATE ON SCHEMA public TO oncepay_owner")
    drill.processor = Processor(drill.binary, drill.folder, f"http://127.0.0.1:{drill.port}/v1/webhooks/acquirer")
    drill.oncepay(primary, "migrate")
    seeded = os.path.join(drill.folder, "seeded")
    url = drill.serve(primary)
    drill.oncepay(primary, "seed", "--url", url, "--data-dir", seeded)
    keys = dict(line.strip().split("=", 1) for line in open(os.path.join(seeded, "dev.env")))
    drill.watch.note("a service, its archived database and a processor")
    return primary, Merchant(url, keys["ONCEPAY_API_KEY"], 1), Client(url, keys["ONCEPAY_OPERATOR_KEY"])


def back_up(drill, primary, merchant, requests):
    """Takes both kinds of backup under load, and more load after them. Returns them, and when the dump began."""
    backup, dump = (os.path.join(drill.folder, name) for name in ("base", "oncepay.dump"))
    for _ in range(requests):
        merchant.act()
    drill.watch.note(f"{len(merchant.sent)} requests")

    def base_backup():
        run(find("pg_basebackup"), "-D", backup, "-d", primary.url(database="postgres"), "-X", "stream", "-c", "fast")

    under_load(merchant, base_backup)
    drill.watch.note("base backup (pg_basebackup)", f"{_size(backup)} MB")
    dumped_at = time.time()
    under_load(merchant, lambda: run(find("pg_dump"), "-Fc", "-f", dump, primary.url()))
    drill.watch.note("dump (pg_dump)", f"{_size(dump)} MB")
    for _ in range(requests):
        merchant.act()
    drill.oncepay(primary, "reconcile", "--reconcile-grace-s", "0", may_fail=True)
    return backup, dump, dumped_at


def mistake_and_more(drill, primary, merchant, requests):
    """A mistake under load, found after more requests. Returns its time, by the database's clock and by ours."""

    def happen():
        time.sleep(0.5)
        before = time.time()
        # As both JSON and the settings of the recovery take it, which know no names of time zones.
        return before, primary.sql("""SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')""")

    here, there = under_load(merchant, happen)
    for _ in range(requests // 2):
        merchant.act()
    # What a server archives as soon as a segment is full, or ten seconds old.
    segment = primary.sql("SELECT pg_walfile_name(pg_switch_wal())", "postgres")
    eventually("the archive", lambda: os.path.exists(os.path.join(primary.archive, segment)))
    later = sum(one.answered_at > here for one in merchant.sent)
    drill.watch.note(f"{len(merchant.sent)} requests, {later} after the mistake")
    return here, there


def disaster(drill, primary):
    drill.instance.process.kill()
    drill.instance.process.wait()
    primary.stop("immediate")
    shutil.rmtree(primary.data)
    drill.watch.note("disaster")


def old_answers_are_replayed(drill, merchant, before):
    old = [one for one in merchant.sent if one.answered_at < before]
    for one in old:
        answer = merchant.again(one)
        expect(answer.is_replay() and answer.status == one.answer.status and answer.body == one.answer.body,
               f"{one.path} {one.key} isn't replayed: {answer.status} {answer.body}")
    drill.watch.note(f"{len(old)} answers replayed byte for byte")
    expect(len(old) > 20, "there were too few to prove anything")
    return old


def nobody_is_in_progress(cluster):
    state = "SELECT count(*) FROM idempotency_keys WHERE state = 'in_progress'"
    eventually("the end of requests that the restore has interrupted", lambda: cluster.sql(state) == "0")


def ids_replaced(one, ids):
    """A request with the ids that clients have got in place of lost ones."""
    path, body = one.path, dict(one.body)
    for lost, found in ids.items():
        path = path.replace(lost, found)
        body = {name: found if value == lost else value for name, value in body.items()}
    return path, body


def resolve(drill, cluster, merchant, operator, lost, at):
    """Follows ops/RESTORE.md."""
    # What it has approved later it captures by itself: that's an operation, too, and isn't done twice for being done now.
    undecided = (
        "SELECT (SELECT count(*) FROM operations WHERE decide_at IS NOT NULL)"
        " + (SELECT count(*) FROM authorizations WHERE capture_key IS NOT NULL AND status = 'open')"
    )
    eventually("the processor's own decisions", lambda: drill.processor.rows(undecided) == [["0"]])
    done = drill.processor.calls()
    found = drill.reconcile(cluster, "--void-orphans-after-s", "never")
    expect(found, "the reconciliation must find what the processor did meanwhile")
    drill.watch.note("oncepay reconcile", f"{len(found)} differences, from {len(lost)} lost requests")

    # All clients but some, who are gone, send again what they have sent since the point, with the ids that they get for lost ones.
    gone, ids = [], {}
    for number, one in enumerate(lost):
        path, body = ids_replaced(one, ids)
        is_of_gone = any(other.answer.json()["id"] in path + json.dumps(body) for other in gone)
        if is_of_gone or number % 4 == 0 and one.kind != "later":
            gone.append(one)
            continue
        answer = merchant.send("POST", path, body, one.key)
        expect(answer.status in (200, 201), f"{path}: {answer.status} {answer.body}")
        ids[one.answer.json()["id"]] = answer.json()["id"]
    nobody_is_in_progress(cluster)
    eventually("the same operations at the processor as before", lambda: drill.processor.calls() == done, 5)
    drill.watch.note(f"{len(lost) - len(gone)} requests sent again; the processor has done nothing twice")

    # Since a while before the point: what was sent then may have arrived after it.
    earlier = datetime.datetime.fromisoformat(at) - datetime.timedelta(minutes=1)
    sent = drill.processor.send_again(earlier.isoformat())
    left = drill.reconcile(cluster, "--void-orphans-after-s", "0")
    gone_ids = {one.answer.json()["id"] for one in gone}
    waiting = "SELECT id, 'po_' || replace(object_id::text, '-', '') FROM acquirer_events WHERE state = 'parked'"
    due = "SELECT count(*) FROM outbox WHERE deliveries_due > 0"
    eventually("the processor's events", lambda: drill.processor.rows(due) == [["0"]])
    about = lambda: {row.split("|")[1] for row in cluster.sql(waiting).splitlines()}  # noqa: E731
    eventually("events about what was sent again", lambda: about() <= gone_ids)
    drill.watch.note("the processor's events once more, and oncepay reconcile", f"{sent} events, {len(left)} differences left")
    expect(len(left) < len(found), "clients' retries must settle differences")

    # Money moved for requests that nobody sends again: an operator books it, and accepts the difference.
    for difference, kind, reference, operation in left:
        expect(difference == "missing_here", f"{difference} of {reference}")
        query = f"SELECT amount::numeric(16, 2), merchant FROM operations WHERE id = '{operation}'"
        amount, merchant_id = drill.processor.rows(query)[0]
        debit, credit = {
            "capture": ("acquirer_clearing", "merchant_payable"),
            "refund": ("merchant_payable", "acquirer_clearing"),
            "payout": ("merchant_payable", "bank"),
        }.get(kind, (None, None))
        if debit:
            entry = {
                "merchant_id": merchant_id, "reference": operation, "reason": "lost with the database",
                "postings": [{"account_kind": account, "side": side, "amount": amount, "currency": "USD"}
                             for account, side in ((debit, "debit"), (credit, "credit"))],
            }
            answer = operator.send("POST", "/v1/operator/journal-entries", entry, f"restore-{operation}")
            expect(answer.status == 201, f"{answer.status} {answer.body}")
    if left:
        operations = sorted({operation for *_, operation in left})
        command = ["--accept", *operations, "--reason", "booked by hand after the restore", "--void-orphans-after-s", "0"]
        expect(drill.reconcile(cluster, *command) == [], "what was accepted is no difference")
    # Events about objects that nobody has asked for again.
    for row in cluster.sql(waiting).splitlines():
        event = "ae_" + row.split("|")[0].replace("-", "")
        path = f"/v1/operator/acquirer-events/{event}/dismiss"
        answer = operator.send("POST", path, {"reason": "booked by hand after the restore"}, f"dismiss-{event}")
        expect(answer.status == 200, f"{answer.status} {answer.body}")
    expect(drill.reconcile(cluster) == [], "both sides agree in the end")
    drill.oncepay(cluster, "audit")
    ours = cluster.sql(
        "SELECT sum(p.amount)::numeric(16, 2) FROM postings p JOIN ledger_accounts a "
        "ON a.merchant_id = p.merchant_id AND a.id = p.account_id WHERE a.kind = 'acquirer_clearing'"
    )
    theirs = drill.processor.owed()
    expect(ours == theirs, f"the processor owes {ours} by our books, and {theirs} by its own")
    drill.watch.note("the rest booked and accepted; audit clean", f"both sides' books say that the processor owes {ours}")


def restore_to_point(drill, primary, backup, there):
    begun = time.monotonic()
    restored = drill.cluster("restored")
    restored.restore(backup, {
        "restore_command": f"cp {primary.archive}/%f %p", "recovery_target_time": there,
        "recovery_target_action": "promote", "archive_mode": "off",
    })
    drill.serve(restored, ONCEPAY_VOID_ORPHANS_AFTER_S="never", ONCEPAY_RECONCILE_INTERVAL_MS="86400000")
    took = time.monotonic() - begun
    drill.audit_is_clean(restored)
    drill.watch.note("restored to the point in time, audit clean", f"serving after {took:.1f} s")
    return restored


def restore_dump(drill, cluster, dump, merchant, dumped_at):
    begun = time.monotonic()
    cluster.sql("CREATE DATABASE from_dump OWNER oncepay_owner", "postgres")
    cluster.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT CREATE ON SCHEMA public TO oncepay_owner", "from_dump")
    run(find("pg_restore"), "--exit-on-error", "-j", "2", "-d", cluster.url(database="from_dump"), dump)
    drill.oncepay(cluster, "migrate", database="from_dump")
    drill.serve(cluster, "from_dump", ONCEPAY_VOID_ORPHANS_AFTER_S="never", ONCEPAY_RECONCILE_INTERVAL_MS="86400000")
    took = time.monotonic() - begun
    drill.audit_is_clean(cluster, "from_dump")
    drill.watch.note("restored from the dump, audit clean", f"serving after {took:.1f} s")
    old_answers_are_replayed(drill, merchant, dumped_at)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=150, help="before the backup, and again after it")
    parser.add_argument("--binary", help="instead of a debug build")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="oncepay-restore-")
    os.chmod(folder, 0o755)
    drill = Drill(options.binary or build(), folder)
    try:
        primary, merchant, operator = set_up(drill)
        backup, dump, dumped_at = back_up(drill, primary, merchant, options.requests)
        here, there = mistake_and_more(drill, primary, merchant, options.requests)
        disaster(drill, primary)
        restored = restore_to_point(drill, primary, backup, there)
        old = old_answers_are_replayed(drill, merchant, here)
        nobody_is_in_progress(restored)
        resolve(drill, restored, merchant, operator, merchant.sent[len(old):], there)
        drill.instance.stop()
        restore_dump(drill, restored, dump, merchant, dumped_at)
        print(f"Nothing is lost or done twice, in {time.monotonic() - drill.watch.begun:.0f} s in all.")
    finally:
        drill.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _size(path):
    return round(int(run("du", "-sk", path).split()[0]) / 1024, 1)


if __name__ == "__main__":
    main()
