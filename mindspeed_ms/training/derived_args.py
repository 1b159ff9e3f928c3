"""Values of Megatron's arguments that follow from others.

Source: Megatron-LM core 0.8 to 0.12 ``validate_args`` (behaviour). Deliberate difference: sizes are
    never lowered silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_ms.config.dataset_config import DEFAULT_SPLIT
from mindspeed_ms.config.dtypes import BFLOAT16, FLOAT16, FLOAT32
from mindspeed_ms.config.transformer_config import (
    GATED_ACTIVATIONS,
    default_ffn_hidden_size,
    padded_vocab_size,
)

REPLACED_BY_MOCK_DATA = ("data_path", "train_data_path", "valid_data_path", "test_data_path")
"""Arguments that ``--mock-data`` leaves without effect."""

Values = dict[str, Any]
"""Attribute of the Namespace -> value."""


def derive(given: Mapping[str, Any]) -> Values:
    """Return a copy of the arguments with everything filled in that follows from them.

    Applying it twice changes nothing. Attributes that are absent are only added when others decide
    them.
    """
    values = dict(given)
    _translate_older(values)
    _derive_sizes(values)
    _derive_precision(values)
    _derive_layout(values)
    _derive_data(values)
    _derive_batch(values)
    if values.get("weight_decay_incr_style", "constant") == "constant":
        if values.get("weight_decay") is not None:
            _fill(values, "start_weight_decay", values["weight_decay"])
            _fill(values, "end_weight_decay", values["weight_decay"])
    return values


def _fill(values: Values, name: str, value: object) -> None:
    if values.get(name) is None:
        values[name] = value


_OTHER_ATTRIBUTES = (
    ("layernorm_epsilon", "norm_epsilon"),
    ("layernorm_zero_centered_gamma", "apply_layernorm_1p"),
    ("encoder_num_layers", "num_layers"),
)
"""(attribute of another version of Megatron, attribute here)."""

_ONE_OF_SEVERAL = ("moe_router_load_balancing_type", "moe_aux_loss_coeff")
"""Arguments that are one value in older versions of Megatron and a list in newer ones."""

_ZERO_LEVELS = {"no_shard": None, "optim": "z1", "optim_grads": "z2", "optim_grads_params": "z3"}
"""``--data-parallel-sharding-strategy`` -> what ranks shard."""


def _translate_older(values: Values) -> None:
    """Give today's arguments the values that older or other spellings state."""
    for other, name in _OTHER_ATTRIBUTES:
        if values.get(other) is not None:
            _fill(values, name, values[other])
        if values.get(name) is not None:
            values[other] = values[name]
    for name in _ONE_OF_SEVERAL:
        given = values.get(name)
        if isinstance(given, list):
            values[name] = tuple(given) if len(given) > 1 else next(iter(given), None)
    if values.get("recompute_activations"):
        values["recompute_granularity"] = "selective"
    method = values.get("activations_checkpoint_method")
    if values.get("checkpoint_activations") or method:
        _fill(values, "recompute_granularity", "full")
        _fill(values, "recompute_method", method or "uniform")
        _fill(values, "recompute_num_layers", values.get("checkpoint_num_layers") or 1)
    _translate_recompute_modules(values)
    if any(values.get(f"use_{name}_fsdp") for name in ("megatron", "custom")):
        _fill(values, "zero_level", _ZERO_LEVELS[values["data_parallel_sharding_strategy"]])
    if any(values.get(name) for name in ("use_torch_fsdp2", "enable_zero3", "layerzero")):
        _fill(values, "zero_level", "z3")


