"""TRL's client of its asynchronous GRPO trainer, one round of it: a policy is pushed under a new name, sampled and taken
out again, as the trainer does it.

Usage: trl_client.py BASE_URL ADAPTER_FOLDER...
"""

import importlib.util
import logging
import sys
import types

import requests


def load_client():
    """TRL's own file, without the training libraries that its package imports."""
    location = importlib.util.find_spec("trl").submodule_search_locations[0]

    def package(name, **attributes):
        module = types.ModuleType(name)
        module.__path__ = []
        for key, value in attributes.items():
            setattr(module, key, value)
        sys.modules[name] = module

    package("accelerate")
    package("accelerate.logging", get_logger=logging.getLogger)
    package("trl")
    package("trl.import_utils", is_requests_available=lambda: True)
    package("trl.experimental")
    package("trl.experimental.async_grpo")
    name = "trl.experimental.async_grpo.vllm_client"
    spec = importlib.util.spec_from_file_location(name, f"{location}/experimental/async_grpo/vllm_client.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.VLLMClient


def sample(url, model, prompt):
    """What the rollout worker sends."""
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0.0, "n": 1, "logprobs": 0,
            "return_token_ids": True, "seed": 2**63 - 1}
    answer = requests.post(f"{url}/v1/completions", json=body, timeout=60)
    answer.raise_for_status()
    choice = answer.json()["choices"][0]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["token_logprobs"])
    assert all(isinstance(value, float) for value in choice["logprobs"]["token_logprobs"])
    assert choice["finish_reason"] in ("stop", "length")
    return choice["token_ids"]


def main(url, *adapters):
    client = load_client()(url, server_timeout=60)
    client.wait_for_server_ready()
    assert client.get_max_model_len() > 0
    assert client.get_dtype().startswith("torch.")
    info = client.get_server_info()
    assert info["lora_config"]["max_lora_rank"] >= 8
    assert info["lora_config"]["max_loras"] >= 2 and info["parallel_config"]["data_parallel_size"] == 1
    assert client.get_world_size() == 1
    outputs = []
    for version, path in enumerate(adapters):
        client.pause()
        client.load_lora_adapter(f"trl-policy-v{version}", path)
        client.resume()
        outputs.append(sample(url, f"trl-policy-v{version}", [5, 6, 7, 8]))
        if version > 0:
            client.unload_lora_adapter(f"trl-policy-v{version - 1}")
            gone = requests.post(f"{url}/v1/completions", json={"model": f"trl-policy-v{version - 1}", "prompt": [5]}, timeout=60)
            assert gone.status_code == 404, gone.text
    assert len({tuple(output) for output in outputs}) == len(outputs), outputs
    client.unload_lora_adapter("trl-policy-v99")
    print(f"trl: {len(outputs)} policies pushed, sampled and taken out")


if __name__ == "__main__":
    main(*sys.argv[1:])
