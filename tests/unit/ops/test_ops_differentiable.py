# SPDX-License-Identifier: Apache-2.0
"""Every differentiable operation of every kernel set against float64, forward and all gradients."""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from ops_reference import kernel_set  # noqa: F401 - an autouse fixture

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator

# Few roundings of 6e-8 each per element, sums over at most 200 elements.
FP32 = 2e-6
# Storage rounds inputs exactly as given and results once: half a unit of 8 or 11 bits, and the
# gradients of biases and weights once more.
STORAGE = {ms.bfloat16: 2**-8, ms.float16: 2**-10}
RNG = np.random.RandomState(7)


def rounded(array, dtype):
    """The values that ``dtype`` can store, as float64."""
    return ref.values(ref.tensor(array, dtype))


def check(op, reference, arrays, dtype=ms.float32, strided=False, tolerance=None):
    arrays = [None if a is None else rounded(a, dtype) for a in arrays]
    want = reference(*arrays)
    dy = rounded(RNG.randn(*want.shape), dtype)
    y, grads = ref.run(op, arrays, dy, dtype, strided)
    tolerance = tolerance or STORAGE.get(dtype, FP32)
    ref.assert_close(y, want, tolerance, "y")
    for index, (got, wanted) in enumerate(
        zip(grads, ref.numeric_grads(reference, arrays, dy), strict=True)
    ):
        if wanted is not None:
            ref.assert_close(got, wanted, tolerance, f"gradient {index}")


DTYPES = pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16, ms.float16], ids=str)
SHAPES = pytest.mark.parametrize("shape", [(3, 5, 8), (7, 19), (1, 1), (2, 67)], ids=str)


@SHAPES
@DTYPES
def test_layer_norm_matches_float64(shape, dtype):
    arrays = [RNG.randn(*shape) + 0.5, RNG.randn(shape[-1]), RNG.randn(shape[-1])]
    if shape[-1] > 1:  # one column: the row is its own mean, the true gradient is 0
        check(lambda *a: ops.layer_norm(*a, 1e-5), ref.layer_norm, arrays, dtype)


@SHAPES
@DTYPES
def test_rms_norm_matches_float64(shape, dtype):
    arrays = [RNG.randn(*shape), RNG.randn(shape[-1])]
    if shape[-1] > 1:  # one column: y is a sign, the true gradient is 0
        check(lambda *a: ops.rms_norm(*a, 1e-5), ref.rms_norm, arrays, dtype)


def activation(name):
    if name == "gelu_tanh":
        return functools.partial(ops.gelu, approximate="tanh")
    return getattr(ops, name)


@DTYPES
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("name", sorted(ref.ACTIVATIONS))
def test_activations_match_float64(name, has_bias, dtype):
    arrays = [RNG.randn(3, 2, 38) * 2, RNG.randn(38) if has_bias else None]
    if name == "relu":  # its slope jumps at 0, where a rounded sum may lie on the other side
        away = [np.sign(arrays[0]) * (1 + np.abs(arrays[0])), has_bias and np.tanh(arrays[1]) / 2]
        arrays = [away[0], away[1] if has_bias else None]
    check(activation(name), ref.ACTIVATIONS[name], arrays, dtype)


