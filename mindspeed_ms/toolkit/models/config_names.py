# SPDX-License-Identifier: Apache-2.0
"""MindFormers' and Megatron's words for the keys of ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspeed_ms.toolkit.mapping.model import ALIASES, GPT2, LLAMA, llama_ffn_width
from mindspeed_ms.toolkit.mapping.rows import Table

_LLAMA_KEYS: Mapping[str, str] = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "theta": "rope_theta",
    "seq_length": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "attention_dropout_rate": "attention_dropout",
}
KEYS: Mapping[str, Mapping[str, str]] = {
    "gpt2": {
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "seq_length": "n_positions",
        "max_position_embeddings": "n_positions",
        "ffn_hidden_size": "n_inner",
        "hidden_act": "activation_function",
        "embedding_dropout_prob": "embd_pdrop",
        "hidden_dropout_rate": "resid_pdrop",
        "attention_dropout_rate": "attn_pdrop",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    "gpt_pangu": {
        "seq_length": "max_position_embeddings",
        "ffn_hidden_size": "intermediate_size",
        "hidden_act": "activation_function",
        "embedding_dropout_prob": "embd_pdrop",
        "hidden_dropout_rate": "resid_pdrop",
        "attention_dropout_rate": "attn_pdrop",
    },
}
"""Model type -> name by MindFormers -> key; other types are named like Llama's."""

COMMON_KEYS = frozenset(
    {
        "add_cross_attention",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "is_decoder",
        "is_encoder_decoder",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "tie_word_embeddings",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "vocab_size",
    }
)
"""Keys that every ``config.json`` may have."""

GENERATION_KEYS = (
    "do_sample",
    "max_decode_length",
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_beams",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)
"""What MindFormers' configurations say about generation."""

_MINDSPORE_GELU: Mapping[str, str] = {
    "gelu": "gelu_new",  # MindSpore's gelu is the tanh form
    "fast_gelu": "gelu_new",
    "gelu_erf": "gelu",
}


def key_of(model_type: str, name: str, known: frozenset[str]) -> str:
    """The key of ``config.json`` that a name stands for; the name itself if none.

    >>> key_of("gpt2", "num_attention_heads", frozenset({"n_head"}))
    'n_head'
    """
    if name in known:
        return name
    keys = KEYS.get(model_type, _LLAMA_KEYS)
    plain = ALIASES.get(name, name)
    return keys.get(name, keys.get(plain, plain))


def run_table(model_type: str) -> Table:
    """Rows of MindFormers' keys that say how a model is run, not what it computes."""
    return GPT2 if model_type in KEYS else LLAMA


def resolve_sizes(model_type: str, given: dict[str, Any]) -> None:
    """Replace MindFormers' rules for sizes by the sizes, in place.

    Args:
        model_type: of the model.
        given: keys of ``config.json``, and the rules ``expand_ratio``, ``multiple_of``,
            ``ffn_dim_multiplier``.

    Raises:
        ValueError: a size that cannot be computed with.
    """
    _check_numbers(given)
    if model_type in KEYS:
        width = KEYS[model_type]["ffn_hidden_size"]
        hidden = key_of(model_type, "hidden_size", frozenset())
        ratio = given.pop("expand_ratio", None)
        if ratio is not None and hidden in given:
            given.setdefault(width, int(ratio * given[hidden]))
        return
    multiple = given.pop("multiple_of", None)
    multiplier = given.pop("ffn_dim_multiplier", None)
    is_asked = multiple is not None or multiplier is not None
    if "hidden_size" in given and given.get("intermediate_size") is None and is_asked:
        given["intermediate_size"] = llama_ffn_width(
            given["hidden_size"], multiple or 256, multiplier
        )


_SIZES: Mapping[str, tuple[Any, str]] = {
    "hidden_size": (int, "a whole number"),
    "n_embd": (int, "a whole number"),
    "multiple_of": (int, "a whole number"),
    "expand_ratio": (int | float, "a number"),
    "ffn_dim_multiplier": (int | float, "a number"),
}
"""What sizes are computed from -> its type, and how that is called."""


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where a size cannot be computed."""
    for name, (kind, called) in _SIZES.items():
        size = given.get(name)
        if size is None and (name != "hidden_size" or name not in given):
            continue
        if isinstance(size, bool) or not isinstance(size, kind) or size <= 0:
            raise ValueError(f"{name} is {size!r}, but must be {called} above 0; correct it")


def activation(model_type: str, name: str, value: Any) -> Any:
    """An activation by the name that was used for its key.

    >>> activation("gpt2", "hidden_act", "gelu"), activation("gpt2", "activation_function", "gelu")
    ('gelu_new', 'gelu')
    """
    is_mindformers = model_type in KEYS and name == "hidden_act"
    return _MINDSPORE_GELU.get(value, value) if is_mindformers else value
