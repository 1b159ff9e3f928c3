# SPDX-License-Identifier: Apache-2.0
"""The predecessor's path of its sum over micro-batches."""

from mindspeed_ms.predecessor.model import GradAccumulator

__all__ = ["GradAccumulator"]
