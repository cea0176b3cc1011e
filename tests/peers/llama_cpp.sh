#!/usr/bin/env bash
# The same load on this server and on llama.cpp's, in turns, on one machine; prints a table. SmolLM2-135M's shapes.
# Usage: llama_cpp.sh SERVER_BINARY MODEL.gguf [ROUNDS] [JSON]
#
# LLAMA_BIN is the folder of llama-server and llama-quantize (default: where PATH finds llama-server). Both servers get
# MODEL's weights in 16 bits: ours bf16, llama.cpp's LLAMA_TYPE (BF16, or F16, which is faster on processors without
# bf16 instructions). For 8 bits: SERVER_FLAGS="--quantization int8" LLAMA_TYPE=Q8_0. Adapters: rank 16 on seven
# projections, bf16 here and f16 there.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
server=$1 model=$2 rounds=${3:-5} json=${4:-}
llama=${LLAMA_BIN:-$(dirname "$(command -v llama-server || true)")}
if [[ ! -x "$llama/llama-server" || ! -x "$llama/llama-quantize" ]]; then
    echo "llama-server and llama-quantize are not in ${llama:-PATH}; set LLAMA_BIN to their folder" >&2
    exit 1
fi
work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT

python3 "$root/tests/make_adapters.py" "$work" 8 --gguf
"$llama/llama-quantize" --allow-requantize "$model" "$work/bf16.gguf" BF16 >"$work/quantize.log" 2>&1
type=${LLAMA_TYPE:-BF16}
[[ "$type" == BF16 ]] || "$llama/llama-quantize" --allow-requantize "$model" "$work/$type.gguf" "$type" >>"$work/quantize.log" 2>&1
theirs="$work/${type/BF16/bf16}.gguf"

modules=() files=""
for index in 0 1 2 3 4 5 6 7; do
    modules+=("a$index=$work/a$index")
    files+="${files:+,}$work/a$index.gguf"
done
cores=$(nproc)
"$server" "$work/bf16.gguf" --served-model-name base --host 127.0.0.1 --port 0 --max-model-len 2048 --no-enable-prefix-caching \
    --lora-modules "${modules[@]}" ${SERVER_FLAGS:-} >"$work/ours.log" 2>&1 &
pids+=($!)
port=$((20000 + RANDOM % 20000))
"$llama/llama-server" -m "$theirs" --lora "$files" --lora-init-without-apply -t "$cores" -tb "$cores" -np 8 -c 8192 \
    --host 127.0.0.1 --port "$port" --no-webui --cache-ram 0 >"$work/theirs.log" 2>&1 &
pids+=($!)
python3 "$root/tests/peers/rounds.py" "$server" "$work/ours.log" "http://127.0.0.1:$port" --rounds "$rounds" \
    --peer "llama.cpp $type" ${json:+--json "$json"}
