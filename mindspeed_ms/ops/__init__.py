# SPDX-License-Identifier: Apache-2.0
"""The hot operations, one signature each, computed by the kernel set of this process.

Three sets implement the same functions: ``portable`` (definition and oracle), ``cpu`` (native
library) and ``ascend`` (fused NPU calls). ``select`` chooses once; nothing changes set silently.

Legend: S sequence, B batch, N query heads, G key/value groups, D head size, H hidden size, V
vocabulary rows of this partition. Storage is fp32, bf16 or fp16; arithmetic and statistics are
fp32 everywhere. Differentiable functions work under the tape of ``backend.autograd``; the plain
kernels build no graph and serve the autograd Functions of ``core``.
"""

from __future__ import annotations

from typing import Literal

import mindspore as ms
from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import checks
from mindspeed_ms.ops.attending import (
    attend,
    attention,
    attention_accumulate,
    attention_backward_accumulate,
    attention_sinks_grad,
    decode_attention,
)
from mindspeed_ms.ops.attention_call import (
    AttentionCall,
    Documents,
    KeyRanges,
    ScoreDropout,
    ScorePlaces,
    ScoreStorage,
    Window,
    draw_dropout,
)
from mindspeed_ms.ops.columns import join_columns, split_columns
from mindspeed_ms.ops.delta import causal_conv_silu, gated_delta_rule
from mindspeed_ms.ops.experts import (
    combine_rows,
    grouped_linear_dgrad,
    grouped_linear_forward,
    grouped_linear_wgrad_accumulate,
    largest_columns,
    normalized_rows,
    product_fp64,
    random_normal,
    random_uniform,
    router_scores,
    squared_logsumexp,
    take_columns,
    weighted_total,
)
from mindspeed_ms.ops.gated import (
    Gate,
    clipped,
    gated,
    quick_gelu,
    relu,
    scaled,
    sigmoid_gated,
    softcapped,
    swiglu,
)
from mindspeed_ms.ops.index import attention_share, hidden_but_top, index_loss, index_scores
from mindspeed_ms.ops.selection import chosen, report, select, selected

__all__ = [
    "AttentionCall",
    "Documents",
    "Gate",
    "KeyRanges",
    "ScoreDropout",
    "ScorePlaces",
    "ScoreStorage",
    "Window",
    "adamw_",
    "attend",
    "attention",
    "attention_accumulate",
    "attention_backward_accumulate",
    "attention_share",
    "attention_sinks_grad",
    "axpy_",
    "bias_dropout_add",
    "bias_grad",
    "branch",
    "cast",
    "ce_backward",
    "ce_loss",
    "ce_max",
    "ce_sum",
    "ce_sum_logits",
    "clipped",
    "combine_rows",
    "copy_cast_",
    "count_zeros",
    "decode_attention",
    "draw_dropout",
    "divide_by_root_",
    "dropout",
    "embedding",
    "embedding_wgrad_accumulate",
    "gated",
    "gelu",
    "grouped_linear_dgrad",
    "grouped_linear_forward",
    "grouped_linear_wgrad_accumulate",
    "hidden_but_top",
    "index_loss",
    "index_scores",
    "join_columns",
    "kl_backward",
    "kl_loss",
    "kl_parts",
    "l2_norm_squared",
    "largest_columns",
    "layer_norm",
    "linear_dgrad",
    "linear_forward",
    "linear_wgrad",
    "linear_wgrad_accumulate",
    "lion_",
    "masked_mean",
    "normalized_rows",
    "product_fp64",
    "quick_gelu",
    "relu",
    "random_normal",
    "random_uniform",
    "report",
    "rms_norm",
    "rotary",
    "router_scores",
    "scale_",
    "scaled",
    "select",
    "selected",
    "sigmoid_gated",
    "causal_conv_silu",
    "gated_delta_rule",
    "silu",
    "softcapped",
    "softmax",
    "split_columns",
    "split_qkv",
    "squared_logsumexp",
    "squared_relu",
    "swiglu",
    "take_columns",
    "weighted_total",
    "zero_",
]


