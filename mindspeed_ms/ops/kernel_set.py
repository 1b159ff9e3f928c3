# SPDX-License-Identifier: Apache-2.0
"""The seam of the kernels: what each of the three sets offers.

``portable``, ``cpu`` and ``ascend`` are packages with functions of these names and parameters;
mypy compares them with this class. ``ops`` says what each operation computes, and has checked the
arguments before a set gets them. A set may rely on: shapes fit, types agree and are stored, tensors
that are written to are contiguous.

A new operation is a function of ``ops``, a line here, the definition in ``portable``, and in each
set the import of its own function or of the portable one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mindspore as ms
from mindspore import Tensor

from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops.attention_call import AttentionCall, Places

QUICK = 1.702
"""Factor within the sigmoid of quick_gelu."""


class KernelSet(Protocol):
    """One way to compute every operation of ``ops``."""

    def describe(self) -> str:
        """What computes, for the start-up log."""

    def unavailable(self) -> str:
        """Why the set cannot run here, with the fix; empty when it can."""

    # ---- differentiable --------------------------------------------------------------------------

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        sinks: Tensor | None,
        call: AttentionCall,
    ) -> Tensor: ...
    def bias_dropout_add(
        self,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        p: float,
        generator: Generator | None,
    ) -> Tensor: ...
    def branch(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def cast(self, x: Tensor, dtype: ms.Type) -> Tensor: ...
    def causal_conv_silu(self, x: Tensor, weight: Tensor) -> Tensor: ...
    def clipped(self, x: Tensor, limit: float) -> Tensor: ...
    def combine_rows(self, rows: Tensor, probs: Tensor, places: Tensor) -> Tensor: ...
    def dropout(self, x: Tensor, p: float, generator: Generator) -> Tensor: ...
    def embedding(self, weight: Tensor, ids: Tensor, vocab_start: int) -> Tensor: ...
    def gated(
        self,
        x: Tensor,
        bias: Tensor | None,
        activation: str,
        limit: float | None,
        offset: float,
        alpha: float,
    ) -> Tensor: ...
    def gated_delta_rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        a: Tensor,
        b: Tensor,
        log_rate: Tensor,
        dt_bias: Tensor,
    ) -> Tensor: ...
    def gelu(self, x: Tensor, bias: Tensor | None, approximate: str) -> Tensor: ...
    def index_loss(self, scores: Tensor, shares: Tensor, hidden: Tensor, rows: int) -> Tensor: ...
    def index_scores(self, q: Tensor, k: Tensor, weights: Tensor, rectified: bool) -> Tensor: ...
    def join_columns(self, parts: tuple[Tensor, ...], padding: int) -> Tensor: ...
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor: ...
    def masked_mean(self, values: Tensor, weights: Tensor, scale: float) -> Tensor: ...
    def normalized_rows(self, scores: Tensor) -> Tensor: ...
    def quick_gelu(self, x: Tensor, bias: Tensor | None) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...
    def rotary(self, t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor: ...
    def router_scores(self, logits: Tensor, function: str) -> Tensor: ...
    def scaled(self, x: Tensor, factor: float) -> Tensor: ...
    def sigmoid_gated(self, x: Tensor, gate: Tensor) -> Tensor: ...
    def silu(self, x: Tensor, bias: Tensor | None) -> Tensor: ...
    def softcapped(self, x: Tensor, cap: float) -> Tensor: ...
    def softmax(
        self, scores: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor: ...
    def split_columns(self, x: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]: ...
    def split_qkv(
        self, mixed: Tensor, num_groups: int, queries_per_group: int, head_dim: int
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def squared_logsumexp(self, logits: Tensor) -> Tensor: ...
    def relu(self, x: Tensor, bias: Tensor | None) -> Tensor: ...
    def squared_relu(self, x: Tensor, bias: Tensor | None) -> Tensor: ...
    def swiglu(self, x: Tensor, bias: Tensor | None) -> Tensor: ...
    def take_columns(self, x: Tensor, columns: Tensor) -> Tensor: ...
    def weighted_total(self, x: Tensor, weights: Tensor) -> Tensor: ...

    # ---- plain kernels: no graph -----------------------------------------------------------------

    def attention_accumulate(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        out: Tensor,
        lse: Tensor,
        call: AttentionCall,
    ) -> None: ...
    def attention_backward_accumulate(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        out: Tensor,
        lse: Tensor,
        dout: Tensor,
        grads: tuple[Tensor, Tensor, Tensor],
        call: AttentionCall,
    ) -> None: ...
    def attention_sinks_grad(
        self, out: Tensor, dout: Tensor, lse: Tensor, sinks: Tensor
    ) -> Tensor: ...
    def attention_share(self, q: Tensor, k: Tensor, hidden: Tensor, scale: float) -> Tensor: ...
    def bias_grad(self, dy: Tensor) -> Tensor: ...
    def ce_backward(
        self,
        logits: Tensor,
        target: Tensor,
        sums: tuple[Tensor, Tensor],
        dloss: Tensor,
        vocab_start: int,
        smoothing: float,
        vocab_size: int,
        spends_logits: bool,
    ) -> Tensor: ...
    def ce_loss(
        self,
        row_max: Tensor,
        sum_exp: Tensor,
        predicted: Tensor,
        sum_logits: Tensor | None,
        smoothing: float,
        vocab_size: int,
    ) -> Tensor: ...
    def ce_max(self, logits: Tensor) -> Tensor: ...
    def ce_sum(
        self, logits: Tensor, target: Tensor, row_max: Tensor, vocab_start: int
    ) -> tuple[Tensor, Tensor]: ...
    def ce_sum_logits(self, logits: Tensor) -> Tensor: ...
    def hidden_but_top(self, scores: Tensor, hidden: Tensor, count: int) -> Tensor: ...
    def kl_parts(
        self,
        logits: Tensor,
        teacher: Tensor,
        row_max: Tensor,
        teacher_max: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]: ...
    def kl_loss(self, own: Tensor, theirs: Tensor, both: Tensor, temperature: float) -> Tensor: ...
    def kl_backward(
        self,
        logits: Tensor,
        teacher: Tensor,
        tops: tuple[Tensor, Tensor],
        sums: tuple[Tensor, Tensor],
        dloss: Tensor,
        temperature: float,
    ) -> Tensor: ...
    def decode_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        slots: Places | None,
        call: AttentionCall,
    ) -> Tensor: ...
    def embedding_wgrad_accumulate(
        self, dy: Tensor, ids: Tensor, main_grad: Tensor, vocab_start: int
    ) -> None: ...
    def grouped_linear_dgrad(
        self, dy: Tensor, weights: Sequence[Tensor], counts: Sequence[int]
    ) -> Tensor: ...
    def grouped_linear_forward(
        self, x: Tensor, weights: Sequence[Tensor], counts: Sequence[int]
    ) -> Tensor: ...
    def grouped_linear_wgrad_accumulate(
        self, dy: Tensor, x: Tensor, main_grads: Sequence[Tensor], counts: Sequence[int]
    ) -> None: ...
    def largest_columns(
        self,
        scores: Tensor,
        k: int,
        num_groups: int | None,
        group_topk: int | None,
        group_scores: int | None,
    ) -> Tensor: ...
    def linear_dgrad(self, dy: Tensor, weight: Tensor) -> Tensor: ...
    def linear_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...
    def linear_wgrad(self, dy: Tensor, x: Tensor) -> Tensor: ...
    def linear_wgrad_accumulate(self, dy: Tensor, x: Tensor, main_grad: Tensor) -> None: ...
    def product_fp64(self, a: Tensor, b: Tensor) -> Tensor: ...
    def random_normal(self, shape: tuple[int, ...], generator: Generator) -> Tensor: ...
    def random_uniform(
        self, shape: tuple[int, ...], low: float, high: float, generator: Generator
    ) -> Tensor: ...

    # ---- in place on flat fp32 buffers -----------------------------------------------------------

    def adamw_(
        self,
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
        grad_scale: float,
    ) -> None: ...
    def axpy_(self, y: Tensor, x: Tensor, alpha: float) -> None: ...
    def copy_cast_(self, dst: Tensor, src: Tensor) -> None: ...
    def count_zeros(self, t: Tensor) -> int: ...
    def divide_by_root_(self, x: Tensor, squares: Tensor, beta: float, eps: float) -> None: ...
    def l2_norm_squared(self, t: Tensor) -> float: ...
    def lion_(
        self,
        param: Tensor,
        grad: Tensor,
        exp_avg: Tensor,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        weight_decay: float,
    ) -> None: ...
    def scale_(self, t: Tensor, factor: float) -> None: ...
    def zero_(self, t: Tensor) -> None: ...
