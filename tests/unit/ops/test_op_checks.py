# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments end in one line, every time, also after the same operation went well."""

import gc
import weakref

import numpy as np
import pytest

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.ops import checks


def test_a_failure_is_never_remembered_as_a_success():
    good, wrong = memory.zeros((4,)), memory.zeros((3,))
    for _ in range(2):
        ops.rms_norm(memory.zeros((2, 4)), good, 1e-5)
        with pytest.raises(ValueError, match=r"weight has shape \(3,\); it must be \(4,\)"):
            ops.rms_norm(memory.zeros((2, 4)), wrong, 1e-5)


def test_contiguity_is_part_of_what_is_checked():
    x, total = memory.zeros((2, 3)), memory.zeros((2, 3))
    ops.axpy_(total, x)
    strided = memory.zeros((3, 2)).swapaxes(0, 1)
    assert strided.shape == total.shape
    with pytest.raises(ValueError, match="written in place but is not contiguous"):
        ops.axpy_(strided, x)


def test_checks_keep_no_tensor_alive():
    values = np.zeros((5, 4), np.float32)
    kept = weakref.ref(values)
    x = memory.from_numpy(values)
    del values
    ops.rms_norm(x, memory.zeros((4,)), 1e-5)
    del x
    gc.collect()
    assert kept() is None


def test_checks_remember_a_bounded_number_of_signatures():
    for size in range(5000):
        checks.vector("test", "weight", (size,), size)
    assert checks.vector.cache_info().currsize <= 4096
