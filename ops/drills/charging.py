"""Charges that clients create while a cluster loses its nodes, and whether each of them happened once."""

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid

import drill
from drill import Task, eventually, expect, free_port, run
from service import is_ready

PATIENCE_S = 120


class Client:
    """Sends a charge until it's answered, then the next one."""

    def __init__(self, urls, api_key, stop):
        self.urls, self.api_key, self.is_over = [urllib.parse.urlsplit(url) for url in urls], api_key, stop
        self.at = random.randrange(len(urls))
        # By key: when it was first sent, when it was answered, the answer.
        self.answers, self.attempts, self.surprises = {}, 0, []

    def send(self, key):
        """Status, body, and whether it's a replay. None without an answer."""
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json", "Idempotency-Key": key}
        body = json.dumps({"amount": "12.50", "currency": "USD", "payment_method": "pm_card_visa"})
        url = self.urls[self.at]
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=5)
        try:
            connection.request("POST", "/v1/charges", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.getheader("Idempotent-Replayed") == "true"
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def send_until_answered(self, key):
        begun, pause = time.monotonic(), 0.05
        while time.monotonic() - begun < PATIENCE_S:
            self.attempts += 1
            answer = self.send(key)
            if answer and answer[0] == 201:
                return answer
            if answer and answer[0] not in (409, 503):
                self.surprises.append(f"{key} was answered {answer[0]}: {answer[1][:300]}")
            self.at = (self.at + 1) % len(self.urls)
            time.sleep(random.uniform(0, pause))
            pause = min(2 * pause, 1)
        return None

    def go_on(self):
        while not self.is_over.is_set():
            key, sent = str(uuid.uuid4()), time.monotonic()
            answer = self.send_until_answered(key)
            if answer is None:
                self.surprises.append(f"{key} got no answer")
                continue
            self.answers[key] = (sent, time.monotonic(), answer[1])
            time.sleep(random.uniform(0, 0.02))

    def lost(self):
        """Keys whose answer isn't given again."""
        def is_lost(key):
            answer = self.send_until_answered(key)
            return not answer or not answer[2] or answer[1] != self.answers[key][2]
        return [key for key in self.answers if is_lost(key)]


class Charging:
    """A service with two instances on a cluster, which has `folder`, `create_database`, `url`, `sql` and `add`; and clients of all
    merchants."""

    def __init__(self, cluster, binary, clients, merchants=1, migrate=()):
        self.cluster, self.binary, self.stop = cluster, binary, threading.Event()
        cluster.create_database()
        self.environment = os.environ | {
            "ONCEPAY_OWNER_DATABASE_URL": cluster.url("oncepay_owner", "oncepay"),
            "DATABASE_URL": cluster.url("oncepay_app", "oncepay"),
            "ONCEPAY_MASTER_KEY": "drill" * 8,
            # What a node's end interrupts is taken over soon.
            "ONCEPAY_PROCESSOR_TIMEOUT_MS": "3000",
            "ONCEPAY_LEASE_MS": "4000",
        }
        run(binary, "migrate", *migrate, env=self.environment)
        seeded = os.path.join(cluster.folder, "seed")
        run(binary, "seed", "--data-dir", seeded, env=self.environment)
        settings = open(os.path.join(seeded, "dev.env")).read()
        operator, api_key = (
            re.search(rf"^{name}=(\S+)$", settings, re.M)[1].strip("'\"")
            for name in ("ONCEPAY_OPERATOR_KEY", "ONCEPAY_API_KEY")
        )
        self.urls, self.instances = [f"http://127.0.0.1:{free_port()}" for _ in range(2)], []
        self.serve()
        api_keys = [api_key, *(self._merchant(self.urls[0], operator, number) for number in range(1, merchants))]
        self.clients = [Client(self.urls, api_keys[number % merchants], self.stop) for number in range(clients)]

    def serve(self):
        """Starts the instances; returns when they're ready."""
        for number, url in enumerate(self.urls, 1):
            own = self.environment | {"ONCEPAY_SANDBOX_CALL_LOG": self._call_log(number)}
            command = [self.binary, "serve", "--listen", url.removeprefix("http://")]
            self.instances.append(self.cluster.add(f"api-{number}", command, own))
            eventually("an instance", lambda url=url: is_ready(url))

    def kill_instances(self):
        """Ends them without a word."""
        for instance in self.instances:
            instance.process.kill()
            instance.process.wait()
        self.instances = []

    def _call_log(self, number):
        return os.path.join(self.cluster.folder, f"calls-{number}.jsonl")

    @staticmethod
    def _merchant(url, operator, number):
        """The API key of a new merchant."""
        body = {"name": f"merchant {number}", "fee_rate": "0.029", "fee_fixed": "0.30"}
        answer = drill.Client(url, operator).send("POST", "/v1/operator/merchants", body, str(uuid.uuid4()))
        expect(answer.status == 201, f"no merchant: {answer.body}")
        return answer.json()["api_key"]["key"]

    def _processor_keys(self):
        """The keys of the authorizations that the processor was asked for."""
        calls = (json.loads(line) for number in (1, 2) for line in open(self._call_log(number)))
        return {call["key"] for call in calls if call["call"] == "authorize"}

    def _audit(self):
        """Whether the books are in order, and what the audit says."""
        done = subprocess.run([self.binary, "audit"], env=self.environment, capture_output=True, text=True)
        return done.returncode == 0, done.stdout + done.stderr

    def expect_clean_audit(self):
        is_clean, said = self._audit()
        expect(is_clean, f"the audit isn't clean: {said}")

    def during(self, faults):
        """Charges while `faults` strikes and returns when it did; returns a row of the table in tests/FAULTS.md. Ends this
        program if an answer is lost, a charge is there twice, or the audit isn't clean."""
        tasks = [Task(client.go_on) for client in self.clients]
        try:
            time.sleep(random.uniform(2, 4))
            struck = faults()
            time.sleep(2)
        finally:
            self.stop.set()
        for task in tasks:
            task.join()

        answers = [answer for client in self.clients for answer in client.answers.values()]
        attempts = sum(client.attempts for client in self.clients)
        # Asked of all at once: there are thousands.
        lost = []
        asking = [Task(lambda client=client: lost.extend(client.lost())) for client in self.clients]
        for task in asking:
            task.join()
        problems = [surprise for client in self.clients for surprise in client.surprises]
        problems += [f"the answer to {key} is lost" for key in lost]
        charges, asked = int(self.cluster.sql("SELECT count(*) FROM charges")), len(self._processor_keys())
        duplicated = max(charges, asked) - len(answers)
        if duplicated:
            problems.append(f"{len(answers)} charges were acknowledged, {charges} are in the database, and the processor was "
                            f"asked for {asked}")
        is_clean, said = self._audit()
        if not is_clean:
            problems.append(f"the audit isn't clean: {said}")
        recovery = max(min((at for sent, at, _ in answers if sent > then), default=float("inf")) - then for then in struck)
        row = (
            f"{len(struck)} | {len(answers)} | {attempts - len(answers)} | {len(answers)} "
            f"| {self.cluster.sql('SELECT count(*) FROM idempotency_keys WHERE attempts > 1')} | {len(lost)} "
            f"| {max(duplicated, 0)} | {recovery:.2f} s | {max(at - sent for sent, at, _ in answers):.2f} s |"
        )
        print(row, flush=True)
        if problems:
            sys.exit("\n".join(problems[:20]))
        return row


@contextlib.contextmanager
def ending(cluster):
    """Stops the cluster in the end, and deletes its folder, unless something has failed: then it says where the logs are."""
    try:
        yield cluster
    except BaseException:
        cluster.stop()
        print(f"The logs are in {cluster.folder}.", file=sys.stderr)
        raise
    cluster.stop()
    shutil.rmtree(cluster.folder, ignore_errors=True)


HEADER = """| fault | times | requests | retries | acknowledged | taken over | lost | duplicated | worst time to recover | slowest request |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""


def write_table(path, title, about, rows):
    """Puts a chapter with a table in place of the one with that title, or below all others."""
    text = open(path).read().rstrip("\n")
    chapter = f"## {title}\n\n{about}\n\n{HEADER}\n" + "\n".join(rows)
    chapters = text.split("\n## ")
    others = [other.rstrip("\n") for other in chapters if not other.startswith(f"{title}\n")]
    with open(path, "w") as file:
        file.write("\n\n## ".join(others) + "\n\n" + chapter + "\n")
