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

from mindspore import Tensor

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
from mindspeed_ms.ops.selection import current, report, select, selected

__all__ = [
    "AttentionCall",
    "Documents",
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
    "attention_sinks_grad",
    "axpy_",
    "bias_dropout_add",
    "bias_grad",
    "branch",
    "ce_backward",
    "ce_loss",
    "ce_max",
    "ce_sum",
    "ce_sum_logits",
    "combine_rows",
    "copy_cast_",
    "count_zeros",
    "decode_attention",
    "draw_dropout",
    "dropout",
    "embedding",
    "embedding_wgrad_accumulate",
    "gelu",
    "grouped_linear_dgrad",
    "grouped_linear_forward",
    "grouped_linear_wgrad_accumulate",
    "join_columns",
    "l2_norm_squared",
    "largest_columns",
    "layer_norm",
    "linear_dgrad",
    "linear_forward",
    "linear_wgrad",
    "linear_wgrad_accumulate",
    "masked_mean",
    "normalized_rows",
    "product_fp64",
    "random_normal",
    "random_uniform",
    "report",
    "rms_norm",
    "rotary",
    "router_scores",
    "scale_",
    "select",
    "selected",
    "silu",
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
    checks.floating("layer_norm", x, weight, bias)
    checks.vector("layer_norm", "weight", weight, x.shape[-1])
    checks.vector("layer_norm", "bias", bias, x.shape[-1])
    return current().layer_norm(x, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide rows by their root mean square: ``x / sqrt(mean(x^2) + eps) * weight``.

    Shapes: x and result [..., H]; weight [H].
    Source: Zhang and Sennrich, 2019. The product with weight is formed in fp32 and rounded once.
    """
    checks.floating("rms_norm", x, weight)
    checks.vector("rms_norm", "weight", weight, x.shape[-1])
    return current().rms_norm(x, weight, eps)


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
    _check_activation("gelu", x, bias)
    return current().gelu(x, bias, approximate)


def swiglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gated unit ``silu(gate) * up`` where ``gate, up`` are the halves of ``x + bias``.

    Shapes: x [..., 2H], bias [2H], result [..., H]; the first half is the gate.
    Source: Shazeer, 2020.
    """
    _check_activation("swiglu", x, bias)
    if x.shape[-1] % 2:
        raise ValueError(
            f"swiglu: last dimension {x.shape[-1]} is odd; it holds gate and up halves of one size"
        )
    return current().swiglu(x, bias)


def silu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``z * sigmoid(z)`` with ``z = x + bias``. Shapes: x and result [..., H]; bias [H]."""
    _check_activation("silu", x, bias)
    return current().silu(x, bias)


def squared_relu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``max(z, 0)^2`` with ``z = x + bias``. Shapes: x and result [..., H]; bias [H].

    Source: So et al., 2021 (Primer).
    """
    _check_activation("squared_relu", x, bias)
    return current().squared_relu(x, bias)


def split_qkv(
    mixed: Tensor, num_groups: int, queries_per_group: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of one projection whose columns are [q ... q, k, v] per group.

    Shapes: mixed [S, B, G * (R + 2) * D] for R queries per group -> q [S, B, G * R, D],
    k and v [S, B, G, D], all contiguous.
    """
    checks.split_qkv(mixed, num_groups, queries_per_group, head_dim)
    return current().split_qkv(mixed, num_groups, queries_per_group, head_dim)


def rotary(t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotary position embedding on the first ``rot`` elements of each head, the rest unchanged.

    ``t * cos + turned(t) * sin``; ``turned`` maps halves (a, b) to (-b, a), or with
    ``interleaved`` every neighbouring pair (a, b) to (-b, a). The tables get no gradient.

    Shapes: t and result [S, B, N, D]; cos and sin fp32 [S, B or 1, 1, rot], rot even, rot <= D.
    Source: Su et al., 2021.
    """
    checks.rotary(t, cos, sin)
    return current().rotary(t, cos, sin, interleaved)


def softmax(
    scores: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float = 1.0
) -> Tensor:
    """Softmax of ``scale * scores`` over the last dimension; hidden positions give exactly zero.

    Shapes: scores and result [..., Sq, Sk]; mask bool [B or 1, 1, Sq, Sk] or that of the scores,
    True = hidden. ``causal`` as in ``attention``.
    """
    checks.floating("softmax", scores)
    if mask is not None:
        checks.boolean_mask("softmax", mask, tuple(scores.shape))
    return current().softmax(scores, mask, causal, scale)


def dropout(x: Tensor, p: float, generator: Generator | None) -> Tensor:
    """Zero each element with probability ``p`` and divide the others by ``1 - p``.

    Element i uses word ``offset + i`` of the Philox4x32-10 stream of the generator's seed, the
    same in every kernel set. With ``p = 0`` the input itself is returned and nothing is drawn.
    """
    checks.floating("dropout", x)
    checks.dropout("dropout", p, generator)
    return current().dropout(x, p, generator) if p > 0.0 else x


def bias_dropout_add(
    x: Tensor, bias: Tensor | None, residual: Tensor, p: float, generator: Generator | None
) -> Tensor:
    """``residual + dropout(x + bias)``. Shapes: x, residual and result [..., H]; bias [H]."""
    checks.floating("bias_dropout_add", x, residual)
    checks.same_shape("bias_dropout_add", x, residual)
    _check_activation("bias_dropout_add", x, bias)
    checks.dropout("bias_dropout_add", p, generator)
    return current().bias_dropout_add(x, bias, residual, p, generator)


def branch(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` for two uses, whose gradients are summed by a kernel instead of by the framework."""
    checks.floating("branch", x)
    return current().branch(x)


def embedding(weight: Tensor, ids: Tensor, vocab_start: int = 0) -> Tensor:
    """Rows of ``weight`` for global ids; ids outside [vocab_start, vocab_start + V) give zeros.

    Shapes: weight [V, H]; ids int [...]; result [..., H]. Foreign ids get no gradient.
    """
    checks.floating("embedding", weight)
    checks.integers("embedding", ids)
    return current().embedding(weight, ids, vocab_start)


def masked_mean(values: Tensor, weights: Tensor, scale: float = 1.0) -> Tensor:
    """``scale * sum(values * weights) / max(sum(weights), 1)``, differentiable in ``values``.

    Shapes: values fp32 and weights (any number type) [...], the same; the result is an fp32 scalar.
    """
    checks.floating("masked_mean", values)
    checks.same_shape("masked_mean", values, weights)
    return current().masked_mean(values, weights, scale)


# ---- plain kernels: no graph ---------------------------------------------------------------------


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``y = x @ weight.T + bias``. Shapes: x [..., in], weight [out, in], bias [out]."""
    checks.linear("linear_forward", x, weight, 1)
    if bias is not None:
        checks.floating("linear_forward", x, bias)
        checks.vector("linear_forward", "bias", bias, weight.shape[0])
    return current().linear_forward(x, weight, bias)


def linear_dgrad(dy: Tensor, weight: Tensor) -> Tensor:
    """``dx = dy @ weight``. Shapes: dy [..., out], weight [out, in], dx [..., in]."""
    checks.linear("linear_dgrad", dy, weight, 0)
    return current().linear_dgrad(dy, weight)


def linear_wgrad(dy: Tensor, x: Tensor) -> Tensor:
    """``dw = dy.T @ x`` over all rows. Shapes: dy [..., out], x [..., in], dw [out, in]."""
    checks.weight_grad("linear_wgrad", dy, x, None)
    return current().linear_wgrad(dy, x)


def linear_wgrad_accumulate(dy: Tensor, x: Tensor, main_grad: Tensor) -> None:
    """``main_grad += dy.T @ x`` in place; main_grad fp32 [out, in], contiguous."""
    checks.weight_grad("linear_wgrad_accumulate", dy, x, main_grad)
    current().linear_wgrad_accumulate(dy, x, main_grad)


def bias_grad(dy: Tensor) -> Tensor:
    """Sum over all rows. Shapes: dy [..., out], result [out]."""
    checks.floating("bias_grad", dy)
    return current().bias_grad(dy)


def ce_max(logits: Tensor) -> Tensor:
    """Largest logit of each row of this partition, fp32. Shapes: [..., V] -> [...]."""
    checks.floating("ce_max", logits)
    return current().ce_max(logits)


def ce_sum(
    logits: Tensor, target: Tensor, row_max: Tensor, vocab_start: int
) -> tuple[Tensor, Tensor]:
    """Local parts of the loss, fp32: (sum of exp(logits - row_max), logit of the target).

    The loss of a row is ``log(sum_exp) + row_max - predicted_logit`` once both parts are summed
    over the partitions: the second is the logit itself (not shifted by the maximum), and 0 where
    the target lies in another partition. ``logits`` stay as they are.

    Shapes: logits [..., V]; target int [...] (global ids); row_max fp32 [...] (global maximum).
    """
    checks.floating("ce_sum", logits)
    checks.integers("ce_sum", target)
    checks.leading_shape("ce_sum", logits, target)
    checks.leading_shape("ce_sum", logits, row_max)
    return current().ce_sum(logits, target, row_max, vocab_start)


def ce_sum_logits(logits: Tensor) -> Tensor:
    """Sum of the logits of each row of this partition, fp32 (label smoothing)."""
    checks.floating("ce_sum_logits", logits)
    return current().ce_sum_logits(logits)


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
    return current().ce_loss(row_max, sum_exp, predicted, sum_logits, smoothing, vocab_size)


def ce_backward(
    logits: Tensor,
    target: Tensor,
    row_max: Tensor,
    sum_exp: Tensor,
    dloss: Tensor,
    vocab_start: int,
    smoothing: float = 0.0,
    vocab_size: int | None = None,
) -> Tensor:
    """Gradient of the logits: ``(softmax - wanted) * dloss``.

    ``wanted = (1 - smoothing) * onehot(target) + smoothing / vocab_size``: smoothing is the weight
    of the uniform distribution over all ``vocab_size`` entries (default: V). Megatron's factor
    K / (K - 1) on the user's label smoothing is the caller's.

    Shapes: logits and result [..., V]; target, row_max, sum_exp (global) and dloss [...].
    """
    checks.floating("ce_backward", logits)
    checks.integers("ce_backward", target)
    for rows in (target, row_max, sum_exp, dloss):
        checks.leading_shape("ce_backward", logits, rows)
    total = logits.shape[-1] if vocab_size is None else vocab_size
    return current().ce_backward(
        logits, target, row_max, sum_exp, dloss, vocab_start, smoothing, total
    )


def embedding_wgrad_accumulate(
    dy: Tensor, ids: Tensor, main_grad: Tensor, vocab_start: int = 0
) -> None:
    """``main_grad[id - vocab_start] += dy`` row by row, in place; foreign ids are skipped.

    Shapes: dy [..., H]; ids int [...]; main_grad fp32 [V, H], contiguous.
    """
    checks.floating("embedding_wgrad_accumulate", dy)
    checks.integers("embedding_wgrad_accumulate", ids)
    checks.leading_shape("embedding_wgrad_accumulate", dy, ids)
    checks.accumulator("embedding_wgrad_accumulate", main_grad, (main_grad.shape[0], dy.shape[-1]))
    current().embedding_wgrad_accumulate(dy, ids, main_grad, vocab_start)


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
    checks.flat_float32("adamw_", param, grad, exp_avg, exp_avg_sq)
    if step < 1:
        raise ValueError(f"adamw_: step {step}; steps count from 1")
    current().adamw_(
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


def axpy_(y: Tensor, x: Tensor, alpha: float = 1.0) -> None:
    """``y += alpha * x`` in place; y fp32, x of any floating type and the same size."""
    checks.flat_float32("axpy_", y)
    checks.floating("axpy_", x)
    if y.size != x.size:
        raise ValueError(f"axpy_: sizes {y.size} and {x.size} differ; they must be equal")
    current().axpy_(y, x, alpha)


def scale_(t: Tensor, factor: float) -> None:
    """``t *= factor`` in place; t fp32."""
    checks.flat_float32("scale_", t)
    current().scale_(t, factor)


def zero_(t: Tensor) -> None:
    """Set all elements to 0 in place, whatever they were; t contiguous, of any type."""
    checks.in_place("zero_", t)
    current().zero_(t)


def l2_norm_squared(t: Tensor) -> float:
    """Sum of squares, accumulated in fp64; the same bits every time for one thread count."""
    checks.floating("l2_norm_squared", t)
    return current().l2_norm_squared(t)


def count_zeros(t: Tensor) -> int:
    """Number of elements equal to zero."""
    checks.floating("count_zeros", t)
    return current().count_zeros(t)


def copy_cast_(dst: Tensor, src: Tensor) -> None:
    """Copy ``src`` into ``dst`` in place, converting between floating types (round to nearest)."""
    checks.floating("copy_cast_", dst)
    checks.floating("copy_cast_", src)
    if dst.size != src.size:
        raise ValueError(f"copy_cast_: sizes {dst.size} and {src.size} differ; they must be equal")
    checks.in_place("copy_cast_", dst)
    current().copy_cast_(dst, src)


def _check_activation(name: str, x: Tensor, bias: Tensor | None) -> None:
    if bias is None:
        checks.floating(name, x)
    else:
        checks.floating(name, x, bias)
        checks.vector(name, "bias", bias, x.shape[-1])
