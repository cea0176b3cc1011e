#!/usr/bin/env bash
# The overhead contract, in short: what adapters cost as shares of the base's speed, within bounds wide enough for a busy
# machine. Ratios of medians of interleaved rounds, never times. Usage: overhead.sh SERVER_BINARY MODEL
set -euo pipefail
server=$1
model=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Usage: measure NAME SHAPE REQUESTS MIX...
measure() {
    local name=$1 shape=$2 requests=$3
    shift 3
    RUST_LOG=warn ALLOW_RUNTIME_LORA_UPDATING=1 "$server" bench "$model" --max-model-len 1024 \
        --shape "$shape" --requests "$requests" --rounds 5 --mix "$@" --json "$work/$name.json"
}
measure decode 32/32 8 one distinct:8 reload:0.5
measure prefill 384/1 4 one

python3 - "$work" <<'PYTHON'
import json
import sys

# As a share of the base: 8 adapters at once are to reach 0.78 on an idle machine, prefill with an adapter 0.93.
BOUNDS = [("decode", "one", 0.75), ("decode", "distinct:8", 0.6), ("decode", "reload:0.5", 0.6), ("prefill", "one", 0.75)]
failed = False
for run, name, least in BOUNDS:
    with open(f"{sys.argv[1]}/{run}.json") as file:
        mixes = {mix["mix"]: mix for mix in json.load(file)["mixes"]}
    kind = "output_tokens_per_s" if run == "decode" else "total_tokens_per_s"
    share = mixes[name]["ratio_to_base"][kind]["of_medians"]
    failed |= share < least or mixes[name]["all"]["failed"] > 0
    print(f"{run} {name}: {share:.2f} of the base, at least {least}")
sys.exit(failed)
PYTHON
