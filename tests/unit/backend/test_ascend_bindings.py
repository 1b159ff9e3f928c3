# SPDX-License-Identifier: Apache-2.0
"""``AscendComm`` without an NPU: every call it makes fits the installed ``mint.distributed``.

The library is replaced by recorders that bind each call against the real function's signature and
then act like a world of four ranks of which this process is rank 2.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import mindspore.mint.distributed as mint_distributed
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import ascend
from mindspeed_ms.backend.base import P2POp, ReduceOp

RANK, SIZE = 2, 4
FUNCTIONS = (
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all_single",
    "barrier",
    "batch_isend_irecv",
    "broadcast",
    "broadcast_object_list",
    "destroy_process_group",
    "get_rank",
    "get_world_size",
    "init_process_group",
    "irecv",
    "isend",
    "new_group",
    "reduce",
    "reduce_scatter_tensor",
)


class Handle:
    def __init__(self):
        self.waits = 0

    def wait(self):
        self.waits += 1


class Library:
    """Recorders under the names of ``mint.distributed``."""

    def __init__(self):
        self.calls = []
        self.handles = []
        self.group_name = "hccl_2_abc"
        for name in FUNCTIONS:
            setattr(self, name, self._recorder(name))

    # The real class: its constructor checks the operation, the tensor, the peer and the tag.
    P2POp = mint_distributed.P2POp

    def _recorder(self, name):
        signature = inspect.signature(getattr(mint_distributed, name))

        def record(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self.calls.append((name, bound.arguments))
            return self._answer(name, bound.arguments)

        return record

    def _answer(self, name, arguments):
        if name in ("get_rank", "get_world_size"):
            return RANK if name == "get_rank" else SIZE
        if name == "new_group":
            return self.group_name
        if name in ("isend", "irecv", "batch_isend_irecv") or arguments.get("async_op"):
            self.handles.append(Handle())
            return [self.handles[-1]] if name == "batch_isend_irecv" else self.handles[-1]
        if name == "all_gather_object":
            arguments["object_list"][:] = [arguments["obj"]] * len(arguments["object_list"])
        return None

    def last(self, name):
        """Arguments of the newest call, which must be of that function."""
        assert self.calls[-1][0] == name
        return self.calls[-1][1]


@pytest.fixture
def library(monkeypatch):
    library = Library()
    monkeypatch.setattr(ascend.importlib, "import_module", lambda name: library)
    return library


@pytest.fixture
def world(library):
    return ascend.AscendComm()


@pytest.fixture
def group(world, library):
    return world.new_group((1, 2), "group1")


def tensor(dtype=mstype.float32, shape=(4, 2)):
    return Tensor(np.ones(shape), dtype)


class CopiedTensor(SimpleNamespace):
    """Stands for a 16-bit tensor whose in-place copy is observed."""

    def astype(self, dtype):
        return tensor(dtype)

    def copy_(self, source):
        self.received = source


def test_joining_asks_the_library_who_we_are(world, library):
    assert (world.rank, world.world_group.ranks) == (RANK, (0, 1, 2, 3))
    assert [name for name, _ in library.calls] == [
        "init_process_group",
        "get_rank",
        "get_world_size",
    ]
    assert library.calls[0][1]["backend"] == "hccl"


def test_groups_are_made_by_their_members_only(world, library, group):
    assert (group.rank, group._handle) == (1, "hccl_2_abc")
    assert library.last("new_group")["ranks"] == [1, 2]
    assert world.new_group((0, 1), "group2").rank == -1
    assert library.last("new_group")["ranks"] == [1, 2]


def test_a_group_hccl_refuses_is_an_error(world, library):
    library.group_name = ""
    with pytest.raises(RuntimeError, match="HCCL could not create a group"):
        world.new_group((1, 2), "group1")


@pytest.mark.parametrize("op", ReduceOp)
@pytest.mark.parametrize("async_op", [False, True])
def test_reductions_bind(world, library, group, op, async_op):
    whole, part = tensor(), tensor(shape=(2, 2))
    cases = {
        "all_reduce": lambda: world.all_reduce(whole, op, group, async_op),
        "reduce": lambda: world.reduce(whole, RANK, op, group, async_op),
        "reduce_scatter_tensor": lambda: world.reduce_scatter_tensor(
            part, whole, op, group, async_op
        ),
    }
    for name, call in cases.items():
        work = call()
        arguments = library.last(name)
        assert (arguments["op"], arguments["group"]) == (op.value, "hccl_2_abc")
        assert arguments["async_op"] is async_op
        assert (work is not None) is async_op
        if work is not None and name != "reduce":
            assert not work.is_completed()
            work.wait()
            work.wait()
            assert work.is_completed() and library.handles[-1].waits == 1


def test_values_of_reduce_ops_are_those_the_library_accepts():
    source = inspect.getsource(mint_distributed.all_reduce)
    assert all(f'"{op.value}"' in source for op in ReduceOp)


@pytest.mark.parametrize("async_op", [False, True])
def test_movements_bind(world, library, group, async_op):
    whole, part = tensor(), tensor(shape=(2, 2))
    works = [world.all_gather_into_tensor(whole, part, group, async_op)]
    assert library.last("all_gather_into_tensor")["output_tensor"] is whole
    works.append(world.all_to_all_single(whole, whole, ((1, 3), (2, 2)), group, async_op))
    arguments = library.last("all_to_all_single")
    assert arguments["output_split_sizes"] == [1, 3]
    assert arguments["input_split_sizes"] == [2, 2]
    works.append(world.broadcast(whole, 1, group, async_op))
    assert library.last("broadcast")["src"] == 1
    for work in works:
        assert (work is not None) is async_op
        if work is not None:
            work.wait()
    assert [handle.waits for handle in library.handles] == [1] * (3 if async_op else 0)


@pytest.mark.parametrize("async_op", [False, True])
@pytest.mark.parametrize("dtype", [mstype.bfloat16, mstype.float16])
def test_sixteen_bit_floats_are_reduced_in_float32(world, library, group, dtype, async_op):
    result = CopiedTensor(dtype=dtype)
    calls = {
        "all_reduce": lambda: world.all_reduce(result, ReduceOp.SUM, group, async_op),
        "reduce": lambda: world.reduce(result, RANK, ReduceOp.SUM, group, async_op),
        "reduce_scatter_tensor": lambda: world.reduce_scatter_tensor(
            result, tensor(dtype), ReduceOp.SUM, group, async_op
        ),
    }
    for name, call in calls.items():
        work = call()
        arguments = library.last(name)
        reduced = arguments["tensor"] if "tensor" in arguments else arguments["output"]
        assert reduced.dtype == mstype.float32
        if name == "reduce_scatter_tensor":
            assert arguments["input"].dtype == mstype.float32
        if work is not None:
            assert not hasattr(result, "received"), "rounded only when it is complete"
            work.wait()
        assert result.received is reduced
        del result.received


def test_reduce_leaves_other_ranks_tensors_alone(world, library, group):
    result = CopiedTensor(dtype=mstype.bfloat16)
    world.reduce(result, 1, ReduceOp.SUM, group, False)
    assert library.last("reduce")["dst"] == 1
    assert not hasattr(result, "received")


def test_point_to_point_binds(world, library, group):
    data = tensor()
    sending = world.isend(data, 1, group, 0)
    assert library.last("isend")["dst"] == 1
    receiving = world.irecv(data, 1, group, 0)
    assert library.last("irecv")["src"] == 1
    batch = [P2POp("isend", data, 1, group), P2POp("irecv", data, 1, group)]
    works = [sending, receiving, *world.batch_isend_irecv(batch, group)]
    ops = library.last("batch_isend_irecv")["p2p_op_list"]
    assert [(op.op, op.peer, op.group) for op in ops] == [
        ("isend", 1, "hccl_2_abc"),
        ("irecv", 1, "hccl_2_abc"),
    ]
    for work in works:
        work.wait()
    assert [handle.waits for handle in library.handles] == [1, 1, 1]


@pytest.mark.parametrize("name", ["isend", "irecv", "batch"])
def test_tags_are_refused(world, group, name):
    data = tensor()
    calls = {
        "isend": lambda: world.isend(data, 1, group, 3),
        "irecv": lambda: world.irecv(data, 1, group, 3),
        "batch": lambda: world.batch_isend_irecv([P2POp("isend", data, 1, group, 3)], group),
    }
    with pytest.raises(NotImplementedError, match="HCCL has no message tags"):
        calls[name]()


def test_objects_and_barrier_bind(world, library, group):
    assert world.all_gather_object({"a": 1}, group) == [{"a": 1}] * 2
    assert world.broadcast_object("mine", RANK, group) == "mine"
    assert world.broadcast_object("mine", 1, group) is None
    assert library.last("broadcast_object_list")["src"] == 1
    world.barrier(world.world_group)
    assert library.last("barrier")["group"] is None
    world.destroy()
    assert library.last("destroy_process_group")["group"] is None


def test_every_function_has_been_bound_somewhere():
    used = set(inspect.getsource(ascend).split("self._dist.")[1:])
    names = {text.split("(")[0] for text in used} - {"P2POp"}
    assert names == set(FUNCTIONS)


def test_abort_names_the_rank(world, monkeypatch):
    messages = []
    monkeypatch.setattr(ascend, "end_process", messages.append)
    world.abort("no more")
    assert messages == ["rank 2 failed: no more"]
