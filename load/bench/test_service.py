"""Tests of what the drills and the benchmark stand on: processes that start and stop, and threads whose failure counts.

  python3 -m unittest discover load/bench
"""

import os
import signal
import sys
import tempfile
import time
import unittest

import service

# Stands in for `oncepay`: writes down how it was called, and answers. `dev` also writes its settings into the data folder.
PROGRAM = f"""#!{sys.executable}
import http.server, os, signal, sys

def note(text):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(text + "\\n")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # Not ready at once.
        Handler.asked = getattr(Handler, "asked", 0) + 1
        self.send_response(200 if Handler.asked > 1 else 503)
        self.end_headers()
        if self.path != "/readyz":
            note(f"asked for {{self.path}}")

    def log_message(self, *_):
        pass

def stop(number, _):
    note(f"{{sys.argv[1]}} stopped by {{signal.Signals(number).name}}")
    os._exit(0)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
names = ("DATABASE_URL", "ONCEPAY_SHUTDOWN_DELAY_MS", "ONCEPAY_OPERATOR_KEY")
known = {{name: os.environ[name] for name in names if name in os.environ}}
note(f"{{sys.argv[1]}} started with {{known}}")
if os.environ.get("BROKEN") == sys.argv[1]:
    sys.exit("no such database")
port = int(sys.argv[sys.argv.index("--listen") + 1].split(":")[1]) if "--listen" in sys.argv else 0
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
if sys.argv[1] == "dev":
    data = sys.argv[sys.argv.index("--data-dir") + 1]
    os.makedirs(data, exist_ok=True)
    with open(os.path.join(data, "dev.env.part"), "w") as file:
        file.write("# Settings\\n")
        file.write(f"ONCEPAY_URL='http://127.0.0.1:{{server.server_port}}'\\n")
        file.write('DATABASE_URL="postgres://app@db/oncepay?sslmode=disable"\\nONCEPAY_OPERATOR_KEY=sk_operator\\n')
    os.rename(file.name, os.path.join(data, "dev.env"))
server.serve_forever()
"""


class ServiceTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.binary, self.notes_file = os.path.join(folder.name, "oncepay"), os.path.join(folder.name, "notes")
        with open(self.binary, "w") as file:
            file.write(PROGRAM)
        os.chmod(self.binary, 0o755)
        before = dict(os.environ)
        self.addCleanup(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ["NOTES"] = self.notes_file
        for name in ("BROKEN", "DATABASE_URL", "ONCEPAY_SHUTDOWN_DELAY_MS", "ONCEPAY_OPERATOR_KEY"):
            os.environ.pop(name, None)

    def start(self):
        started = service.Service(self.binary)
        self.addCleanup(started.stop)
        return started

    def notes(self):
        with open(self.notes_file) as notes:
            return notes.read().splitlines()

    def test_it_is_ready_when_it_has_started_and_its_folder_goes_with_it(self):
        started = self.start()
        self.assertTrue(service.is_ready(started.url))
        self.assertEqual(started.settings["DATABASE_URL"], "postgres://app@db/oncepay?sslmode=disable")
        started.stop()
        self.assertFalse(service.is_ready(started.url))
        self.assertFalse(os.path.exists(started.folder))
        self.assertEqual(self.notes(), ["dev started with {}", "dev stopped by SIGINT"])
        # Once more does nothing.
        started.stop()

    def test_a_restart_keeps_its_data(self):
        started = self.start()
        kept = os.path.join(started.folder, "data", "kept")
        open(kept, "w").close()
        first = started.process.pid
        started.restart()
        self.assertNotEqual(started.process.pid, first)
        self.assertTrue(service.is_ready(started.url) and os.path.exists(kept))
        self.assertEqual([note.split()[1] for note in self.notes()], ["started", "stopped", "started"])

    def test_a_further_instance_has_the_database_and_none_of_the_operators_keys(self):
        started = self.start()
        instance = started.another(1)
        self.addCleanup(instance.stop)
        known = {"DATABASE_URL": "postgres://app@db/oncepay?sslmode=disable", "ONCEPAY_SHUTDOWN_DELAY_MS": "0"}
        self.assertEqual(self.notes()[-1], f"serve started with {known}")
        self.assertTrue(service.is_ready(instance.url))
        self.assertNotEqual(instance.url, started.url)
        instance.stop()
        successor = started.another(1, shutdown_delay_ms=5)
        self.addCleanup(successor.stop)
        self.assertEqual(successor.url, instance.url)
        self.assertIn("'ONCEPAY_SHUTDOWN_DELAY_MS': '5'", self.notes()[-1])
        other = started.another(2)
        self.addCleanup(other.stop)
        self.assertNotEqual(other.url, instance.url)

    def test_an_instance_that_ends_instead_of_starting_is_an_error_with_its_log(self):
        started = self.start()
        os.environ["BROKEN"] = "serve"
        with self.assertRaisesRegex(SystemExit, "no such database"):
            started.another(1)

    def test_all_that_were_started_are_stopped_in_order(self):
        started = self.start()
        instance = started.another(1)
        self.addCleanup(instance.stop)
        service.stop_all(instance, None, started)
        self.assertEqual(self.notes()[-2:], ["serve stopped by SIGINT", "dev stopped by SIGINT"])

    def test_time_and_memory_are_those_of_the_process(self):
        started = self.start()
        before = started.cpu_s()
        self.assertGreaterEqual(before, 0.01)
        self.assertLess(before, 60)
        # What is resident, and not all that it has addresses for.
        with open(f"/proc/{started.process.pid}/status") as file:
            has_addresses_mib = int(file.read().split("VmPeak:")[1].split()[0]) / 1024
        self.assertTrue(2 < started.peak_rss_mib() < has_addresses_mib)
        os.kill(started.process.pid, signal.SIGSTOP)
        stopped = started.cpu_s()
        busy = time.process_time()
        while time.process_time() - busy < 0.1:
            pass
        self.assertEqual(started.cpu_s(), stopped, "somebody else's time")
        os.kill(started.process.pid, signal.SIGCONT)
        self.assertGreaterEqual(service.cpu_s(os.getpid()), 0.1)

    def test_the_time_of_ended_children_counts_if_asked_for(self):
        own = service.cpu_s(os.getpid()), service.cpu_s(os.getpid(), with_ended_children=True)
        busy = "import time\nwhile time.process_time() < 0.5: pass"
        service.run(sys.executable, "-c", busy)
        now = service.cpu_s(os.getpid()), service.cpu_s(os.getpid(), with_ended_children=True)
        self.assertLess(now[0] - own[0], 0.4)
        self.assertGreaterEqual(now[1] - own[1], 0.4)


class TaskTest(unittest.TestCase):
    def test_the_failure_of_a_task_is_that_of_whoever_waits_for_it(self):
        for failure in (ValueError("broken"), SystemExit("broken")):
            def fail(failure=failure):
                raise failure

            with self.assertRaisesRegex(type(failure), "broken"):
                service.Task(fail).join()
        done = []
        service.Task(done.append, 1).join()
        self.assertEqual(done, [1])

    def test_a_task_that_does_not_end_is_a_failure(self):
        with self.assertRaisesRegex(SystemExit, "waited 0.01 s for nothing"):
            service.Task(time.sleep, 5).join(timeout=0.01)


class CommandTest(unittest.TestCase):
    def test_a_command_that_fails_ends_the_program_with_what_it_said(self):
        self.assertEqual(service.run("echo", "it works"), "it works\n")
        with self.assertRaisesRegex(SystemExit, "out\nerr"):
            service.run("sh", "-c", "echo out; echo err >&2; exit 3")


if __name__ == "__main__":
    unittest.main()
