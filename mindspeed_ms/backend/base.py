# SPDX-License-Identifier: Apache-2.0
"""Two seams: ``Device``, where tensors live, and ``Comm``, how ranks communicate.

Implementations of ``Device`` are ``cpu_device.CpuDevice`` and ``ascend_device.AscendDevice``;
``device`` chooses one when it is imported, and the functions of ``memory`` are its methods.

Implementations of ``Comm`` are ``cpu_mpi.MpiComm``, ``ascend.AscendComm`` and
``single.SingleComm``. Callers use the functions of ``comm``; those check arguments once, so an
implementation may rely on: tensors are contiguous, element counts and types agree, the caller is a
member of the group, the group has more than one rank (``SingleComm`` serves the others), a peer is
another rank of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from mindspore import Tensor
from mindspore.common import dtype as mstype

Platform = Literal["cpu", "ascend"]


class Device(Protocol):
    """Where tensors live, and what is done differently there.

    Nothing here is recorded on the tape. What is in place works on the tensor's own memory.
    """

    @property
    def name(self) -> Platform:
        """Which device it is."""

    def initialize(self) -> None:
        """Bring MindSpore into the mode the package works in."""

    def set_deterministic(self) -> None:
        """Only use kernels whose result is the same in every run; before communication starts."""

    def synchronize(self) -> None:
        """Wait until the device has finished all work."""

    def memory_stats(self) -> dict[str, int]:
        """Bytes of this rank: ``peak`` so far, ``current``, and ``reserved`` from the system."""

    def release_cached_memory(self) -> None:
        """Give memory that no tensor uses back to the system."""

    # ---- new tensors -----------------------------------------------------------------------------

    def empty(self, shape: Sequence[int], dtype: mstype.Type = mstype.float32) -> Tensor:
        """Tensor with undefined contents."""

    def zeros(self, shape: Sequence[int], dtype: mstype.Type = mstype.float32) -> Tensor:
        """Tensor of zeros with storage of its own."""

    def full(
        self, shape: Sequence[int], value: float, dtype: mstype.Type = mstype.float32
    ) -> Tensor:
        """Tensor of one value (float32 or float16) with storage of its own."""

    def permuted(self, tensor: Tensor, dims: Sequence[int]) -> Tensor:
        """Contiguous copy with the dimensions in another order."""

    def transposed(self, tensor: Tensor) -> Tensor:
        """Contiguous copy with the first two dimensions exchanged; for ids and masks."""

    def in_dtype(self, tensor: Tensor, dtype: mstype.Type) -> Tensor:
        """The tensor itself if it has the type, else a copy; for ids, masks and statistics."""

    def concatenated(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensors one after the other in their first dimension."""

    # ---- the host's view, and in place -----------------------------------------------------------

    def as_numpy(self, tensor: Tensor, flat: bool = False) -> np.ndarray:
        """The elements of a contiguous tensor, bfloat16 as uint16 bits; ``flat``: in one dimension.

        On CPU a view: writable, nothing is copied, and it keeps the tensor alive. On Ascend a copy
        on the host, for reading only.

        Raises:
            ValueError: the tensor is not contiguous, so no dense array can alias it.
        """

    def copy_(self, dst: Tensor, src: Tensor) -> None:
        """Copy the elements of ``src`` into the storage of ``dst`` (same shape and type).

        Raises:
            ValueError: shapes or types differ.
        """

    def copy_from_host(self, dst: Tensor, values: np.ndarray) -> None:
        """Copy host values (bfloat16 as its raw bits) into the storage of ``dst``, of equal size.

        Raises:
            ValueError: the values have another layout than the tensor.
        """

    def zero_(self, tensor: Tensor) -> None:
        """Set all elements to 0, whatever they were: NaN times 0 would stay NaN."""


class ReduceOp(Enum):
    """How a reduction combines the ranks' elements."""

    SUM = "sum"
    AVG = "avg"
    """Sum divided by the number of ranks; floating point types only."""
    MAX = "max"
    MIN = "min"
    PROD = "prod"


@dataclass(frozen=True, eq=False)
class Group(str):
    """An ordered set of ranks that communicate with each other; made by ``comm.new_group``.

    It is also the text by which MindSpore's own collectives know it, ``ops.AllReduce(group=...)``:
    HCCL's name of the group on Ascend; on CPU a group that exists for MindSpore if the script has
    called ``mindspore.communication.init()`` itself.
    """

    ranks: tuple[int, ...]
    """Global ranks, ascending."""
    rank: int
    """Position of this process in ``ranks``; -1 if it is not a member."""
    name: str
    """Unique within the job, equal on all ranks."""
    _handle: Any = field(default=None, repr=False)
    """The implementation's own object (an MPI communicator, an HCCL group name)."""

    _text: str = field(default="", repr=False)
    """What MindSpore calls it; empty: the implementation's own object, or the name."""

    def __new__(  # noqa: PYI034
        cls,
        ranks: tuple[int, ...],
        rank: int,
        name: str,
        _handle: Any = None,
        _text: str = "",
    ) -> Group:
        """A group and its text."""
        own = _handle if isinstance(_handle, str) else name
        return super().__new__(cls, _text or own)

    @cached_property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    def rank_of(self, global_rank: int) -> int:
        """Position of a global rank in this group.

        Raises:
            ValueError: the rank is not a member.
        """
        try:
            return self.ranks.index(global_rank)
        except ValueError:
            raise ValueError(
                f"rank {global_rank} is not in group {self.name} with ranks {self.ranks}; "
                "name a global rank of this group"
            ) from None


