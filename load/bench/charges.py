"""Charges at a fixed rate."""

import concurrent.futures
import http.client
import json
import threading
import time
import urllib.parse
import uuid


class Charges:
    """Sends first-time charges at a fixed rate per second, whether or not those before were answered."""

    def __init__(self, url, key, rate):
        self.url, self.key, self.rate = urllib.parse.urlsplit(url), key, rate
        self.pool = concurrent.futures.ThreadPoolExecutor(64)
        self.connections = threading.local()

    def exchange(self, body, headers, new):
        if new or not hasattr(self.connections, "one"):
            self.connections.one = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=30)
        self.connections.one.request("POST", "/v1/charges", body, headers)
        answer = self.connections.one.getresponse()
        answer.read()
        return answer.status

    def send(self, due):
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "Idempotency-Key": str(uuid.uuid4()),
        }
        body = json.dumps({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"})
        try:
            status = self.exchange(body, headers, new=False)
        except (OSError, http.client.HTTPException):
            # An idle connection was closed.
            status = self.exchange(body, headers, new=True)
        # From the time at which it should have been sent, so that a stall counts for all that it held up.
        return time.monotonic() - due, status

    def take(self, seconds, stop=None):
        """Sends for so long, or until `stop` is set. Returns the sorted latencies in seconds; fails unless all succeed."""
        begun, sent = time.monotonic(), []
        for number in range(int(self.rate * seconds)):
            due = begun + number / self.rate
            time.sleep(max(0, due - time.monotonic()))
            if stop and stop.is_set():
                break
            sent.append(self.pool.submit(self.send, due))
        answers = [one.result() for one in sent]
        bad = [status for _, status in answers if status != 201]
        if bad:
            raise RuntimeError(f"{len(bad)} of {len(answers)} charges were answered {sorted(set(bad))}")
        return sorted(taken for taken, _ in answers)

    def p99_ms(self, seconds, stop=None):
        taken = self.take(seconds, stop)
        return taken[int(len(taken) * 0.99)] * 1000
