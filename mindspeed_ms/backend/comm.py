# SPDX-License-Identifier: Apache-2.0
"""Communication between ranks: module functions over the one implementation of this process.

``init_process_group`` chooses it: MPI on CPU, ``mindspore.mint.distributed`` on Ascend, nothing at
all for a single process. Tensors are changed in place, on their own memory, and must be contiguous;
``async_op=True`` returns a ``Work`` to wait for. ``group=None`` means all ranks. Sources,
destinations and peers are global ranks. bfloat16 and float16 are reduced in float32.

Parallelism:
    Every member of a group calls the same collectives of the group in the same order; every rank of
    the world calls ``new_group`` in the same order, members or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import device, env, launch, launcher, own_cluster
from mindspeed_ms.backend.base import Comm, Group, P2POp, ReduceOp, SharedMemory, Work
from mindspeed_ms.backend.progress import here
from mindspeed_ms.backend.recording import CommCall, RecordingComm, Take
from mindspeed_ms.backend.single import SingleComm

__all__ = [
    "CommCall",
    "Group",
    "P2POp",
    "ReduceOp",
    "SharedMemory",
    "Work",
    "abort",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all_single",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "broadcast_object",
    "destroy_process_group",
    "get_local_rank",
    "get_rank",
    "get_world_size",
    "init_process_group",
    "irecv",
    "is_initialized",
    "isend",
    "job_name",
    "new_group",
    "note_iteration",
    "num_restarts",
    "reduce",
    "reduce_scatter_tensor",
    "set_timeout",
    "shared_memory",
    "start_recording",
    "started_by_script",
    "stop_recording",
    "world_group",
]

_FLOATING = (mstype.float32, mstype.float16, mstype.bfloat16, mstype.float64)


@dataclass
class _State:
    comm: Comm | None = None
    groups: dict[tuple[int, ...], Group] = field(default_factory=dict)
    """Groups already made, so that equal rank lists share one communicator."""


_state = _State()
_alone = SingleComm()


def init_process_group() -> None:
    """Join the job the launcher has started; a second call does nothing.

    Under ``msrun`` on CPU the scheduler process serves the job here and does not return: it exits
    when the workers have ended. Afterwards RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT are set in the environment.

    Raises:
        RuntimeError: a peer or the scheduler cannot be reached in time, or MPI is not installed.
    """
    device.initialize()
    if _state.comm is None:
        _state.comm = launch.start()
        _state.groups[_state.comm.world_group.ranks] = _state.comm.world_group


def started_by_script() -> bool:
    """Whether the script has called ``mindspore.communication.init()``; ours can then begin."""
    return own_cluster.is_started()


def set_timeout(minutes: float) -> None:
    """How long a rank may be silent, or wait for the others, before the job ends.

    On CPU; HCCL has limits of its own (``HCCL_EXEC_TIMEOUT``).
    """
    launch.set_limit(60.0 * minutes)


def num_restarts() -> int:
    """How often the launcher has started this job again after a failure."""
    return (env.get_int(launcher.RESTARTS_VARIABLE) or 0) if job_name() else 0


def job_name() -> str:
    """What the launcher of this host calls this job in all its attempts; "" without a launcher."""
    return env.get(launcher.JOB_VARIABLE) or ""


def note_iteration(iteration: int) -> None:
    """Where the run stands, for messages about a rank that does not answer."""
    here.iteration = iteration


def start_recording(take: Take) -> None:
    """From now on tell ``take`` about every call between several ranks that is over.

    Raises:
        RuntimeError: called before ``init_process_group``.
    """
    _state.comm = cast("Comm", RecordingComm(_active(), take))


def stop_recording() -> None:
    """Undo ``start_recording``; calls in flight are still told when they are waited for."""
    if isinstance(_state.comm, RecordingComm):
        _state.comm = _state.comm.inner


def is_initialized() -> bool:
    """True between ``init_process_group`` and ``destroy_process_group``."""
    return _state.comm is not None


def destroy_process_group() -> None:
    """Release every group. Work in flight must have been waited for on every rank."""
    if _state.comm is not None:
        _state.comm.destroy()
    _state.comm = None
    _state.groups.clear()


def get_rank() -> int:
    """Global rank of this process; 0 before ``init_process_group``."""
    return 0 if _state.comm is None else _state.comm.rank


def get_world_size() -> int:
    """Number of ranks; 1 before ``init_process_group``."""
    return 1 if _state.comm is None else _state.comm.world_group.size


def get_local_rank() -> int:
    """Position of this process among those of its host."""
    return env.get_int("LOCAL_RANK", 0) or 0


def world_group() -> Group:
    """The group of all ranks.

    Raises:
        RuntimeError: called before ``init_process_group``.
    """
    return _active().world_group


def new_group(ranks: Sequence[int]) -> Group:
    """The group of some ranks, in ascending order; equal rank lists give the same group.

    Parallelism:
        Called by every rank of the world in the same order. Those outside get ``rank == -1``.

    Raises:
        ValueError: a rank is repeated or outside the world, or the list is empty.
    """
    comm = _active()
    members = tuple(sorted(ranks))
    world = comm.world_group.size
    if (
        not members
        or len(set(members)) != len(members)
        or not 0 <= members[0] <= members[-1] < world
    ):
        raise ValueError(
            f"new_group got ranks {list(ranks)}; they must be different and within "
            f"0..{world - 1}, at least one"
        )
    if members not in _state.groups:
        _state.groups[members] = _create_group(comm, members)
    return _state.groups[members]


def _create_group(comm: Comm, members: tuple[int, ...]) -> Group:
    name = f"group{len(_state.groups)}"
    if len(members) > 1:
        group = comm.new_group(members, name)
    else:
        group = Group(ranks=members, rank=0 if members[0] == comm.rank else -1, name=name)
    if group.rank >= 0 and not device.is_ascend() and own_cluster.is_started():
        own_cluster.name_group(group, members)
    return group


def all_reduce(
    tensor: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: Group | None = None,
    async_op: bool = False,
) -> Work | None:
    """Replace the tensor of every rank by the reduction over the group."""
    comm, group = _enter("all_reduce", group, tensor)
    _check_reduction("all_reduce", op, tensor.dtype)
    return comm.all_reduce(tensor, op, group, async_op)


def all_gather_into_tensor(
    output: Tensor, input: Tensor, group: Group | None = None, async_op: bool = False
) -> Work | None:
    """Write the inputs of all ranks into ``output``, in rank order.

    ``input`` may be this rank's own part of ``output``.

    Shapes:
        input n elements, output group.size * n.
    """
    comm, group = _enter("all_gather_into_tensor", group, output, input)
    _check_count("all_gather_into_tensor", "output", output.shape, "input", input.shape, group.size)
    return comm.all_gather_into_tensor(output, input, group, async_op)


def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: Group | None = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce the inputs and leave this rank's part of the result in ``output``.

    ``output`` may be this rank's own part of ``input``; the other parts of ``input`` are unchanged.

    Shapes:
        input group.size * n elements, output n.
    """
    comm, group = _enter("reduce_scatter_tensor", group, input, output)
    _check_count("reduce_scatter_tensor", "input", input.shape, "output", output.shape, group.size)
    _check_reduction("reduce_scatter_tensor", op, input.dtype)
    return comm.reduce_scatter_tensor(output, input, op, group, async_op)


