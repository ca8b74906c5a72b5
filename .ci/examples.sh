#!/usr/bin/env bash
# Usage: examples.sh [ONCEPAY]
#
# Runs the examples of the documentation against two development environments of their own: examples.py says which, and how a
# block is marked that can't run. First sees that planted mistakes are found. ONCEPAY is the built service; by default it's built.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib.sh
. .ci/lib.sh

work=$(mktemp -d)
trap 'kill -INT $(jobs -p) 2>/dev/null; wait; rm -rf "$work"' EXIT

# What the pages tell readers to have, beside Postgres and the toolchain.
declare -A packages=([curl]=curl [jq]=jq [npm]=npm [openssl]=openssl [psql]=postgresql-client [uuidgen]=uuid-runtime)
missing=()
for tool in "${!packages[@]}"; do
    command -v "$tool" >/dev/null || missing+=("${packages[$tool]}")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
python3 -m venv "$work/python" 2>/dev/null ||
    { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null && python3 -m venv "$work/python"; }
"$work/python/bin/pip" install -q --no-deps -r .ci/examples-requirements.txt

oncepay=${1-}
if [ -z "$oncepay" ]; then
    # As in load.sh, so nothing is built twice.
    cargo build --locked --bin oncepay --test suite
    oncepay=target/debug/oncepay
fi
mkdir "$work/sandbox" "$work/http"
start_dev "$work/sandbox" "$oncepay"
start_dev "$work/http" "$oncepay" --processor http

"$work/python/bin/python" .ci/test_examples.py "$work" "$oncepay"
"$work/python/bin/python" .ci/examples.py "$work" "$oncepay"
