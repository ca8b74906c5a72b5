#!/usr/bin/env bash
# Tests webhooks both ways with other people's code: the Python and Node libraries of Standard Webhooks sign messages to
# us, and verify ours, in the receivers of examples/.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib.sh
. .ci/lib.sh

work=$(mktemp -d)
trap 'kill -INT $(jobs -p) 2>/dev/null; wait; rm -rf "$work"' EXIT

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y nodejs npm >/dev/null
fi
python3 -m venv "$work/python" 2>/dev/null ||
    { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null && python3 -m venv "$work/python"; }
"$work/python/bin/pip" install -q -r examples/receivers/requirements.txt
cp examples/receivers/*.{ts,json} "$work/"
(cd "$work" && npm ci --silent && npx tsc -p .)

# As in load.sh, so nothing is built twice.
cargo build --locked --bin oncepay --test suite
export ONCEPAY_DATA_DIR=$work/dev
start_dev "$work" target/debug/oncepay

"$work/python/bin/python" .ci/webhooks.py "$work"
