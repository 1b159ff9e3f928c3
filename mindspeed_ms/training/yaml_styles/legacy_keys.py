# SPDX-License-Identifier: Apache-2.0
"""Keys of older configuration files.

They moved elsewhere, are folded into others, or are accepted because they change nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.all_config import SECTION_CLASSES
from mindspeed_ms.config.build import Sections
from mindspeed_ms.config.coercion import no_pairs, shown, unknown_key
from mindspeed_ms.config.initial_weights import taken_initializers
from mindspeed_ms.config.optimizer_config import OptimizerConfig
from mindspeed_ms.config.section import field_default, field_names

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

    def drop(self, name: str, value: object) -> None:
        """Say that a key has no effect.

        Raises:
            ValueError: its value asks for something that does not exist here.

        """
        if self.accepted is None:
            logger.warning("%s has no effect: %s", name, self.reason)
        elif value is not None and not any(value == one for one in self.accepted):
            raise ValueError(f"{name} is {shown(value)}, which does not exist here; {self.reason}")


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
            "init_method": Inert((), "it may be normal or xavier_uniform"),
            "output_layer_init_method": Inert(("normal",), "use init_method_std"),
            "bias_init": Inert((), "biases start at zero"),
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
            "zero_config": Inert(({},), "use parallel_config.zero_level"),
        },
    }
)

_TOKENS = "dataset_config.eos_token_id and dataset_config.pad_token_id say it"

INERT_ANYWHERE: Mapping[str, Inert] = MappingProxyType(
    {
        "model_customize_staged": Inert(None, "parallel_config.num_layer_list cuts the model"),
        "eod_id": Inert(None, _TOKENS),
        "pad_token": Inert(None, _TOKENS),
        "pad_token_id": Inert(None, _TOKENS),
        "checkpoint_dir": Inert(None, "training_config.output_dir and load_checkpoint say it"),
        "attn_type": Inert(None, _GPT_ONLY),
        "moe_input_noise_eps": Inert(None, "use moe_config.moe_input_jitter_eps"),
        "dataset_size": Inert(None, "the data tells its size"),
        "seq_length": Inert(None, "model_config.seq_length counts"),
        "loss_func_type": Inert(None, "the loss is the vocabulary-parallel cross entropy"),
        "data_parallel": Inert(None, "the number of ranks tells it"),
        "model_parallel": Inert(None, "use parallel_config.tensor_model_parallel_size"),
        "use_dist_ckpt": Inert(None, "checkpoints are re-sharded on load"),
        "dist_ckpt_format": Inert(None, "use training_config.ckpt_format"),
    }
)
"""Keys that files of the predecessor hold in one section or another, and that nothing read."""

MOVED_KEYS: Mapping[tuple[str, str], tuple[str, str]] = MappingProxyType(
    {
        ("model_config", "num_experts"): ("moe_config", "num_experts"),
        ("parallel_config", "overlap_grad_reduce"): ("training_config", "overlap_grad_reduce"),
        ("dataset_config", "train_samples"): ("training_config", "train_samples"),
        ("training_config", "grad_clip_kwargs"): ("optimizer_config", "clip_grad"),
        ("model_config", "cp_attention_mask_type"): ("parallel_config", "attention_mask_type"),
        ("parallel_config", "cp_attention_mask_type"): ("parallel_config", "attention_mask_type"),
        ("training_config", "cp_attention_mask_type"): ("parallel_config", "attention_mask_type"),
        ("model_config", "use_post_norm"): ("model_config", "use_final_norm"),
        ("training_config", "shuffle"): ("dataset_config", "shuffle"),
        ("training_config", "data_layout"): ("dataset_config", "data_layout"),
        ("training_config", "mask_func_type"): ("model_config", "mask_func_type"),
        ("training_config", "softmax_compute_dtype"): ("model_config", "softmax_compute_dtype"),
        ("optimizer_config", "weight_decay_incre_style"): (
            "optimizer_config",
            "weight_decay_incr_style",
        ),
    }
)
"""(section, key) as older files have it -> where it is now."""


READ_ELSEWHERE = frozenset({("parallel_config", "overlap_grad_reduce")})
"""Keys that older files hold in two sections, of which only the present one was read."""


def _clip_value(value: object) -> object:
    """Return the limit in ``{grad_clip_type: ..., clip_value: 1.0}``, or the number itself."""
    if not isinstance(value, Mapping):
        return value
    for key in value:
        if key not in ("grad_clip_type", "clip_value"):
            raise unknown_key("grad_clip_kwargs", key, ("grad_clip_type", "clip_value"))
    kind = value.get("grad_clip_type", "ClipGlobalNorm")
    if kind != "ClipGlobalNorm":
        raise ValueError(
            f"grad_clip_type {kind!r} does not exist; only ClipGlobalNorm does, "
            f"or give optimizer_config.clip_grad as a number"
        )
    return value.get("clip_value", 1.0)


def _none_if_zero(value: object) -> object:
    return None if value == 0 else value


_NONE_IF_ZERO = (
    ("training_config", "train_samples"),
    ("optimizer_config", "lr_decay_iters"),
    ("optimizer_config", "lr_decay_samples"),
)
"""Lengths for which older files write 0 when they mean none."""


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
    _take_sequence_length(result)
    model = result.get("model_config", {})
    for key, value in taken_initializers(model).items():
        _put(model, key, value, "model_config.init_method")
    _take_zero_config(result.get("optimizer_config", {}))
    _drop_inert(result)
    for section, key in _NONE_IF_ZERO:
        if key in result.get(section, {}):
            result[section][key] = _none_if_zero(result[section][key])
    _modernize_optimizer(result.get("optimizer_config", {}))
    return result


def _take_sequence_length(sections: Sections) -> None:
    """A length that stands with the data is the model's, if that has none."""
    length = sections.get("dataset_config", {}).get("seq_length")
    model = sections.get("model_config")
    if length is not None and model is not None and model.get("seq_length") is None:
        model["seq_length"] = sections["dataset_config"].pop("seq_length")


