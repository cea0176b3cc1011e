#!/usr/bin/env bash
# A small budget of the RL example against the demo server: the reward must rise. Usage: rl.sh SERVER_BINARY
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/tests/clients/common.sh"
server=$1
venv=$root/target/rl
port=${PORT:-18432}

environment "$venv" numpy==2.4.6

RUST_LOG=warn serve_demo "$server" "$port"
"$venv/bin/python" "$root/examples/rl/evolve.py" --url "http://127.0.0.1:$port" --updates 6 --require 0.2 --curve "$root/target/rl/curve.svg"
