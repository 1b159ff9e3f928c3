# SPDX-License-Identifier: Apache-2.0
"""What reductions on CPU compute in: 16-bit floats are reduced in float32 and rounded once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend.base import ReduceOp
from mindspeed_ms.backend.numpy_types import bfloat16_to_float32, float32_to_bfloat16


def widen(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The array a reduction may work on: float32 for 16-bit floats, bytes for bool."""
    if tensor.dtype == mstype.bfloat16:
        return bfloat16_to_float32(array)
    if tensor.dtype == mstype.float16:
        return array.astype(np.float32)
    return array.view(np.uint8) if tensor.dtype == mstype.bool_ else array


def finisher(
    result: np.ndarray, work: np.ndarray, tensor: Tensor, op: ReduceOp, size: int
) -> Callable[[], None] | None:
    """What turns the reduced ``work`` into the ``result``; None if it already is."""
    is_average = op is ReduceOp.AVG
    is_in_place = work.ctypes.data == result.ctypes.data
    if is_in_place and not is_average:
        return None

    def finish() -> None:
        if is_average:
            np.divide(work, size, out=work)
        if tensor.dtype == mstype.bfloat16:
            result[...] = float32_to_bfloat16(work)
        elif not is_in_place:
            values = work.view(np.bool_) if tensor.dtype == mstype.bool_ else work
            with np.errstate(over="ignore"):  # a float16 sum may exceed the range: infinity
                result[...] = values

    return finish
