"""What the drills run: a Postgres of their own, the simulator, instances of the service, and a Prometheus that watches them.

Needs the server binaries of Postgres, and Prometheus: from the PATH, or fetched as Debian's package and unpacked, so that
no daemon is installed along.
"""

import glob
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid

from drill import ROOT, Cluster, Task, create_database, eventually, find, free_port, run

OPS = os.path.join(ROOT, "ops")
SECRET = "whsec_ZHJpbGxzIG9mIG9wZXJhdG9ycyBuZWVkIGEgc2VjcmV0"


def prometheus_binaries():
    """Paths of prometheus and promtool. Fetches Debian's package if they aren't installed."""
    found = shutil.which("prometheus"), shutil.which("promtool")
    if all(found):
        return found
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "oncepay-prometheus")
    unpacked = os.path.join(cache, "usr/bin/prometheus"), os.path.join(cache, "usr/bin/promtool")
    if not all(map(os.path.exists, unpacked)):
        with tempfile.TemporaryDirectory() as folder:
            for command in (["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", "prometheus"]):
                subprocess.run(command, cwd=folder, capture_output=True)
            package = glob.glob(os.path.join(folder, "*.deb"))
            if not package or subprocess.run(["dpkg-deb", "-x", package[0], cache], capture_output=True).returncode != 0:
                sys.exit("Prometheus is missing, and its package can't be fetched.")
    return unpacked


def request(url, method="GET", body=None, key=None, headers=None, timeout=30):
    """Status and body of the answer; status 0 if there is none."""
    headers = dict(headers or {})
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = body
    if body is not None and not isinstance(body, bytes):
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method), timeout=timeout) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error)


