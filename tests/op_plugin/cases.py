# SPDX-License-Identifier: Apache-2.0
"""Calls of the kernel sets, each with what MindSpore has to launch on the way.

A case runs the same way on every kernel set: its inputs are drawn from a stream named after it, and
its results are arrays and the types they had. The Ascend set runs under the op plugin in a process
of its own, the portable definition in the test process.
"""

from __future__ import annotations

import functools

import mindspore as ms
import numpy as np
import ops_reference as ref
from mindspore import Tensor
from op_plugin import expert_cases, models
from op_plugin.harness import (
    CASES,
    FLOATS,
    HALVES,
    add,
    differentiable,
    differentiated,
    in_flat_buffer,
    kept,
)

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.portable.arrays import store

__all__ = ["CASES"]

# ---- norms, activations, dropout, rotary ---------------------------------------------------------


def _pointwise():
    x, vector = (3, 2, 14), (14,)
    differentiable(
        "layer_norm",
        lambda m: lambda x, w, b: m.layer_norm(x, w, b, 1e-5),
        (x, vector, vector),
        ("LayerNormExt", "LayerNormGradExt"),
    )
    differentiable(
        "rms_norm",
        lambda m: lambda x, w: m.rms_norm(x, w, 1e-5),
        (x, vector),
        ("RmsNorm", "RmsNormGrad"),
    )
    for bias in (vector, None):
        name = "-bias" if bias else ""
        for kind in ("none", "tanh"):
            differentiable(
                f"gelu_{kind}{name}",
                lambda m, kind=kind: lambda x, b: m.gelu(x, b, kind),
                (x, bias),
                ("GeluExt", "GeluGradExt"),
            )
        for activation, launches in (
            ("swiglu", ("Swiglu", "SwigluGrad")),
            ("silu", ("SiLU", "SiLUGrad")),
            ("relu", ("ReLU", "ReluGrad")),
            ("squared_relu", ("ReLU", "ReluGrad", "Square")),
        ):
            differentiable(
                f"{activation}{name}",
                lambda m, activation=activation: getattr(m, activation),
                (x, bias),
                launches,
            )
        differentiable(
            f"bias_dropout_add{name}",
            lambda m: lambda x, b, r: m.bias_dropout_add(x, b, r, 0.3, Generator(9, 8)),
            (x, bias, x),
            ("Mul",),
        )
    differentiable(
        "dropout", lambda m: lambda x: m.dropout(x, 0.3, Generator(2**60 + 9, 2**35 + 3)), (x,), ()
    )
    differentiable(
        "split_qkv", lambda m: lambda x: m.split_qkv(x, 2, 3, 5), ((3, 2, 50),), (), roundings=1
    )


def _rotary():
    for interleaved in (False, True):
        for rot, tables in ((8, 1), (6, 1), (8, 3), (6, 3)):
            angles = np.random.RandomState(rot + tables).randn(5, tables, 1, rot)
            is_fused = not (interleaved and tables > 1)

            def op(kernels, angles=angles, interleaved=interleaved):
                cos, sin = ref.tensor(np.cos(angles)), ref.tensor(np.sin(angles))
                return lambda t: kernels.rotary(t, cos, sin, interleaved)

            fused = ("RotaryPositionEmbedding", "RotaryPositionEmbeddingGrad")
            differentiable(
                f"rotary_{'pairs' if interleaved else 'halves'}-{rot}of8-{tables}tables",
                op,
                ((5, 3, 2, 8),),
                fused if is_fused else ("Neg",),
            )


def _embedding():
    for id_type in (np.int32, np.int64):
        ids = np.random.RandomState(1).randint(0, 9, (5, 3)).astype(id_type)
        differentiable(
            f"embedding-{np.dtype(id_type).name}",
            lambda m, ids=ids: lambda w: m.embedding(w, Tensor(ids), 2),
            ((4, 5),),
            ("Embedding", "EmbeddingDenseBackward"),
        )


# ---- attention -----------------------------------------------------------------------------------

_KINDS = (
    "causal",
    "full",
    "mask",
    "mask-causal",
    "blind mask",
    "dropout",
    "dropout-causal",
    "dropout-blind mask",
)
_FUSED = ("FlashAttentionScore", "FlashAttentionScoreGrad")
_COMPOSED = ("BatchMatMulExt", "Exp")


def _mask(random, shape, kind):
    """Without "blind" every query sees some key."""
    if "mask" not in kind:
        return None
    hidden = random.rand(*shape) < 0.4
    hidden[..., 0] = False
    if "blind" in kind:
        hidden[..., 2, :] = hidden[-1, :, 1] = True
    return Tensor(hidden)