@pytest.mark.parametrize("name", sorted(ref.ACTIVATIONS))
def test_activations_are_right_far_from_zero(name):
    x = np.concatenate((np.linspace(-30, 30, 8001), [-1e4, 1e4, -88.5, 88.5, 0.0, 0.0, 0.0]))
    y, (dx,) = ref.run(
        activation(name), [x.reshape(1, -1)], np.ones((1, x.size // (1 + (name == "swiglu"))))
    )
    want = ref.ACTIVATIONS[name]
    x = ref.values(ref.tensor(x)).reshape(1, -1)
    with np.errstate(over="ignore"):
        expected = want(x, None)
    assert np.all(np.isfinite(dx))
    # Absolute below one (the erf form cancels there), relative above.
    assert np.max(np.abs(y - expected) / np.maximum(1, np.abs(expected))) < 5e-7


@DTYPES
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("rot,tables", [(8, 1), (6, 1), (2, 3), (8, 3)])
def test_rotary_matches_float64(interleaved, rot, tables, dtype):
    angles = RNG.randn(5, tables, 1, rot) * 3
    cos, sin = np.cos(angles).astype("f4"), np.sin(angles).astype("f4")
    check(
        lambda t: ops.rotary(t, ref.tensor(cos), ref.tensor(sin), interleaved),
        lambda t: ref.rotary(t, cos.astype("f8"), sin.astype("f8"), interleaved),
        [RNG.randn(5, 3, 2, 8)],
        dtype,
    )


@DTYPES
def test_split_qkv_takes_the_columns_apart_and_puts_gradients_back(dtype):
    mixed = rounded(RNG.randn(3, 2, 2 * 4 * 5), dtype)
    leaf = ref.leaf(ref.tensor(mixed, dtype))
    autograd.enable()
    parts = ops.split_qkv(leaf, 2, 2, 5)
    rows = mixed.reshape(3, 2, 2, 4, 5)
    wanted = [rows[..., :2, :].reshape(3, 2, 4, 5), rows[..., 2, :], rows[..., 3, :]]
    for part, want in zip(parts, wanted, strict=True):
        np.testing.assert_array_equal(ref.values(part), want)
    autograd.backward(parts, [ref.tensor(want, dtype) for want in wanted])
    np.testing.assert_array_equal(ref.values(autograd.get_grad(leaf)), mixed)


def attention_case(sq, sk, b, n, g, d):
    return [RNG.randn(sq, b, n, d), RNG.randn(sk, b, g, d), RNG.randn(sk, b, g, d)]


def random_mask(b, sq, sk):
    mask = RNG.rand(b, 1, sq, sk) < 0.4
    mask[..., 0] = False
    return mask


@pytest.mark.parametrize("kind", ["causal", "full", "mask", "mask+causal", "shared mask"])
@pytest.mark.parametrize(
    "sizes,dtype",
    [
        ((4, 4, 2, 4, 2, 4), ms.float32),
        ((3, 7, 1, 3, 1, 4), ms.float32),
        ((3, 7, 1, 3, 1, 4), ms.bfloat16),
        ((3, 7, 1, 3, 1, 4), ms.float16),
        ((9, 9, 1, 2, 2, 3), ms.float32),
    ],
    ids=str,
)
def test_attention_matches_float64(kind, sizes, dtype):
    sq, sk, b, *_ = sizes
    mask = random_mask(1 if kind == "shared mask" else b, sq, sk) if "mask" in kind else None
    options = {"scale": 0.4, "causal": "causal" in kind}
    check(
        lambda *a: ops.attention(*a, mask=None if mask is None else ref.tensor(mask), **options),
        lambda *a: ref.attention(*a, mask=mask, **options),
        attention_case(*sizes),
        dtype,
        # Stored output enters the gradient of the scores: two roundings.
        tolerance=3 * STORAGE[dtype] if dtype in STORAGE else None,
    )


def test_attention_dropout_is_the_philox_mask():
    options = {"scale": 0.4, "causal": True, "dropout_p": 0.3}
    generator = Generator(seed=2**40 + 5, offset=12)
    check(
        lambda *a: ops.attention(*a, generator=generator, **options),
        lambda *a: ref.attention(*a, seed=2**40 + 5, offset=12, **options),
        attention_case(4, 4, 2, 4, 2, 3),
    )
    assert generator.offset == 12 + 2 * 4 * 4 * 4


def test_attention_gives_zeros_for_a_query_without_keys():
    mask = np.zeros((1, 1, 4, 4), bool)
    mask[0, 0, 2] = True
    arrays = attention_case(4, 4, 2, 2, 1, 3)
    y, grads = ref.run(
        lambda *a: ops.attention(*a, scale=1.0, causal=False, mask=ref.tensor(mask)),
        arrays,
        np.ones((4, 2, 6)),
    )
    assert np.all(y[2] == 0) and np.all(grads[0][2] == 0)
    assert all(np.all(np.isfinite(g)) for g in grads)


@DTYPES
@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "mask+causal"])
def test_softmax_matches_float64(kind, dtype):
    mask = random_mask(2, 5, 7) if "mask" in kind else None
    causal = "causal" in kind
    check(
        lambda s: ops.softmax(s, None if mask is None else ref.tensor(mask), causal, 0.7),
        lambda s: ref.softmax(s, mask, causal, 0.7),
        [RNG.randn(2, 3, 5, 7) * 3],
        dtype,
        # The stored probabilities enter a gradient that cancels: roundings of the larger terms.
        tolerance=4 * STORAGE[dtype] if dtype in STORAGE else None,
    )


