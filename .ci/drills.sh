#!/usr/bin/env bash
# Usage: drills.sh [DRILL...]
#
# Plays procedures of ops/ under load, by default all: a deploy with a change of the schema and the way back, the staged rollout
# of idempotency keys, and the restore of a lost database. The release before is this one: building another takes too long here.
set -euo pipefail
cd "$(dirname "$0")/.."

# HAProxy is in sbin, which a plain user's PATH often lacks.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
if ! command -v haproxy >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y haproxy >/dev/null
fi

# With the tests, as other steps do: alone, the program's dependencies have fewer features and are built once more.
cargo build --locked --bin oncepay --test suite
[ $# -gt 0 ] || set -- deploy policies restore
for drill; do
    printf '\n%s\n' "$drill"
    python3 "ops/drills/$drill.py" --binary target/debug/oncepay
done
