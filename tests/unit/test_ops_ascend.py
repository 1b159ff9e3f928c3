"""The Ascend call path, with recorders in place of the fused kernels that need an NPU.

Each recorder binds the call against the signature of the installed MindSpore (or, where that is not
to be had, against the documented one), checks the layout rules of its documentation, and computes
the result with the portable definitions, so that every line of the path runs and the numbers can be
compared.
"""

from __future__ import annotations

import importlib
import inspect

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from mindspore import Tensor, mint

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import ascend, portable
from mindspeed_ms.ops.ascend import flat as ascend_flat
from mindspeed_ms.ops.ascend.dropout import philox_words as device_words
from mindspeed_ms.ops.portable.arrays import store, tensor_of, wide
from mindspeed_ms.ops.portable.attention import masked_softmax
from mindspeed_ms.ops.portable.dropout import keep_scale_of_words, philox_words

# The package exports the function of this name.
ascend_attention = importlib.import_module("mindspeed_ms.ops.ascend.attention")
RNG = np.random.RandomState(3)
# MindSpore's CPU exp, sums and tanh, which the composed parts use here, are right to 1e-5.
STOCK = 3e-5


class Recorder:
    """Stands for a kernel: binds the arguments and computes with ``stand_in``."""

    def __init__(self, real, stand_in, signature=None):
        self.signature = signature or inspect.signature(real)
        self.stand_in = stand_in
        self.calls = []

    def __call__(self, *args, **kwargs):
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        self.calls.append(bound.arguments)
        return self.stand_in(**bound.arguments)


def documented(text):
    """Signature of a function whose Python object only says (*args, **kwargs)."""
    scope = {}
    exec(f"def f({text}): ...", scope)  # noqa: S102 - a literal of this file
    return inspect.signature(scope["f"])


