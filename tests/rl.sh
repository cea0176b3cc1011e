#!/usr/bin/env bash
# A small budget of the RL example against the demo server: the reward must rise. Usage: rl.sh SERVER_BINARY
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
server=$1
venv=$root/target/rl
port=${PORT:-18432}

if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6

RUST_LOG=warn ALLOW_RUNTIME_LORA_UPDATING=1 "$server" demo --port "$port" &
pid=$!
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true' EXIT
for _ in $(seq 300); do
    kill -0 "$pid"
    if curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; then break; fi
    sleep 0.1
done
"$venv/bin/python" "$root/examples/rl/evolve.py" --url "http://127.0.0.1:$port" --updates 6 --require 0.2 --curve "$root/target/rl/curve.svg"
