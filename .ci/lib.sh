# Functions that the checks share.

step() {
    printf '\n== %s (%ss so far)\n' "$*" "$SECONDS"
    "$@"
}

# some_tests FILTER... [-- ARGUMENT...]: runs the integration tests that the filters name. Unlike Cargo, fails if a
# filter matches no test any more.
some_tests() {
    local filter filters=() named
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        filters+=("$1")
        shift
    done
    [ $# -eq 0 ] || shift
    for filter in "${filters[@]}"; do
        named=$(cargo test --locked --quiet --test suite -- --list "$filter")
        if ! grep -q ': test$' <<<"$named"; then
            printf 'No test is called %s.\n' "$filter" >&2
            return 1
        fi
    done
    cargo test --locked --test suite -- "${filters[@]}" "$@"
}

# idle COMMAND...: runs a command while the machine has nothing else to do. The kernel shares the cores among sessions before
# it looks at priorities within one (sched(7), autogroup), so the session of this process gets the lowest of both: call it in a
# session of its own.
idle() {
    local status=0
    session_priority 19
    chrt --idle 0 "$@" || status=$?
    session_priority 0
    return "$status"
}
session_priority() {
    if [ -w /proc/self/autogroup ]; then
        echo "$1" >/proc/self/autogroup || true
    fi
}
