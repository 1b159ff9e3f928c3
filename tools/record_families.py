# SPDX-License-Identifier: Apache-2.0
"""Record what tiny models of every family compute in ``transformers``.

Run it in an environment with ``transformers`` and ``torch``::

    python tools/record_families.py [CASE ...]

Each case becomes ``tests/data/families/CASE.json``, one of rare settings a file in ``unusual/``
there: the ``config.json`` as ``transformers`` writes it, names and shapes of the tensors, a prompt,
its logits, and the tokens that follow greedily. The weights are those of
``tests/family_weights.py``, so they are not recorded.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "tests" / "data" / "families"
sys.path.insert(0, str(ROOT / "tests"))

from family_weights import values  # noqa: E402 - beside the tests

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
GLM_EXPERTS = {
    **{"head_dim": 8, "attention_bias": True, "n_routed_experts": 8, "n_shared_experts": 1},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 12, "routed_scaling_factor": 1.5},
}
GLM = {
    **HEAD,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
}
WINDOWS = {"sliding_window": 6}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}


def rope(kind: str, **entries: Any) -> dict[str, Any]:
    """A ``rope_parameters`` of version 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **entries}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}),
    "llama": ("Llama", {}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama_linear": ("Llama", rope("linear", factor=3.0)),
    "llama_dynamic": ("Llama", {**rope("dynamic", factor=3.0), "max_position_embeddings": 12}),
    "llama_llama3": (
        "Llama",
        rope(
            "llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=3.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama_yarn": ("Llama", {"rope_parameters": {**YARN, "beta_fast": 16.0, "mscale": 1.0}}),
    "mistral": ("Mistral", WINDOWS),
    "mixtral": ("Mixtral", {"num_local_experts": 4, **WINDOWS}),
    "qwen2": (
        "Qwen2",
        {**WINDOWS, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", HEAD),
    "qwen2_moe": (
        "Qwen2Moe",
        {**EXPERTS, "shared_expert_intermediate_size": 20, "mlp_only_layers": [0]},
    ),
    "qwen2_moe_normed": (
        "Qwen2Moe",
        {
            **EXPERTS,
            "shared_expert_intermediate_size": 20,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "qkv_bias": False,
        },
    ),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, **HEAD, "norm_topk_prob": True}),
    "gemma": ("Gemma", HEAD),
    "gemma2": ("Gemma2", {**HEAD, **WINDOWS, "query_pre_attn_scalar": 12}),
    "gemma3_text": (
        "Gemma3Text",
        {
            **HEAD,
            **WINDOWS,
            "query_pre_attn_scalar": 12,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3", {**WINDOWS, "original_max_position_embeddings": 64}),
    "phi3_longrope": (
        "Phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.2],
                "long_factor": [1.0, 2.0, 3.5],
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "gpt_neox_sequential": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False}),
    "olmo2": ("Olmo2", {}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
        },
    ),
    "glm": ("Glm", HEAD),
    "glm4": ("Glm4", HEAD),
    "deepseek_v2": ("DeepseekV2", {**LATENT, "topk_method": "greedy", "q_lora_rank": None}),
    "deepseek_v2_groups": (
        "DeepseekV2",
        {
            **LATENT,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.8},
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **LATENT,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v3_halves": (
        "DeepseekV3",
        {
            **{**LATENT, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
            **{"rope_interleave": False, "attention_bias": True, "num_nextn_predict_layers": 0},
        },
    ),
    "deepseek_v32": (
        "DeepseekV32",
        {
            **LATENT,
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "index_topk": 6,
            "index_n_heads": 16,
            "index_head_dim": 8,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "seed_oss": ("SeedOss", {**HEAD, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    "smollm3": (
        "SmolLM3",
        {
            **WINDOWS,
            "use_sliding_window": True,
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
        },
    ),
    "starcoder2": ("Starcoder2", WINDOWS),
    "exaone4": (
        "Exaone4",
        {**HEAD, **WINDOWS, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ministral": (
        "Ministral",
        {**HEAD, **WINDOWS, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "ernie4_5": ("Ernie4_5", {"head_dim": 12}),
    "arcee": ("Arcee", {}),
    "nemotron": ("Nemotron", {}),
    "glm4_moe": ("Glm4Moe", GLM_EXPERTS),
    "kimi_k2": (
        "DeepseekV3",
        {
            **{**LATENT, "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0},
            "rope_parameters": {
                **{**YARN, "beta_fast": 1.0, "beta_slow": 1.0},
                **{"mscale": 1.0, "mscale_all_dim": 1.0},
            },
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            **HEAD,
            **WINDOWS,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "swiglu_limit": 1.5,
            "rope_parameters": {**YARN, "truncate": False, "beta_fast": 32.0, "beta_slow": 1.0},
        },
    ),
    "dots1": (
        "Dots1",
        {**GLM, **WINDOWS, "max_window_layers": 1, "norm_topk_prob": True, "attention_bias": True},
    ),
    "olmo3": (
        "Olmo3",
        {
            **WINDOWS,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
    ),
    "helium": ("Helium", HEAD),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}),
}
UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_tied_odd": (
        "Llama",
        {
            "tie_word_embeddings": True,
            "vocab_size": 53,
            "head_dim": 20,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-3,
            "hidden_act": "gelu",
        },
    ),
    "llama_yarn_factor": ("Llama", {"rope_parameters": {**YARN, "attention_factor": 0.7}}),
    "gpt2_untied": (
        "GPT2",
        {
            **{"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "n_inner": 37},
            **{"tie_word_embeddings": False, "activation_function": "gelu", "vocab_size": 51},
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "mixtral_jitter": (
        "Mixtral",
        {"num_local_experts": 3, "router_jitter_noise": 0.1, "head_dim": 12},
    ),
    "qwen2_types": (
        "Qwen2",
        {
            **{**WINDOWS, "use_sliding_window": True, "tie_word_embeddings": True},
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3_moe_mixed": (
        "Qwen3Moe",
        {
            **{**EXPERTS, "head_dim": 12, "num_hidden_layers": 3, "mlp_only_layers": [1]},
            **{"norm_topk_prob": False, "attention_bias": True, "tie_word_embeddings": True},
        },
    ),
    "gemma2_without_caps": (
        "Gemma2",
        {
            **{**HEAD, **WINDOWS, "query_pre_attn_scalar": 7, "attention_bias": True},
            **{"final_logit_softcapping": None, "attn_logit_softcapping": None},
        },
    ),
    "gemma3_text_rope": (
        "Gemma3Text",
        {
            **{**HEAD, **WINDOWS, "num_hidden_layers": 3, "final_logit_softcapping": 7.0},
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3_factor": (
        "Phi3",
        {
            "sliding_window": 5,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                **{"rope_type": "longrope", "rope_theta": 1e4, "attention_factor": 1.3},
                **{"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.5, 4.0]},
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "gpt_neox_tied": (
        "GPTNeoX",
        {
            **{"tie_word_embeddings": True, "hidden_act": "gelu_new", "intermediate_size": 50},
            "rope_parameters": {"rope_theta": 1e3, "partial_rotary_factor": 1.0},
            "vocab_size": 51,
        },
    ),
    "olmo2_biases": (
        "Olmo2",
        {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": {**YARN}},
    ),
    "olmoe_normed": (
        "Olmoe",
        {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "granite_biases": (
        "Granite",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    ),
    "glm4_biases": ("Glm4", {**HEAD, "attention_bias": True, "tie_word_embeddings": True}),
    "deepseek_v3_dense": (
        "DeepseekV3",
        {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 2, "n_group": 1, "topk_group": 1},
    ),
    "deepseek_v3_uneven_groups": (
        "DeepseekV3",
        {
            **{**LATENT, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
            "rms_norm_eps": 1e-2,
        },
    ),
    "deepseek_v3_single": (
        "DeepseekV3",
        {
            **{**LATENT, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 1},
            **{"q_lora_rank": None, "rope_interleave": False},
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v2_biases": (
        "DeepseekV2",
        {**LATENT, "topk_method": "greedy", "attention_bias": True, "norm_topk_prob": True},
    ),
    "mixtral_single": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1}),
    "qwen3_moe_single": (
        "Qwen3Moe",
        {**EXPERTS, **HEAD, "num_experts_per_tok": 1, "norm_topk_prob": True},
    ),
    "seed_oss_biases": (
        "SeedOss",
        {
            **{"head_dim": 12, "attention_bias": False, "attention_out_bias": True},
            **{"mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu"},
        },
    ),
    "smollm3_plain": (
        "SmolLM3",
        {
            **{"no_rope_layer_interval": 2, "num_hidden_layers": 4, "attention_bias": True},
            **{"mlp_bias": True, "tie_word_embeddings": False},
            "rope_parameters": {**YARN},
        },
    ),
    "starcoder2_plain": (
        "Starcoder2",
        {
            **{"use_bias": False, "tie_word_embeddings": False, "norm_epsilon": 1e-3},
            **{"hidden_act": "gelu", "num_key_value_heads": 1},
        },
    ),
    "exaone4_full": (
        "Exaone4",
        {
            **{"sliding_window": None, "layer_types": ["full_attention"] * 2},
            **{"tie_word_embeddings": True, "num_key_value_heads": 4},
            "rope_parameters": {
                **{"rope_type": "llama3", "rope_theta": 1e4, "factor": 16.0},
                **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "exaone4_pattern": (
        "Exaone4",
        {**WINDOWS, "sliding_window_pattern": 3, "num_hidden_layers": 4},
    ),
    "exaone4_unrotated": ("Exaone4", {**WINDOWS, "layer_types": ["full_attention"] * 2}),
    "ministral_all": ("Ministral", {**HEAD, **WINDOWS, "tie_word_embeddings": True}),
    "ernie4_5_biases": (
        "Ernie4_5",
        {"use_bias": True, "tie_word_embeddings": False, "rms_norm_eps": 1e-3},
    ),
    "arcee_biases": (
        "Arcee",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_act": "gelu",
            "rope_parameters": {**YARN},
        },
    ),
    "nemotron_biases": (
        "Nemotron",
        {
            **{"attention_bias": True, "mlp_bias": True, "head_dim": 12, "norm_eps": 1e-3},
            **{"tie_word_embeddings": True, "hidden_act": "silu"},
            "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0},
        },
    ),
    "glm4_moe_groups": (
        "Glm4Moe",
        {
            **{**GLM_EXPERTS, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
            **{"use_qk_norm": True, "attention_bias": False, "norm_topk_prob": False},
            **{"n_shared_experts": 2, "num_nextn_predict_layers": 0, "first_k_dense_replace": 0},
        },
    ),
    "dots1_scores": (
        "Dots1",
        {**GLM, "sliding_window": None, "n_shared_experts": 2, "tie_word_embeddings": True},
    ),
    "olmo3_pattern": ("Olmo3", {**WINDOWS, "num_hidden_layers": 4, "attention_bias": True}),
    "helium_biases": (
        "Helium",
        {**HEAD, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "bloom_late": (
        "Bloom",
        {
            **{"n_layer": 2, "n_head": 6, "hidden_size": 24, "tie_word_embeddings": False},
            **{"apply_residual_connection_post_layernorm": True, "vocab_size": 51},
        },
    ),
    "smollm3_lists": (
        "SmolLM3",
        {
            **{**WINDOWS, "use_sliding_window": True, "no_rope_layers": [0, 1]},
            **{"layer_types": ["full_attention", "sliding_attention"], "attention_bias": True},
            **{"mlp_bias": True, "tie_word_embeddings": False},
        },
    ),
    "gpt_oss_plain": (
        "GptOss",
        {
            **{"head_dim": 12, **WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 4},
            **{"attention_bias": False, "rope_parameters": {"rope_type": "default"}},
        },
    ),
}
"""Settings that are legal and rare."""

UNKNOWN = {
    "GPT2": SIZES.keys() - {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"},
    "GPTNeoX": {"num_key_value_heads"},
    "Bloom": SIZES.keys()
    - {"vocab_size", "hidden_size", "bos_token_id", "eos_token_id", "pad_token_id"},
}
"""Sizes that a configuration has no key for."""

RENAMED = {"kimi_k2"}
"""Cases of a model type that computes as another one does, whose class there is."""

PROMPT, NEW = 20, 4


def model_of(name: str, changes: dict[str, Any]) -> torch.nn.Module:
    """A random model."""
    sizes = {key: value for key, value in SIZES.items() if key not in UNKNOWN.get(name, ())}
    config = getattr(transformers, f"{name}Config")(**{**sizes, **changes})
    return transformers.AutoModelForCausalLM.from_config(config)


def record(case: str) -> None:
    """Write one case."""
    is_usual = case in CASES
    name, changes = CASES[case] if is_usual else UNUSUAL[case]
    with tempfile.TemporaryDirectory() as folder:
        model_of(name, changes).save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        shapes = {key: tuple(tensor.shape) for key, tensor in load_file(path).items()}
        tensors = {key: values(key, shape) for key, shape in shapes.items()}
        save_file(tensors, path, metadata={"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        config = json.loads((Path(folder) / "config.json").read_text())
    if case in RENAMED:
        config["model_type"] = case
    ids = np.random.RandomState(7).randint(0, SIZES["vocab_size"], PROMPT).tolist()
    tokens = list(ids)
    with torch.no_grad():
        for step in range(NEW):
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
            if step == 0:
                first = logits.double().numpy()
            tokens.append(int(logits[-1].argmax()))
    sys.stdout.write(f"{case}: {len(shapes)} tensors, logits to {np.abs(first).max():.3g}\n")
    content = {
        "config": config,
        "tensors": shapes,
        "prompt": ids,
        "greedy": tokens[PROMPT:],
        "logits": [[float(f"{value:.8g}") for value in row] for row in first],
    }
    target = TARGET if is_usual else TARGET / "unusual"
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{case}.json").write_text(json.dumps(content) + "\n")


def record_defaults() -> None:
    """Write what each class of configurations takes for a key that a file leaves out."""
    types = {json.loads(path.read_text())["config"]["model_type"] for path in TARGET.glob("*.json")}
    defaults = {}
    for model_type in sorted(types):
        values = transformers.CONFIG_MAPPING[model_type]().to_dict()
        defaults[model_type] = {
            key: value
            for key, value in values.items()
            if key not in ("id2label", "label2id", "transformers_version")
        }
    text = json.dumps(defaults, separators=(",", ":"), default=str)
    (TARGET.parent / "family_defaults.json").write_text(text + "\n")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [*CASES, *UNUSUAL]:
        record(wanted)
    record_defaults()
