"""Write the model and the adapters as Hugging Face and PEFT lay them out."""

import json

import torch
from safetensors.torch import save_file

from chat import SYSTEM
from data import SPECIALS
from lora import PROJECTIONS

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def export_base(model, shape, tokenizer, folder):
    """Write the model folder as Hugging Face lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    end, start, stop = (tokenizer.token_to_id(token) for token in SPECIALS)
    weights = {
        name: weight.to("cpu", torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "config.json",
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        | shape
        | {
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "pretraining_tp": 1,
            "bos_token_id": start,
            "eos_token_id": stop,
            "pad_token_id": end,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        },
    )
    write_json(
        folder / "generation_config.json", {"bos_token_id": start, "eos_token_id": [stop, end], "pad_token_id": end}
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {str(tokenizer.token_to_id(t)): {"content": t} | special for t in SPECIALS},
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": shape["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def export_adapter(weights, rank, folder):
    """Write an adapter folder as PEFT lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "loraplex-demo",
            "r": rank,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": list(PROJECTIONS),
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
            "rank_pattern": {},
            "alpha_pattern": {},
            "layers_to_transform": None,
            "layers_pattern": None,
        },
    )