def _attention_case(name, dtype, sizes, kind, launches, make=ref.tensor, ids=None, **more):
    """``more``: options of the call; a bias and sinks by the types they have."""
    s, keys, b, n, g, d = sizes

    def run(kernels, random):
        arrays = [
            random.randn(*shape) for shape in ((s, b, n, d), (keys, b, g, d), (keys, b, g, d))
        ]
        call = {
            "scale": 0.3,
            "causal": "causal" in kind,
            "mask": _mask(random, (1 if s % 2 else b, 1, s, keys), kind),
            "documents": None if ids is None else ops.Documents(ids, ids),
            "dropout_p": 0.25 if "dropout" in kind else 0.0,
            "generator": Generator(5, 3),
            **{name: option for name, option in more.items() if name not in ("bias", "sinks")},
        }
        if "bias" in more:
            call["bias"] = ref.tensor(random.randn(1, n, s, keys), more["bias"])
        if "max_logits" in more:
            call["max_logits"] = ref.tensor(np.full(n, -1e30))
        attention = ref.attention_of(kernels)

        def attend(q, k, v, *sinks):
            return attention(q, k, v, sinks=sinks[0] if sinks else None, **call)

        if "sinks" in more:  # in the type of the parameters
            arrays.append(random.randn(n))
        results = differentiated(attend, arrays, dtype, random, make)
        if "max_logits" in more:
            results |= kept(max_logits=call["max_logits"])
        return results

    # Rounded are the result, whose products with its gradient enter every score, and the gradients.
    add(f"attention-{name}", dtype, run, launches, roundings=8)


def _attention_options():
    """What goes to the fused kernel, and what is composed."""
    small, long = (8, 16, 2, 4, 2, 16), (70, 72, 1, 4, 2, 48)
    ids = np.array([[0, 0, 1, 1, 1, 1, 4, 4], [0, 1, 1, 2, 2, 2, 2, 2]], np.int32)
    ranges = ops.KeyRanges(np.array([0, 3]), np.array([14, 16]), np.array([6, 8]))
    slopes = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
    for dtype in FLOATS:
        fused = _COMPOSED if dtype == ms.float32 else _FUSED
        add = functools.partial(_attention_case, dtype=dtype)
        for left, right in ((3, None), (1, 0), (2, 3), (None, 2), (20, None)):
            window = {"window": (left, right)}
            add(f"window {left} {right}", sizes=small, kind="causal", launches=fused, **window)
            add(f"window {left} {right} full", sizes=small, kind="", launches=fused, **window)
        add("window-long", sizes=long, kind="causal", launches=fused, window=(9, None))
        add("window-mask", sizes=small, kind="mask", launches=fused, window=(3, 1))
        add("window-dropout", sizes=small, kind="dropout-causal", launches=fused, window=(3, None))
        more_queries = (9, 5, 2, 4, 2, 16)
        add("window before keys", sizes=more_queries, kind="", launches=fused, window=(2, 1))
        for left in (2, 5):  # shorter than a document, and longer than all
            add(
                f"documents-window {left}",
                sizes=(8, 8, 2, 4, 2, 16),
                kind="causal",
                launches=fused,
                ids=ids,
                window=(left, None),
            )
        add("ranges", sizes=small, kind="causal", launches=fused, ranges=ranges)
        add("sinks", sizes=small, kind="causal", launches=fused, sinks=True)
        add("sinks-blind mask", sizes=small, kind="blind mask", launches=fused, sinks=True)
        add("sinks-dropout", sizes=small, kind="dropout-causal", launches=fused, sinks=True)
        add("bias", sizes=small, kind="causal", launches=fused, bias=dtype)
        add("largest", sizes=small, kind="causal", launches=fused, max_logits=True)
        add("largest blind", sizes=small, kind="blind mask", launches=fused, max_logits=True)
        composed = functools.partial(add, sizes=small, launches=_COMPOSED)
        composed("wide bias", kind="causal", bias=ms.float32)
        composed("cap", kind="causal", softcap=0.8)
        composed("cap-sinks", kind="dropout-causal", softcap=0.8, sinks=True)
        composed("slopes", kind="mask", slopes=slopes, window=(6, None))
    storage = ops.ScoreStorage(ms.bfloat16, divisor=3.0, weights=True)
    _attention_case("stored", ms.bfloat16, small, "causal", _COMPOSED, storage=storage)


