# SPDX-License-Identifier: Apache-2.0
"""The predecessor's path of its exchange of heads."""

from mindspeed_ms.predecessor.context_parallel import UlyssesContextAttention

__all__ = ["UlyssesContextAttention"]
