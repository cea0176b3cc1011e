#!/usr/bin/env bash
# Runs on a machine with a GPU what needs one, from binaries that were built elsewhere: parity, the server, wide shapes,
# timings, and what NVIDIA's tools say.
#
#   gpu-run.sh build FOLDER          builds the binaries and copies them, with this script, to FOLDER
#   FOLDER/gpu-run.sh OUT [PART…]    runs them, or only the parts named; OUT takes the logs and the JSON of the benches
#
# The suites find their fixtures where they were built, so they run in a checkout at the same path.
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
    mkdir -p "$folder/suites"
    cargo test --package loraplex-tests --test e2e --test oracle --no-run
    debug=${CARGO_TARGET_DIR:-target}/debug
    for test in e2e oracle; do
        newest=$(find "$debug/deps" -name "$test-*" -executable -type f -printf '%T@ %p\n' | sort -n | tail -n 1)
        strip -o "$folder/suites/$test" "${newest#* }"
    done
    for plugin in filesystem hf_hub s3; do
        strip -o "$folder/suites/liblora_${plugin}_resolver.so" "$debug/deps/liblora_${plugin}_resolver.so"
    done
    cp kernels/gpu-run.sh tests/gpu.py tests/gpu_profile.py "$folder"
    exit
fi

here=$(cd "$(dirname "$0")" && pwd)
out=$1
parts=${*:2}
packages=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null || true)
libraries=$(find "$packages/nvidia" -maxdepth 3 -name lib -type d 2>/dev/null | paste -sd: || true)
export LD_LIBRARY_PATH=$libraries:/usr/local/cuda/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Each part has its own time limit, so that one that hangs does not cost the others.
part() {
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    [[ -z $parts || " $parts " == *" $name "* ]] || return 0
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    echo "== $name: exit $status, $((SECONDS - start)) s"
    tail -n 90 "$out/$name.log"
}

# Llama-3.1-8B in shape, with the demo's tokenizer and a text for every other token.
large=$(mktemp -d)
trap 'rm -rf "$large"' EXIT
cp "$here/demo/model/tokenizer_config.json" "$large"
python3 - "$here/demo/model/tokenizer.json" "$large/tokenizer.json" <<'PYTHON'
import json
import sys

with open(sys.argv[1]) as file:
    tokenizer = json.load(file)
vocab = tokenizer["model"]["vocab"]
vocab.update({f"t{token}": token for token in range(len(vocab), 128256)})
with open(sys.argv[2], "w") as file:
    json.dump(tokenizer, file)
PYTHON
cat >"$large/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
 "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
 "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "torch_dtype": "bfloat16",
 "tie_word_embeddings": false, "bos_token_id": 128000, "eos_token_id": 128001}
JSON
serve() {
    local name=$1
    shift
    env ALLOW_RUNTIME_LORA_UPDATING=1 "$here/server" bench "$large" --load-format dummy --max-model-len 1024 \
        --no-enable-prefix-caching --shape 128/128 --max-lora-rank 16 --json "$out/$name.json" --svg "$out/$name.svg" "$@"
}
export -f serve
export here large out

# One test at a time: what one backend does at its start would end a recording of another's in the same process.
part parity 200 "$here/parity" --skip naive --skip by_a_bit --test-threads 1
part server 120 python3 "$here/gpu.py" "$here/server" "$here/demo" "$out/server.json"
part wide 100 "$here/cuda" --ignored
part bench 240 "$here/gpu" bench "$out/bench.json"
part idle 120 "$here/gpu" idle 1 8 64 256
part draw 120 "$here/gpu" draw
# The same model through the server: adapters' share, 64 adapters over a pool for 8, reloads, many registered ones.
part shares 150 bash -c 'serve shares --requests 64 --concurrency 32 --rounds 3 --max-loras 32 --mix one distinct:8 distinct:32'
part pool 150 bash -c 'serve pool --requests 512 --concurrency 512 --max-num-seqs 64 --max-loras 8 --rounds 2 --mix distinct:8 distinct:64'
part reload 180 bash -c 'serve reload --requests 128 --concurrency 32 --rounds 8 --mix one reload:0.5 push:0.5'
part registered 300 bash -c 'serve registered --adapter-rank 1 --requests 256 --request-rate 20 --max-loras 64 --max-cpu-loras 2000 --lora-host-memory 100GiB --rounds 1 --mix zipf:8 zipf:2000'
# Two of them hold tokens to the last bit of the CPU, whatever runs beside: cuBLASLt's products depend on how many rows there are.
part e2e 300 env LORAPLEX_SERVER="$here/server" "$here/suites/e2e" --test-threads 1 \
    --skip tokens_do_not_depend_on_company --skip preempted_requests_give_the_same_tokens
part oracle 200 env LORAPLEX_SERVER="$here/server" ORACLE_SECONDS=30 "$here/suites/oracle" --test-threads 1

# What NVIDIA's tools say: the time of each kernel of a layer alone, and what the wide shapes do to memory.
layer() {
    echo "gpu $*"
    ncu --clock-control none --csv --metrics gpu__time_duration.sum "$here/gpu" "$@" >"$out/profile.csv"
    python3 "$here/gpu_profile.py" "$out/profile.csv" "${1/profile/decode}"
}
export -f layer
export PATH=$PATH:/usr/local/cuda/bin
part profile 200 bash -c 'layer profile 1 0; layer profile 1 1; layer profile 64 0; layer profile 64 1; layer profile 64 64
    layer prefill 0; layer prefill 8'
part memcheck 500 compute-sanitizer --tool memcheck --error-exitcode 9 "$here/cuda" --ignored
