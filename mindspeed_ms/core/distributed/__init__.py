"""Data parallelism."""

from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.distributed.finalize_model_grads import finalize_model_grads
from mindspeed_ms.core.distributed.grad_check import (
    first_bad_gradient,
    first_bad_mean,
    first_bad_weight,
    is_finite,
    largest_mean,
)
from mindspeed_ms.core.distributed.param_and_grad_buffer import OptimizerShard

__all__ = [
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "OptimizerShard",
    "finalize_model_grads",
    "first_bad_gradient",
    "first_bad_mean",
    "first_bad_weight",
    "is_finite",
    "largest_mean",
]
