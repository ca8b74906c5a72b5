"""Lints the migrations with squawk: whether one would hold up the service while it runs.

Only up.sql: down.sql loses what it takes away by its nature, and is run by hand.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

LANDED = "landed before there was a check, and landed migrations are never edited"
EMPTY = "nobody ran the service yet when it landed"

# Which rules a migration may break, and why. A new migration needs a reason that holds beside load. One that takes locks
# begins with SET LOCAL lock_timeout = '500ms'.
EXCEPTIONS = {
    "2026-11-24-000001_merchants": {"require-lock-timeout": LANDED},
    "2026-11-24-000002_charges": {"require-lock-timeout": LANDED},
    "2026-11-24-000003_idempotency_keys": {"require-lock-timeout": LANDED},
    "2026-11-24-000004_ledger": {"require-lock-timeout": LANDED},
    "2026-11-24-000005_events": {"require-lock-timeout": LANDED},
    "2026-11-24-000006_refunds": {"require-lock-timeout": LANDED},
    "2026-11-24-000007_payouts": {"require-lock-timeout": LANDED},
    "2026-11-24-000008_disputes": {"require-lock-timeout": LANDED},
    "2026-11-24-000009_idempotency_lifetime": {
        "require-lock-timeout": LANDED,
        "ban-drop-constraint": "each is replaced in the same statement by one that also knows tombstones",
        "constraint-missing-not-valid": EMPTY,
        "require-concurrent-index-creation": "says at its head how to create the indexes of a large table beforehand",
    },
    "2026-11-24-000010_idempotency_policies": {"require-lock-timeout": LANDED},
    "2026-11-25-000011_reconciliation": {"require-lock-timeout": LANDED},
    "2026-11-25-000012_webhook_endpoints": {"require-lock-timeout": LANDED},
    "2026-11-25-000013_acquirer_events": {
        "require-lock-timeout": LANDED,
        "ban-drop-constraint": "replaced in the same statement by one that also knows failed refunds",
        "constraint-missing-not-valid": EMPTY,
        "require-concurrent-index-creation": "disputes are few, and written by one worker",
    },
    "2026-11-25-000014_acquirer_differences": {"require-lock-timeout": LANDED},
    "2026-11-26-000015_uuid_v7_order": {"require-lock-timeout": LANDED},
    "2026-11-26-000017_acquirer_events_waiting": {
        "require-lock-timeout": LANDED,
        "require-concurrent-index-creation": "holds only events that wait, which are few",
        "require-concurrent-index-deletion": "holds only events that wait, which are few",
    },
    "2026-11-26-000018_webhook_endpoints_enabled_at": {
        "require-lock-timeout": LANDED,
        "require-concurrent-index-creation": "a merchant has a handful of endpoints, and changes them by hand",
    },
    "2026-11-27-000021_charges_canceled_by_processor": {
        "ban-drop-constraint": "replaced in the same statement by a weaker one, which no row breaks",
    },
    # The simulator's, which may stand still.
    "2026-11-25-000001_acquirer": {"require-lock-timeout": LANDED},
    "2026-11-25-000002_captures_later": {
        "require-lock-timeout": LANDED,
        "require-concurrent-index-creation": "only what is to be captured later, which is little",
    },
    "2026-11-27-000003_refunds_fail": {"require-concurrent-index-creation": "only refunds that came back, which are few"},
}

# Outside of a transaction a file holds one statement, or Postgres would make a transaction of them: no SET can come before it.
# And after a build that was interrupted IF NOT EXISTS would take the invalid index for a good one.
OUTSIDE_A_TRANSACTION = {"require-lock-timeout", "prefer-robust-stmts"}


# Squawk takes the exclusions of its command line instead of those of its settings.
EVERYWHERE = set(tomllib.loads(Path(".squawk.toml").read_text())["excluded_rules"])


def check(up, excluded, *options):
    excluded = EVERYWHERE | excluded
    metadata = up.with_name("metadata.toml")
    if metadata.exists() and "run_in_transaction = false" in metadata.read_text():
        excluded |= OUTSIDE_A_TRANSACTION
        options += ("--no-assume-in-transaction",)
    command = ["squawk", *options, "--exclude", ",".join(sorted(excluded)), up]
    return subprocess.run(command, capture_output=True, text=True)


def rules_broken(up):
    answer = check(up, set(), "--reporter=json")
    try:
        return {violation["rule_name"] for violation in json.loads(answer.stdout)}
    except ValueError:
        sys.exit(f"squawk can't read {up}:\n{answer.stdout}{answer.stderr}")


# `oncepay migrate` finds by this name what an interrupted build has left.
def wrong_name(up):
    built = re.search(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\w+)", up.read_text())
    if built and built[1] != up.parent.name.split("_", 1)[1]:
        return f"{up} builds the index {built[1]}: give the migration that name."


migrations = sorted([*Path("migrations").glob("*/up.sql"), *Path("src").glob("*/migrations/*/up.sql")])
if not migrations:
    sys.exit("squawk: found no migrations.")
complaints = []
for up in migrations:
    if complaint := wrong_name(up):
        complaints.append(complaint)
    broken, allowed = rules_broken(up), set(EXCEPTIONS.get(up.parent.name, {}))
    if broken - allowed:
        # It colors and links what it says, wherever that goes.
        print(re.sub(r"\x1b\]8;;.*?\x1b\\|\x1b\[[\d;]*m", "", check(up, allowed).stdout))
        complaints.append(f"{up} breaks {', '.join(sorted(broken - allowed))}.")
    for rule in sorted(allowed - broken):
        complaints.append(f"{up} doesn't break {rule}: take the exception out of .ci/squawk.py.")
for name in sorted(EXCEPTIONS.keys() - {up.parent.name for up in migrations}):
    complaints.append(f"There is no migration {name}: take its exceptions out of .ci/squawk.py.")
sys.exit("\n".join(complaints) or None)
