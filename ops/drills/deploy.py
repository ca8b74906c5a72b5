"""Deploys a release and takes it back, under load, and proves that clients notice nothing.

  python3 ops/drills/deploy.py [--before FILE] [--binary FILE] [--seconds 3]

Two instances of the release before serve behind HAProxy (containers/haproxy.cfg), with a processor that keeps books of its own.
Clients send charges, and some of them again. Beside them, in this order:

1. `oncepay migrate` of this release, and a further migration that expands the busiest tables.
2. One instance is replaced by this release: both serve side by side, on the new schema. Then the other one.
3. Both are replaced by the release before again, one after the other: the code is rolled back, the schema stays.
4. The further migration is taken back, while the release before serves.

Fails if a client sees anything but a first answer or its exact repetition, if a charge is lost or made twice here or at the
processor, or if an instance takes longer to stop than it may.

Without `--before`, this release stands for the one before, too. Then the drill proves that a release and the machinery around
it stand a deploy and a change of the schema, but not that two given releases understand each other. With the binary of the
release that you run today, it proves that.

Needs Postgres' server binaries, psql and haproxy.
"""

import argparse
import http.client
import random
import subprocess
import sys
import threading
import time
import uuid

from drill import Client, Stopwatch, Task, build, expect, find, oncepay

from prepare import new_merchants
from rollout import SHUTDOWN_DELAY_MS, Proxy, replace
from service import Service, stop_all

CLIENTS = 8
# Of the commands.
SETTINGS = ["DATABASE_URL", "ONCEPAY_OWNER_DATABASE_URL", "ONCEPAY_PROCESSOR_URL", "ONCEPAY_PROCESSOR_API_KEY"]
# How a release changes a table in service: columns that rewrite nothing, an index that blocks nobody, a constraint that is
# checked later.
EXPAND = [
    "ALTER TABLE charges ADD COLUMN drilled text",
    "ALTER TABLE idempotency_keys ADD COLUMN drilled integer NOT NULL DEFAULT 0",
    "ALTER TABLE merchants ADD COLUMN drilled text",
    "ALTER TABLE idempotency_policies ADD COLUMN drilled text",
    "CREATE INDEX CONCURRENTLY drilled ON charges (merchant_id, drilled) WHERE drilled IS NOT NULL",
    "ALTER TABLE charges ADD CONSTRAINT drilled CHECK (drilled <> '') NOT VALID",
    "ALTER TABLE charges VALIDATE CONSTRAINT drilled",
]
CONTRACT = [
    "DROP INDEX CONCURRENTLY drilled",
    "ALTER TABLE charges DROP COLUMN drilled",
    "ALTER TABLE idempotency_keys DROP COLUMN drilled",
    "ALTER TABLE merchants DROP COLUMN drilled",
    "ALTER TABLE idempotency_policies DROP COLUMN drilled",
]


class Buyers:
    """Clients that send charges without a pause, and every fifth time an earlier one again."""

    def __init__(self, url, keys):
        self.answers, self.bad, self.count, self.lock = {}, [], 0, threading.Lock()
        self.stopping = threading.Event()
        self.tasks = [Task(self.buy, Client(url, key)) for key in keys]

    def buy(self, client):
        mine = []
        while not self.stopping.is_set():
            is_new = not mine or random.random() < 0.8
            key = str(uuid.uuid4()) if is_new else random.choice(mine)
            body = {"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"}
            try:
                answer = client.send("POST", "/v1/charges", body, key)
                is_good = answer.status == 201 and (is_new or answer.is_replay() and answer.body == self.answers[key])
                seen = f"{answer.status} {answer.body[:200]}"
            except (OSError, http.client.HTTPException) as error:
                is_good, seen = False, repr(error)
            with self.lock:
                self.count += 1
                if is_good and is_new:
                    self.answers[key] = answer.body
                    mine.append(key)
                elif not is_good:
                    self.bad.append(f"{'first' if is_new else 'again'}: {seen}")

    def stop(self):
        self.stopping.set()
        for task in self.tasks:
            task.join()


def change(service, statements):
    """Runs DDL as `oncepay migrate` does: it waits for a lock for half a second at most, and comes again."""
    for statement in statements:
        for attempt in range(60):
            command = [find("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", service.settings["ONCEPAY_OWNER_DATABASE_URL"]]
            command += ["-c", "SET lock_timeout = '500ms'", "-c", statement]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                break
            expect("lock timeout" in done.stderr, f"{statement}: {done.stderr}")
            time.sleep(0.5)
        else:
            sys.exit(f"FAILED: {statement} got no lock")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="binary of the release before")
    parser.add_argument("--binary", help="of this release, instead of a debug build")
    parser.add_argument("--seconds", type=float, default=3, help="in each state")
    options = parser.parse_args()
    after = options.binary or build()
    before = options.before or after
    service = Service(before, "--processor", "http")
    instances, proxy, buyers, watch, stops = [], None, None, Stopwatch(), []
    environment = {name: service.settings[name] for name in SETTINGS}

    def go_on(state):
        time.sleep(options.seconds)
        expect(not buyers.bad, f"{state}: {len(buyers.bad)} requests failed, such as {buyers.bad[:3]}")
        watch.note(state, f"{buyers.count:,} requests, none failed")

    try:
        instances += [service.another(number, before, SHUTDOWN_DELAY_MS) for number in (1, 2)]
        proxy = Proxy(service.folder, instances)
        keys = [line.strip() for line in open(new_merchants(service, "deploy", CLIENTS))]
        earlier = int(service.sql("SELECT count(*) FROM charges"))
        buyers = Buyers(proxy.url, keys)
        go_on("the release before serves")
        _, said = oncepay(after, environment, "migrate")
        change(service, EXPAND)
        go_on(f"it serves on the new schema ({said.strip()})")
        for state, place, binary in [
            ("both releases serve side by side", 1, after),
            ("this release serves", 0, after),
            ("this release is being taken back: both serve side by side", 0, before),
            ("the release before serves on the new schema", 1, before),
        ]:
            stops.append(replace(service, instances, place, binary))
            go_on(state)
        change(service, CONTRACT)
        go_on("the further migration is taken back")
        buyers.stop()

        made = int(service.sql("SELECT count(*) FROM charges")) - earlier
        expect(made == len(buyers.answers), f"{len(buyers.answers)} charges were answered, and {made} made")
        time.sleep(1)
        oncepay(after, environment, "reconcile", "--reconcile-grace-s", "0")
        oncepay(after, environment, "audit")
        watch.note("both sides' books agree, audit clean", f"{made:,} charges, 0 lost, 0 made twice")
        print(f"SIGTERM to exit: {min(stops):.1f} to {max(stops):.1f} s, "
              f"of which {SHUTDOWN_DELAY_MS / 1000:.0f} s for the load balancer (ONCEPAY_SHUTDOWN_DELAY_MS)")
    finally:
        if buyers:
            buyers.stopping.set()
        stop_all(proxy, *instances, service)


if __name__ == "__main__":
    main()
