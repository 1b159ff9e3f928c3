# SPDX-License-Identifier: Apache-2.0
"""The optimizer and its schedules."""

from mindspeed_ms import old_names
from mindspeed_ms.core.optimizer.flat_state import StatePart
from mindspeed_ms.core.optimizer.grad_scaler import (
    ConstantGradScaler,
    DynamicGradScaler,
    GradScaler,
    get_grad_scaler,
)
from mindspeed_ms.core.optimizer.optimizer import (
    MegatronOptimizer,
    StepResult,
    get_megatron_optimizer,
)
from mindspeed_ms.core.optimizer.optimizer_param_scheduler import OptimizerParamScheduler

__all__ = [
    "ConstantGradScaler",
    "DynamicGradScaler",
    "GradScaler",
    "MegatronOptimizer",
    "OptimizerParamScheduler",
    "StatePart",
    "StepResult",
    "get_grad_scaler",
    "get_megatron_optimizer",
]

__getattr__ = old_names.of(__name__)
