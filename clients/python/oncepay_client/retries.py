"""Requests that take effect once, however often they are sent, and by whichever process."""

import contextlib
import hashlib
import itertools
import json
import math
import random
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NotRequired, Protocol, TypedDict, cast

import httpx

from .operations import Operations
from .types import Problem

# A final answer, with its `Location`.
Answer = TypedDict("Answer", {"status": int, "location": str | None, "body": str})
# What a store keeps of a name. Without an answer, the request may have been sent, and may have taken effect.
Entry = TypedDict("Entry", {"name": str, "key": str, "fingerprint": str, "answer": NotRequired[Answer]})


class KeyStore(Protocol):
    """Keeps keys beyond the life of the process. Both methods return once a crash can't undo what they did."""

    def claim(self, fresh: Entry) -> Entry:
        """Keeps `fresh` unless its name has an entry, and returns the name's entry. Atomic, also between processes."""

    def settle(self, entry: Entry) -> None:
        """Puts `entry` in place of its name's entry."""


class NameReused(Exception):
    """The name stands for another request. Nothing was sent."""


class Unanswered(Exception):
    """The outcome is unknown so far; the cause is what came last. Ask again under the same name, now or after a restart."""


class OutcomeUnknown(Exception):
    """The request may have taken effect, and isn't sent again. Look at the object whose path is the argument, if one is."""


class Refused(Exception):
    """The final answer is a refusal, with a problem unless it's a proxy's. `problem["code"]` says what is the case."""

    def __init__(self, status: int, problem: Problem | None) -> None:
        super().__init__(problem["detail"] if problem else f"status {status}")
        self.status, self.problem = status, problem


@dataclass
class Oncepay(Operations):
    """Makes each request that changes something by a name of your own for it, such as an order's id. However often it's
    made under its name, in this process or a later one, it has one key: it takes effect once, and has one answer.
    Without a store, a key lives as long as the call. Threads can share an object. All methods raise `NameReused`, `Refused`,
    `OutcomeUnknown`, `Unanswered`, and what the store raises.
    """

    url: str
    api_key: str
    store: KeyStore | None = None
    attempt_timeout: float = 15  # Seconds without progress. The service answers within 10.
    give_up_after: float = 60  # Seconds.

    def __post_init__(self) -> None:
        self._http = httpx.Client(base_url=self.url, headers={"Content-Type": "application/json"})

    def once(self, name: str, method: str, path: str, body: Mapping[str, object] | None) -> Any:
        deadline = time.monotonic() + self.give_up_after
        content = json.dumps(body, sort_keys=True) if body is not None else ""  # One spelling for equal bodies.
        fingerprint = hashlib.sha256(f"{method} {path}\n{content}".encode()).hexdigest()
        fresh: Entry = {"name": name, "key": str(uuid.uuid4()), "fingerprint": fingerprint}
        entry = self.store.claim(fresh) if self.store else fresh
        if entry["fingerprint"] != fingerprint:
            raise NameReused(f"{name} stands for another request")
        if "answer" in entry:
            return _result(entry["answer"])
        for attempt in itertools.count():
            timeout = max(0.001, min(self.attempt_timeout, deadline - time.monotonic()))
            headers = {"Authorization": f"Bearer {self.api_key}", "Idempotency-Key": entry["key"]}
            try:
                received = self._http.request(method, path, content=content, headers=headers, timeout=timeout)
            except httpx.RequestError as error:
                cause, retry_after = cast(Exception, error), 0.0
            else:
                status, problem = received.status_code, _problem(received.text)
                # What isn't JSON comes from a proxy, which doesn't know what has become of the request.
                unsure = status in (408, 429) or status >= 500 or (status < 400 and problem is None)
                is_final = not (problem.get("retryable", unsure) if problem else unsure)
                # The service keeps no other refusals. They don't tell what has become of attempts before.
                is_kept = is_final and (status < 400 or status == 503 or "Idempotency-Expires" in received.headers)
                answer = Answer(status=status, location=received.headers.get("Location"), body=received.text)
                if is_kept and self.store:
                    self.store.settle({**entry, "answer": answer})
                if is_kept or (is_final and attempt == 0 and entry["key"] == fresh["key"]):
                    return _result(answer)
                cause = Refused(status, problem)
                retry_after = math.inf if is_final else _seconds(received.headers.get("Retry-After", ""))
            # A random addition, so that clients that failed together don't come back together.
            pause = max(0, retry_after) + random.uniform(0, 0.25 * 2 ** min(attempt, 5))
            if time.monotonic() + pause >= deadline:
                raise Unanswered(f"no final answer for {name}: ask again under the same name") from cause
            time.sleep(pause)


class SqliteStore:
    """Keeps entries in a file of SQLite's. Threads and processes can share it."""

    def __init__(self, path: str) -> None:
        self._lock, self._db = threading.Lock(), sqlite3.connect(path, timeout=60, check_same_thread=False)
        self._db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                               "CREATE TABLE IF NOT EXISTS entries (name TEXT PRIMARY KEY, entry TEXT NOT NULL)")

    def claim(self, fresh: Entry) -> Entry:
        with self._lock, self._db as db:
            db.execute("INSERT INTO entries VALUES (?, ?) ON CONFLICT DO NOTHING", [fresh["name"], json.dumps(fresh)])
            row = db.execute("SELECT entry FROM entries WHERE name = ?", [fresh["name"]]).fetchone()
        return cast(Entry, json.loads(row[0]))

    def settle(self, entry: Entry) -> None:
        with self._lock, self._db as db:
            db.execute("UPDATE entries SET entry = ? WHERE name = ?", [json.dumps(entry), entry["name"]])


def _problem(body: str) -> Problem | None:
    with contextlib.suppress(ValueError):
        problem = json.loads(body)
        return cast(Problem, problem) if isinstance(problem, dict) else None
    return None


def _result(answer: Answer) -> Any:
    problem, status = _problem(answer["body"]), answer["status"]
    if status < 400:
        return problem
    raise OutcomeUnknown(answer["location"]) if status == 503 else Refused(status, problem)  # No other 503 is final.


def _seconds(retry_after: str) -> float:
    with contextlib.suppress(ValueError):
        return float(retry_after) if retry_after.isdecimal() else parsedate_to_datetime(retry_after).timestamp() - time.time()
    return 0.0
