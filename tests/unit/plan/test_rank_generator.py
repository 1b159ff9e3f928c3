# SPDX-License-Identifier: Apache-2.0
"""The grid of ranks: Megatron's worked example, and properties of every layout up to 4096 ranks."""

import itertools

import numpy as np
import pytest

from mindspeed_ms.core.parallel_state import rank_generators
from mindspeed_ms.plan.rank_generator import RankGenerator


def test_worked_example_of_sixteen_ranks():
    grid = RankGenerator({"tp": 2, "cp": 2, "dp": 2, "pp": 2}, "tp-cp-ep-dp-pp")
    assert grid.world_size == 16
    assert grid.get_ranks("tp")[:2] == [(0, 1), (2, 3)]
    assert grid.get_ranks("tp")[-1] == (14, 15)
    assert grid.get_ranks("cp")[:5] == [(0, 2), (1, 3), (4, 6), (5, 7), (8, 10)]
    assert grid.get_ranks("dp")[:5] == [(0, 4), (1, 5), (2, 6), (3, 7), (8, 12)]
    assert grid.get_ranks("dp-cp") == [
        (0, 2, 4, 6),
        (1, 3, 5, 7),
        (8, 10, 12, 14),
        (9, 11, 13, 15),
    ]
    assert grid.get_ranks("pp")[:2] == [(0, 8), (1, 9)]
    assert grid.get_ranks("tp-pp") == [
        (0, 1, 8, 9),
        (2, 3, 10, 11),
        (4, 5, 12, 13),
        (6, 7, 14, 15),
    ]


def test_worked_example_of_experts():
    _, experts = rank_generators(16, tensor=2, context=2, pipeline=2, expert=4, expert_tensor=1)
    assert experts.get_ranks("ep") == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15)]
    assert experts.get_ranks("dp")[:2] == [(0, 4), (1, 5)]


def test_pipeline_before_data_order():
    grid = RankGenerator({"tp": 2, "dp": 2, "pp": 2}, "tp-cp-ep-pp-dp")
    assert grid.get_ranks("pp") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert grid.get_ranks("dp") == [(0, 4), (1, 5), (2, 6), (3, 7)]


def _reference_groups(sizes, order, inside):
    """Groups by numpy: reshape the ranks to a grid and read slices."""
    axes = order.split("-")
    grid = np.arange(np.prod([sizes[a] for a in axes])).reshape([sizes[a] for a in axes[::-1]])
    outer = [i for i, a in enumerate(axes[::-1]) if a not in inside]
    inner = [i for i, a in enumerate(axes[::-1]) if a in inside]
    size = int(np.prod([grid.shape[i] for i in inner], dtype=int))
    return {tuple(sorted(row)) for row in grid.transpose(outer + inner).reshape(-1, size).tolist()}


@pytest.mark.parametrize(
    "order", ["tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp", "pp-dp-ep-cp-tp", "dp-tp-pp-cp-ep"]
)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (2, 1, 1, 2, 2),
        (2, 2, 2, 2, 2),
        (8, 1, 1, 16, 4),
        (8, 2, 4, 8, 8),
        (4, 4, 4, 8, 8),
    ],
)
def test_groups_equal_slices_of_a_numpy_grid(order, shape):
    sizes = dict(zip(("tp", "cp", "ep", "dp", "pp"), shape, strict=True))
    grid = RankGenerator(sizes, order)
    for count in (1, 2, 3):
        for inside in itertools.combinations(sizes, count):
            groups = grid.get_ranks("-".join(inside))
            assert set(groups) == _reference_groups(sizes, order, inside)
            assert sorted(itertools.chain(*groups)) == list(range(grid.world_size))
            assert all(list(group) == sorted(group) for group in groups)
            assert [group[0] for group in groups] == sorted(group[0] for group in groups)


def test_every_power_of_two_world_up_to_4096():
    for exponent in range(13):
        world = 2**exponent
        for tensor, pipeline in itertools.product((1, 2, 8), (1, 4, 16)):
            if world % (tensor * pipeline):
                continue
            dense, experts = rank_generators(world, tensor=tensor, pipeline=pipeline)
            assert dense.world_size == experts.world_size == world
            position = dense.coordinates(world - 1)
            assert position == {axis: dense.sizes[axis] - 1 for axis in dense.axes}


@pytest.mark.parametrize(
    ("sizes", "order", "message"),
    [
        ({"tp": 2}, "", "must join names"),
        ({"tp": 2}, "tp-xp", "must join names"),
        ({"tp": 2}, "tp-tp-pp", "only once"),
        ({"tp": 2, "dp": 2}, "tp-pp", "add 'dp'"),
        ({"tp": 0}, "tp", "at least 1"),
        ({"xp": 1}, "tp", "unknown"),
    ],
)
def test_bad_grids_are_refused(sizes, order, message):
    with pytest.raises(ValueError, match=message):
        RankGenerator(sizes, order)


def test_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="unknown"):
        RankGenerator({"tp": 2}, "tp-dp").get_ranks("tp-xx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tensor": 3}, "must be a multiple of tensor"),
        ({"expert": 16}, "expert"),
        ({"tensor": 2, "order": "tp-tp"}, "only once"),
        ({"pipeline": 2, "expert": 2, "tensor": 2, "order": "ep-pp-tp-dp"}, "different pipelines"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        rank_generators(8, **arguments)
