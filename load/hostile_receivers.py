"""Measures whether receivers of webhooks can slow down the charges of others: receivers that send informational answers,
headers, bodies, chunks or TLS records without end, drip bytes, or say nothing.

Builds the release binary and starts it with a fresh Postgres of its own. Charges are sent at a fixed rate; in turn, the
endpoints of the receivers are disabled and enabled, with a backlog of events for each. Fails if the ratio of the p99, the
median of the rounds, is above the limit, or if the receivers weren't tried.

  python3 load/hostile_receivers.py [--rounds 5] [--seconds 10] [--rate 50] [--ratio-max 1.5] [--binary FILE]
"""

import argparse
import itertools
import multiprocessing
import os
import socket
import statistics
import sys
import threading
import time
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench"))

from charges import Charges
from service import Service, release_build

# Not a success: that would be followed by the next message at once, and what is measured is how often they're tried.
HEAD = b"HTTP/1.1 500 Later\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
# Scheme, what is sent first, what is sent again and again, and the pause between two bytes of that, in seconds.
RECEIVERS = {
    "100 Continue without end": ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0),
    "early hints without end": ("http", b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n", 0),
    "100 Continue, dripping": ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
    "a reason without end": ("http", b"HTTP/1.1 500 ", b"OK", 0),
    "a header without end": ("http", HEAD + b"A: ", b"a", 0),
    "headers without end": ("http", HEAD, b"A: a\r\n", 0),
    "headers, dripping": ("http", HEAD, b"A: a\r\n", 0.01),
    "a body without end": ("http", HEAD + b"\r\n", b"x", 0),
    "a body, dripping": ("http", HEAD + b"\r\n", b"x", 0.01),
    "chunks without end": ("http", CHUNKED, b"1\r\nx\r\n", 0),
    "a chunk's extension without end": ("http", CHUNKED + b"1;", b"a=b;", 0),
    "trailers without end": ("http", CHUNKED + b"0\r\n", b"A: a\r\n", 0),
    "a redirect to itself": ("http", b"HTTP/1.1 307 Again\r\nLocation: /\r\n\r\n", b"x", 0),
    "silence": ("http", b"", b"", 0),
    "a handshake without end": ("https", b"", bytes([22, 3, 3, 0, 4, 0, 0, 0, 0]), 0),
    "a handshake, dripping": ("https", b"", bytes([22, 3, 3, 0, 4, 0, 0, 0, 0]), 0.01),
}


def behave(connection, scheme, first, more, pause):
    try:
        if scheme == "http":
            connection.recv(65536)
        connection.sendall(first)
        many = more * (4096 // max(len(more), 1))
        while not more:
            if not connection.recv(65536):
                return
        while not pause:
            connection.sendall(many)
        for byte in itertools.cycle(more):
            connection.sendall(bytes([byte]))
            time.sleep(pause)
    except OSError:
        pass
    finally:
        connection.close()


def receive(ports):
    """Plays all receivers, each on a port of its own."""

    def accept(listener, behavior):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=behave, args=(connection, *behavior), daemon=True).start()

    listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in RECEIVERS]
    for listener, behavior in zip(listeners, RECEIVERS.values()):
        threading.Thread(target=accept, args=(listener, behavior), daemon=True).start()
    ports.send([listener.getsockname()[1] for listener in listeners])
    threading.Event().wait()


def make_endpoints(service, ports, backlog):
    """Disabled endpoints with a merchant and a backlog each."""
    urls = [f"{behavior[0]}://127.0.0.1:{port}/" for behavior, port in zip(RECEIVERS.values(), ports)]
    values = ", ".join(f"('{uuid.uuid4()}'::uuid, '{url}')" for url in urls)
    service.sql(
        f"WITH receiver (id, url) AS (VALUES {values}), merchant AS (INSERT INTO merchants (merchant_id, name, created_at) "
        "SELECT id, 'Hostile', now() FROM receiver) "
        "INSERT INTO webhook_endpoints (merchant_id, id, url, event_types, created_at) "
        "SELECT id, id, url, '{*}', now() FROM receiver"
    )
    service.sql(
        "UPDATE webhook_endpoints SET status = 'disabled', disabled_at = now(); "
        "INSERT INTO events (merchant_id, id, type, object_id, data) "
        "SELECT id, uuid_v7(), 'charge.succeeded', gen_random_uuid(), jsonb_build_object('id', 'ch_' || n, 'object', 'charge') "
        f"FROM webhook_endpoints, generate_series(1, {backlog}) n; "
        "INSERT INTO webhook_deliveries (merchant_id, event_id, endpoint_id) SELECT merchant_id, id, merchant_id FROM events"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rate", type=float, default=50, help="charges per second")
    parser.add_argument("--ratio-max", type=float, default=1.5)
    parser.add_argument("--binary", help="instead of a release build")
    options = parser.parse_args()
    if not options.binary:
        options.binary = release_build()
    here, there = multiprocessing.Pipe()
    # A process of its own: what it does must not hold up the clients.
    receivers = multiprocessing.Process(target=receive, args=(there,), daemon=True)
    receivers.start()
    service = Service(options.binary)
    ratios = []
    try:
        make_endpoints(service, here.recv(), 1000)
        charges = Charges(service.url, service.settings["ONCEPAY_API_KEY"], options.rate)
        charges.p99_ms(3)
        for _ in range(options.rounds):
            without = charges.p99_ms(options.seconds)
            service.sql("UPDATE webhook_endpoints SET status = 'enabled', disabled_at = NULL WHERE status = 'disabled'")
            cpu = service.cpu_s()
            beside = charges.p99_ms(options.seconds)
            cpu = (service.cpu_s() - cpu) / options.seconds
            service.sql("UPDATE webhook_endpoints SET status = 'disabled', disabled_at = now() WHERE status = 'enabled'")
            # What is under way ends.
            time.sleep(10)
            ratios.append(beside / without)
            print(f"  p99 {without:.1f} ms without, {beside:.1f} ms with them: {ratios[-1]:.2f}; CPU {cpu:.0%}", flush=True)
        tried = service.sql(
            "SELECT count(*) FROM webhook_endpoints e WHERE EXISTS (SELECT FROM webhook_deliveries d "
            "WHERE (d.merchant_id, d.endpoint_id) = (e.merchant_id, e.id) AND attempts <> '[]')"
        )
        attempts = service.sql("SELECT sum(attempt_count) FROM webhook_deliveries")
    finally:
        service.stop()
        receivers.terminate()
    ratio = statistics.median(ratios)
    print(f"{len(RECEIVERS)} hostile receivers, {attempts} attempts: p99 of charges {ratio:.2f} times that without them")
    if int(tried) < len(RECEIVERS):
        sys.exit(f"only {tried} receivers were tried")
    if ratio > options.ratio_max:
        sys.exit(f"more than {options.ratio_max}")


if __name__ == "__main__":
    main()
