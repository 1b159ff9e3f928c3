# SPDX-License-Identifier: Apache-2.0
"""What hides keys and what is done to scores, against definitions in float64 and each other."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from ops_reference import kernel_set  # noqa: F401 - an autouse fixture

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import Documents, KeyRanges, ScoreStorage
from mindspeed_ms.ops.portable.dropout import keep_scale

FP32 = 5e-6
"""Sums of a few hundred products in another order."""

ROUNDING = {ms.float32: FP32, ms.bfloat16: 2**-6, ms.float16: 2**-9}


def distances(queries, keys, offsets=None):
    """Place of each key less that of each query, [B or 1, S, S']."""
    offsets = np.array([keys - queries]) if offsets is None else offsets
    return np.arange(keys) - (offsets[:, None] + np.arange(queries))[..., None]


def hidden_of(queries, keys, *, causal, window, ranges, documents, mask):
    """[B or 1, 1, S, S'] written down once more."""
    away = distances(queries, keys, None if ranges is None else ranges.offsets)[:, None]
    left, right = window
    hidden = np.zeros((1, 1, queries, keys), bool)
    if causal:
        hidden = hidden | (away > 0)
    if left is not None:
        hidden = hidden | (away < -left)
    if right is not None:
        hidden = hidden | (away > right)
    if ranges is not None:
        place = np.arange(keys)[None, None, None]
        outside = (place < ranges.starts[:, None, None, None]) | (
            place >= ranges.stops[:, None, None, None]
        )
        hidden = hidden | outside
    if documents is not None:
        hidden = hidden | ref.document_mask(documents)
    return hidden if mask is None else hidden | mask


def defined(  # noqa: PLR0913 - the options of an attention
    q,
    k,
    v,
    sinks=None,
    *,
    scale,
    causal=True,
    window=(None, None),
    ranges=None,
    documents=None,
    mask=None,
    softcap=None,
    slopes=None,
    bias=None,
    dropout=0.0,
):
    """Attention in the precision of its arguments, one formula after the other."""
    (s, b, n, _), keys = q.shape, k.shape[0]
    k, v = (np.repeat(t, n // t.shape[2], axis=2) for t in (k, v))
    scores = np.einsum("ibnd,jbnd->bnij", q, k) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if slopes is not None:
        away = distances(s, keys, None if ranges is None else ranges.offsets)[:, None]
        scores = scores - slopes[None, :, None, None] * np.abs(away)
    if bias is not None:
        scores = scores + bias
    hidden = hidden_of(
        s, keys, causal=causal, window=window, ranges=ranges, documents=documents, mask=mask
    )
    weights = np.where(hidden, 0.0, np.exp(scores))
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks)[None, :, None, None]
    probs = weights / np.where(total == 0, 1.0, total)
    if dropout:
        probs = probs * keep_scale(dropout, 7, 20, probs.shape)
    return np.einsum("bnij,jbnd->ibnd", probs, v).reshape(s, b, -1)


def computed(arrays, dy, dtype=ms.float32, *, mask=None, bias=None, dropout=0.0, **options):
    """Result and gradients of ``ops.attention``; a fourth array are sinks."""
    if mask is not None:
        options["mask"] = ms.Tensor(mask)
    if bias is not None:
        options["bias"] = ref.tensor(bias, dtype)
    if dropout:
        options |= {"dropout_p": dropout, "generator": Generator(7, 20)}

    def attend(q, k, v, sinks=None):
        return ops.attention(q, k, v, sinks=sinks, **options)

    return ref.run(attend, arrays, dy, dtype)


def arrays_of(rng, s, keys, b, n, g, d, e, *, sinks):
    shapes = [(s, b, n, d), (keys, b, g, d), (keys, b, g, e), *([(n,)] if sinks else [])]
    return [rng.standard_normal(shape) for shape in shapes]


SMALL = (5, 7, 2, 4, 2, 3, 2)
"""S, S', B, N, G, D, E."""

RANGES = KeyRanges(np.array([0, 2]), np.array([5, 7]), np.array([1, 2]))
NUMBERS = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]], np.int32)
KEY_NUMBERS = np.array([[0, 0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2]], np.int32)
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)

