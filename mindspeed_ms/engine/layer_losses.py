# SPDX-License-Identifier: Apache-2.0
"""Losses that layers add to the main one: which a model has, and their values in a step."""

from __future__ import annotations

import numpy as np

from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import aux_losses
from mindspeed_ms.legacy.model.lightning_indexer import INDEXER_LOSS
from mindspeed_ms.legacy.model.moe.balance_losses import (
    GROUP_LOSS,
    LOSS_NAMES,
    VISIT_LOSS,
    Z_LOSS,
)
from mindspeed_ms.legacy.model.multi_token_prediction import loss_name


def expected_losses(config: TransformerConfig) -> dict[str, aux_losses.Kind]:
    """Name -> how its values over the ranks of a sequence go together, in a fixed order."""
    moe = config.moe_config
    kinds: dict[str, aux_losses.Kind] = {}
    if any(moe.moe_layers(config.num_layers)):
        for kind, weight in moe.balance_coefficients().items():
            if weight:
                kinds[LOSS_NAMES[kind]] = "part"
        if moe.moe_device_level_aux_loss_coeff:
            kinds[GROUP_LOSS] = "part"
        if moe.moe_comm_aux_loss_coeff:
            kinds[VISIT_LOSS] = "part"
        if moe.moe_z_loss_coeff is not None:
            kinds[Z_LOSS] = "mean"
    if config.is_sparse and config.dsa_indexer_loss_coeff:
        kinds[INDEXER_LOSS] = "part"
    for depth in range(config.mtp_num_layers or 0):
        kinds[loss_name(depth)] = "mean"
    return kinds


def is_balancing(name: str) -> bool:
    """Whether a loss balances experts; the others predict further tokens."""
    return name in (Z_LOSS, GROUP_LOSS, VISIT_LOSS, *LOSS_NAMES.values())


def num_numbered_layers(config: TransformerConfig) -> int:
    """Layers of the model and those that predict further tokens."""
    return config.num_layers + (config.mtp_num_layers or 0)


def collect_layer_losses(config: TransformerConfig, num_microbatches: int) -> dict[str, np.ndarray]:
    """What the layers have recorded in the step; see ``aux_losses.collect`` (collective)."""
    kinds = expected_losses(config)
    if not kinds:
        return {}
    return aux_losses.collect(kinds, num_numbered_layers(config), num_microbatches)


def mean_layer_losses(config: TransformerConfig, losses: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of each loss over the layers that have it, as Megatron's log line shows it."""
    layers = num_numbered_layers(config)
    experts = sum(config.has_experts(layer) for layer in range(layers))

    indexers = sum(config.chooser_of(layer, config.num_layers) == layer for layer in range(layers))

    def count(name: str) -> int:
        return indexers if name == INDEXER_LOSS else experts if is_balancing(name) else 1

    return {name: float(values.sum()) / count(name) for name, values in losses.items()}
