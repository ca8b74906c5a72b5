"""Measures how fast events are delivered to webhook endpoints, and whether that depends on what is in the database: on
what was delivered before, and on how many other endpoints wait for something. Writes load/DELIVERIES.md.

Builds the release binary and a receiver (load/sink.rs), and starts them with a fresh Postgres of its own with stock
settings. All figures are from one run, so that their ratios say more than they do. Fails when a message is missing.

  python3 load/deliveries.py [--deliveries 20000] [--behind 1000000] [--waiting 5000] [--rounds 3]
      [--binary FILE]
"""

import argparse
import os
import platform
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench"))

from receivers import Sink, build
from service import ROOT, Service, release_build

ENDPOINTS = (1, 20)


def make_endpoints(service, sink, count):
    """Endpoints with a merchant each, which are told nothing by themselves."""
    service.sql(
        "WITH made AS (INSERT INTO merchants (merchant_id, name, created_at) "
        f"SELECT md5('{count} ' || n)::uuid, 'Load', now() FROM generate_series(1, {count}) n RETURNING merchant_id) "
        "INSERT INTO webhook_endpoints (merchant_id, id, url, event_types, created_at) "
        f"SELECT merchant_id, merchant_id, '{sink.url}/' || merchant_id, '{{*}}', now() FROM made"
    )


def make_events(service, endpoints, first, last):
    """Events as large as that of a charge, in turn for each of so many endpoints."""
    return (
        "INSERT INTO events (merchant_id, id, type, object_id, data) "
        f"SELECT md5('{endpoints} ' || n % {endpoints} + 1)::uuid, uuid_v7(), 'charge.succeeded', gen_random_uuid(), "
        "jsonb_build_object('id', 'ch_' || n, 'object', 'charge', 'filler', repeat('x', 400)) "
        f"FROM generate_series({first}, {last}) n"
    )


def measure(service, sink, endpoints, count):
    """Deliveries per second, from the moment at which they are due to that at which the last one has come."""
    before = sink.seen()["messages"]
    cpu = service.cpu_s()
    service.sql(make_events(service, endpoints, 1, count))
    begun, already = time.monotonic(), sink.seen()["messages"]
    deadline = begun + 300
    while (seen := sink.seen()["messages"]) < before + count:
        if time.monotonic() > deadline:
            sys.exit(f"only {seen - before} of {count} messages came")
        time.sleep(0.02)
    rate = (seen - already) / (time.monotonic() - begun)
    while service.sql("SELECT count(*) FROM webhook_deliveries WHERE state = 'pending' AND due_at <= now()") != "0":
        time.sleep(0.2)
    return rate, (service.cpu_s() - cpu) * 1e6 / count


def fill(service, count):
    """Delivered rows, of the same endpoints and of their merchants."""
    service.sql("ALTER TABLE events DISABLE TRIGGER events_fan_out")
    part = 100_000
    for first in range(1, count + 1, part):
        last = min(first + part - 1, count)
        service.sql(
            f"WITH event AS ({make_events(service, ENDPOINTS[-1], first, last)} RETURNING merchant_id, id, created_at) "
            "INSERT INTO webhook_deliveries (merchant_id, event_id, endpoint_id, state, attempt_count, attempts, completed_at) "
            "SELECT merchant_id, id, merchant_id, 'succeeded', 1, jsonb_build_array(jsonb_build_object('number', 1, "
            "'started_at', created_at, 'duration_ms', 1, 'status', 200, 'error', null, 'response_excerpt', '')), now() FROM event"
        )
    service.sql("ALTER TABLE events ENABLE TRIGGER events_fan_out")
    service.sql("VACUUM ANALYZE events, webhook_deliveries")
    # What isn't on the disk yet would be written while we measure.
    service.restart()


