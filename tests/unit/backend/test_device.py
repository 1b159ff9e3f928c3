# SPDX-License-Identifier: Apache-2.0
"""What ``Device`` promises, by both implementations as far as a CPU can tell."""

from __future__ import annotations

import gc
import inspect
import weakref

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms.backend import device, memory
from mindspeed_ms.backend.ascend_device import AscendDevice
from mindspeed_ms.backend.base import Device
from mindspeed_ms.backend.cpu_device import CpuDevice

FLOATS = [ms.float32, ms.float16, ms.bfloat16]
METHODS = [name for name in vars(Device) if not name.startswith("_") and name != "name"]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [CpuDevice, AscendDevice])
def test_both_devices_take_the_arguments_of_the_protocol(kind, name):
    wanted = inspect.signature(getattr(Device, name))
    assert list(inspect.signature(getattr(kind, name)).parameters) == list(wanted.parameters)
    assert getattr(kind, name).__doc__


def test_the_functions_of_memory_are_those_of_the_device():
    assert device.CURRENT.name == "cpu" == device.platform() and not device.is_ascend()
    for name in set(METHODS) & set(memory.__all__):
        assert getattr(memory, name) == getattr(device.CURRENT, name), name


@pytest.mark.parametrize("dtype", [*FLOATS, ms.int32, ms.bool_], ids=str)
def test_arrays_are_the_memory_of_the_tensor(dtype):
    tensor = memory.zeros((2, 3), dtype)
    array, flat = memory.as_numpy(tensor), memory.flat_view(tensor)
    assert array.shape == (2, 3) and flat.shape == (6,)
    flat[4] = 1
    assert array[1, 1] == 1 and array.sum() == 1
    part = memory.as_numpy(tensor[1:])
    assert part[0, 1] == 1, "a view that begins inside its base"
    part[0, 2] = 1
    assert array[1, 2] == 1


def test_an_array_keeps_its_tensor():
    values = np.arange(4, dtype=np.float32)
    kept = weakref.ref(values)
    tensor = memory.from_numpy(values)
    array = memory.as_numpy(tensor)
    del values, tensor
    gc.collect()
    assert kept() is not None and array.tolist() == [0, 1, 2, 3]
    del array
    gc.collect()
    assert kept() is None


def test_arrays_of_nothing_and_of_one_number():
    assert memory.as_numpy(memory.zeros((0, 3))).shape == (0, 3)
    assert memory.flat_view(memory.zeros((0, 3))).shape == (0,)
    scalar = memory.full((), 2.0)
    assert memory.as_numpy(scalar).shape == () and memory.flat_view(scalar).tolist() == [2.0]


def test_types_without_a_layout_are_named():
    with pytest.raises(ValueError, match="dtype .* has no NumPy layout; use one of Float32"):
        memory.numpy_dtype(ms.complex64)


@pytest.mark.parametrize("dtype", [*FLOATS, ms.int32], ids=str)
def test_copies_in_other_orders(dtype):
    numbers = np.arange(24).reshape(2, 3, 4)
    tensor = memory.empty((2, 3, 4), dtype)
    memory.copy_from_host(tensor, numbers.astype(memory.numpy_dtype(dtype)))
    bits = memory.as_numpy(tensor)
    np.testing.assert_array_equal(
        memory.as_numpy(memory.permuted(tensor, (2, 0, 1))), bits.transpose(2, 0, 1)
    )
    np.testing.assert_array_equal(
        memory.as_numpy(memory.transposed(tensor)), bits.transpose(1, 0, 2)
    )
    joined = memory.concatenated([tensor, tensor[1:], tensor[:0]])
    np.testing.assert_array_equal(memory.as_numpy(joined), np.concatenate([bits, bits[1:]]))
    zeros = memory.zeros((2, 3, 4), dtype)
    memory.copy_(zeros, tensor)
    np.testing.assert_array_equal(memory.as_numpy(zeros), bits)
    memory.zero_(zeros)
    assert not memory.as_numpy(zeros).any()


def test_wrong_copies_are_refused():
    with pytest.raises(ValueError, match="shapes and types must be equal"):
        memory.copy_(memory.zeros((2,)), memory.zeros((3,)))
    with pytest.raises(ValueError, match="sizes and layouts must be equal"):
        memory.copy_from_host(memory.zeros((2,)), np.zeros(2, np.float64))
    with pytest.raises(ValueError, match="not contiguous"):
        memory.as_numpy(memory.zeros((2, 3)).swapaxes(0, 1))


@pytest.mark.parametrize("wanted", [ms.float32, ms.bfloat16, ms.int32], ids=str)
def test_in_dtype_copies_only_what_has_another_type(wanted):
    tensor = memory.full((3,), 2.0)
    result = memory.in_dtype(tensor, wanted)
    assert result.dtype == wanted and (result is tensor) == (wanted == ms.float32)
    assert result.astype(ms.float32).asnumpy().tolist() == [2.0] * 3


def test_the_calls_of_the_npu_run_on_cpu_too():
    """MindSpore's own operators, as far as they have a CPU kernel; values, not in-place effects."""
    npu = AscendDevice()
    tensor = memory.from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert npu.empty((2, 3), ms.bfloat16).shape == (2, 3)
    assert npu.zeros((2,)).asnumpy().tolist() == [0, 0]
    np.testing.assert_array_equal(npu.permuted(tensor, (1, 0)).asnumpy(), tensor.asnumpy().T)
    np.testing.assert_array_equal(npu.transposed(tensor).asnumpy(), tensor.asnumpy().T)
    np.testing.assert_array_equal(npu.as_numpy(tensor, flat=True), np.arange(6))
    assert npu.in_dtype(tensor, ms.float32) is tensor
    assert npu.in_dtype(tensor, ms.float16).dtype == ms.float16
    np.testing.assert_array_equal(
        npu.concatenated([tensor, tensor]).asnumpy(), np.concatenate([tensor.asnumpy()] * 2)
    )
