# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts under the user guide's paths."""

from mindspeed_ms import old_names
from mindspeed_ms.legacy.model.moe.experts import GroupedMLP, SequentialMLP
from mindspeed_ms.legacy.model.moe.moe_layer import MoELayer
from mindspeed_ms.legacy.model.moe.router import Routing, TopKRouter
from mindspeed_ms.legacy.model.moe.shared_experts import SharedExpertMLP
from mindspeed_ms.legacy.model.moe.token_dispatcher import (
    MoEAllGatherTokenDispatcher,
)

__all__ = [
    "GroupedMLP",
    "MoEAllGatherTokenDispatcher",
    "MoELayer",
    "Routing",
    "SequentialMLP",
    "SharedExpertMLP",
    "TopKRouter",
]

__getattr__ = old_names.of(__name__)
