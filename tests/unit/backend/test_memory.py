# SPDX-License-Identifier: Apache-2.0
"""Tensors and arrays on the same memory."""

import gc

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms.backend import memory

DTYPES = [ms.float32, ms.float16, ms.bfloat16, ms.int32, ms.int64, ms.bool_]


@pytest.mark.parametrize("dtype", DTYPES)
def test_writes_through_a_view_inside_its_base_reach_the_base(dtype):
    flat = memory.zeros((24,), dtype)
    view = memory.view_of(flat, 4, (3, 4))
    memory.as_numpy(view)[...] = 1
    expected = np.zeros(24)
    expected[4:16] = 1
    np.testing.assert_array_equal(memory.as_numpy(flat), expected)


def test_the_array_keeps_the_tensor_alive():
    array = memory.as_numpy(memory.zeros((1 << 20,)))
    gc.collect()
    others = [memory.as_numpy(memory.zeros((1 << 20,))) for _ in range(4)]
    for other in others:
        other[...] = 3
    assert not array.any()


def test_from_numpy_shares_memory_both_ways():
    array = np.zeros(6, np.float32)
    tensor = memory.from_numpy(array)
    array[2] = 5
    memory.as_numpy(tensor)[4] = 7
    np.testing.assert_array_equal(tensor.asnumpy(), [0, 0, 5, 0, 7, 0])
    assert array[4] == 7 and memory.address(tensor) == array.ctypes.data


def test_parameters_can_live_in_a_flat_buffer():
    flat = memory.zeros((10,))
    parameter = ms.Parameter(np.zeros((2, 3), np.float32), name="p")
    memory.set_data(parameter, memory.view_of(flat, 2, (2, 3)))
    memory.as_numpy(parameter)[1, 2] = 4
    assert memory.as_numpy(flat)[7] == 4


def test_strided_views_are_refused():
    with pytest.raises(ValueError, match="not contiguous"):
        memory.as_numpy(memory.zeros((2, 3)).swapaxes(0, 1))


def test_copy_needs_equal_shapes_and_types():
    target = memory.zeros((4,))
    memory.copy_(target, memory.from_numpy(np.arange(4, dtype=np.float32)))
    np.testing.assert_array_equal(target.asnumpy(), np.arange(4))
    with pytest.raises(ValueError, match="cannot copy"):
        memory.copy_(target, memory.zeros((5,)))
    with pytest.raises(ValueError, match="cannot copy"):
        memory.copy_(target, memory.zeros((4,), ms.int32))


def test_sizes_and_unknown_types():
    assert memory.num_bytes(memory.zeros((3, 5), ms.bfloat16)) == 30
    assert memory.num_elements(memory.zeros((3, 5))) == 15
    assert memory.as_numpy(memory.zeros((0, 3))).shape == (0, 3)
    with pytest.raises(ValueError, match="no NumPy layout"):
        memory.numpy_dtype(ms.complex64)
