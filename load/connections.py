"""Measures what thousands of connections cost: memory of the service, and what other clients notice.

Builds the release binary, starts it with a fresh Postgres of its own, and opens connections of each kind in turn: idle ones,
some that send only half of a head or of a body of the largest size, some that send charges as fast as they can, and some that
don't read their answers. Fails if memory exceeds the limit, if a slow connection isn't cut off in time, or if a charge of
another client isn't answered within two seconds meanwhile.

  python3 load/connections.py [--connections 5000] [--mib-max 500] [--seconds-max 2] [--cut-off 15] [--kind KIND]…
      [--binary FILE]
"""

import argparse
import json
import os
import selectors
import socket
import sys
import threading
import time
import urllib.parse
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "bench"))

from charges import Charges
from service import Service, Task, raise_file_limit, release_build

CHARGE = json.dumps({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"}).encode()


def post(key, length, body):
    head = (
        f"POST /v1/charges HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {uuid.uuid4()}\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode() + body


# What is sent of each kind of connection, and whether the service has to end it.
KINDS = {
    "idle": (lambda key: b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", True),
    "silent": (lambda key: b"", True),
    "half a head": (lambda key: b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 30_000, True),
    "half a body": (lambda key: post(key, 65_536, b" " * 60_000), True),
    "a charge": (lambda key: post(key, len(CHARGE), CHARGE), True),
    "answers that nobody reads": (lambda key: b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 3, False),
}


def rss_mib(service):
    status = open(f"/proc/{service.process.pid}/status").read()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def connect(url, count, text):
    """Opens connections and sends `text` on each, as far as the service takes it."""
    address, opened = (url.hostname, url.port), []
    for _ in range(count):
        connection = socket.create_connection(address, timeout=30)
        connection.setblocking(False)
        bytes_left = text()
        try:
            while bytes_left:
                bytes_left = bytes_left[connection.send(bytes_left):]
        except BlockingIOError:
            pass
        except OSError:
            # Refused early.
            pass
        opened.append(connection)
    return opened


def wait_until_ended(connections, seconds):
    """The number of connections that the service hasn't ended by then."""
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection, selectors.EVENT_READ)
    left, deadline = len(connections), time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        for ready, _ in selector.select(timeout=0.5):
            try:
                is_ended = not ready.fileobj.recv(65_536)
            except BlockingIOError:
                continue
            except OSError:
                is_ended = True
            if is_ended:
                selector.unregister(ready.fileobj)
                left -= 1
    return left


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--mib-max", type=float, default=500)
    parser.add_argument("--seconds-max", type=float, default=2, help="for a charge of another client")
    parser.add_argument("--cut-off", type=float, default=15, help="seconds by which slow connections have to be ended")
    parser.add_argument("--kind", action="append", choices=KINDS, help="of connections; by default all")
    parser.add_argument("--binary", help="instead of a release build")
    options = parser.parse_args()
    raise_file_limit()
    if not options.binary:
        options.binary = release_build()
    service = Service(options.binary)
    failures = []
    try:
        url, key = urllib.parse.urlsplit(service.url), service.settings["ONCEPAY_API_KEY"]
        merchant = {"name": "other", "fee_rate": "0", "fee_fixed": "0"}
        other = service.request("POST", "/v1/operator/merchants", merchant)["api_key"]["key"]
        charges = Charges(service.url, other, 20)
        charges.take(2)
        print(f"{rss_mib(service):.0f} MiB without connections", flush=True)
        for kind in options.kind or KINDS:
            text, ends = KINDS[kind]
            stop, taken = threading.Event(), []
            beside = Task(lambda: taken.extend(charges.take(60, stop)))
            opened = connect(url, options.connections, lambda: text(key))
            time.sleep(1)
            mib = rss_mib(service)
            left = wait_until_ended(opened, options.cut_off) if ends else 0
            for connection in opened:
                connection.close()
            stop.set()
            beside.join()
            slowest = taken[-1] if taken else float("inf")
            print(
                f"{options.connections} × {kind}: {mib:.0f} MiB, {left} not ended after {options.cut_off:.0f} s; of {len(taken)} charges of "
                f"another client the slowest took {slowest * 1000:.0f} ms",
                flush=True,
            )
            if left:
                failures.append(f"{left} of {kind} weren't ended")
            if slowest > options.seconds_max:
                failures.append(f"a charge beside {kind} took {slowest:.1f} s")
        peak = service.peak_rss_mib()
        print(f"{peak:.0f} MiB at the peak")
        if peak > options.mib_max:
            failures.append(f"{peak:.0f} MiB, more than {options.mib_max:.0f}")
    finally:
        service.stop()
    if failures:
        sys.exit("; ".join(failures))


if __name__ == "__main__":
    main()
