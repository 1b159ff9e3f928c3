# SPDX-License-Identifier: Apache-2.0
"""Another storage type."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor

from mindspeed_ms.backend import memory
from mindspeed_ms.ops.cpu.flat import copy_cast_
from mindspeed_ms.ops.portable.cast import Cast


def _converted(x: Tensor, dtype: ms.Type) -> Tensor:
    result = memory.empty(x.shape, dtype)
    copy_cast_(result, x)
    return result


def cast(x: Tensor, dtype: ms.Type) -> Tensor:
    """See ``ops.cast``."""
    return Cast.apply(x, dtype, _converted)