CASES = {
    "window": {"window": (2, None)},
    "window both sides": {"window": (1, 2), "causal": False},
    "window right": {"window": (None, 1), "causal": False},
    "window itself": {"window": (0, 0), "causal": False},
    "window documents": {"window": (2, None), "documents": Documents(NUMBERS, KEY_NUMBERS)},
    "window mask": {"window": (2, 1), "causal": False, "mask": True},
    "window ranges": {"window": (2, None), "ranges": RANGES},
    "ranges full": {"ranges": RANGES, "causal": False},
    "softcap": {"softcap": 0.7},
    "slopes": {"slopes": SLOPES},
    "slopes full ranges": {"slopes": SLOPES, "causal": False, "ranges": RANGES},
    "bias": {"bias": (2, 4)},
    "bias shared": {"bias": (1, 1), "causal": False},
    "sinks": {"sinks": True},
    "sinks window": {"sinks": True, "window": (1, None)},
    "sinks dropout": {"sinks": True, "dropout": 0.3},
    "all": {
        "sinks": True,
        "window": (3, None),
        "softcap": 1.3,
        "slopes": SLOPES,
        "bias": (1, 4),
        "ranges": RANGES,
        "dropout": 0.2,
        "mask": True,
    },
}


def drawn(options, rng, s, keys, b):
    """The options with arrays in place of what only says their shape."""
    options = dict(options)
    if options.pop("mask", False):
        options["mask"] = rng.random((b, 1, s, keys)) < 0.3
    if "bias" in options:
        options["bias"] = rng.standard_normal((*options["bias"], s, keys))
    return options


@pytest.mark.parametrize("name", list(CASES))
def test_results_and_gradients_are_those_of_the_definition(name):
    rng = np.random.default_rng(3)
    options = drawn(CASES[name], rng, 5, 7, 2)
    arrays = arrays_of(rng, *SMALL, sinks=options.pop("sinks", False))
    dy = rng.standard_normal((5, 2, 8))
    y, grads = computed(arrays, dy, scale=0.4, **options)
    function = lambda *a: defined(*a, scale=0.4, **options)  # noqa: E731
    ref.assert_close(y, function(*arrays), FP32)
    for got, want in zip(grads, ref.numeric_grads(function, arrays, dy), strict=True):
        ref.assert_close(got, want, FP32, floor=0.1)


LONG = (200, 330, 2, 4, 2, 20, 12)
"""Many blocks of the kernels, and ends within them."""

LONG_RANGES = KeyRanges(np.array([0, 70]), np.array([260, 330]), np.array([30, 130]))


def long_numbers(rng, size):
    return np.sort(rng.integers(0, 4, (2, size)), axis=1).astype(np.int32)


def long_cases():
    rng = np.random.default_rng(8)
    documents = Documents(long_numbers(rng, 200), long_numbers(rng, 330))
    return {
        "window": {"window": (50, None)},
        "wide window": {"window": (150, None)},
        "narrow window": {"window": (3, None)},
        "both sides": {"window": (20, 90), "causal": False},
        "documents": {"window": (60, None), "documents": documents},
        "ranges": {"window": (100, None), "ranges": LONG_RANGES},
        "ranges full": {"causal": False, "ranges": LONG_RANGES},
        "mask": {"window": (77, None), "mask": True},
        "dropout": {"window": (64, None), "dropout": 0.3},
        "softcap": {"softcap": 2.0, "window": (100, None)},
        "slopes": {"slopes": SLOPES},
        "bias": {"bias": (2, 1)},
        "sinks": {"sinks": True, "window": (30, None)},
    }


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("name", list(long_cases()))
def test_long_sequences_match_the_definition(name, dtype):
    """Gradients by the portable set, which the finite differences above have checked."""
    rng = np.random.default_rng(4)
    options = drawn(long_cases()[name], rng, 200, 330, 2)
    arrays = arrays_of(rng, *LONG, sinks=options.pop("sinks", False))
    arrays = [ref.values(ref.tensor(a, dtype)) for a in arrays]
    if "bias" in options:
        options["bias"] = ref.values(ref.tensor(options["bias"], dtype))
    dy = ref.values(ref.tensor(rng.standard_normal((200, 2, 48)), dtype))
    y, grads = computed(arrays, dy, dtype, scale=0.3, **options)
    ref.assert_close(y, defined(*arrays, scale=0.3, **options), ROUNDING[dtype])
    own = ops.selected()
    ops.select("portable")
    try:
        _, wanted = computed(arrays, dy, ms.float32, scale=0.3, **options)
    finally:
        ops.select(own)
    for got, want in zip(grads, wanted, strict=True):
        ref.assert_close(got, want, ROUNDING[dtype])


