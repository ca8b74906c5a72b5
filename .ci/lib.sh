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
