#!/usr/bin/env bash
# Usage: lint.sh [--insist]
#
# Runs the checks that compile nothing, in seconds: every dependency is used, and is one that we may and want to ship
# (deny.toml); the spelling (_typos.toml); and no migration holds up the service (.squawk.toml). It also runs the tests of
# the benchmark and of the drills, which need only Python, asks whether the benchmark's results are too old, and follows the
# links of the documentation. All of them run, even after one has failed.
#
# The tools are installed from PyPI into ~/.cache/oncepay-lint, at the versions of lint-requirements.txt. If the
# installation fails, the script says so and passes, since the tools aren't needed to work on the code. With --insist,
# as in .ci/run, it fails.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1-} in
    --insist) insist=yes ;;
    '') insist=no ;;
    *)
        echo 'usage: lint.sh [--insist]' >&2
        exit 2
        ;;
esac

# One folder for each set of versions, so that clones at different commits can share them.
requirements=.ci/lint-requirements.txt
version=$(sha256sum $requirements | cut -c1-12)
tools=${XDG_CACHE_HOME:-$HOME/.cache}/oncepay-lint/$version
# The folder gets its name when it's complete, so neither a stopped run nor two parallel ones leave a partial folder.
install_tools() {
    local fresh
    mkdir -p "${tools%/*}" && fresh=$(mktemp -d "$tools.XXXXXX") || return
    if { python3 -m venv "$fresh/pip" 2>/dev/null || {
        [ "$(id -u)" = 0 ] && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null &&
            python3 -m venv "$fresh/pip"
    }; } && "$fresh/pip/bin/pip" install -q --no-deps --target "$fresh/tools" -r $requirements; then
        mv -T "$fresh/tools" "$tools" 2>/dev/null || true
    fi
    rm -rf "$fresh"
    [ -d "$tools" ]
}

failed=()
gate() {
    local name=$1 start=${EPOCHREALTIME/./} status=0
    shift
    "$@" || status=$?
    printf 'lint: %-13s %-6s %5d ms\n' "$name" "$([ $status = 0 ] && echo ok || echo FAILED)" \
        $(((${EPOCHREALTIME/./} - start) / 1000))
    [ $status = 0 ] || failed+=("$name")
}

# Also finds dependencies of the program that only the tests use.
unused_dependencies() {
    local report
    report=$(cargo-shear --deny-warnings --locked 2>&1) || {
        echo "$report"
        return 1
    }
}

# Checks licenses, sources and banned crates. The crates for other platforms are checked, too, and may have to be
# fetched first. The check itself needs no network.
dependencies() {
    local report status=0
    cargo fetch --locked --quiet || return
    report=$(cargo-deny --offline check --hide-inclusion-graph licenses bans sources 2>&1) || status=$?
    if [ $status != 0 ]; then
        # Repeats the check without the warnings, which hide the errors.
        cargo-deny --offline --log-level error check licenses bans sources
        return $status
    fi
    # Reports duplicates without refusing them.
    sed -n "s/^warning.*: found \(.*\) duplicate entries for crate '\(.*\)'$/\2 (\1)/p" <<<"$report" | sort -u |
        paste -sd, | sed 's/,/, /g; s/^/lint: crates in more than one version: /'
}

spelling() { typos; }

migrations() { python3 .ci/squawk.py; }

# What measures and what drills must be able to fail, too.
scripts() {
    local folder report
    for folder in load/bench ops/drills; do
        report=$(python3 -W ignore::ResourceWarning -m unittest discover -s $folder 2>&1) || {
            echo "$report"
            return 1
        }
    done
}

gate scripts scripts
gate results python3 load/bench/age.py
gate links python3 .ci/links.py
if [ -d "$tools" ] || install_tools; then
    PATH=$tools/bin:$PATH
    gate dependencies dependencies
    gate unused unused_dependencies
    gate spelling spelling
    gate migrations migrations
    gate workflows env PYTHONPATH="$tools" python3 .ci/workflows.py
else
    echo 'lint: NOT RUN: dependencies, unused dependencies, spelling, migrations, workflows. Their tools could not be installed.' >&2
    [ $insist = no ] || exit 1
fi
if [ ${#failed[@]} != 0 ]; then
    echo "lint: failed: ${failed[*]}" >&2
    exit 1
fi
