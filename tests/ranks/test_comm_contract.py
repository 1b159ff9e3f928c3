# SPDX-License-Identifier: Apache-2.0
"""The contract of ``backend.comm``: every operation, type and group against NumPy.

One batch of many cases runs per world size. All values are small multiples of a power of two, so
that float32 sums are exact in any order and results are compared for equality; 16-bit floats then
show a single rounding to nearest even.

On NPUs run ``msrun --worker_num 8 ... pytest -m ascend tests/ranks/test_comm_contract.py``.
"""

from __future__ import annotations

import gc
from math import prod

import numpy as np
import pytest
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import comm, device, env, memory, peer_memory
from mindspeed_ms.backend.base import P2POp, ReduceOp
from mindspeed_ms.backend.cpu_mpi import _PIECE
from mindspeed_ms.backend.memory import flat_view
from mindspeed_ms.backend.numpy_types import bfloat16_to_float32, float32_to_bfloat16

WORLDS = (1, 2, 4, 8)
PATHS = {"by size": peer_memory.LEAST_BYTES, "peer memory": 1, "MPI": 2**62}
"""What moves the tensors -> bytes from which on ranks read each other's memory."""
SHAPE = (6, 5)
DTYPES = {
    "float32": (mstype.float32, np.float32),
    "float16": (mstype.float16, np.float16),
    "bfloat16": (mstype.bfloat16, np.float32),
    "int32": (mstype.int32, np.int32),
    "int64": (mstype.int64, np.int64),
}
"""Name -> (tensor type, NumPy type the values are handled in)."""

REDUCTIONS = {
    ReduceOp.SUM: lambda parts: np.sum(parts, axis=0, dtype=np.float64),
    ReduceOp.AVG: lambda parts: np.mean(parts, axis=0, dtype=np.float64),
    ReduceOp.MAX: lambda parts: np.max(parts, axis=0),
    ReduceOp.MIN: lambda parts: np.min(parts, axis=0),
    ReduceOp.PROD: lambda parts: np.prod(parts, axis=0, dtype=np.float64),
}


def along(path, job, **params):
    """What a job returns when collectives go along a path; on a rank."""
    kept, peer_memory.LEAST_BYTES = peer_memory.LEAST_BYTES, PATHS[path]
    try:
        return globals()[job](**params)
    finally:
        peer_memory.LEAST_BYTES = kept


# ---- values and tensors


def group_kinds(size):
    """Name -> ranks of each group of that kind; together they cover the world once."""
    kinds = {"world": [list(range(size))]}
    if size > 1:
        half = size // 2
        kinds["halves"] = [list(range(half)), list(range(half, size))]
        kinds["interleaved"] = [list(range(0, size, 2)), list(range(1, size, 2))]
    return kinds


def values(rank, dtype, shape=SHAPE, op=ReduceOp.SUM, salt=0):
    """What a rank contributes: exactly representable in every type."""
    generator = np.random.default_rng([rank, salt])
    numpy_type = DTYPES[dtype][1]
    if op is ReduceOp.PROD:
        choices = [-2, -1, 1, 2] if dtype.startswith("int") else [-2, -1, -0.5, 0.5, 1, 2]
        return generator.choice(choices, size=shape).astype(numpy_type)
    scale = 1 if dtype.startswith("int") else 0.125
    return (generator.integers(-127, 128, size=shape) * scale).astype(numpy_type)


def rounded(array, dtype):
    """A float64 result in the type of the tensor, as NumPy shows it."""
    numpy_type = DTYPES[dtype][1]
    if dtype == "bfloat16":
        bits = float32_to_bfloat16(np.ascontiguousarray(array, np.float32))
        return bfloat16_to_float32(bits)
    return np.asarray(array).astype(numpy_type)


def to_tensor(array, dtype):
    tensor = memory.zeros(array.shape, DTYPES[dtype][0])
    if not device.is_ascend():
        bits = float32_to_bfloat16(np.ascontiguousarray(array)) if dtype == "bfloat16" else array
        memory.as_numpy(tensor)[...] = bits
        return tensor
    return memory.from_numpy(np.ascontiguousarray(array)).astype(DTYPES[dtype][0])


def to_numpy(tensor):
    if tensor.dtype == mstype.bfloat16:
        if device.is_ascend():
            return tensor.astype(mstype.float32).asnumpy().copy()
        return bfloat16_to_float32(memory.as_numpy(tensor))
    return tensor.asnumpy().copy()


