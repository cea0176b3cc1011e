#!/usr/bin/env bash
# Runs the clients that nobody here wrote against the demo server. Usage: run.sh SERVER_BINARY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/common.sh"
server=$1
venv=$here/../../target/clients
port=${PORT:-18431}

environment "$venv" --requirement "$here/requirements.txt"

# TRL without what it trains with.
environment "$venv" --no-deps trl==1.16.0

serve_demo "$server" "$port"
"$venv/bin/python" "$here/openai_client.py" "http://127.0.0.1:$port" demo poet
"$venv/bin/python" "$here/renderers_client.py" "http://127.0.0.1:$port" demo poet pirate
adapters=$(cd "$here/../../examples/demo/adapters" && pwd)
"$venv/bin/python" "$here/trl_client.py" "http://127.0.0.1:$port" "$adapters"/{poet,pirate,shout}
