# What the scripts share that run Python beside a server; they source it.

# Makes the virtual environment $1 unless it is there, and has pip install the other arguments into it.
environment() {
    local venv=$1
    shift
    if [ ! -x "$venv/bin/python" ]; then
        python3 -m venv "$venv"
    fi
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$@"
}

# Serves the demo by the binary $1 on the port $2 until the script ends; goes on when it is healthy.
serve_demo() {
    ALLOW_RUNTIME_LORA_UPDATING=1 "$1" demo --port "$2" &
    pid=$!
    trap 'kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null || true' EXIT
    # For as long as it lives: reading a model takes a busy machine its time.
    until curl --silent --fail --output /dev/null "http://127.0.0.1:$2/health"; do
        kill -0 "$pid"
        sleep 0.1
    done
}
