"""Kills the leader of a Patroni cluster under load, again and again, and holds what clients saw against what there is.

  python3 ops/drills/failover.py [--kills 10] [--binary FILE] [--table tests/FAULTS.md]

The cluster has two nodes in synchronous mode, and etcd with one. Two instances of Oncepay find the writable node by
libpq's target_session_attrs. Clients create charges, and send each until it is answered: after an error to the other
instance, with the same key. A kill is SIGKILL of Patroni and of every process of its Postgres, at once. The next one comes when
the node has come back as the synchronous standby.

In the end every acknowledged answer must be given again, byte for byte, and there must be one charge per key in the
database and at the processor. Fails otherwise, and if the audit isn't clean. With --table, writes the result to that file.

Needs patroni, etcd, psql and the server binaries of Postgres (Debian: patroni etcd-server postgresql). As root, runs
Postgres as the user postgres.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request

from charging import PATIENCE_S, Charging, ending, write_table
from drill import Process, create_database, eventually, find, free_port, run
from service import release_build

PASSWORD = "drill"
# The shortest that Patroni allows; its default is 30. A leader that died without a word is replaced after that time.
TTL_S = 20
TITLE = "A cluster of Patroni"


def children_of(pid):
    """Ids of the processes below one."""
    try:
        direct = open(f"/proc/{pid}/task/{pid}/children").read().split()
    except OSError:
        return []
    return [process for child in direct for process in [int(child), *children_of(child)]]


class Node:
    """A Patroni and its Postgres."""

    def __init__(self, name, folder, etcd, user):
        self.name, self.user = name, user
        self.folder = os.path.join(folder, name)
        self.data = os.path.join(self.folder, "data")
        self.port, self.rest_port = free_port(), free_port()
        os.mkdir(self.folder)
        if user:
            shutil.chown(self.folder, user, user)
        login = {"username": "postgres", "password": PASSWORD}
        settings = {
            "scope": "oncepay",
            "name": name,
            "restapi": {"listen": f"127.0.0.1:{self.rest_port}", "connect_address": f"127.0.0.1:{self.rest_port}"},
            "etcd3": {"hosts": [etcd]},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S, "loop_wait": 5, "retry_timeout": 5, "synchronous_mode": True,
                    # For the table: a Postgres that dies alone isn't waited for either.
                    "primary_start_timeout": 0,
                    "postgresql": {"use_pg_rewind": True, "parameters": {"max_connections": 60, "wal_log_hints": "on"}},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}", "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": self.data, "bin_dir": os.path.dirname(os.path.realpath(find("postgres"))),
                "authentication": {"superuser": login, "replication": login, "rewind": login},
                "pg_hba": ["host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"],
                "parameters": {"unix_socket_directories": "", "lc_messages": "C"},
                "pgpass": os.path.join(self.folder, "pgpass"),
            },
        }
        # JSON is YAML, too.
        self.settings = os.path.join(self.folder, "patroni.yml")
        with open(self.settings, "w") as file:
            json.dump(settings, file)
        self.start()

    def start(self):
        log = open(os.path.join(os.path.dirname(self.folder), f"{self.name}.log"), "a")
        as_user = {"user": self.user, "group": self.user} if self.user else {}
        self.process = subprocess.Popen(
            [find("patroni"), self.settings], cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | {"HOME": self.folder}, **as_user
        )

    def kill(self):
        """Ends Patroni and Postgres as the loss of their machine would."""
        processes = [self.process.pid, *children_of(self.process.pid)]
        try:
            postmaster = int(open(os.path.join(self.data, "postmaster.pid")).readline())
            processes += [postmaster, *children_of(postmaster)]
        except (OSError, ValueError):
            pass
        for what in (signal.SIGSTOP, signal.SIGKILL):
            for process in processes:
                try:
                    os.kill(process, what)
                except ProcessLookupError:
                    pass
        self.process.wait()

    def role(self):
        """Its role in the cluster, as it sees that itself: leader, sync_standby, replica. None without an answer."""
        try:
            cluster = json.load(urllib.request.urlopen(f"http://127.0.0.1:{self.rest_port}/cluster", timeout=2))
        except (OSError, ValueError):
            return None
        members = (member for member in cluster.get("members", []) if member["name"] == self.name)
        return next((member["role"] for member in members if member["state"] in ("running", "streaming")), None)


class Cluster:
    """Two nodes and etcd, in a folder that goes away with them."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="oncepay-failover-")
        os.chmod(self.folder, 0o755)
        self.processes, self.nodes = [], []

    def start(self):
        client, peer = free_port(), free_port()
        self.add(
            "etcd",
            [find("etcd"), "--data-dir", os.path.join(self.folder, "etcd"), "--name", "one",
             "--listen-client-urls", f"http://127.0.0.1:{client}", "--advertise-client-urls", f"http://127.0.0.1:{client}",
             "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
             "--initial-cluster", f"one=http://127.0.0.1:{peer}"],
        )
        user = "postgres" if os.geteuid() == 0 else None
        self.nodes.append(Node("a", self.folder, f"127.0.0.1:{client}", user))
        eventually("the first node", lambda: self.nodes[0].role() == "leader", PATIENCE_S)
        self.nodes.append(Node("b", self.folder, f"127.0.0.1:{client}", user))
        self.wait_until_whole()

    def add(self, name, command, environment=None):
        process = Process(command, os.path.join(self.folder, f"{name}.log"), environment)
        self.processes.append(process)
        return process

    def wait_until_whole(self):
        eventually("the synchronous standby", lambda: sorted(str(node.role()) for node in self.nodes) == ["leader", "sync_standby"], PATIENCE_S)

    def leader(self):
        return next((node for node in self.nodes if node.role() == "leader"), None)

    def create_database(self):
        create_database(self.sql, PASSWORD)

    def url(self, role, database):
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgres://{role}:{PASSWORD}@{hosts}/{database}?target_session_attrs=read-write&connect_timeout=2"

    def sql(self, statement, database="oncepay"):
        return run(find("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", self.url("postgres", database), "-c", statement).strip()

    def stop(self):
        for node in self.nodes:
            if node.process.poll() is None:
                node.kill()
        for process in reversed(self.processes):
            process.process.kill()
            process.process.wait()


def kill_leader(cluster):
    """Returns when the leader was killed, as soon as the other node leads and the killed one follows it."""
    leader = cluster.leader()
    other = next(node for node in cluster.nodes if node is not leader)
    killed = time.monotonic()
    leader.kill()
    eventually("another leader", lambda: other.role() == "leader", PATIENCE_S)
    print(f"  {leader.name} was killed, and {other.name} leads after {time.monotonic() - killed:.1f} s", flush=True)
    leader.start()
    cluster.wait_until_whole()
    return killed


ABOUT = f"""Two nodes in synchronous mode, of which the leader is killed with all its processes while clients create charges at two
instances, until its place in etcd expires ({TTL_S} s) and the other node takes it. *Worst time to recover* is from the kill to
the first answer to a charge that was sent since. Made by `python3 ops/drills/failover.py --table tests/FAULTS.md` on
{time.strftime("%Y-%m-%d")}."""


def play(cluster, options):
    charging = Charging(cluster, options.binary, options.clients)

    def kill():
        killed = []
        for number in range(options.kills):
            if number:
                time.sleep(random.uniform(2, 4))
            killed.append(kill_leader(cluster))
        return killed

    row = charging.during(kill)
    if options.table:
        write_table(options.table, TITLE, ABOUT, [f"| Patroni: the leader and its Postgres killed | {row}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--binary", help="instead of a release build")
    parser.add_argument("--table", help="file to write the result to, below what is there")
    options = parser.parse_args()
    if not options.binary:
        options.binary = release_build()
    with ending(Cluster()) as cluster:
        cluster.start()
        play(cluster, options)


if __name__ == "__main__":
    main()