class Work(Protocol):
    """A communication in flight. Its buffers stay alive until it is complete."""

    def wait(self) -> None:
        """Block until the result is in the output tensor; further calls return at once."""

    def is_completed(self) -> bool:
        """True when ``wait`` would not block; also lets the library make progress."""


class CompletedWork:
    """The handle of a communication that was finished when the call returned."""

    def wait(self) -> None:
        """Return at once."""

    def is_completed(self) -> bool:
        """Always true."""
        return True


@dataclass(frozen=True)
class P2POp:
    """One transfer of ``comm.batch_isend_irecv``.

    Raises:
        ValueError: ``op`` is neither a send nor a receive.
    """

    op: Literal["isend", "irecv"] | Callable[..., Work]
    """``"isend"`` or ``"irecv"``; the functions ``comm.isend`` and ``comm.irecv`` do as well."""
    tensor: Tensor
    peer: int
    """Global rank of the other side."""
    group: Group | None = None
    tag: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("isend", "irecv"):
            raise ValueError(f"P2POp.op is {self.op!r}; it must be comm.isend or comm.irecv")

    @property
    def kind(self) -> str:
        """``"isend"`` or ``"irecv"``."""
        return self.op if isinstance(self.op, str) else self.op.__name__


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Memory that all ranks of a group map, zeros at first; it stays until the job ends."""

    bytes: np.ndarray
    """uint8."""
    clock: AbstractContextManager[object]
    """Runs while this rank may wait for others there: one that never comes is noticed so."""


class Comm(Protocol):
    """One way to communicate.

    Tensors are changed in place. With ``async_op`` a handle is returned at once, else ``None``
    after completion. Every member of a group calls the same operations in the same order.
    """

    @property
    def rank(self) -> int:
        """Global rank of this process."""

    @property
    def world_group(self) -> Group:
        """The group of all ranks."""

    def new_group(self, ranks: tuple[int, ...], name: str) -> Group:
        """Create a group of two or more ranks; called by every rank of the world in one order."""

    def all_reduce(self, tensor: Tensor, op: ReduceOp, group: Group, async_op: bool) -> Work | None:
        """Replace the tensor of every rank by the reduction of all."""

    def all_gather_into_tensor(
        self, output: Tensor, input: Tensor, group: Group, async_op: bool
    ) -> Work | None:
        """Write the inputs of all ranks into ``output``, in rank order."""

    def reduce_scatter_tensor(
        self, output: Tensor, input: Tensor, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        """Reduce the inputs and leave part ``group.rank`` of the result in ``output``."""

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,
        splits: tuple[Sequence[int], Sequence[int]],
        group: Group,
        async_op: bool,
    ) -> Work | None:
        """Exchange parts; ``splits`` holds rows per rank of ``output`` and of ``input``."""

    def broadcast(self, tensor: Tensor, src: int, group: Group, async_op: bool) -> Work | None:
        """Replace the tensor of every rank by that of global rank ``src``."""

    def reduce(
        self, tensor: Tensor, dst: int, op: ReduceOp, group: Group, async_op: bool
    ) -> Work | None:
        """Leave the reduction in the tensor of global rank ``dst``; the others keep theirs."""

    def isend(self, tensor: Tensor, dst: int, group: Group, tag: int) -> Work:
        """Start sending to global rank ``dst``."""

    def irecv(self, tensor: Tensor, src: int, group: Group, tag: int) -> Work:
        """Start receiving from global rank ``src``."""

    def batch_isend_irecv(self, ops: Sequence[P2POp], group: Group) -> list[Work]:
        """Start several transfers of one group at once; the order of the list does not matter."""

    def shared_memory(self, num_bytes: int, group: Group) -> SharedMemory | None:
        """Memory of the group, the same at every call; None on all ranks: they cannot share any."""

    def barrier(self, group: Group) -> None:
        """Return when every rank of the group has called it."""

    def all_gather_object(self, obj: object, group: Group) -> list[Any]:
        """The objects of all ranks, in rank order (pickled)."""

    def broadcast_object(self, obj: object, src: int, group: Group) -> Any:
        """The object of global rank ``src`` (pickled)."""

    def abort(self, message: str) -> None:
        """End every process of the job with ``message``; does not return."""

    def destroy(self) -> None:
        """Release what the implementation holds; no communication afterwards."""
