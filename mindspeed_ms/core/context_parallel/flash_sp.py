# SPDX-License-Identifier: Apache-2.0
"""The predecessor's path of its attention over stretches."""

from mindspeed_ms.predecessor.context_parallel import FlashSP

__all__ = ["FlashSP"]
