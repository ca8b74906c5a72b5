#!/usr/bin/env bash
# Tests the alerts and the dashboard with a real Prometheus: the rules' unit tests, a drill in which every alert fires on a
# running service and ends, and every query of the dashboard after a load. If Prometheus isn't installed, Debian's package is
# fetched and unpacked to ~/.cache/oncepay-prometheus, so that no daemon is started.
set -euo pipefail
cd "$(dirname "$0")/.."

promtool=$(python3 ops/drills/stack.py promtool)
"$promtool" check rules ops/alerts.yml
"$promtool" test rules ops/alerts.test.yml

# Builds the tests along, as the step before did: alone, the program's dependencies have fewer features and are built once more.
cargo build --locked --bin oncepay --test suite
python3 ops/drills/alerts.py --binary target/debug/oncepay
python3 ops/drills/dashboard.py --binary target/debug/oncepay --seconds 20
