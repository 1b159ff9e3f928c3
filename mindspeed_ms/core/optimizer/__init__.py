"""The optimizer and its schedules."""

from mindspeed_ms.core.optimizer.optimizer import (
    MegatronOptimizer,
    StepResult,
    get_megatron_optimizer,
)
from mindspeed_ms.core.optimizer.optimizer_param_scheduler import OptimizerParamScheduler

__all__ = [
    "MegatronOptimizer",
    "OptimizerParamScheduler",
    "StepResult",
    "get_megatron_optimizer",
]
