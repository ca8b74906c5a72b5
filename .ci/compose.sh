#!/usr/bin/env bash
# Checks the set of containers as far as possible without an engine, and without the ten minutes that building the
# image takes: Compose and HAProxy understand their files, mounted files exist, versions agree, and the sources sent
# to the image are enough to build it. As root, installs Compose and HAProxy if they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    printf 'compose: %s\n' "$*" >&2
    exit 1
}

# HAProxy is in sbin, which a plain user's PATH often lacks.
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
unset COMPOSE_FILE COMPOSE_PROFILES COMPOSE_ENV_FILES COMPOSE_PATH_SEPARATOR

missing=()
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing+=(docker-compose)
command -v haproxy >/dev/null || missing+=(haproxy)
if [ ${#missing[@]} -gt 0 ]; then
    { apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } \
        </dev/null >/dev/null || die "could not install ${missing[*]}."
fi
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
else
    compose=(docker-compose)
fi

# Checks the file without its profiles, too: nothing else may depend on their services.
"${compose[@]}" config -q || die 'docker-compose.yml is not valid.'
all=$("${compose[@]}" --profile load --profile observability config) ||
    die 'docker-compose.yml is not valid with its profiles.'
grep -q '^  k6:' <<<"$all" || die 'the profile load has no k6.'
grep -q '^  grafana:' <<<"$all" || die 'the profile observability has no grafana.'

# The engine would make an empty folder in place of a missing file, and go on.
mounted=$(grep -oE "$PWD/[^: ]+" <<<"$all" | sort -u)
[ -n "$mounted" ] || die 'found no file that is mounted.'
while read -r path; do
    [ -e "$path" ] || die "$path is mounted, but does not exist."
done <<<"$mounted"

# Debian's HAProxy may be older than the container's. That's fine as long as it understands the file.
checked=$(haproxy -c -f containers/haproxy.cfg 2>&1) || die "containers/haproxy.cfg is not valid.
$checked"

# A program linked against one Debian's libc may not start on another.
releases=$(sed -nE 's/^FROM (rust|debian):.*(bookworm|trixie|forky).*/\2/p' Dockerfile)
[[ $releases =~ ^([a-z]+)$'\n'([a-z]+)$ && ${BASH_REMATCH[1]} = "${BASH_REMATCH[2]}" ]] ||
    die "the image is built on another Debian than it runs on: ${releases//$'\n'/, }."

k6=$(sed -n 's/.*image: grafana\/k6:/==/p' docker-compose.yml)
grep -q "k6$k6\b" .ci/load.sh || die "the checks run the load scripts with another k6 than the container's, $k6."

# Builds the sources as the image gets them, so a file that is included from elsewhere is missing. Uses this build's
# folder and the tests' features, so that no dependency is compiled twice.
copied=$(sed -n 's/^COPY \([^-].*\) [^ ]*$/\1/p' Dockerfile | tr ' ' '\n' | sort)
sent=$(sed -n 's/^!//p' .dockerignore | sort)
[ "$copied" = "$sent" ] || die "the Dockerfile copies something else than .dockerignore lets through:
$(diff <(echo "$copied") <(echo "$sent") || true)"
target=${CARGO_TARGET_DIR:-$PWD/target}
sources=$target/image
rm -rf "$sources"
mkdir -p "$sources/tests"
while read -r path; do
    mkdir -p "$sources/$(dirname "$path")"
    cp -R "$path" "$sources/$path"
done <<<"$copied"
touch "$sources/tests/main.rs"
cargo check --locked --quiet --manifest-path "$sources/Cargo.toml" --target-dir "$target" --bin oncepay --test suite ||
    die 'the sources that the image gets are not enough to build it.'

echo "The set of containers is sound, says $("${compose[@]}" version --short)."
