#!/usr/bin/env bash
# Adds an operation to a copy of the tree, as CONTRIBUTING.md describes, builds the copy, and runs the tests that know
# of operations. With --forget, also leaves out each of the patch's files in turn, and expects a failure each time. With
# --in-place, works in this tree, which must be clean and is restored: what is compiled already is compiled faster.
#
# The copy is built into this tree's target folder, to use the compiled dependencies. The next `cargo build` restores
# the program.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
patch=$root/docs/adding-an-operation/charge_notes.patch
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}

if [ "${1:-}" = --in-place ]; then
    if [ -n "$(git status --porcelain)" ]; then
        echo 'There are uncommitted changes.' >&2
        exit 1
    fi
    trap 'cd "$root" && git checkout -q -- . && git clean -qfd' EXIT
    copy=$root
else
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    git ls-files -z | xargs -0 cp --parents -t "$copy"
    cd "$copy"
fi
git apply "$patch"
document() {
    # With the tests: alone, the program's dependencies have fewer features, and all of it is compiled once more.
    cargo build --locked --quiet --bin oncepay --test suite
    "$CARGO_TARGET_DIR/debug/oncepay" openapi >"$copy/openapi.json" && mv "$copy/openapi.json" openapi/openapi.json
}
document

tests() {
    cargo test --locked --quiet --test suite -- openapi:: schema:: architecture:: migrations:: \
        crashes::no_operation_is_left_out_of_that api::charge_notes::
}

# CONTRIBUTING.md must list every file that the patch touches.
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

# Each round starts from a fresh copy of the patched tree, so that the files left out before are there again. Their
# times are new, so cargo notices them.
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
        # The author of an operation tests its behavior.
        tests/api/*) ;;
        *) forget "$pattern" ;;
    esac
done