def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: Group | None = None,
    async_op: bool = False,
) -> Work | None:
    """Send part j of ``input`` to rank j and receive its part for this rank into ``output``.

    Split sizes count rows (dimension 0), one per rank of the group; ``None`` means equal parts.
    The two tensors must not overlap.
    """
    comm, group = _enter("all_to_all_single", group, output, input)
    splits = (
        _splits("output", output, output_split_sizes, group),
        _splits("input", input, input_split_sizes, group),
    )
    if group.size == 1:
        _check_count("all_to_all_single", "output", output.shape, "input", input.shape, 1)
    return comm.all_to_all_single(output, input, splits, group, async_op)


def broadcast(
    tensor: Tensor, src: int, group: Group | None = None, async_op: bool = False
) -> Work | None:
    """Replace the tensor of every rank by that of global rank ``src``."""
    comm, group = _enter("broadcast", group, tensor)
    group.rank_of(src)
    return comm.broadcast(tensor, src, group, async_op)


def reduce(
    tensor: Tensor,
    dst: int,
    op: ReduceOp = ReduceOp.SUM,
    group: Group | None = None,
    async_op: bool = False,
) -> Work | None:
    """Leave the reduction in the tensor of global rank ``dst``; the others keep theirs."""
    comm, group = _enter("reduce", group, tensor)
    _check_reduction("reduce", op, tensor.dtype)
    group.rank_of(dst)
    return comm.reduce(tensor, dst, op, group, async_op)


def isend(tensor: Tensor, dst: int, group: Group | None = None, tag: int = 0) -> Work:
    """Start sending to global rank ``dst``; the tensor must not change before ``wait``."""
    comm, group = _enter("isend", group, tensor)
    _check_peer("isend", dst, group)
    return comm.isend(tensor, dst, group, tag)


def irecv(tensor: Tensor, src: int, group: Group | None = None, tag: int = 0) -> Work:
    """Start receiving from global rank ``src``; the tensor is undefined until ``wait``."""
    comm, group = _enter("irecv", group, tensor)
    _check_peer("irecv", src, group)
    return comm.irecv(tensor, src, group, tag)


