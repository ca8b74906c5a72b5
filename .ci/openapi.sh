#!/usr/bin/env bash
# Usage: openapi.sh [EXAMPLES]
#
# Checks openapi/openapi.json: by the rules of Redocly and of Spectral; that it breaks no client of the last release, whose document is
# openapi/released.json; and, with Schemathesis, that the service takes and refuses what the schemas say, and answers as they
# say. EXAMPLES is the number of examples for each operation. A run with it draws other requests each time, prints its seed, and is
# repeated with ONCEPAY_OPENAPI_SEED=…; one without takes 20 examples, always the same, so that a change is judged by what it changes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib.sh
. .ci/lib.sh

examples=${1-20}
seed=${ONCEPAY_OPENAPI_SEED-${1:+$RANDOM}}
work=$(mktemp -d)
trap 'kill -INT $(jobs -p) 2>/dev/null; wait; rm -rf "$work"' EXIT

step python3 .ci/openapi_compat_test.py
step python3 .ci/openapi_compat.py openapi/released.json openapi/openapi.json

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y nodejs npm >/dev/null
fi
cp openapi/{package,package-lock,openapi}.json openapi/redocly.yaml openapi/.spectral.yaml "$work/"
(cd "$work" && npm ci --silent)
# Redocly needs a newer Node than Debian 12 has.
node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20)' || (cd "$work" && npm install --silent --no-save node@22)
export REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true
(cd "$work" && step npx redocly lint --format=stylish openapi.json && step npx spectral lint --fail-severity=warn openapi.json)

python3 -m venv "$work/venv" 2>/dev/null ||
    { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null && python3 -m venv "$work/venv"; }
"$work/venv/bin/pip" install -q -r .ci/openapi-requirements.txt
# As in load.sh, so nothing is built twice.
cargo build --locked --bin oncepay --test suite
start_dev "$work" target/debug/oncepay
set -a
# shellcheck disable=SC1091 # The settings of the development environment.
. "$work/dev/dev.env"
set +a
cp .ci/openapi_calls.py openapi/schemathesis.toml "$work/"
cd "$work"
SCHEMATHESIS_HOOKS=openapi_calls PYTHONPATH=. step venv/bin/st --config-file schemathesis.toml run openapi.json \
    --url "$ONCEPAY_URL" --checks all --max-examples "$examples" --seed "${seed:-1}" --continue-on-failure --warnings off
