# SPDX-License-Identifier: Apache-2.0
"""Fields that several flags decide together, where the rows of the table cannot say it.

A rule gets what the rows state about its field, UNSET for nothing, and all arguments.

Source: Megatron-LM core 0.8 to 0.12 ``validate_args`` (behaviour). Deliberate difference: sizes are
    never lowered silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.dtypes import BFLOAT16, FLOAT16, FLOAT32
from mindspeed_ms.config.transformer_config import (
    GATED_ACTIVATIONS,
    default_ffn_hidden_size,
)
from mindspeed_ms.training.flags.forks import FORK_RULES
from mindspeed_ms.training.flags.more_forks import MORE_RULES
from mindspeed_ms.training.flags.row import UNSET
from mindspeed_ms.training.flags.token_lengths import TOKEN_RULES
from mindspeed_ms.training.flags.vocabulary import rows_of
from mindspeed_ms.training.flags.yarn import YARN_RULES


class Arguments:
    """Arguments by attribute; one that is absent reads as None."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        """Return an argument."""
        return self._values.get(name)


Rule = Callable[[Any, Arguments], Any]


def _hidden_act(stated: Any, given: Arguments) -> Any:
    if stated is not UNSET or given.bias_gelu_fusion is None:
        return stated
    is_tanh = given.bias_gelu_fusion and given.add_bias_linear is not False
    return "fast_gelu" if is_tanh else "gelu"


def _position_embedding_type(stated: Any, given: Arguments) -> Any:
    """Yarn is rope that is stretched; forks call rope rotary."""
    if stated in ("yarn", "rotary", "nope"):
        return "none" if stated == "nope" else "rope"
    is_learned = stated in ("learned_absolute", "absolute")
    return "none" if is_learned and given.add_position_embedding is False else stated


def _normalization(stated: Any, given: Arguments) -> Any:
    return "FusedRMSNorm" if given.use_fused_rmsnorm and stated == "RMSNorm" else stated


def _has_bias(stated: Any, given: Arguments) -> Any:
    """Every linear layer has one, or this one has."""
    if given.add_bias_linear is None:
        return stated
    return given.add_bias_linear or stated is True


def _vocab_size(stated: Any, given: Arguments) -> Any:
    """Pad a vocabulary given as a number; other tokenizers tell their size when they are built."""
    size, kind = given.vocab_size, given.tokenizer_type
    if stated is not UNSET or size is None or kind not in (None, "NullTokenizer"):
        return stated
    tokens = size + (kind == "NullTokenizer")  # which adds an end-of-document token
    return rows_of(tokens, given)


def _type_of_switch(stated: Any, given: Arguments) -> Any:
    if stated is not UNSET or (given.bf16 is None and given.fp16 is None):
        return stated
    return BFLOAT16 if given.bf16 else FLOAT16 if given.fp16 else FLOAT32


def _gradients_in_fp32(stated: Any, given: Arguments) -> Any:
    if given.bf16:
        return not given.grad_reduce_in_bf16 and given.main_grads_dtype == "fp32"
    return stated


def _check_for_nan(stated: Any, given: Arguments) -> Any:
    """Overflows are usual while the loss scale is searched."""
    return False if given.fp16 and given.loss_scale is None else stated


# --- recomputation --------------------------------------------------------------------------------


def _asks_for_whole_layers(given: Arguments) -> bool:
    return bool(given.checkpoint_activations or given.activations_checkpoint_method)


def _parts(given: Arguments) -> list[str]:
    """MindSpeed's switches for parts of a layer."""
    asked = {"mlp_act": given.recompute_activation_function, "layernorm": given.recompute_norm}
    return [name for name, is_asked in asked.items() if is_asked]


def _recompute_granularity(stated: Any, given: Arguments) -> Any:
    if stated is UNSET and _asks_for_whole_layers(given):
        return "full"
    return "selective" if stated is UNSET and _parts(given) else stated


def _recompute_method(stated: Any, given: Arguments) -> Any:
    if stated is not UNSET or not _asks_for_whole_layers(given):
        return stated
    return given.activations_checkpoint_method or "uniform"


def _recompute_num_layers(stated: Any, given: Arguments) -> Any:
    if stated is not UNSET or not _asks_for_whole_layers(given):
        return stated
    return given.checkpoint_num_layers or 1


def _recompute_modules(stated: Any, given: Arguments) -> Any:
    """Parts are added to what is recomputed anyway; a whole layer includes them."""
    granularity = given.recompute_granularity
    if not _parts(given) or granularity == "full" or _asks_for_whole_layers(given):
        return stated
    is_selective = granularity == "selective" or given.recompute_activations
    present = stated if stated is not UNSET else ["core_attn"] if is_selective else []
    return [*present, *(name for name in _parts(given) if name not in present)]


# --- layout and experts ---------------------------------------------------------------------------

_ZERO_LEVELS = {"optim": "z1", "optim_grads": "z2", "optim_grads_params": "z3"}
"""``--data-parallel-sharding-strategy`` -> what ranks shard."""


