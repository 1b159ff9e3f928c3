# SPDX-License-Identifier: Apache-2.0
"""The native library beyond small cases: many blocks, every instruction set, every thread count."""

from __future__ import annotations

import ctypes
from pathlib import Path

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import cpu, portable
from mindspeed_ms.ops.cpu import library, products, timing

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason="no native library was built")

FOLDER = Path(library.__file__).parent
LEVELS = dict(reversed(library.candidates(library.cpu_flags(), FOLDER)))
HAS_TILES = "avx512" in LEVELS and products.find("auto", library.cpu_flags()).tiles > 0
# Two fp32 results with sums over a few hundred products in different order.
FP32 = 3e-6
RNG = np.random.RandomState(5)


@pytest.fixture(params=[*sorted(LEVELS), *(["tiles"] if HAS_TILES else [])])
def level(request, monkeypatch):
    """Run with the library of one instruction set, with two threads, and on the tile unit."""
    name = "avx512" if request.param == "tiles" else request.param
    loaded = library.Library(name, LEVELS[name])
    loaded.set_threads(2)
    tiles = products.ALL_TYPES if request.param == "tiles" else 0
    loaded.use_products(products.Products(tiles=tiles))
    assert loaded.products.tiles == tiles
    monkeypatch.setattr(library.loading(), "library", loaded)
    monkeypatch.setattr(library.native, "__dict__", {})  # entry points are looked up anew
    assert library.native.linear_forward is loaded.linear_forward
    return request.param


@pytest.fixture(autouse=True)
def restore_settings():
    """Leave threads and products as they were; a file is loaded once, whoever opens it."""
    before = library.library()
    threads = before.get_threads()
    yield
    before.set_threads(threads)
    before.use_products(before.products)


def attention_arguments(sq, sk, b, n, g, d, dtype=ms.float32):
    shapes = [(sq, b, n, d), (sk, b, g, d), (sk, b, g, d)]
    return [ref.tensor(RNG.randn(*shape), dtype) for shape in shapes]


def outputs_of(module, name, arrays, dy, *args, **kwargs):
    """(y, gradients) of an operation of one kernel set."""
    leaves = [None if a is None else ref.leaf(ref.tensor(a)) for a in arrays]
    ref.autograd.enable()
    op = ref.attention_of(module) if name == "attention" else getattr(module, name)
    y = op(*leaves, *args, **kwargs)
    ref.autograd.backward(y, ref.tensor(dy))
    grads = [ref.values(ref.autograd.get_grad(one)) for one in leaves if one is not None]
    return [ref.values(y), *grads]


def compare(name, arrays, dy, *args, **kwargs):
    want = outputs_of(portable, name, arrays, dy, *args, **kwargs)
    got = outputs_of(cpu, name, arrays, dy, *args, **kwargs)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        ref.assert_close(a, b, FP32, f"{name} {index}")


@pytest.mark.parametrize(
    "sizes,kind",
    [
        ((200, 200, 2, 4, 2, 40), "causal"),
        ((129, 257, 1, 2, 1, 64), "causal"),
        ((70, 130, 2, 2, 2, 33), "full"),
        ((150, 150, 2, 4, 1, 16), "mask"),
        ((150, 150, 1, 2, 2, 20), "dropout"),
        ((100, 65, 1, 2, 1, 8), "causal"),
    ],
    ids=str,
)
def test_blocked_attention_matches_the_definition(level, sizes, kind):
    sq, sk, b, n, g, d = sizes
    mask = None
    if kind == "mask":
        hidden = RNG.rand(b, 1, sq, sk) < 0.5
        hidden[0, 0, 3] = True
        hidden[:, :, :, 64:128] |= RNG.rand(b, 1, sq, 1) < 0.5  # whole blocks without a key
        mask = ms.Tensor(hidden)
    arrays = [RNG.randn(sq, b, n, d), RNG.randn(sk, b, g, d), RNG.randn(sk, b, g, d)]
    dy = RNG.randn(sq, b, n * d)
    options = {"scale": d**-0.5, "causal": kind == "causal", "mask": mask}
    options["dropout_p"] = 0.2 if kind == "dropout" else 0.0
    results = []
    for module in (portable, cpu):
        results.append(
            outputs_of(module, "attention", arrays, dy, generator=Generator(7, 40), **options)
        )
    for want, got in zip(*results, strict=True):
        ref.assert_close(got, want, FP32, kind)