def empty_like(shape, dtype):
    return to_tensor(np.full(shape, 99, DTYPES[dtype][1]), dtype)


def copy(view, source):
    if device.is_ascend():
        view.copy_(source)
    else:
        flat_view(view)[...] = flat_view(source)


def reductions_for(dtype):
    return [op for op in ReduceOp if not (op is ReduceOp.AVG and dtype.startswith("int"))]


def my_groups(size):
    """Kind -> (ranks, group) that contain this rank. Groups are made in one order everywhere."""
    mine = {}
    for kind, rank_lists in group_kinds(size).items():
        for ranks in rank_lists:
            group = comm.new_group(ranks)
            if group.rank >= 0:
                mine[kind] = (ranks, group)
    return mine


# ---- collectives: what runs on a rank, and what it must give


def finish(work, async_op):
    assert (work is not None) == async_op, "a handle exactly when asked for"
    if work is not None:
        work.wait()
        work.wait()
        assert work.is_completed()


def split_sizes(rank, peer):
    """Rows rank sends to peer: uneven, with empty parts."""
    return (2 * rank + 3 * peer) % 4


def uneven_input(rank, ranks, dtype):
    rows = sum(split_sizes(rank, peer) for peer in ranks)
    return values(rank, dtype, (rows, 3))


def run_reductions(results, kind, group, dtype, async_op):
    rank = comm.get_rank()
    for op in reductions_for(dtype):
        key = (kind, dtype, async_op, op.value)
        tensor = to_tensor(values(rank, dtype, op=op), dtype)
        finish(comm.all_reduce(tensor, op, group=group, async_op=async_op), async_op)
        results[("all_reduce", *key)] = to_numpy(tensor)

        tensor = to_tensor(values(rank, dtype, op=op), dtype)
        root = group.ranks[-1]
        finish(comm.reduce(tensor, root, op, group=group, async_op=async_op), async_op)
        results[("reduce", *key)] = to_numpy(tensor)

        whole = to_tensor(values(rank, dtype, (group.size * 2, 3), op), dtype)
        part = empty_like((2, 3), dtype)
        finish(comm.reduce_scatter_tensor(part, whole, op, group, async_op), async_op)
        results[("reduce_scatter", *key)] = to_numpy(part)
        own = memory.view_of(whole.view(-1), group.rank * 6, (2, 3))
        finish(comm.reduce_scatter_tensor(own, whole, op, group, async_op), async_op)
        results[("reduce_scatter_in_place", *key)] = to_numpy(whole)


def run_movements(results, kind, group, dtype, async_op):
    rank = comm.get_rank()
    key = (kind, dtype, async_op)
    mine = values(rank, dtype)
    whole = empty_like((group.size, *SHAPE), dtype)
    finish(comm.all_gather_into_tensor(whole, to_tensor(mine, dtype), group, async_op), async_op)
    results[("all_gather", *key)] = to_numpy(whole)

    whole = empty_like((group.size, *SHAPE), dtype)
    own = memory.view_of(whole.view(-1), group.rank * prod(SHAPE), SHAPE)
    copy(own, to_tensor(mine, dtype))
    finish(comm.all_gather_into_tensor(whole, own, group, async_op), async_op)
    results[("all_gather_in_place", *key)] = to_numpy(whole)

    tensor = to_tensor(mine, dtype)
    finish(comm.broadcast(tensor, group.ranks[-1], group, async_op), async_op)
    results[("broadcast", *key)] = to_numpy(tensor)

    sent = to_tensor(values(rank, dtype, (group.size * 2, 3)), dtype)
    received = empty_like((group.size * 2, 3), dtype)
    finish(comm.all_to_all_single(received, sent, group=group, async_op=async_op), async_op)
    results[("all_to_all", *key)] = to_numpy(received)

    to_send = [split_sizes(rank, peer) for peer in group.ranks]
    to_receive = [split_sizes(peer, rank) for peer in group.ranks]
    sent = to_tensor(uneven_input(rank, group.ranks, dtype), dtype)
    received = empty_like((sum(to_receive), 3), dtype)
    work = comm.all_to_all_single(received, sent, to_receive, to_send, group, async_op)
    finish(work, async_op)
    results[("all_to_all_uneven", *key)] = to_numpy(received)


def collectives_worker():
    results = {}
    for kind, (_, group) in my_groups(comm.get_world_size()).items():
        for dtype in DTYPES:
            for async_op in (False, True):
                run_reductions(results, kind, group, dtype, async_op)
                run_movements(results, kind, group, dtype, async_op)
    return results


