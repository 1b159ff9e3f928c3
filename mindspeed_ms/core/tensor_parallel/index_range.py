# SPDX-License-Identifier: Apache-2.0
"""Ids that no row stands for.

A partition of a table cannot tell an id of its neighbour's from one of nobody's: the kernels give
zeros for both. So whoever knows the whole table looks at the ids before.
"""

from __future__ import annotations

from mindspore import Tensor

from mindspeed_ms.backend import device, memory

IGNORED_LABEL = -100
"""Label of a token that nothing is learned from, whose weight in the loss is 0."""


def require_range(ids: Tensor, size: int, what: str, also: int | None = None) -> None:
    """Make sure that ids lie in 0 ... size - 1.

    Where tensors live on a device nothing is looked at, because the host would wait for it: the
    ids of a batch are looked at before they go there.

    Args:
        ids: any shape.
        size: rows of the whole table.
        what: what they are, for the message.
        also: a number that is allowed besides.

    Raises:
        ValueError: one lies outside.
    """
    if device.CURRENT.name == "ascend":
        return
    values = memory.as_numpy(ids if ids.is_contiguous() else memory.contiguous(ids))
    if not values.size or (values.max() < size and values.min() >= 0):
        return
    outside = values[(values >= size) | (values < 0)]
    wrong = outside[outside != also] if also is not None else outside
    if wrong.size:
        raise ValueError(
            f"{what} {int(wrong[0])} is outside of 0 to {size - 1}; use the tokenizer and the "
            "sequence length the data was made with, or give the model more rows"
        )
