"""A policy: trained adapters side by side in one, with a gain for each of them in each layer.

The vector of gains is what is learned. All zeros is the base model; which adapters to turn up, and where, is for the reward
to say.
"""

import json
import re
from pathlib import Path

import numpy as np


class Mixture:
    """Adapters of one base that adapt the same modules. `folders` are as PEFT writes them."""

    def __init__(self, folders):
        self.parts = [read_adapter(Path(folder)) for folder in folders]
        self.modules = list(self.parts[0])
        self.layers = [int(re.search(r"layers\.(\d+)\.", module).group(1)) for module in self.modules]
        self.shape = (len(self.parts), max(self.layers) + 1)
        self.size = self.shape[0] * self.shape[1]

    def files(self, gains):
        """`adapter_config.json` and `adapter_model.safetensors` of the mixture."""
        gains = gains.reshape(self.shape)
        tensors = {}
        for module, layer in zip(self.modules, self.layers):
            downs = [part[module][0] for part in self.parts]
            ups = [gain * part[module][1] for gain, part in zip(gains[:, layer], self.parts)]
            tensors[f"{module}.lora_A.weight"] = np.concatenate(downs, axis=0)
            tensors[f"{module}.lora_B.weight"] = np.concatenate(ups, axis=1)
        rank = len(tensors[f"{self.modules[0]}.lora_A.weight"])
        targets = sorted({module.rsplit(".", 1)[1] for module in self.modules})
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
        return json.dumps(config).encode(), write_safetensors(tensors)


def read_adapter(folder):
    """`A` and the scaled `B` of each module."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_safetensors((folder / "adapter_model.safetensors").read_bytes())
    scale = config["lora_alpha"] / config["r"]
    modules = sorted(name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight"))
    return {name: (tensors[f"{name}.lora_A.weight"], scale * tensors[f"{name}.lora_B.weight"]) for name in modules}


def read_safetensors(data):
    """The format: the header's length in 8 bytes, a JSON header, the numbers."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {name: read_numbers(entry, data[start:]) for name, entry in header.items()}


def read_numbers(entry, data):
    begin, end = entry["data_offsets"]
    if entry["dtype"] == "BF16":
        # The upper half of an f32, which numpy has no type for.
        numbers = (np.frombuffer(data[begin:end], "<u2").astype("<u4") << 16).view("<f4")
    else:
        numbers = np.frombuffer(data[begin:end], {"F16": "<f2", "F32": "<f4"}[entry["dtype"]])
    return numbers.reshape(entry["shape"])


def write_safetensors(tensors):
    header, data, end = {}, [], 0
    for name, tensor in tensors.items():
        data.append(np.ascontiguousarray(tensor, "<f4").tobytes())
        begin, end = end, end + len(data[-1])
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, end]}
    header = json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + b"".join(data)