def expected(rank, ranks, key):
    """What rank must hold after the case."""
    name, _, dtype, _, *rest = key
    index = ranks.index(rank)
    if name in ("all_reduce", "reduce"):
        op = ReduceOp(rest[0])
        if name == "reduce" and rank != ranks[-1]:
            return values(rank, dtype, op=op)
        return rounded(REDUCTIONS[op]([values(r, dtype, op=op) for r in ranks]), dtype)
    if name.startswith("reduce_scatter"):
        op, shape = ReduceOp(rest[0]), (len(ranks) * 2, 3)
        whole = rounded(REDUCTIONS[op]([values(r, dtype, shape, op) for r in ranks]), dtype)
        part = whole[2 * index : 2 * index + 2]
        if name == "reduce_scatter":
            return part
        own = values(rank, dtype, shape, op)
        own[2 * index : 2 * index + 2] = part
        return own
    if name.startswith("all_gather"):
        return np.stack([values(r, dtype) for r in ranks])
    if name == "broadcast":
        return values(ranks[-1], dtype)
    if name == "all_to_all":
        shape = (len(ranks) * 2, 3)
        return np.concatenate([values(r, dtype, shape)[2 * index : 2 * index + 2] for r in ranks])
    assert name == "all_to_all_uneven", name
    parts = []
    for peer in ranks:
        start = sum(split_sizes(peer, r) for r in ranks[:index])
        sent = uneven_input(peer, ranks, dtype)
        parts.append(sent[start : start + split_sizes(peer, rank)])
    return np.concatenate(parts)


def check_collectives(rank, size, results):
    for key, result in results.items():
        ranks = next(ranks for ranks in group_kinds(size)[key[1]] if rank in ranks)
        message = f"rank {rank} of {size}, ranks {ranks}: {key}"
        np.testing.assert_array_equal(result, expected(rank, ranks, key), err_msg=message)
    per_dtype = {d: 4 * len(reductions_for(d)) + 5 for d in DTYPES}
    assert len(results) == sum(per_dtype.values()) * 2 * len(group_kinds(size))


@pytest.mark.parametrize("path", ["by size", "peer memory"])
@pytest.mark.parametrize("ranks", WORLDS)
def test_collectives_match_numpy(dist_run, ranks, path):
    found = dist_run(along, ranks=ranks, timeout=120, path=path, job="collectives_worker")
    for rank, results in enumerate(found):
        check_collectives(rank, ranks, results)


@pytest.mark.ascend
def test_collectives_match_numpy_on_ascend():
    comm.init_process_group()
    check_collectives(comm.get_rank(), comm.get_world_size(), collectives_worker())


# ---- point to point


def ring_worker(tags):
    """Pass every type around the ring of each group, alone and batched."""
    results = {}
    rank = comm.get_rank()
    for kind, (ranks, group) in my_groups(comm.get_world_size()).items():
        if len(ranks) == 1:
            continue
        following = ranks[(group.rank + 1) % len(ranks)]
        previous = ranks[group.rank - 1]
        for dtype in DTYPES:
            sent, received = to_tensor(values(rank, dtype), dtype), empty_like(SHAPE, dtype)
            tag = 7 if tags else 0
            works = [
                comm.irecv(received, previous, group, tag),
                comm.isend(sent, following, group, tag),
            ]
            for work in works:
                work.wait()
            results[("single", kind, dtype)] = to_numpy(received)
            received = empty_like(SHAPE, dtype)
            batch = [
                P2POp("isend", sent, following, group),
                P2POp(comm.irecv, received, previous, group),
            ]
            for work in comm.batch_isend_irecv(batch):
                work.wait()
            results[("batch", kind, dtype)] = to_numpy(received)
    return results


def check_ring(rank, size, results):
    for key, result in results.items():
        ranks = next(ranks for ranks in group_kinds(size)[key[1]] if rank in ranks)
        previous = ranks[ranks.index(rank) - 1]
        np.testing.assert_array_equal(result, values(previous, key[2]), err_msg=f"{rank} {key}")


@pytest.mark.parametrize("ranks", WORLDS[1:])
def test_ring_passes_every_type(dist_run, ranks):
    for rank, results in enumerate(dist_run(ring_worker, ranks=ranks, tags=True)):
        assert len(results) == 2 * len(DTYPES) * (1 if ranks == 2 else 3)
        check_ring(rank, ranks, results)