def _translate_recompute_modules(values: Values) -> None:
    """MindSpeed's switches for parts of a layer; a layer that is recomputed whole includes them."""
    asked = {
        "mlp_act": values.get("recompute_activation_function"),
        "layernorm": values.get("recompute_norm"),
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    if not names or values.get("recompute_granularity") == "full":
        return
    present = values.get("recompute_modules")
    if present is None:
        present = ["core_attn"] if values.get("recompute_granularity") == "selective" else []
    values["recompute_granularity"] = "selective"
    values["recompute_modules"] = [*present, *(name for name in names if name not in present)]


def _derive_sizes(values: Values) -> None:
    if values.get("encoder_seq_length") is not None:
        _fill(values, "seq_length", values["encoder_seq_length"])
    if values.get("seq_length") is not None:
        _fill(values, "encoder_seq_length", values["seq_length"])
        _fill(values, "max_position_embeddings", values["seq_length"])
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    is_swiglu = bool(values.get("swiglu")) or values.get("hidden_act") in GATED_ACTIVATIONS
    if hidden is not None:
        _fill(values, "ffn_hidden_size", default_ffn_hidden_size(hidden, is_swiglu))
        if heads and hidden % heads == 0:
            _fill(values, "kv_channels", hidden // heads)
    if values.get("use_rotary_position_embeddings"):
        values["position_embedding_type"] = "rope"
    _derive_vocab(values)


def _derive_vocab(values: Values) -> None:
    """Pad a vocabulary given as a number; other tokenizers tell their size when they are built."""
    size, kind = values.get("vocab_size"), values.get("tokenizer_type")
    if size is None or kind not in (None, "NullTokenizer"):
        return
    tokens = size + (kind == "NullTokenizer")  # which adds an end-of-document token
    padded = padded_vocab_size(
        tokens,
        values.get("make_vocab_size_divisible_by") or 1,
        values.get("tensor_model_parallel_size") or 1,
    )
    _fill(values, "padded_vocab_size", padded)


def _derive_precision(values: Values) -> None:
    if values.get("bf16"):
        switched = BFLOAT16
        values["accumulate_allreduce_grads_in_fp32"] = not values.get("grad_reduce_in_bf16")
    elif values.get("fp16"):
        switched = FLOAT16
        if values.get("loss_scale") is None:
            values["check_for_nan_in_loss_and_grad"] = False
    else:
        switched = FLOAT32
    if "bf16" in values or "fp16" in values:
        _fill(values, "params_dtype", switched)
        _fill(values, "compute_dtype", switched)
    if values.get("apply_query_key_layer_scaling"):
        values["attention_softmax_in_fp32"] = True


def _derive_layout(values: Values) -> None:
    tensor = values.get("tensor_model_parallel_size")
    if tensor == 1 and "sequence_parallel" in values:
        values["sequence_parallel"] = False
    if tensor is not None:
        _fill(values, "expert_tensor_parallel_size", tensor)
    stages, layers = values.get("pipeline_model_parallel_size"), values.get("num_layers")
    per_chunk = values.get("num_layers_per_virtual_pipeline_stage")
    if values.get("num_virtual_stages_per_pipeline_rank") is not None:
        _fill(
            values,
            "virtual_pipeline_model_parallel_size",
            values["num_virtual_stages_per_pipeline_rank"],
        )
    if per_chunk and stages and layers and layers % (stages * per_chunk) == 0:
        _fill(values, "virtual_pipeline_model_parallel_size", layers // stages // per_chunk)
    if values.get("virtual_pipeline_model_parallel_size") is None and "overlap_p2p_comm" in values:
        values["overlap_p2p_comm"] = False


def _derive_data(values: Values) -> None:
    if values.get("vocab_file") and values.get("merge_file"):
        _fill(values, "tokenizer_type", "GPT2BPETokenizer")  # the default of Megatron's entry point
    if values.get("mock_data"):
        for name in REPLACED_BY_MOCK_DATA:
            if name in values:
                values[name] = None
    if values.get("data_path"):
        _fill(values, "split", DEFAULT_SPLIT)
    if "dataloader_type" in values:
        _fill(values, "dataloader_type", "single")
    if values.get("num_experts"):
        _fill(values, "moe_ffn_hidden_size", values.get("ffn_hidden_size"))


def _derive_batch(values: Values) -> None:
    """Global batch and data-parallel size, once the number of ranks is known and divides."""
    world = values.get("world_size")
    if world:
        copies = 1
        for axis in ("tensor", "pipeline"):
            copies *= values.get(f"{axis}_model_parallel_size") or 1
        copies *= values.get("context_parallel_size") or 1
        if world % copies == 0:
            values["data_parallel_size"] = world // copies
    ranks, micro = values.get("data_parallel_size"), values.get("micro_batch_size")
    if ranks and micro:
        _fill(values, "global_batch_size", micro * ranks * (values.get("micro_batch_num") or 1))
