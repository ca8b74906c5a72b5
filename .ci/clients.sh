#!/usr/bin/env bash
# Usage: clients.sh [ONCEPAY]
#
# Checks the clients of clients/: that their types are those of openapi/openapi.json, that they compile strictly, that they
# obey what the service answers, and that each of them makes 1,000 charges once while a third of the answers is lost and it's
# killed 20 times. ONCEPAY is the built service; by default it's built.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib.sh
. .ci/lib.sh

# In memory if there's room: some disks take half a minute to delete so many new files.
folder=/dev/shm
[ "$(df --output=avail -BM $folder 2>/dev/null | tr -dc 0-9)" -gt 2000 ] 2>/dev/null || folder=${TMPDIR:-/tmp}
work=$(mktemp -d -p "$folder")
trap 'kill -INT $(jobs -p) 2>/dev/null; wait; rm -rf "$work"' EXIT

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y nodejs npm >/dev/null
fi
python3 -m venv "$work/venv" 2>/dev/null ||
    { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null && python3 -m venv "$work/venv"; }

# Compiles the one client while the others' tools are fetched.
rust() {
    cargo fmt --check --manifest-path clients/rust/Cargo.toml
    CARGO_PROFILE_DEV_DEBUG=0 cargo clippy --quiet --locked --no-default-features --all-targets \
        --manifest-path clients/rust/Cargo.toml --target-dir target/clients -- -D warnings
    CARGO_PROFILE_DEV_DEBUG=0 cargo build --quiet --locked --no-default-features --examples \
        --manifest-path clients/rust/Cargo.toml --target-dir target/clients
}
rust >"$work/rust.log" 2>&1 &
rust=$!

# The others are built in a copy, where nothing is left behind.
tar -c --exclude node_modules --exclude dist openapi clients rustfmt.toml | tar -x -C "$work"
"$work/venv/bin/pip" install -q -r clients/python/requirements-dev.txt
"$work/venv/bin/python" "$work/clients/generate.py"
for generated in python/oncepay_client/types.py python/oncepay_client/operations.py rust/src/api.rs; do
    diff "clients/$generated" "$work/clients/$generated" ||
        { echo "$generated isn't what clients/generate.py writes." >&2; exit 1; }
done
(cd "$work/clients/python" && ../../venv/bin/mypy)
(cd "$work/clients/typescript" && npm ci --silent && npx tsc)
wait $rust || { cat "$work/rust.log"; exit 1; }

oncepay=${1-}
if [ -z "$oncepay" ]; then
    # As in load.sh, so nothing is built twice.
    cargo build --locked --bin oncepay --test suite
    oncepay=target/debug/oncepay
fi
start_dev "$work" "$oncepay" --processor http

python3 .ci/clients.py "$work" "$oncepay"