@pytest.mark.ascend
def test_ring_passes_every_type_on_ascend():
    comm.init_process_group()
    check_ring(comm.get_rank(), comm.get_world_size(), ring_worker(tags=False))


def outstanding_worker(count, elements):
    """Many messages in flight, received out of order by tag; sent tensors are dropped at once."""
    rank, size = comm.get_rank(), comm.get_world_size()
    following, previous = (rank + 1) % size, rank - 1 if rank else size - 1
    sends = []
    for tag in range(count):
        tensor = memory.from_numpy(np.full(elements, rank * 1000 + tag, np.float32))
        sends.append(comm.isend(tensor, following, tag=tag))
        if tag % 3 == 0:
            sends.pop()  # nobody holds this handle any more
        del tensor
    gc.collect()
    junk = [np.full(elements, -1, np.float32) for _ in range(count)]
    received = [empty_like((elements,), "float32") for _ in range(count)]
    receives = [comm.irecv(received[tag], previous, tag=tag) for tag in reversed(range(count))]
    for work in [*receives, *sends]:
        work.wait()
    assert all(array[0] == -1 for array in junk)
    comm.barrier()
    first = np.array([to_numpy(t)[0] for t in received])
    return {"first": first, "uniform": all(np.ptp(to_numpy(t)) == 0 for t in received)}


@pytest.mark.parametrize("elements", [10, 50_000])
@pytest.mark.parametrize("ranks", [2, 4])
def test_many_messages_in_flight_keep_their_memory(dist_run, ranks, elements):
    results = dist_run(outstanding_worker, ranks=ranks, count=100, elements=elements)
    for rank, result in enumerate(results):
        assert result["uniform"]
        np.testing.assert_array_equal(result["first"], (rank - 1) % ranks * 1000 + np.arange(100))


# ---- overlap, large tensors, objects, groups


def overlap_worker(elements):
    """Several collectives in flight at once, waited for in another order."""
    rank, size = comm.get_rank(), comm.get_world_size()
    sums = [memory.from_numpy(np.full(elements, rank + i, np.float32)) for i in range(4)]
    whole = memory.from_numpy(np.zeros(size * elements, np.float32))
    works = [comm.all_reduce(tensor, async_op=True) for tensor in sums]
    works.append(comm.all_gather_into_tensor(whole, sums_input(rank, elements), async_op=True))
    del sums[3]
    for work in reversed(works):
        work.wait()
    while not all(work.is_completed() for work in works):
        raise AssertionError("a handle that was waited for is complete")
    return {
        "sums": [to_numpy(tensor)[[0, -1]] for tensor in sums],
        "gathered": to_numpy(whole).reshape(size, elements)[:, -1],
    }


def sums_input(rank, elements):
    return memory.from_numpy(np.full(elements, rank, np.float32))


@pytest.mark.parametrize("ranks", [2, 4])
def test_large_collectives_in_flight_complete_in_any_order(dist_run, ranks):
    for result in dist_run(overlap_worker, ranks=ranks, elements=300_000):
        for i, ends in enumerate(result["sums"]):
            assert ends.tolist() == [sum(range(ranks)) + ranks * i] * 2
        assert result["gathered"].tolist() == list(range(ranks))


