"""What the drills share: Postgres clusters, clients that remember their answers, and the program's commands."""

import http.client
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "load"), os.path.join(ROOT, "load", "bench")]

from service import Process, Task, find, free_port, run  # noqa: E402


class Stopwatch:
    """Prints each step with the time that it took."""

    def __init__(self):
        self.begun = self.last = time.monotonic()
        self.times = {}

    def note(self, step, said=""):
        now = time.monotonic()
        self.times[step] = now - self.last
        print(f"{now - self.begun:6.1f} s  {step} ({now - self.last:.1f} s)" + (f": {said}" if said else ""), flush=True)
        self.last = now


def expect(is_so, sentence):
    if not is_so:
        sys.exit(f"FAILED: {sentence}")


def eventually(what, look, seconds=60):
    """Waits until what `look` returns is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        expect(time.monotonic() < deadline, f"still not so after {seconds} s: {what}")
        time.sleep(0.1)
    return seen


def build():
    """A debug build: a drill measures no speed."""
    subprocess.run(["cargo", "build", "--locked", "--bin", "oncepay"], cwd=ROOT, check=True)
    return os.path.join(ROOT, "target", "debug", "oncepay")


def create_database(sql, password=None):
    """The roles, and an empty database. `sql` runs statements in another."""
    for role in ("oncepay_owner", "oncepay_app"):
        sql(f"CREATE ROLE {role} LOGIN PASSWORD '{password or role}'", "postgres")
    sql("CREATE DATABASE oncepay OWNER oncepay_owner", "postgres")


class Cluster:
    """A Postgres server in a folder, with its WAL archived if `archive` names a folder for that."""

    def __init__(self, folder, archive=None):
        self.data, self.archive, self.port = folder, archive, free_port()
        # Postgres refuses to run as root.
        self.user = next((user for user in ("postgres", "nobody") if _exists(user)), None) if os.geteuid() == 0 else None
        for path in filter(None, (folder, archive)):
            os.makedirs(path, exist_ok=True)
            self.own(path)

    def own(self, path):
        if self.user:
            run("chown", "-R", self.user, path)
        os.chmod(path, 0o700)

    def program(self, name, *arguments):
        options = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []} if self.user else {}
        return run(find(name), *arguments, cwd="/", **options)

    def create(self):
        self.program("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C", "-E", "UTF8")
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "lc_messages": "C",
            "wal_level": "replica", "max_connections": 60,
        }
        if self.archive:
            # Archives a segment once, and never another under its name. A part of one never has its name.
            file = f"{self.archive}/%f"
            command = f"test ! -f {file} && cp %p {file}.part && sync {file}.part && mv {file}.part {file}"
            settings |= {"archive_mode": "on", "archive_command": command, "archive_timeout": "10s"}
        self.configure(settings)
        return self

    def configure(self, settings):
        with open(os.path.join(self.data, "postgresql.auto.conf"), "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def start(self):
        log = os.path.join(self.data, "log")
        try:
            self.program("pg_ctl", "-D", self.data, "-l", log, "-w", "-t", "120", "start")
        except SystemExit:
            print(open(log).read()[-2000:], file=sys.stderr)
            raise
        return self

    def stop(self, mode="fast"):
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            self.program("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def url(self, role="postgres", database="oncepay"):
        return f"postgres://{role}:{role}@127.0.0.1:{self.port}/{database}"

    def sql(self, statement, database="oncepay", role="postgres", guards=True):
        """Runs statements; without `guards`, triggers don't look."""
        if not guards:
            statement = f"SET session_replication_role = 'replica'; {statement}"
        command = [find("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", self.url(role, database)]
        return run(*command, input=statement).strip()

    def restore(self, backup, recovery):
        """A cluster from a base backup that recovers as the settings say; returns when it takes writes."""
        shutil.copytree(backup, self.data, dirs_exist_ok=True)
        self.configure({"port": self.port, **recovery})
        open(os.path.join(self.data, "recovery.signal"), "w").close()
        self.own(self.data)
        self.start()
        eventually("the end of the recovery", lambda: self.sql("SELECT pg_is_in_recovery()", "postgres") == "f", 300)
        return self


def _exists(user):
    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False


class Answer:
    def __init__(self, status, body, headers):
        self.status, self.body, self.headers = status, body, headers

    def json(self):
        return json.loads(self.body)

    def is_replay(self):
        return self.headers.get("Idempotent-Replayed") == "true"


class Client:
    """Sends requests with an API key, one at a time, each on a connection of its own as a proxy does."""

    def __init__(self, url, key):
        self.url, self.key = urllib.parse.urlsplit(url), key

    def send(self, method, path, body=None, key=None):
        """The answer; an OSError or HTTPException if there is none."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=30)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), answer.headers)
        finally:
            connection.close()


def oncepay(binary, environment, *arguments, may_fail=False):
    """Runs a command of the program. Returns whether it succeeded and what it said."""
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, env=os.environ | environment)
    expect(may_fail or done.returncode == 0, f"oncepay {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.returncode == 0, done.stdout + done.stderr


def serve(binary, environment, log, port=None):
    """An instance that answers."""
    port = port or free_port()
    instance = Process([binary, "serve", "--listen", f"127.0.0.1:{port}"], log, os.environ | environment)
    instance.url = f"http://127.0.0.1:{port}"
    instance.wait_until_ready()
    return instance