class Process:
    """A server in a process of its own, with its log in a file."""

    def __init__(self, name, command, folder, environment=None):
        self.name, self.log = name, os.path.join(folder, f"{name}.log")
        with open(self.log, "w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)

    def is_running(self):
        return self.process.poll() is None

    def send(self, number):
        if self.is_running():
            self.process.send_signal(number)

    def stop(self, number=signal.SIGINT):
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stack:
    """Database, simulator, instances, Prometheus."""

    def __init__(self, binary, prometheus=None):
        self.binary, self.prometheus_binary = os.path.abspath(binary), prometheus
        self.folder = tempfile.mkdtemp(prefix="oncepay-drill-")
        os.chmod(self.folder, 0o755)
        self.processes = []
        self.postgres = Cluster(os.path.join(self.folder, "postgres")).create()
        self.postgres.configure({"fsync": "off", "max_connections": 200, "max_wal_size": "2GB"})
        self.postgres.start()
        create_database(self.postgres.sql)
        self.postgres.sql("CREATE DATABASE simulator OWNER oncepay_owner", "postgres")
        for database in ("oncepay", "simulator"):
            self.postgres.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT CREATE ON SCHEMA public TO oncepay_owner", database)
        owner = self.postgres.url("oncepay_owner")
        run(self.binary, "migrate", env=os.environ | {"ONCEPAY_OWNER_DATABASE_URL": owner})
        self.settings = {
            "DATABASE_URL": self.postgres.url("oncepay_app"),
            "ONCEPAY_OWNER_DATABASE_URL": owner,
            "ONCEPAY_MASTER_KEY": "drill" * 8,
            "ONCEPAY_WEBHOOK_SECRET": SECRET,
            "ONCEPAY_WEBHOOK_ALLOW_LOOPBACK": "true",
            "ONCEPAY_SHUTDOWN_DELAY_MS": "0",
        }
        data = os.path.join(self.folder, "seed")
        run(self.binary, "seed", "--data-dir", data, env=os.environ | {"ONCEPAY_OWNER_DATABASE_URL": owner})
        lines = (line.strip().split("=", 1) for line in open(os.path.join(data, "dev.env")) if "=" in line)
        seeded = {name: value.strip("'\"") for name, value in lines}
        self.api_key, self.operator_key = seeded["ONCEPAY_API_KEY"], seeded["ONCEPAY_OPERATOR_KEY"]
        bin_folder = os.path.join(self.folder, "bin")
        os.mkdir(bin_folder)
        programs = {"oncepay": self.binary, "psql": find("psql")}
        if prometheus:
            programs["promtool"] = os.path.join(os.path.dirname(prometheus), "promtool")
        for name, program in programs.items():
            os.symlink(program, os.path.join(bin_folder, name))
        self.path = f"{bin_folder}:{os.environ['PATH']}"
        self.merchant = "mer_" + self.postgres.sql("SELECT replace(merchant_id::text, '-', '') FROM merchants")
        self.instances = {}

    def start(self, process):
        self.processes.append(process)
        return process

    def environment(self):
        """What a shell of an operator has."""
        first = next(iter(self.instances.values()), None)
        return os.environ | self.settings | {
            "PATH": self.path,
            "ONCEPAY_URL": first.url if first else "",
            "ONCEPAY_API_KEY": self.api_key,
            "ONCEPAY_OPERATOR_KEY": self.operator_key,
            "PROMETHEUS_URL": getattr(self, "prometheus_url", ""),
        }

    def start_simulator(self, webhook_port):
        port, control = free_port(), free_port()
        command = [self.binary, "simulator", "--listen", f"127.0.0.1:{port}", "--control-listen", f"127.0.0.1:{control}"]
        command += ["--webhook-url", f"http://127.0.0.1:{webhook_port}/v1/webhooks/acquirer", "--decide-after-ms", "200"]
        environment = os.environ | {
            "ONCEPAY_SIMULATOR_DATABASE_URL": self.postgres.url("oncepay_owner", "simulator"),
            "ONCEPAY_SIMULATOR_API_KEY": "simulator-key",
            "ONCEPAY_WEBHOOK_SECRET": SECRET,
        }
        self.simulator = self.start(Process("simulator", command, self.folder, environment))
        self.simulator_url, self.control_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{control}/control"
        self.settings |= {"ONCEPAY_PROCESSOR_URL": self.simulator_url, "ONCEPAY_PROCESSOR_API_KEY": "simulator-key"}
        eventually("the simulator", lambda: request(f"{self.simulator_url}/health", key="simulator-key")[0] == 200)

    def control(self, path, body, method="POST"):
        status, answer = request(f"{self.control_url}/{path}", method, body)
        if status not in (200, 201):
            sys.exit(f"the simulator's control said {status}: {answer}")
        return answer

    def faults(self, *rules):
        self.control("faults", {"rules": list(rules)}, "PUT")

    def serve(self, name, port, **settings):
        """Starts an instance, or starts it anew with other settings."""
        old = self.instances.get(name)
        if old and old.is_running():
            old.stop()
        environment = os.environ | self.settings | {f"ONCEPAY_{setting.upper()}": str(value) for setting, value in settings.items()}
        command = [self.binary, "serve", "--listen", f"127.0.0.1:{port}"]
        instance = self.start(Process(f"{name}-{uuid.uuid4().hex[:4]}", command, self.folder, environment))
        instance.url, instance.port = f"http://127.0.0.1:{port}", port
        self.instances[name] = instance
        eventually(f"instance {name}", lambda: request(f"{instance.url}/readyz")[0] == 200 or request(f"{instance.url}/healthz")[0] == 200)
        return instance

    def watch(self, rules, scrape_interval):
        """Starts a Prometheus that scrapes the instances and evaluates the rules in the file."""
        port = free_port()
        config = os.path.join(self.folder, "prometheus.yml")
        targets = ", ".join(f"'127.0.0.1:{instance.port}'" for instance in self.instances.values())
        with open(config, "w") as file:
            file.write(
                f"global: {{scrape_interval: {scrape_interval}, evaluation_interval: {scrape_interval}}}\n"
                f"rule_files: ['{rules}']\n"
                f"scrape_configs: [{{job_name: oncepay, static_configs: [{{targets: [{targets}]}}]}}]\n"
            )
        command = [self.prometheus_binary, f"--config.file={config}", f"--storage.tsdb.path={self.folder}/tsdb",
                   f"--web.listen-address=127.0.0.1:{port}", "--query.lookback-delta=5s"]
        self.prometheus = self.start(Process("prometheus", command, self.folder))
        self.prometheus_url = f"http://127.0.0.1:{port}"
        eventually("Prometheus", lambda: request(f"{self.prometheus_url}/-/ready")[0] == 200)
        eventually("the first scrapes", lambda: len(self.query("up == 1")) == len(self.instances))

    def query(self, expression):
        """The samples of an instant query."""
        status, answer = request(f"{self.prometheus_url}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        if status != 200:
            sys.exit(f"Prometheus refuses {expression}: {answer}")
        return answer["data"]["result"]

    def send(self, instance, path, body, key=None, method="POST", **options):
        """A changing request of the merchant."""
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return request(f"{instance.url}{path}", method, body, self.api_key, headers, **options)

    def charge(self, instance, key=None, amount="12.50", **options):
        body = {"amount": amount, "currency": "USD", "payment_method": "pm_card_visa"}
        return self.send(instance, "/v1/charges", body, key, **options)

    def stop(self):
        for process in reversed(self.processes):
            if process.is_running():
                process.stop()
        self.postgres.stop("immediate")
        if os.environ.get("ONCEPAY_DRILL_KEEP"):
            print(f"kept {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


class Traffic:
    """Threads that do something again and again until they're told to stop."""

    def __init__(self):
        self.ended, self.tasks = threading.Event(), []

    def keep(self, action, pause=0.0):
        def go_on():
            while not self.ended.is_set():
                try:
                    action()
                except (SystemExit, OSError):
                    # The next time may go better: other traffic is in the way.
                    pass
                self.ended.wait(pause)

        self.tasks.append(Task(go_on))

    def end(self):
        self.ended.set()
        for task in self.tasks:
            task.join(timeout=40)


if __name__ == "__main__":
    # The path of promtool, for scripts.
    print(prometheus_binaries()[1])