def flash(query, key, value, head_num, drop_mask, attn_mask, keep_prob, scalar_value, **rest):
    """The documented meaning of FlashAttentionScore in layouts SBH and TND."""
    if rest["input_layout"] == "TND":
        return flash_of_lengths(query, key, value, head_num, attn_mask, scalar_value, **rest)
    assert rest["input_layout"] == "SBH"
    assert query.dtype in (ms.float16, ms.bfloat16), "the kernel takes no fp32"
    s, b, h = query.shape
    d, keys = h // head_num, key.shape[0]
    assert d % 16 == 0
    q, k, v = wide(query), wide(key), wide(value)
    groups = k.shape[2] // d
    q = q.reshape(s, b, head_num, d)
    k, v = (np.repeat(t.reshape(keys, b, groups, d), head_num // groups, 2) for t in (k, v))
    hidden = None
    if rest["sparse_mode"] == 3:
        assert attn_mask.shape == (2048, 2048) and attn_mask.asnumpy()[5, 6] == 1
        hidden = np.triu(np.ones((s, keys), bool), 1 + keys - s)
    elif rest["sparse_mode"] == 1:
        assert attn_mask.shape == (b, 1, s, keys)
        hidden = attn_mask.asnumpy()
    else:
        assert attn_mask is None
    probs = masked_softmax(np.einsum("ibnd,jbnd->bnij", q, k) * scalar_value, hidden)
    if drop_mask is not None:
        assert drop_mask.shape == (b, head_num, s, keys // 8) and drop_mask.dtype == ms.uint8
        bits = np.unpackbits(drop_mask.asnumpy(), axis=-1, bitorder="little")
        probs = probs * bits / keep_prob
    else:
        assert keep_prob == 1.0
    return tensor_of(np.einsum("bnij,jbnd->ibnd", probs, v).reshape(s, b, h), query.dtype)


def flash_of_lengths(query, key, value, head_num, attn_mask, scalar_value, **rest):
    """Layout TND: sequences of given lengths one after the other, causal inside with mode 3."""
    assert rest["sparse_mode"] == (0 if attn_mask is None else 3)
    assert rest["actual_seq_qlen"] == rest["actual_seq_kvlen"]
    assert rest["actual_seq_qlen"][-1] == query.shape[0] and query.shape[1] == head_num
    parts, start = [], 0
    for end in rest["actual_seq_qlen"]:
        tensors = [tensor_of(wide(t)[start:end, None]) for t in (query, key, value)]
        call = ops.AttentionCall(scale=scalar_value, causal=attn_mask is not None)
        parts.append(wide(portable.attention(*tensors, None, call)))
        start = end
    return tensor_of(np.concatenate(parts).reshape(query.shape), query.dtype)


def flash_statistics(options, query, key, value, drop_mask, attn_mask, **rest):
    """The four outputs of the operator; the third one is not used."""
    heads, keep, scale, mode = options
    layout = {"input_layout": "SBH", "sparse_mode": mode}
    out = flash(query, key, value, heads, drop_mask, attn_mask, keep, scale, **layout)
    q, k, v = (by_head(t) for t in (query, key, value))
    sums = (memory.zeros((*q.shape[:2], q.shape[2] * 16)), tensor_of(np.full(q.shape[:3], -np.inf)))
    mask, call = hiding(attn_mask, mode, scale)
    portable.attention_accumulate(q, k, v, mask, *sums, call)
    lse = wide(sums[1]).transpose(1, 2, 0)[..., None]
    top = np.floor(lse)
    copies = [np.repeat(a, 8, axis=-1) for a in (top, np.exp(lse - top))]
    return *map(tensor_of, copies), None, out


def by_head(t):
    """[S, B, H] -> [S, B, N or G, 16] in fp32."""
    return tensor_of(wide(t).reshape(*t.shape[:2], -1, 16))


def hiding(attn_mask, mode, scale):
    """The portable definition's mask and options for those of the fused kernel."""
    return attn_mask if mode == 1 else None, ops.AttentionCall(scale=scale, causal=mode == 3)


def flash_grad(options, query, key, value, dy, **rest):
    """dq, dk, dv of the documented operator, from the statistics it is given."""
    _, keep, scale, mode = options
    assert rest["softmax_max"].shape == rest["softmax_sum"].shape
    assert np.all(wide(rest["softmax_sum"]) == 1) and rest["softmax_max"].shape[3] == 8
    assert rest["drop_mask"] is None and keep == 1.0
    q, k, v, out, dout = (by_head(t) for t in (query, key, value, rest["attention_in"], dy))
    lse = tensor_of(wide(rest["softmax_max"])[..., 0].transpose(2, 0, 1))
    grads = tuple(memory.zeros(t.shape) for t in (q, k, v))
    mask, call = hiding(rest["atten_mask"], mode, scale)
    portable.attention_backward_accumulate(q, k, v, mask, out, lse, dout, grads, call)
    shapes = zip(grads, (query, key, value), strict=True)
    return *(tensor_of(wide(g).reshape(t.shape), t.dtype) for g, t in shapes), None


def fused_rotary(x, cos, sin, mode):
    """The documented meaning for x [S, B, N, D]; mode 1 takes tables S11D only."""
    assert cos.dtype == x.dtype == sin.dtype
    assert cos.shape[1] == 1 or mode == 0
    return portable.rotary(x, cos.astype(ms.float32), sin.astype(ms.float32), mode == 1)


def fused_adamw(  # noqa: PLR0913
    var, m, v, max_v, gradient, step, lr, beta1, beta2, decay, eps, amsgrad, maximize
):
    assert not amsgrad and not maximize and max_v is v and step.dtype == ms.float32
    portable.adamw_(
        var,
        gradient,
        m,
        v,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=decay,
        step=int(step.item()),
        grad_scale=1.0,
    )


def in_place(function):
    """Tensor method that writes ``function(self, other)`` into the tensor, as on an NPU."""

    def method(self, other, alpha=1.0):
        store(
            self, function(wide(self), wide(other) if isinstance(other, Tensor) else other, alpha)
        )
        return self

    return method


@pytest.fixture(autouse=True)
def recorders(monkeypatch):
    """Replace everything that MindSpore cannot do on CPU; returns the recorders by name."""
    functional = mint.nn.functional
    stand_ins = {
        "layer_norm": (
            functional,
            lambda input, weight, bias, eps, **_: portable.layer_norm(input, weight, bias, eps),
        ),
        "gelu": (functional, lambda input, approximate: portable.gelu(input, None, approximate)),
        "embedding": (functional, lambda input, weight, **_: portable.embedding(weight, input, 0)),
        "rms_norm": (
            ms.ops,
            lambda x, gamma, epsilon: (portable.rms_norm(x, gamma, epsilon), None),
        ),
        "swiglu": (ms.ops, lambda input, dim: portable.swiglu(input, None)),
        "rotary_position_embedding": (ms.ops, fused_rotary),
        "flash_attention_score": (ms.ops, flash),
    }
    signatures = {"gelu": documented("input, *, approximate='none'")}
    made = {}
    for name, (place, stand_in) in stand_ins.items():
        made[name] = Recorder(getattr(place, name), stand_in, signatures.get(name))
        monkeypatch.setattr(place, name, made[name])
    call = inspect.signature(ascend_flat.auto_generate.AdamW.__call__)
    parameters = list(call.parameters.values())[1:]
    made["adamw"] = Recorder(None, fused_adamw, call.replace(parameters=parameters))
    monkeypatch.setattr(ascend_flat, "_fused_adamw", lambda: made["adamw"])
    for name, maker, kind, stand_in in (
        ("flash_part", "_flash", "FlashAttentionScore", flash_statistics),
        ("flash_gradient", "_flash_grad", "FlashAttentionScoreGrad", flash_grad),
    ):
        real = getattr(ascend_attention.auto_generate, kind)
        parameters = list(inspect.signature(real.__call__).parameters.values())[1:]
        made[name] = Recorder(None, None, inspect.Signature(parameters))
        construction = inspect.signature(real.__init__)

        def make(*options, recorder=made[name], compute=stand_in, construction=construction):
            construction.bind(None, *options, input_layout="SBH", sparse_mode=options[3])
            recorder.stand_in = lambda **tensors: compute(options, **tensors)
            return recorder

        monkeypatch.setattr(ascend_attention, maker, make)
    monkeypatch.setattr(Tensor, "add_", in_place(lambda a, b, alpha: a + np.float32(alpha) * b))
    monkeypatch.setattr(Tensor, "mul_", in_place(lambda a, b, _: a * np.float32(b)))
    monkeypatch.setattr(Tensor, "copy_", in_place(lambda a, b, _: b))
    return made


def compare(name, arrays, *args, dtype=ms.float32, tolerance=STOCK, grads=True, **kwargs):
    """Forward and gradients of the Ascend path against the portable definition."""
    results = []
    for module in (portable, ascend):
        leaves = [None if a is None else ref.leaf(ref.tensor(a, dtype)) for a in arrays]
        rest = {key: value() if callable(value) else value for key, value in kwargs.items()}
        extra = [a() if callable(a) else a for a in args]
        autograd.enable()
        # Not leaves themselves: the gradient of a sum of two leaves needs a kernel absent on CPU.
        inputs = [None if one is None else mint.mul(one, 1.0) for one in leaves]
        op = ref.attention_of(module) if name == "attention" else getattr(module, name)
        y = op(*inputs, *extra, **rest)
        outputs = [y]
        if grads:
            dy = ref.tensor(np.cos(np.arange(y.size)).reshape(y.shape), dtype)
            autograd.backward(y, dy)
            outputs += [autograd.get_grad(one) for one in leaves if one is not None]
        results.append([ref.values(t) for t in outputs])
    for want, got in zip(*results, strict=True):
        ref.assert_close(got, want, tolerance, name)


X, VECTOR = RNG.randn(3, 2, 8), RNG.randn(8)


@pytest.mark.parametrize(
    "name,arrays,args",
    [
        ("layer_norm", [X, VECTOR, VECTOR], (1e-5,)),
        ("rms_norm", [X, VECTOR], (1e-5,)),
        ("gelu", [X, VECTOR], ("none",)),
        ("gelu", [X, None], ("tanh",)),
        ("silu", [X, VECTOR], ()),
        ("squared_relu", [X, VECTOR], ()),
        ("swiglu", [X, VECTOR], ()),
        ("dropout", [X], (0.3, lambda: Generator(9, 8))),
        ("bias_dropout_add", [X, VECTOR, X], (0.3, lambda: Generator(9, 8))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pointwise_operations_match_the_definition(name, arrays, args):
    compare(name, arrays, *args)


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("rot,tables", [(8, 1), (4, 1), (8, 3), (4, 3)])
def test_rotary_matches_the_definition(interleaved, rot, tables):
    angles = RNG.randn(5, tables, 1, rot)
    cos, sin = ref.tensor(np.cos(angles)), ref.tensor(np.sin(angles))
    compare("rotary", [RNG.randn(5, 3, 2, 8)], cos, sin, interleaved)


def test_split_qkv_matches_the_definition():
    x = ref.tensor(RNG.randn(3, 2, 2 * 4 * 5))
    for want, got in zip(portable.split_qkv(x, 2, 2, 5), ascend.split_qkv(x, 2, 2, 5), strict=True):
        np.testing.assert_array_equal(ref.values(got), ref.values(want))


@pytest.mark.parametrize("kind", ["causal", "full", "mask", "mask+causal", "dropout"])
@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16], ids=str)
def test_attention_matches_the_definition(kind, dtype, recorders):
    sq, sk, b, n, g, d = 8, 16, 2, 4, 2, 16
    mask = None
    if "mask" in kind:
        hidden = RNG.rand(1, 1, sq, sk) < 0.4
        hidden[..., 0] = False
        mask = Tensor(hidden)
    compare(
        "attention",
        [RNG.randn(sq, b, n, d), RNG.randn(sk, b, g, d), RNG.randn(sk, b, g, d)],
        dtype=dtype,
        # Scores and probabilities of the definition are fp32 in both; one rounding of the result.
        tolerance=2**-8 if dtype == ms.bfloat16 else STOCK,
        grads=dtype == ms.float32,  # the stand-in of the fused kernel has no gradient
        scale=0.25,
        causal="causal" in kind,
        mask=mask,
        dropout_p=0.25 if kind == "dropout" else 0.0,
        generator=lambda: Generator(5),
    )
    assert bool(recorders["flash_attention_score"].calls) == (dtype == ms.bfloat16)


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_documents_go_to_the_kernel_as_lengths(causal, dtype, recorders):
    ids = np.array([[0, 0, 1, 1, 1, 1, 4, 4], [0, 1, 1, 2, 2, 2, 2, 2]], np.int32)
    compare(
        "attention",
        [RNG.randn(8, 2, n, 16) for n in (4, 2, 2)],
        dtype=dtype,
        tolerance=2**-8 if dtype == ms.bfloat16 else STOCK,
        grads=dtype == ms.float32,
        scale=0.25,
        causal=causal,
        documents=ops.Documents(ids, ids),
    )
    calls = recorders["flash_attention_score"].calls
    assert bool(calls) == (dtype == ms.bfloat16)
    for call in calls:
        assert call["actual_seq_qlen"] == [2, 6, 8, 9, 11, 16]


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["causal", "full", "documents", "mask"])
def test_accumulated_attention_matches_the_definition(kind, dtype, recorders):
    s, keys, b, n, g, d = 8, 16, 2, 4, 2, 16
    parts = [[RNG.randn(*shape) for shape in [(keys, b, g, d)] * 2] for _ in range(2)]
    q, dy = RNG.randn(s, b, n, d), RNG.randn(s, b, n * d)
    documents = mask = None
    if kind == "documents":
        numbers = [np.sort(RNG.randint(0, 3, (b, size)), axis=1) for size in (s, keys)]
        documents = ops.Documents(*numbers)
        documents.keys[:, -1] = documents.queries[:, -1] = 3  # nobody is left without a key
    if kind == "mask":
        hidden = RNG.rand(1, 1, s, keys) < 0.4
        hidden[..., 0] = False
        mask = Tensor(hidden)
    call = ops.AttentionCall(scale=0.25, causal=kind == "causal", documents=documents)
    results = []
    for module in (portable, ascend):
        out, lse = memory.zeros((s, b, n * d)), memory.zeros((s, b, n))
        store(lse, np.full((s, b, n), -np.inf, np.float32))
        query = ref.tensor(q, dtype)
        for k, v in parts:
            tensors = (ref.tensor(k, dtype), ref.tensor(v, dtype))
            module.attention_accumulate(query, *tensors, mask, out, lse, call)
        rounded = ref.tensor(ref.values(out), dtype)
        grads = tuple(memory.zeros(shape) for shape in [q.shape, *[parts[0][0].shape] * 2])
        for k, v in parts:
            tensors = (query, ref.tensor(k, dtype), ref.tensor(v, dtype), mask)
            dout = ref.tensor(dy, dtype)
            module.attention_backward_accumulate(*tensors, rounded, lse, dout, grads, call)
        results.append([ref.values(t) for t in (out, *grads)])
    for want, got in zip(*results, strict=True):
        ref.assert_close(got, want, 2**-6 if dtype == ms.bfloat16 else STOCK, kind)
    assert bool(recorders["flash_part"].calls) == (dtype == ms.bfloat16)
    assert bool(recorders["flash_gradient"].calls) == (dtype == ms.bfloat16)


def test_dropout_words_by_place_are_drawn_on_the_device():
    words = RNG.randint(0, 2**40, 50)
    got = ascend_attention.kept_words(0.4, 2**60 + 3, words).asnumpy()
    want = keep_scale_of_words(0.4, 2**60 + 3, words)
    assert np.array_equal(got, want > 0)


def test_attention_dropout_needs_whole_bytes_of_mask_bits():
    q, k, v = (ref.tensor(RNG.randn(4, 1, 2, 16), ms.bfloat16) for _ in range(3))
    with pytest.raises(ValueError, match="multiple of 8"):
        ref.attention_of(ascend)(
            q, k, v, scale=1.0, causal=True, dropout_p=0.5, generator=Generator(1)
        )


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_matches_the_definition(causal):
    hidden = RNG.rand(2, 1, 4, 6) < 0.5
    hidden[0, 0, 1] = True
    compare("softmax", [RNG.randn(2, 3, 4, 6)], Tensor(hidden), causal, 0.5)


def test_philox_on_the_device_draws_the_same_words():
    for seed, offset, count in [(0, 0, 9), (2**63 + 12345, 2**35 + 3, 1001), (77, 5, 1)]:
        got = device_words(seed, offset, count).asnumpy()
        assert np.array_equal(got, philox_words(seed, offset, count).astype(np.int64))


def test_linear_products_and_embedding_match_the_definition():
    x, w, dy = (ref.tensor(RNG.randn(*s)) for s in [(2, 3, 5), (4, 5), (2, 3, 4)])
    bias = ref.tensor(RNG.randn(4))
    for module_call in (
        lambda m: m.linear_forward(x, w, bias),
        lambda m: m.linear_forward(x, w, None),
        lambda m: m.linear_dgrad(dy, w),
        lambda m: m.linear_wgrad(dy, x),
        lambda m: m.bias_grad(dy),
    ):
        want = ref.values(module_call(portable))
        ref.assert_close(ref.values(module_call(ascend)), want, STOCK)
    ids = Tensor(RNG.randint(0, 9, (2, 3)))
    for call in (
        lambda m, g: m.linear_wgrad_accumulate(dy, x, g),
        lambda m, g: m.embedding_wgrad_accumulate(x, ids, g, 2),
    ):
        grads = [memory.zeros((4, 5)) for _ in range(2)]
        for module, grad in zip((portable, ascend), grads, strict=True):
            store(grad, np.ones((4, 5), np.float32))
            call(module, grad)
        ref.assert_close(ref.values(grads[1]), ref.values(grads[0]), STOCK)
    compare("embedding", [RNG.randn(4, 5)], ids, 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_pieces_match_the_definition(smoothing):
    logits, target = ref.tensor(RNG.randn(2, 3, 7)), Tensor(RNG.randint(0, 12, (2, 3)))
    row_max = portable.ce_max(logits)
    sums = portable.ce_sum(logits, target, row_max, 3)
    dloss = ref.tensor(RNG.randn(2, 3))
    for call in (
        lambda m: m.ce_max(logits),
        lambda m: m.ce_sum(logits, target, row_max, 3)[0],
        lambda m: m.ce_sum(logits, target, row_max, 3)[1],
        lambda m: m.ce_sum_logits(logits),
        lambda m: m.ce_loss(row_max, *sums, None, 0.0, 1),
        lambda m: m.ce_loss(row_max, *sums, dloss, smoothing, 14),
        lambda m: m.ce_backward(logits, target, row_max, sums[0], dloss, 3, smoothing, 14),
    ):
        ref.assert_close(ref.values(call(ascend)), ref.values(call(portable)), STOCK)


@pytest.mark.parametrize("kept", [0, 1, 4])
def test_masked_mean_matches_the_definition(kept):
    compare("masked_mean", [RNG.randn(2, 3)], Tensor(np.arange(6).reshape(2, 3) < kept), 2.0)


def test_flat_arithmetic_matches_the_definition():
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 2}
    start = [RNG.rand(20) for _ in range(4)]
    results = []
    for module in (portable, ascend):
        buffers = [ref.tensor(a) for a in start]
        module.adamw_(*buffers, grad_scale=0.5, **options)
        module.axpy_(buffers[0], ref.tensor(start[1], ms.bfloat16), 0.3)
        module.scale_(buffers[0], 0.7)
        half = memory.zeros((20,), ms.bfloat16)
        module.copy_cast_(half, buffers[0])
        results.append([*map(ref.values, (*buffers, half))])
        results[-1].append(np.array([module.l2_norm_squared(half), module.count_zeros(half)]))
    for want, got in zip(*results, strict=True):
        ref.assert_close(got, want, STOCK)


def test_every_fused_call_was_bound(recorders):
    """The recorders of this file are the fused calls of the sources, no more and no less."""
    assert set(recorders) == {
        "layer_norm",
        "gelu",
        "embedding",
        "rms_norm",
        "swiglu",
        "rotary_position_embedding",
        "flash_attention_score",
        "flash_part",
        "flash_gradient",
        "adamw",
    }
