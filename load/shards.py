"""Measures what a charge costs each node of a Citus cluster with one, two and three workers, beside one plain Postgres.

  python3 load/shards.py [--workers 0 1 2 3] [--rounds 3] [--seconds 5] [--clients 32] [--binary FILE] [--out load/SHARDS.md]

All nodes share this machine's cores, so charges per second say little; what counts is what a charge costs the coordinator,
which all pass through, and how the rest divides among the workers. A cluster scales until its coordinator is busy.

Needs wrk, psql, the server binaries of Postgres, and Citus for them. As root, runs Postgres as the user postgres.
"""

import argparse
import os
import shutil
import statistics
import sys
import time

LOAD = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(LOAD, "bench"), os.path.join(os.path.dirname(LOAD), "ops", "drills")]

import prepare
from distributed import Distributed
from programs import wrk
from report import table
from service import Service, postgres_cpu_s, release_build, run

MERCHANTS = 200
# What is counted on each node, and SQL for it.
COUNTED = {
    "statements": "(SELECT sum(calls) FROM pg_stat_statements)",
    "rows written": "(SELECT sum(tup_inserted + tup_updated + tup_deleted) FROM pg_stat_database WHERE datname = 'oncepay')",
    "WAL, bytes": "pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')",
    "disk, bytes": "pg_database_size('oncepay')",
}
CPU = "CPU, µs"


def counted(node):
    """What the node has done so far. Sessions tell their counts within a second."""
    figures = node.sql(f"SELECT {', '.join(COUNTED.values())}", "postgres").split("|")
    return dict(zip(COUNTED, map(float, figures))) | {CPU: postgres_cpu_s(node.data) * 1e6}


def measure(workers, options):
    """Charges per second, and per node what a charge costs it: for each a value of each round."""
    cluster, service, rates, costs = Distributed(workers), None, [], []
    try:
        for node in cluster.nodes:
            node.sql("CREATE EXTENSION pg_stat_statements", "postgres")
        cluster.create_database()
        owner = cluster.url("oncepay_owner", "oncepay")
        run(options.binary, "migrate", *["--distribute"] * (workers > 0), env=os.environ | {"ONCEPAY_OWNER_DATABASE_URL": owner})
        service = Service(options.binary, "--database-url", cluster.url("postgres", "oncepay"))
        requests = prepare.new_merchants(service, "many", MERCHANTS)
        for number in range(options.rounds + 1):
            before = [counted(node) for node in cluster.nodes]
            result = wrk(service.url, options.clients, options.seconds, requests, f"round-{number}")
            time.sleep(1.5)
            after = [counted(node) for node in cluster.nodes]
            if number == 0:
                # Caches and connections are cold.
                continue
            rates.append(result["rate"])
            costs.append([{name: (now[name] - then[name]) / result["requests"] for name in now}
                          for then, now in zip(before, after)])
        print(f"  {workers} workers: {rates} {costs}", flush=True)
        return rates, costs
    finally:
        if service:
            service.stop()
        cluster.stop()
        shutil.rmtree(cluster.folder, ignore_errors=True)


def rows(workers, rates, costs):
    """Of the table: first the coordinator, then the workers together, then the one of them that bears the most."""
    def row(nodes, pick):
        picked = (statistics.median(pick([node[name] for node in nodes(round)]) for round in costs) for name in [*COUNTED, CPU])
        return [f"{figure:,.1f}" if figure < 100 else f"{figure:,.0f}" for figure in picked]

    rate = f"{statistics.median(rates):,.0f}"
    if workers == 0:
        yield "one Postgres", "all", rate, *row(lambda nodes: nodes, sum)
        return
    name = f"{workers} worker{'s' * (workers > 1)}"
    yield name, "coordinator", rate, *row(lambda nodes: nodes[:1], sum)
    yield "", "workers together", "", *row(lambda nodes: nodes[1:], sum)
    if workers > 1:
        yield "", "busiest worker", "", *row(lambda nodes: nodes[1:], max)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--binary", help="instead of a release build")
    parser.add_argument("--out", help="file to write the table to")
    options = parser.parse_args()
    if not options.binary:
        options.binary = release_build()
    made = [row for workers in options.workers for row in rows(workers, *measure(workers, options))]
    text = "\n".join([
        "# What a charge costs each node",
        "",
        f"Made by `python3 load/shards.py --rounds {options.rounds} --seconds {options.seconds} --clients {options.clients}` on "
        f"{time.strftime('%Y-%m-%d')}: first-time charges of {MERCHANTS} merchants; medians of the rounds. All nodes, the "
        f"service and the clients share {os.cpu_count()} cores, so the rates say little: compare what a charge costs. "
        "[What follows from it](../docs/scale.md#when-to-take-which-step).",
        "",
        *table(["database", "node", "charges per s", *COUNTED, CPU], made),
    ])
    print(text)
    if options.out:
        with open(options.out, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
