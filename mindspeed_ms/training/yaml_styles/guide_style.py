# SPDX-License-Identifier: Apache-2.0
"""The YAML style of the 38BV3 example: train_config, accelerate_config, model_config.llm.

Its nested keys are translated to the sections of :class:`~mindspeed_ms.core.config.AllConfig`;
nothing else knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.build import Sections
from mindspeed_ms.config.coercion import no_pairs, shown, unknown_key
from mindspeed_ms.config.dtypes import BFLOAT16, FLOAT16, FLOAT32, parse_dtype

GUIDE_SECTIONS = frozenset({"train_config", "accelerate_config"})
"""Top-level names that only this style has."""

_PARALLELIZATION = "accelerate_config.parallelization"
_PIPELINE = f"{_PARALLELIZATION}.pipeline"
_PRECISION = "accelerate_config.precision"
_BLOCKS = "model_config.llm.blocks"

TARGETS: Mapping[str, str] = MappingProxyType(
    {
        "train_config.recompute_config.recompute": "parallel_config.recompute",
        "train_config.recompute_config.select_recompute": "parallel_config.select_recompute",
        "train_config.recompute_config.select_comm_recompute": (
            "parallel_config.select_comm_recompute"
        ),
        f"{_PARALLELIZATION}.tensor_parallel": "parallel_config.tensor_model_parallel_size",
        f"{_PARALLELIZATION}.use_sequence_parallel": "parallel_config.sequence_parallel",
        f"{_PARALLELIZATION}.use_distributed_optimizer": (
            "training_config.use_distributed_optimizer"
        ),
        f"{_PIPELINE}.num_stages": "parallel_config.pipeline_model_parallel_size",
        f"{_PIPELINE}.layer_list": "parallel_config.num_layer_list",
        f"{_PIPELINE}.micro_batch_size": "dataset_config.batch_size",
        f"{_PIPELINE}.noop_layers": "parallel_config.noop_layers",
        f"{_PIPELINE}.num_layers_per_vpp": "parallel_config.num_layers_per_virtual_pipeline_stage",
        f"{_PIPELINE}.virtual_pipeline_model_parallel_size": (
            "parallel_config.virtual_pipeline_model_parallel_size"
        ),
        f"{_PRECISION}.param_init_dtype": "model_config.params_dtype",
        f"{_PRECISION}.compute_dtype": "model_config.compute_dtype",
        f"{_PRECISION}.softmax_compute_dtype": "model_config.softmax_compute_dtype",
        f"{_PRECISION}.residual-connection": "model_config.residual_connection_dtype",
        "model_config.llm.tokenizer.padded_size": "model_config.vocab_size",
        "model_config.llm.tokenizer.divided_by": "dataset_config.make_vocab_size_divisible_by",
        "model_config.llm.tokenizer.use_fast": "dataset_config.tokenizer_use_fast",
        "model_config.llm.embedding.hidden_size": "model_config.hidden_size",
        "model_config.llm.embedding.init_std": "model_config.embedding_init_method_std",
        "model_config.llm.position.type": "model_config.position_embedding_type",
        "model_config.llm.position.rope_base": "model_config.rotary_base",
        f"{_BLOCKS}.num_layers": "model_config.num_layers",
        f"{_BLOCKS}.init_std": "model_config.init_method_std",
        f"{_BLOCKS}.sandwich_norm": "model_config.use_sandwich_norm",
        f"{_BLOCKS}.layernorm.norm_type": "model_config.normalization",
        f"{_BLOCKS}.layernorm.epsilon": "model_config.norm_epsilon",
        f"{_BLOCKS}.attention.head_num": "model_config.num_attention_heads",
        f"{_BLOCKS}.attention.qkv_bias": "model_config.qkv_has_bias",
        f"{_BLOCKS}.attention.projection_bias": "model_config.out_proj_has_bias",
        f"{_BLOCKS}.attention.dropout_rate": "model_config.attention_dropout_rate",
        f"{_BLOCKS}.attention.post_norm_scale": "model_config.attn_post_norm_scale",
        f"{_BLOCKS}.ffn.hidden_size": "model_config.ffn_hidden_size",
        f"{_BLOCKS}.ffn.activation": "model_config.hidden_act",
        f"{_BLOCKS}.ffn.dropout_rate": "model_config.hidden_dropout_rate",
        f"{_BLOCKS}.ffn.mlp_bias": "model_config.mlp_has_bias",
        f"{_BLOCKS}.ffn.post_norm_scale": "model_config.ffn_post_norm_scale",
    }
)
"""Keys that move to one field unchanged."""

PASSED_THROUGH = "train_config.ms_training_config"
"""Block whose keys are those of training_config."""


def is_guide_style(document: Mapping[str, Any]) -> bool:
    """Tell whether a YAML document uses this style."""
    model = document.get("model_config")
    return bool(GUIDE_SECTIONS & set(document)) or (isinstance(model, Mapping) and "llm" in model)


def translate(document: Mapping[str, Any]) -> Sections:
    """Return the sections that a document of this style describes.

    Sections of the flat style may stand beside the nested ones; they are taken as they are.

    Raises:
        ValueError: an unknown key, or a value that names no known operator, type or attention.

    """
    sections: Sections = {}
    nested: dict[str, Any] = {}
    for name, body in document.items():
        if name in GUIDE_SECTIONS:
            nested[name] = body
        elif name == "model_config" and isinstance(body, Mapping) and "llm" in body:
            flat = {key: value for key, value in body.items() if key != "llm"}
            sections.setdefault(name, {}).update(flat)
            nested[name] = {"llm": body["llm"]}
        elif body is None or isinstance(body, Mapping):
            sections.setdefault(name, {}).update(body or {})
        else:
            raise no_pairs(name, body)
    for path, value in _leaves(nested):
        if value is not None:
            _place(path, value, sections)
    return sections


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every key that holds no further keys."""
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _place(path: str, value: Any, sections: Sections) -> None:
    if path in TARGETS:
        section, _, key = TARGETS[path].partition(".")
        sections.setdefault(section, {})[key] = value
    elif path in SPECIAL:
        for target, translated in SPECIAL[path](value).items():
            section, _, key = target.partition(".")
            sections.setdefault(section, {})[key] = translated
    elif path.startswith(f"{PASSED_THROUGH}."):
        sections.setdefault("training_config", {})[path.rpartition(".")[2]] = value
    else:
        raise _unplaced(path, value)


