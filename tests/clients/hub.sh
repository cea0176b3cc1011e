#!/usr/bin/env bash
# Shares a cache folder with Python's huggingface_hub, in both directions. Usage: hub.sh SERVER_BINARY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"
root=$here/../..
venv=$root/target/clients

environment "$venv" --requirement "$here/requirements.txt"
cargo build --quiet --manifest-path "$root/Cargo.toml" --package loraplex-hub-client --example stub_hub
"$venv/bin/python" "$here/hub_cache.py" "$1" "$root/target/debug/examples/stub_hub" "$root/examples/demo/model"
