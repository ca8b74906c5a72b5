"""Tells whether load/RESULTS.md is still of the code that is there. Exits with 1 if it isn't.

  python3 load/bench/age.py

Each change of what a request passes through may make it slower, and a figure that nobody has measured since is a guess. So
few such commits may follow the one that was measured. Where its history isn't there, as in a shallow clone or a fork that
began anew, nothing can be told.
"""

import os
import re
import subprocess
import sys

from service import LOAD, ROOT

# What each charge passes through, and what decides what a statement costs.
HOT_PATH = (
    "migrations",
    "src/idempotency/batching.rs",
    "src/idempotency/engine",
    "src/idempotency/store",
    "src/ledger/mod.rs",
    "src/payments/changes.rs",
    "src/payments/charges",
    "src/storage/batch.rs",
    "src/storage/db.rs",
    "src/storage/session.rs",
)
COMMITS_MAX = 20


def measured_commit(report):
    """The commit that the report names, without the mark of changes that weren't committed."""
    return re.search(r"of commit ([0-9a-f]{7,40})\b", report)[1]


def commits_since(commit, folder=ROOT):
    """How many commits since then have changed the hot path. None if that isn't known."""
    command = ["git", "rev-list", "--count", "--no-merges", f"{commit}..HEAD", "--", *HOT_PATH]
    counted = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return int(counted.stdout) if counted.returncode == 0 else None


def main():
    with open(os.path.join(LOAD, "RESULTS.md")) as file:
        commit = measured_commit(file.read())
    commits = commits_since(commit)
    if commits is None:
        print(f"The history of {commit}, which load/RESULTS.md measured, isn't here.")
    elif commits > COMMITS_MAX:
        sys.exit(f"{commits} commits have changed the hot path since {commit}, which load/RESULTS.md measured: more than "
                 f"{COMMITS_MAX}. Measure again: python3 load/bench")


if __name__ == "__main__":
    main()