def batch_isend_irecv(ops: Sequence[P2POp]) -> list[Work]:
    """Start several transfers at once, so that no order of the list can deadlock.

    Returns handles whose completion means completion of the whole batch; there may be fewer
    handles than transfers.

    Raises:
        ValueError: the transfers name different groups.
    """
    if not ops:
        return []
    comm, group = _enter("batch_isend_irecv", ops[0].group)
    for op in ops:
        if op.group is not ops[0].group:
            raise ValueError(
                "batch_isend_irecv got transfers of several groups; call it once per group"
            )
        _enter(op.kind, group, op.tensor)
        _check_peer(op.kind, op.peer, group)
    return comm.batch_isend_irecv(ops, group)


def shared_memory(num_bytes: int, group: Group | None = None) -> SharedMemory | None:
    """Memory that all ranks of a group map, for what is too small for a collective.

    The same at every call with these arguments. None, on all ranks, where they cannot share any: on
    several hosts, on devices, in a group of one.
    """
    comm, group = _enter("shared_memory", group)
    return comm.shared_memory(num_bytes, group)


def barrier(group: Group | None = None) -> None:
    """Return when every rank of the group has called it."""
    comm, group = _enter("barrier", group)
    comm.barrier(group)


def all_gather_object(obj: object, group: Group | None = None) -> list[Any]:
    """The objects of all ranks, in rank order; they are pickled."""
    comm, group = _enter("all_gather_object", group)
    return comm.all_gather_object(obj, group)


def broadcast_object(obj: object, src: int, group: Group | None = None) -> Any:
    """The object of global rank ``src``; the other ranks' ``obj`` is ignored."""
    comm, group = _enter("broadcast_object", group)
    group.rank_of(src)
    return comm.broadcast_object(obj, src, group)


def abort(message: str) -> None:
    """End every process of the job with a non-zero status; all of them log ``message``."""
    (_state.comm or _alone).abort(message)


def _active() -> Comm:
    if _state.comm is None:
        raise RuntimeError(
            "communication before init_process_group(); call comm.init_process_group() first"
        )
    return _state.comm


def _enter(name: str, group: Group | None, *tensors: Tensor) -> tuple[Comm, Group]:
    """Implementation and group of a call; the caller is a member, the tensors can be used."""
    comm = _state.comm or _active()
    here.call = name
    group = comm.world_group if group is None else group
    if group.rank < 0:
        raise ValueError(
            f"rank {comm.rank} called {name} on group {group.name} of ranks {group.ranks}; "
            "only members may: test group.rank >= 0 first"
        )
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} got a non-contiguous tensor of shape {tuple(tensor.shape)}; it works in "
                "place on contiguous memory: pass memory.contiguous(tensor)"
            )
        if tensor.dtype != tensors[0].dtype:
            raise ValueError(
                f"{name} got tensors of {tensors[0].dtype} and {tensor.dtype}; the types must be "
                "equal: cast one of them"
            )
    return (comm if group.size > 1 else _alone), group


@lru_cache(maxsize=1024)
def _check_count(
    name: str, big: str, large: tuple[int, ...], small: str, part: tuple[int, ...], size: int
) -> None:
    """Of shapes only, so each combination is looked at once."""
    if math.prod(large) != size * math.prod(part):
        raise ValueError(
            f"{name} got {big} of shape {large} and {small} of shape {part}; {big} must hold "
            f"group size ({size}) times as many elements"
        )


@lru_cache(maxsize=1024)
def _check_reduction(name: str, op: ReduceOp, dtype: mstype.Type) -> None:
    if op is ReduceOp.AVG and dtype not in _FLOATING:
        raise ValueError(
            f"{name} got ReduceOp.AVG for {dtype}; averages need a floating point type: use SUM"
        )
    if dtype == mstype.bool_ and op not in (ReduceOp.MAX, ReduceOp.MIN):
        raise ValueError(f"{name} got {op} for bool; use ReduceOp.MAX (any) or ReduceOp.MIN (all)")


def _check_peer(name: str, peer: int, group: Group) -> None:
    if group.rank_of(peer) == group.rank:
        raise ValueError(f"{name} got the caller's own rank {peer} as peer; name another rank")


def _splits(
    which: str, tensor: Tensor, sizes: Sequence[int] | None, group: Group
) -> tuple[int, ...]:
    """Rows per rank, checked against the tensor."""
    shape = tuple(tensor.shape)
    rows = shape[0] if shape else 0
    if not sizes:
        if not shape or rows % group.size:
            raise ValueError(
                f"all_to_all_single got {which} of shape {shape}; without split sizes its first "
                f"dimension must be divisible by the group size ({group.size})"
            )
        return (rows // group.size,) * group.size
    if len(sizes) != group.size or min(sizes) < 0 or sum(sizes) != rows:
        raise ValueError(
            f"all_to_all_single got {which}_split_sizes {list(sizes)} for shape {shape}; it needs "
            f"{group.size} non-negative sizes that sum to {rows}"
        )
    return tuple(sizes)
