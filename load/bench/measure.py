"""What is measured, in which order."""

import os
import sys
import time

from service import LOAD, Service, pgbench, run, start_wrk, wrk, wrk_result

sys.path.insert(0, os.path.join(LOAD, "peers", "django"))
import peer  # noqa: E402

MERCHANTS = 100
CLIENTS = (8, 64)
PEERS = ("handrolled", "library")
STORM = 5_000


class Samples(dict):
    """Lists of values by name, each shown as it comes."""

    def note(self, name, value):
        self.setdefault(name, []).append(value)
        print(f"  {name:<44} {value:>12,.1f}", flush=True)


def new_merchants(service, name, count):
    """A file with the API keys of new merchants, each of which has a charge and so its accounts."""
    file = os.path.join(service.folder, f"{name}.keys")
    with open(file, "w") as keys:
        for number in range(count):
            body = {"name": f"{name} {number}", "fee_rate": "0.029", "fee_fixed": "0.30"}
            key = service.request("POST", "/v1/operator/merchants", body)["api_key"]["key"]
            charge = {"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"}
            service.request("POST", "/v1/charges", charge, key)
            keys.write(key + "\n")
    return file


def prepare_pgbench(service):
    """Accounts of merchants with ids that pgbench can compute, and keys for it to select."""
    service.sql(
        "INSERT INTO ledger_accounts (merchant_id, kind, currency) SELECT md5(m::text)::uuid, kind, 'USD' "
        f"FROM generate_series(1, {MERCHANTS}) m, unnest(ARRAY['acquirer_clearing', 'merchant_payable', 'fee_revenue']) kind"
    )
    insert_keys(service, "md5('1')::uuid", "select-", 1, 1_000)


def insert_keys(service, merchant, prefix, first, last):
    """Completed keys, as large as those of charges."""
    service.sql(
        "INSERT INTO idempotency_keys (merchant_id, key, state, operation, fingerprint_version, fingerprint, request_id, "
        "request_method, request_path, request_query, request_body, attempts, recovery_point, response_status, "
        "response_headers, response_body, created_at, completed_at, expires_at) "
        f"SELECT {merchant}, '{prefix}' || n, 'completed', 'charges.create', 1, sha256('x'), 'req_1', 'POST', "
        "'/v1/charges', '', '{}', 1, 'finished', 201, '[]', convert_to(repeat('x', 480), 'UTF8'), now(), now(), "
        f"now() + interval '1 day' FROM generate_series({first}, {last}) n"
    )


def rounds(service, options):
    """Everything whose ratios count, interleaved. Returns the samples."""
    samples = Samples()
    prepare_pgbench(service)
    many, hot, others = (new_merchants(service, *of) for of in (("many", MERCHANTS), ("hot", 1), ("peers", MERCHANTS)))
    urls = [service.settings[name] for name in ("DATABASE_URL", "ONCEPAY_OWNER_DATABASE_URL")]
    peers = [] if options.no_peers else [peer.Peer(kind, *urls, service.folder) for kind in PEERS]
    seconds = options.seconds

    def api(name, process, url, clients, keys, prefix, **settings):
        cpu = process.cpu_s()
        result = wrk(url, clients, seconds, keys, prefix, **settings)
        samples.note(f"{name}, {clients} clients: per s", result["rate"])
        samples.note(f"{name}, {clients} clients: CPU, us each", (process.cpu_s() - cpu) / result["requests"] * 1e6)
        samples.note(f"{name}, {clients} clients: p50, ms", result["p50_ms"])
        samples.note(f"{name}, {clients} clients: p99, ms", result["p99_ms"])

    try:
        for number in range(options.rounds):
            print(f"Round {number + 1} of {options.rounds}", flush=True)
            for clients in CLIENTS:
                for script in ("natural", "limit", "select"):
                    rate = pgbench(service, f"{script}.sql", clients, seconds)
                    samples.note(f"pgbench {script}, {clients} clients: per s", rate)
                api("charge", service, service.url, clients, many, f"many-{number}-{clients}")
                api("replay", service, service.url, clients, many, "replay", replay=1_000)
                for other in peers:
                    api(f"{other.kind} charge", other, other.url, clients, others, f"{other.kind}-{number}-{clients}")
                    api(f"{other.kind} replay", other, other.url, clients, others, f"{other.kind}-r", replay=200)
            api("charge of one merchant", service, service.url, CLIENTS[-1], hot, f"hot-{number}")
    finally:
        for other in peers:
            other.stop()
    samples.note("memory at the peak, MiB", service.peak_rss_mib())
    samples.note("executions in excess", executions_in_excess(service))
    return samples


def executions_in_excess(service):
    """Charges and captures of this service beyond its keys. What the peers charge has no say in that."""
    return int(service.sql(
        "SELECT (SELECT count(*) FROM charges c JOIN merchants m USING (merchant_id) WHERE m.name !~ '^peers') "
        "- (SELECT count(*) FROM idempotency_keys k JOIN merchants m USING (merchant_id) "
        "   WHERE m.name !~ '^peers' AND k.operation = 'charges.create' AND k.response_status = 201) "
        "+ (SELECT count(*) - count(DISTINCT (merchant_id, source)) FROM journal_entries)"
    ))


