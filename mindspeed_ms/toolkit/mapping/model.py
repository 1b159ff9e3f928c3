# SPDX-License-Identifier: Apache-2.0
"""Model configurations of MindFormers: GPT-2 and Llama.

Source: MindFormers' ``GPT2Config`` and ``LlamaConfig``, r0.3 and r1.0 (names and defaults).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config.dtypes import BFLOAT16, FLOAT16, parse_dtype
from mindspeed_ms.config.section import suggestion
from mindspeed_ms.config.transformer_config import padded_vocab_size
from mindspeed_ms.toolkit.mapping.rows import (
    Inert,
    Joint,
    Mapped,
    Means,
    Refused,
    Table,
    To,
    Values,
    apply,
    inert,
)

_FP32_NORM = "norms are computed in float32"
_GENERATION = (
    "top_k",
    "top_p",
    "temperature",
    "do_sample",
    "repetition_penalty",
    "max_decode_length",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_beams",
    "is_encoder_decoder",
)


def _compute_dtype(value: object) -> Values:
    dtype = parse_dtype(value)
    switches = {FLOAT16: "training_config.fp16", BFLOAT16: "training_config.bf16"}
    values: dict[str, Any] = {"model_config.compute_dtype": dtype}
    if dtype in switches:
        values[switches[dtype]] = True
    return values


def _dtype_of(target: str) -> Means:
    return Means(lambda value: {target: parse_dtype(value)})


def _lora(value: object) -> Values:
    if not isinstance(value, Mapping):
        raise ValueError("must be a block with pet_type and the adapter's sizes")
    names = {"lora_rank": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
    known = {"pet_type", "target_modules", *names}
    for key in value:
        if key not in known:
            raise ValueError(f"has no key {key!r}{suggestion(str(key), known)}")
    if value.get("pet_type", "lora") not in ("lora", "", None):
        raise ValueError("pet_type must be lora")
    values: dict[str, Any] = {"lora_config.use_lora": bool(value.get("pet_type", "lora"))}
    for key, name in names.items():
        if value.get(key) is not None:
            values[f"lora_config.{name}"] = value[key]
    if value.get("target_modules"):
        values["lora_config.target_cells"] = ({"target_cells": [value["target_modules"]]},)
    return values


_COMMON: Table = {
    "type": Joint(),
    "batch_size": Inert("runner_config.batch_size is the batch", (1,)),
    "seq_length": To("model_config.seq_length"),
    "hidden_size": To("model_config.hidden_size"),
    "num_layers": To("model_config.num_layers"),
    "num_heads": To("model_config.num_attention_heads"),
    "vocab_size": Joint(),
    "max_position_embeddings": To("model_config.max_position_embeddings"),
    "initializer_range": To("model_config.init_method_std"),
    "param_init_type": _dtype_of("model_config.params_dtype"),
    "compute_dtype": Means(_compute_dtype),
    "softmax_compute_type": _dtype_of("model_config.softmax_compute_dtype"),
    "layernorm_compute_type": Inert(_FP32_NORM, ("float32", "mstype.float32")),
    "use_flash_attention": To("model_config.use_flash_attention"),
    "checkpoint_name_or_path": Joint(),
    "parallel_config": Inert("set_parallel_config, or the file's own block, cuts the model", ({},)),
    "pet_config": Means(_lora),
    "eos_token_id": To("dataset_config.eos_token_id"),
    "pad_token_id": Joint(),
    "bos_token_id": Joint(),
    "unk_token_id": Joint(),
    "ignore_token_id": Inert("labels of -100 carry no loss", (-100,)),
    "use_past": Inert("generation keeps keys and values", (True,)),
    "is_dynamic": Inert("shapes may change", (True,)),
    "offset": Refused("give num_layer_list in a configuration of our own"),
    "use_moe": Inert("moe_config says whether there are experts"),
    **{name: Joint() for name in _GENERATION},
    **inert(
        (
            "use_prompt_flash_attention",
            "use_incre_flash_attention",
            "use_paged_attention",
            "use_select_softmax",
            "use_ring_attention",
            "fine_grain_interleave",
            "use_rope_slice",
            "use_kvcache_op",
            "is_flexible_shape",
            "block_size",
            "num_blocks",
            "parallel_optimizer",
            "quant_config",
        ),
        "the fastest kernel is taken",
        1,
    ),
}

GPT2: Table = {
    **_COMMON,
    "expand_ratio": Joint(),
    "hidden_act": Joint(),
    "embedding_dropout_prob": Joint(),
    "hidden_dropout_rate": To("model_config.hidden_dropout_rate"),
    "attention_dropout_rate": To("model_config.attention_dropout_rate"),
    "post_layernorm_residual": To("model_config.apply_residual_connection_post_norm"),
}
LLAMA: Table = {
    **_COMMON,
    "n_kv_heads": Joint(),
    "multiple_of": Joint(),
    "ffn_dim_multiplier": Joint(),
    "intermediate_size": Joint(),
    "rms_norm_eps": To("model_config.norm_epsilon"),
    "theta": To("model_config.rotary_base"),
    "qkv_has_bias": To("model_config.qkv_has_bias"),
    "tie_word_embeddings": Joint(),
    "rotary_dtype": Inert("rotary angles are float32", ("float32", "float16")),
    "embedding_init_type": _dtype_of("model_config.embedding_init_dtype"),
    "scaling_factor": Refused("positions are not stretched", (1.0, 1)),
    "extend_method": Refused("positions are not stretched", ("None", "")),
    "rl_config": Refused("there is no reinforcement learning"),
}

ALIASES: Mapping[str, str] = {
    "embedding_size": "hidden_size",
    "dropout_prob": "embedding_dropout_prob",
    "dropout_rate": "embedding_dropout_prob",
    "hidden_dropout_prob": "hidden_dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
    "layernorm_dtype": "layernorm_compute_type",
    "softmax_dtype": "softmax_compute_type",
    "eos_token": "eos_token_id",
    "pad_token": "pad_token_id",
    "bos_token": "bos_token_id",
    "unk_token": "unk_token_id",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "num_key_value_heads": "n_kv_heads",
    "rope_theta": "theta",
}
"""Older and other names of the keys of a model configuration."""


# --- families -------------------------------------------------------------------------------------


def _gpt2(mapped: Mapped, joint: Mapping[str, Any]) -> None:
    hidden = mapped.get("model_config.hidden_size")
    ratio = joint["expand_ratio"]
    activation = joint["hidden_act"]
    if activation not in _GPT2_ACTIVATIONS:
        raise ValueError(
            f"model_config.hidden_act is {activation!r}; there are "
            f"{', '.join(_GPT2_ACTIVATIONS)}{suggestion(str(activation), _GPT2_ACTIVATIONS)}"
        )
    if activation == "fast_gelu":
        mapped.lines.append("hidden_act fast_gelu is computed in its tanh form")
    if not isinstance(ratio, int | float) or ratio <= 0:
        raise ValueError(f"model_config.expand_ratio is {ratio!r}, but must be a number above 0")
    mapped.put(
        {
            "model_config.ffn_hidden_size": int(ratio * hidden),
            "model_config.hidden_act": _GPT2_ACTIVATIONS[activation],
            "model_config.position_embedding_type": "learned_absolute",
            "model_config.normalization": "LayerNorm",
            "model_config.norm_epsilon": 1e-5,
            "model_config.add_bias_linear": True,
        }
    )
    for_all = mapped.get("model_config.hidden_dropout_rate")
    of_embedding = joint["embedding_dropout_prob"]
    if of_embedding != for_all:
        mapped.lines.append(
            f"embedding_dropout_prob {of_embedding} has no effect: the embedding drops as the "
            f"layers do, hidden_dropout_rate {for_all}"
        )


_GPT2_ACTIVATIONS = {
    "gelu": "fast_gelu",  # MindSpore's gelu is the tanh form
    "gelu_new": "fast_gelu",
    "fast_gelu": "fast_gelu",
    "gelu_erf": "gelu",
}


def llama_ffn_width(hidden: int, multiple_of: int, multiplier: float | None) -> int:
    """Inner width of Llama's feed-forward block: two thirds of 4 h, rounded up to a multiple.

    Source: MindFormers and Meta's Llama (formula).

    >>> llama_ffn_width(4096, 256, None)
    11008
    """
    width = 4 * hidden if multiplier is None else int((multiplier + 0.01) * 4 * hidden)
    width = int(2 * width / 3)
    return multiple_of * -(-width // multiple_of)


def _llama(mapped: Mapped, joint: Mapping[str, Any]) -> None:
    hidden = mapped.get("model_config.hidden_size")
    width = joint.get("intermediate_size") or llama_ffn_width(
        hidden, joint["multiple_of"], joint.get("ffn_dim_multiplier")
    )
    groups = joint.get("n_kv_heads")
    mapped.put(
        {
            "model_config.ffn_hidden_size": width,
            "model_config.hidden_act": "swiglu",
            "model_config.position_embedding_type": "rope",
            "model_config.normalization": "RMSNorm",
            "model_config.untie_embeddings_and_output_weights": not joint.get(
                "tie_word_embeddings", False
            ),
            "model_config.out_proj_has_bias": False,
            "model_config.mlp_has_bias": False,
        }
    )
    if groups is not None:
        mapped.put(
            {
                "model_config.group_query_attention": True,
                "model_config.num_query_groups": groups,
            }
        )


@dataclass(frozen=True, slots=True)
class Family:
    """What one kind of model configuration holds."""

    table: Table
    defaults: Mapping[str, Any]
    """Of its configuration class, by today's names."""
    complete: Callable[[Mapped, Mapping[str, Any]], None]
    """Fills what follows from several keys."""


