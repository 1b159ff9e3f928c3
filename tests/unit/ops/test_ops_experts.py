# SPDX-License-Identifier: Apache-2.0
"""Operations of a mixture of experts in every kernel set against float64."""

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from ops_reference import kernel_set  # noqa: F401 - an autouse fixture

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator

RNG = np.random.RandomState(5)
FP32 = 3e-6


def check(op, reference, arrays, tolerance=FP32, dtype=ms.float32):
    arrays = [ref.values(ref.tensor(a, dtype)) for a in arrays]
    want = reference(*arrays)
    dy = RNG.randn(*np.shape(want))
    dy = ref.values(ref.tensor(dy, dtype)) if np.ndim(want) else np.float64(np.float32(dy))
    y, grads = ref.run(op, arrays, dy, dtype)
    ref.assert_close(np.asarray(y), want, tolerance, "y")
    for got, wanted in zip(grads, ref.numeric_grads(reference, arrays, dy), strict=True):
        ref.assert_close(got, wanted, tolerance * 5, "gradient")


def ids(array):
    return memory.from_numpy(np.ascontiguousarray(array, np.int32))


@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (3, 16)], ids=str)
def test_scores_match_float64(shape):
    x = RNG.randn(*shape) * 3
    if shape[1] > 1:  # one column: the true gradient is 0
        check(lambda t: ops.router_scores(t, "softmax"), ref.softmax, [x])
        check(
            ops.normalized_rows,
            lambda p: p / p.sum(-1, keepdims=True),
            [RNG.rand(*shape) + 0.1],
        )
    check(lambda t: ops.router_scores(t, "sigmoid"), ref.sigmoid, [x])
    check(
        lambda t: ops.router_scores(t, "sqrtsoftplus"), lambda t: np.sqrt(np.logaddexp(t, 0)), [x]
    )
    check(
        ops.squared_logsumexp,
        lambda t: np.mean(np.log(np.exp(t).sum(-1)) ** 2),
        [x],
    )


def test_extreme_logits_stay_finite():
    x = ref.tensor(np.array([[300.0, -300.0, 0.0]]))
    for name in ("softmax", "sigmoid", "sqrtsoftplus"):
        assert np.isfinite(ref.values(ops.router_scores(x, name))).all()
    assert abs(float(ops.squared_logsumexp(x)) - 90000.0) < 1.0


def test_taken_columns_and_weighted_totals():
    x, columns = RNG.randn(4, 6), np.array([[1, 5], [0, -1], [3, 2], [-1, -1]])

    def taken(t):
        return np.where(columns >= 0, np.take_along_axis(t, np.maximum(columns, 0), 1), 0.0)

    check(lambda t: ops.take_columns(t, ids(columns)), taken, [x])
    weights = RNG.randn(4, 6)
    check(
        lambda t: ops.weighted_total(t, ref.tensor(weights)),
        lambda t: np.sum(t * np.float32(weights).astype(np.float64)),
        [x],
    )


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16], ids=str)
def test_combined_rows_match_float64(dtype):
    rows, probs = RNG.randn(6, 5), np.float32(RNG.rand(4, 2))
    places = np.array([[2, 0], [-1, 4], [1, 3], [-1, -1]])

    def combined(rows, probs=probs):
        y = np.zeros((4, 5))
        for token, choice in np.argwhere(places >= 0):
            y[token] += probs[token, choice] * rows[places[token, choice]]
        return y

    tolerance = FP32 if dtype == ms.float32 else 2**-8
    check(
        lambda r: ops.combine_rows(r, ref.tensor(probs), ids(places)),
        combined,
        [rows],
        tolerance,
        dtype,
    )
    if dtype == ms.float32:
        fixed = ref.tensor(rows)
        check(
            lambda p: ops.combine_rows(fixed, p, ids(places)),
            lambda p: combined(np.float32(rows).astype(np.float64), p),
            [probs],
        )


def test_largest_columns_take_the_first_of_equals():
    scores = ref.tensor(np.array([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]]))
    assert ops.largest_columns(scores, 3).asnumpy().tolist() == [[1, 2, 0], [0, 1, 2]]
    many = RNG.randn(5, 12)
    got = ops.largest_columns(ref.tensor(many), 10).asnumpy()
    np.testing.assert_array_equal(got, np.argsort(-many, axis=1, kind="stable")[:, :10])


