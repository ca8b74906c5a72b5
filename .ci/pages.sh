#!/usr/bin/env bash
# Usage: pages.sh [FOLDER | --pictures]
#
# Visits the pages of a development environment with Chromium, and presses what people press. With FOLDER, leaves screenshots there,
# in light and dark. With --pictures, takes those of docs/pictures anew.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib.sh
. .ci/lib.sh

work=$(mktemp -d)
trap 'kill -INT $(jobs -p) 2>/dev/null; wait; rm -rf "$work"' EXIT

missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v npm >/dev/null || missing+=(nodejs npm)
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
cp tests/pages/*.{mjs,json} "$work/"
(cd "$work" && npm ci --silent)

# As in load.sh, so nothing is built twice.
cargo build --locked --bin oncepay --test suite
start_dev "$work" target/debug/oncepay
url=$(sed -n 's/^ONCEPAY_URL=//p' "$work/dev/dev.env" | tr -d "'\"")
if [ $# -gt 0 ]; then
    [ "$1" = --pictures ] && SCREENSHOTS=$work/pictures || SCREENSHOTS=$1
    mkdir -p "$SCREENSHOTS"
    SCREENSHOTS=$(realpath "$SCREENSHOTS")
    export SCREENSHOTS
fi
(cd "$work" && node main.mjs "$url")
if [ "${1-}" = --pictures ]; then
    for picture in docs/pictures/*.png; do
        cp "$SCREENSHOTS/$(basename "$picture")" "$picture"
    done
fi
