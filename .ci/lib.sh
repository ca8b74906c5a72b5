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

# start_dev FOLDER ONCEPAY [ARGUMENT...]: starts a development environment in the background, with its data in FOLDER/dev and
# its output in FOLDER/dev.log. Returns once it runs.
start_dev() {
    local folder=$1 oncepay=$2
    shift 2
    ONCEPAY_DATA_DIR=$folder/dev "$oncepay" dev --port 0 "$@" >"$folder/dev.log" 2>&1 &
    for _ in {1..600}; do
        if grep -qs 'Oncepay is running' "$folder/dev.log"; then
            return
        fi
        sleep 0.1
    done
    cat "$folder/dev.log"
    return 1
}
