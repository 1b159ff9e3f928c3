# SPDX-License-Identifier: Apache-2.0
"""The predecessor's path of its ZeRO optimizer."""

from mindspeed_ms.predecessor.optimizer import AdamW

__all__ = ["AdamW"]
