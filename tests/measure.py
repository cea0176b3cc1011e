#!/usr/bin/env python3
"""Throughput of a running server: several loads, interleaved, as ratios of medians.

Usage: measure.py URL NAME=MODEL[,MODEL...] [NAME=...] [--rounds N] [--streams N] [--prompt N] [--output N]

Each NAME is one load: its streams take the listed models in turn, at URL or, as MODEL@URL, at another server. The loads run one after the other, round after round, so
that a machine whose speed drifts treats them alike. Printed per load: output tokens/s (median, least, most), and the
ratio of its median to the first load's, with the spread of the per-round ratios.
"""

import argparse
import http.client
import json
import statistics
import threading
import time
from urllib.parse import urlparse


def prompt(tokens, stream, turn):
    """A prompt of exactly `tokens` ids; different for each stream and round, so that no prefix is cached."""
    return [100 + (7919 * turn + 131 * stream + 17 * index) % 800 for index in range(tokens)]


def request(netloc, body):
    connection = http.client.HTTPConnection(netloc, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        raise SystemExit(f"{response.status}: {answer}")
    return answer["usage"]["completion_tokens"]


def load(netloc, models, args, turn):
    """Runs all streams at once; output tokens a second over the wall time."""
    done = [0] * args.streams

    def stream(index):
        body = {
            "model": models[index % len(models)],
            "prompt": prompt(args.prompt, index, turn),
            "max_tokens": args.output,
            "temperature": 0,
            "ignore_eos": True,
        }
        done[index] = request(netloc, body)

    threads = [threading.Thread(target=stream, args=(index,)) for index in range(args.streams)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("loads", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--output", type=int, default=64)
    args = parser.parse_args()
    netloc = urlparse(args.url).netloc
    loads = {}
    for name, models in (text.split("=", 1) for text in args.loads):
        models, _, url = models.partition("@")
        loads[name] = (urlparse(url).netloc or netloc, models.split(","))
    speeds = {name: [] for name in loads}
    for turn in range(-1, args.rounds):
        for name, (server, models) in loads.items():
            speed = load(server, models, args, turn + 1)
            if turn >= 0:  # the first round warms up
                speeds[name].append(speed)
    first = next(iter(speeds.values()))
    print(f"{args.streams} streams, {args.prompt} in + {args.output} out, {args.rounds} interleaved rounds")
    for name, values in speeds.items():
        ratios = [value / base for value, base in zip(values, first)]
        # Student's t for 95 % is close to 2 from 20 rounds on.
        half = 2 * statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0
        print(
            f"{name:>24}: {statistics.median(values):8.1f} tok/s ({min(values):.1f}-{max(values):.1f}),"
            f" {statistics.median(ratios):.3f} of the first ({min(ratios):.3f}-{max(ratios):.3f},"
            f" mean {statistics.mean(ratios):.3f} +- {half:.3f})"
        )


if __name__ == "__main__":
    main()
