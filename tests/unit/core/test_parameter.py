# SPDX-License-Identifier: Apache-2.0
"""Shards of parameters and their initial values."""

import numpy as np
import pytest
from mindspore.common.initializer import One

from mindspeed_ms.core.parameter import ShardSpec, create_parameter, shard_of
from mindspeed_ms.core.tensor_parallel.random import draw_normal, seed_initialization


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("partitions", [1, 2, 4])
def test_join_undoes_local_slice(dim, stride, partitions):
    full = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
    specs = [
        ShardSpec(
            partition_dim=dim, partition_stride=stride, partitions=partitions, partition_rank=rank
        )
        for rank in range(partitions)
    ]
    parts = [spec.local_slice(full) for spec in specs]
    assert all(spec.full_shape(parts[0].shape) == full.shape for spec in specs)
    np.testing.assert_array_equal(specs[0].join(parts), full)


def test_stacked_matrices_are_split_one_by_one():
    gate, up = np.zeros((4, 2)), np.ones((4, 2))
    spec = ShardSpec(partition_dim=0, partition_stride=2, partitions=2, partition_rank=1)
    part = spec.local_slice(np.concatenate([gate, up]))
    np.testing.assert_array_equal(part, np.concatenate([gate[2:], up[2:]]))


def test_parameter_holds_its_part_of_the_full_values():
    spec = ShardSpec(partition_dim=0, partitions=2, partition_rank=1)
    seed_initialization(7)
    parameter = create_parameter((8, 4), lambda shape: draw_normal(shape, 0.5), shard=spec)
    seed_initialization(7)
    full = draw_normal((16, 4), 0.5)
    np.testing.assert_array_equal(parameter.asnumpy(), full[8:])
    assert shard_of(parameter) is spec


def test_mindspore_initializers_are_accepted():
    np.testing.assert_array_equal(create_parameter((3,), One()).asnumpy(), np.ones(3))
    np.testing.assert_array_equal(create_parameter((3,), "zeros").asnumpy(), np.zeros(3))


def test_initial_values_follow_the_seed_and_the_moments():
    seed_initialization(1)
    first = draw_normal((101, 7), 2.0, mean=1.0)
    seed_initialization(1)
    np.testing.assert_array_equal(first, draw_normal((101, 7), 2.0, mean=1.0))
    assert abs(first.mean() - 1.0) < 0.3 and abs(first.std() - 2.0) < 0.2
