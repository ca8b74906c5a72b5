#!/usr/bin/env bash
# Builds the service with the feature `otlp`, and checks what a collector gets: one trace with both attempts at a charge
# whose first attempt was killed. The rest of the suite doesn't depend on the feature, so it isn't built again.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib.sh
. .ci/lib.sh

# Unoptimized, which takes less time to compile.
CARGO_PROFILE_DEV_OPT_LEVEL=0 cargo build --locked --features otlp --bin oncepay
binary=$(mktemp -d)/oncepay
trap 'rm -rf "${binary%/*}"' EXIT
cp "${CARGO_TARGET_DIR:-target}/debug/oncepay" "$binary"
ONCEPAY_TEST_OTLP_BINARY=$binary some_tests traces::a_collector