def keep_waiting(service, sink, count):
    """Endpoints with something that is due much later."""
    service.sql(
        "WITH made AS (INSERT INTO merchants (merchant_id, name, created_at) "
        f"SELECT md5('waiting ' || n)::uuid, 'Load', now() FROM generate_series(1, {count}) n RETURNING merchant_id), "
        "endpoint AS (INSERT INTO webhook_endpoints (merchant_id, id, url, event_types, created_at, failing_since) "
        f"SELECT merchant_id, merchant_id, '{sink.url}', '{{*}}', now(), now() FROM made RETURNING merchant_id, id) "
        "INSERT INTO webhook_deliveries (merchant_id, event_id, endpoint_id, due_at) "
        "SELECT merchant_id, uuid_v7(), id, now() + interval '1 day' FROM endpoint"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=20_000, help="of each measurement")
    parser.add_argument("--behind", type=int, default=1_000_000, help="delivered rows")
    parser.add_argument("--waiting", type=int, default=5_000, help="other endpoints that wait")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binary", help="instead of a release build")
    options = parser.parse_args()
    service = Service(options.binary or release_build())
    sink = Sink(build("sink"), service.folder)
    rates, cpu = {}, {}
    try:
        for endpoints in ENDPOINTS:
            make_endpoints(service, sink, endpoints)
            measure(service, sink, endpoints, options.deliveries // 10)

        def take(name):
            for _ in range(options.rounds):
                for endpoints in ENDPOINTS:
                    rate, cpu_us = measure(service, sink, endpoints, options.deliveries)
                    rates.setdefault((name, endpoints), []).append(rate)
                    cpu.setdefault((name, endpoints), []).append(cpu_us)
                    print(f"  {name:<24} {endpoints:>3} endpoints {rate:>10,.0f}/s {cpu_us:>8,.0f} us each", flush=True)

        take("empty")
        print(f"  filling with {options.behind:,} rows …", flush=True)
        fill(service, options.behind)
        take("much delivered")
        keep_waiting(service, sink, options.waiting)
        take("many wait")
        hot = service.sql(
            "SELECT n_tup_hot_upd::float8 / n_tup_upd FROM pg_stat_user_tables WHERE relname = 'webhook_deliveries'"
        )
        repeated = sink.seen()["repeated"]
        version = service.sql("SHOW server_version")
    finally:
        sink.stop()
        service.stop()
    write(options, rates, cpu, float(hot), repeated, version)


def write(options, rates, cpu, hot, repeated, version):
    median = {name: statistics.median(values) for name, values in rates.items()}
    lines = [
        "# Deliveries",
        "",
        f"Made by `python3 load/deliveries.py --rounds {options.rounds}` on {platform.machine()} with {os.cpu_count()} cores "
        f"that receiver, service and Postgres share; Postgres {version} with stock settings; one instance, a release build; "
        f"{time.strftime('%Y-%m-%d')}. {options.deliveries:,} deliveries per sample, to a receiver that answers at once. "
        "The figures are medians of the rounds. Compare the ratios, whose figures are taken in the same run.",
        "",
        "| figure | 1 endpoint | 20 endpoints | goal |",
        "|---|---|---|---|",
    ]

    def row(name, value, goal=""):
        lines.append(f"| {name} | {' | '.join(value(endpoints) for endpoints in ENDPOINTS)} | {goal} |")

    def ratio(name, to):
        return lambda endpoints: f"{median[name, endpoints] / median[to, endpoints]:.2f}"

    row("deliveries per s", lambda endpoints: f"{median['empty', endpoints]:,.0f}", "≥ 1,000")
    row(f"with {options.behind:,} delivered rows ÷ with few", ratio("much delivered", "empty"), "≥ 0.85")
    row(f"with {options.waiting:,} other endpoints that wait, too ÷ without", ratio("many wait", "much delivered"))
    row("CPU of the service, us each", lambda endpoints: f"{statistics.median(cpu['empty', endpoints]):,.0f}")
    lines += [
        "",
        f"Messages received twice: {repeated}. Share of updates that moved no index entry (half of the updates are claims, "
        f"which change no indexed column): {hot:.2f}.",
        "",
        "| sample | 1 endpoint | 20 endpoints |",
        "|---|---|---|",
    ]
    for name in ("empty", "much delivered", "many wait"):
        samples = (", ".join(f"{rate:,.0f}" for rate in rates[name, endpoints]) for endpoints in ENDPOINTS)
        lines.append(f"| {name}: per s | {' | '.join(samples)} |")
    text = "\n".join(lines) + "\n"
    with open(os.path.join(ROOT, "load", "DELIVERIES.md"), "w") as file:
        file.write(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
