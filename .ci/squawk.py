"""Lints the migrations: whether one would hold up the service while it runs.

Squawk knows most forms that do, and HOLDS_UP the others. Before it looks at the migrations, the linter tries itself: it must
refuse each of BAD_FORMS, and take each of GOOD_FORMS.

Only up.sql: down.sql loses what it takes away by its nature, and is run by hand.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

LANDED = "landed before there was a check, and landed migrations are never edited"
BLOCKS = "landed. It blocks a filled table for as long as the table is read: see migrations/README.md for the form to use instead"

# The last migration that is held to squawk's rules alone, with exceptions for whatever has landed.
LAST_LANDED = 30

# Which rules a later migration may break, if it says here why that holds beside load. There is another form for what breaks
# one of the other rules.
EXCUSABLE = {"ban-drop-constraint"}

# Which rules a migration breaks, and why it may.
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
        "constraint-missing-not-valid": BLOCKS,
        "require-concurrent-index-creation": BLOCKS,
    },
    "2026-11-24-000010_idempotency_policies": {"require-lock-timeout": LANDED},
    "2026-11-25-000011_reconciliation": {"require-lock-timeout": LANDED},
    "2026-11-25-000012_webhook_endpoints": {"require-lock-timeout": LANDED},
    "2026-11-25-000013_acquirer_events": {
        "require-lock-timeout": LANDED,
        "ban-drop-constraint": "replaced in the same statement by one that also knows failed refunds",
        "constraint-missing-not-valid": BLOCKS,
        "require-concurrent-index-creation": BLOCKS,
    },
    "2026-11-25-000014_acquirer_differences": {"require-lock-timeout": LANDED},
    "2026-11-26-000015_uuid_v7_order": {"require-lock-timeout": LANDED},
    "2026-11-26-000017_acquirer_events_waiting": {
        "require-lock-timeout": LANDED,
        "require-concurrent-index-creation": BLOCKS,
        "require-concurrent-index-deletion": BLOCKS,
    },
    "2026-11-26-000018_webhook_endpoints_enabled_at": {
        "require-lock-timeout": LANDED,
        "require-concurrent-index-creation": BLOCKS,
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


# A statement that locks a table against writes, or against everything.
LOCKS = r"^(ALTER TABLE|CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)|CREATE (CONSTRAINT )?TRIGGER|DROP (TABLE|TRIGGER|INDEX (?!CONCURRENTLY)))"


def statements(sql):
    """The statements of a migration in upper case, without comments, bodies of functions, and texts other than durations."""
    parts = r"--[^\n]*|/\*.*?\*/|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|'(?:[^']|'')*'"
    kept = lambda part: part[0] if re.fullmatch(r"'\d+m?s'", part[0]) else " "
    sql = re.sub(parts, kept, sql, flags=re.S)
    return [" ".join(statement.split()).upper() for statement in sql.split(";") if statement.strip()]


def holds_up(sql):
    """What in a migration would hold up the service, beyond what squawk knows."""
    all_of_it = statements(sql)
    has = lambda form: any(re.search(form, statement) for statement in all_of_it)
    if any("LOCK_TIMEOUT" in statement and statement != "SET LOCAL LOCK_TIMEOUT = '500MS'" for statement in all_of_it):
        yield "sets another lock_timeout than 500ms: while it waits, every later statement on the table waits behind it"
    aside = r"^(SET LOCAL|COMMENT ON|ALTER TABLE (ONLY )?\S+( VALIDATE CONSTRAINT \w+,?)+$)"
    if has("VALIDATE CONSTRAINT") and not all(re.search(aside, statement) for statement in all_of_it):
        yield "validates a constraint beside other changes, whose locks last as long: give it a migration of its own"
    if has(r"^(WITH\b.*)?\b(UPDATE|DELETE FROM) \S+ ?(SET|WHERE|USING|AS)?") and has(LOCKS):
        yield "changes rows while it holds the lock of another statement: backfill after it, in batches"
    if has(r"^ALTER TABLE.* ADD (COLUMN )?(?!CONSTRAINT)\w+ [^,]*\bCHECK ?\("):
        yield "adds a column with a CHECK, for which every row is read under the lock: add the CHECK NOT VALID, validate it later"
    if has(r"^(LOCK|TRUNCATE|CLUSTER|VACUUM|REFRESH)\b"):
        yield "locks a whole table"
    if has(r"^DO\b"):
        yield "has a DO block, into which no linter looks: write statements"


SET = "SET LOCAL lock_timeout = '500ms';"
BAD_FORMS = [
    f"{SET} CREATE INDEX charges_by_note ON charges (note);",
    f"{SET} CREATE UNIQUE INDEX IF NOT EXISTS charges_by_note ON charges (merchant_id, note);",
    f"{SET} ALTER TABLE charges ADD COLUMN note text; CREATE INDEX charges_by_note ON charges (note) WHERE note IS NOT NULL;",
    f"{SET} DROP INDEX charges_by_note;",
    f"{SET} REINDEX TABLE charges;",
    f"{SET} ALTER TABLE charges ADD CONSTRAINT charges_note CHECK (note <> '');",
    f"{SET} ALTER TABLE charges DROP CONSTRAINT charges_note, ADD CONSTRAINT charges_note CHECK (note <> '');",
    f"{SET} ALTER TABLE charges ADD CONSTRAINT charges_note CHECK (note <> '') NOT VALID;"
    " ALTER TABLE charges VALIDATE CONSTRAINT charges_note;",
    f"{SET} ALTER TABLE charges ADD COLUMN note text; ALTER TABLE refunds VALIDATE CONSTRAINT refunds_note;",
    f"{SET} ALTER TABLE charges ADD CONSTRAINT charges_note FOREIGN KEY (merchant_id, note) REFERENCES notes (merchant_id, id);",
    f"{SET} ALTER TABLE charges ADD CONSTRAINT charges_note UNIQUE (merchant_id, note);",
    f"{SET} ALTER TABLE charges ADD PRIMARY KEY (merchant_id, note);",
    f"{SET} ALTER TABLE charges ADD CONSTRAINT charges_note EXCLUDE USING gist (note WITH &&);",
    f"{SET} ALTER TABLE charges ADD COLUMN note text CHECK (note <> '');",
    f"{SET} ALTER TABLE charges ADD COLUMN note text CONSTRAINT charges_note CHECK (note <> '');",
    f"{SET} ALTER TABLE charges ADD COLUMN note text UNIQUE;",
    f"{SET} ALTER TABLE charges ADD COLUMN note uuid REFERENCES notes (id);",
    f"{SET} ALTER TABLE charges ADD COLUMN noted_at timestamptz NOT NULL DEFAULT clock_timestamp();",
    f"{SET} ALTER TABLE charges ADD COLUMN length integer GENERATED ALWAYS AS (length(note)) STORED;",
    f"{SET} ALTER TABLE charges ALTER COLUMN note SET NOT NULL;",
    f"{SET} ALTER TABLE charges ALTER COLUMN note TYPE bytea USING note::bytea;",
    f"{SET} ALTER TABLE charges ADD COLUMN note text; UPDATE charges SET note = 'none';",
    f"{SET} CREATE TRIGGER charges_note BEFORE UPDATE ON charges FOR EACH ROW EXECUTE FUNCTION f();"
    " WITH old AS (SELECT 1) DELETE FROM charges USING old WHERE note = '';",
    "ALTER TABLE charges ADD COLUMN note text;",
    "SET LOCAL lock_timeout = '1s'; ALTER TABLE charges ADD COLUMN note text;",
    "SET lock_timeout = '500ms'; ALTER TABLE charges ADD COLUMN note text;",
    f"{SET} LOCK TABLE charges IN SHARE MODE;",
    f"{SET} TRUNCATE charges;",
    f"{SET} DO $$ BEGIN CREATE INDEX charges_by_note ON charges (note); END $$;",
]
GOOD_FORMS = [
    f"{SET} ALTER TABLE charges ADD COLUMN note text, ADD COLUMN is_noted boolean NOT NULL DEFAULT false;",
    f"{SET} ALTER TABLE charges ADD COLUMN note text, ADD CONSTRAINT charges_note CHECK (note <> '') NOT VALID;",
    f"{SET} ALTER TABLE charges VALIDATE CONSTRAINT charges_note; ALTER TABLE refunds VALIDATE CONSTRAINT refunds_note;",
    f"{SET} CREATE TABLE notes (id uuid PRIMARY KEY, note text NOT NULL, CONSTRAINT notes_note CHECK (note <> ''));"
    " CREATE INDEX notes_by_note ON notes (note);",
    # What a function will do when it's called isn't what the migration does.
    f"{SET} ALTER TABLE charges ADD COLUMN note text; CREATE OR REPLACE FUNCTION f() RETURNS void LANGUAGE sql AS"
    " $$ UPDATE charges SET note = 'TRUNCATE; DO'; $$; COMMENT ON FUNCTION f IS 'UPDATE charges SET it''s; LOCK';",
    f"{SET} ALTER TABLE charges ADD COLUMN note text; GRANT UPDATE (note) ON charges TO oncepay_app;",
    "UPDATE idempotency_policies SET ttl_seconds = 60 WHERE operation = 'x';",
]


def try_itself():
    with tempfile.TemporaryDirectory() as folder:
        for forms, is_bad in [(BAD_FORMS, True), (GOOD_FORMS, False)]:
            for number, form in enumerate(forms):
                up = Path(folder, f"{is_bad}{number}", "up.sql")
                up.parent.mkdir()
                up.write_text(form + "\n")
                found = [*rules_broken(up), *holds_up(form)]
                if bool(found) != is_bad:
                    yield f"The linter {'takes' if is_bad else 'refuses'} {form} {found or ''}"


# `oncepay migrate` finds by this name what an interrupted build has left.
def wrong_name(up):
    built = re.search(r"CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\w+)", up.read_text())
    if built and built[1] != up.parent.name.split("_", 1)[1]:
        return f"{up} builds the index {built[1]}: give the migration that name."


migrations = sorted([*Path("migrations").glob("*/up.sql"), *Path("src").glob("*/migrations/*/up.sql")])
if not migrations:
    sys.exit("squawk: found no migrations.")
complaints = list(try_itself())
for up in migrations:
    is_later = up.is_relative_to("migrations") and int(up.parent.name.split("_")[0].rsplit("-", 1)[1]) > LAST_LANDED
    if complaint := wrong_name(up):
        complaints.append(complaint)
    broken, allowed = rules_broken(up), set(EXCEPTIONS.get(up.parent.name, {}))
    if broken - allowed:
        # It colors and links what it says, wherever that goes.
        print(re.sub(r"\x1b\]8;;.*?\x1b\\|\x1b\[[\d;]*m", "", check(up, allowed).stdout))
        complaints.append(f"{up} breaks {', '.join(sorted(broken - allowed))}.")
    if is_later:
        complaints += [f"{up} {finding}." for finding in holds_up(up.read_text())]
        complaints += [f"{up} may not break {rule}: there is another form." for rule in sorted(allowed - EXCUSABLE)]
    for rule in sorted(allowed - broken):
        complaints.append(f"{up} doesn't break {rule}: take the exception out of .ci/squawk.py.")
for name in sorted(EXCEPTIONS.keys() - {up.parent.name for up in migrations}):
    complaints.append(f"There is no migration {name}: take its exceptions out of .ci/squawk.py.")
sys.exit("\n".join(complaints) or None)
