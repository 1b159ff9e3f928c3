# SPDX-License-Identifier: Apache-2.0
"""Which experts a token goes to, and with which weight.

Legend: s sequence, b batch, h hidden, T tokens of a rank (s * b), E experts, K choices per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.backend.reshaping import reshaped
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.core import aux_losses
from mindspeed_ms.core.expert_bias import (
    chosen_by_quantiles,
    create_expert_bias,
    create_thresholds,
)
from mindspeed_ms.core.parameter import grad_sink_of, make_ready
from mindspeed_ms.core.process_groups import ProcessGroups
from mindspeed_ms.core.tensor_parallel.layers import add_bias
from mindspeed_ms.core.tensor_parallel.random import (
    EXPERT_PARALLEL_RNG,
    MODEL_PARALLEL_RNG,
    get_rng_tracker,
)
from mindspeed_ms.legacy.model.from_spec import parameter
from mindspeed_ms.legacy.model.moe.balance_losses import (
    GROUP_LOSS,
    LOSS_NAMES,
    VISIT_LOSS,
    Z_LOSS,
    RunningCounts,
    batch_loss,
    group_losses,
    sequence_loss,
    sinkhorn,
    summed_counts,
)
from mindspeed_ms.legacy.model.moe.dispatch_plan import drop_over_capacity, expert_capacity
from mindspeed_ms.models.feed_forward import MoESpec
from mindspeed_ms.models.gpt import moe_spec


@dataclass(frozen=True, slots=True)
class Routing:
    """Where the tokens of a rank go."""

    probs: Tensor
    """Weight of each choice, fp32 [T, K], on the tape."""

    experts: np.ndarray
    """Expert of each choice, int32 [T, K]; -1 where it was dropped."""

    capacity: int | None
    """Rows that every expert is padded to; None for no padding."""

    def __iter__(self) -> Iterator[Tensor]:
        """(probs, experts), as scripts that route themselves unpack it."""
        return iter((self.probs, memory.from_numpy(self.experts)))


class _Gating(autograd.Function):
    """L = X W^T in fp32, float64 (rounded to fp32) or the type of X.

    Shapes: X [T, h], W [E, h], L fp32 [T, E]; dX = dL W, dW = dL^T X, into the gradient sink of W
    if it has one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Parameter, dtype: str | None, fused: bool) -> Tensor:
        x = memory.contiguous(x)
        make_ready(weight)
        ctx.save_for_backward(x)
        ctx.weight, ctx.dtype, ctx.fused = weight, dtype, fused
        if dtype == "fp64":
            return ops.product_fp64(x, weight)
        working = mstype.float32 if dtype == "fp32" else x.dtype
        return ops.cast(
            ops.linear_forward(ops.cast(x, working), ops.cast(weight, working)), mstype.float32
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        weight = ctx.weight
        make_ready(weight)
        grad = memory.contiguous(grad)
        working = x.dtype if ctx.dtype is None else mstype.float32
        grad = ops.cast(grad, working)
        if ctx.dtype == "fp64":
            dx = ops.product_fp64(grad, memory.contiguous(weight.swapaxes(0, 1)))
        else:
            dx = ops.linear_dgrad(grad, ops.cast(weight, working))
        dx = ops.cast(dx, x.dtype)
        if not weight.requires_grad:
            return dx, None, None, None
        sink = grad_sink_of(weight) if ctx.fused else None
        if sink is None:
            return (
                dx,
                ops.cast(ops.linear_wgrad(grad, ops.cast(x, working)), weight.dtype),
                None,
                None,
            )
        ops.linear_wgrad_accumulate(grad, ops.cast(x, working), sink.main_grad)
        sink.mark_ready()
        return dx, None, None, None


class _RandomLogits(autograd.Function):
    """Other logits in place of the computed ones, whose gradient passes through."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, random: Tensor) -> Tensor:
        return random

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class TopKRouter(Cell):
    """Scores every token for every expert and keeps the best K.

    Args:
        config: model configuration with its ``moe_config``.
        layer_number: global number of the layer, from 1, for the log.
        spec: the mixture, default the configuration's.
        groups: of this rank, default the current ones.

    Parallelism: the weight is whole on every rank. Counting choices over the ranks that share
        sequences (and for ``global_aux_loss`` over all data parallel ranks) is collective.

    Source: Megatron-LM ``TopKRouter`` (options). Deliberate difference: the gradient of
        ``global_aux_loss`` does not shrink with the data parallel size.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int = 1,
        *,
        spec: MoESpec | None = None,
        groups: ProcessGroups | None = None,
    ) -> None:
        super().__init__()
        spec, groups = spec or moe_spec(config), groups or ProcessGroups.current()
        parallel = config.parallel_config
        self.config = config.moe_config
        self.num_experts, self.topk = spec.num_experts, spec.topk
        self.layer_number = layer_number
        self.sequence_parallel = parallel.sequence_parallel
        self.gradient_accumulation_fusion = parallel.gradient_accumulation_fusion
        weight, *bias = (
            parameter(one, sequence_parallel=parallel.sequence_parallel)
            for one in spec.router.parameters()
        )
        self.weight, self.bias = weight, bias[0] if bias else None
        self.expert_bias = None
        if spec.expert_bias is not None:
            self.expert_bias = create_expert_bias(
                self.num_experts, self.config.moe_router_bias_update_rate
            )
        self.qb_beta = None
        if spec.thresholds is not None:
            ema = self.config.moe_router_quantile_balancing_ema
            self.qb_beta = create_thresholds(self.num_experts, ema)
        number = self.config.moe_router_num_groups or groups.expert.size
        self.expert_groups = (number, self.config.moe_router_group_topk or number)
        self.sharing_group = groups.tensor_and_context
        self.all_group = groups.tensor_and_data
        self._running = RunningCounts(np.zeros(self.num_experts))

    def construct(self, hidden_states: Tensor, drops_tokens: bool = True) -> Routing:
        """[s, b, h] -> the routing of its s * b tokens, within the capacity if ``drops_tokens``."""
        batch_size, hidden = hidden_states.shape[-2:]
        x = self._jittered(reshaped(hidden_states, (-1, hidden)))
        logits = self.gating(x)
        is_training = self.training and autograd.is_grad_enabled()
        if is_training and self.config.moe_z_loss_coeff is not None:
            logits = self._with_z_loss(logits, self.config.moe_z_loss_coeff)
        if self.config.moe_router_force_load_balancing:
            with get_rng_tracker().fork(EXPERT_PARALLEL_RNG) as stream:
                logits = _RandomLogits.apply(logits, ops.random_normal(logits.shape, stream))
        if self.config.moe_router_force_biased:
            logits = logits + memory.from_numpy(self._forced_bias(logits.shape))
        if self.config.balances_by("sinkhorn"):
            probs, experts = self._sinkhorn(logits)
        else:
            logits, judged = ops.branch(logits)
            probs, experts = self.routing(logits, is_training)
            if is_training:
                probs = self._with_balance_losses(probs, judged, experts, batch_size)
        routing = (
            self._within_capacity(probs, experts) if drops_tokens else Routing(probs, experts, None)
        )
        if is_training and self.expert_bias is not None and routing.capacity is None:
            # Rows of padding count as load, in Megatron too: with them all experts are alike.
            kept = routing.experts[routing.experts >= 0]
            self.expert_bias.expert_load.tokens += np.bincount(kept, minlength=self.num_experts)
        return routing

    def _jittered(self, x: Tensor) -> Tensor:
        """Each element times a random factor near 1, in training."""
        eps = self.config.moe_input_jitter_eps
        if eps is None or not self.training:
            return x
        tracker = get_rng_tracker()
        if self.sequence_parallel:  # ranks hold different tokens
            with tracker.fork(MODEL_PARALLEL_RNG) as stream:
                factors = ops.random_uniform(x.shape, 1.0 - eps, 1.0 + eps, stream)
        else:
            factors = ops.random_uniform(x.shape, 1.0 - eps, 1.0 + eps, tracker.current())
        return x * ops.cast(factors, x.dtype)

    def gating(self, x: Tensor) -> Tensor:
        """Logits of every expert. Shapes: [T, h] -> fp32 [T, E]."""
        logits = _Gating.apply(
            x, self.weight, self.config.moe_router_dtype, self.gradient_accumulation_fusion
        )
        return logits if self.bias is None else add_bias(logits, self.bias)

    def _forced_bias(self, shape: tuple[int, int]) -> np.ndarray:
        """A constant of each expert, the same in every step and on every rank."""
        spread = self.config.moe_router_force_biased or 0.0
        drawn = np.random.RandomState(self.layer_number).randn(self.num_experts) * spread
        return np.ascontiguousarray(np.broadcast_to(drawn.astype(np.float32), shape))

    def routing(self, logits: Tensor, is_training: bool = False) -> tuple[Tensor, np.ndarray]:
        """(weights fp32 [T, K], experts int32 [T, K]) of logits [T, E]."""
        config = self.config
        is_single = config.moe_router_score_function != "softmax"
        if is_single or config.moe_router_pre_softmax:
            scores = ops.router_scores(logits, config.moe_router_score_function)
        else:
            scores = logits
        by_quantiles = self.qb_beta is not None
        columns = self._by_quantiles(logits, is_training) if by_quantiles else self._best(scores)
        probs = ops.take_columns(scores, columns)
        if not (is_single or config.moe_router_pre_softmax):
            probs = ops.router_scores(probs, "softmax")
        elif config.normalizes_weights:
            probs = ops.normalized_rows(probs)
        if config.moe_router_topk_scaling_factor is not None:
            probs = ops.scaled(probs, config.moe_router_topk_scaling_factor)
        return probs, memory.as_numpy(columns)

    def _best(self, scores: Tensor) -> Tensor:
        """Columns of the best experts, int32 [T, K]; the bias has a say, but no gradient."""
        config = self.config
        scores = autograd.detach(scores)
        if self.expert_bias is not None:
            with autograd.no_grad():
                scores = scores + autograd.detach(self.expert_bias)
        return ops.largest_columns(
            scores,
            self.topk,
            config.moe_router_num_groups,
            config.moe_router_group_topk,
            config.moe_router_group_scores,
        )

    def _by_quantiles(self, logits: Tensor, is_training: bool) -> Tensor:
        """Columns of the experts farthest above their thresholds, int32 [T, K].

        Quantiles are those of whole sequences: collective over the ranks that share them.
        """
        assert self.qb_beta is not None, "quantile balancing has thresholds"
        group, mine = self.sharing_group, memory.contiguous(autograd.detach(logits))
        every, first = mine, 0
        if group.size > 1 and is_training:
            tokens = mine.shape[0]
            every = memory.empty((group.size * tokens, self.num_experts), mine.dtype)
            comm.all_gather_into_tensor(every, mine, group=group)
            first = group.rank * tokens
        experts, wanted = chosen_by_quantiles(
            memory.as_numpy(every), memory.as_numpy(self.qb_beta), self.topk
        )
        if is_training:
            state = self.qb_beta.quantiles
            state.total += wanted
            state.num_microbatches += 1
        return memory.from_numpy(np.ascontiguousarray(experts[first : first + mine.shape[0]]))

    def _sinkhorn(self, logits: Tensor) -> tuple[Tensor, np.ndarray]:
        """Choices from the evened-out scores, weights from the plain ones."""
        scores = ops.router_scores(logits, "sigmoid" if self.topk == 1 else "softmax")
        basis = scores
        if self.training:
            even = sinkhorn(memory.as_numpy(memory.contiguous(logits)))
            basis = memory.from_numpy(np.ascontiguousarray(even))
        columns = ops.largest_columns(autograd.detach(basis), self.topk)
        return ops.take_columns(scores, columns), memory.as_numpy(columns)

    def _with_z_loss(self, logits: Tensor, coefficient: float) -> Tensor:
        loss = ops.squared_logsumexp(logits)
        aux_losses.record(Z_LOSS, self.layer_number, loss)
        return aux_losses.attach(logits, ops.scaled(loss, coefficient / self.sharing_group.size))

    def _with_balance_losses(
        self, probs: Tensor, logits: Tensor, experts: np.ndarray, batch_size: int
    ) -> Tensor:
        """The weights, with every configured balance loss attached."""
        config = self.config
        wanted = {kind: value for kind, value in config.balance_coefficients().items() if value}
        of_groups = {
            GROUP_LOSS: config.moe_device_level_aux_loss_coeff,
            VISIT_LOSS: config.moe_comm_aux_loss_coeff,
        }
        if not wanted and not any(of_groups.values()):
            return probs
        scores = ops.router_scores(logits, config.moe_router_score_function)
        if config.moe_router_score_function != "softmax":
            scores = ops.normalized_rows(scores)
        if any(of_groups.values()):
            sequences = batch_size if config.balances_by("seq_aux_loss") else 1
            losses = group_losses(
                scores, experts, sequences, self.expert_groups, self.sharing_group
            )
            for (name, coefficient), loss in zip(of_groups.items(), losses, strict=True):
                if coefficient:
                    aux_losses.record(name, self.layer_number, loss)
                    probs = aux_losses.attach(probs, ops.scaled(loss, coefficient))
        # The loss judges the scores alone: neither the bias nor groups take part in its choices.
        chosen = memory.as_numpy(ops.largest_columns(autograd.detach(scores), self.topk))
        for kind, coefficient in wanted.items():
            loss = self._balance_loss(kind, scores, chosen, batch_size)
            aux_losses.record(LOSS_NAMES[kind], self.layer_number, loss)
            probs = aux_losses.attach(probs, ops.scaled(loss, coefficient))
        return probs

    def _balance_loss(
        self, kind: str, scores: Tensor, chosen: np.ndarray, batch_size: int
    ) -> Tensor:
        group: Group = self.sharing_group
        if kind == "seq_aux_loss":
            return sequence_loss(scores, chosen, batch_size, self.topk, group)
        if kind == "global_aux_loss":
            counts = summed_counts(chosen, self.num_experts, self.all_group)
            counts = self._running.mean_with(counts, aux_losses.current_step())
            num_tokens = len(chosen) * self.all_group.size
        else:
            counts = summed_counts(chosen, self.num_experts, group)
            num_tokens = len(chosen) * group.size
        return batch_loss(scores, counts, num_tokens, self.topk, group.size)

    def _within_capacity(self, probs: Tensor, experts: np.ndarray) -> Routing:
        config = self.config
        if config.moe_expert_capacity_factor is None:
            return Routing(probs, experts, None)
        capacity = expert_capacity(
            len(experts), self.topk, self.num_experts, config.moe_expert_capacity_factor
        )
        values = memory.as_numpy(memory.contiguous(probs))
        kept = drop_over_capacity(experts, values, capacity, config.moe_token_drop_policy)
        return Routing(probs, kept, capacity if config.moe_pad_expert_input_to_capacity else None)
