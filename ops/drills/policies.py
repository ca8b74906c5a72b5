"""Rolls out the enforcement of idempotency keys by policy, with the commands of ops/DEPLOY.md, under load.

  python3 ops/drills/policies.py [--binary FILE]

Two instances serve clients that were written before there were idempotency keys: `charges.create` begins with `off`. Then the
commands follow, one after the other: observe 1 %, observe 100 %, enforce 1 %, enforce 100 %, and back to observe. After each, a
merchant within the 1 % and one outside of it send a charge twice. The drill checks what they get, what the metrics count on
all instances, and that clients with new keys never notice a change.

Needs Postgres' server binaries and psql.
"""

import argparse
import hashlib
import re
import threading
import time
import urllib.request
import uuid

from drill import Client, Stopwatch, Task, build, eventually, expect, oncepay

from service import Service, stop_all

CHARGE = {"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"}
# How long instances may take to follow a policy.
FOLLOWS_S = 2


def bucket(merchant):
    """The merchant's place in rollouts, 0 to 99: it's within those of more than this percentage."""
    return int.from_bytes(hashlib.sha256(uuid.UUID(merchant.removeprefix("mer_")).bytes).digest()[:4], "big") % 100


def merchants(service):
    """A client of a merchant within the first percent, and one of a merchant outside of it."""
    within = outside = None
    while not (within and outside):
        merchant = service.request("POST", "/v1/operator/merchants", {"name": "Drill", "fee_rate": "0", "fee_fixed": "0"})
        client = Client(service.url, merchant["api_key"]["key"])
        if bucket(merchant["id"]) == 0:
            within = client
        else:
            outside = client
    return within, outside


def counted(urls, outcome):
    """How many charges have had this outcome, on all instances."""
    pattern = rf'^oncepay_idempotency_requests_total{{operation="charges.create",outcome="{outcome}"}} (\d+)$'
    texts = [urllib.request.urlopen(url + "/metrics").read().decode() for url in urls]
    return sum(int(count) for text in texts for count in re.findall(pattern, text, re.M))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="instead of a debug build")
    options = parser.parse_args()
    binary = options.binary or build()
    service = Service(binary)
    other, watch, stop, bad = None, Stopwatch(), threading.Event(), []

    def go_on(client):
        while not stop.is_set():
            answer = client.send("POST", "/v1/charges", CHARGE, str(uuid.uuid4()))
            if answer.status != 201:
                bad.append(answer.body)

    load = []
    try:
        other = service.another(1)
        urls = [service.url, other.url]
        within, outside = merchants(service)
        environment = {"DATABASE_URL": service.settings["DATABASE_URL"]}
        load = [Task(go_on, Client(url, within.key)) for url in urls]
        for command, within_replays, outside_replays, observed in [
            ("enforcement=off rollout_percent=100", False, False, 0),
            ("enforcement=observe rollout_percent=1", False, False, 1),
            ("enforcement=observe rollout_percent=100", False, False, 2),
            ("enforcement=enforce rollout_percent=1", True, False, 1),
            ("enforcement=enforce rollout_percent=100", True, True, 0),
            ("enforcement=observe rollout_percent=100", False, False, 2),
        ]:
            oncepay(binary, environment, "policies", "set", "charges.create", *command.split())
            time.sleep(FOLLOWS_S + 1)
            before = counted(urls, "observed_would_replay")
            for client, replays in ((within, within_replays), (outside, outside_replays)):
                key = str(uuid.uuid4())
                # Once at each instance: they share what they know.
                first, second = (Client(url, client.key).send("POST", "/v1/charges", CHARGE, key) for url in urls)
                expect((first.status, second.status) == (201, 201), f"{command}: {first.body} {second.body}")
                is_same = first.body == second.body
                expect(is_same == replays, f"{command}: the retry {'was replayed' if is_same else 'charged again'}")
            # Metrics rest for a moment after they were asked for.
            eventually(f"{observed} observed replays with {command}",
                       lambda: counted(urls, "observed_would_replay") - before == observed, 10)
            expect(not bad, f"{command}: {bad[:3]}")
            watch.note(f"policies set charges.create {command}", f"{observed} would-be replays counted")
        stop.set()
        for task in load:
            task.join()
        _, said = oncepay(binary, environment, "policies", "history", "charges.create")
        expect(len(said.splitlines()) == 6, said)
        oncepay(binary, environment, "audit")
        print(said.strip())
    finally:
        stop.set()
        stop_all(other, service)


if __name__ == "__main__":
    main()
