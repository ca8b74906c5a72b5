"""Tests of the drill of the alerts: that it can fail.

  python3 -m unittest discover ops/drills
"""

import json
import os
import threading
import types
import unittest

import alerts


class Prometheus:
    """Answers with the alerts in `firing` and `pending`, or with `status`."""

    def __init__(self):
        self.firing, self.pending, self.body = [], [], None
        prometheus = self

        class Handler(alerts.http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                states = [("firing", prometheus.firing), ("pending", prometheus.pending)]
                shown = [{"labels": {"alertname": name}, "state": state} for state, names in states for name in names]
                body = prometheus.body or json.dumps({"data": {"alerts": shown}})
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        self.server = alerts.Server(Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


class WatchTest(unittest.TestCase):
    def watch(self, commands=None):
        self.prometheus = Prometheus()
        self.addCleanup(self.prometheus.stop)
        stack = types.SimpleNamespace(prometheus_url=self.prometheus.url, environment=lambda: dict(os.environ))
        watch = alerts.Watch(stack, commands or {}, show=False)
        self.addCleanup(watch.ended.set)
        return watch

    def test_what_fires_is_noted_and_what_is_pending_is_not(self):
        watch = self.watch()
        self.prometheus.firing, self.prometheus.pending = ["One"], ["Two"]
        watch.expect("One", seconds=10)
        with self.assertRaisesRegex(SystemExit, "didn't fire: Two"):
            watch.expect("One", "Two", seconds=1)
        self.assertFalse(watch.is_quiet())
        self.prometheus.firing = []
        alerts.eventually("an end", watch.is_quiet, 10)
        watch.expect("One", seconds=1)
        watch.forget({"One"})
        with self.assertRaisesRegex(SystemExit, "didn't fire: One"):
            watch.expect("One", seconds=1)
        watch.end()

    def test_a_watch_that_has_failed_is_not_quiet(self):
        watch = self.watch()
        self.prometheus.body = '{"data": {}}'
        alerts.eventually("its failure", lambda: watch.task.failure, 10)
        for look in (watch.is_quiet, lambda: watch.expect(seconds=1)):
            with self.assertRaisesRegex(RuntimeError, "nobody watches"):
                look()
        with self.assertRaises(KeyError):
            watch.end()

    def test_a_command_that_does_not_work_is_a_complaint(self):
        # An audit ends with 1 if it finds something, and a command that says nothing helps nobody.
        commands = {"One": ["echo fine", "echo broken; exit 1", "true", "function oncepay { echo found; false; }; oncepay audit"]}
        watch = self.watch(commands)
        self.prometheus.firing = ["One"]
        watch.expect("One", seconds=10)
        watch.join_runners()
        complaints = [complaint.split("`")[1] for complaint in watch.complaints]
        self.assertEqual(complaints, [*commands["One"][1:3], commands["One"][3]])
        watch.complaints.clear()
        watch.stack.environment = lambda: dict(os.environ) | {"BASH_FUNC_oncepay%%": "() { echo found; false; }"}
        watch.commands = {"One": ["oncepay audit", "oncepay migrate"]}
        watch.look("One")
        self.assertEqual([complaint.split("`")[1] for complaint in watch.complaints], ["oncepay migrate"])

    def test_a_command_that_cannot_be_run_is_a_failure(self):
        watch = self.watch({"One": ["echo fine"]})
        watch.stack.environment = lambda: 1 / 0
        self.prometheus.firing = ["One"]
        watch.expect("One", seconds=10)
        with self.assertRaises(ZeroDivisionError):
            watch.end()


class RulesTest(unittest.TestCase):
    def test_only_times_are_shortened(self):
        rules = ("- alert: One\n  expr: rate(a[1d]) > 300 and b offset 1h > 5m\n  for: 15m\n"
                 "- alert: Two\n  expr: rate(a[2h]) > rate(a[6h])\n  for: 1s\n")
        self.assertEqual(alerts.shorten(rules), rules.replace("[1d]", "[20s]").replace("offset 1h", "offset 6s")
                         .replace("for: 15m", "for: 2s").replace("[2h]", "[12s]").replace("[6h]", "[20s]"))
        self.assertEqual(alerts.alerts_of(rules), ["One", "Two"])

    def test_the_commands_of_a_section_are_its_alerts(self):
        runbook = "# Runbook\n\n## One\n\n```console\n$ first \\\n    | more\nsaid\n$ second\n```\n\n## Two\n\n$ third\n"
        self.assertEqual(alerts.look_commands(runbook), {"One": ["first \\\n    | more", "second"], "Two": ["third"]})


if __name__ == "__main__":
    unittest.main()
