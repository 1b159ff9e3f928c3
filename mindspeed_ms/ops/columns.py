# SPDX-License-Identifier: Apache-2.0
"""Parts of the last dimension, taken apart and put together; exported by ``ops``."""

from __future__ import annotations

from collections.abc import Sequence

from mindspore import Tensor

from mindspeed_ms.ops import checks
from mindspeed_ms.ops.selection import chosen

__all__ = ["join_columns", "split_columns"]


def split_columns(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Contiguous parts of the last dimension; differentiable.

    Shapes: x [..., C] -> [..., sizes[i]], where the sizes sum to C.
    """
    checks.floating("split_columns", x.dtype)
    if min(sizes) < 1 or sum(sizes) != x.shape[-1]:
        raise ValueError(
            f"split_columns: sizes {list(sizes)} for {x.shape[-1]} columns; give positive sizes "
            "that sum to them"
        )
    return chosen.kernels.split_columns(x, tuple(sizes))


def join_columns(parts: Sequence[Tensor], padding: int = 0) -> Tensor:
    """The parts side by side, then ``padding`` columns of zeros; differentiable.

    The dimension before the last may be 1 in some parts: they are repeated, and their gradient is
    the sum over the copies.

    Shapes: parts [..., N or 1, C_i] -> [..., N, sum of C_i + padding].
    """
    checks.floating("join_columns", *(part.dtype for part in parts))
    rows = max(part.shape[-2] for part in parts)
    for part in parts:
        same = part.shape[:-2] == parts[0].shape[:-2] and part.shape[-2] in (1, rows)
        if not same or padding < 0:
            shapes = ", ".join(str(tuple(item.shape)) for item in parts)
            raise ValueError(
                f"join_columns: parts {shapes} with padding {padding}; they must agree in all but "
                "the last dimension (the one before may be 1)"
            )
    return chosen.kernels.join_columns(tuple(parts), padding)
