# SPDX-License-Identifier: Apache-2.0
"""The grouped product of the Ascend path: MindSpore gives it no way to a kernel on CPU.

Everything else of a mixture of experts runs in test_ascend_on_cpu.py.
"""

import inspect

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest

from mindspeed_ms.backend import memory
from mindspeed_ms.ops import ascend, portable
from mindspeed_ms.ops.ascend import experts
from mindspeed_ms.ops.portable.arrays import tensor_of, wide

RNG = np.random.RandomState(8)


@pytest.fixture
def calls(monkeypatch):
    """NumPy behind the real signature; the list of calls."""
    signature = inspect.signature(experts.auto_generate.grouped_matmul)
    made = []

    def grouped_matmul(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        assert given["split_item"] == 0 and given["group_type"] == -1 and len(given) == 4
        made.append(given)
        pairs = zip(given["x"], given["weight"], strict=True)
        return [tensor_of(wide(a) @ wide(memory.contiguous(b)), a.dtype) for a, b in pairs]

    monkeypatch.setattr(experts.auto_generate, "grouped_matmul", grouped_matmul)
    return made


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16, ms.bfloat16], ids=str)
@pytest.mark.parametrize("counts", [(3, 0, 4), (0, 0, 0)], ids=str)
def test_grouped_products_match_the_definition(counts, dtype, calls):
    total = sum(counts)
    x, dy = ref.tensor(RNG.randn(total, 6), dtype), ref.tensor(RNG.randn(total, 9), dtype)
    weights = [ref.tensor(RNG.randn(9, 6), dtype) for _ in counts]
    for name, argument in (("grouped_linear_forward", x), ("grouped_linear_dgrad", dy)):
        got, want = (getattr(m, name)(argument, weights, counts) for m in (ascend, portable))
        assert got.dtype == want.dtype and tuple(got.shape) == tuple(want.shape)
        ref.assert_close(ref.values(got), ref.values(want), 3e-6, name)
    assert len(calls) == (2 if total else 0)
