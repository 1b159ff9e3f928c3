# SPDX-License-Identifier: Apache-2.0
"""Data parallelism."""

from mindspeed_ms import old_names
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
    "OptimizerShard",
    "finalize_model_grads",
    "first_bad_gradient",
    "first_bad_mean",
    "first_bad_weight",
    "is_finite",
    "largest_mean",
]

__getattr__ = old_names.of(__name__)