def _attention():
    _attention_options()
    for kind in _KINDS:
        for dtype in FLOATS:
            launches = _COMPOSED if dtype == ms.float32 else _FUSED
            _attention_case(f"{kind}-8x16", dtype, (8, 16, 2, 4, 2, 16), kind, launches)
            if "dropout" not in kind:  # whose mask is made of whole bytes
                _attention_case(f"{kind}-7x7", dtype, (7, 7, 3, 3, 1, 32), kind, launches)
    for dtype in HALVES:
        _attention_case("odd head", dtype, (5, 9, 1, 4, 4, 6), "causal", _COMPOSED)
        sizes = (8, 16, 2, 4, 2, 16)
        _attention_case("strided", dtype, sizes, "causal", _FUSED, make=ref.transposed)
        _attention_case("queries before all keys", dtype, (9, 5, 2, 4, 2, 16), "causal", _FUSED)
        for kind in ("causal", "dropout-causal"):
            _attention_case(f"{kind}-70x72", dtype, (70, 72, 1, 4, 2, 48), kind, _FUSED)
        many = np.maximum(0, np.arange(1040)[None] - 10).astype(np.int32)
        sizes = (1040, 1040, 1, 1, 1, 16)
        _attention_case(
            "more documents than a call takes", dtype, sizes, "causal", _FUSED, ids=many
        )
    ids = np.array([[0, 0, 1, 1, 1, 1, 4, 4], [0, 1, 1, 2, 2, 2, 2, 2]], np.int32)
    sizes = (8, 8, 2, 4, 2, 16)
    for kind in ("causal", "full", "dropout-causal", "mask"):
        for dtype in FLOATS:
            launches = _COMPOSED if dtype == ms.float32 else _FUSED
            _attention_case(f"documents-{kind}", dtype, sizes, kind, launches, ids=ids)


