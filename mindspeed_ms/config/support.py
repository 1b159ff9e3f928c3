# SPDX-License-Identifier: Apache-2.0
"""What a valid configuration may ask for that changes nothing, or that this version does not do.

Entries leave this file as features arrive; help and documentation of the flags read them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.config.all_config import AllConfig
from mindspeed_ms.config.section import field_default
from mindspeed_ms.plan.layer_placement import expand_layout

_KERNELS = "the kernel of each operation is chosen once at start"
_NO_METRIC = "evaluation reports loss and perplexity, and no checkpoint of the best is kept apart"

WITHOUT_EFFECT: Mapping[str, str] = MappingProxyType(
    {
        "model_config.apply_swiglu_fusion": _KERNELS,
        "model_config.transformer_impl": "there is one implementation of the layers",
        "model_config.mask_func_type": "a hidden key gets no weight, in either way",
        "model_config.fa_config.input_layout": "kernels take tensors in the order they need",
        "moe_config.moe_permute_fusion": "rows are sorted by one copy in every kernel set",
        "dataset_config.data_layout": "activations are [sequence, batch, hidden] inside",
        "parallel_config.async_tensor_model_parallel_allreduce": (
            "the input gradient is always reduced while the weight gradient is computed"
        ),
        "parallel_config.communicator_config_path": "it tunes NCCL, which is not used",
        "training_config.epochs": "training_iters or train_samples is the length of training",
        "training_config.eval_metric": _NO_METRIC,
        "training_config.best_metric_comparison": _NO_METRIC,
    }
)
"""Field -> why its value changes nothing."""

UNAVAILABLE: Mapping[str, str] = MappingProxyType({})
"""Field -> why a run that asks for more than the usual is refused; see ``unsupported_reason``."""

_BOTH_USUAL = (
    "model_config.transformer_impl",
    "model_config.mask_func_type",
    "dataset_config.data_layout",
)
"""Fields that Megatron's arguments and YAML fill in different ways, neither asking for anything."""


def without_effect(all_config: AllConfig) -> list[str]:
    """Return one line for each field that is not at its default and changes nothing."""
    lines = []
    for path, reason in WITHOUT_EFFECT.items():
        if path in _BOTH_USUAL:
            continue
        section, _, key = path.partition(".")
        value: Any = getattr(all_config, section)
        default: Any = None
        for name in key.split("."):
            default = field_default(type(value), name)
            value = getattr(value, name)
        if value != default:
            lines.append(f"{path} has no effect: {reason}")
    return lines + _band_without_effect(all_config)


def _band_without_effect(all_config: AllConfig) -> list[str]:
    """Return a line for each side of a band that the mode of the fused kernel does not read."""
    options, masks = all_config.model_config.fa_config, all_config.parallel_config
    mode, lines = options.sparse_mode, []
    reasons = {"pre_tokens": mode in (1, 2, 3) and f"sparse_mode {mode} reads no band"}
    reasons["next_tokens"] = reasons["pre_tokens"]
    if mode == 0 and masks.attention_mask_type == "causal":
        reasons["next_tokens"] = "attention_mask_type causal hides later tokens"
    for name, reason in reasons.items():
        if reason and getattr(options, name) != field_default(type(options), name):
            lines.append(f"model_config.fa_config.{name} has no effect: {reason}")
    return lines


def unsupported_reason(all_config: AllConfig) -> list[str]:
    """Return one line per feature that is asked for and not available.

    Each says what, and what to use instead.
    """
    return [
        *_unsupported_layout(all_config),
        *_unsupported_training(all_config),
    ]


def _unsupported_layout(all_config: AllConfig) -> list[str]:
    layout = all_config.parallel_config.pipeline_model_parallel_layout
    reasons = []
    if layout is not None and "m" in "".join(expand_layout(layout)[:-1]):
        reasons.append(
            f"pipeline_model_parallel_layout {layout}: layers for further tokens (m) are on the "
            "stage of the loss; put every m before L"
        )
    return reasons


def _unsupported_training(all_config: AllConfig) -> list[str]:
    training = all_config.training_config
    reasons = []
    if training.epochs and not training.training_iters and training.train_samples is None:
        reasons.append(
            f"epochs {training.epochs}: {WITHOUT_EFFECT['training_config.epochs']}; give one"
        )
    is_taught = training.logits_save_dir is not None or training.logits_load_dir is not None
    if (is_taught or training.qad_enable) and all_config.model_config.mtp_num_layers:
        names = "qad_enable is" if training.qad_enable else "logits_save_dir, logits_load_dir are"
        reasons.append(
            f"{names} for the next token's logits; leave out either that or mtp_num_layers"
        )
    if training.qad_enable and training.loss_reduction == "sum":
        reasons.append(
            "loss_reduction sum is of the labels' loss, which qad_enable replaces; sum the "
            "teacher's with kl_loss_reduction sum instead"
        )
    sums = training.qad_enable and training.kl_loss_reduction == "sum"
    if training.calculate_per_token_loss and sums:
        reasons.append(
            "calculate_per_token_loss divides by tokens and kl_loss_reduction sum does not; leave "
            "one of them out"
        )
    if training.loss_reduction == "sum" and training.calculate_per_token_loss:
        reasons.append(
            "loss_reduction sum with calculate_per_token_loss: the one does not divide by tokens, "
            "the other does; leave one of them out"
        )
    return reasons
