"""Plays the rollout of a release under load, behind HAProxy with containers/haproxy.cfg, and counts what clients notice.

  python3 load/rollout.py [--before FILE] [--restarts 10] [--binary FILE]

With `--before`, the binary of an earlier release, that one serves at first. Then `oncepay migrate` of this release runs beside
charges at a fixed rate and a transaction that has read every table for half a minute; fails if a charge isn't answered
201, or if the p99 is above 500 ms.

After that, one instance after the other is told to stop (SIGTERM) and started anew, as many times as `--restarts` says, while
clients send charges as fast as they get answers; fails if one of them isn't answered, or with an error, or if an instance takes
longer to stop than it may.

Needs haproxy, wrk and psql.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench"))

from charges import Charges
from prepare import new_merchants
from programs import start_wrk, wrk_result
from service import ROOT, Process, Service, Task, find, free_port, release_build, run, stop_all

READER_S = 30
# As long as instances report that they stop, and HAProxy takes to see one that is back.
SHUTDOWN_DELAY_MS = 5000
BACK_S = 3
# An instance finishes the requests under way within this time after its port is closed, and a little goes to starting and ending.
SHUTDOWN_MAX_S = SHUTDOWN_DELAY_MS / 1000 + 30 + 2


class Proxy(Process):
    """HAProxy in front of two instances."""

    # It ignores SIGINT where a shell has started this in the background.
    stop_signal = signal.SIGTERM

    def __init__(self, folder, instances):
        config = open(os.path.join(ROOT, "containers", "haproxy.cfg")).read()
        # The names of the containers, and who resolves them.
        config = re.sub(r"resolvers engine\n(    .*\n)+", "", config).replace("resolvers engine init-addr last,libc,none", "")
        address = f"127.0.0.1:{free_port()}"
        config = config.replace("bind :8080", f"bind {address}")
        for number, instance in enumerate(instances, 1):
            config = config.replace(f" api-{number}:8080", " " + instance.url.removeprefix("http://"))
        path = os.path.join(folder, "haproxy.cfg")
        with open(path, "w") as file:
            file.write(config)
        self.url = f"http://{address}"
        super().__init__([find("haproxy"), "-db", "-f", path], os.path.join(folder, "haproxy.log"))
        self.wait_until_ready()


def read_for_long(service, seconds):
    """A transaction that reads every table and then stays; returns when it has read."""
    tables = service.sql(
        "SELECT string_agg(format('SELECT count(*) FROM (SELECT FROM %I.%I LIMIT 1) AS one;', schemaname, tablename), ' ') "
        "FROM pg_tables WHERE schemaname = 'public'"
    )
    reader = subprocess.Popen(
        [find("psql"), "-XqAt", service.settings["ONCEPAY_OWNER_DATABASE_URL"]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    reader.stdin.write(f"BEGIN;\n{tables}\n\\echo read\nSELECT pg_sleep({seconds});\nCOMMIT;\n")
    reader.stdin.close()
    while reader.stdout.readline().strip() != "read":
        pass
    return reader


def migrate_beside(service, charges, after):
    """The p99 without and beside the migration, in ms, and what it said."""
    without = charges.p99_ms(READER_S)
    reader = read_for_long(service, READER_S)
    stop, beside = threading.Event(), []
    clients = Task(lambda: beside.append(charges.p99_ms(10 * 60, stop)))
    environment = os.environ | {"ONCEPAY_OWNER_DATABASE_URL": service.settings["ONCEPAY_OWNER_DATABASE_URL"]}
    begun = time.monotonic()
    said = run(after, "migrate", env=environment).strip()
    took = time.monotonic() - begun
    # What comes after it counts, too.
    time.sleep(5)
    stop.set()
    clients.join()
    reader.wait()
    if not beside:
        sys.exit("charges failed beside the migration, see above")
    print(f"migrate: {said} In {took:.0f} s; p99 of charges {without:.1f} ms without, {beside[0]:.1f} ms beside it", flush=True)
    return beside[0]


def replace(service, instances, place, binary):
    """Stops the instance as a deploy does, and starts `binary` in its place. Returns the seconds from SIGTERM to the exit."""
    told = time.monotonic()
    instances[place].process.send_signal(signal.SIGTERM)
    status = instances[place].process.wait()
    took = time.monotonic() - told
    if status != 0 or took > SHUTDOWN_MAX_S:
        sys.exit(f"an instance ended with status {status}, {took:.1f} s after SIGTERM")
    instances[place] = service.another(place + 1, binary, SHUTDOWN_DELAY_MS)
    time.sleep(BACK_S)
    return took


def restart_in_turn(service, instances, after, restarts):
    """The seconds that each instance took to stop."""
    return [replace(service, instances, number % len(instances), after) for number in range(restarts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="binary of the release that is replaced")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--rate", type=float, default=50, help="charges per second beside the migration")
    parser.add_argument("--clients", type=int, default=16, help="during the restarts")
    parser.add_argument("--requests-min", type=int, default=0, help="go on with restarts until there were so many")
    parser.add_argument("--binary", help="instead of a release build")
    options = parser.parse_args()
    if not options.binary:
        options.binary = release_build()
    before = options.before or options.binary
    service = Service(before)
    instances, proxy, bad = [], None, False
    try:
        instances += [service.another(number, before, SHUTDOWN_DELAY_MS) for number in (1, 2)]
        proxy = Proxy(service.folder, instances)
        keys = new_merchants(service, "rollout", 20)
        if options.before:
            charges = Charges(proxy.url, open(keys).readline().strip(), options.rate)
            charges.take(5)
            bad |= migrate_beside(service, charges, options.binary) > 500
        requests = errors = rounds = 0
        while rounds == 0 or requests < options.requests_min:
            seconds = options.restarts * (SHUTDOWN_DELAY_MS / 1000 + BACK_S + 1)
            clients = start_wrk(proxy.url, options.clients, round(seconds), keys, f"rollout-{rounds}")
            took = restart_in_turn(service, instances, options.binary, options.restarts)
            result = wrk_result(clients, may_fail=True)
            rounds, requests, errors = rounds + 1, requests + result["requests"], errors + result["bad"]
            kinds = ", ".join(f"{result[kind]} {kind}" for kind in ("connect", "read", "write", "status"))
            print(f"{options.restarts} restarts: {result['requests']:,} requests, {result['bad']} without success ({kinds}), "
                  f"p99 {result['p99_ms']:.0f} ms; SIGTERM to exit {min(took):.1f} to {max(took):.1f} s", flush=True)
        charged = int(service.sql("SELECT count(*) FROM charges"))
        print(f"in all {requests:,} requests, {errors} without success; {charged:,} charges in the database", flush=True)
        if errors or bad:
            sys.exit("clients noticed the rollout")
    finally:
        stop_all(proxy, *instances, service)


if __name__ == "__main__":
    main()
