# SPDX-License-Identifier: Apache-2.0
"""What kind of value each key of a ``config.json`` has: checked once, before any rule reads it.

A file may come from anywhere. A text where a number belongs would otherwise end in an arithmetic
error somewhere below, or be taken for true.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

MOST_LAYERS = 1 << 16
"""Layers are counted one by one, so a number that nobody means must not keep us counting."""
MOST = (1 << 31) - 1
"""No size of a model is beyond what an index of 32 bits holds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value."""

    text: str
    """How it is called in a message, behind "must be"."""
    holds: Callable[[Any], bool]


def _is_whole(value: Any, least: int = -MOST, most: int = MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_ids(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(holds, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


LAYERS = Kind(
    f"a whole number of 1 to {MOST_LAYERS:,}", lambda value: _is_whole(value, 1, MOST_LAYERS)
)
SIZE = Kind(f"a whole number of 1 to {MOST:,}", lambda value: _is_whole(value, 1))
COUNT = Kind("a whole number of at least 0", lambda value: _is_whole(value, 0))
NUMBER = Kind("a finite number", _is_number)
ABOVE_0 = Kind("a finite number above 0", lambda value: _is_number(value) and value > 0)
SHARE = Kind("a number of 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool | int) and value in (0, 1))
TEXT = Kind("a text", _is_text)
TEXTS = Kind("a list of texts", _list_of(_is_text))
LAYER_NUMBERS = Kind(
    "a list of numbers of layers", _list_of(lambda value: _is_whole(value, 0, MOST_LAYERS))
)
SWITCHES = Kind("a list of 0 and 1", _list_of(lambda value: value in (0, 1)))
PATTERN = Kind(
    "a whole number of at least 0, or a text of L and G",
    lambda value: _is_whole(value, 0) or (_is_text(value) and set(value) <= {"L", "G"}),
)
FACTORS = Kind("a list of numbers", _list_of(_is_number))
IDS = Kind("the id of a token, or a list of ids", _is_ids)
REPEATED = Kind(
    "lists of texts with a number of repetitions each",
    _list_of(
        lambda pair: (
            isinstance(pair, list)
            and len(pair) == 2
            and _list_of(_is_text)(pair[0])
            and _is_whole(pair[1], 0, MOST_LAYERS)
        )
    ),
)
LETTERS = Kind(
    "a text of F and S, or a list of texts",
    lambda value: set(value) <= {"F", "S"} if _is_text(value) else _list_of(_is_text)(value),
)
INDEX = Kind("a whole number of at least -1", lambda value: _is_whole(value, -1))
BLOCK = Kind("a block of keys and values", lambda value: isinstance(value, Mapping))
ANY = Kind("anything", lambda value: True)


def _table(**named: tuple[Kind, str]) -> Mapping[str, Kind]:
    return MappingProxyType({key: kind for kind, keys in named.values() for key in keys.split()})


KINDS = _table(
    layers=(LAYERS, "n_layer n_layers num_hidden_layers num_layers"),
    sizes=(
        SIZE,
        "alibi_bias_max d_model expansion_ratio max_seq_len n_heads "
        "decoder_sparse_step experts_per_token ffn_dim ffn_hidden_size head_dim hidden_size "
        "index_head_dim index_n_heads index_topk initial_context_length intermediate_size "
        "kv_lora_rank max_position_embeddings "
        "moe_intermediate_size n_ctx n_embd n_head n_inner n_positions n_routed_experts "
        "n_embed no_rope_layer_interval num_kv_heads num_ln_in_parallel_attn seq_length "
        "num_attention_heads num_experts num_experts_per_tok num_heads num_key_value_heads "
        "num_local_experts original_max_position_embeddings q_lora_rank qk_head_dim "
        "qk_nope_head_dim qk_rope_head_dim v_head_dim vocab_size word_embed_proj_dim "
        "full_attention_interval linear_conv_kernel_dim linear_key_head_dim "
        "linear_value_head_dim linear_num_key_heads linear_num_value_heads moe_k "
        "moe_layer_interval moe_num_experts rotary_dim window_size",
    ),
    counts=(
        COUNT,
        "first_k_dense_replace max_window_layers moe_layer_freq n_group "
        "n_shared_experts num_nextn_predict_layers shared_expert_intermediate_size sliding_window "
        "topk_group moe_layer_start_index moe_num_shared_experts num_shared_experts "
        "shared_intermediate_size index_topk_freq index_skip_topk_offset",
    ),
    patterns=(PATTERN, "_sliding_window_pattern sliding_window_pattern"),
    indices=(INDEX, "moe_layer_end_index"),
    repeated=(REPEATED, "attention_types"),
    letters=(LETTERS, "index_topk_pattern"),
    above_0=(
        ABOVE_0,
        "moe_norm_min clip_qkv softmax_scale swiglu_alpha embedding_multiplier layer_norm_eps "
        "layer_norm_epsilon logit_scale logits_scaling norm_eps norm_epsilon query_pre_attn_scalar "
        "rms_norm_eps rope_local_base_freq rope_theta rotary_emb_base",
    ),
    numbers=(
        NUMBER,
        "init_std attention_multiplier attn_logit_softcapping aux_loss_alpha "
        "final_logit_softcapping initializer_range residual_multiplier router_aux_loss_coef "
        "router_jitter_noise routed_scaling_factor swiglu_limit",
    ),
    shares=(
        SHARE,
        "attention_dropout attn_pdrop dropout embd_pdrop embedding_dropout hidden_dropout "
        "partial_rotary_factor resid_dropout resid_pdrop residual_dropout rotary_pct",
    ),
    switches=(
        SWITCH,
        "add_cross_attention alibi apply_residual_connection_post_layernorm bias multi_query "
        "new_decoder_architecture parallel_attn qk_layernorm use_qkv_bias attention_bias "
        "attention_out_bias mlp_bias norm_topk_prob "
        "output_router_logits qkv_bias reorder_and_upcast_attn rope_interleave "
        "scale_attn_by_inverse_layer_idx scale_attn_weights seq_aux tie_word_embeddings "
        "_remove_final_layer_norm attn_uses_sequence_id no_bias prefix_lm qk_ln "
        "do_layer_norm_before enable_bias layer_norm_elementwise_affine "
        "use_bias use_bidirectional_attention use_parallel_residual use_post_norm use_qk_norm "
        "use_sliding_window",
    ),
    texts=(
        TEXT,
        "activation activation_function hidden_act hidden_activation scoring_func topk_method",
    ),
    lists=(TEXTS, "attention_layers indexer_types layer_types mlp_layer_types"),
    layer_numbers=(LAYER_NUMBERS, "mlp_only_layers"),
    switch_lists=(SWITCHES, "no_rope_layers"),
    ids=(IDS, "bos_token_id eos_token_id pad_token_id"),
    blocks=(BLOCK, "attn_config rope_parameters rope_scaling quantization_config"),
)
"""Key -> kind. What is not here changes nothing that is computed."""

ROTATION_KINDS = _table(
    above_0=(ABOVE_0, "attention_factor beta_fast beta_slow factor rope_theta"),
    numbers=(NUMBER, "high_freq_factor low_freq_factor mscale mscale_all_dim"),
    shares=(SHARE, "partial_rotary_factor"),
    sizes=(SIZE, "original_max_position_embeddings"),
    texts=(TEXT, "rope_type type"),
    lists=(FACTORS, "long_factor short_factor"),
    switches=(SWITCH, "finetuned truncate"),
)
"""The same in a block about rotations."""


def check_kinds(theirs: Mapping[str, Any]) -> None:
    """Compare a ``config.json`` with the kinds of its keys; null always stands for no value.

    Raises:
        ValueError: a value of another kind; names the key, the value and what it must be.
    """
    _check(theirs, KINDS, "")
    _check(theirs.get("attn_config") or {}, KINDS, "attn_config.")
    for name in ("rope_scaling", "rope_parameters"):
        block = theirs.get(name) or {}
        _check(block, ROTATION_KINDS, f"{name}.")
        for key, inner in block.items():  # one block a kind of layer
            if isinstance(inner, Mapping):
                _check(inner, ROTATION_KINDS, f"{name}.{key}.")
            elif key.endswith("_attention") and inner is not None:
                raise ValueError(_text(f"{name}.{key}", inner, BLOCK))


def _check(values: Mapping[str, Any], kinds: Mapping[str, Kind], prefix: str) -> None:
    for key, value in values.items():
        kind = kinds.get(key, ANY)
        if value is not None and not kind.holds(value):
            raise ValueError(_text(prefix + key, value, kind))


def _text(key: str, value: object, kind: Kind) -> str:
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"config.json has {key} {shown}, but it must be {kind.text}; correct it"
