#!/usr/bin/env bash
# Adds an operation to a copy of the tree, as CONTRIBUTING.md says how, builds the copy and runs what knows of operations. With
# --forget it also leaves out one of the patch's files after the other, and each time something must fail.
#
# The copy is built into this tree's target folder, for the dependencies that are there; the next `cargo build` puts the
# program back.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
patch=$root/docs/adding-an-operation/charge_notes.patch
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$copy"
cd "$copy"
git apply "$patch"
document() {
    cargo run --locked --quiet -- openapi >"$copy/openapi.json" && mv "$copy/openapi.json" openapi/openapi.json
}
document

tests() {
    cargo test --locked --quiet --test suite -- openapi:: schema:: architecture:: migrations:: \
        crashes::no_operation_is_left_out_of_that api::charge_notes::
}

# What CONTRIBUTING.md lists is what the patch touches.
listed=$(sed -n '/^## Add an operation/,/^## /p' CONTRIBUTING.md | awk -F'|' '/^\| `/ { print $2 }' | grep -o '`[^`]*`' | tr -d '`' |
    sed 's,/…_,/[0-9-]*_,')
for file in $(git apply --numstat "$patch" | cut -f3); do
    found=false
    for pattern in $listed; do
        if grep -qE "^$pattern" <<<"$file"; then found=true; fi
    done
    "$found" || { printf 'CONTRIBUTING.md does not list %s, which %s touches.\n' "$file" "$patch" >&2; exit 1; }
done

tests
[ "${1:-}" = --forget ] || exit 0

# A fresh copy of the patched tree each time, so that what was left out before is there again: with new times, by which cargo
# notices that.
whole=$(mktemp -d)
trap 'rm -rf "$copy" "$whole"' EXIT
cp -a . "$whole"
forget() {
    local said
    printf '\n== without %s\n' "$1"
    rm -rf "$copy"
    cp -R "$whole" "$copy"
    cd "$copy"
    for file in $(git apply --numstat "$patch" | cut -f3 | grep -E "^$1") $(grep -xE "$1" <<<openapi/openapi.json); do
        if [ -e "$root/$file" ]; then cp "$root/$file" "$file"; else rm "$file"; fi
    done
    if said=$(tests 2>&1); then
        printf 'Nothing fails without %s.\n' "$1" >&2
        exit 1
    fi
    grep -E '^error|has no route|is no operation|is stale|is never killed|in the database' <<<"$said" | head -4
}
for pattern in $listed; do
    case $pattern in
        # What an operation does is for its author to test.
        tests/api/*) ;;
        *) forget "$pattern" ;;
    esac
done
