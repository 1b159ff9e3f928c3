# SPDX-License-Identifier: Apache-2.0
"""Communication between Ascend NPUs with HCCL, through ``mindspore.mint.distributed``.

The library is imported when ``AscendComm`` is made, because it needs an NPU. Work is queued on the
device's streams: ``wait`` makes later computation wait, not the host.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import own_cluster
from mindspeed_ms.backend.base import (
    CompletedWork,
    Group,
    P2POp,
    ReduceOp,
    SharedMemory,
    Work,
)
from mindspeed_ms.backend.job_client import end_process

_LOW_PRECISION = (mstype.bfloat16, mstype.float16)


class AscendWork:
    """A handle of HCCL, the tensors it uses, and what remains to be done after it."""

    def __init__(
        self, handle: Any, keep: tuple[Tensor, ...], finish: Callable[[], None] | None = None
    ) -> None:
        self._handle = handle
        self._keep = keep
        self._finish = finish
        self._is_done = False

    def wait(self) -> None:
        """Order everything that follows on the current stream after the communication."""
        if self._is_done:
            return
        if self._handle is not None:
            self._handle.wait()
        if self._finish is not None:
            self._finish()
        self._is_done, self._keep, self._finish = True, (), None

    def is_completed(self) -> bool:
        """True after ``wait``: HCCL's handle cannot be asked."""
        return self._is_done


