# SPDX-License-Identifier: Apache-2.0
"""A world of one rank, and every group of one rank: local copies, no library."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from mindspore import Tensor

from mindspeed_ms.backend import device
from mindspeed_ms.backend.base import (
    CompletedWork,
    Group,
    P2POp,
    ReduceOp,
    SharedMemory,
    Work,
)
from mindspeed_ms.backend.memory import flat_view


def _done(async_op: bool) -> Work | None:
    return CompletedWork() if async_op else None


def _copy(output: Tensor, input: Tensor) -> None:
    if device.is_ascend():
        output.copy_(input.view(tuple(output.shape)))
    else:
        flat_view(output)[...] = flat_view(input)


class SingleComm:
    """``Comm`` where this process is the only rank of every group.

    Point-to-point operations do not exist here: ``comm`` refuses a peer that is the caller.
    """

    rank = 0
    world_group = Group(ranks=(0,), rank=0, name="world", _text="mccl_world_group")

    def new_group(self, ranks: tuple[int, ...], name: str) -> Group:
        """Groups of one rank need no handle."""
        return Group(ranks=ranks, rank=0, name=name)

    def all_reduce(self, tensor: Tensor, op: ReduceOp, group: Group, async_op: bool) -> Work | None:
        """Nothing to combine."""
        return _done(async_op)

    def all_gather_into_tensor(
        self, output: Tensor, input: Tensor, group: Group, async_op: bool
    ) -> Work | None:
        """Copy."""
        _copy(output, input)
        return _done(async_op)

    def reduce_scatter_tensor(
        self, output: Tensor, input: Tensor, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        """Copy."""
        _copy(output, input)
        return _done(async_op)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        splits: tuple[Sequence[int], Sequence[int]],
        group: Group,
        async_op: bool,
    ) -> Work | None:
        """Copy."""
        _copy(output, input)
        return _done(async_op)

    def broadcast(self, tensor: Tensor, src: int, group: Group, async_op: bool) -> Work | None:
        """Nothing to send."""
        return _done(async_op)

    def reduce(
        self, tensor: Tensor, dst: int, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        """Nothing to combine."""
        return _done(async_op)

    def isend(self, tensor: Tensor, dst: int, group: Group, tag: int) -> Work:
        """Never reached: a group of one has no other rank."""
        raise AssertionError("a group of one rank has no peer")

    def irecv(self, tensor: Tensor, src: int, group: Group, tag: int) -> Work:
        """Never reached: a group of one has no other rank."""
        raise AssertionError("a group of one rank has no peer")

    def batch_isend_irecv(self, ops: Sequence[P2POp], group: Group) -> list[Work]:
        """Only the empty batch is possible."""
        return []

    def shared_memory(self, num_bytes: int, group: Group) -> SharedMemory | None:
        """There is nobody to share it with."""
        return None

    def barrier(self, group: Group) -> None:
        """Nobody to wait for."""

    def all_gather_object(self, obj: object, group: Group) -> list[Any]:
        """The caller's object."""
        return [obj]

    def broadcast_object(self, obj: object, src: int, group: Group) -> Any:
        """The caller's object."""
        return obj

    def abort(self, message: str) -> NoReturn:
        """End this process."""
        sys.stdout.flush()
        sys.stderr.write(f"ERROR: {message}\n")
        sys.stderr.flush()
        os._exit(1)

    def destroy(self) -> None:
        """Nothing is held."""
