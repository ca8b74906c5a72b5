"""What is measured, in which order."""

import dataclasses
import os
import re
import statistics
import sys
import time

import prepare
from operations import PGBENCH_CLIENTS_MAX, selected
from programs import start_wrk, wrk, wrk_result
from receivers import build
from service import LOAD, Process, limited_memory, run, stop_all
from stage import Stage

sys.path.insert(0, os.path.join(LOAD, "peers", "django"))
import peer  # noqa: E402

PEERS = ("handrolled", "library")
PEER_CLIENTS = (8, 64)
# The operations that the peers have, too, and how many keys of theirs are replayed.
PEER_OPERATIONS = {"charge": {}, "replay": {"replay": 200}}
STORM = 5_000
# Duplicates per second of the larger storm.
STORM_RATE = 12_000
BEHIND = 1_000_000


class Samples(dict):
    """Lists of values by name, each shown as it comes."""

    def note(self, name, value):
        self.setdefault(name, []).append(value)
        print(f"  {name:<52} {value:>12,.1f}", flush=True)

    def note_all(self, name, result):
        """The values of a measurement, as far as it has them."""
        units = {"rate": "per s", "p50_ms": "p50, ms", "p99_ms": "p99, ms", "cpu_us": "CPU, us each",
                 "postgres_cpu_us": "Postgres' CPU, us each", "deliveries": "deliveries per s"}
        for value, unit in units.items():
            if value in result:
                self.note(f"{name}: {unit}", result[value])


def take(stage, operation, clients, seconds):
    """A sample of an operation through the API."""
    service, prefix = stage.service, stage.prefix()
    requests, settings = operation.make_requests(stage, prefix, prepare.needed(clients, seconds))
    settings = {"prefix": prefix} | settings
    with operation.during(stage):
        cpu, postgres_cpu, delivered = service.cpu_s(), service.postgres_cpu_s(), stage.delivered()
        result = wrk(service.url, clients, seconds, requests, **settings)
        if stage.delivered() > delivered:
            result["deliveries"] = (stage.delivered() - delivered) / result["seconds"]
        result["cpu_us"] = (service.cpu_s() - cpu) / result["requests"] * 1e6
        result["postgres_cpu_us"] = (service.postgres_cpu_s() - postgres_cpu) / result["requests"] * 1e6
    return result


def take_peer(stage, other, operation, clients, seconds):
    """A sample of an operation through a peer."""
    settings = PEER_OPERATIONS[operation.name]
    prefix = f"{other.kind}-replay" if settings else stage.prefix()
    cpu = other.cpu_s()
    result = wrk(other.url, clients, seconds, stage.requests(merchants="peers"), prefix, **settings)
    result["cpu_us"] = (other.cpu_s() - cpu) / result["requests"] * 1e6
    return result


def rounds(stage, options, samples):
    """Everything whose ratios count, interleaved: what is compared is measured with the same number of clients, one right
    after the other."""
    operations, seconds = selected(options.only), options.seconds
    urls = [stage.service.settings[name] for name in ("DATABASE_URL", "ONCEPAY_OWNER_DATABASE_URL")]
    peers = [] if options.no_peers else [peer.Peer(kind, *urls, stage.service.folder) for kind in PEERS]
    try:
        for number in range(options.rounds):
            for clients in sorted({clients for operation in operations for clients in operation.clients}):
                print(f"Round {number + 1} of {options.rounds}, {clients} clients", flush=True)
                for operation in operations:
                    if clients not in operation.clients:
                        continue
                    for script in operation.scripts if clients <= PGBENCH_CLIENTS_MAX else ():
                        samples.note_all(f"pgbench {script}, {clients} clients", stage.pgbench(script, clients, seconds))
                    samples.note_all(f"{operation.name}, {clients} clients", take(stage, operation, clients, seconds))
                    if operation.name in PEER_OPERATIONS and clients in PEER_CLIENTS:
                        for other in peers:
                            name = f"{other.kind} {operation.name}, {clients} clients"
                            samples.note_all(name, take_peer(stage, other, operation, clients, seconds))
                if number == 0:
                    samples.note(f"memory at the peak of up to {clients} clients, MiB", stage.service.peak_rss_mib())
    finally:
        for other in peers:
            other.stop()
    samples.note("memory at the peak, MiB", stage.service.peak_rss_mib())
    samples.note("executions in excess", executions_in_excess(stage.service))


