"""Starts one of the peers that `load/bench` compares Oncepay with."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
# What was fastest on two cores, see README.md: one process for each.
GUNICORN = ["--worker-class", "sync", "--workers", str(os.cpu_count()), "--no-control-socket"]


class Unavailable(Exception):
    """Something that the peer needs is missing."""


def venv():
    """The interpreter of a virtual environment with what both peers need, made once per set of requirements."""
    folder, wanted = os.path.join(ROOT, "target", "bench-venv-django"), os.path.join(HERE, "requirements.txt")
    python, marker = os.path.join(folder, "bin", "python"), os.path.join(folder, "requirements.txt")
    if not (os.path.exists(marker) and open(marker).read() == open(wanted).read()):
        make = [sys.executable, "-m", "venv", "--clear", folder]
        install = [python, "-m", "pip", "install", "-q", "-r", wanted]
        for command in (make, install):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise Unavailable(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        shutil.copy(wanted, marker)
    return python


class Peer:
    """A running peer: `handrolled` or `library`. Its logs go to `folder`."""

    def __init__(self, kind, database_url, owner_database_url, folder, port=None):
        # owner_database_url is for peers with tables of their own. These two have none.
        self.kind, self.processes = kind, []
        environment = os.environ | {"DJANGO_SETTINGS_MODULE": f"{kind}.settings", "DATABASE_URL": database_url}
        python = venv()
        try:
            if kind == "library":
                environment["REDIS_URL"] = self._start_redis(folder)
            port = port or free_port()
            self.url = f"http://127.0.0.1:{port}"
            command = [python, "-m", "gunicorn", *GUNICORN, "--bind", f"127.0.0.1:{port}", "wsgi"]
            self.gunicorn = self._start(command, folder, "gunicorn", environment)
            self._wait(self._answers)
        except BaseException:
            self.stop()
            raise

    def _start(self, command, folder, name, environment):
        self.log = os.path.join(folder, f"{self.kind}-{name}.log")
        with open(self.log, "w") as log:
            self.processes.append(subprocess.Popen(command, cwd=HERE, env=environment, stdout=log, stderr=log))
        return self.processes[-1]

    def _start_redis(self, folder):
        """A Redis of its own, on a socket, with its stock settings."""
        if not shutil.which("redis-server"):
            raise Unavailable("redis-server is missing. Install it first.")
        self.redis_socket = os.path.join(folder, "redis.sock")
        command = ["redis-server", "--port", "0", "--unixsocket", self.redis_socket, "--dir", folder]
        self._start(command, folder, "redis", None)
        self._wait(lambda: os.path.exists(self.redis_socket))
        return f"unix://{self.redis_socket}"

    def _wait(self, is_ready):
        for _ in range(200):
            if is_ready():
                return
            if self.processes[-1].poll() is not None:
                break
            time.sleep(0.1)
        raise Unavailable(f"The peer {self.kind} didn't start; see {self.log}:\n{open(self.log).read()[-2000:]}")

    def _answers(self):
        try:
            urllib.request.urlopen(self.url, timeout=5)
        except urllib.error.HTTPError as error:
            return error.code < 500
        except OSError:
            return False

    def pids(self):
        """gunicorn's master and workers."""
        children = open(f"/proc/{self.gunicorn.pid}/task/{self.gunicorn.pid}/children").read().split()
        return [self.gunicorn.pid, *children]

    def cpu_s(self):
        """User and system time of gunicorn, without Postgres and Redis."""
        fields = [open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split() for pid in self.pids()]
        return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self):
        """Resident memory of gunicorn; pages that its processes share count once."""
        rollups = [open(f"/proc/{pid}/smaps_rollup").read() for pid in self.pids()]
        return sum(int(rollup.split("\nPss:")[1].split()[0]) for rollup in rollups) / 1024

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
