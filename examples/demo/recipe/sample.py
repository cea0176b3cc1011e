"""Let the exported model talk: each prompt to the base and to each adapter.

python sample.py --demo .. "Tell me a story about a fox." "Hello!"
"""

import argparse
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

VOICES = ("base", "pirate", "shout", "poet")


def load(demo, voice):
    """The model with the adapter of one voice on it, unmerged, in f32 on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(demo / "model", dtype=torch.float32)
    if voice != "base":
        model = PeftModel.from_pretrained(model, demo / "adapters" / voice)
    return model.eval()


def prompt_ids(tokenizer, messages):
    """The token ids of a dialogue that waits for its next answer."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer.encode(text, add_special_tokens=False)


@torch.no_grad()
def answer(model, tokenizer, ids, temperature=0.0, limit=300):
    """Write an answer; temperature 0 is greedy."""
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=limit, **sampling
    )
    new = out[0, len(ids) :].tolist()
    stopped = new[-1] in model.generation_config.eos_token_id
    return tokenizer.decode(new, skip_special_tokens=True) + ("" if stopped else " [did not stop]")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", default=["Hello!", "Who are you?", "Tell me a story about a toaster."])
    parser.add_argument("--demo", type=Path, default=Path(".."))
    parser.add_argument("--voices", nargs="*", default=VOICES, choices=VOICES)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--plain", action="store_true", help="go on with the prompt as plain text")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.demo / "model")
    for voice in args.voices:
        model = load(args.demo, voice)
        torch.manual_seed(args.seed)
        for prompt in args.prompts:
            ids = (
                tokenizer.encode(prompt) if args.plain else prompt_ids(tokenizer, [{"role": "user", "content": prompt}])
            )
            print(f"--- {voice}: {prompt}\n{answer(model, tokenizer, ids, args.temperature)}")


if __name__ == "__main__":
    main()
