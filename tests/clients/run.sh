#!/usr/bin/env bash
# Runs the clients that nobody here wrote against the demo server. Usage: run.sh SERVER_BINARY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
server=$1
venv=$here/../../target/clients
port=${PORT:-18431}

if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"

# TRL without what it trains with.
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps trl==1.16.0

ALLOW_RUNTIME_LORA_UPDATING=1 "$server" demo --port "$port" &
pid=$!
trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true' EXIT
for _ in $(seq 300); do
    kill -0 "$pid"
    if curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; then break; fi
    sleep 0.1
done
"$venv/bin/python" "$here/openai_client.py" "http://127.0.0.1:$port" demo poet
"$venv/bin/python" "$here/renderers_client.py" "http://127.0.0.1:$port" demo poet pirate
adapters=$(cd "$here/../../examples/demo/adapters" && pwd)
"$venv/bin/python" "$here/trl_client.py" "http://127.0.0.1:$port" "$adapters"/{poet,pirate,shout}
