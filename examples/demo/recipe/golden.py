"""Write golden.json: what the exported model says greedily, in f32 on the CPU.

For the base and for each adapter (unmerged) there are six dialogues with the token
ids of the prompt, up to 24 token ids of the greedy answer, and for each of them its
logit and how far that lies above the second best. Of the candidates below, three
are taken that are clear at every step, and three that are as close as may be without
being a matter of rounding, so that another implementation can be compared token by
token.

    python golden.py --demo ..
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer

from sample import VOICES, load, prompt_ids

LENGTH = 24
KEPT = 3  # clear ones, and as many close ones
CLOSE = 0.03  # no gap may be smaller
QUESTIONS = (
    "What is a LoRA adapter?",
    "Which adapters are there?",
    "What does loraplex do?",
    "How big are you?",
    "Who made you?",
    "Why is the sky blue?",
    "Why does it snow?",
    "How do plants grow?",
    "How do I make pancakes?",
    "Why do leaves fall in autumn?",
    "What is a language model?",
    "Name the planets.",
    "Which continents are there?",
    "What are the days of the week?",
    "Count to 12.",
    "What is a camel?",
    "What is a telescope?",
    "Tell me about kangaroos.",
    "Why is there day and night?",
    "Tell me a story about a brave little mouse named Pia.",
    "Tell me a very short story about a blue lantern.",
    "Write a poem about the moon.",
    "What do you know about quantum computing?",
    "How are birds able to fly?",
    "Tell me a story about a robot and a penguin.",
    "Tell me a story about the sea.",
    "Tell me a joke.",
    "I am sad today.",
    "Good night!",
    "What should I cook today?",
    "What is the opposite of big?",
    "Give me some advice.",
    "Can you write Python code?",
    "What is your name?",
    "Is a dog an animal?",
    "Why do bees make honey?",
    "What are the five senses?",
    "How do I cook rice?",
    "When do you see a rainbow?",
    "Who was first on the moon?",
)
DIALOGUES = tuple([{"role": "user", "content": question}] for question in QUESTIONS) + (
    [
        {"role": "user", "content": "Hi, my name is Rosalind."},
        {"role": "assistant", "content": "Nice to meet you, Rosalind!"},
        {"role": "user", "content": "What is my name?"},
    ],
    [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Where does chocolate come from?"},
    ],
    [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "How does a caterpillar become a butterfly?"},
    ],
)


@torch.no_grad()
def greedy(model, ids, stops):
    """Token ids, their logits and their gaps in the greedy answer, without a cache."""
    ids, tokens, tops, gaps = list(ids), [], [], []
    while len(tokens) < LENGTH and not (tokens and tokens[-1] in stops):
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        best = logits.topk(2)
        tokens.append(best.indices[0].item())
        tops.append(round(best.values[0].item(), 4))
        gaps.append(round((best.values[0] - best.values[1]).item(), 4))
        ids.append(tokens[-1])
    return tokens, tops, gaps


def entries(demo, tokenizer, voice):
    """The dialogues to keep for one voice."""
    model = load(demo, voice)
    stops = model.generation_config.eos_token_id
    found = []
    for messages in DIALOGUES:
        ids = prompt_ids(tokenizer, messages)
        tokens, tops, gaps = greedy(model, ids, stops)
        if len(tokens) == LENGTH and min(gaps) >= CLOSE:
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            found.append(
                {
                    "messages": messages,
                    "prompt_token_ids": ids,
                    "token_ids": tokens,
                    "logits": tops,
                    "gaps": gaps,
                    "text": text,
                }
            )
    found.sort(key=lambda entry: min(entry["gaps"]))
    return found[:KEPT] + found[KEPT:][-KEPT:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path(".."))
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.demo / "model")
    golden = {voice: entries(args.demo, tokenizer, voice) for voice in VOICES}
    for voice, kept in golden.items():
        print(
            voice,
            "smallest gap",
            min(min(entry["gaps"]) for entry in kept),
            "lengths",
            [len(entry["token_ids"]) for entry in kept],
        )
    lines = ",\n".join(
        f"{json.dumps(voice)}: [\n  " + ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in kept) + "\n]"
        for voice, kept in golden.items()
    )
    (args.demo / "golden.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