@pytest.mark.parametrize(
    "name,shapes,args",
    [
        ("rms_norm", [(300, 515), (515,)], (1e-5,)),
        ("layer_norm", [(300, 515), (515,), (515,)], (1e-5,)),
        ("gelu", [(130, 259), (259,)], ("none",)),
        ("gelu", [(130, 259), (259,)], ("tanh",)),
        ("swiglu", [(130, 518), (518,)], ()),
        ("gated", [(130, 518), (518,)], ("quick_gelu", 0.75, 1.0, 1.702)),
        ("gated", [(130, 518), (518,)], ("gelu", None, 0.0, 1.702)),
        ("scaled", [(130, 518)], (0.3,)),
        ("softcapped", [(130, 518)], (1.5,)),
        ("softmax", [(2, 3, 100, 100)], (None, True, 0.3)),
    ],
    ids=str,
)
def test_rows_over_several_threads_match_the_definition(level, name, shapes, args):
    arrays = [RNG.randn(*shape) for shape in shapes]
    last = shapes[0][-1] // 2 if name in ("swiglu", "gated") else shapes[0][-1]
    compare(name, arrays, RNG.randn(*shapes[0][:-1], last), *args)


def test_long_sums_stay_accurate(level):
    x, w = ref.tensor(RNG.randn(40, 9000)), ref.tensor(RNG.randn(70, 9000))
    wanted = ref.values(x) @ ref.values(w).T
    ref.assert_close(ref.values(cpu.linear_forward(x, w, None)), wanted, 2e-6)


def test_products_of_rows_of_very_different_size_match_float64(level):
    scales = 10.0 ** np.linspace(-25, 15, 64)
    x, w = ref.tensor(RNG.randn(64, 200) * scales[:, None]), ref.tensor(RNG.randn(50, 200))
    wanted = ref.values(x) @ ref.values(w).T
    got = ref.values(cpu.linear_forward(x, w, None))
    ref.assert_close(got / scales[:, None], wanted / scales[:, None], 2e-6)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_products_with_a_number_that_is_not_finite_are_not_finite_there_only(level, bad):
    x, w = RNG.randn(64, 96), ref.tensor(RNG.randn(48, 96))
    x[5, 7] = bad
    got = ref.values(cpu.linear_forward(ref.tensor(x), w, None))
    assert not np.isfinite(got[5]).any()
    assert np.isfinite(np.delete(got, 5, axis=0)).all()


def test_products_and_attention_do_not_depend_on_the_threads(level):
    x, w = ref.tensor(RNG.randn(333, 1100)), ref.tensor(RNG.randn(270, 1100))
    q, k, v = attention_arguments(130, 130, 2, 4, 2, 40)
    results = []
    for threads in (1, 2, 3):
        library.set_num_threads(threads)
        y = cpu.linear_forward(x, w, None)
        out = ref.attention_of(cpu)(q, k, v, scale=0.2, causal=True)
        results.append([memory.as_numpy(t).copy() for t in (y, out)])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_threads_never_exceed_the_cores(monkeypatch):
    cores = library.device.cores()
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores + 5))
    library.loading.cache_clear()
    try:
        assert library.num_threads() == cores
        assert f"{cores} thread(s) on {cores} core(s)" in cpu.describe()
        assert f"OMP_NUM_THREADS asks for {cores + 5}" in cpu.describe()
    finally:
        library.loading.cache_clear()


def test_calls_are_measured_only_when_asked():
    x, w = ref.tensor(RNG.randn(64, 96)), ref.tensor(RNG.randn(48, 96))
    q, k, v = attention_arguments(130, 130, 1, 2, 2, 32)
    before = library.native.linear_forward
    with timing.measured() as times:
        for _ in range(3):
            cpu.linear_forward(x, w, None)
        ref.attention_of(cpu)(q, k, v, scale=0.2, causal=True)
    cpu.linear_forward(x, w, None)
    assert library.native.linear_forward is before
    assert times.calls["linear_forward", (64, 96, 48)] == 3
    assert times.of("linear_forward") > 0.0
    assert 0.0 < times.attention_product_seconds < times.attention_thread_seconds
    assert times.attention_thread_seconds < times.of("attention_forward") * 4


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16, ms.float16], ids=str)
def test_blocked_products_match_float64(level, dtype):
    tolerance = {ms.float32: 2e-6, ms.bfloat16: 2**-8, ms.float16: 2**-10}[dtype]
    x, w, dy = (ref.tensor(RNG.randn(*s), dtype) for s in [(301, 523), (777, 523), (301, 777)])
    x64, w64, dy64 = ref.values(x), ref.values(w), ref.values(dy)
    ref.assert_close(ref.values(cpu.linear_forward(x, w, None)), x64 @ w64.T, tolerance)
    ref.assert_close(ref.values(cpu.linear_dgrad(dy, w)), dy64 @ w64, tolerance)
    ref.assert_close(ref.values(cpu.linear_wgrad(dy, x)), dy64.T @ x64, tolerance)
    main_grad = memory.zeros((777, 523))
    for _ in range(2):
        cpu.linear_wgrad_accumulate(dy, x, main_grad)
    ref.assert_close(ref.values(main_grad), 2 * dy64.T @ x64, 2e-6)


