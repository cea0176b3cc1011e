"""GRPO with PEFT in torch, rollouts from a running server: every step pushes the adapter in place and samples from it.

    ALLOW_RUNTIME_LORA_UPDATING=1 ./target/release/server MODEL
    python3 examples/rl/grpo_peft.py MODEL          # in another terminal; needs torch, transformers and peft

MODEL is the same Hugging Face folder in both. The trainer needs no tokenizer: tokens and their log-probabilities come from
the server, which drew them. Before the first update of a step the trainer's own log-probabilities should be the server's,
up to rounding; `drift` is how far they are apart, and anything else than a small number says that one of them has
other weights. The reward counts words that begin with an s; put yours in its place.
"""

import argparse
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from transformers import AutoModelForCausalLM

from policies import Server
from verse import PROMPTS

NAME = "grpo-policy"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--group", type=int, default=16, help="answers to each prompt, which are compared with each other")
    parser.add_argument("--epochs", type=int, default=2, help="updates from the answers of one step")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--clip", type=float, default=0.2, help="how far a token's ratio may leave 1")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def reward(text):
    """The share of words that begin with an s, each word once, so that saying one of them over and over earns nothing."""
    words = re.findall(r"[a-z']+", text.lower())
    return len({word for word in words if word[0] == "s"}) / max(len(words), 20)


def push(server, model, version):
    config = json.dumps(model.peft_config["default"].to_dict(), default=list)
    state = {name: tensor.contiguous().float() for name, tensor in get_peft_model_state_dict(model).items()}
    server.push(NAME, version, config.encode(), save(state))


def rollouts(server, version, args):
    """For each prompt its tokens and a group of (tokens, log-probabilities, reward)."""
    sampling = {"n": args.group, "max_tokens": args.max_tokens, "temperature": 1.0, "logprobs": True, "return_token_ids": True}

    def ask(index):
        seed = (args.seed * 100_000 + version) * 1000 + index * args.group
        answer = server.sample(NAME, version, PROMPTS[index], seed=seed, **sampling)
        group = []
        for choice in answer["choices"]:
            logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
            group.append((choice["token_ids"], logprobs, reward(choice["message"]["content"])))
        return answer["prompt_token_ids"], group

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        return list(threads.map(ask, range(len(PROMPTS))))


def batch(groups, device):
    """Padded tokens, and for each position that the server drew: its log-probability, the answer's advantage, a mask."""
    rows = []
    for prompt, group in groups:
        rewards = torch.tensor([earned for _, _, earned in group])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        rows += [(prompt, *answer, advantage) for answer, advantage in zip(group, advantages.tolist())]
    length = max(len(prompt) + len(tokens) for prompt, tokens, *_ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    sampled, advantages, mask = (torch.zeros(len(rows), length) for _ in range(3))
    for row, (prompt, tokens, logprobs, _, advantage) in enumerate(rows):
        answer = slice(len(prompt), len(prompt) + len(tokens))
        ids[row, : answer.stop] = torch.tensor(prompt + tokens)
        sampled[row, answer] = torch.tensor(logprobs)
        advantages[row], mask[row, answer] = advantage, 1.0
    # The first token has no prediction.
    return ids.to(device), *(tensor[:, 1:].to(device) for tensor in (sampled, advantages, mask))


def logprobs_of(model, ids):
    """Log-probability of each token but the first. Padding lies behind the answers, where it changes nothing before it."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def main():
    args = arguments()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device)
    config = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.rate, weight_decay=0.0)
    server = Server(args.url, os.environ.get("ADMIN_API_KEY"))
    print("step  reward   drift   ratio  clipped")
    for step in range(args.steps):
        push(server, model, step)
        groups = rollouts(server, step, args)
        ids, sampled, advantages, mask = batch(groups, device)
        drift = None
        for _ in range(args.epochs):
            current = logprobs_of(model, ids)
            ratio = (current - sampled).exp()
            if drift is None:
                drift = (((current - sampled).abs() * mask).sum() / mask.sum()).item()
            bounded = ratio.clamp(1 - args.clip, 1 + args.clip)
            gain = torch.minimum(ratio * advantages, bounded * advantages)
            loss = -(gain * mask).sum() / mask.sum()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        earned = [earned for _, group in groups for _, _, earned in group]
        mean_ratio = ((ratio * mask).sum() / mask.sum()).item()
        clipped = ((ratio != bounded) * mask).sum().item() / mask.sum().item()
        print(f"{step:4}  {sum(earned) / len(earned):6.3f}  {drift:6.4f}  {mean_ratio:6.3f}  {clipped:6.1%}", flush=True)


if __name__ == "__main__":
    main()