def test_largest_columns_of_the_best_groups():
    scores = np.array([[9.0, 0.0, 5.0, 5.0, 8.0, 0.0]])
    # Two experts per group: sums 9, 10, 8; the best single experts are in groups 0 and 2.
    got = ops.largest_columns(ref.tensor(scores), 2, num_groups=3, group_topk=1).asnumpy()
    assert sorted(got[0]) == [2, 3]
    got = ops.largest_columns(ref.tensor(scores), 2, num_groups=3, group_topk=2).asnumpy()
    assert sorted(got[0]) == [0, 4]  # one per group: the best single expert counts


def test_groups_are_judged_by_some_of_their_scores():
    scores = np.array([[0.5, 0.0, 0.4, 0.4]], np.float32)
    one = ops.largest_columns(ref.tensor(scores), 2, 2, 1, group_scores=1)
    both = ops.largest_columns(ref.tensor(scores), 2, 2, 1, group_scores=2)
    assert one.asnumpy().tolist() == [[0, 1]] and both.asnumpy().tolist() == [[2, 3]]
    with pytest.raises(ValueError, match="take fewer"):
        ops.largest_columns(ref.tensor(scores), 2, 2, 1, group_scores=3)


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16], ids=str)
@pytest.mark.parametrize("counts", [(3, 0, 4), (0, 0, 0), (7,)], ids=str)
def test_grouped_products_match_single_ones(counts, dtype):
    total, groups = sum(counts), len(counts)
    x, dy = (ref.tensor(RNG.randn(total, width), dtype) for width in (6, 9))
    weights = [ref.tensor(RNG.randn(9, 6), dtype) for _ in range(groups)]
    y = ref.values(ops.grouped_linear_forward(x, weights, counts))
    dx = ref.values(ops.grouped_linear_dgrad(dy, weights, counts))
    sums = [memory.from_numpy(np.full((9, 6), 0.5, np.float32)) for _ in range(groups)]
    ops.grouped_linear_wgrad_accumulate(dy, x, sums, counts)
    assert y.shape == (total, 9) and dx.shape == (total, 6)
    tolerance = 1e-6 if dtype == ms.float32 else 2**-7
    start = 0
    for weight, count, summed in zip(weights, counts, sums, strict=True):
        part = slice(start, start + count)
        start += count
        rows, grad, matrix = ref.values(x)[part], ref.values(dy)[part], ref.values(weight)
        ref.assert_close(y[part], rows @ matrix.T, tolerance, "y")
        ref.assert_close(dx[part], grad @ matrix, tolerance, "dx")
        ref.assert_close(ref.values(summed), 0.5 + grad.T @ rows, 1e-6, "dw")


def test_products_in_float64_are_rounded_once():
    a, b = (ref.tensor(RNG.randn(4, 300)) for _ in range(2))
    want = (ref.values(a) @ ref.values(b).T).astype(np.float32)
    np.testing.assert_array_equal(ops.product_fp64(a, b).asnumpy(), want)


def test_random_numbers_repeat_and_have_their_moments():
    generator = Generator(3)
    first = ops.random_normal((200, 50), generator).asnumpy()
    assert abs(first.mean()) < 0.03 and abs(first.std() - 1.0) < 0.03
    assert (ops.random_normal((200, 50), generator).asnumpy() != first).mean() > 0.99
    again = ops.random_normal((200, 50), Generator(3)).asnumpy()
    np.testing.assert_array_equal(first, again)
    uniform = ops.random_uniform((100, 100), 0.9, 1.1, generator).asnumpy()
    assert 0.9 <= uniform.min() < 0.901 and 1.099 < uniform.max() <= 1.1
    assert abs(uniform.mean() - 1.0) < 2e-3


X = ref.tensor(np.ones((2, 4)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.router_scores(X, "relu"), "use 'softmax', 'sigmoid'"),
        (lambda: ops.router_scores(X.astype(ms.float16), "softmax"), "must be Float32"),
        (lambda: ops.largest_columns(X, 5), "use 1 to 4"),
        (lambda: ops.largest_columns(X, 2, 3, 1), "groups must divide"),
        (lambda: ops.largest_columns(X, 3, 2, 1), "hold fewer than k"),
        (lambda: ops.grouped_linear_forward(X, [X], (1,)), "one count per weight"),
        (lambda: ops.grouped_linear_dgrad(X, [X], (2,)), "does not fit weight"),
        (
            lambda: ops.grouped_linear_wgrad_accumulate(X, X, [X], (2,)),
            "main_grad is",
        ),
        (lambda: ops.combine_rows(X, X, ids(np.zeros((2, 3)))), "must be equal"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_choices_have_no_gradient():
    leaf = ref.leaf(ref.tensor(RNG.randn(3, 4)))
    autograd.enable()
    assert not autograd.requires_grad(ops.largest_columns(autograd.detach(leaf), 2))