def _accumulated(kernels, random, dtype, kind, sizes):
    """Attention over two blocks of keys one after the other, and its gradients."""
    s, keys, b, n, g, d = sizes
    q, dy = ref.tensor(random.randn(s, b, n, d), dtype), random.randn(s, b, n * d)
    blocks = [[ref.tensor(random.randn(keys, b, g, d), dtype) for _ in "kv"] for _ in range(2)]
    documents = None
    if kind == "documents":
        # Documents 0, 2 and 4 have keys: queries of 1, 3 and 5 see none.
        numbers = [np.sort(random.randint(0, 6, (b, size)), axis=1) for size in (s, keys)]
        documents = ops.Documents(numbers[0], numbers[1] // 2 * 2)
    mask = _mask(random, (b, 1, s, keys), kind)
    drop = None
    if kind == "dropout":  # of heads 2.. of n + 3, and of queries and keys in the middle of more
        drawn = (ops.ScorePlaces(n + 3, 2, 50, 60, np.arange(s) + 7, np.arange(keys)[::-1] * 3),)
        drop = ops.draw_dropout(0.25, Generator(5), (b, n, s, keys), *drawn)
    call = ops.AttentionCall(
        scale=0.25,
        causal=kind in ("causal", "band"),
        documents=documents,
        dropout=drop,
        window=(4, None) if "band" in kind else (None, None),
        offset=6 if "elsewhere" in kind else None,
    )
    out, lse = memory.zeros((s, b, n * d)), memory.zeros((s, b, n))
    store(lse, np.full((s, b, n), -np.inf, np.float32))
    for k, v in blocks:
        kernels.attention_accumulate(q, k, v, mask, out, lse, call)
    rounded = ref.tensor(ref.values(out), dtype)
    dq, dk, dv = (memory.zeros(t.shape) for t in (q, *blocks[0]))
    for k, v in blocks:
        dout = ref.tensor(dy, dtype)
        kernels.attention_backward_accumulate(q, k, v, mask, rounded, lse, dout, (dq, dk, dv), call)
    sums = ref.values(lse)
    seen = np.isfinite(sums)
    results = {"lse": (np.where(seen, sums, 0.0), "host"), "seen": (seen.astype(float), "host")}
    return {**kept(out=out, dq=dq, dk=dk, dv=dv), **results}


def _blocks_of_attention():
    kinds = ("causal", "full", "mask", "blind mask", "documents", "dropout")
    for kind in (*kinds, "band", "band elsewhere"):
        for dtype in FLOATS:
            launches = ("BatchMatMulExt",) if dtype == ms.float32 else _FUSED
            for sizes in ((8, 16, 2, 4, 2, 16), (5, 7, 3, 3, 1, 32)):
                if kind == "dropout" and sizes[1] % 8:
                    continue

                def run(kernels, random, dtype=dtype, kind=kind, sizes=sizes):
                    return _accumulated(kernels, random, dtype, kind, sizes)

                add(
                    f"accumulated-{kind}-{sizes[0]}x{sizes[1]}",
                    dtype,
                    run,
                    (*launches, "InplaceCopy", "InplaceAddExt"),
                    roundings=8,
                )


def _decode():
    """Rows of a cache: padded on either side, in slots, with a window; and one that has no keys."""
    fused = ("IncreFlashAttention",)
    kinds = {
        "causal": {},
        "window": {"window": (3, None)},
        "cap": {"softcap": 1.5},
        "sinks": {"sinks": True},
    }
    for dtype in FLOATS:
        for queries in (1, 3):
            for kind, options in kinds.items():
                for slots in (None, [0, 1, 2], [4, 0, 2]):
                    more = "" if slots is None else f" slots {slots[0]}"
                    is_fused = dtype != ms.float32 and kind in ("causal", "window")
                    launches = fused if is_fused and queries == 1 else _FUSED[:1]
                    _decode_case(
                        f"{kind}{more} {queries}",
                        dtype,
                        (queries, 3 if slots == [0, 1, 2] else 5),
                        slots,
                        launches
                        if is_fused or (dtype != ms.float32 and kind == "sinks")
                        else _COMPOSED,
                        options,
                    )


def _decode_case(name, dtype, sizes, slots, launches, options):  # noqa: PLR0913 - see ``_decode``
    queries, memory_rows = sizes
    lengths = [9, queries, 14]
    ranges = ops.KeyRanges.of_lengths(lengths, queries, [0, 0, 5])

    def run(kernels, random):
        shape = (14, 3, 2, 16) if slots is None else (memory_rows, 14, 2, 16)
        q = ref.tensor(random.randn(queries, 3, 4, 16), dtype)
        keys = [random.randn(*shape) for _ in "kv"]
        for array in keys:  # beyond the ranges there may be anything
            rows = array.swapaxes(0, 1) if slots is None else array[slots]
            for row, start, stop in zip(rows, ranges.starts, ranges.stops, strict=True):
                row[:start] = row[stop:] = np.nan
            if slots is not None:
                array[slots] = rows
        call = {name: option for name, option in options.items() if name != "sinks"}
        call = ops.AttentionCall(scale=0.3, causal=True, ranges=ranges, **call)
        sinks = ref.tensor(random.randn(4)) if "sinks" in options else None
        k, v = (ref.tensor(a, dtype) for a in keys)
        places = None if slots is None else np.array(slots)
        return kept(y=kernels.decode_attention(q, k, v, sinks, places, call))

    add(f"decode-{name}", dtype, run, launches)


def _softmax():
    for causal in (False, True):

        def op(kernels, causal=causal):
            hidden = np.random.RandomState(4).rand(2, 1, 4, 7) < 0.5
            hidden[0, 0, 1] = True
            return lambda scores: kernels.softmax(scores, Tensor(hidden), causal, 0.5)

        name = f"softmax{'-causal' if causal else ''}"
        differentiable(name, op, ((2, 3, 4, 7),), ("Softmax", "SoftmaxBackward"))


# ---- products and pieces of the loss -------------------------------------------------------------


def _linear():
    for dtype in FLOATS:
        for make in (ref.tensor, ref.transposed):

            def products(kernels, random, dtype=dtype, make=make):
                shapes = ((2, 3, 5), (4, 5), (2, 3, 4))
                x, w, dy = (make(random.randn(*shape), dtype) for shape in shapes)
                bias = ref.tensor(random.randn(4), dtype)
                return kept(
                    y=kernels.linear_forward(x, w, bias),
                    plain=kernels.linear_forward(x, w, None),
                    dx=kernels.linear_dgrad(dy, w),
                    dw=kernels.linear_wgrad(dy, x),
                    db=kernels.bias_grad(dy),
                )

            strided = "-strided" if make is ref.transposed else ""
            launches = ("Dense", "MatMulExt", "SumExt")
            add(f"linear{strided}", dtype, products, launches)

        def accumulation(kernels, random, dtype=dtype):
            x, dy = (ref.tensor(random.randn(*s), dtype) for s in ((2, 3, 5), (2, 3, 4)))
            flat, main_grad = in_flat_buffer(random, (4, 5))
            kernels.linear_wgrad_accumulate(dy, x, main_grad)
            table, table_grad = in_flat_buffer(random, (4, 5))
            ids = Tensor(random.randint(0, 9, (2, 3)))
            kernels.embedding_wgrad_accumulate(x, ids, table_grad, 2)
            return kept(weight=flat, table=table)

        launches = ("MatMulExt", "InplaceAddExt", "IndexAddExt", "InplaceCopy")
        add("gradients added to flat buffers", dtype, accumulation, launches)


def _loss():
    for dtype in FLOATS:
        for smoothing in (0.0, 0.1):

            def run(kernels, random, dtype=dtype, smoothing=smoothing):
                logits, dloss = ref.tensor(random.randn(2, 3, 7), dtype), random.randn(2, 3)
                target = Tensor(random.randint(0, 12, (2, 3)).astype(np.int32))
                top = kernels.ce_max(logits)
                total, predicted = kernels.ce_sum(logits, target, top, 3)
                logit_sum = kernels.ce_sum_logits(logits) if smoothing else None
                loss = kernels.ce_loss(top, total, predicted, logit_sum, smoothing, 14)
                grad = kernels.ce_backward(
                    logits, target, (top, total), ref.tensor(dloss), 3, smoothing, 14, False
                )
                results = {"top": top, "total": total, "predicted": predicted, "loss": loss}
                return kept(**results, logit_sum=logit_sum, grad=grad)

            launches = ("ReduceMax", "Exp", "GatherD", "SumExt", "Log")
            add(f"cross entropy-{smoothing}", dtype, run, launches)

        def diverge(kernels, random, dtype=dtype):
            logits, teacher = (ref.tensor(random.randn(2, 3, 7), dtype) for _ in range(2))
            tops = kernels.ce_max(logits), kernels.ce_max(teacher)
            own, theirs, both = kernels.kl_parts(logits, teacher, *tops, 2.0)
            loss = kernels.kl_loss(own, theirs, both, 2.0)
            dloss = ref.tensor(random.randn(2, 3))
            grad = kernels.kl_backward(logits, teacher, tops, (own, theirs), dloss, 2.0)
            return kept(own=own, theirs=theirs, both=both, loss=loss, grad=grad)

        add("divergence", dtype, diverge, ("Exp", "SumExt", "Log"))
    for count in (0, 1, 4):

        def mean(kernels, random, count=count):
            weights = Tensor(np.arange(6).reshape(2, 3) < count)
            values = [random.randn(2, 3)]
            return differentiated(
                lambda x: kernels.masked_mean(x, weights, 2.0), values, ms.float32, random
            )

        add(f"masked_mean-{count}", ms.float32, mean, ("SumExt", "Div"))


# ---- flat buffers --------------------------------------------------------------------------------


def _flat():
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    for step in (1, 7):
        for grad_scale in (1.0, 0.5):

            def adamw(kernels, random, step=step, grad_scale=grad_scale):
                buffers = [in_flat_buffer(random, (37,)) for _ in range(4)]
                views = [view for _, view in buffers]
                kernels.adamw_(*views, step=step, grad_scale=grad_scale, **options)
                return kept(**{f"buffer{i}": flat for i, (flat, _) in enumerate(buffers)})

            add(f"adamw-step{step}-scale{grad_scale}", ms.float32, adamw, ("AdamW",))
    for dtype in FLOATS:

        def arithmetic(kernels, random, dtype=dtype):
            flat, view = in_flat_buffer(random, (37,))
            kernels.axpy_(view, ref.tensor(random.randn(37), dtype), 0.3)
            kernels.scale_(view, 0.7)
            other, target = in_flat_buffer(random, (37,), dtype)
            kernels.copy_cast_(target, view)
            zeros = ref.tensor(random.randint(0, 2, 37).astype(np.float32), dtype)
            numbers = [kernels.l2_norm_squared(target), kernels.count_zeros(zeros)]
            return {**kept(flat=flat, other=other), "numbers": (np.array(numbers), "host")}

        launches = ("InplaceAddExt", "InplaceMuls", "InplaceCopy", "SumExt")
        add("flat arithmetic", dtype, arithmetic, launches)


def _training():
    for style in models.STYLES:
        for dtype in (ms.float32, ms.bfloat16):

            def run(kernels, random, style=style, dtype=dtype):
                return models.run(kernels, style, dtype, random)

            launches = ["AdamW", "InplaceAddExt", "InplaceCopy", "Embedding", "Dense"]
            launches += ["RmsNormGrad", "SwigluGrad"] if style != "gpt2" else ["GeluGradExt"]
            launches += _COMPOSED if dtype == ms.float32 else _FUSED
            add(f"training-{style}", dtype, run, launches, roundings=12)


for _fill in (
    _pointwise,
    _rotary,
    _embedding,
    _attention,
    _blocks_of_attention,
    _decode,
    _softmax,
    _linear,
    _loss,
    expert_cases.experts,
    expert_cases.columns,
    _flat,
    _training,
):
    _fill()