def test_a_window_over_everything_changes_no_bit():
    rng = np.random.default_rng(5)
    arrays = arrays_of(rng, 150, 150, 1, 2, 1, 16, 16, sinks=False)
    dy = rng.standard_normal((150, 1, 32))
    plain, wanted = computed(arrays, dy, scale=0.3)
    for window in ((149, None), (None, 0), (10**9, 10**9)):
        y, grads = computed(arrays, dy, scale=0.3, window=window)
        for got, want in zip([y, *grads], [plain, *wanted], strict=True):
            np.testing.assert_array_equal(got, want)


def test_queries_without_a_key_give_zeros_and_sinks_take_no_gradient_there():
    rng = np.random.default_rng(6)
    arrays = arrays_of(rng, 4, 4, 1, 2, 1, 4, 4, sinks=True)
    ranges = KeyRanges(np.array([2]), np.array([2]), np.array([0]))
    y, grads = computed(arrays, np.ones((4, 1, 8)), scale=1.0, ranges=ranges)
    assert not y.any() and not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", [ms.bfloat16, ms.float16], ids=str)
def test_scores_lie_in_their_storage_type(dtype):
    """Rounded scores, and rounded weights; statistics in fp32."""
    rng = np.random.default_rng(7)
    arrays = arrays_of(rng, 70, 90, 1, 2, 1, 16, 16, sinks=False)
    q, k, v = (a.astype(np.float32) for a in arrays)
    dy = rng.standard_normal((70, 1, 32))

    def rounded(array):
        return ref.values(ref.tensor(array, dtype))

    scores = rounded(np.einsum("ibnd,jbgd->bnij", q, k) * np.float32(2.0) / np.float32(3.0)) * 3.0
    weights = np.where(distances(70, 90)[None] > 0, 0.0, np.exp(scores))
    probs = weights / weights.sum(-1, keepdims=True)
    for weights_too in (False, True):
        storage = ScoreStorage(dtype, divisor=3.0, weights=weights_too)
        y, grads = computed(arrays, dy, scale=2.0, storage=storage)
        shares = rounded(probs) if weights_too else probs
        want = np.einsum("bnij,jbgd->ibnd", shares, v).reshape(70, 1, 32)
        plain, wanted = computed(arrays, dy, scale=2.0)
        # A few scores lie so near to the middle of two stored numbers that either may be right.
        assert np.mean(np.abs(y - want)) < 0.1 * np.mean(np.abs(y - plain))
        for got, near in zip(grads, wanted, strict=True):
            assert np.abs(got - near).max() < 2**-4 * np.abs(near).max()


def test_a_divisor_keeps_large_scores_in_the_range_of_float16():
    q, k = np.full((2, 1, 1, 4), 200.0), np.array([200.0, 199.0]).reshape(2, 1, 1, 1)
    arrays = [q, np.broadcast_to(k, (2, 1, 1, 4)), np.array([1.0, 2.0]).reshape(2, 1, 1, 1)]
    dy = np.ones((2, 1, 1))
    y, _ = computed(arrays, dy, scale=1.0, storage=ScoreStorage(ms.float16, divisor=4.0))
    np.testing.assert_allclose(y.reshape(-1), [1.0, 1.0])  # 160000 is beyond float16, 40000 is not