def _unplaced(path: str, value: Any) -> ValueError:
    """Return the error for a path this style does not have."""
    paths = [*TARGETS, *SPECIAL, f"{PASSED_THROUGH}.wrap_with_ddp"]
    if any(name.startswith(f"{path}.") for name in paths):
        return no_pairs(path, value)
    parent, _, key = path.rpartition(".")
    start = f"{parent}." if parent else ""
    known = {name.removeprefix(start).split(".")[0] for name in paths if name.startswith(start)}
    return unknown_key(parent or "the file", key, known)


# --- keys that need more than a new name ----------------------------------------------------------


def _max_size(value: Any) -> dict[str, Any]:
    return {"model_config.seq_length": value, "model_config.max_position_embeddings": value}


def _logits_dtype(value: Any) -> dict[str, Any]:
    dtype = parse_dtype(value)
    if dtype == BFLOAT16:
        raise ValueError(
            f"{_PRECISION}.logits_compute_dtype is {shown(value)}, but the loss takes float32 or "
            "float16 logits; use float32"
        )
    return {"model_config.fp16_lm_cross_entropy": dtype == FLOAT16}


def _gradient_dtype(value: Any) -> dict[str, Any]:
    is_float32 = parse_dtype(value) == FLOAT32
    return {"training_config.accumulate_allreduce_grads_in_fp32": is_float32}


def _attention_type(value: Any) -> dict[str, Any]:
    if value not in ("GQA", "MHA", "MQA"):
        raise ValueError(
            f"{_BLOCKS}.attention.attention_type is {shown(value)}, but must be GQA, MHA or MQA; "
            "correct it"
        )
    result: dict[str, Any] = {"model_config.group_query_attention": value != "MHA"}
    if value == "MQA":
        result["model_config.num_query_groups"] = 1
    return result


def _shared_embedding(value: Any) -> dict[str, Any]:
    return {"model_config.untie_embeddings_and_output_weights": not value}


def _operator_names(value: Any) -> list[str]:
    if not isinstance(value, str | list):
        raise ValueError(
            f"{_PRECISION}.fused_operators is {shown(value)}, but must be a list of operators"
        )
    names = value.split(",") if isinstance(value, str) else value
    names = [str(name).strip() for name in names if str(name).strip()]
    for name in names:
        if name not in _OPERATORS:
            raise unknown_key(f"{_PRECISION}.fused_operators", name, _OPERATORS)
    return names


def _fused(value: Any) -> dict[str, Any]:
    return {_OPERATORS[name]: True for name in _operator_names(value) if _OPERATORS[name]}


def _not_fused(value: Any) -> dict[str, Any]:
    return {_OPERATORS[name]: False for name in _operator_names(value) if _OPERATORS[name]}


PENDING = "pending"
"""Section of choices that can only be placed when all files are known."""

_FUSED_NORM = f"{PENDING}.fused_norm"
_OPERATORS: Mapping[str, str] = MappingProxyType(
    {
        "flash_attention": "model_config.use_flash_attention",
        "rope": "model_config.apply_rope_fusion",
        "rmsnorm": _FUSED_NORM,
        "swiglu": "model_config.apply_swiglu_fusion",
        "gradient_accumulation": "parallel_config.gradient_accumulation_fusion",
        "masked_softmax": "",  # the unfused attention path has one softmax
    }
)
"""Operator -> the field that asks for its fused kernel, empty when there is nothing to choose."""

SPECIAL: Mapping[str, Callable[[Any], dict[str, Any]]] = MappingProxyType(
    {
        "model_config.llm.position.max_size": _max_size,
        f"{_BLOCKS}.attention.attention_type": _attention_type,
        f"{_BLOCKS}.attention.kv_group_size": lambda value: {
            "model_config.num_query_groups": value
        },
        "model_config.llm.head.shared_embedding": _shared_embedding,
        f"{_PRECISION}.logits_compute_dtype": _logits_dtype,
        f"{_PRECISION}.grad_accumulation_dtype": _gradient_dtype,
        f"{_PRECISION}.fused_operators": _fused,
        f"{_PRECISION}.nofused_operators": _not_fused,
    }
)
"""Keys that set other values, or several."""


def join_kernel_choices(sections: Sections) -> None:
    """Turn RMSNorm plus its fused kernel into FusedRMSNorm, once all files are merged.

    This style states the norm in the model file and the kernel in the accelerate file.
    """
    pending = sections.pop(PENDING, {})
    model = sections.get("model_config", {})
    if pending.get("fused_norm") and model.get("normalization") == "RMSNorm":
        model["normalization"] = "FusedRMSNorm"