def pieces_worker(elements):
    """Reductions larger than what is summed at once; the last piece is a small one."""
    results, size = {}, comm.get_world_size()
    for dtype in ("float32", "bfloat16"):
        mine = values(comm.get_rank(), dtype, (size, elements))
        for op in (ReduceOp.SUM, ReduceOp.AVG):
            whole = to_tensor(mine, dtype)
            comm.all_reduce(whole, op)
            results[("all_reduce", dtype, op.value)] = to_numpy(whole)
            whole, part = to_tensor(mine, dtype), empty_like((elements,), dtype)
            comm.reduce_scatter_tensor(part, whole, op)
            results[("apart", dtype, op.value)] = to_numpy(part)
            for name, start in (("own", comm.get_rank() * elements), ("across", elements // 2)):
                whole = to_tensor(mine, dtype)
                part = memory.view_of(whole.view(-1), start, (elements,))
                comm.reduce_scatter_tensor(part, whole, op)
                results[(name, dtype, op.value)] = to_numpy(memory.contiguous(part))
    return results


@pytest.mark.parametrize("path", ["peer memory", "MPI"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_large_reductions_go_piece_by_piece(dist_run, ranks, path):
    elements = _PIECE // 2 + 1001
    found = dist_run(along, ranks=ranks, path=path, job="pieces_worker", elements=elements)
    for rank, results in enumerate(found):
        assert len(results) == 16
        for (name, dtype, op), result in results.items():
            parts = [values(r, dtype, (ranks, elements)) for r in range(ranks)]
            total = rounded(REDUCTIONS[ReduceOp(op)](parts), dtype)
            wanted = total if name == "all_reduce" else total[rank]
            np.testing.assert_array_equal(result, wanted, err_msg=f"{rank} {name} {dtype} {op}")


def polled_worker():
    """``is_completed`` alone drives a collective to its end, rounding included."""
    tensor = to_tensor(values(comm.get_rank(), "bfloat16"), "bfloat16")
    work = comm.all_reduce(tensor, async_op=True)
    while not work.is_completed():
        pass
    return to_numpy(tensor)


def test_polling_completes_a_reduction(dist_run):
    total = sum(values(rank, "bfloat16").astype(np.float64) for rank in range(2))
    for result in dist_run(polled_worker, ranks=2):
        np.testing.assert_array_equal(result, rounded(total, "bfloat16"))


def misc_worker():
    rank, size = comm.get_rank(), comm.get_world_size()
    flag = memory.from_numpy(np.array([rank == size - 1, True, False]))
    any_flag, all_flag = flag, memory.from_numpy(np.array([rank == size - 1, True, False]))
    comm.all_reduce(any_flag, ReduceOp.MAX)
    comm.all_reduce(all_flag, ReduceOp.MIN)
    scalar = memory.from_numpy(np.array(rank + 1.0, np.float32))
    comm.all_reduce(scalar)
    empty = memory.from_numpy(np.empty((0, 3), np.float32))
    comm.all_reduce(empty)
    kinds = my_groups(size)
    objects = {kind: comm.all_gather_object({"r": rank}, g) for kind, (_, g) in kinds.items()}
    message = comm.broadcast_object(["from", rank], size - 1)
    comm.barrier()
    same = comm.new_group(range(size))
    again = {kind: comm.new_group(list(reversed(ranks))) for kind, (ranks, _) in kinds.items()}
    return {
        "any": any_flag.asnumpy().tolist(),
        "all": all_flag.asnumpy().tolist(),
        "scalar": float(scalar.asnumpy()),
        "objects": objects,
        "message": message,
        "world_is_shared": same is comm.world_group(),
        "groups_are_shared": all(again[kind] is g for kind, (_, g) in kinds.items()),
        "places": {kind: (g.rank, g.size, g.ranks) for kind, (_, g) in kinds.items()},
        "names": {kind: g.name for kind, (_, g) in kinds.items()},
        "environment": [env.get(n) for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")],
        "numbers": (comm.get_rank(), comm.get_world_size(), comm.get_local_rank()),
        "empty_batch": comm.batch_isend_irecv([]),
    }


@pytest.mark.parametrize("ranks", WORLDS)
def test_objects_groups_and_environment(dist_run, ranks):
    for rank, result in enumerate(dist_run(misc_worker, ranks=ranks)):
        assert result["any"] == [True, True, False]
        assert result["all"] == [ranks == 1, True, False]
        assert result["scalar"] == sum(range(1, ranks + 1))
        assert result["message"] == ["from", ranks - 1]
        assert result["world_is_shared"] and result["groups_are_shared"]
        assert result["environment"] == [str(rank), str(rank), str(ranks), "127.0.0.1"]
        assert result["numbers"] == (rank, ranks, rank)
        assert result["empty_batch"] == []
        for kind, (place, size, members) in result["places"].items():
            assert members in [tuple(r) for r in group_kinds(ranks)[kind]]
            assert (members[place], size) == (rank, len(members))
            assert result["objects"][kind] == [{"r": r} for r in members]
        assert result["names"]["world"] == "world"


def half_precision_worker():
    """Numbers whose 16-bit partial sums would round differently from one float32 sum."""
    rank = comm.get_rank()
    array = np.array([256.0 if rank == 0 else 1.0, 3.0e38 if rank < 2 else 0.0], np.float32)
    bits = to_tensor(array, "bfloat16")
    half = to_tensor(np.array([2048.0 if rank == 0 else 1.0, 60000.0], np.float16), "float16")
    comm.all_reduce(bits)
    comm.all_reduce(half)
    return {"bfloat16": to_numpy(bits), "float16": to_numpy(half)}


@pytest.mark.parametrize("path", ["peer memory", "MPI"])
def test_sixteen_bit_floats_are_summed_in_float32(dist_run, path):
    for result in dist_run(along, ranks=4, path=path, job="half_precision_worker"):
        # In bfloat16 256 + 1 stays 256; in float16 2048 + 1 stays 2048.
        assert result["bfloat16"].tolist() == [260.0, np.inf]
        assert result["float16"].tolist() == [2052.0, np.inf]


# ---- errors


def message_of(kind, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except kind as error:
        return str(error)
    return "nothing was raised"


def errors_worker():
    """Text of every error a caller can provoke, by name."""
    rank, size = comm.get_rank(), comm.get_world_size()
    row = memory.from_numpy(np.zeros((4, 2), np.float32))
    small = memory.from_numpy(np.zeros(3, np.float32))
    whole = memory.from_numpy(np.zeros((4, 2), np.int32))
    flags = memory.from_numpy(np.zeros(2, np.bool_))
    strided = row.T
    other = (rank + 1) % size
    alone = comm.new_group([other])
    subgroup = comm.new_group([0, 1])
    mixed = [P2POp("isend", row, other), P2POp("isend", row, other, subgroup)]
    return {
        "strided": message_of(ValueError, comm.all_reduce, strided),
        "types": message_of(ValueError, comm.all_gather_into_tensor, whole, small),
        "gather": message_of(ValueError, comm.all_gather_into_tensor, row, small),
        "scatter": message_of(ValueError, comm.reduce_scatter_tensor, small, row),
        "average": message_of(ValueError, comm.all_reduce, whole, ReduceOp.AVG),
        "flags": message_of(ValueError, comm.all_reduce, flags),
        "outsider": message_of(ValueError, comm.all_reduce, row, group=alone),
        "source": message_of(ValueError, comm.broadcast, row, size),
        "destination": message_of(ValueError, comm.reduce, row, -1),
        "self": message_of(ValueError, comm.isend, row, rank),
        "ranks": message_of(ValueError, comm.new_group, [0, 0]),
        "range": message_of(ValueError, comm.new_group, [0, size]),
        "none": message_of(ValueError, comm.new_group, []),
        "splits": message_of(ValueError, comm.all_to_all_single, row, row, [1] * size, [4, 1]),
        "uneven": message_of(ValueError, comm.all_to_all_single, small, small),
        "kind": message_of(ValueError, P2POp, "send", row, other),
        "mixed": message_of(ValueError, comm.batch_isend_irecv, mixed),
    }


def test_wrong_calls_are_refused_with_a_reason(dist_run):
    for rank, messages in enumerate(dist_run(errors_worker, ranks=2)):
        assert "non-contiguous tensor of shape (2, 4)" in messages["strided"]
        assert "types must be equal" in messages["types"]
        assert "output of shape (4, 2) and input of shape (3,)" in messages["gather"]
        assert "input of shape (4, 2) and output of shape (3,)" in messages["scatter"]
        assert "use SUM" in messages["average"]
        assert "ReduceOp.MAX (any)" in messages["flags"]
        assert f"rank {rank} called all_reduce on group" in messages["outsider"]
        assert "rank 2 is not in group world" in messages["source"]
        assert "rank -1 is not in group world" in messages["destination"]
        assert "own rank" in messages["self"]
        assert "must be different and within 0..1" in messages["ranks"]
        assert "within 0..1" in messages["range"] and "within 0..1" in messages["none"]
        assert "non-negative sizes that sum to 4" in messages["splits"]
        assert "divisible by the group size (2)" in messages["uneven"]
        assert "comm.isend or comm.irecv" in messages["kind"]
        assert "several groups" in messages["mixed"]


def restart_worker():
    """Destroying and joining again works, and groups are made anew."""
    comm.destroy_process_group()
    before = (comm.is_initialized(), comm.get_rank(), comm.get_world_size())
    text = message_of(RuntimeError, comm.barrier)
    comm.init_process_group()
    comm.init_process_group()
    tensor = memory.from_numpy(np.ones(2, np.float32))
    comm.all_reduce(tensor, group=comm.new_group(range(comm.get_world_size())))
    return {"before": before, "text": text, "sum": float(tensor.asnumpy()[0])}


@pytest.mark.parametrize("ranks", [1, 2])
def test_communication_needs_and_survives_init(dist_run, ranks):
    for result in dist_run(restart_worker, ranks=ranks):
        assert result["before"] == (False, 0, 1)
        assert "call comm.init_process_group() first" in result["text"]
        assert result["sum"] == ranks