# ---- differentiable ------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise rows to mean 0 and variance 1: ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Shapes: x and result [..., H]; weight and bias [H].
    Source: Ba et al., 2016; biased variance as in torch.nn.LayerNorm.
    """
    checks.floating("layer_norm", x.dtype, weight.dtype, bias.dtype)
    checks.vector("layer_norm", "weight", weight.shape, x.shape[-1])
    checks.vector("layer_norm", "bias", bias.shape, x.shape[-1])
    return chosen.kernels.layer_norm(x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide rows by their root mean square: ``x / sqrt(mean(x^2) + eps) * weight``.

    Shapes: x and result [..., H]; weight [H].
    Source: Zhang and Sennrich, 2019. The product with weight is formed in fp32 and rounded once.
    """
    checks.floating("rms_norm", x.dtype, weight.dtype)
    checks.vector("rms_norm", "weight", weight.shape, x.shape[-1])
    return chosen.kernels.rms_norm(x, weight, eps)


def gelu(
    x: Tensor, bias: Tensor | None = None, approximate: Literal["none", "tanh"] = "none"
) -> Tensor:
    """Gaussian error linear unit of ``x + bias``.

    ``none``: ``x * (1 + erf(x / sqrt(2))) / 2``; ``tanh``:
    ``x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2``.

    Shapes: x and result [..., H]; bias [H].
    Source: Hendrycks and Gimpel, 2016.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: approximate={approximate!r}; use 'none' or 'tanh'")
    checks.floating("gelu", x.dtype)
    if bias is not None:
        checks.bias("gelu", x.shape[-1], x.dtype, bias.shape, bias.dtype)
    return chosen.kernels.gelu(x, bias, approximate)


def silu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``z * sigmoid(z)`` with ``z = x + bias``. Shapes: x and result [..., H]; bias [H]."""
    checks.floating("silu", x.dtype)
    if bias is not None:
        checks.bias("silu", x.shape[-1], x.dtype, bias.shape, bias.dtype)
    return chosen.kernels.silu(x, bias)


def squared_relu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``max(z, 0)^2`` with ``z = x + bias``. Shapes: x and result [..., H]; bias [H].

    Source: So et al., 2021 (Primer).
    """
    checks.floating("squared_relu", x.dtype)
    if bias is not None:
        checks.bias("squared_relu", x.shape[-1], x.dtype, bias.shape, bias.dtype)
    return chosen.kernels.squared_relu(x, bias)


def split_qkv(
    mixed: Tensor, num_groups: int, queries_per_group: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of one projection whose columns are [q ... q, k, v] per group.

    Shapes: mixed [S, B, G * (R + 2) * D] for R queries per group -> q [S, B, G * R, D],
    k and v [S, B, G, D], all contiguous.
    """
    checks.split_qkv(mixed.shape, num_groups, queries_per_group, head_dim)
    return chosen.kernels.split_qkv(mixed, num_groups, queries_per_group, head_dim)


