# SPDX-License-Identifier: Apache-2.0
"""The choice of keys in sparse attention, and its loss, against float64 and finite differences."""

import numpy as np
import ops_reference as ref
import pytest
from ops_reference import kernel_set  # noqa: F401 - an autouse fixture

from mindspeed_ms import ops
from mindspeed_ms.backend import memory

RNG = np.random.RandomState(7)
LATER = np.arange(6) > np.arange(6)[:, None]


def boolean(array):
    return memory.from_numpy(np.ascontiguousarray(array[None, None]))


def softmax(x):
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("rectified", [True, False])
def test_scores_match_float64(rectified):
    def reference(q, k, weights):
        products = np.einsum("sbhd,tbd->bsht", q, k)
        products = np.maximum(products, 0) if rectified else products
        return np.einsum("bsht,sbh->bst", products, weights)

    arrays = [RNG.randn(4, 2, 3, 5), RNG.randn(6, 2, 5), RNG.randn(4, 2, 3)]
    arrays = [ref.values(ref.tensor(array)) for array in arrays]
    dy = ref.values(ref.tensor(RNG.randn(2, 4, 6)))
    y, grads = ref.run(lambda q, k, w: ops.index_scores(q, k, w, rectified), arrays, dy)
    ref.assert_close(y, reference(*arrays), 1e-5, "y")
    for got, wanted in zip(grads, ref.numeric_grads(reference, arrays, dy), strict=True):
        ref.assert_close(got, wanted, 1e-4, "gradient")


def test_the_loss_is_a_divergence_over_what_is_visible():
    shares = np.where(LATER, 0, RNG.rand(2, 6, 6))

    def reference(scores):
        guess = softmax(np.where(LATER, -np.inf, scores))
        target = shares / shares.sum(-1, keepdims=True)
        return (target * (np.log(target + 1e-10) - np.log(guess + 1e-10))).sum() / 12

    scores = ref.values(ref.tensor(RNG.randn(2, 6, 6)))
    given, hidden = ref.tensor(shares), boolean(LATER)
    dy = np.float32(1.5)
    y, grads = ref.run(lambda x: ops.index_loss(x, given, hidden, 12), [scores], dy)
    ref.assert_close(y, reference(scores), 1e-5, "y")
    (wanted,) = ref.numeric_grads(reference, [scores], dy)
    ref.assert_close(grads[0], wanted, 1e-4, "gradient")


def test_the_best_keys_stay_and_the_earlier_one_of_equals():
    scores = np.array([[9, 1, 1, 1, 5], [2, 7, 2, 2, 1], [0, 0, 0, 0, 9]], np.float32)[None]
    later = np.arange(5) > np.array([4, 3, 2])[:, None]
    chosen = memory.as_numpy(ops.hidden_but_top(ref.tensor(scores), boolean(later), 3))
    assert (~chosen[0, 0]).tolist() == [
        [True, True, False, False, True],
        [True, True, True, False, False],
        [True, True, True, False, False],
    ]
    every = memory.as_numpy(ops.hidden_but_top(ref.tensor(scores), boolean(later), 9))
    np.testing.assert_array_equal(every[0, 0], later)


def test_shares_are_the_sum_of_the_heads():
    q, k = RNG.randn(6, 2, 3, 4), RNG.randn(6, 2, 3, 4)
    scores = np.einsum("sbnd,tbnd->bnst", q, k) * 0.3
    wanted = softmax(np.where(LATER, -np.inf, scores)).sum(1)
    got = ops.attention_share(ref.tensor(q), ref.tensor(k), boolean(LATER), 0.3)
    ref.assert_close(ref.values(got), wanted, 1e-5, "shares")


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[S, B, D\]"):
        ops.index_scores(*(ref.tensor(np.ones(s)) for s in ((2, 1, 2, 3), (2, 1, 4), (2, 1, 2))))
    with pytest.raises(ValueError, match="hidden is"):
        ops.hidden_but_top(ref.tensor(np.ones((1, 2, 3))), boolean(LATER), 2)
