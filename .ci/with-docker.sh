#!/usr/bin/env bash
# Usage: with-docker.sh COMMAND [ARGUMENT...]
#
# Runs COMMAND with a Docker engine of its own and a Postgres image on it, and
# returns COMMAND's exit status. COMMAND finds them in DOCKER_HOST and
# ONCEPAY_TEST_POSTGRES_IMAGE. Needs root on a Debian-like machine.
#
#   ONCEPAY_CI_CACHE             folder kept between runs (default /var/cache/oncepay-ci)
#   ONCEPAY_TEST_POSTGRES_IMAGE  the image's name (default postgres:15-oncepay-ci)
set -euo pipefail

die() {
    printf 'with-docker: %s\n' "$*" >&2
    exit 1
}

[ $# -gt 0 ] || die 'usage: with-docker.sh COMMAND [ARGUMENT...]'
[ "$(id -u)" = 0 ] || die 'starting a Docker engine needs root.'

# dockerd and ip live in sbin, which a plain user's PATH often lacks.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
here=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
cache=${ONCEPAY_CI_CACHE:-/var/cache/oncepay-ci}
export ONCEPAY_TEST_POSTGRES_IMAGE=${ONCEPAY_TEST_POSTGRES_IMAGE:-postgres:15-oncepay-ci}
bridge=oncepay-ci0
engine=''
job=''
run=''

# ---- Packages ---------------------------------------------------------------

install_missing() {
    local missing=() log="$run/apt.log"
    command -v dockerd >/dev/null || missing+=(docker.io)
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    command -v ip >/dev/null || missing+=(iproute2)
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
    [ ${#missing[@]} -gt 0 ] || return 0

    printf 'with-docker: installing %s\n' "${missing[*]}" >&2
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get update -qq &&
        apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 "${missing[@]}" &&
        # Newer Debian releases ship the client apart from the engine.
        { command -v docker || apt-get install -qq -y --no-install-recommends docker-cli; }; } \
        </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "apt-get could not install ${missing[*]}; its last lines are above."
    fi
}

# ---- The engine -------------------------------------------------------------

make_bridge() {
    # A bridge of our own, so that neither another engine on this machine nor
    # its firewall rules are touched; on a subnet that leads nowhere else yet.
    local n address=''
    drop_bridge
    for n in $(seq 213 254); do
        if ! ip -4 route show match "10.213.$n.1" | grep -qv '^default'; then
            address=10.213.$n.1/24
            break
        fi
    done
    [ -n "$address" ] || die 'found no free subnet for the test containers.'
    { ip link add "$bridge" type bridge && ip address add "$address" dev "$bridge" &&
        ip link set "$bridge" up; } || die "cannot make the network bridge $bridge."
}

drop_bridge() {
    if ip link show "$bridge" >/dev/null 2>&1; then
        ip link delete "$bridge" || true
    fi
}

# start_engine [EXTRA DOCKERD OPTION...] - fails if the engine does not answer.
start_engine() {
    # testcontainers uses 127.0.0.1, except where it thinks it is in a container
    # itself: there it uses the bridge's address, so ports must be open there too.
    local publish=127.0.0.1
    [ ! -e /.dockerenv ] || publish=0.0.0.0
    # dockerd goes on with the storage it finds, except with this one.
    [ ! -d "$cache/engine/vfs" ] || set -- --storage-driver vfs

    make_bridge
    # - Its own pid and mount namespace: when its first process ends, the kernel
    #   ends dockerd, containerd and every container, and no mount stays behind.
    # - It stops when its stdin, our fd 8, closes: so also if we are killed.
    # - It keeps fd 9, so the cache stays locked until it is really gone.
    # - No iptables and no forwarding: ports are published by docker-proxy alone,
    #   which works without firewall rights and leaves the machine's rules as is.
    # - cgroupfs, because systemd would not understand pids from our namespace.
    exec 8> >(exec setsid unshare --mount --pid --fork --kill-child --mount-proc sh -c '
        exec 3<&0
        dockerd "$@" </dev/null 3<&- &
        dockerd=$!
        { cat <&3 >/dev/null; kill -TERM "$dockerd"; } &
        wait "$dockerd"
    ' engine \
        --host "$DOCKER_HOST" --data-root "$cache/engine" --exec-root "$run/exec" \
        --pidfile "$run/dockerd.pid" --config-file "$run/daemon.json" \
        --bridge "$bridge" --ip "$publish" --iptables=false --ip-forward=false \
        --ip-masq=false --userland-proxy=true --exec-opt native.cgroupdriver=cgroupfs \
        --log-level warn --shutdown-timeout 5 "$@" >"$run/dockerd.log" 2>&1)
    engine=$!

    local deadline=$((SECONDS + 60))
    until timeout 10 docker version >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$engine" 2>/dev/null; then
            tail -n 30 "$run/dockerd.log" >&2
            printf 'with-docker: dockerd did not start; the end of its log is above.\n' >&2
            return 1
        fi
        sleep 0.2
    done
    empty_engine
}

# Throws away all containers, their volumes and unnamed images, but no image
# with a name: that is what the cache is for.
empty_engine() {
    local containers
    containers=$(timeout 30 docker ps -aq) || return 0
    # shellcheck disable=SC2086 # one id per word
    [ -z "$containers" ] || timeout 60 docker rm -f -v $containers >/dev/null || true
    timeout 30 docker volume prune -f >/dev/null || true
    timeout 30 docker image prune -f >/dev/null || true
}

stop_engine() {
    [ -n "$engine" ] || return 0
    exec 8>&-
    local deadline=$((SECONDS + 30))
    while kill -0 "$engine" 2>/dev/null; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            printf 'with-docker: dockerd did not stop in time and is killed.\n' >&2
            kill -KILL "$engine" || true
            break
        fi
        sleep 0.1
    done
    wait "$engine" 2>/dev/null || true
    engine=''
    drop_bridge
}

# Makes the image and shows that a container of it can run here.
prepare_image() {
    run_job "$here/postgres-image.sh" "$ONCEPAY_TEST_POSTGRES_IMAGE" || return 1
    local output
    if ! output=$(docker run --rm --entrypoint postgres "$ONCEPAY_TEST_POSTGRES_IMAGE" --version 2>&1); then
        tail -n 30 "$run/dockerd.log" >&2
        printf '%s\n' "$output" >&2
        printf 'with-docker: the engine cannot run a container; its log and its answer are above.\n' >&2
        return 1
    fi
}

# ---- Running and ending things ----------------------------------------------

# Runs a command so that a signal to us ends it and its children at once: bash
# handles signals only between foreground commands, so it waits for a job.
# Neither fd 8 nor fd 9 may get into it: a process it leaves behind would keep
# the engine alive and the cache locked. And if we are killed outright, it is
# told to end too.
run_job() {
    local status=0
    if [ -t 0 ]; then
        # At a terminal it must be in the foreground to read from it, and Ctrl-C
        # reaches it anyway.
        setpriv --pdeathsig TERM -- "$@" 8>&- 9>&- || status=$?
        return "$status"
    fi
    set -m
    setpriv --pdeathsig TERM -- "$@" <&0 8>&- 9>&- &
    job=$!
    set +m
    wait "$job" || status=$?
    end_job
    return "$status"
}

end_job() {
    [ -n "$job" ] || return 0
    local tries
    for tries in $(seq 50); do
        kill -TERM -- "-$job" 2>/dev/null || break
        sleep 0.1
        [ "$tries" -lt 50 ] || kill -KILL -- "-$job" 2>/dev/null || true
    done
    job=''
}

clean_up() {
    trap '' INT TERM HUP
    end_job
    if [ -n "$engine" ]; then
        empty_engine
        stop_engine
    fi
    [ -z "$run" ] || rm -rf --one-file-system -- "$run"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# ---- Main -------------------------------------------------------------------

# Not below the cache: a socket's path may have 107 characters at most.
run=$(mktemp -d "${TMPDIR:-/tmp}/oncepay-ci.XXXXXX")
echo '{}' >"$run/daemon.json" # so that the machine's own engine settings don't mix in
install_missing

mkdir -p "$cache" || die "cannot make the cache folder $cache."
# The kernel drops this lock with its last holder, so a dead run leaves none.
exec 9>"$cache/lock"
if ! flock -n 9; then
    printf 'with-docker: another run uses %s; waiting for it\n' "$cache" >&2
    flock -w 900 9 || die "another run still uses $cache after 15 minutes; give this one its own ONCEPAY_CI_CACHE."
fi

# Settings for somebody else's engine would make the client refuse this one.
unset DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_CONTEXT DOCKER_API_VERSION
export DOCKER_HOST="unix://$run/docker.sock"
# testcontainers' clean-up container would come from a registry; here the whole
# engine goes away instead.
export TESTCONTAINERS_RYUK_DISABLED=true

# A damaged cache must not fail the run: the second attempt starts from nothing.
# The third uses the plain storage, in case the file system can't hold the usual
# one.
started=no
for attempt in '' empty plain; do
    options=()
    if [ -n "$attempt" ]; then
        stop_engine
        rm -rf --one-file-system -- "$cache/engine"
        printf 'with-docker: trying again with %s storage\n' "$attempt" >&2
        [ "$attempt" = empty ] || options+=(--storage-driver vfs)
    fi
    if start_engine ${options[@]+"${options[@]}"} && prepare_image; then
        started=yes
        break
    fi
done
[ "$started" = yes ] || die 'could not get a Docker engine with the Postgres image.'

status=0
run_job "$@" || status=$?
exit "$status"
