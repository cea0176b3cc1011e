#!/usr/bin/env bash
# Serves adapters of a bucket of moto's. Usage: s3.sh SERVER_BINARY, with the plugins in the folder deps beside it
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
venv=$root/target/clients

if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"
# Where cargo puts a plugin that a suite depends on.
"$venv/bin/python" "$here/s3_bucket.py" "$1" "$(dirname "$1")/deps" "$root/examples/demo"