FAMILIES: Mapping[str, Family] = {
    "GPT2Config": Family(
        GPT2,
        {
            "seq_length": 1024,
            "vocab_size": 50257,
            "hidden_size": 768,
            "num_layers": 12,
            "num_heads": 12,
            "expand_ratio": 4,
            "hidden_act": "gelu",
            "embedding_dropout_prob": 0.1,
            "hidden_dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "initializer_range": 0.02,
            "param_init_type": "float32",
            "compute_dtype": "float16",
            "softmax_compute_type": "float32",
            "eos_token_id": 50256,
        },
        _gpt2,
    ),
    "LlamaConfig": Family(
        LLAMA,
        {
            "seq_length": 2048,
            "vocab_size": 32000,
            "hidden_size": 4096,
            "num_layers": 32,
            "num_heads": 32,
            "multiple_of": 256,
            "rms_norm_eps": 1e-5,
            "theta": 10000.0,
            "initializer_range": 0.02,
            "qkv_has_bias": False,
            "param_init_type": "float16",
            "compute_dtype": "float16",
            "softmax_compute_type": "float32",
            "eos_token_id": 2,
        },
        _llama,
    ),
}
"""``type`` of a ``model_config`` block -> its family."""

ARCHITECTURES: Mapping[str, str] = {
    "GPT2LMHeadModel": "GPT2Config",
    "LlamaForCausalLM": "LlamaConfig",
}
"""``type`` of an ``arch`` block -> the configuration it takes."""