def test_softmax_takes_any_rank():
    for shape in [(6,), (4, 6), (2, 4, 6)]:
        x = RNG.randn(*shape)
        y, _ = ref.run(lambda s: ops.softmax(s), [x], np.ones(shape))
        want = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        ref.assert_close(y, want, FP32)


@DTYPES
def test_embedding_matches_float64(dtype):
    ids = np.array([[3, 9, 4, 3], [12, 5, 3, 2]], np.int32)
    weight = RNG.randn(6, 5)

    def reference(w):
        return np.where(((ids >= 3) & (ids < 9))[..., None], w[np.clip(ids - 3, 0, 5)], 0)

    check(lambda w: ops.embedding(w, ms.Tensor(ids), 3), reference, [weight], dtype)
    y = ops.embedding(ref.tensor(weight, dtype), ms.Tensor(ids.astype(np.int64)), 3)
    ref.assert_close(ref.values(y), reference(rounded(weight, dtype)), 1e-12)


@DTYPES
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_bias_dropout_add_matches_float64(has_bias, p, dtype):
    shape, seed = (3, 2, 7), 99
    keep = ref.keep_scale(p, seed, 4, shape)
    check(
        lambda x, bias, residual: ops.bias_dropout_add(
            x, bias, residual, p, Generator(seed, 4) if p else None
        ),
        lambda x, bias, residual: residual + (x if bias is None else x + bias) * keep,
        [RNG.randn(*shape), RNG.randn(7) if has_bias else None, RNG.randn(*shape)],
        dtype,
    )


@DTYPES
@pytest.mark.parametrize("strided", [False, True])
def test_gradients_of_both_branches_are_summed(dtype, strided):
    def op(x):
        first, second = ops.branch(x)
        return ops.bias_dropout_add(ops.silu(first), None, second, 0.0, None)

    check(op, lambda x: x * ref.sigmoid(x) + x, [RNG.randn(3, 5, 7)], dtype, strided)


@pytest.mark.parametrize("used", [0, 1])
def test_one_branch_may_lead_nowhere(used):
    check(lambda x: ops.silu(ops.branch(x)[used]), lambda x: x * ref.sigmoid(x), [RNG.randn(4, 9)])


def test_dropout_keeps_the_philox_words():
    for shape, offset in [((5, 7), 0), ((1000, 3), 2**33 + 1), ((1,), 3)]:
        x = np.ones(shape, np.float32)
        generator = Generator(seed=123456789012345, offset=offset)
        y, (dx,) = ref.run(lambda t, g=generator: ops.dropout(t, 0.1, g), [x], x)
        want = ref.keep_scale(0.1, 123456789012345, offset, shape)
        assert np.array_equal(y, want.astype("f8")) and np.array_equal(dx, want.astype("f8"))
        assert generator.offset == offset + (x.size + 3) // 4 * 4


def test_dropout_of_zero_draws_nothing():
    x = ref.tensor(RNG.randn(3, 4))
    generator = Generator(1)
    assert ops.dropout(x, 0.0, generator) is x
    assert generator.offset == 0


