"""Crashes the nodes of a Citus cluster under load, moves merchants between them, and holds what clients saw against what there is.

  python3 ops/drills/nodes.py [--rounds 10] [--workers 2] [--only NAME] [--binary FILE] [--table tests/FAULTS.md]

Clients of many merchants create charges at two instances, and send each until it is answered: after an error to the other
instance, with the same key. Meanwhile the workers crash, in turn; then, on another cluster, the coordinator does; shards are moved;
merchants are given shards of their own.

In the end every acknowledged answer must be given again, byte for byte, and there must be one charge per key in the
database and at the processor. Fails otherwise, and if the audit isn't clean. With --table, writes the result to that file.

Needs psql, the server binaries of Postgres, and Citus for them. As root, runs Postgres as the user postgres.
"""

import argparse
import random
import time

from charging import Charging, ending, write_table
from distributed import Distributed
from drill import expect
from service import release_build

TITLE = "A cluster of Citus"
ABOUT = f"""A coordinator and two workers, while clients of twenty merchants create charges at two instances. What crashes is started again
after a second, and is back when it has replayed its log, which took up to twenty seconds here; its merchants wait for that (*slowest
request*), and the others don't. *Worst time to recover* is from the beginning of what happens to the first answer to a charge that was sent since. Made by
`python3 ops/drills/nodes.py --table tests/FAULTS.md` on {time.strftime("%Y-%m-%d")}."""
# A shard of each worker, and the merchants of those.
SHARDS = """SELECT DISTINCT ON (nodeport) nodeport, shardid FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)
    JOIN pg_dist_node USING (groupid) WHERE logicalrelid = 'merchants'::regclass ORDER BY nodeport, random()"""
WITHOUT_SHARD_OF_ITS_OWN = """SELECT merchant_id FROM (
    SELECT merchant_id, count(*) OVER (PARTITION BY shard) AS sharing
    FROM (SELECT merchant_id, get_shard_id_for_distribution_column('merchants', merchant_id) AS shard
          FROM (SELECT array_agg(merchant_id) AS ids FROM merchants) a, unnest(a.ids) AS merchant_id) m) m
    WHERE sharing > 1 ORDER BY merchant_id LIMIT 1"""


def crash(node):
    node.stop("immediate")
    time.sleep(1)
    node.start()


def crash_worker(cluster, number):
    crash(cluster.workers[number % len(cluster.workers)])


def crash_coordinator(cluster, _):
    crash(cluster.coordinator)


def move_shard(cluster, number):
    """Moves the shards of some merchants to the next worker."""
    shards = [line.split("|") for line in cluster.sql(SHARDS).splitlines()]
    (here, shard), (there, _) = shards[number % len(shards)], shards[(number + 1) % len(shards)]
    cluster.sql(f"SELECT citus_move_shard_placement({shard}, '127.0.0.1', {here}, '127.0.0.1', {there}, 'force_logical')")


def isolate_merchant(cluster, _):
    """Gives a merchant shards of its own."""
    merchant = cluster.sql(WITHOUT_SHARD_OF_ITS_OWN)
    expect(merchant, "a merchant shares its shard")
    cluster.sql(f"SELECT isolate_tenant_to_new_shard('merchants', '{merchant}', 'CASCADE', 'block_writes')")


FAULTS = {
    "a worker crashes": crash_worker,
    "the coordinator crashes": crash_coordinator,
    "the shards of some merchants are moved": move_shard,
    "a merchant is given shards of its own": isolate_merchant,
}


def play(name, options):
    """A row of the table: something happens again and again."""
    with ending(Distributed(options.workers)) as cluster:

        def strike():
            begun = []
            for number in range(options.rounds):
                begun.append(time.monotonic())
                FAULTS[name](cluster, number)
                time.sleep(random.uniform(2, 4))
            return begun

        charging = Charging(cluster, options.binary, options.clients, merchants=20, migrate=("--distribute",))
        return f"| Citus: {name} | {charging.during(strike)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--only", choices=FAULTS)
    parser.add_argument("--binary", help="instead of a release build")
    parser.add_argument("--table", help="file to write the result to, below what is there")
    options = parser.parse_args()
    if not options.binary:
        options.binary = release_build()
    rows = [play(name, options) for name in ([options.only] if options.only else FAULTS)]
    if options.table:
        write_table(options.table, TITLE, ABOUT, rows)


if __name__ == "__main__":
    main()
