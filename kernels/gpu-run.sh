#!/usr/bin/env bash
# Runs on a machine with a GPU what needs one, from binaries that were built elsewhere: parity, the server, wide shapes,
# timings.
#
#   gpu-run.sh build FOLDER   builds the binaries and copies them, with this script, to FOLDER
#   FOLDER/gpu-run.sh OUT     runs them; OUT takes the logs and bench.json
#
# NVRTC and cuBLASLt come from the toolkit, or from the Python packages nvidia-cuda-nvrtc and nvidia-cublas.
set -euo pipefail

if [ "${1:-}" = build ]; then
    folder=$(mkdir -p "$2" && realpath "$2")
    cd "$(dirname "$0")/.."
    cargo test --release --package loraplex-kernels --test parity --test cuda --no-run
    cargo build --release --package loraplex-kernels --example gpu
    release=${CARGO_TARGET_DIR:-target}/release
    for test in parity cuda; do
        newest=$(find "$release/deps" -name "$test-*" -executable -type f -printf '%T@ %p\n' | sort -n | tail -n 1)
        strip -o "$folder/$test" "${newest#* }"
    done
    strip -o "$folder/gpu" "$release/examples/gpu"
    cargo build --release --package loraplex-server
    strip -o "$folder/server" "$release/server"
    rm -rf "$folder/demo"
    cp -r examples/demo "$folder/demo"
    cp kernels/gpu-run.sh tests/gpu.py "$folder"
    exit
fi

here=$(cd "$(dirname "$0")" && pwd)
out=$1
packages=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null || true)
libraries=$(find "$packages/nvidia" -maxdepth 3 -name lib -type d 2>/dev/null | paste -sd: || true)
export LD_LIBRARY_PATH=$libraries:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Each part has its own time limit, so that one that hangs does not cost the others.
part() {
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    echo "== $name: exit $status, $((SECONDS - start)) s"
    tail -n 40 "$out/$name.log"
}

# One test at a time: what one backend does at its start would end a recording of another's in the same process.
part parity 150 "$here/parity" --skip naive --skip by_a_bit --test-threads 1
part server 120 python3 "$here/gpu.py" "$here/server" "$here/demo" "$out/server.json"
part wide 100 "$here/cuda" --ignored
part bench 150 "$here/gpu" bench "$out/bench.json"