def executions_in_excess(service):
    """Charges, refunds, payouts and journal entries beyond their keys and sources. What was prepared has no keys, and what
    pgbench and the peers do has no say in this."""
    made = "\n + ".join(
        f"(SELECT count(*) FROM {table} o JOIN merchants m USING (merchant_id) WHERE m.name !~ '^(peers|pgbench)'{but})"
        f" - (SELECT count(*) FROM idempotency_keys k JOIN merchants m USING (merchant_id) "
        f"    WHERE m.name !~ '^(peers|pgbench)' AND k.operation = '{table}.create' AND k.response_status = 201)"
        for table, but in (("charges", " AND o.authorization_id !~ '^prepared'"), ("refunds", ""), ("payouts", ""))
    )
    return int(service.sql(
        f"SELECT {made}\n + (SELECT count(*) - count(DISTINCT (merchant_id, source)) FROM journal_entries)"
    ))


def half_load(stage, options, samples, peak):
    """Latency at half of the peak, sent at times that don't depend on the answers. And that of the natural transaction at half
    of its own peak: what Postgres does to it on this machine."""
    natural = max(statistics.median(values) for name, values in samples.items()
                  if name.startswith("pgbench natural, ") and name.endswith("per s"))
    for _ in range(options.rounds):
        result = wrk(stage.service.url, 64, options.seconds, stage.requests(), stage.prefix(), rate=peak / 2)
        samples.note_all("charge at half of the peak", result)
        result = stage.pgbench("natural", 64, options.seconds, rate=natural / 2)
        samples.note_all("pgbench natural at half of its peak", result)


def memory(stage, samples):
    """What charges need, before anything else was asked of the service."""
    for clients in (64, 256):
        wrk(stage.service.url, clients, 3, stage.requests(), stage.prefix())
        samples.note(f"memory of charges by up to {clients} clients, MiB", stage.service.peak_rss_mib())


def distant(stage, options, samples):
    """Charges through two instances: one beside its database, and one that is a millisecond away from it, there and back."""
    url = stage.service.settings["DATABASE_URL"]
    address = re.search(r"@([^/?]+)", url)[1]
    proxy = Process([build("distance"), address, "500"], os.path.join(stage.service.folder, "distance.log"))
    running = {}
    try:
        running["beside"] = stage.service.another("beside")
        running["away"] = stage.service.another("away", DATABASE_URL=url.replace(address, proxy.first_line(), 1))
        for _ in range(options.rounds):
            for name, instance in running.items():
                result = wrk(instance.url, 64, options.seconds, stage.requests(), stage.prefix())
                samples.note_all(f"charge with its database {name}, 64 clients", result)
    finally:
        stop_all(*running.values())
        proxy.process.kill()
        proxy.process.wait()


def storm(stage, options, samples, peak):
    """Others' latency while one merchant's client sends one key 5,000 times within the measurement, and while it sends such
    keys at a rate that takes much of the machine."""
    url, seconds = stage.service.url, options.seconds
    many, hot = stage.requests(), stage.requests(merchants="hot", count=1)
    for _ in range(options.rounds):
        calm = wrk(url, 16, seconds, many, stage.prefix(), rate=peak / 4)
        samples.note("storm: others' p99 without it, ms", calm["p99_ms"])
        for name, clients, rate in (("storm", 16, STORM / seconds), ("large storm", 64, STORM_RATE)):
            duplicates = start_wrk(url, clients, seconds + 1, hot, stage.prefix(), repeat=2 * STORM, rate=rate)
            time.sleep(0.5)
            during = wrk(url, 16, seconds, many, stage.prefix(), rate=peak / 4)
            sent = wrk_result(duplicates, may_fail=True)
            samples.note(f"{name}: duplicates per s", sent["rate"])
            samples.note(f"{name}: others' p99 with it, ms", during["p99_ms"])


