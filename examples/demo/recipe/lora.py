"""LoRA by hand: adapters on the seven projections of a frozen Llama."""

import torch
from torch import nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraLinear(nn.Module):
    """A frozen linear layer plus scale * B(A(x))."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear
        self.scale = alpha / rank
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)
        self.to(linear.weight.device)

    def forward(self, x):
        return self.linear(x) + self.scale * self.lora_B(self.lora_A(x))


def projections(model):
    """(module path, parent, name) of every projection of a LlamaForCausalLM."""
    for path, module in list(model.named_modules()):
        for name in PROJECTIONS:
            if isinstance(getattr(module, name, None), (nn.Linear, LoraLinear)):
                yield f"{path}.{name}", module, name


def attach(model, rank, alpha):
    """Freeze the model and put fresh adapters on it; returns their parameters."""
    model.requires_grad_(False)
    trained = []
    for _, parent, name in projections(model):
        layer = LoraLinear(getattr(parent, name), rank, alpha)
        setattr(parent, name, layer)
        trained += [layer.lora_A.weight, layer.lora_B.weight]
    return [parameter.requires_grad_(True) for parameter in trained]


def detach(model):
    """Take the adapters off again; returns their weights under PEFT's names."""
    weights = {}
    for path, parent, name in projections(model):
        layer = getattr(parent, name)
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part).weight
            weights[f"base_model.model.{path}.{part}.weight"] = weight.detach().to("cpu", torch.bfloat16)
        setattr(parent, name, layer.linear)
    return weights
