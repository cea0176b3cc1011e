#!/usr/bin/env python3
"""Puts the same loads on two running servers in turns, with `server bench --url`, and prints a table.

Usage: rounds.py SERVER_BINARY LOG_OF_OURS URL_OF_PEER [--peer NAME] [--rounds N] [--json FILE]

A round puts each load on one server and then on the other; the order changes from round to round. Beside each figure
stands the read bandwidth of the machine, measured just before and after.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ADAPTERS = [f"a{index}" for index in range(8)]
# What one run of the bench measures: shape, requests, in flight, and of which mixes what is told under which name.
RUNS = [
    ("64/64", 8, 8, {"base": "8 streams, base, 64 in + 64 out", "one": "8 streams, 1 adapter", "distinct:8": "8 streams, 8 different adapters"}),
    ("16/96", 1, 1, {"base": "1 stream, base, decode"}),
    ("512/1", 2, 1, {"base": "prompt of 512, base", "one": "prompt of 512, 1 adapter"}),
]
SECONDS = 120


def wait(url, path):
    """Until the server answers."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(url + path, timeout=5) as response:
                response.read()
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url} does not answer after {SECONDS} s: {error}") from error
            time.sleep(0.2)


def address(log):
    """Where our server listens, as it says."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with open(log) as file:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", file.read())
        if found:
            return found.group(0)
        time.sleep(0.2)
    raise SystemExit(f"{log} names no address after {SECONDS} s")


def scales(chosen):
    """llama.cpp takes a list of ids and scales; an id that is not named may keep another scale."""
    return json.dumps({"lora": [{"id": index, "scale": float(name == chosen)} for index, name in enumerate(ADAPTERS)], "cache_prompt": False})


def figure(found, shape):
    """Output tokens a second with many streams, of decoding alone with one, prompt tokens a second where one token is made."""
    inputs, outputs = (int(length) for length in shape.split("/"))
    if outputs == 1:
        return 1e3 * inputs / found["all"]["ttft_ms"]["median"]
    return found["all"]["output_tokens_per_s"] if inputs == outputs else 1e3 / found["all"]["tpot_ms"]["median"]


def measure(binary, url, run, seed, bodies):
    """By load: tokens a second, the read bandwidth beside it, and the end-to-end times in ms."""
    shape, requests, at_once, mixes = run
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "report.json")
        command = [binary, "bench", "--url", url, "--base-model", "base", "--adapter-models", *ADAPTERS, "--shape", shape,
                   "--requests", str(requests), "--concurrency", str(at_once), "--rounds", "1", "--bench-seed", str(seed),
                   "--read-bandwidth", "--json", out, "--mix", *mixes]
        done = subprocess.run(command + bodies, capture_output=True, text=True, env={**os.environ, "RUST_LOG": "warn"})
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        with open(out) as file:
            report = json.load(file)
    samples = {}
    for found in report["mixes"]:
        if found["all"]["failed"]:
            raise SystemExit(f"{found['mix']} on {url}: {found['error']}")
        samples[mixes[found["mix"]]] = (figure(found, shape), statistics.mean(found["read_gb_s"][0]), found["all"]["e2e_ms"])
    return samples


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("log")
    parser.add_argument("url")
    parser.add_argument("--peer", default="llama.cpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    ours = address(args.log)
    wait(ours, "/health")
    wait(args.url, "/health")
    bodies = ["--body"] + [f"{name}={scales(name)}" for name in ["base", *ADAPTERS]]
    servers = [("loraplex", ours, []), (args.peer, args.url, bodies)]
    loads = [load for run in RUNS for load in run[3].values()]
    found = {(load, name): [] for load in loads for name, _, _ in servers}
    # Round 0 warms up.
    for turn in range(args.rounds + 1):
        for run in RUNS:
            for name, url, extra in servers[:: 1 if turn % 2 else -1]:
                for load, sample in measure(args.binary, url, run, turn, extra).items():
                    if turn:
                        found[load, name].append(sample)
        print(f"round {turn} of {args.rounds} done", flush=True)
    print(f"\ntokens/s, median (least to most) of {args.rounds} rounds; read GB/s beside it\n")
    print(f"| load | loraplex | GB/s | {args.peer} | GB/s | ratio of medians (least to most in a round) |\n|---|---|---|---|---|---|")
    for load in loads:
        cells, values = [], []
        for name, _, _ in servers:
            speeds = [sample[0] for sample in found[load, name]]
            values.append(speeds)
            read = statistics.median(sample[1] for sample in found[load, name])
            cells.append(f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f}) | {read:.1f}")
        ratios = [mine / theirs for mine, theirs in zip(*values)]
        ratio = statistics.median(values[0]) / statistics.median(values[1])
        print(f"| {load} | {cells[0]} | {cells[1]} | {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")
    if args.json:
        rows = [{"load": load, "server": name, "samples": samples} for (load, name), samples in found.items()]
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
