# SPDX-License-Identifier: Apache-2.0
"""The predecessor's path of its sharded optimizer."""

from mindspeed_ms.predecessor.optimizer import DistributedOptimizer

__all__ = ["DistributedOptimizer"]