STRIDED = {
    "layer_norm": (lambda *a: ops.layer_norm(*a, 1e-5), [(4, 3, 6), (6,), (6,)]),
    "rms_norm": (lambda *a: ops.rms_norm(*a, 1e-5), [(4, 3, 6), (6,)]),
    "gelu": (ops.gelu, [(4, 3, 6), (6,)]),
    "swiglu": (ops.swiglu, [(4, 3, 6), (6,)]),
    "gated": (lambda *a: ops.gated(*a, "gelu", limit=1.0), [(4, 3, 6), (6,)]),
    "scaled": (lambda x: ops.scaled(x, 0.5), [(4, 3, 6)]),
    "clipped": (lambda x: ops.clipped(x, 0.5), [(4, 3, 6)]),
    "softcapped": (lambda x: ops.softcapped(x, 0.5), [(4, 3, 6)]),
    "sigmoid_gated": (ops.sigmoid_gated, [(4, 3, 6), (4, 3, 6)]),
    "softmax": (ops.softmax, [(4, 3, 6)]),
    "rotary": (
        lambda t: ops.rotary(
            t, ref.tensor(np.ones((4, 1, 1, 4))), ref.tensor(np.ones((4, 1, 1, 4)))
        ),
        [(4, 3, 2, 6)],
    ),
    "attention": (
        lambda *a: ops.attention(*a, scale=0.5),
        [(4, 3, 2, 6), (4, 3, 1, 6), (4, 3, 1, 6)],
    ),
    "embedding": (lambda w: ops.embedding(w, ms.Tensor([[1, 2], [0, 9]])), [(5, 6)]),
    "dropout": (lambda x: ops.dropout(x, 0.5, Generator(3)), [(4, 3, 6)]),
    "bias_dropout_add": (
        lambda x, r: ops.bias_dropout_add(x, None, r, 0.5, Generator(3)),
        [(4, 3, 6), (4, 3, 6)],
    ),
}


def strided_or_vector(array, dtype=ms.float32):
    return ref.transposed(array, dtype) if np.ndim(array) > 1 else ref.tensor(array, dtype)


@pytest.mark.parametrize("name", sorted(STRIDED))
def test_strided_inputs_and_gradients_give_the_same_as_contiguous(name):
    op, shapes = STRIDED[name]
    arrays = [RNG.randn(*shape) for shape in shapes]
    results = []
    for make in (ref.tensor, strided_or_vector):
        leaves = [ref.leaf(make(a)) for a in arrays]
        autograd.enable()
        y = op(*leaves)
        dy = np.sin(np.arange(y.size)).reshape(y.shape)
        autograd.backward(y, make(dy))
        results.append([ref.values(y)] + [ref.values(autograd.get_grad(leaf)) for leaf in leaves])
    for contiguous, strided in zip(*results, strict=True):
        assert np.array_equal(contiguous, strided)


@pytest.mark.parametrize("name", sorted(set(STRIDED) - {"embedding"}))
def test_empty_inputs_work(name):
    op, shapes = STRIDED[name]
    arrays = [np.zeros(s if len(s) == 1 else (s[0], 0, *s[2:])) for s in shapes]
    leaves = [ref.leaf(ref.tensor(a)) for a in arrays]
    autograd.enable()
    y = op(*leaves)
    assert y.size == 0
    autograd.backward(y, memory.zeros(y.shape))
    for leaf in leaves:
        assert np.all(ref.values(autograd.get_grad(leaf)) == 0)


def test_no_graph_is_built_under_no_grad():
    weight = ref.leaf(ref.tensor(np.ones(4)))
    with autograd.no_grad():
        assert not autograd.requires_grad(ops.rms_norm(ref.tensor(np.ones((2, 4))), weight, 1e-5))


@pytest.mark.parametrize("kept", [0, 1, 7, 12])
@pytest.mark.parametrize("mask_dtype", [np.float32, np.int32, np.bool_], ids=str)
def test_masked_mean_matches_float64(kept, mask_dtype):
    weights = (np.arange(12).reshape(3, 4) < kept).astype(mask_dtype)

    def reference(x):
        return 3.0 * np.array((x * weights).sum() / max(weights.sum(), 1))

    for strided in (False, True):
        check(
            lambda x: ops.masked_mean(x, ms.Tensor(weights), 3.0),
            reference,
            [RNG.randn(3, 4)],
            strided=strided,
        )


@DTYPES
@pytest.mark.parametrize("wanted", [ms.float32, ms.bfloat16, ms.float16], ids=str)
def test_cast_rounds_once_and_takes_the_gradient_back(dtype, wanted):
    rng = np.random.RandomState(11)
    numbers = rng.randn(3, 7) * 10.0 ** rng.randint(-3, 3, (3, 7))
    x = ref.leaf(ref.tensor(numbers, dtype))
    with autograd.recording():
        y = ops.cast(x, wanted)
        assert (y is x) == (wanted == dtype) and y.dtype == wanted
        np.testing.assert_array_equal(ref.values(y), rounded(ref.values(x), wanted))
        dy = ref.tensor(numbers[::-1].copy(), wanted)
        autograd.backward(y, dy)
    grad = autograd.get_grad(x)
    assert grad.dtype == dtype
    np.testing.assert_array_equal(ref.values(grad), rounded(ref.values(dy), dtype))