def test_the_largest_visible_score_of_each_head_is_noted():
    rng = np.random.default_rng(9)
    arrays = arrays_of(rng, 130, 200, 2, 4, 2, 16, 8, sinks=False)
    q, k, _ = (np.repeat(a, 4 // a.shape[2], axis=2) for a in arrays)
    scores = np.einsum("ibnd,jbnd->bnij", q, k) * 0.5
    visible = np.broadcast_to(distances(130, 200)[None] <= 0, scores.shape)
    visible = visible & (distances(130, 200)[None] >= -40)
    want = np.where(visible, scores, -np.inf).max((0, 2, 3))
    largest = ref.tensor(np.array([-np.inf, 1e6, -np.inf, -np.inf]))
    tensors = [ref.leaf(ref.tensor(a)) for a in arrays]
    autograd.enable()
    options = {"scale": 0.5, "window": (40, None)}
    out = ops.attention(*tensors, max_logits=largest, **options)
    want[1] = 1e6  # raised, never lowered
    np.testing.assert_allclose(largest.asnumpy(), want, rtol=1e-5)
    plain = ops.attention(*tensors, **options)
    np.testing.assert_array_equal(ref.values(out), ref.values(plain))


def test_largest_scores_of_blocks_are_those_of_the_whole():
    rng = np.random.default_rng(10)
    q, k, v = (ref.tensor(a) for a in arrays_of(rng, 8, 20, 1, 2, 2, 4, 4, sinks=False))
    whole, parts = (ref.tensor(np.full(2, -np.inf)) for _ in range(2))
    ops.attention(q, k, v, scale=1.0, causal=False, max_logits=whole)
    out, lse = memory.zeros((8, 1, 8)), memory.full((8, 1, 2), -np.inf)
    call = ops.AttentionCall(scale=1.0, max_logits=parts)
    for first, last in ((0, 9), (9, 20)):
        blocks = (memory.contiguous(t[first:last]) for t in (k, v))
        ops.attention_accumulate(q, *blocks, out, lse, call)
    np.testing.assert_allclose(parts.asnumpy(), whole.asnumpy(), rtol=1e-6)


def test_an_offset_says_where_the_queries_of_a_block_stand():
    """Blocks of keys with a window, as the ranks of a ring compute them."""
    rng = np.random.default_rng(11)
    arrays = arrays_of(rng, 90, 270, 1, 4, 2, 16, 16, sinks=False)
    dy = rng.standard_normal((90, 1, 64))
    want, wanted = computed(arrays, dy, scale=0.3, window=(100, None), slopes=SLOPES)
    q, k, v = (ref.tensor(a) for a in arrays)
    out, lse = memory.zeros((90, 1, 64)), memory.full((90, 1, 4), -np.inf)
    blocks = [
        (first, ref.tensor(arrays[1][first : first + 90]), v[first : first + 90])
        for first in (0, 90, 180)
    ]
    calls = {
        first: ops.AttentionCall(
            scale=0.3, causal=True, window=(100, None), slopes=SLOPES, offset=180 - first
        )
        for first, _, _ in blocks
    }
    for first, keys, values in blocks:
        ops.attention_accumulate(q, keys, memory.contiguous(values), out, lse, calls[first])
    ref.assert_close(ref.values(out), want, FP32)
    grads = [memory.zeros(t.shape) for t in (q, k, v)]
    for first, keys, values in blocks:
        at = (grads[0], *(ms.mint.narrow(g, 0, first, 90) for g in grads[1:]))
        ops.attention_backward_accumulate(
            q, keys, memory.contiguous(values), out, lse, ref.tensor(dy), at, calls[first]
        )
    for got, expected in zip(grads, wanted, strict=True):
        ref.assert_close(ref.values(got), expected, FP32)
    assert (
        ops.AttentionCall(scale=1.0, causal=True, window=(9, None), offset=180)
        .band(90, 90)
        .is_apart(90, 90)
    )


@pytest.mark.parametrize(
    "options,message",
    [
        ({"window": (-1, None)}, "numbers of tokens from 0"),
        ({"softcap": 0.0}, "above 0"),
        ({"slopes": np.ones(3, np.float32)}, "one per head"),
        ({"slopes": np.ones(2)}, "float32"),
        ({"slopes": np.ones(4, np.float32)[::2]}, "contiguous"),
        ({"bias": ms.Tensor(np.ones((1, 3, 4, 4), np.float32))}, "bias"),
        ({"bias": ms.Tensor(np.ones((1, 1, 4, 4), np.int32))}, "type"),
        ({"sinks": ms.Tensor(np.ones(3, np.float32))}, "sinks"),
        ({"storage": ScoreStorage(ms.float32)}, "use bfloat16 or float16"),
        ({"max_logits": ms.Tensor(np.ones(2, np.float16))}, "Float32"),
        ({"ranges": KeyRanges(np.zeros(1), np.ones(1), np.zeros(1))}, "one range per row"),
        ({"ranges": KeyRanges(np.zeros(2), np.full(2, 5), np.zeros(2))}, "within its keys"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    q, k, v = (ref.tensor(np.ones((4, 2, 2, 4))) for _ in range(3))
    with pytest.raises(ValueError, match=message):
        ops.attention(q, k, v, scale=1.0, **options)


def test_ranges_are_one_number_per_row():
    with pytest.raises(ValueError, match="one number per row"):
        KeyRanges(np.zeros(2), np.ones(3), np.zeros(2))