def family_of(kind: object) -> Family:
    """The family of a ``type``.

    Raises:
        ValueError: there is none; lists those there are.
    """
    if not isinstance(kind, str) or kind not in FAMILIES:
        near = suggestion(str(kind), FAMILIES) or f"; there are {', '.join(FAMILIES)}"
        raise ValueError(f"model_config.type {kind!r} is unknown{near}")
    return FAMILIES[kind]


def map_model(config: Mapping[str, Any], tensor_parallel: int = 1) -> Mapped:
    """Translate a ``model_config`` block.

    ``joint`` of the result holds the keys that say how to generate, and where weights are.

    Args:
        config: its keys, by today's names; ``type`` names the family.
        tensor_parallel: ranks that cut the vocabulary, which is filled up to a multiple.

    Raises:
        ValueError: an unknown family or key, a value of another type.
    """
    family = family_of(config.get("type"))
    given = {**family.defaults, **{k: v for k, v in config.items() if v is not None}}
    mapped = apply(given, family.table, "model_config")
    joint = mapped.joint
    vocabulary = joint.pop("vocab_size")
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or vocabulary < 1:
        raise ValueError(
            f"model_config.vocab_size is {vocabulary!r}, but must be a whole number of at least 1"
        )
    family.complete(mapped, joint)
    mapped.put(
        {
            "model_config.vocab_size": padded_vocab_size(vocabulary, 1, tensor_parallel),
            "dataset_config.vocab_size": vocabulary,
            "dataset_config.make_vocab_size_divisible_by": 1,
        }
    )
    kept = (*_GENERATION, "checkpoint_name_or_path", "pad_token_id", "bos_token_id", "unk_token_id")
    mapped.joint = {key: value for key, value in joint.items() if key in kept}
    return mapped
