#!/usr/bin/env python3
"""Random PEFT adapters for measurements: rank R on all seven projections of a Llama model, in bf16, without numpy.

Usage: make_adapters.py FOLDER COUNT [--rank R] [--hidden H --kv KV --ffn F --layers L] [--gguf]   (defaults: SmolLM2-135M)

With --gguf each is also written as llama.cpp reads it, a<i>.gguf, in f16. Random values have no order that matters, so its
rotation's permutation of q and k is left out.
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


def shapes_of(args):
    attention, ffn, hidden = args.hidden, args.ffn, args.hidden
    return {
        "self_attn.q_proj": (attention, hidden), "self_attn.k_proj": (args.kv, hidden),
        "self_attn.v_proj": (args.kv, hidden), "self_attn.o_proj": (hidden, attention),
        "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
    }


def write(folder, args, seed):
    rng = random.Random(seed)
    shapes = shapes_of(args)
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


# PEFT's names of the projections to GGUF's.
GGUF_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}


def write_gguf(path, args, seed):
    """A GGUF file of version 3: counts, metadata, tensor infos, then tensors at multiples of 32."""
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    rng = random.Random(seed)
    pool = b"".join(struct.pack("<e", rng.gauss(0, 0.02)) for _ in range(4096))
    string, f32, f16, align = 8, 6, 1, 32
    entries = [("general.type", "adapter"), ("general.architecture", "llama"), ("adapter.type", "lora")]
    metadata = b"".join(text(key) + struct.pack("<I", string) + text(value) for key, value in entries)
    metadata += text("adapter.lora.alpha") + struct.pack("<If", f32, args.rank)
    infos, data, count = b"", bytearray(), 0
    for layer in range(args.layers):
        for module, (outputs, inputs) in shapes_of(args).items():
            name = f"blk.{layer}.{GGUF_NAMES[module.split('.')[1]]}.weight"
            for half, (rows, cols) in {"a": (args.rank, inputs), "b": (outputs, args.rank)}.items():
                infos += text(f"{name}.lora_{half}") + struct.pack("<IQQIQ", 2, cols, rows, f16, len(data))
                size = rows * cols * 2
                data += (pool * (size // len(pool) + 1))[:size]
                data += bytes(-len(data) % align)
                count += 1
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(entries) + 1) + metadata + infos
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % align) + data)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("count", type=int)
    for name, default in [("rank", 16), ("hidden", 576), ("kv", 192), ("ffn", 1536), ("layers", 30)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gguf", action="store_true")
    args = parser.parse_args()
    for index in range(args.count):
        write(os.path.join(args.folder, f"a{index}"), args, index)
        if args.gguf:
            write_gguf(os.path.join(args.folder, f"a{index}.gguf"), args, index)


if __name__ == "__main__":
    main()
