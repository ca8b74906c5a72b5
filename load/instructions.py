"""Counts the instructions that a request costs the service, with valgrind, and fails if they are more than their bound.

  python3 load/instructions.py [--binary target/debug/oncepay]

Time differs from machine to machine and from run to run. Instructions hardly do, so a change that makes a request dearer is
noticed with the change, and whoever means it raises the bound beside it. What requests cost the database, `tests/costs.rs`
bounds.

Needs valgrind (`apt-get install valgrind`), under which the service is some fifty times as slow.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
import urllib.error
import urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench"))
from service import ROOT, Service, find, run, stop_all  # noqa: E402

REQUESTS = 40
# Thousands of instructions per request, of a debug build, whose dependencies aren't optimized, with a tenth of room: what is
# counted differs by one per cent from run to run, for reads by eight.
BOUNDS = {"charge": 4_100, "replay": 1_150, "read": 1_200}


class Counted:
    """An instance whose instructions are counted."""

    def __init__(self, service, folder):
        self.out = os.path.join(folder, "callgrind")
        counting = os.path.join(folder, "oncepay")
        with open(counting, "w") as script:
            script.write(f'#!/bin/sh\nexec {find("valgrind")} --tool=callgrind --callgrind-out-file={self.out} '
                         f'{service.binary} "$@"\n')
        os.chmod(counting, 0o755)
        self.instance = service.another("counted", counting)
        self.url, self.parts = self.instance.url, 0

    def count(self, work):
        """Instructions of all threads during `work`."""
        pid = str(self.instance.process.pid)
        run("callgrind_control", "--zero", pid)
        work()
        run("callgrind_control", "--dump", pid)
        self.parts += 1
        with open(f"{self.out}.{self.parts}") as dump:
            return int(re.search(r"^(?:summary|totals): (\d+)", dump.read(), re.M)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=os.path.join(ROOT, "target", "debug", "oncepay"))
    service, counted = Service(parser.parse_args().binary), None
    with tempfile.TemporaryDirectory() as folder:
        try:
            counted = Counted(service, folder)
            return judge(measure(service, counted))
        finally:
            stop_all(*([counted.instance] if counted else []), service)


def measure(service, counted):
    """Thousands of instructions of each kind of request, without those of the workers meanwhile."""
    body = json.dumps({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa", "reference": "order-1"})

    def send(method, path, key=None):
        headers = {"Authorization": f"Bearer {service.settings['ONCEPAY_API_KEY']}", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        request = urllib.request.Request(counted.url + path, body.encode() if key else None, headers, method=method)
        urllib.request.urlopen(request).read()

    kinds = {
        "charge": lambda n: send("POST", "/v1/charges", f"instructions-{n}"),
        "replay": lambda n: send("POST", "/v1/charges", "instructions-0"),
        "read": lambda n: send("GET", "/v1/charges?limit=1"),
    }
    costs = {}
    for kind, request in kinds.items():
        # The first requests also prepare statements and fill caches.
        for n in range(-20, 0):
            request(n if kind == "charge" else 0)

        def work(request=request):
            for n in range(REQUESTS):
                request(n)

        began = time.monotonic()
        counted_all = counted.count(work)
        idle = counted.count(lambda: time.sleep(2)) / 2
        costs[kind] = (counted_all - idle * (time.monotonic() - began - 2)) / REQUESTS / 1e3
    return costs


def judge(costs):
    """Prints the costs. Returns the exit status."""
    over = [kind for kind, cost in costs.items() if cost > BOUNDS[kind]]
    for kind, cost in costs.items():
        print(f"  {kind:<8} {cost:>9,.0f} thousand instructions, at most {BOUNDS[kind]:,}{'  TOO MANY' if kind in over else ''}")
    return f"dearer than bounded: {', '.join(over)}" if over else None


if __name__ == "__main__":
    sys.exit(main())
