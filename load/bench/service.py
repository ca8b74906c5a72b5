"""What is measured: Oncepay with a fresh Postgres of its own, and further instances on it."""

import contextlib
import glob
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid

LOAD = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(LOAD)


def run(*command, **options):
    """The output of a command, or the end of this program with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} … failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def find(program):
    """A program in the PATH or among Postgres' binaries."""
    found = shutil.which(program) or next(
        iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{program}"), reverse=True)), None
    )
    return found or sys.exit(f"{program} is missing. Install it first.")


def release_build():
    """The path of a release build."""
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    return os.path.join(ROOT, "target", "release", "oncepay")


def raise_file_limit():
    """Lets this process and its children have as many open files as they may."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def is_ready(url):
    try:
        urllib.request.urlopen(url + "/readyz", timeout=5)
        return True
    except OSError:
        return False


class Task(threading.Thread):
    """A thread that has begun, and whose failure is the failure of whoever waits for its end."""

    def __init__(self, work, *arguments):
        super().__init__(daemon=True)
        self.work, self.failure = lambda: work(*arguments), None
        self.start()

    def run(self):
        try:
            self.work()
        except BaseException as failure:
            self.failure = failure

    def join(self, timeout=None):
        super().join(timeout)
        if self.failure:
            raise self.failure
        if self.is_alive():
            sys.exit(f"{threading.current_thread().name} waited {timeout} s for nothing")


def cpu_s(pid, with_ended_children=False):
    """User and system time of a process."""
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    ticks = fields[11:15] if with_ended_children else fields[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def postgres_processes(data):
    """Ids of the processes of the server with that folder, the first of which starts the others."""
    with open(os.path.join(data, "postmaster.pid")) as file:
        postmaster = file.readline().strip()
    return [postmaster, *open(f"/proc/{postmaster}/task/{postmaster}/children").read().split()]


def postgres_cpu_s(data):
    """User and system time of all processes of the server with that folder, those that have ended included."""
    postmaster, *children = postgres_processes(data)
    total = cpu_s(postmaster, with_ended_children=True)
    for child in children:
        # One that has just ended counts next time.
        with contextlib.suppress(OSError):
            total += cpu_s(child)
    return total


@contextlib.contextmanager
def limited_memory(pids, limit):
    """Lets processes, and those that they start, have no more memory than that, what the kernel keeps of their files
    included; and forgets those files now. Returns whether it can: as root on Linux."""
    cgroups = "/sys/fs/cgroup"
    if os.path.exists(f"{cgroups}/cgroup.controllers"):
        group, maximum = f"{cgroups}/oncepay-bench", "memory.max"
    else:
        cgroups += "/memory"
        group, maximum = f"{cgroups}/oncepay-bench", "memory.limit_in_bytes"

    def move(to):
        for pid in pids:
            # One that has ended is in none.
            with contextlib.suppress(ProcessLookupError):
                write(f"{to}/cgroup.procs", pid)

    def write(file, value):
        with open(file, "w") as opened:
            opened.write(str(value))

    try:
        os.makedirs(group, exist_ok=True)
        write(f"{group}/{maximum}", limit)
        os.sync()
        write("/proc/sys/vm/drop_caches", 3)
    except OSError as cause:
        print(f"  memory can't be limited: {cause}", flush=True)
        yield False
        return
    try:
        move(group)
        yield True
    finally:
        pids = open(f"{group}/cgroup.procs").read().split()
        move(cgroups)
        os.rmdir(group)


class Process:
    """A running server, its CPU time and memory, without Postgres."""

    def __init__(self, command, log, environment=None):
        self.log = log
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)

    def cpu_s(self):
        """User and system time."""
        return cpu_s(self.process.pid)

    def first_line(self):
        """What it says first: its address."""
        while not (said := open(self.log).read().strip()):
            if self.process.poll() is not None:
                sys.exit(f"{self.process.args[0]} ended and said nothing")
            time.sleep(0.05)
        return said

    def peak_rss_mib(self):
        """The most memory that was resident at any time."""
        status = open(f"/proc/{self.process.pid}/status").read()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def wait_until_ready(self):
        """Waits until what is at `url` answers, and it's this process that does."""
        while not is_ready(self.url):
            if self.process.poll() is not None:
                sys.exit(f"{self.process.args[0]} ended: {open(self.log).read()}")
            time.sleep(0.1)

    # `oncepay` stops without the delay for load balancers.
    stop_signal = signal.SIGINT

    def stop(self):
        """Does nothing if it has ended."""
        self.process.send_signal(self.stop_signal)
        self.process.wait()


def stop_all(*processes):
    """Stops those that were started, in this order."""
    for process in filter(None, processes):
        process.stop()


class Service(Process):
    """`oncepay dev` in a folder that goes away with it."""

    def __init__(self, binary, *arguments):
        self.binary, self.arguments, self.folder = binary, arguments, tempfile.mkdtemp(prefix="oncepay-bench-")
        self.ports = {}
        os.chmod(self.folder, 0o755)
        self.start()

    def start(self):
        data, log = os.path.join(self.folder, "data"), os.path.join(self.folder, "log")
        super().__init__([self.binary, "dev", "--port", "0", "--data-dir", data, *self.arguments], log)
        file = os.path.join(data, "dev.env")
        for _ in range(600):
            if os.path.exists(file):
                lines = (line.strip().split("=", 1) for line in open(file) if "=" in line)
                self.settings = {name: value.strip("'\"") for name, value in lines}
                self.url = self.settings["ONCEPAY_URL"]
                if is_ready(self.url):
                    return
            time.sleep(0.1)
        sys.exit(f"oncepay dev didn't start; see {log}")

    def restart(self):
        """Stops it and starts it again. Postgres writes everything to the disk before it ends."""
        super().stop()
        self.start()

    def another(self, number, binary=None, shutdown_delay_ms=0, **settings):
        """A further instance on the same database. One that takes the place of another listens at the same address."""
        url = f"http://127.0.0.1:{self.ports.setdefault(number, free_port())}"
        names = ("DATABASE_URL", "ONCEPAY_MASTER_KEY", "ONCEPAY_PROCESSOR_URL", "ONCEPAY_PROCESSOR_API_KEY")
        environment = os.environ | {name: self.settings[name] for name in names if name in self.settings}
        environment |= {"ONCEPAY_SHUTDOWN_DELAY_MS": str(shutdown_delay_ms)} | settings
        command = [binary or self.binary, "serve", "--listen", url.removeprefix("http://")]
        instance = Process(command, os.path.join(self.folder, f"instance-{number}.log"), environment)
        instance.url = url
        instance.wait_until_ready()
        return instance

    def request(self, method, path, body=None, key="ONCEPAY_OPERATOR_KEY"):
        headers = {"Authorization": f"Bearer {self.settings.get(key, key)}", "Content-Type": "application/json"}
        headers["Idempotency-Key"] = str(uuid.uuid4())
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        return json.load(urllib.request.urlopen(request))

    def sql(self, statement):
        url = self.settings["ONCEPAY_OWNER_DATABASE_URL"]
        return run(find("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", url, "-c", statement).strip()

    def postgres_processes(self):
        """Ids of Postgres' processes, the first of which starts the others."""
        return postgres_processes(os.path.join(self.folder, "data", "postgres"))

    def postgres_cpu_s(self):
        """User and system time of all of Postgres' processes, those that have ended included."""
        return postgres_cpu_s(os.path.join(self.folder, "data", "postgres"))

    def stop(self):
        super().stop()
        shutil.rmtree(self.folder, ignore_errors=True)
