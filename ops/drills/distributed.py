"""A cluster of Citus: a coordinator and workers, each a Postgres in a folder."""

import os
import tempfile

from drill import Cluster, Process, create_database

# As the extension needs them. The rest is stock, but for the connections: each one to the coordinator opens some to workers.
SETTINGS = {
    "shared_preload_libraries": "citus,pg_stat_statements",
    "wal_level": "logical",
    "max_connections": 200,
    "max_prepared_transactions": 200,
    "max_worker_processes": 32,
    "max_locks_per_transaction": 256,
    "citus.node_conninfo": "sslmode=prefer",
    # For moved shards.
    "citus.enable_unsafe_triggers": "on",
}


class Distributed:
    """The nodes. Without workers, it's one Postgres that is no coordinator."""

    def __init__(self, workers, archived=False):
        self.folder = tempfile.mkdtemp(prefix="oncepay-nodes-")
        os.chmod(self.folder, 0o755)
        self.processes = []
        self.coordinator, *self.workers = self.nodes = [
            Cluster(os.path.join(self.folder, f"node-{number}"), os.path.join(self.folder, f"archive-{number}") if archived else None)
            for number in range(workers + 1)
        ]
        for node in self.nodes:
            node.create().configure(SETTINGS)
            node.start()

    def create_database(self):
        """An empty database, of which the coordinator knows the workers."""
        for node in self.nodes:
            create_database(node.sql)
            if self.workers:
                node.sql("CREATE EXTENSION citus")
        if not self.workers:
            return
        self.sql(f"SELECT citus_set_coordinator_host('127.0.0.1', {self.coordinator.port})")
        for node in self.workers:
            self.sql(f"SELECT citus_add_node('127.0.0.1', {node.port})")

    def sql(self, statement, database="oncepay"):
        return self.coordinator.sql(statement, database)

    def url(self, role, database):
        return self.coordinator.url(role, database)

    def add(self, name, command, environment=None):
        """A process that ends with the nodes."""
        process = Process(command, os.path.join(self.folder, f"{name}.log"), environment)
        self.processes.append(process)
        return process

    def stop(self):
        for process in reversed(self.processes):
            process.process.kill()
            process.process.wait()
        for node in self.nodes:
            node.stop("immediate")
