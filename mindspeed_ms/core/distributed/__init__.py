"""Data parallelism."""

from mindspeed_ms.core.distributed.distributed_data_parallel import (
    DistributedDataParallel,
    GradBuffer,
)
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.distributed.finalize_model_grads import finalize_model_grads

__all__ = [
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "GradBuffer",
    "finalize_model_grads",
]
