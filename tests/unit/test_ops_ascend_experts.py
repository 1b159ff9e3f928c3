"""The Ascend call path of a mixture of experts, with recorders where an NPU is needed."""

import numpy as np
import ops_reference as ref
import pytest
from mindspore import mint
from test_ops_ascend import STOCK, Recorder, compare, recorders  # noqa: F401 - an autouse fixture

from mindspeed_ms.backend import memory
from mindspeed_ms.ops import ascend, portable
from mindspeed_ms.ops.ascend import experts
from mindspeed_ms.ops.portable.arrays import tensor_of, wide

RNG = np.random.RandomState(8)


def ids(array):
    return lambda: memory.from_numpy(np.ascontiguousarray(array, np.int32))


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """What MindSpore has no CPU kernel for, computed by NumPy behind the real signatures."""

    def topk(input, k, dim=-1, largest=True, sorted=True):
        assert largest and sorted and dim == -1
        values = wide(input)
        order = np.argsort(-values, axis=-1, kind="stable")[..., :k]
        return tensor_of(np.take_along_axis(values, order, -1)), memory.from_numpy(
            np.ascontiguousarray(order)
        )

    def grouped_matmul(x, weight, group_list, split_item, group_type, **rest):
        assert group_list is None and split_item == 0 and group_type == -1
        assert not any(value for value in rest.values())
        return [
            tensor_of(wide(a) @ wide(memory.contiguous(b))) for a, b in zip(x, weight, strict=True)
        ]

    recorder = Recorder(experts.auto_generate.grouped_matmul, grouped_matmul)
    monkeypatch.setattr(experts.auto_generate, "grouped_matmul", recorder)
    monkeypatch.setattr(mint, "topk", Recorder(mint.topk, topk))
    return recorder


SCORES = RNG.randn(5, 6)


@pytest.mark.parametrize(
    ("name", "arrays", "args"),
    [
        ("router_scores", [SCORES], ("softmax",)),
        ("router_scores", [SCORES], ("sigmoid",)),
        ("normalized_rows", [np.abs(SCORES)], ()),
        ("squared_logsumexp", [SCORES], ()),
        ("weighted_total", [SCORES], (lambda: ref.tensor(SCORES[::-1].copy()),)),
        ("take_columns", [SCORES], (ids([[1, 0], [2, -1], [5, 4], [-1, -1], [3, 0]]),)),
    ],
)
def test_scores_match_the_definition(name, arrays, args):
    compare(name, arrays, *args)


def test_combined_rows_match_the_definition():
    places = ids([[2, 0], [-1, 4], [1, 3], [-1, -1]])
    compare("combine_rows", [RNG.randn(6, 5), RNG.rand(4, 2)], places)


@pytest.mark.parametrize("groups", [(None, None), (3, 2), (2, 1)], ids=str)
def test_choices_match_the_definition(groups):
    scores = ref.tensor(RNG.randn(7, 6))
    want = portable.largest_columns(scores, 2, *groups).asnumpy()
    np.testing.assert_array_equal(ascend.largest_columns(scores, 2, *groups).asnumpy(), want)


@pytest.mark.parametrize("counts", [(3, 0, 4), (0, 0, 0)], ids=str)
def test_grouped_products_match_the_definition(counts, kernels):
    total = sum(counts)
    x, dy = ref.tensor(RNG.randn(total, 6)), ref.tensor(RNG.randn(total, 9))
    weights = [ref.tensor(RNG.randn(9, 6)) for _ in counts]
    for name, argument in (("grouped_linear_forward", x), ("grouped_linear_dgrad", dy)):
        got, want = (getattr(m, name)(argument, weights, counts) for m in (ascend, portable))
        assert tuple(got.shape) == tuple(want.shape)
        ref.assert_close(ref.values(got), ref.values(want), STOCK, name)
    sums = [[memory.from_numpy(np.ones((9, 6), np.float32)) for _ in counts] for _ in range(2)]
    ascend.grouped_linear_wgrad_accumulate(dy, x, sums[0], counts)
    portable.grouped_linear_wgrad_accumulate(dy, x, sums[1], counts)
    for got, want in zip(*sums, strict=True):
        ref.assert_close(ref.values(got), ref.values(want), STOCK, "dw")
    assert len(kernels.calls) == (2 if total else 0)
