#!/usr/bin/env bash
# Serves adapters of a bucket of moto's. Usage: s3.sh SERVER_BINARY, with the plugins in the folder deps beside it
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"
root=$here/../..
venv=$root/target/clients

environment "$venv" --requirement "$here/requirements.txt"
# Where cargo puts a plugin that a suite depends on.
"$venv/bin/python" "$here/s3_bucket.py" "$1" "$(dirname "$1")/deps" "$root/examples/demo"