def instances(stage, options, samples):
    """First-time charges through one, two and three instances that share the two cores and the database."""
    requests, running = stage.requests(), [stage.service]
    try:
        for count in (1, 2, 3):
            for _ in range(options.rounds):
                at_once = [
                    start_wrk(instance.url, 48 // count, options.seconds, requests, stage.prefix()) for instance in running
                ]
                total = sum(wrk_result(process)["rate"] for process in at_once)
                samples.note(f"charge, {count} instances, 48 clients: per s", total)
            if count < 3:
                running.append(stage.service.another(count))
    finally:
        for instance in running[1:]:
            instance.stop()


def behind(stage, options, samples):
    """Charges of merchants whose endpoints are a million messages behind, beside charges of merchants without endpoints."""
    charge, *with_endpoints = selected(["charge-1-endpoint", "charge-20-endpoints"])
    for operation, each in zip(with_endpoints, (1, 20)):
        endpoints = stage.endpoints(f"endpoints-{each}", each)
        endpoints.fall_behind(BEHIND)
        # Nothing is forgotten between the samples.
        still_behind = dataclasses.replace(operation, during=lambda stage: endpoints.enabled())
        for _ in range(options.rounds):
            samples.note_all(f"{charge.name} beside, 64 clients", take(stage, charge, 64, options.seconds))
            samples.note_all(f"{operation.name} behind, 64 clients", take(stage, still_behind, 64, options.seconds))
        endpoints.forget()


def large(stage, options, samples):
    """First-time charges with an all but empty database, and with millions of keys and three times as many postings."""

    def measure(name):
        for _ in range(options.rounds):
            result = wrk(stage.service.url, 64, options.seconds, stage.requests(), stage.prefix())
            samples.note_all(f"charge with {name}, 64 clients", result)

    measure("few keys")
    part, merchant = 250_000, prepare.pgbench_merchant("n")
    for last in range(part, options.large * 1_000_000 + 1, part):
        prepare.insert_keys(stage.service, merchant, "large-", last - part + 1, last)
        prepare.post_entries(stage.service, merchant, "'large-' || n", prepare.CAPTURE_LINES, last - part + 1, last)
        print(f"  {last:,} keys and {3 * last:,} postings", flush=True)
        if last in (5_000_000, options.large * 1_000_000):
            for table in ("idempotency_keys", "journal_entries", "postings"):
                stage.service.sql(f"VACUUM ANALYZE {table}")
            measure(f"{last // 1_000_000} million keys")
    size = int(stage.service.sql("SELECT pg_database_size(current_database())"))
    samples.note("size of the database, GiB", size / 2**30)
    with limited_memory(stage.service.postgres_processes(), size // 10) as is_limited:
        if is_limited:
            measure("a tenth of its data in memory")


def everything(options, binary):
    """Returns the samples, and what they were taken with."""
    stage, samples = Stage(binary), Samples()
    try:
        if not options.only:
            memory(stage, samples)
        rounds(stage, options, samples)
        if not options.only:
            rates = [values for name, values in samples.items() if name.startswith("charge, ") and name.endswith("per s")]
            peak = max(sorted(values)[len(values) // 2] for values in rates)
            half_load(stage, options, samples, peak)
            storm(stage, options, samples, peak)
            instances(stage, options, samples)
            distant(stage, options, samples)
            samples.note("executions in excess", executions_in_excess(stage.service))
        version = stage.service.sql("SHOW server_version")
    finally:
        stage.stop()
    for part in (behind, large) if options.large else ():
        stage = Stage(binary)
        try:
            part(stage, options, samples)
        finally:
            stage.stop()
    return samples, {"Postgres": version, "rustc": run("rustc", "--version").split()[1]}