def rotary(t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary position embedding on the first ``rot`` elements of each head, the rest unchanged.

    ``t * cos + turned(t) * sin``; ``turned`` maps halves (a, b) to (-b, a), or with
    ``interleaved`` every neighbouring pair (a, b) to (-b, a). The tables get no gradient.

    Shapes: t and result [S, B, N, D]; cos and sin fp32 [S, B or 1, 1, rot], rot even, rot <= D.
    Source: Su et al., 2021.
    """
    checks.rotary(t.shape, t.dtype, cos.shape, cos.dtype, sin.shape, sin.dtype)
    return chosen.kernels.rotary(t, cos, sin, interleaved)


def softmax(
    scores: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float = 1.0
) -> Tensor:
    """Softmax of ``scale * scores`` over the last dimension; hidden positions give exactly zero.

    Shapes: scores and result [..., Sq, Sk]; mask bool [B or 1, 1, Sq, Sk] or that of the scores,
    True = hidden. ``causal`` as in ``attention``.
    """
    checks.floating("softmax", scores.dtype)
    if mask is not None:
        checks.boolean_mask("softmax", mask, tuple(scores.shape))
    return chosen.kernels.softmax(scores, mask, causal, scale)


def dropout(x: Tensor, p: float, generator: Generator | None) -> Tensor:
    """Zero each element with probability ``p`` and divide the others by ``1 - p``.

    Element i uses word ``offset + i`` of the Philox4x32-10 stream of the generator's seed, the
    same in every kernel set. With ``p = 0`` the input itself is returned and nothing is drawn.
    """
    checks.floating("dropout", x.dtype)
    checks.dropout("dropout", p, generator is not None)
    if generator is None or p == 0.0:
        return x
    return chosen.kernels.dropout(x, p, generator)


def cast(x: Tensor, dtype: ms.Type) -> Tensor:
    """``x`` itself if it has the type, else a copy rounded to nearest even; differentiable."""
    if x.dtype == dtype:
        return x
    checks.floating("cast", x.dtype)
    checks.floating("cast", dtype)
    return chosen.kernels.cast(x, dtype)


def bias_dropout_add(
    x: Tensor, bias: Tensor | None, residual: Tensor, p: float, generator: Generator | None
) -> Tensor:
    """``residual + dropout(x + bias)``. Shapes: x, residual and result [..., H]; bias [H]."""
    checks.floating("bias_dropout_add", x.dtype, residual.dtype)
    checks.same_shape("bias_dropout_add", x.shape, residual.shape)
    if bias is not None:
        checks.bias("bias_dropout_add", x.shape[-1], x.dtype, bias.shape, bias.dtype)
    checks.dropout("bias_dropout_add", p, generator is not None)
    return chosen.kernels.bias_dropout_add(x, bias, residual, p, generator)


def branch(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` for two uses, whose gradients are summed by a kernel instead of by the framework."""
    checks.floating("branch", x.dtype)
    return chosen.kernels.branch(x) if autograd.is_grad_enabled() else (x, x)


def embedding(weight: Tensor, ids: Tensor, vocab_start: int = 0) -> Tensor:
    """Rows of ``weight`` for global ids; ids outside [vocab_start, vocab_start + V) give zeros.

    Shapes: weight [V, H]; ids int [...]; result [..., H]. Foreign ids get no gradient. Ids that no
    partition holds are the caller's to refuse (``require_range`` of core/tensor_parallel).
    """
    checks.floating("embedding", weight.dtype)
    checks.integers("embedding", ids.dtype)
    return chosen.kernels.embedding(weight, ids, vocab_start)


def masked_mean(values: Tensor, weights: Tensor, scale: float = 1.0) -> Tensor:
    """``scale * sum(values * weights) / max(sum(weights), 1)``, differentiable in ``values``.

    Shapes: values fp32 and weights (any number type) [...], the same; the result is an fp32 scalar.
    """
    checks.floating("masked_mean", values.dtype)
    checks.same_shape("masked_mean", values.shape, weights.shape)
    return chosen.kernels.masked_mean(values, weights, scale)


# ---- plain kernels: no graph ---------------------------------------------------------------------


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y = x @ weight.T + bias``. Shapes: x [..., in], weight [out, in], bias [out]."""
    checks.linear("linear_forward", x.shape, x.dtype, weight.shape, weight.dtype, 1)
    if bias is not None:
        checks.bias("linear_forward", weight.shape[0], x.dtype, bias.shape, bias.dtype)
    return chosen.kernels.linear_forward(x, weight, bias)


def linear_dgrad(dy: Tensor, weight: Tensor) -> Tensor:
    """``dx = dy @ weight``. Shapes: dy [..., out], weight [out, in], dx [..., in]."""
    checks.linear("linear_dgrad", dy.shape, dy.dtype, weight.shape, weight.dtype, 0)
    return chosen.kernels.linear_dgrad(dy, weight)


def linear_wgrad(dy: Tensor, x: Tensor) -> Tensor:
    """``dw = dy.T @ x`` over all rows. Shapes: dy [..., out], x [..., in], dw [out, in]."""
    checks.weight_grad("linear_wgrad", dy.shape, dy.dtype, x.shape, x.dtype)
    return chosen.kernels.linear_wgrad(dy, x)


def linear_wgrad_accumulate(dy: Tensor, x: Tensor, main_grad: Tensor) -> None:
    """``main_grad += dy.T @ x`` in place; main_grad fp32 [out, in], contiguous."""
    checks.weight_grad("linear_wgrad_accumulate", dy.shape, dy.dtype, x.shape, x.dtype)
    checks.accumulator("linear_wgrad_accumulate", main_grad, (dy.shape[-1], x.shape[-1]))
    chosen.kernels.linear_wgrad_accumulate(dy, x, main_grad)


def bias_grad(dy: Tensor) -> Tensor:
    """Sum over all rows. Shapes: dy [..., out], result [out]."""
    checks.floating("bias_grad", dy.dtype)
    return chosen.kernels.bias_grad(dy)


def ce_max(logits: Tensor) -> Tensor:
    """Largest logit of each row of this partition, fp32. Shapes: [..., V] -> [...]."""
    checks.floating("ce_max", logits.dtype)
    return chosen.kernels.ce_max(logits)


def ce_sum(
    logits: Tensor, target: Tensor, row_max: Tensor, vocab_start: int
) -> tuple[Tensor, Tensor]:
    """Local parts of the loss, fp32: (sum of exp(logits - row_max), logit of the target).

    The loss of a row is ``log(sum_exp) + row_max - predicted_logit`` once both parts are summed
    over the partitions: the second is the logit itself (not shifted by the maximum), and 0 where
    the target lies in another partition, or in none: that is the caller's to refuse. ``logits``
    stay as they are.

    Shapes: logits [..., V]; target int [...] (global ids); row_max fp32 [...] (global maximum).
    """
    checks.floating("ce_sum", logits.dtype)
    checks.integers("ce_sum", target.dtype)
    checks.leading_shape("ce_sum", logits.shape, target.shape)
    checks.leading_shape("ce_sum", logits.shape, row_max.shape)
    return chosen.kernels.ce_sum(logits, target, row_max, vocab_start)


def ce_sum_logits(logits: Tensor) -> Tensor:
    """Sum of the logits of each row of this partition, fp32 (label smoothing)."""
    checks.floating("ce_sum_logits", logits.dtype)
    return chosen.kernels.ce_sum_logits(logits)


def ce_loss(
    row_max: Tensor,
    sum_exp: Tensor,
    predicted: Tensor,
    sum_logits: Tensor | None = None,
    smoothing: float = 0.0,
    vocab_size: int = 1,
) -> Tensor:
    """Loss of each row from the global parts: ``log(sum_exp) + row_max - predicted``.

    With ``smoothing`` the uniform distribution over ``vocab_size`` entries takes that part of the
    target's weight; ``sum_logits`` is needed then. All tensors fp32 [...].
    """
    return chosen.kernels.ce_loss(row_max, sum_exp, predicted, sum_logits, smoothing, vocab_size)


def ce_backward(
    logits: Tensor,
    target: Tensor,
    sums: tuple[Tensor, Tensor],
    dloss: Tensor,
    vocab_start: int,
    smoothing: float = 0.0,
    vocab_size: int | None = None,
    spends_logits: bool = False,
) -> Tensor:
    """Gradient of the logits: ``(softmax - wanted) * dloss``.

    ``wanted = (1 - smoothing) * onehot(target) + smoothing / vocab_size``: smoothing is the weight
    of the uniform distribution over all ``vocab_size`` entries (default: V). Megatron's factor
    K / (K - 1) on the user's label smoothing is the caller's. With ``spends_logits`` the result may
    take the place of the logits, which nobody reads afterwards.

    Shapes: logits and result [..., V]; target, dloss and both of sums, row_max and sum_exp over
    all ranks, [...].
    """
    checks.floating("ce_backward", logits.dtype)
    checks.integers("ce_backward", target.dtype)
    for rows in (target, *sums, dloss):
        checks.leading_shape("ce_backward", logits.shape, rows.shape)
    total = logits.shape[-1] if vocab_size is None else vocab_size
    return chosen.kernels.ce_backward(
        logits, target, sums, dloss, vocab_start, smoothing, total, spends_logits
    )


def kl_parts(
    logits: Tensor, teacher: Tensor, row_max: Tensor, teacher_max: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Local parts of the divergence of a student from a teacher, fp32.

    With x = (logits - row_max) / temperature and y likewise of the teacher: sums of exp(x), of
    exp(y), and of exp(y) (y - x). Shapes: logits, teacher [..., V]; global maxima fp32 [...].
    """
    checks.same_shape("kl_parts", logits.shape, teacher.shape)
    return chosen.kernels.kl_parts(logits, teacher, row_max, teacher_max, temperature)


def kl_loss(own: Tensor, theirs: Tensor, both: Tensor, temperature: float) -> Tensor:
    """``temperature**2 * (both / theirs - log(theirs) + log(own))`` of the global parts."""
    return chosen.kernels.kl_loss(own, theirs, both, temperature)


def kl_backward(
    logits: Tensor,
    teacher: Tensor,
    tops: tuple[Tensor, Tensor],
    sums: tuple[Tensor, Tensor],
    dloss: Tensor,
    temperature: float,
) -> Tensor:
    """Gradient of the logits, ``temperature * (softmax(x) - softmax(y)) * dloss``.

    ``tops`` and ``sums`` are the global maxima and sums of student and teacher.
    """
    return chosen.kernels.kl_backward(logits, teacher, tops, sums, dloss, temperature)


def embedding_wgrad_accumulate(
    dy: Tensor, ids: Tensor, main_grad: Tensor, vocab_start: int = 0
) -> None:
    """``main_grad[id - vocab_start] += dy`` row by row, in place; foreign ids are skipped.

    Shapes: dy [..., H]; ids int [...]; main_grad fp32 [V, H], contiguous.
    """
    checks.floating("embedding_wgrad_accumulate", dy.dtype)
    checks.integers("embedding_wgrad_accumulate", ids.dtype)
    checks.leading_shape("embedding_wgrad_accumulate", dy.shape, ids.shape)
    checks.accumulator("embedding_wgrad_accumulate", main_grad, (main_grad.shape[0], dy.shape[-1]))
    chosen.kernels.embedding_wgrad_accumulate(dy, ids, main_grad, vocab_start)


# ---- in place on flat fp32 buffers ---------------------------------------------------------------


def adamw_(  # noqa: PLR0913 - the arguments of torch.optim.AdamW
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """One AdamW step on flat buffers, in place; the gradient is read as ``grad * grad_scale``.

    ``param *= 1 - lr * weight_decay`` first, then ``param -= lr / (1 - beta1^step) * exp_avg /
    (sqrt(exp_avg_sq / (1 - beta2^step)) + eps)``; ``step`` counts from 1.

    Source: Loshchilov and Hutter, 2019, as in torch.optim.AdamW.
    """
    for buffer in (param, grad, exp_avg, exp_avg_sq):
        checks.buffer("adamw_", param.size, buffer.shape, buffer.dtype, buffer.is_contiguous())
    if step < 1:
        raise ValueError(f"adamw_: step {step}; steps count from 1")
    chosen.kernels.adamw_(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        grad_scale=grad_scale,
    )


def lion_(  # noqa: PLR0913 - the arguments of the rule
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
) -> None:
    """One step of Lion on flat fp32 buffers, in place.

    ``param *= 1 - lr * weight_decay``, then ``param -= lr * sign(beta1 * exp_avg + (1 - beta1) *
    grad)``, then ``exp_avg = beta2 * exp_avg + (1 - beta2) * grad``.

    Source: Chen et al., 2023.
    """
    for buffer in (param, grad, exp_avg):
        checks.buffer("lion_", param.size, buffer.shape, buffer.dtype, buffer.is_contiguous())
    chosen.kernels.lion_(
        param, grad, exp_avg, lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay
    )


def divide_by_root_(x: Tensor, squares: Tensor, beta: float, eps: float) -> None:
    """``squares = beta * squares + (1 - beta) * x * x``, then ``x /= sqrt(squares) + eps``.

    In place on fp32 buffers of one size.
    """
    for buffer in (x, squares):
        checks.buffer("divide_by_root_", x.size, buffer.shape, buffer.dtype, buffer.is_contiguous())
    chosen.kernels.divide_by_root_(x, squares, beta, eps)


def axpy_(y: Tensor, x: Tensor, alpha: float = 1.0) -> None:
    """``y += alpha * x`` in place; y fp32, x of any floating type and the same size."""
    checks.buffer("axpy_", y.size, y.shape, y.dtype, y.is_contiguous())
    checks.floating("axpy_", x.dtype)
    if y.size != x.size:
        raise ValueError(f"axpy_: sizes {y.size} and {x.size} differ; they must be equal")
    chosen.kernels.axpy_(y, x, alpha)


def scale_(t: Tensor, factor: float) -> None:
    """``t *= factor`` in place; t fp32."""
    checks.buffer("scale_", t.size, t.shape, t.dtype, t.is_contiguous())
    chosen.kernels.scale_(t, factor)


def zero_(t: Tensor) -> None:
    """Set all elements to 0 in place, whatever they were; t contiguous, of any type."""
    checks.in_place("zero_", t)
    chosen.kernels.zero_(t)


def l2_norm_squared(t: Tensor) -> float:
    """Sum of squares, accumulated in fp64; the same bits every time for one thread count."""
    checks.floating("l2_norm_squared", t.dtype)
    return chosen.kernels.l2_norm_squared(t)


def count_zeros(t: Tensor) -> int:
    """Number of elements equal to zero."""
    checks.floating("count_zeros", t.dtype)
    return chosen.kernels.count_zeros(t)


def copy_cast_(dst: Tensor, src: Tensor) -> None:
    """Copy ``src`` into ``dst`` in place, converting between floating types (round to nearest)."""
    checks.floating("copy_cast_", dst.dtype)
    checks.floating("copy_cast_", src.dtype)
    if dst.size != src.size:
        raise ValueError(f"copy_cast_: sizes {dst.size} and {src.size} differ; they must be equal")
    checks.in_place("copy_cast_", dst)
    chosen.kernels.copy_cast_(dst, src)