def test_cast_refuses_types_that_are_not_stored():
    with pytest.raises(ValueError, match="cast: type Int32; use float32"):
        ops.cast(memory.from_numpy(np.zeros(2, np.int32)), ms.float32)
    with pytest.raises(ValueError, match="cast: type Float64; use float32"):
        ops.cast(memory.zeros((2,)), ms.float64)


def test_a_part_of_a_split_may_be_unused():
    x = ref.leaf(ref.tensor(np.zeros((2, 5))))
    with autograd.recording():
        _, second = ops.split_columns(x, (2, 3))
        autograd.backward(second, ref.tensor(np.ones((2, 3))))
    np.testing.assert_array_equal(ref.values(autograd.get_grad(x)), [[0, 0, 1, 1, 1]] * 2)


@DTYPES
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("limit,offset", [(None, 0.0), (1.25, 1.0)], ids=["plain", "limited"])
@pytest.mark.parametrize("name", ["gelu", "fast_gelu", "silu", "quick_gelu"])
def test_gated_units_match_float64(name, limit, offset, has_bias, dtype):
    # No element lies so near to a limit that a difference would cross it.
    own = np.random.RandomState(3)
    x = own.randn(3, 2, 38) * 2
    x = np.where(np.abs(np.abs(x) - 1.25) < 0.05, 0.5, x)
    arrays = [x, np.where(np.arange(38) % 2, 0.0, 16.0) if has_bias else None]
    check(
        lambda x, bias: ops.gated(x, bias, name, limit=limit, offset=offset),
        lambda x, bias: ref.gated(x if bias is None else x + bias, name, limit, offset),
        arrays,
        dtype,
    )


def test_a_limit_stops_the_gradient():
    x = np.array([[3.0, -3.0, 0.5, -3.0, 3.0, 0.5]])  # gates, then values
    _, (dx,) = ref.run(lambda t: ops.gated(t, None, "silu", limit=1.0), [x], np.ones((1, 3)))
    assert (dx[0] == 0.0).tolist() == [True, False, False, True, True, False]


@DTYPES
@pytest.mark.parametrize("strided", [False, True])
def test_scaled_clipped_and_softcapped_match_float64(dtype, strided):
    x = np.random.RandomState(4).randn(3, 5, 7) * 3
    check(lambda t: ops.scaled(t, 0.25), lambda t: t * 0.25, [x], dtype, strided)
    cap = lambda t: 2.0 * np.tanh(t / 2.0)  # noqa: E731 - a formula
    clip = lambda t: np.clip(t, -2.0, 2.0)  # noqa: E731 - a formula
    check(lambda t: ops.clipped(t, 2.0), clip, [x], dtype, strided)
    check(lambda t: ops.softcapped(t, 2.0), cap, [x], dtype, strided)


@DTYPES
def test_a_gate_of_another_steepness_matches_float64(dtype):
    def formula(x, bias):
        gate, up = np.split(x + bias, 2, axis=-1)
        gate, up = np.minimum(gate, 1.5), np.clip(up, -1.5, 1.5)
        return gate / (1.0 + np.exp(-0.9 * gate)) * (up + 1.0)

    def ours(x, bias):
        return ops.gated(x, bias, "quick_gelu", limit=1.5, offset=1.0, alpha=0.9)

    own = np.random.RandomState(6)
    check(ours, formula, [own.randn(3, 2, 38) * 2, own.randn(38)], dtype)


@DTYPES
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "plain"])
def test_quick_gelu_matches_float64(has_bias, dtype):
    own = np.random.RandomState(5)
    arrays = [own.randn(3, 2, 38) * 2, own.randn(38) if has_bias else None]
    check(ops.quick_gelu, ref.biased(ref.quick_gelu), arrays, dtype)


def test_a_sigmoid_gate_matches_float64():
    shapes = RNG.randn(4, 3, 6), RNG.randn(4, 3, 6) * 3
    check(ops.sigmoid_gated, lambda x, gate: x * ref.sigmoid(gate), list(shapes))
