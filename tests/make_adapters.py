#!/usr/bin/env python3
"""Random PEFT adapters for measurements: rank R on all seven projections of a Llama model, in bf16, without numpy.

Usage: make_adapters.py FOLDER COUNT [--rank R] [--hidden H --kv KV --ffn F --layers L]   (defaults: SmolLM2-135M)
"""

import argparse
import json
import os
import random
import struct


def tensor(rows, cols, scale, rng):
    """Random bf16 values: the upper half of f32 bits, drawn from a pool, since only their bytes are measured."""
    pool = b"".join(struct.pack("<f", rng.gauss(0, scale))[2:] for _ in range(4096))
    size = rows * cols * 2
    start = rng.randrange(len(pool)) & ~1
    return ((pool[start:] + pool[:start]) * (size // len(pool) + 1))[:size]


def write(folder, args, seed):
    rng = random.Random(seed)
    attention, ffn, hidden = args.hidden, args.ffn, args.hidden
    shapes = {
        "self_attn.q_proj": (attention, hidden), "self_attn.k_proj": (args.kv, hidden),
        "self_attn.v_proj": (args.kv, hidden), "self_attn.o_proj": (hidden, attention),
        "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
    }
    header, data, offset = {}, [], 0
    for layer in range(args.layers):
        for module, (outputs, inputs) in shapes.items():
            for half, (rows, cols) in {"A": (args.rank, inputs), "B": (outputs, args.rank)}.items():
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"
                bytes_ = tensor(rows, cols, 0.02, rng)
                header[name] = {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [offset, offset + len(bytes_)]}
                data.append(bytes_)
                offset += len(bytes_)
    os.makedirs(folder, exist_ok=True)
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "adapter_model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "measured", "r": args.rank,
        "lora_alpha": args.rank, "target_modules": [name.split(".")[1] for name in shapes],
    }
    with open(os.path.join(folder, "adapter_config.json"), "w") as file:
        json.dump(config, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("count", type=int)
    for name, default in [("rank", 16), ("hidden", 576), ("kv", 192), ("ffn", 1536), ("layers", 30)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    for index in range(args.count):
        write(os.path.join(args.folder, f"a{index}"), args, index)


if __name__ == "__main__":
    main()
