# SPDX-License-Identifier: Apache-2.0
"""The predecessor's path of its activations."""

from mindspeed_ms.predecessor.model import get_act_func

__all__ = ["get_act_func"]
