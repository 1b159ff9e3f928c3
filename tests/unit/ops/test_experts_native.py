# SPDX-License-Identifier: Apache-2.0
"""Experts in the native library: the numbers of the definition, whatever the threads."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest

from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.ops import cpu, portable
from mindspeed_ms.ops.cpu import library, products

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason="no native library was built")

LEVELS = dict(library.candidates(library.cpu_flags(), Path(library.__file__).parent))
TYPES = [ms.float32, ms.bfloat16, ms.float16]


@pytest.fixture(params=sorted(LEVELS))
def loaded(request, monkeypatch):
    """Our own products of one instruction set; threads as before once the test is over."""
    one = library.Library(request.param, LEVELS[request.param])
    before = one.get_threads()
    one.use_products(products.OWN)
    monkeypatch.setattr(library.loading(), "library", one)
    monkeypatch.setattr(library.native, "__dict__", {})
    yield one
    one.set_threads(before)


def combined(module, rows, probs, places, dy):
    with autograd.recording():
        leaves = [autograd.detach(rows), autograd.detach(probs)]
        for leaf in leaves:
            autograd.requires_grad_(leaf)
        y = module.combine_rows(*leaves, places)
        autograd.backward(y, dy)
        grads = [autograd.get_grad(leaf) for leaf in leaves]
    return [memory.as_numpy(one).copy() for one in (y, *grads)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("sizes", [(300, 2, 96, 0.0, 0), (40, 3, 37, 0.3, 5)], ids=str)
def test_sums_of_rows_are_those_of_the_definition(loaded, sizes, dtype):
    tokens, choices, columns, dropped, padding = sizes
    rng = np.random.RandomState(3)
    places = rng.permutation(tokens * choices + padding)[: tokens * choices]
    places = places.reshape(tokens, choices).astype(np.int32)
    places[rng.rand(tokens, choices) < dropped] = -1
    rows = ref.tensor(rng.randn(tokens * choices + padding, columns), dtype)
    probs, dy = ref.tensor(rng.rand(tokens, choices)), ref.tensor(rng.randn(tokens, columns), dtype)
    arguments = (rows, probs, memory.from_numpy(places), dy)
    want = combined(portable, *arguments)
    for threads in (1, 2):
        loaded.set_threads(threads)
        y, drows, dprobs = combined(cpu, *arguments)
        assert y.tobytes() == want[0].tobytes()
        assert drows.tobytes() == want[1].tobytes()
        # NumPy's order of summation is its own.
        np.testing.assert_allclose(dprobs, want[2], rtol=1e-4, atol=1e-5)


def test_a_place_beyond_the_rows_is_an_error(loaded):
    rows, probs = ref.tensor(np.ones((3, 4))), ref.tensor(np.ones((2, 1)))
    places = memory.from_numpy(np.array([[0], [3]], np.int32))
    with pytest.raises(IndexError, match="place 3 of 3 rows"):
        cpu.combine_rows(rows, probs, places)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("counts", [(40, 0, 45, 38, 41), (7, 130, 1, 0, 2)], ids=["even", "one"])
def test_grouped_products_are_single_products(loaded, counts, dtype):
    rng, width, out = np.random.RandomState(4), 70, 130
    total, starts = sum(counts), np.cumsum([0, *counts])
    x = ref.tensor(rng.randn(total, width), dtype)
    dy = ref.tensor(rng.randn(total, out), dtype)
    weights = [ref.tensor(rng.randn(out, width), dtype) for _ in counts]
    want = []
    for weight, start, end in zip(weights, starts, starts[1:], strict=False):
        if start < end:
            main_grad = memory.full((out, width), 0.5)
            mine, grad = x[int(start) : int(end)], dy[int(start) : int(end)]
            cpu.linear_wgrad_accumulate(grad, mine, main_grad)
            y, dx = cpu.linear_forward(mine, weight, None), cpu.linear_dgrad(grad, weight)
        else:
            main_grad, y, dx = memory.full((out, width), 0.5), None, None
        want.append([None if one is None else memory.as_numpy(one) for one in (y, dx, main_grad)])
    for threads in (1, 2):
        loaded.set_threads(threads)
        sums = [memory.full((out, width), 0.5) for _ in counts]
        y = memory.as_numpy(cpu.grouped_linear_forward(x, weights, counts))
        dx = memory.as_numpy(cpu.grouped_linear_dgrad(dy, weights, counts))
        cpu.grouped_linear_wgrad_accumulate(dy, x, sums, counts)
        for group, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
            assert memory.as_numpy(sums[group]).tobytes() == want[group][2].tobytes()
            if start < end:
                assert y[start:end].tobytes() == want[group][0].tobytes()
                assert dx[start:end].tobytes() == want[group][1].tobytes()


def test_weights_inside_a_buffer_are_used_where_they_lie():
    flat = memory.from_numpy(np.arange(60, dtype=np.float32))
    weight = memory.view_of(flat, 12, (6, 4))
    assert memory.address(memory.contiguous(weight)) == memory.address(weight)
    turned = weight.swapaxes(0, 1)
    assert memory.address(memory.contiguous(turned)) != memory.address(turned)
    x = ref.tensor(np.eye(4))
    assert np.array_equal(memory.as_numpy(cpu.linear_forward(x, weight, None)).T, weight.asnumpy())