@pytest.mark.parametrize("dtype", [ms.bfloat16, ms.float16], ids=str)
def test_conversions_equal_those_of_numpy(level, dtype):
    bits = RNG.randint(0, 2**32, 200000, dtype=np.uint64).astype(np.uint32)
    source = ms.Tensor.from_numpy(bits.view(np.float32))
    stored = [memory.zeros(source.shape, dtype) for _ in range(2)]
    back = [memory.zeros(source.shape) for _ in range(2)]
    for module, half, wide in zip((portable, cpu), stored, back, strict=True):
        module.copy_cast_(half, source)
        module.copy_cast_(wide, half)
    np.testing.assert_array_equal(back[0].asnumpy(), back[1].asnumpy())


def elementary(level, name, x):
    """An elementary function of the library, seen through an activation."""
    y = memory.empty(x.shape)
    library.library().activation_forward(0, name, x.ctypes.data, None, memory.address(y), 1, x.size)
    return y.asnumpy().astype("f8")


def test_exp_and_erf_are_right_to_a_few_units_in_the_last_place(level):
    x = np.linspace(-87, 88, 200001).astype("f4")
    logits = np.stack((x, np.zeros_like(x)), -1)
    top = np.zeros_like(x)
    target = np.zeros(x.shape, np.int64)
    sums, _ = cpu.ce_sum(*map(ms.Tensor, (logits, target, top)), 0)
    want = np.exp(x.astype("f8")) + 1
    # exp to 1.2e-7 and the rounding of the sum.
    assert np.max(np.abs(sums.asnumpy() - want) / want) < 2e-7
    z = np.linspace(-6, 6, 200001).astype("f4")
    got = elementary(level, 0, z)
    want = 0.5 * z * (1 + ref.ERF(z.astype("f8") / np.sqrt(2)))
    # erf to 1.3e-7, halved, plus three roundings.
    assert np.max(np.abs(got - want) / np.maximum(np.abs(z), 1e-3)) < 2e-7


def test_every_result_is_the_same_with_one_and_two_threads(level):
    x, w, dy = (RNG.randn(*s).astype("f4") for s in [(257, 130), (300, 130), (257, 300)])
    q, k, v = (t.asnumpy() for t in attention_arguments(130, 130, 2, 4, 2, 24))
    results = []
    for threads in (1, 2):
        library.set_num_threads(threads)
        assert library.num_threads() == threads
        tensors = [ms.Tensor(a) for a in (x, w, dy)]
        main_grad = memory.zeros((300, 130))
        cpu.linear_wgrad_accumulate(tensors[2], tensors[0], main_grad)
        flat = ms.Tensor(RNG.__class__(1).randn(100001).astype("f4"))
        results.append(
            [
                cpu.linear_forward(tensors[0], tensors[1], None).asnumpy(),
                cpu.linear_dgrad(tensors[2], tensors[1]).asnumpy(),
                main_grad.asnumpy(),
                cpu.bias_grad(tensors[2]).asnumpy(),
                np.float64(cpu.l2_norm_squared(flat)),
                np.int64(cpu.count_zeros(flat)),
                *outputs_of(cpu, "rms_norm", [x, x[0]], x, 1e-5),
                *outputs_of(cpu, "gelu", [x, x[0]], x, "none"),
                *outputs_of(
                    cpu,
                    "attention",
                    [q, k, v],
                    q.reshape(130, 2, 96),
                    scale=0.2,
                    causal=True,
                    mask=None,
                    dropout_p=0.1,
                    generator=Generator(3),
                ),
            ]
        )
    for one, two in zip(*results, strict=True):
        assert np.array_equal(one, two)


def test_attention_refuses_a_mask_per_head():
    q, k, v = attention_arguments(3, 3, 1, 2, 2, 4)
    with pytest.raises(ValueError, match="differs between heads"):
        cpu.attention(
            q, k, v, ms.Tensor(np.zeros((1, 2, 3, 3), bool)), None, ops.AttentionCall(scale=1.0)
        )


def test_the_library_is_a_plain_shared_object():
    for path in LEVELS.values():
        assert hasattr(ctypes.CDLL(str(path)), "set_threads")
    assert ops.report()
