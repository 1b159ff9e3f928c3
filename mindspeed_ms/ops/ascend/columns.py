# SPDX-License-Identifier: Apache-2.0
"""Parts of the last dimension by MindSpore's own operators."""

from __future__ import annotations

from mindspore import Tensor, mint

from mindspeed_ms.backend import memory


def split_columns(x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """See ``ops.split_columns``."""
    return tuple(memory.contiguous(part) for part in mint.split(x, list(sizes), -1))


def join_columns(parts: tuple[Tensor, ...], padding: int) -> Tensor:
    """See ``ops.join_columns``."""
    rows = max(part.shape[-2] for part in parts)
    whole = [
        part
        if part.shape[-2] == rows
        else mint.broadcast_to(part, (*part.shape[:-2], rows, part.shape[-1]))
        for part in parts
    ]
    if padding:
        whole.append(mint.zeros((*whole[0].shape[:-1], padding), dtype=parts[0].dtype))
    return mint.cat(whole, -1)