class AscendComm:
    """``Comm`` over HCCL; a group's handle is the name HCCL knows it by."""

    def __init__(self) -> None:
        """Join the job; under ``msrun`` the scheduler process stays inside this call.

        Raises:
            RuntimeError: HCCL is not available or the cluster cannot be formed.
        """
        self._dist = importlib.import_module("mindspore.mint.distributed")
        if not own_cluster.is_started():  # by the script
            self._dist.init_process_group()
        self.rank: int = self._dist.get_rank()
        size: int = self._dist.get_world_size()
        self.world_group = Group(tuple(range(size)), self.rank, "world", None, "hccl_world_group")

    def new_group(self, ranks: tuple[int, ...], name: str) -> Group:
        """Create the HCCL group; only members take part.

        Raises:
            RuntimeError: HCCL could not create the group.
        """
        if self.rank not in ranks:
            return Group(ranks, -1, name)
        handle = self._dist.new_group(list(ranks))
        if not handle:
            raise RuntimeError(
                f"HCCL could not create a group of ranks {ranks} on rank {self.rank}; see the "
                "device log"
            )
        return Group(ranks, ranks.index(self.rank), name, handle)

    def all_reduce(self, tensor: Tensor, op: ReduceOp, group: Group, async_op: bool) -> Work | None:
        """``all_reduce`` in place; 16-bit floats on a float32 copy."""
        work = _widen(tensor)
        handle = self._dist.all_reduce(work, op.value, group=group._handle, async_op=async_op)
        return _finish(handle, (tensor, work), _copier(tensor, work), async_op)

    def all_gather_into_tensor(
        self, output: Tensor, input: Tensor, group: Group, async_op: bool
    ) -> Work | None:
        """``all_gather_into_tensor``."""
        handle = self._dist.all_gather_into_tensor(
            output, input, group=group._handle, async_op=async_op
        )
        return _finish(handle, (output, input), None, async_op)

    def reduce_scatter_tensor(
        self, output: Tensor, input: Tensor, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        """``reduce_scatter_tensor``; 16-bit floats on float32 copies."""
        source, work = _widen(input), _widen(output)
        handle = self._dist.reduce_scatter_tensor(
            work, source, op.value, group=group._handle, async_op=async_op
        )
        keep = (output, input, source, work)
        return _finish(handle, keep, _copier(output, work), async_op)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        splits: tuple[Sequence[int], Sequence[int]],
        group: Group,
        async_op: bool,
    ) -> Work | None:
        """``all_to_all_single`` with explicit split sizes."""
        handle = self._dist.all_to_all_single(
            output, input, list(splits[0]), list(splits[1]), group=group._handle, async_op=async_op
        )
        return _finish(handle, (output, input), None, async_op)

    def broadcast(self, tensor: Tensor, src: int, group: Group, async_op: bool) -> Work | None:
        """``broadcast`` in place."""
        handle = self._dist.broadcast(tensor, src, group=group._handle, async_op=async_op)
        return _finish(handle, (tensor,), None, async_op)

    def reduce(
        self, tensor: Tensor, dst: int, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        """``reduce``; always on a copy, because HCCL leaves other ranks' tensors undefined."""
        work = tensor.astype(mstype.float32) if tensor.dtype in _LOW_PRECISION else tensor.copy()
        handle = self._dist.reduce(work, dst, op.value, group=group._handle, async_op=async_op)
        finish = _copier(tensor, work) if self.rank == dst else None
        return _finish(handle, (tensor, work), finish, async_op)

    def isend(self, tensor: Tensor, dst: int, group: Group, tag: int) -> Work:
        """``isend``; messages between two ranks arrive in order.

        Raises:
            NotImplementedError: a tag, which HCCL does not have.
        """
        _refuse_tag(tag)
        return AscendWork(self._dist.isend(tensor, dst, group=group._handle), (tensor,))

    def irecv(self, tensor: Tensor, src: int, group: Group, tag: int) -> Work:
        """``irecv``.

        Raises:
            NotImplementedError: a tag, which HCCL does not have.
        """
        _refuse_tag(tag)
        return AscendWork(self._dist.irecv(tensor, src, group=group._handle), (tensor,))

    def batch_isend_irecv(self, ops: Sequence[P2POp], group: Group) -> list[Work]:
        """``batch_isend_irecv``; one handle for the whole batch."""
        for op in ops:
            _refuse_tag(op.tag)
        batch = [self._dist.P2POp(op.kind, op.tensor, op.peer, group=group._handle) for op in ops]
        tensors = tuple(op.tensor for op in ops)
        return [AscendWork(handle, tensors) for handle in self._dist.batch_isend_irecv(batch)]

    def shared_memory(self, num_bytes: int, group: Group) -> SharedMemory | None:
        """Devices have memory of their own."""
        return None

    def barrier(self, group: Group) -> None:
        """``barrier``."""
        self._dist.barrier(group=group._handle)

    def all_gather_object(self, obj: object, group: Group) -> list[Any]:
        """``all_gather_object``."""
        objects: list[Any] = [None] * group.size
        self._dist.all_gather_object(objects, obj, group=group._handle)
        return objects

    def broadcast_object(self, obj: object, src: int, group: Group) -> Any:
        """``broadcast_object_list`` of one object."""
        objects = [obj if self.rank == src else None]
        self._dist.broadcast_object_list(objects, src, group=group._handle)
        return objects[0]

    def abort(self, message: str) -> NoReturn:
        """End this process; ``msrun`` then ends the others."""
        end_process(f"rank {self.rank} failed: {message}")

    def destroy(self) -> None:
        """``destroy_process_group``."""
        self._dist.destroy_process_group()


def _refuse_tag(tag: int) -> None:
    if tag != 0:
        raise NotImplementedError(
            f"tag {tag}: HCCL has no message tags, messages between two ranks arrive in order; "
            "send and receive them in the same order with tag 0"
        )


def _widen(tensor: Tensor) -> Tensor:
    return tensor.astype(mstype.float32) if tensor.dtype in _LOW_PRECISION else tensor


def _copier(result: Tensor, work: Tensor) -> Callable[[], None] | None:
    """What brings the reduced ``work`` into ``result``; None if it is there already."""
    if work is result:
        return None
    return lambda: result.copy_(work)


def _finish(
    handle: Any, keep: tuple[Tensor, ...], finish: Callable[[], None] | None, async_op: bool
) -> Work | None:
    if async_op:
        return CompletedWork() if handle is None else AscendWork(handle, keep, finish)
    if finish is not None:
        finish()
    return None
