#!/usr/bin/env bash
# Usage: postgres-image.sh IMAGE:TAG
#
# Makes a Postgres image under that name on the Docker engine that DOCKER_HOST
# names, unless it is there already. It takes Debian packages from the mirror
# this machine already uses and asks no image registry, so the tests also run
# where only package mirrors can be reached.
set -euo pipefail

die() {
    printf 'postgres-image: %s\n' "$*" >&2
    exit 1
}

# debootstrap and chroot live in sbin, which a plain user's PATH often lacks.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
suite=bookworm
label=oncepay.ci.recipe
self=$(realpath -- "${BASH_SOURCE[0]}")

entrypoint() {
    cat <<'ENTRYPOINT'
#!/usr/bin/env bash
# The part of the official postgres image's entrypoint that testcontainers uses.
set -euo pipefail

die() {
    printf 'entrypoint: %s\n' "$*" >&2
    exit 1
}

if [ $# -eq 0 ] || [ "${1:0:1}" = - ]; then
    set -- postgres "$@"
fi
[ "$1" = postgres ] || exec "$@"

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA"
    chown postgres:postgres "$PGDATA"
    chmod 700 "$PGDATA"
    # The server refuses to run as root; exec all the way so that it ends up as
    # process 1 and gets the engine's signals itself.
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

if [ -s "$PGDATA/PG_VERSION" ]; then
    # Clients wait for the line on stdout here as well as on stderr, see below.
    echo 'data from an earlier start, no set-up; soon: database system is ready to accept connections'
    exec "$@"
fi

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
password=${POSTGRES_PASSWORD:-}
if [ -z "$password" ] && [ "$method" != trust ]; then
    die 'POSTGRES_PASSWORD is empty, so nobody could log in; set it, or set POSTGRES_HOST_AUTH_METHOD=trust.'
fi

# No fsync while setting up: a container that dies in here is thrown away.
arguments=(--username="$user" --encoding=UTF8 --locale=C.UTF-8 --no-sync
    --auth-local=trust --auth-host="$method")
if [ -n "$password" ]; then
    initdb "${arguments[@]}" --pwfile=<(printf '%s\n' "$password")
else
    initdb "${arguments[@]}"
fi
printf 'host all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
printf "listen_addresses = '*'\n" >>"$PGDATA/postgresql.conf"

# A temporary server makes the database. It listens on no network, and its log
# goes to stdout only. So 'ready to accept connections' shows up on stdout here,
# and on stderr only once the real server is up: a client that waits for both
# lines never connects too early.
pg_ctl -w -o "-c listen_addresses='' -c fsync=off" start 2>&1
run_sql() {
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="$user" "$@"
}
if [ "$database" != postgres ]; then
    run_sql --dbname=postgres --set=name="$database" <<<'CREATE DATABASE :"name";'
fi
for file in /docker-entrypoint-initdb.d/*; do
    case $file in
        *.sql) run_sql --dbname="$database" --file="$file" ;;
        */\*) ;;
        *) die "$file is not an .sql file, and this image runs no other kind." ;;
    esac
done
pg_ctl -w -m fast stop 2>&1

exec "$@"
ENTRYPOINT
}

