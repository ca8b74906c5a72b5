#!/usr/bin/env bash
# Runs the commands of AGENTS.md, so that they stay true: every line of the blocks that are fenced with ```sh check.
# Those that .ci/run has as steps of its own are left out. Run it after the other checks, when everything is compiled; it needs
# the same tools as `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    printf 'AGENTS.md: %s\n' "$*" >&2
    exit 1
}

lines=$(wc -l <AGENTS.md)
[ "$lines" -le 60 ] || die "has $lines lines; keep it to 60."

while read -r path; do
    [ -e "$path" ] || die "names $path, which does not exist."
done < <(grep -oE '`[a-zA-Z0-9_./-]+`' AGENTS.md | tr -d '`' | grep -E '/|\.(md|rs)$' | sort -u)

commands=$(awk '/^```/ { checked = $0 == "```sh check"; next } checked && NF && !/^#/' AGENTS.md)
[ -n "$commands" ] || die 'has no block that is marked ```sh check.'

tree() { git status --porcelain && git diff; }
before=$(tree)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while read -r command; do
    if sed 's/^ *\(step \)\?//' .ci/run | grep -qxF "$command"; then
        continue
    fi
    printf '\n$ %s\n' "$command"
    status=0
    bash -euo pipefail -c "$command" </dev/null >"$log" 2>&1 || status=$?
    if [ "$status" != 0 ]; then
        cat "$log"
        die "this command fails (status $status): $command"
    fi
    # Cargo passes even if a name matches no test.
    [[ $command != 'cargo test'* ]] || grep -qE ' [1-9][0-9]* passed' "$log" || die "this command runs no test: $command"
done <<<"$commands"

[ "$(tree)" = "$before" ] || die 'a command has changed files that are checked in: is openapi/openapi.json current?'
printf '\nThe commands of AGENTS.md work, %s of them.\n' "$(wc -l <<<"$commands")"