def _zero_level(stated: Any, given: Arguments) -> Any:
    if stated is UNSET and (given.use_megatron_fsdp or given.use_custom_fsdp):
        return _ZERO_LEVELS.get(given.data_parallel_sharding_strategy, UNSET)
    return stated


def _num_chunks(stated: Any, given: Arguments) -> Any:
    stages, layers = given.pipeline_model_parallel_size, given.num_layers
    per_chunk = given.num_layers_per_virtual_pipeline_stage
    if stated is not UNSET or not (per_chunk and stages and layers):
        return stated
    return layers // stages // per_chunk if layers % (stages * per_chunk) == 0 else UNSET


def _overlap_stages(stated: Any, given: Arguments) -> Any:
    """Only the interleaved schedule overlaps."""
    chunks = _num_chunks(given.virtual_pipeline_model_parallel_size or UNSET, given)
    return False if stated is not UNSET and chunks is UNSET else stated


def _expert_tensor_ranks(stated: Any, given: Arguments) -> Any:
    own = given.tensor_model_parallel_size
    return own if stated is UNSET and own is not None else stated


def _expert_width(stated: Any, given: Arguments) -> Any:
    if stated is not UNSET or not given.num_experts:
        return stated
    if given.ffn_hidden_size or not given.hidden_size:
        return given.ffn_hidden_size or UNSET
    is_gated = bool(given.swiglu) or given.hidden_act in GATED_ACTIVATIONS
    return default_ffn_hidden_size(given.hidden_size, is_gated)


_BALANCED_BY = {
    "softmax_topk": "none",
    "noaux_tc": "none",
    "group_limited_greedy": "aux_loss",
    "pai_megatron_aux_loss": "aux_loss",
}
"""Routers of MindSpeed-LLM -> what balances experts."""


def _balancing(stated: Any, given: Arguments) -> Any:
    names = [stated] if isinstance(stated, str) else stated
    if names is UNSET or names is None:
        return stated
    return tuple(_BALANCED_BY.get(name, name) for name in names)


def _router_has_bias(stated: Any, given: Arguments) -> Any:
    """As the other linear layers, in Megatron-core since 0.13."""
    is_moe = bool(given.num_experts and given.num_experts > 1)
    return bool(given.add_bias_linear) if stated is UNSET and is_moe else stated


def _is_deepspeed(given: Arguments) -> bool:
    return given.moe_model_type == "deepspeed_moe" and bool(given.num_experts)


def _expert_capacity(stated: Any, given: Arguments) -> Any:
    if stated is UNSET and _is_deepspeed(given):
        if given.disable_moe_token_dropping:
            return None
        return given.moe_train_capacity_factor or 1.0
    return stated


def _drop_policy(stated: Any, given: Arguments) -> Any:
    return "position" if _is_deepspeed(given) else stated


def _pre_softmax(stated: Any, given: Arguments) -> Any:
    """Of one choice DeepSpeed keeps the probability, of two it makes the sum one."""
    return True if _is_deepspeed(given) and given.moe_router_topk in (None, 1) else stated


def _shared_width(stated: Any, given: Arguments) -> Any:
    if given.n_shared_experts and given.moe_ffn_hidden_size:
        return given.n_shared_experts * given.moe_ffn_hidden_size
    return stated


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "model_config.hidden_act": _hidden_act,
        "model_config.position_embedding_type": _position_embedding_type,
        **YARN_RULES,
        **FORK_RULES,
        **TOKEN_RULES,
        **MORE_RULES,
        "model_config.normalization": _normalization,
        "model_config.qkv_has_bias": _has_bias,
        "model_config.out_proj_has_bias": _has_bias,
        "model_config.mlp_has_bias": _has_bias,
        "model_config.vocab_size": _vocab_size,
        "model_config.params_dtype": _type_of_switch,
        "model_config.compute_dtype": _type_of_switch,
        "model_config.recompute_granularity": _recompute_granularity,
        "model_config.recompute_method": _recompute_method,
        "model_config.recompute_num_layers": _recompute_num_layers,
        "model_config.recompute_modules": _recompute_modules,
        "moe_config.moe_expert_capacity_factor": _expert_capacity,
        "moe_config.moe_ffn_hidden_size": _expert_width,
        "moe_config.moe_router_pre_softmax": _pre_softmax,
        "moe_config.moe_shared_expert_intermediate_size": _shared_width,
        "moe_config.moe_router_load_balancing_type": _balancing,
        "moe_config.moe_router_has_bias": _router_has_bias,
        "moe_config.moe_token_drop_policy": _drop_policy,
        "parallel_config.zero_level": _zero_level,
        "parallel_config.virtual_pipeline_model_parallel_size": _num_chunks,
        "parallel_config.overlap_p2p_comm": _overlap_stages,
        "parallel_config.expert_tensor_parallel_size": _expert_tensor_ranks,
        "training_config.accumulate_allreduce_grads_in_fp32": _gradients_in_fp32,
        "training_config.check_for_nan_in_grad": _check_for_nan,
    }
)
"""Field -> its rule."""