def half_load(service, options, samples, peak):
    """Latency at half of the peak, sent at times that don't depend on the answers."""
    keys = os.path.join(service.folder, "many.keys")
    for number in range(options.rounds):
        result = wrk(service.url, 64, options.seconds, keys, f"half-{number}", rate=peak / 2)
        samples.note("charge at half of the peak: per s", result["rate"])
        samples.note("charge at half of the peak: p50, ms", result["p50_ms"])
        samples.note("charge at half of the peak: p99, ms", result["p99_ms"])


def storm(service, options, samples, peak):
    """Others' latency while one merchant's client sends one key 5,000 times within the measurement, and while it sends
    such keys as fast as it can."""
    keys, hot = (os.path.join(service.folder, f"{name}.keys") for name in ("many", "hot"))
    for number in range(options.rounds):
        calm = wrk(service.url, 16, options.seconds, keys, f"calm-{number}", rate=peak / 4)
        samples.note("storm: others' p99 without it, ms", calm["p99_ms"])
        for name, pace in (("storm", {"rate": STORM / options.seconds}), ("unpaced storm", {})):
            prefix = f"{name}-{number}".replace(" ", "-")
            duplicates = start_wrk(service.url, 16, options.seconds + 1, hot, prefix, repeat=2 * STORM, **pace)
            time.sleep(0.5)
            during = wrk(service.url, 16, options.seconds, keys, f"during-{prefix}", rate=peak / 4)
            sent = wrk_result(duplicates, may_fail=True)
            samples.note(f"{name}: duplicates per s", sent["rate"])
            samples.note(f"{name}: others' p99 with it, ms", during["p99_ms"])


def instances(service, options, samples):
    """First-time charges through one, two and three instances that share the two cores and the database."""
    keys, running = os.path.join(service.folder, "many.keys"), [service]
    try:
        for count in (1, 2, 3):
            for number in range(options.rounds):
                at_once = [
                    start_wrk(instance.url, 48 // count, options.seconds, keys, f"i-{count}-{number}-{place}")
                    for place, instance in enumerate(running)
                ]
                total = sum(wrk_result(process)["rate"] for process in at_once)
                samples.note(f"charge, {count} instances, 48 clients: per s", total)
            if count < 3:
                running.append(service.another(count))
    finally:
        for instance in running[1:]:
            instance.stop()


def large(service, options, samples):
    """First-time charges with an all but empty database and with 5 million keys and 15 million postings."""
    keys = os.path.join(service.folder, "many.keys")

    def measure(name):
        for number in range(options.rounds):
            result = wrk(service.url, CLIENTS[-1], options.seconds, keys, f"{name}-{number}")
            samples.note(f"charge, {name} database, {CLIENTS[-1]} clients: per s", result["rate"])

    measure("small")
    for part in range(20):
        first, last = part * 250_000 + 1, (part + 1) * 250_000
        insert_keys(service, f"md5((n % {MERCHANTS} + 1)::text)::uuid", "large-", first, last)
        service.sql(
            "WITH entry AS (INSERT INTO journal_entries (merchant_id, id, source, created_at) "
            f"SELECT md5((n % {MERCHANTS} + 1)::text)::uuid, uuid_v7(), 'large-' || n, now() "
            f"FROM generate_series({first}, {last}) n RETURNING merchant_id, id) "
            "INSERT INTO postings (merchant_id, entry_id, line, account_id, currency, amount, created_at) "
            "SELECT e.merchant_id, e.id, line.number, a.id, 'USD', line.amount, now() FROM entry e, "
            "(VALUES (1, 'acquirer_clearing', 12.50), (2, 'merchant_payable', -11.84), (3, 'fee_revenue', -0.66)) "
            "AS line (number, kind, amount) JOIN ledger_accounts a ON a.kind = line.kind AND a.currency = 'USD' "
            "WHERE a.merchant_id = e.merchant_id"
        )
        print(f"  {last:,} keys and {3 * last:,} postings", flush=True)
    for table in ("idempotency_keys", "journal_entries", "postings"):
        service.sql(f"VACUUM ANALYZE {table}")
    measure("large")


def everything(options, binary):
    """Returns the samples, and what they were taken with."""
    service = Service(binary)
    try:
        samples = rounds(service, options)
        peak = max(sorted(samples[f"charge, {clients} clients: per s"])[options.rounds // 2] for clients in CLIENTS)
        half_load(service, options, samples, peak)
        storm(service, options, samples, peak)
        instances(service, options, samples)
        samples.note("executions in excess", executions_in_excess(service))
        version = service.sql("SHOW server_version")
    finally:
        service.stop()
    if options.large:
        service = Service(binary)
        try:
            prepare_pgbench(service)
            new_merchants(service, "many", MERCHANTS)
            large(service, options, samples)
        finally:
            service.stop()
    return samples, {"Postgres": version, "rustc": run("rustc", "--version").split()[1]}
