# SPDX-License-Identifier: Apache-2.0
"""Transfers between pipeline stages. Legend: s sequence, b micro-batch, h hidden, p tensor ranks.

The tensors of one ``Exchange`` start together and complete in the background. A received tensor is
waited for when it is used; a sent one is held until its transfer is complete, then dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype
from numpy.typing import NDArray

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group, P2POp, Work
from mindspeed_ms.plan.schedule_plan import Exchange, Transfer

_MOST_DIMS = 8
"""Of a tensor whose shape is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferFormat:
    """What travels between stages."""

    shape: tuple[int, ...]
    """Of every activation and gradient, [s(/p), b, h]; not read with variable shapes."""

    dtype: mstype.Type = mstype.float32
    """Of every activation and gradient."""

    variable_shapes: bool = False
    """Stages tell each other the shape before every tensor."""

    overlap: bool = True
    """Wait for a received tensor when it is used; False: at once, before the next pass."""


class StageLink:
    """Sends and receives of one rank during one step.

    Args:
        group: the pipeline group, in stage order.
        fmt: what travels.
    """

    def __init__(self, group: Group, fmt: TransferFormat) -> None:
        self.group = group
        self.format = fmt
        self._arriving: dict[Transfer, tuple[Tensor, Sequence[Work]]] = {}
        self._leaving: list[tuple[Sequence[Work], Tensor | None]] = []

    def start(self, exchange: Exchange, tensors: Mapping[Transfer, Tensor]) -> None:
        """Start the transfers of an exchange.

        Args:
            exchange: what to send and receive.
            tensors: contiguous tensors of the sends; the caller need not keep them.

        Raises:
            ValueError: a tensor that is not of the agreed shape and type.
        """
        outgoing = [tensors[transfer] for transfer in exchange.sends]
        for tensor in outgoing:
            self._check(tensor)
        incoming = [
            memory.empty(shape, self.format.dtype)
            for shape in self._incoming_shapes(exchange, outgoing)
        ]
        works, is_split = self._post(exchange, outgoing, incoming)
        for index, tensor in enumerate(outgoing):
            self._leaving.append((works[index : index + 1] if is_split else works, tensor))
        for index, transfer in enumerate(exchange.receives, start=len(outgoing)):
            handles = works[index : index + 1] if is_split else works
            self._arriving[transfer] = (incoming[index - len(outgoing)], handles)
            if not self.format.overlap:
                _wait(handles)

    def take(self, transfer: Transfer) -> Tensor:
        """The tensor of a receive that was started, complete."""
        tensor, works = self._arriving.pop(transfer)
        _wait(works)
        return tensor

    def release_sent(self) -> None:
        """Drop the tensors whose transfer is complete; also lets the library make progress."""
        self._leaving = [
            item for item in self._leaving if not all(work.is_completed() for work in item[0])
        ]

    def finish(self) -> None:
        """Wait for everything that was sent."""
        assert not self._arriving, f"tensors were received and not used: {list(self._arriving)}"
        for works, _ in self._leaving:
            _wait(works)
        self._leaving = []

    def _post(
        self, exchange: Exchange, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]
    ) -> tuple[list[Work], bool]:
        """Handles, sends first, and whether there is one per transfer."""
        ranks = self.group.ranks
        ops = [
            P2POp("isend", tensor, ranks[transfer.destination], self.group)
            for transfer, tensor in zip(exchange.sends, outgoing, strict=True)
        ]
        ops += [
            P2POp("irecv", tensor, ranks[transfer.source], self.group)
            for transfer, tensor in zip(exchange.receives, incoming, strict=True)
        ]
        works = comm.batch_isend_irecv(ops)
        return works, len(works) == len(ops)

    def _incoming_shapes(
        self, exchange: Exchange, outgoing: Sequence[Tensor]
    ) -> list[tuple[int, ...]]:
        if not self.format.variable_shapes:
            return [self.format.shape] * len(exchange.receives)
        sent = [memory.from_numpy(_told(tuple(tensor.shape))) for tensor in outgoing]
        received = [memory.zeros((_MOST_DIMS + 1,), mstype.int64) for _ in exchange.receives]
        works, _ = self._post(exchange, sent, received)
        _wait(works)
        told = [[int(size) for size in memory.as_numpy(shape)] for shape in received]
        return [tuple(sizes[1 : 1 + sizes[0]]) for sizes in told]

    def _check(self, tensor: Tensor) -> None:
        fmt = self.format
        is_shape_right = fmt.variable_shapes or tuple(tensor.shape) == fmt.shape
        if not is_shape_right or tensor.dtype != fmt.dtype:
            raise ValueError(
                f"rank {comm.get_rank()} is to send {tuple(tensor.shape)} {tensor.dtype} to "
                f"another pipeline stage, but {fmt.shape} {fmt.dtype} was agreed; check "
                "seq_length, micro-batch size and compute_dtype, or set variable_seq_lengths"
            )


def _told(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """A shape as it is sent: the number of dimensions, then their sizes."""
    assert len(shape) <= _MOST_DIMS, f"a tensor of {len(shape)} dimensions travels"
    return np.array([len(shape), *shape, *[0] * (_MOST_DIMS - len(shape))], np.int64)


def _wait(works: Sequence[Work]) -> None:
    for work in works:
        work.wait()
