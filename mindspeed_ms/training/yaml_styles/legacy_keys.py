"""Keys of older configuration files.

They moved elsewhere, are folded into others, or are accepted because they change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.build import Sections

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inert:
    """A key that selects nothing here.

    Attributes:
        accepted: values that ask for what happens anyway; None: every value does.
        reason: why it has no effect, and what to use instead.

    """

    accepted: tuple[object, ...] | None
    reason: str


_OPS_CHOOSES = Inert(None, "the kernel of each operation is chosen once at start")
_GPT_ONLY = "only decoder-only GPT models exist here"
_SCHEDULE = "use lr_decay_style, lr_warmup_iters and weight_decay_incr_style"

INERT_KEYS: Mapping[str, Mapping[str, Inert]] = MappingProxyType(
    {
        "model_config": {
            "attention_type": Inert(("self_attn",), _GPT_ONLY),
            "parallel_position_embedding": Inert((False,), "the position table is not cut"),
            "use_query_layer": Inert((False,), _GPT_ONLY),
            "use_visual_encoder": Inert((False,), _GPT_ONLY),
            "use_retriever": Inert((False,), _GPT_ONLY),
            "retro_add_retriever": Inert((False,), _GPT_ONLY),
            "model_type": Inert(("encoder_or_decoder",), _GPT_ONLY),
            "encoder_num_layers": Inert((None,), "use num_layers"),
            "decoder_num_layers": Inert((None,), "use num_layers"),
            "out_hidden_size": Inert((None,), "the output is as wide as hidden_size"),
            "head_skip_weight_param_allocation": Inert(
                None, "untie_embeddings_and_output_weights decides"
            ),
            "flatten_labels_and_input_mask": Inert(None, "the loss takes labels in any shape"),
            "enable_flash_sp": Inert((False,), "use context_parallel_algo"),
            "init_method": Inert(("normal",), "use init_method_std"),
            "output_layer_init_method": Inert(("normal",), "use init_method_std"),
            "bias_init": Inert(("zeros",), "biases start at zero"),
            "fp8_format": Inert((None,), "8-bit training needs hardware this project does not use"),
            "clone_scatter_output_in_embedding": Inert(None, "the result is the same"),
            "distribute_saved_activations": Inert((False,), "use sequence_parallel"),
            "bias_dropout_fusion": _OPS_CHOOSES,
            "masked_softmax_fusion": _OPS_CHOOSES,
            "select_recompute": Inert((False, None), "use parallel_config.select_recompute"),
            "select_comm_recompute": Inert(
                (False, None), "use parallel_config.select_comm_recompute"
            ),
        },
        "training_config": {
            "enable_compile_cache": Inert(None, "nothing is compiled"),
            "compile_cache_path": Inert(None, "nothing is compiled"),
            "loss_func_kwargs": Inert(None, "the loss is the vocabulary-parallel cross entropy"),
        },
        "dataset_config": {
            "dataset_dir": Inert(None, "data_path names the data"),
        },
        "optimizer_config": {
            "learning_rate_scheduler_kwargs": Inert((None,), _SCHEDULE),
            "weight_decay_kwargs": Inert((None,), _SCHEDULE),
            "zero_config": Inert((None,), "use parallel_config.zero_level"),
        },
    }
)

MOVED_KEYS: Mapping[tuple[str, str], tuple[str, str]] = MappingProxyType(
    {
        ("model_config", "num_experts"): ("moe_config", "num_experts"),
        ("parallel_config", "overlap_grad_reduce"): ("training_config", "overlap_grad_reduce"),
        ("dataset_config", "train_samples"): ("training_config", "train_samples"),
        ("training_config", "grad_clip_kwargs"): ("optimizer_config", "clip_grad"),
    }
)
"""(section, key) as older files have it -> where it is now."""


def _clip_value(value: object) -> object:
    """Return the limit in ``{grad_clip_type: ..., clip_value: 1.0}``, or the number itself."""
    if not isinstance(value, Mapping):
        return value
    kind = value.get("grad_clip_type", "ClipGlobalNorm")
    if kind != "ClipGlobalNorm":
        raise ValueError(
            f"grad_clip_type {kind!r} does not exist; only ClipGlobalNorm does, "
            f"or give optimizer_config.clip_grad as a number"
        )
    return value.get("clip_value", 1.0)


def _none_if_zero(value: object) -> object:
    return None if value == 0 else value


_VALUE_OF_MOVED: Mapping[tuple[str, str], Callable[[object], object]] = MappingProxyType(
    {
        ("training_config", "grad_clip_kwargs"): _clip_value,
        ("dataset_config", "train_samples"): _none_if_zero,
    }
)

FOLDED_BLOCKS: Mapping[tuple[str, str], Mapping[str, str]] = MappingProxyType(
    {
        ("parallel_config", "recompute_config"): {
            "recompute": "recompute",
            "select_recompute": "select_recompute",
            "select_comm_recompute": "select_comm_recompute",
        },
        ("model_config", "rotary_config"): {
            "rotary_base": "rotary_base",
            "rotary_percent": "rotary_percent",
            "rotary_interleaved": "rotary_interleaved",
            "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
        },
    }
)
"""(section, block) -> key in the block -> key of the section."""


def modernize(sections: Mapping[str, Mapping[str, Any]]) -> Sections:
    """Return the sections with older keys replaced by today's.

    Raises:
        ValueError: an older key asks for something that does not exist, or repeats a current key.

    """
    result: Sections = {name: dict(values or {}) for name, values in sections.items()}
    _move(result)
    _fold(result)
    _drop_inert(result)
    optimizer = result.get("optimizer_config", {})
    if "clip_grad" in optimizer:
        optimizer["clip_grad"] = _clip_value(optimizer["clip_grad"])
    return result


def _put(section: dict[str, Any], key: str, value: object, given_as: str) -> None:
    if value is None:
        return
    if section.get(key) is not None and section[key] != value:
        raise ValueError(f"{given_as} and {key} are one option, but differ; keep only {key}")
    section[key] = value


def _move(sections: Sections) -> None:
    for (old_section, old_key), (section, key) in MOVED_KEYS.items():
        if old_key not in sections.get(old_section, {}):
            continue
        value = sections[old_section].pop(old_key)
        value = _VALUE_OF_MOVED.get((old_section, old_key), lambda same: same)(value)
        _put(sections.setdefault(section, {}), key, value, f"{old_section}.{old_key}")


def _fold(sections: Sections) -> None:
    for (section, block_name), keys in FOLDED_BLOCKS.items():
        block = sections.get(section, {}).pop(block_name, None)
        if block is None:
            continue
        if not isinstance(block, Mapping):
            raise ValueError(
                f"{section}.{block_name} is {block!r}, but must hold key: value pairs; indent its "
                "keys below it"
            )
        for key, value in block.items():
            if key not in keys:
                raise ValueError(
                    f"unknown key {key!r} in {section}.{block_name}; known keys: {', '.join(keys)}"
                )
            _put(sections[section], keys[key], value, f"{section}.{block_name}.{key}")


def _drop_inert(sections: Sections) -> None:
    for section, inert_keys in INERT_KEYS.items():
        values = sections.get(section, {})
        for key in [key for key in values if key in inert_keys]:
            value, inert = values.pop(key), inert_keys[key]
            if inert.accepted is None:
                logger.warning("%s.%s has no effect: %s", section, key, inert.reason)
            elif value is not None and value not in inert.accepted:
                raise ValueError(
                    f"{section}.{key} is {value!r}, which does not exist here; {inert.reason}"
                )
