# SPDX-License-Identifier: Apache-2.0
"""States of a bucket, on one rank."""

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.core.distributed.bucket import (
    Bucket,
    BucketState,
    Reduction,
    add_,
    first_not_finite,
    scale_,
)
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.distributed.sharded_grads import ScratchPool
from mindspeed_ms.plan.param_layout import BucketSpan, Slot

ALONE = Group((0,), 0, "alone")
SPAN = BucketSpan(
    start=8,
    end=16,
    slots=(Slot(name="a", start=8, shape=(2, 2)), Slot(name="b", start=12, shape=(3,))),
)


def _bucket(bad=None, **reduction):
    grads = memory.zeros((8,))
    report = (lambda name: None) if bad is None else bad.append
    return Bucket(SPAN, grads, Reduction(group=ALONE, **reduction), report)


def _step(bucket, marks):
    for index in marks:
        bucket.mark_ready(index, counts=True)


def test_the_first_step_learns_how_often_gradients_arrive():
    bucket = _bucket()
    _step(bucket, [0, 1, 0])
    assert not bucket.is_complete
    bucket.finish()
    assert bucket.state is BucketState.REDUCED
    bucket.reset()
    _step(bucket, [0, 1])
    assert not bucket.is_complete, "slot a gets two contributions"
    _step(bucket, [0])
    assert bucket.is_complete


def test_earlier_microbatches_do_not_count():
    bucket = _bucket()
    _step(bucket, [0, 1])
    bucket.finish()
    bucket.reset()
    bucket.mark_ready(0, counts=False)
    bucket.mark_ready(1, counts=False)
    assert not bucket.is_complete
    _step(bucket, [0, 1])
    assert bucket.is_complete


def test_a_gradient_that_was_missing_once_is_waited_for():
    bucket = _bucket()
    _step(bucket, [0])
    bucket.finish()
    bucket.reset()
    _step(bucket, [0])
    assert not bucket.is_complete
    _step(bucket, [1])
    assert bucket.is_complete


def test_a_late_gradient_is_refused():
    bucket = _bucket()
    bucket.start(async_op=True)
    with pytest.raises(RuntimeError, match="gradient of b arrived on rank .* no_sync"):
        bucket.mark_ready(1, counts=True)


def test_starting_twice_scales_once():
    bucket = _bucket(scale=0.5)
    memory.as_numpy(bucket.main_grad(1))[...] = 4.0
    bucket.start(async_op=True)
    bucket.start(async_op=True)
    bucket.finish()
    bucket.finish()
    np.testing.assert_array_equal(memory.as_numpy(bucket.grads), [0, 0, 0, 0, 2, 2, 2, 0])


def test_main_grads_are_parts_of_the_buffer():
    bucket = _bucket()
    memory.as_numpy(bucket.main_grad(0))[...] = 1.0
    np.testing.assert_array_equal(memory.as_numpy(bucket.shard), [1, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_bad_parameter_is_reported(value):
    bucket = _bucket()
    memory.as_numpy(bucket.main_grad(1))[1] = value
    assert first_not_finite(SPAN, bucket.grads) == "b"


def test_large_gradients_are_not_bad():
    bucket = _bucket()
    memory.as_numpy(bucket.main_grad(1))[...] = 3e38
    assert first_not_finite(SPAN, bucket.grads) is None


def test_a_bucket_of_one_rank_is_left_to_the_search_after_the_step():
    bad = []
    bucket = _bucket(bad, check_finite=True)
    memory.as_numpy(bucket.main_grad(1))[1] = np.nan
    bucket.start(async_op=False)
    assert bad == []


@pytest.mark.parametrize("dtype", [ms.bfloat16, ms.float16, ms.float32])
def test_sums_and_scales_in_every_type(dtype):
    total = memory.zeros((3,), dtype)
    add_(total, ms.Tensor([1.0, 2.0, 3.0], dtype))
    add_(total, ms.Tensor([1.0, 0.0, 1.0], dtype))
    scale_(total, 0.5)
    np.testing.assert_array_equal(total.astype(ms.float32).asnumpy(), [1.0, 1.0, 2.0])


def test_zero_clears_nan():
    tensor = memory.from_numpy(np.array([np.nan, np.inf], np.float32))
    memory.zero_(tensor)
    np.testing.assert_array_equal(memory.as_numpy(tensor), [0.0, 0.0])


def test_scratch_is_lent_again_and_clean():
    pool = ScratchPool(4, ms.float32)
    first = pool.borrow()
    memory.as_numpy(first)[...] = np.nan
    pool.give_back(first)
    assert pool.borrow() is first
    np.testing.assert_array_equal(memory.as_numpy(first), np.zeros(4))
    assert pool.borrow() is not first
    assert pool.num_bytes == 2 * 4 * 4


def test_configurations_without_meaning_are_refused():
    with pytest.raises(ValueError, match="nothing to gather"):
        DistributedDataParallelConfig(overlap_param_gather=True)
    with pytest.raises(ValueError, match="mem_align_bytes is 0"):
        DistributedDataParallelConfig(mem_align_bytes=0)
    assert comm.get_world_size() >= 1
