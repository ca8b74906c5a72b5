"""Restores all nodes of a Citus cluster to one point, and proves that no payment from before it is lost or made twice.

  python3 ops/drills/nodes_restore.py [--seconds 8] [--binary FILE]

Each node has an archive and a base backup of its own. While clients of many merchants create charges, a restore point is created on
all nodes at once; after more charges, all nodes and the service are killed and their data is deleted. Then:

1. Each node is restored to the point. Instances start by themselves on it, and the audit is clean.
2. Every answer from before the point is replayed byte for byte.
3. Clients send what was answered later again: each request is executed once, and the audit is clean.

Needs psql, the server binaries of Postgres, pg_basebackup, and Citus. As root, runs Postgres as the user postgres.
"""

import argparse
import shutil
import time

from charging import Charging, ending
from distributed import Distributed
from drill import Stopwatch, Task, expect, find, run
from service import release_build

POINT = "before_the_mistake"


def back_up(node):
    """A base backup of a node, beside its data."""
    backup = f"{node.data}-backup"
    run(find("pg_basebackup"), "-D", backup, "-d", node.url("postgres", "postgres"), "--checkpoint=fast", "--no-sync")
    return backup


def replays(charging, keys):
    """The answers to keys now: by key, the body and whether it's a replay."""
    found = {}

    def ask(client):
        for key in client.answers:
            if key in keys:
                answer = client.send_until_answered(key)
                expect(answer, f"{key} got no answer")
                found[key] = answer[1:]

    for task in [Task(ask, client) for client in charging.clients]:
        task.join()
    return found


def play(cluster, options, watch):
    charging = Charging(cluster, options.binary, 12, merchants=12, migrate=("--distribute",))
    backups = [back_up(node) for node in cluster.nodes]
    watch.note("a base backup of each node is taken")
    tasks = [Task(client.go_on) for client in charging.clients]
    time.sleep(options.seconds)
    begun = time.monotonic()
    cluster.sql(f"SELECT citus_create_restore_point('{POINT}')")
    ended = time.monotonic()
    time.sleep(options.seconds)
    charging.stop.set()
    for task in tasks:
        task.join()
    answers = {key: answer for client in charging.clients for key, answer in client.answers.items()}
    before = {key for key, (_, at, _) in answers.items() if at < begun}
    after = {key for key, (sent, _, _) in answers.items() if sent > ended}
    expect(before and after, "there were charges before and after the point")
    # What the archive hasn't got yet is in the segment under way.
    for node in cluster.nodes:
        node.sql("SELECT pg_switch_wal()", "postgres")
    time.sleep(2)
    watch.note("all is lost", f"{len(before)} charges before the point, {len(answers) - len(before)} later")
    charging.kill_instances()
    for node, backup in zip(cluster.nodes, backups):
        node.stop("immediate")
        shutil.rmtree(node.data)
        recovery = {"restore_command": f"cp {node.archive}/%f %p", "recovery_target_name": POINT, "recovery_target_action": "promote"}
        node.restore(backup, recovery)
    watch.note("all nodes are restored to the point")
    charging.serve()
    charging.expect_clean_audit()
    for key, (body, is_replay) in replays(charging, before).items():
        expect(is_replay and body == answers[key][2], f"the answer to {key} is another one")
    watch.note("the audit is clean, and each answer from before is replayed")
    again = replays(charging, set(answers) - before)
    tables = ("charges", "idempotency_keys WHERE operation = 'charges.create'")
    charges, keys = (int(cluster.sql(f"SELECT count(*) FROM {table}")) for table in tables)
    expect(charges == keys == len(answers), f"{len(answers)} requests have made {charges} charges with {keys} keys")
    charging.expect_clean_audit()
    lost = sum(not is_replay for _, is_replay in again.values())
    watch.note("what was sent later is sent again, and executed once", f"{lost} of {len(again)} anew")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="of charges before the point, and after it")
    parser.add_argument("--binary", help="instead of a release build")
    options = parser.parse_args()
    if not options.binary:
        options.binary = release_build()
    with ending(Distributed(2, archived=True)) as cluster:
        play(cluster, options, Stopwatch())


if __name__ == "__main__":
    main()
