"""Train the demo model: tokenizer, base model and three LoRA adapters; export them.

    python corpus.py --out build/corpus
    python train.py --corpus build/corpus --out ..

The base goes to OUT/model, the adapters to OUT/adapters, both in the layouts of
Hugging Face (Llama and PEFT).
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from data import load_rows, train_tokenizer
from export import export_adapter, export_base
from lora import attach, detach

ADAPTERS = {"pirate": 4, "shout": 16, "poet": 8}  # name: rank
SHAPE = dict(
    vocab_size=2048,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=7,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    hidden_act="silu",
    attention_bias=False,
    mlp_bias=False,
)


def loss_of(model, rows):
    """Mean loss over the tokens to be learnt; documents in one row do not see each other."""
    tokens, learnt, document = rows.unbind(1)
    length = tokens.shape[1]
    same = document[:, :, None] == document[:, None, :]
    mask = (same & torch.ones(length, length, dtype=torch.bool, device=rows.device).tril())[:, None]
    starts = torch.cat([torch.ones_like(document[:, :1], dtype=torch.bool), document[:, 1:] != document[:, :-1]], 1)
    index = torch.arange(length, device=rows.device)
    positions = index - torch.where(starts, index, 0).cummax(1).values
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
        logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    wanted = (learnt[:, 1:] > 0) & (document[:, 1:] == document[:, :-1])
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weights = wanted.flatten().float()
    return (losses * weights).sum() / weights.sum()


class Rows:
    """Shuffled batches of packed rows, epoch after epoch."""

    def __init__(self, packed, batch, device, seed):
        self.packed, self.batch, self.device = torch.from_numpy(packed.astype("int16")), batch, device
        self.random = torch.Generator().manual_seed(seed)
        self.order = []

    def next(self):
        if len(self.order) < self.batch:
            self.order = torch.randperm(len(self.packed), generator=self.random).tolist()
        chosen, self.order = self.order[: self.batch], self.order[self.batch :]
        return self.packed[chosen].to(self.device).long()


@torch.no_grad()
def held_out_loss(model, packed, device, batch):
    """The loss over all held-out rows."""
    rows = torch.from_numpy(packed.astype("int16"))
    parts = [
        loss_of(model, part.to(device).long()).item()
        for part in rows.split(batch)
        if len(part) == min(batch, len(rows))
    ]
    return sum(parts) / len(parts)


def fit(model, parameters, rows, steps, peak, minutes, label, compiled=False, decay=0.1):
    """AdamW under a cosine that ends after `steps` or after `minutes`, whichever comes first."""
    device = parameters[0].device
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=peak, betas=(0.9, 0.98), fused=device.type == "cuda"
    )
    step_loss = torch.compile(loss_of) if compiled else loss_of
    warmup, started, step, progress, smooth = max(1, steps // 50), None, 0, 0.0, None
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = step_loss(model, rows.next())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 1 or step == steps:
            value = loss.item()  # waits for the device
            started = started or time.time()
            smooth = value if smooth is None else 0.5 * smooth + 0.5 * value
            seconds = time.time() - started
            if step % 500 == 1 or step == steps:
                rate = optimizer.param_groups[0]["lr"]
                print(f"{label} {step}/{steps} loss {smooth:.4f} rate {rate:.1e} {seconds:.0f} s", flush=True)
        progress = max(step / steps, (time.time() - started) / 60 / minutes)
    print(f"{label} stopped after {step} steps, {time.time() - started:.0f} s")


def round_weights(model):
    """Round every weight to bf16, as it will be stored."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("build/corpus"))
    parser.add_argument("--out", type=Path, default=Path(".."))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=16000, help="steps of the base model")
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="at most so long for the base; the learning rate comes down in time"
    )
    parser.add_argument("--adapter-steps", type=int, default=750)
    parser.add_argument("--batch", type=int, default=64, help="rows of 512 tokens in a batch")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate of the base model")
    parser.add_argument("--adapter-rate", type=float, default=3e-3)
    parser.add_argument("--compile", action="store_true", help="use torch.compile for the base model")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    tokenizer = train_tokenizer(args.corpus, SHAPE["vocab_size"])
    held_out = {voice: load_rows(args.corpus, voice, "valid", tokenizer) for voice in ("base", *ADAPTERS)}
    packed = load_rows(args.corpus, "base", "train", tokenizer)
    print(
        f"{len(packed)} rows, {(packed[:, 2] > 0).mean():.1%} full, {(packed[:, 2] > 0).sum() / 1e6:.1f}M tokens",
        flush=True,
    )

    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(args.device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")
    rows = Rows(packed, args.batch, args.device, args.seed)
    fit(model, list(model.parameters()), rows, args.steps, args.rate, args.minutes, "base", args.compile)
    round_weights(model)
    print(f"base held-out loss {held_out_loss(model, held_out['base'], args.device, args.batch):.4f}")
    export_base(model, SHAPE, tokenizer, args.out / "model")

    for name, rank in ADAPTERS.items():
        packed = load_rows(args.corpus, name, "train", tokenizer)
        before = held_out_loss(model, held_out[name], args.device, args.batch)
        trained = attach(model, rank, 2 * rank)
        rows = Rows(packed, args.batch, args.device, args.seed)
        fit(model, trained, rows, args.adapter_steps, args.adapter_rate, 1e9, name, decay=0.0)
        after = held_out_loss(model, held_out[name], args.device, args.batch)
        print(f"{name} held-out loss {before:.4f} without the adapter, {after:.4f} with it")
        export_adapter(detach(model), rank, args.out / "adapters" / name)


if __name__ == "__main__":
    main()
