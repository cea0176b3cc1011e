"""The server on a GPU beside itself on the CPU: the demo model, its adapters, mixed batches, a reload in place.

Usage: gpu.py SERVER DEMO_FOLDER OUT.json

Greedy tokens must be equal up to the first position where the CPU's two best tokens are closer than NEAR.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import time
import urllib.request

NEAR = 0.3
PROMPTS = [
    "Once upon a time",
    "The fox said to the crow that",
    "Tell me about the sea.",
    "In the morning the king went out and",
]
ADAPTERS = ["pirate", "poet", "shout"]


def call(port, path, body):
    data = json.dumps(body).encode()
    headers = {"content-type": "application/json", "accept": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


class Server:
    def __init__(self, binary, demo, device, port):
        self.port = port
        modules = [f"{name}={demo}/adapters/{name}" for name in ADAPTERS]
        command = [binary, f"{demo}/model", "--device", device, "--port", str(port), "--served-model-name", "base"]
        env = {**os.environ, "ALLOW_RUNTIME_LORA_UPDATING": "1"}
        self.process = subprocess.Popen([*command, "--lora-modules", *modules], env=env)
        start = time.monotonic()
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"the server on {device} ended with {self.process.returncode}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        self.started = time.monotonic() - start

    def complete(self, model, prompt):
        body = {"model": model, "prompt": prompt, "max_tokens": 48, "temperature": 0, "ignore_eos": True,
                "logprobs": 2, "return_token_ids": True, "return_tokens_as_token_ids": True}
        choice = call(self.port, "/v1/completions", body)["choices"][0]
        gaps = []
        for top in choice["logprobs"]["top_logprobs"]:
            values = sorted(top.values(), reverse=True)
            gaps.append(values[0] - values[1] if len(values) > 1 else 0.0)
        return choice["token_ids"], gaps

    def close(self):
        self.process.terminate()
        self.process.wait(30)


def compare(wanted, found):
    """How many tokens were compared; fails on a difference that no near tie explains."""
    (tokens, gaps), (others, _) = wanted, found
    for index, (token, other, gap) in enumerate(zip(tokens, others, gaps)):
        if token != other:
            assert gap < NEAR, f"token {index}: {token} and {other}, the gap is {gap}"
            return index
    return len(tokens)


def main(binary, demo, out):
    work = [(model, prompt) for model in ["base", *ADAPTERS] for prompt in PROMPTS]
    cpu = Server(binary, demo, "cpu", 18501)
    wanted = {key: cpu.complete(*key) for key in work}
    cpu.close()
    gpu = Server(binary, demo, "cuda", 18502)
    report = {"started_s": round(gpu.started, 2)}
    alone = {key: gpu.complete(*key) for key in work}
    report["compared_alone"] = sum(compare(wanted[key], alone[key]) for key in work)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for turn in range(4):
            together = dict(zip(work, pool.map(lambda key: gpu.complete(*key), work)))
            report["compared_together"] = sum(compare(wanted[key], together[key]) for key in work)
    # A reload in place: poet's files under shout's name answer as poet, whatever is cached.
    loaded = call(gpu.port, "/load_lora_adapter", {"lora_name": "shout", "lora_path": f"{demo}/adapters/poet"})
    report["reload_ms"] = loaded["timings_ms"]
    for prompt in PROMPTS:
        compare(wanted["poet", prompt], gpu.complete("shout", prompt))
    gpu.close()
    report["tokens"] = 48 * len(work)
    with open(out, "w") as file:
        json.dump(report, file, indent=1)
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
