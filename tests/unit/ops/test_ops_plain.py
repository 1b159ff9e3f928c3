# SPDX-License-Identifier: Apache-2.0
"""The plain and in-place kernels of every kernel set against float64."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from ops_reference import kernel_set  # noqa: F401 - an autouse fixture

from mindspeed_ms import ops
from mindspeed_ms.backend import memory

# fp32 sums of up to 300 products, relative to the largest result.
FP32 = 2e-6
# One rounding of the result to 8 or 11 bits.
STORAGE = {ms.float32: FP32, ms.bfloat16: 2**-8, ms.float16: 2**-10}
DTYPES = pytest.mark.parametrize("dtype", list(STORAGE), ids=str)
RNG = np.random.RandomState(11)


def pair(array, dtype, strided=False):
    """(tensor, the float64 values it holds)."""
    made = (ref.transposed if strided else ref.tensor)(array, dtype)
    return made, ref.values(made)


LINEAR = pytest.mark.parametrize(
    "rows,inputs,outputs",
    [
        ((3, 2), 5, 7),
        ((1,), 1, 1),
        ((67,), 33, 129),
        ((2, 150), 300, 65),
        ((0,), 4, 3),
        ((4,), 3, 0),
    ],
    ids=str,
)


@LINEAR
@DTYPES
@pytest.mark.parametrize("strided", [False, True], ids=["dense", "strided"])
def test_linear_products_match_float64(rows, inputs, outputs, dtype, strided):
    if strided and 0 in (*rows, inputs, outputs):
        strided = False
    x, x64 = pair(RNG.randn(*rows, inputs), dtype, strided)
    w, w64 = pair(RNG.randn(outputs, inputs), dtype, strided)
    bias, bias64 = pair(RNG.randn(outputs), dtype)
    dy, dy64 = pair(RNG.randn(*rows, outputs), dtype, strided)
    count = int(np.prod(rows))
    flat_x, flat_dy = x64.reshape(count, inputs), dy64.reshape(count, outputs)
    tolerance = STORAGE[dtype]
    ref.assert_close(ref.values(ops.linear_forward(x, w)), x64 @ w64.T, tolerance)
    ref.assert_close(ref.values(ops.linear_forward(x, w, bias)), x64 @ w64.T + bias64, tolerance)
    ref.assert_close(ref.values(ops.linear_dgrad(dy, w)), dy64 @ w64, tolerance)
    ref.assert_close(ref.values(ops.linear_wgrad(dy, x)), flat_dy.T @ flat_x, tolerance)
    ref.assert_close(ref.values(ops.bias_grad(dy)), flat_dy.sum(0), tolerance)
    start = RNG.randn(outputs, inputs).astype("f4")
    main_grad = ref.tensor(start)
    ops.linear_wgrad_accumulate(dy, x, main_grad)
    # The accumulator is fp32 for every storage type.
    ref.assert_close(ref.values(main_grad), start + flat_dy.T @ flat_x, FP32)


def test_wgrad_accumulates_into_a_view_of_a_flat_buffer():
    flat = memory.zeros((50,))
    view = memory.view_of(flat, 7, (4, 5))
    dy, dy64 = pair(RNG.randn(6, 4), ms.float32)
    x, x64 = pair(RNG.randn(6, 5), ms.float32)
    for _ in range(2):
        ops.linear_wgrad_accumulate(dy, x, view)
    want = np.zeros(50)
    want[7:27] = 2 * (dy64.T @ x64).reshape(-1)
    ref.assert_close(ref.values(flat), want, FP32)


def cross_entropy_case(dtype, vocab=37, start=10):
    logits, logits64 = pair(RNG.randn(3, 4, vocab) * 4, dtype)
    target = RNG.randint(0, start + vocab + 9, (3, 4))
    target[0, :3] = (start, start + vocab - 1, start + vocab)
    return logits, logits64, target, start


@DTYPES
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_pieces_match_float64(dtype, smoothing):
    logits, logits64, target, start = cross_entropy_case(dtype)
    before = ref.values(logits).copy()
    vocab, total = logits64.shape[-1], 64
    row_max = ops.ce_max(logits)
    ref.assert_close(ref.values(row_max), logits64.max(-1), 1e-7)
    local = target - start
    here = (local >= 0) & (local < vocab)
    picked = np.take_along_axis(logits64, np.where(here, local, 0)[..., None], -1)[..., 0]
    shift = ref.values(row_max) + 0.5  # as if another partition held a larger logit
    for ints in (np.int32, np.int64):
        target_t = ms.Tensor(target.astype(ints))
        sum_exp, predicted = ops.ce_sum(logits, target_t, ref.tensor(shift), start)
        want_sum = np.exp(logits64 - np.float32(shift)[..., None].astype("f8")).sum(-1)
        ref.assert_close(ref.values(sum_exp), want_sum, FP32)
        ref.assert_close(ref.values(predicted), np.where(here, picked, 0), 1e-7)
        ref.assert_close(ref.values(ops.ce_sum_logits(logits)), logits64.sum(-1), FP32)
        dloss = RNG.randn(3, 4)
        given = logits, target_t, (ref.tensor(shift), sum_exp), ref.tensor(dloss), start
        grad = ops.ce_backward(*given, smoothing, total)
        wanted = np.full(logits64.shape, smoothing / total)
        rows = np.nonzero(here)
        wanted[(*rows, local[rows])] += 1 - smoothing
        probs = np.exp(logits64 - shift[..., None]) / want_sum[..., None]
        ref.assert_close(ref.values(grad), (probs - wanted) * dloss[..., None], STORAGE[dtype])
    assert grad.dtype == dtype and sum_exp.dtype == ms.float32
    assert np.array_equal(ref.values(logits), before), "logits must not change"
    spent = ops.ce_backward(*given, smoothing, total, spends_logits=True)
    assert np.array_equal(ref.values(spent), ref.values(grad))
    if ops.selected() == "cpu":
        assert spent.data_ptr() == logits.data_ptr()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_whole_rows_matches_float64(smoothing):
    logits64 = np.float32(RNG.randn(3, 4, 9) * 5).astype("f8")
    target = RNG.randint(0, 9, (3, 4))
    shift = logits64.max(-1) + 0.25
    parts = [shift, np.exp(logits64 - shift[..., None]).sum(-1)]
    parts += [np.take_along_axis(logits64, target[..., None], -1)[..., 0], logits64.sum(-1)]
    parts = [ref.tensor(part) for part in parts]
    got = ops.ce_loss(*(parts if smoothing else parts[:3]), smoothing=smoothing, vocab_size=9)
    log_probs = logits64 - np.log(np.exp(logits64).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_probs, target[..., None], -1)[..., 0]
    want = -(1 - smoothing) * picked - smoothing * log_probs.mean(-1)
    ref.assert_close(ref.values(got), want, FP32)


def test_cross_entropy_pieces_take_strided_and_empty_logits():
    logits = RNG.randn(4, 3, 9)
    target = ms.Tensor(RNG.randint(0, 9, (4, 3)))
    dense, strided = ref.tensor(logits), ref.transposed(logits)
    row_max = ops.ce_max(strided)
    assert np.array_equal(ref.values(row_max), ref.values(ops.ce_max(dense)))
    for a, b in zip(
        ops.ce_sum(dense, target, row_max, 0), ops.ce_sum(strided, target, row_max, 0), strict=True
    ):
        assert np.array_equal(ref.values(a), ref.values(b))
    nothing, rows = memory.zeros((0, 9)), memory.zeros((0,))
    no_target = ms.Tensor(np.zeros((0,), np.int64))
    assert ops.ce_max(nothing).shape == (0,)
    assert ops.ce_sum(nothing, no_target, rows, 0)[0].shape == (0,)
    assert ops.ce_backward(nothing, no_target, (rows, rows), rows, 0).shape == (0, 9)


@DTYPES
def test_embedding_gradient_accumulates(dtype):
    ids = RNG.randint(0, 12, (5, 7))
    dy, dy64 = pair(RNG.randn(5, 7, 6), dtype)
    start = RNG.randn(8, 6).astype("f4")
    want = start.astype("f8")
    for index in np.ndindex(5, 7):
        if 2 <= ids[index] < 10:
            want[ids[index] - 2] += dy64[index]
    for ints in (np.int32, np.int64):
        main_grad = ref.tensor(start)
        ops.embedding_wgrad_accumulate(dy, ms.Tensor(ids.astype(ints)), main_grad, 2)
        ref.assert_close(ref.values(main_grad), want, FP32)


@pytest.mark.parametrize("size", [1, 7, 1000, 70001])
def test_adamw_follows_the_float64_recurrence(size):
    options = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    p64, m64, v64 = RNG.randn(size), np.zeros(size), np.zeros(size)
    p, m, v = ref.tensor(p64), ref.tensor(m64), ref.tensor(v64)
    p64 = ref.values(p)
    for step in range(1, 4):
        grad, g64 = pair(RNG.randn(size), ms.float32)
        ops.adamw_(p, grad, m, v, step=step, grad_scale=0.5, **options)
        g64 = 0.5 * g64
        p64 = p64 * (1 - 1e-2 * 0.1)
        m64, v64 = 0.9 * m64 + 0.1 * g64, 0.95 * v64 + 0.05 * g64**2
        root = np.sqrt(v64 / (1 - 0.95**step)) + 1e-8
        p64 = p64 - 1e-2 / (1 - 0.9**step) * m64 / root
    # A few fp32 roundings per step of values near one.
    ref.assert_close(ref.values(p), p64, 5e-7, floor=1.0)
    ref.assert_close(ref.values(m), m64, 5e-7, floor=1.0)
    ref.assert_close(ref.values(v), v64, 5e-7, floor=1.0)


@pytest.mark.parametrize("size", [0, 1, 5, 1003, 300007])
def test_flat_arithmetic_matches_float64(size):
    y, y64 = pair(RNG.randn(size), ms.float32)
    for dtype in STORAGE:
        x, x64 = pair(RNG.randn(size), dtype)
        ops.axpy_(y, x, 0.3)
        y64 = y64 + 0.3 * x64
        assert abs(ops.l2_norm_squared(x) - (x64**2).sum()) <= 1e-12 * (x64**2).sum()
    ref.assert_close(ref.values(y), y64, 3e-7, floor=1.0)
    ops.scale_(y, 0.25)
    ref.assert_close(ref.values(y), 0.25 * y64, 3e-7, floor=1.0)


@DTYPES
def test_count_zeros_counts_both_zeros(dtype):
    array = RNG.randn(1017)
    array[[0, 5, 1016]] = 0.0
    array[9] = -0.0
    assert ops.count_zeros(ref.tensor(array, dtype)) == 4
    assert ops.count_zeros(memory.zeros((0,), dtype)) == 0


@DTYPES
@pytest.mark.parametrize("other", list(STORAGE), ids=str)
def test_copy_cast_rounds_to_nearest_even(dtype, other):
    source = np.concatenate((RNG.randn(1001), [1 + 2**-9, 1 + 3 * 2**-9, 1e-6, 7e4, -3e-8]))
    src, src64 = pair(source, dtype)
    dst = memory.zeros((source.size,), other)
    ops.copy_cast_(dst, src)
    with np.errstate(over="ignore"):
        want = ref.values(ref.tensor(src64, other))
    assert np.array_equal(ref.values(dst), want)


def test_copy_cast_keeps_infinity_and_nan():
    for dtype in (ms.bfloat16, ms.float16):
        dst = memory.zeros((4,), dtype)
        bits = np.array([0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF], np.uint32)
        ops.copy_cast_(dst, ms.Tensor.from_numpy(bits.view(np.float32)))
        got = ref.values(dst)
        assert got[0] == np.inf and got[1] == -np.inf and np.all(np.isnan(got[2:]))


def test_strided_sources_are_read_in_order():
    array = RNG.randn(6, 10)
    strided = ref.transposed(array)
    dst, y = memory.zeros((60,)), memory.zeros((6, 10))
    ops.copy_cast_(dst, strided)
    ops.axpy_(y, strided)
    want = ref.values(ref.tensor(array))
    assert np.array_equal(ref.values(dst), want.reshape(-1))
    assert np.array_equal(ref.values(y), want)


def test_sums_repeat_bit_by_bit():
    t = ref.tensor(RNG.randn(100003))
    assert len({ops.l2_norm_squared(t) for _ in range(5)}) == 1
    dy, x = ref.tensor(RNG.randn(300, 70)), ref.tensor(RNG.randn(300, 50))
    first = ref.values(ops.linear_wgrad(dy, x))
    assert all(np.array_equal(first, ref.values(ops.linear_wgrad(dy, x))) for _ in range(3))


X = np.ones((3, 4))
INVALID = {
    "type": (lambda: ops.silu(ms.Tensor([1, 2])), "use float32"),
    "mixed types": (
        lambda: ops.rms_norm(ref.tensor(X), ref.tensor(X[0], ms.float16), 1e-5),
        "cast",
    ),
    "vector": (lambda: ops.rms_norm(ref.tensor(X), ref.tensor(X[:, 0]), 1e-5), r"must be \(4,\)"),
    "approximate": (lambda: ops.gelu(ref.tensor(X), approximate="erf"), "'none' or 'tanh'"),
    "swiglu": (lambda: ops.swiglu(ref.tensor(X[:, :3])), "odd"),
    "gated": (lambda: ops.gated(ref.tensor(X[:, :3]), None, "silu"), "odd"),
    "gate": (lambda: ops.gated(ref.tensor(X), None, "sine"), "use gelu"),
    "probability": (lambda: ops.dropout(ref.tensor(X), 1.0, None), r"\[0, 1\)"),
    "generator": (lambda: ops.dropout(ref.tensor(X), 0.5, None), "without a generator"),
    "residual": (
        lambda: ops.bias_dropout_add(ref.tensor(X), None, ref.tensor(X[:2]), 0.0, None),
        "must be equal",
    ),
    "ids": (lambda: ops.embedding(ref.tensor(X), ref.tensor(X)), "int32 or int64"),
    "linear": (lambda: ops.linear_forward(ref.tensor(X), ref.tensor(X.T)), "dimension 1"),
    "dgrad": (lambda: ops.linear_dgrad(ref.tensor(X), ref.tensor(X)), "dimension 0"),
    "wgrad": (lambda: ops.linear_wgrad(ref.tensor(X), ref.tensor(X[:2])), "one forward"),
    "main_grad": (
        lambda: ops.linear_wgrad_accumulate(ref.tensor(X), ref.tensor(X), ref.tensor(X)),
        r"must be \(4, 4\)",
    ),
    "strided main_grad": (
        lambda: ops.linear_wgrad_accumulate(
            ref.tensor(X), ref.tensor(X), ref.transposed(np.ones((4, 4)))
        ),
        "not contiguous",
    ),
    "target": (lambda: ops.ce_sum(ref.tensor(X), ms.Tensor([1]), ref.tensor([1.0]), 0), "per row"),
    "flat": (lambda: ops.scale_(ref.tensor(X, ms.bfloat16), 1.0), "Float32"),
    "step": (
        lambda: ops.adamw_(
            *(ref.tensor(X) for _ in range(4)),
            lr=1,
            beta1=0,
            beta2=0,
            eps=1,
            weight_decay=0,
            step=0,
        ),
        "count from 1",
    ),
    "axpy": (lambda: ops.axpy_(ref.tensor(X), ref.tensor(X[:2])), "must be equal"),
    "copy": (lambda: ops.copy_cast_(ref.tensor(X), ref.tensor(X[:2])), "must be equal"),
    "attention rank": (
        lambda: ops.attention(ref.tensor(X), ref.tensor(X), ref.tensor(X), scale=1),
        r"\[S, B, N, D\]",
    ),
    "attention groups": (
        lambda: ops.attention(*(ref.tensor(np.ones((2, 1, n, 4))) for n in (3, 2, 2)), scale=1),
        "a multiple",
    ),
    "mask": (
        lambda: ops.softmax(ref.tensor(np.ones((2, 1, 3, 4))), ms.Tensor(np.ones((3, 4), bool))),
        "must be Bool",
    ),
    "rotary": (
        lambda: ops.rotary(
            ref.tensor(np.ones((2, 1, 1, 4))), *[ref.tensor(np.ones((2, 1, 1, 6)))] * 2
        ),
        "at most the head size",
    ),
}


@pytest.mark.parametrize("case", sorted(INVALID))
def test_invalid_arguments_are_refused_with_the_rule(case):
    call, message = INVALID[case]
    with pytest.raises(ValueError, match=message):
        call()


@DTYPES
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_pieces_match_float64(dtype, temperature):
    logits, logits64 = pair(RNG.randn(3, 4, 37) * 4, dtype)
    teacher, teacher64 = pair(RNG.randn(3, 4, 37) * 4, dtype)

    def softmax(values):
        shares = np.exp((values - values.max(-1, keepdims=True)) / temperature)
        return shares / shares.sum(-1, keepdims=True)

    p, q = softmax(logits64), softmax(teacher64)
    tops = ops.ce_max(logits), ops.ce_max(teacher)
    own, theirs, both = ops.kl_parts(logits, teacher, *tops, temperature)
    found = ops.kl_loss(own, theirs, both, temperature)
    wanted = temperature**2 * (q * np.log(q / p)).sum(-1)
    ref.assert_close(ref.values(found), wanted, 1e-5)
    dloss = RNG.randn(3, 4)
    grad = ops.kl_backward(logits, teacher, tops, (own, theirs), ref.tensor(dloss), temperature)
    ref.assert_close(ref.values(grad), temperature * (p - q) * dloss[..., None], STORAGE[dtype])
    assert grad.dtype == dtype
