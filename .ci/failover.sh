#!/usr/bin/env bash
# Kills the leader of a Patroni cluster under load, twice. The table in tests/FAULTS.md is made with ten times.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
command -v patroni >/dev/null || missing+=(patroni)
command -v etcd >/dev/null || missing+=(etcd-server)
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi

# Builds the tests along, as the steps before did: alone, the program's dependencies have fewer features and are built
# once more.
cargo build --locked --bin oncepay --test suite
python3 ops/drills/failover.py --binary target/debug/oncepay --kills 2
