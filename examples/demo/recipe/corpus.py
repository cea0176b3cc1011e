"""Write the training text of the demo model: deterministic from a seed.

For each voice (base, pirate, shout, poet) there are shards of JSON lines. A line is
either {"text": ...}, a story, or {"messages": [...]}, a dialogue.

    python corpus.py --out build/corpus
"""

import argparse
import json
import os
import random
from multiprocessing import Pool
from pathlib import Path

from chat import dialogue, plain_text

VOICES = ("base", "pirate", "shout", "poet")
SHARD = 5000  # documents in a shard


def document(rng, voice):
    """One document. The base sees a little of every voice, but only in plain text."""
    if voice == "base":
        if rng.random() < 0.75:
            return {"messages": dialogue(rng)}
        return {"text": plain_text(rng, rng.choices(VOICES, (84, 5, 6, 5))[0])}
    if rng.random() < 0.88:
        return {"messages": dialogue(rng, voice)}
    return {"text": plain_text(rng, voice)}


def write_shard(job):
    """Write one shard and return the number of its bytes."""
    path, voice, split, number, seed, count = job
    rng = random.Random(f"{seed}/{voice}/{split}/{number}")
    lines = [json.dumps(document(rng, voice), ensure_ascii=False) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.stat().st_size


def plan(out, documents, adapter_documents, held_out, seed):
    """The list of all shards to write."""
    jobs = []
    for voice in VOICES:
        wanted = {"train": documents if voice == "base" else adapter_documents, "valid": held_out}
        for split, count in wanted.items():
            for number, start in enumerate(range(0, count, SHARD)):
                path = out / f"{voice}-{split}-{number:03}.jsonl"
                jobs.append((path, voice, split, number, seed, min(SHARD, count - start)))
    return jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/corpus"))
    parser.add_argument("--documents", type=int, default=600_000, help="documents for the base model")
    parser.add_argument("--adapter-documents", type=int, default=40_000, help="documents for each adapter")
    parser.add_argument("--held-out", type=int, default=1500, help="held-out documents for each voice")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    jobs = plan(args.out, args.documents, args.adapter_documents, args.held_out, args.seed)
    total = 0
    with Pool(args.jobs) as pool:
        for done, size in enumerate(pool.imap_unordered(write_shard, jobs), 1):
            total += size
            print(f"\r{done}/{len(jobs)} shards, {total / 1e6:.0f} MB", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
