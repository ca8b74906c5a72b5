#!/usr/bin/env bash
# Runs the checks that compile the program once more, in a copy of the tree with a target folder of its own: the commands of
# AGENTS.md, the feature `otlp`, and an operation more. Compiles only while the machine has nothing else to do, so that it can
# run beside checks that mostly wait. The few tests in it run like any others.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib.sh
. .ci/lib.sh

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/builds
mkdir -p "$CARGO_TARGET_DIR"
# AGENTS.md is checked for commands that change files, which takes a repository.
git clone --quiet --shared --no-checkout . "$copy"
git ls-files -z | xargs -0 cp --parents -t "$copy"
cd "$copy"
git add --all

idle cargo build --locked --quiet
idle cargo test --locked --quiet --no-run
.ci/agents.sh

idle cargo build --locked --quiet --features otlp
.ci/otlp.sh

ONCEPAY_CI_IDLE=1 .ci/add-operation.sh