# Runs inside private namespaces, see below. Its working folder is a tmpfs that
# only this process tree can see: nothing to clean up however it ends, no fsync
# to wait for, and no trouble with a /tmp mounted nodev.
build() {
    local image=$1 mirror=$2 recipe=$3 work=/mnt root=/mnt/root id bin container
    mount -t tmpfs -o mode=755,size=2g tmpfs "$work" ||
        die 'cannot mount a tmpfs to build in.'
    mkdir -p "$root/usr/sbin" "$root/etc/postgresql-common"

    # Both must be there before the packages are set up: no service starts, and
    # no default cluster is made that the image would only carry around.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"

    # One pass instead of an apt-get in a chroot: the download then uses only the
    # host's own tools and proxy settings.
    if ! LC_ALL=C DEBIAN_FRONTEND=noninteractive debootstrap --variant=minbase \
        --include=postgresql "$suite" "$root" "$mirror" >"$work/log" 2>&1; then
        tail -n 20 "$work/log" "$root/debootstrap/debootstrap.log" >&2 || true
        die "debootstrap could not install $suite with postgresql; its last lines are above."
    fi

    entrypoint >"$root/usr/local/bin/docker-entrypoint.sh"
    chmod 755 "$root/usr/local/bin/docker-entrypoint.sh"
    chroot "$root" install -d -o postgres -g postgres -m 2775 /run/postgresql
    chroot "$root" install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data
    mkdir -p "$root/docker-entrypoint-initdb.d"
    bin=$(cd "$root" && echo usr/lib/postgresql/*/bin)
    [ -x "$root/$bin/postgres" ] || die "the packages brought no postgres server ($bin)."

    # Imported without a name and named only when tar has succeeded too, so a
    # half-written image never carries the name.
    id=$(
        tar -C "$root" --numeric-owner \
            --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
            --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
            --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' -c . |
            docker import \
                --change "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/$bin" \
                --change 'ENV PGDATA=/var/lib/postgresql/data' \
                --change 'ENV LANG=C.UTF-8' \
                --change 'VOLUME /var/lib/postgresql/data' \
                --change 'EXPOSE 5432' \
                --change 'ENTRYPOINT ["docker-entrypoint.sh"]' \
                --change 'CMD ["postgres"]' \
                --change "LABEL $label=$recipe" -
    ) || die 'docker import failed.'
    # Import knows no stop signal, but a container passes its own on. With the
    # default one the server would wait for its clients to leave before it stops.
    if ! { container=$(docker create --stop-signal SIGINT "$id") &&
        docker commit "$container" "$image" && docker rm -v "$container"; } >"$work/log" 2>&1; then
        tail -n 20 "$work/log" >&2
        die "could not name the image $image; the engine's answer is above."
    fi
}

if [ "${1:-}" = --build ]; then
    shift
    build "$@"
    exit
fi

[ $# -eq 1 ] || die 'usage: postgres-image.sh IMAGE:TAG'
image=$1
[ -n "${DOCKER_HOST:-}" ] || die 'DOCKER_HOST must name the Docker engine that gets the image.'
docker version >/dev/null || die "no Docker engine answers at $DOCKER_HOST."

# An image of ours made by another version of this script is made anew; one that
# somebody else put there under this name is left alone and used.
recipe=$(sha256sum <"$self" | cut -d ' ' -f 1)
if present=$(docker image inspect --format "x{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null); then
    case $present in
        x | "x<no value>" | "x$recipe") exit 0 ;;
    esac
fi

[ "$(id -u)" = 0 ] || die 'making the image needs root.'
for tool in debootstrap unshare setpriv; do
    command -v "$tool" >/dev/null || die "$tool is not installed."
done
# Without the keyring debootstrap would go on unverified, or to another mirror.
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ||
    die 'the package debian-archive-keyring is not installed.'

# apt knows where this machine gets Debian from, in whichever format its sources
# are written; the suite's own mirror first, else that of another release.
find_mirror() {
    apt-get indextargets --format '$(CODENAME) $(REPO_URI)' \
        'Created-By: Packages' 'Origin: Debian' |
        awk -v suite="$suite" '
            $1 == suite && !exact { exact = $2 }
            $1 !~ /-/ && !other { other = $2 }
            END { print exact ? exact : other }'
}
mirror=$(find_mirror)
if [ -z "$mirror" ]; then
    # apt names only the sources whose lists it has.
    apt-get update -qq || die 'apt-get update failed.'
    mirror=$(find_mirror)
fi
[ -n "$mirror" ] || die 'apt on this machine has no Debian mirror configured.'

printf 'postgres-image: making %s (once per machine)\n' "$image" >&2
# The namespaces and the death signal tie everything that the build starts or
# mounts to this process, even if it is killed half-way.
setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc \
    bash "$self" --build "$image" "$mirror" "$recipe" ||
    die "could not make $image."
printf 'postgres-image: %s made in %s s\n' "$image" "$SECONDS" >&2