_ZERO_OPTIONS: Mapping[str, Inert] = MappingProxyType(
    {
        "param_resident": Inert(None, "z3 gathers weights when they are needed"),
        "param_resident_rate": Inert(None, "z3 gathers weights when they are needed"),
        "allreduce_after_grad_accumulation": Inert(None, "gradients are summed once per step"),
        "grad_allreduce_op": Inert(("mean",), "use training_config.loss_reduction"),
        "opt_parallel_group": Inert((), "states are shared out over the data parallel group"),
        "cpu_offload": Inert(None, "the optimizer's states stay on the device"),
    }
)
"""Key of ``zero_config`` -> what becomes of it."""


def _take_zero_config(optimizer: dict[str, Any]) -> None:
    given = optimizer.get("zero_config")
    if isinstance(given, Mapping):
        for key, value in given.items():
            if key not in _ZERO_OPTIONS:
                raise unknown_key("optimizer_config.zero_config", key, _ZERO_OPTIONS)
            _ZERO_OPTIONS[key].drop(f"optimizer_config.zero_config.{key}", value)
        optimizer["zero_config"] = {}


def _modernize_optimizer(optimizer: dict[str, Any]) -> None:
    if "clip_grad" in optimizer:
        optimizer["clip_grad"] = _clip_value(optimizer["clip_grad"])
    betas = [optimizer.pop(name, None) for name in ("beta1", "beta2")]
    if any(beta is not None for beta in betas):
        usual = field_default(OptimizerConfig, "betas")
        given = tuple(
            own if own is not None else other for own, other in zip(betas, usual, strict=True)
        )
        _put(optimizer, "betas", given, "optimizer_config.beta1 and beta2")
    if optimizer.get("lr_warmup_fraction") is not None:
        for name in ("lr_warmup_iters", "lr_warmup_samples"):
            if optimizer.pop(name, None):
                logger.warning("optimizer_config.%s has no effect: lr_warmup_fraction counts", name)


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
        if (old_section, old_key) in READ_ELSEWHERE and key in sections.get(section, {}):
            logger.warning("%s.%s has no effect: %s.%s counts", old_section, old_key, section, key)
            continue
        value = _VALUE_OF_MOVED.get((old_section, old_key), lambda same: same)(value)
        _put(sections.setdefault(section, {}), key, value, f"{old_section}.{old_key}")


def _fold(sections: Sections) -> None:
    for (section, block_name), keys in FOLDED_BLOCKS.items():
        block = sections.get(section, {}).pop(block_name, None)
        if block is None:
            continue
        if not isinstance(block, Mapping):
            raise no_pairs(f"{section}.{block_name}", block)
        for key, value in block.items():
            if key not in keys:
                raise ValueError(
                    f"unknown key {key!r} in {section}.{block_name}; known keys: {', '.join(keys)}"
                )
            _put(sections[section], keys[key], value, f"{section}.{block_name}.{key}")


def is_inert(section: str, key: str) -> bool:
    """Whether a key of a section selects nothing here."""
    return key in INERT_ANYWHERE or key in INERT_KEYS.get(section, {})


def _drop_inert(sections: Sections) -> None:
    for section, values in sections.items():
        cls = SECTION_CLASSES.get(section)
        own = {*field_names(cls), *cls.ALIASES} if cls is not None else set()
        inert_keys = {**INERT_ANYWHERE, **INERT_KEYS.get(section, {})}
        for key in [key for key in values if key in inert_keys and key not in own]:
            inert_keys[key].drop(f"{section}.{key}", values.pop(key))
