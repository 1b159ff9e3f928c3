# SPDX-License-Identifier: Apache-2.0
"""The predecessor's path of its ring."""

from mindspeed_ms.predecessor.context_parallel import RingAttention

__all__ = ["RingAttention"]
