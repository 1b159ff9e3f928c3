# SPDX-License-Identifier: Apache-2.0
"""Order of forward and backward passes."""

from mindspeed_ms.core.pipeline_parallel.schedules import get_forward_backward_func

__all__ = ["get_forward_backward_func"]
