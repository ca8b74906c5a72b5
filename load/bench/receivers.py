"""What takes webhooks (load/sink.rs), and endpoints of merchants that point to it."""

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request

from service import ROOT, Process


def build(name):
    """The path of a program of `load`: one file without dependencies."""
    built = os.path.join(ROOT, "target", "release", name)
    os.makedirs(os.path.dirname(built), exist_ok=True)
    subprocess.run(["rustc", "--edition", "2024", "-O", "-o", built, f"load/{name}.rs"], cwd=ROOT, check=True)
    return built


class Sink(Process):
    """What takes the messages."""

    # It doesn't handle SIGINT, which is ignored by what a script starts in the background.
    stop_signal = signal.SIGTERM

    def __init__(self, binary, folder):
        log = os.path.join(folder, "sink.log")
        super().__init__([binary], log)
        self.url = self.first_line()

    def seen(self):
        return json.load(urllib.request.urlopen(self.url))


class Endpoints:
    """Endpoints for all events, so many of each merchant, all at one receiver. They are disabled except in `enabled`."""

    def __init__(self, service, sink, merchant_ids, each):
        self.service, self.each = service, each
        self.merchants = "ARRAY[{}]::uuid[]".format(", ".join(f"'{id}'" for id in merchant_ids))
        service.sql(
            "INSERT INTO webhook_endpoints (merchant_id, id, url, event_types, created_at, status, disabled_at) "
            f"SELECT id, uuid_v7(), '{sink.url}/' || id || '/' || n, '{{*}}', now(), 'disabled', now() "
            f"FROM unnest({self.merchants}) id, generate_series(1, {each}) n"
        )

    @contextlib.contextmanager
    def enabled(self):
        """Enables the endpoints for a while."""
        self._set("enabled", "NULL")
        try:
            yield
        finally:
            self._set("disabled", "now()")
            # What is under way ends.
            time.sleep(1)

    def _set(self, status, disabled_at):
        self.service.sql(
            f"UPDATE webhook_endpoints SET status = '{status}', disabled_at = {disabled_at} "
            f"WHERE merchant_id = ANY ({self.merchants})"
        )

    def wait_until_delivered(self):
        """Waits until every message has come, so that every endpoint is known to take messages: one that has never taken any
        gets one at a time."""
        deadline = time.monotonic() + 60
        while self.service.sql("SELECT count(*) FROM webhook_deliveries WHERE state = 'pending'") != "0":
            if time.monotonic() > deadline:
                raise RuntimeError("the messages aren't delivered")
            time.sleep(0.2)

    def forget(self):
        """Forgets all deliveries, so that they aren't made while something else is measured."""
        self.service.sql("TRUNCATE webhook_deliveries")

    def fall_behind(self, count):
        """Makes so many messages that are due, in equal numbers for each endpoint."""
        part = 100_000
        for _ in range(0, count, part):
            self.service.sql(
                "WITH event AS (INSERT INTO events (merchant_id, id, type, object_id, data) "
                f"SELECT ({self.merchants})[n % cardinality({self.merchants}) + 1], uuid_v7(), 'charge.succeeded', "
                "gen_random_uuid(), jsonb_build_object('id', 'ch_' || n, 'object', 'charge', 'filler', repeat('x', 400)) "
                f"FROM generate_series(1, {part // self.each}) n RETURNING merchant_id, id) "
                "INSERT INTO webhook_deliveries (merchant_id, event_id, endpoint_id) "
                "SELECT merchant_id, event.id, endpoint.id FROM event JOIN webhook_endpoints endpoint USING (merchant_id)"
            )
        self.service.sql("VACUUM ANALYZE events, webhook_deliveries")
