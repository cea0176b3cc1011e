"""Reinforcement learning against a running server, with forward passes alone: evolution strategies over LoRA adapters.

    ALLOW_RUNTIME_LORA_UPDATING=1 ./target/release/server demo
    python3 examples/rl/evolve.py          # in another terminal; needs numpy

A model that tells stories in prose learns to answer in rhymed verse, in about two minutes on two cores. Each update pushes
a population of policies in place, samples from all of them at once, scores the texts (`verse.py`) and moves towards the
policies that scored well. The same seed gives the same run on the same processor.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lora import Mixture
from picture import curve
from policies import Server
from verse import PROMPTS, reward

ADAPTERS = Path(__file__).parent.parent / "demo" / "adapters"
CENTRE = "policy"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=8, help="policies are drawn in pairs, opposite each other")
    parser.add_argument("--samples", type=int, default=2, help="texts of a policy for each prompt")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--sigma", type=float, default=0.3, help="how far policies lie from the centre")
    parser.add_argument("--rate", type=float, default=0.6, help="how far an update moves the centre")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curve", default="curve.svg", help="where the curve goes")
    parser.add_argument("--require", type=float, metavar="RISE", help="fail if the reward rises by less")
    return parser.parse_args()


def rollouts(server, threads, policies, update, args):
    """Pushes `policies`, name to files, and samples from all of them in one batch; name to texts."""
    list(threads.map(lambda name: server.push(name, update, *policies[name]), policies))

    def ask(call):
        name, prompt = call
        # All policies draw with the same luck, so that only their weights tell them apart.
        seed = (args.seed * 100_000 + update) * 1000 + prompt * args.samples
        answer = server.sample(name, update, PROMPTS[prompt], n=args.samples, seed=seed, max_tokens=args.max_tokens)
        return [choice["message"]["content"] for choice in answer["choices"]]

    calls = [(name, prompt) for name in policies for prompt in range(len(PROMPTS))]
    texts = {name: [] for name in policies}
    for (name, _), some in zip(calls, threads.map(ask, calls)):
        texts[name] += some
    return texts


def shaped(scores):
    """Ranks from -0.5 to 0.5: a single lucky policy weighs no more than the best of many; equals get the same."""
    above = np.sign(scores[:, None] - scores[None, :]).sum(axis=1)
    return above / (2 * (len(scores) - 1))


def main():
    args = arguments()
    server = Server(args.url, os.environ.get("ADMIN_API_KEY"))
    random = np.random.default_rng(args.seed)
    mixture = Mixture([ADAPTERS / name for name in ("pirate", "poet", "shout")])
    centre = np.zeros(mixture.size)
    rewards, populations, stories = [], [], []
    print("update  policy  population")
    with ThreadPoolExecutor(64) as threads:
        for update in range(args.updates + 1):
            half = random.standard_normal((args.pairs, mixture.size))
            noise = np.concatenate([half, -half])
            names = [f"{CENTRE}-{index}" for index in range(len(noise))]
            policies = {CENTRE: mixture.files(centre)}
            policies |= {name: mixture.files(centre + args.sigma * step) for name, step in zip(names, noise)}
            texts = rollouts(server, threads, policies, update, args)

            score = np.mean([reward(text) for text in texts[CENTRE]])
            scores = np.array([np.mean([reward(text) for text in texts[name]]) for name in names])
            rewards.append(score)
            populations.append(scores)
            stories.append(texts[CENTRE][0])
            print(f"{update:6}  {score:6.3f}  {scores.mean():10.3f}  {'█' * round(scores.mean() * 40)}", flush=True)
            centre += args.rate * shaped(scores) @ noise / len(noise)

    Path(args.curve).write_text(curve("Share of rhymed verse in the answers", rewards, populations))
    print(f"\nBefore:\n{stories[0]}\n\nAfter:\n{stories[-1]}\n\nThe curve: {args.curve}")
    # The population's mean: one policy's reward is a matter of a few texts.
    rise = np.mean(populations[-2:]) - np.mean(populations[:2])
    if args.require is not None and rise < args.require:
        sys.exit(f"the population's reward rose by {rise:.3f}, less than {args.require}")


if __name__ == "__main__":
    main()
