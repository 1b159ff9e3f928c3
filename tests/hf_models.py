# SPDX-License-Identifier: Apache-2.0
"""Small folders as the Hugging Face hub has them: every key of config.json, and random weights."""

import json

import numpy as np

from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.models.families.registry import family_of_type

_COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "torch_dtype": "float32",
    "use_cache": True,
    "transformers_version": "4.57.0",
    "some_unknown_key": {"kept": [1, None]},
}
CONFIGS = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 61,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": None,
        "n_positions": 40,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
        "some_unknown_key": "kept",
    },
    "llama": {**_COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama_tied": {
        **_COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "tie_word_embeddings": True,
    },
    "qwen2": {**_COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {
        **_COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 16,
    },
    "mistral": {
        **_COMMON,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 5,
    },
    "mixtral": {
        **_COMMON,
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
}
CONFIGS_OF_OURS = {
    "pangu": {
        "architectures": ["GPTPanguForCausalLM"],
        "model_type": "gpt_pangu",
        "vocab_size": 61,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "intermediate_size": None,
        "max_position_embeddings": 40,
        "activation_function": "gelu",
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": 9,
        "eos_token_id": 9,
        "torch_dtype": "float32",
    },
}
"""Models that transformers knows only with code of the folder."""
IDS = np.random.RandomState(1).randint(3, 61, (2, 12))
LEFT_PADDED = np.array([[0] * 4 + [1] * 8, [1] * 12])


def tensors_of(config, seed=0):
    """Name -> fp32 array, of every tensor of a model."""
    draw = np.random.RandomState(seed)
    family = family_of_type(config["model_type"])
    found = {}
    for place in family.places_of(family.config(config), config["vocab_size"]):
        values = draw.standard_normal(place.shape) * 0.2
        is_norm = len(place.shape) == 1 and place.theirs.endswith("weight")
        found[family.full_name(place.theirs)] = (values + is_norm).astype(np.float32)
    return found


def write(folder, kind, seed=0, **changes):
    """Write the folder of a kind; return its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**(CONFIGS | CONFIGS_OF_OURS)[kind], **changes}
    entries = [
        safetensors.Entry(name, "F32", array.shape, lambda array=array: array.reshape(-1))
        for name, array in tensors_of(config, seed).items()
    ]
    safetensors.write_file(folder / "model.safetensors", entries, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return config
