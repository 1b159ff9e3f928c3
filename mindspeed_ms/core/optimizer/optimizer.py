# SPDX-License-Identifier: Apache-2.0
"""The optimizer step: unscale, look for overflow, clip, update, and share what was updated."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mindspore import Parameter

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import OptimizerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed import OptimizerShard
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.optimizer.clip_grads import (
    any_over,
    clip_coefficient,
    counts_in_norm,
    sum_over,
)
from mindspeed_ms.core.optimizer.flat_state import FlatState, RowFactors, StatePart
from mindspeed_ms.core.optimizer.grad_scaler import GradScaler
from mindspeed_ms.core.optimizer.muon import Muon
from mindspeed_ms.core.optimizer.param_groups import ParamGroup, WidthRule, get_param_groups
from mindspeed_ms.core.optimizer.soap import Soap
from mindspeed_ms.core.optimizer.state_figures import state_figures
from mindspeed_ms.core.optimizer.update_rules import get_update_rule
from mindspeed_ms.core.parameter import named_parameters, shard_of
from mindspeed_ms.core.timers import timed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of an optimizer step; a skipped one has no norm."""

    success: bool
    grad_norm: float | None
    num_zeros_in_grad: int | None


class MegatronOptimizer:
    """An update rule on flat fp32 main parameters, with clipping by the norm over the model.

    A step whose gradients overflow on any rank is skipped, when there is a loss scale: it changes
    neither weights nor moments.

    Args:
        config: update rule and clipping.
        groups: parameters by learning rate and weight decay.
        models: the chunks whose buffers hold parameters and gradients.
        grad_scaler: the loss scale; None for 1, without a check for overflow.
        log_num_zeros: count the zeros of the gradients in each step.
        is_apart: of a name: its gradient is clipped by the norm of such gradients alone, which the
            norm of the step leaves out. None: there are none.

    Parallelism: ``step`` and ``params_norm`` are collective over the world.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        groups: Sequence[ParamGroup],
        models: Sequence[DistributedDataParallel],
        grad_scaler: GradScaler | None = None,
        log_num_zeros: bool = False,
        is_apart: Callable[[str], bool] | None = None,
    ) -> None:
        self._clips_apart = is_apart is not None
        self.config = config
        self.param_groups = list(groups)
        self.models = list(models)
        self.grad_scaler = grad_scaler
        self.log_num_zeros = log_num_zeros
        self.num_steps = 0
        """Updates so far; skipped steps do not count."""
        self.row_factors: Callable[[], Mapping[int, RowFactors]] | None = None
        """Asked after every update: rows of parameters, by ``id``, that are scaled (collective)."""
        self._tp_groups = (
            parallel_state.get_tensor_model_parallel_group(),
            parallel_state.get_expert_tensor_parallel_group(),
        )
        group_of = {
            id(param): group for group in self.param_groups for _, param in group.parameters
        }
        rule = get_update_rule(config)
        self._matrices: Muon | Soap | None = None
        if config.updates_matrices:
            self._matrices = Soap(config) if config.algorithm == "soap" else Muon(config)
        narrow = {name: memory.dtype_of(type_) for name, type_ in config.narrow_types.items()}
        self._states = [
            FlatState(
                shard,
                lambda param: group_of[id(param)],
                rule,
                self._counts,
                self._matrices,
                lambda param: self._tp_groups[shard_of(param).is_expert],
                narrow,
                is_apart or (lambda _: False),
            )
            for model in self.models
            for shard in model.shards
        ]

    def _counts(self, param: Parameter) -> bool:
        return counts_in_norm(param, *self._tp_groups)

    @property
    def loss_scale(self) -> float:
        """Factor on the loss of the coming step."""
        return 1.0 if self.grad_scaler is None else self.grad_scaler.scale

    def parameters(self) -> list[Parameter]:
        """All parameters, group by group."""
        return [param for group in self.param_groups for _, param in group.parameters]

    def set_schedule(
        self,
        lr: float,
        weight_decay: float,
        decoupled_lr: float | None,
        lr_of: Callable[[float], float] | None = None,
    ) -> None:
        """Set every group's learning rate and weight decay for the next step.

        Args:
            lr: of most groups.
            weight_decay: of groups that have one.
            decoupled_lr: of embedding and head; None: ``lr``.
            lr_of: factor on the bounds of the schedule -> learning rate; None: the product.
        """
        for group in self.param_groups:
            base = decoupled_lr if group.is_decoupled_lr and decoupled_lr is not None else lr
            if lr_of is not None and group.lr_mult != 1.0:
                group.lr = lr_of(group.lr_mult)
            else:
                group.lr = base * group.lr_mult
            group.weight_decay = weight_decay * group.wd_mult

    def step(self, watch: Callable[[float], None] | None = None) -> StepResult:
        """Apply the reduced gradients, unless they overflowed.

        Args:
            watch: is told the norm before anything is changed, and may raise; not asked where a
                loss scale lets steps be skipped.
        """
        inverse = 1.0 / self.loss_scale
        has_scale = self.grad_scaler is not None
        with timed(f"optimizer-{'unscale-and-check-inf' if has_scale else 'clip-main-grad'}", 1):
            norm, apart, has_overflow = self._grad_norm(inverse)
        if self.grad_scaler is not None:
            if self._skips(self.grad_scaler, has_overflow):
                return StepResult(False, None, None)
        elif watch is not None:
            watch(norm)
        coefficient = other = 1.0
        if self.config.clip_grad > 0.0:
            coefficient = clip_coefficient(norm, self.config.clip_grad)
            other = clip_coefficient(apart, self.config.clip_grad)
        zeros = None
        if self.log_num_zeros:
            with timed("optimizer-count-zeros", 1):
                zeros = self._num_zeros()
        self.num_steps += 1
        with timed("optimizer-inner-step", 1):
            for state in self._states:
                state.update(self.num_steps, coefficient * inverse, other * inverse)
            factors = {} if self.row_factors is None else self.row_factors()
            for state in self._states if factors else ():
                state.scale_rows(factors)
        self._share()
        return StepResult(True, norm, zeros)

    def _skips(self, scaler: GradScaler, has_overflow: bool) -> bool:
        """Tell the scaler; True when the step must be skipped."""
        found = any_over(has_overflow, comm.world_group())
        scale = self.loss_scale
        scaler.update(found)
        if has_overflow:
            name = next(filter(None, (state.first_bad() for state in self._states)), None)
            logger.warning(
                "rank %d: gradient overflow with loss scale %g, first in %s; the step is skipped "
                "and the loss scale is %g now",
                comm.get_rank(),
                scale,
                name,
                self.loss_scale,
            )
        return found

    def _grad_norm(self, factor: float) -> tuple[float, float, bool]:
        """Norms of the gradients times ``factor``: of most, and of those that are clipped apart.

        Then whether one on this rank is not finite.
        """
        total, other, is_bad = 0.0, 0.0, False
        for state in self._states:
            counted, apart, repeated = state.squares(state.shard.grads)
            is_bad |= not math.isfinite(counted + apart + repeated)
            total += counted * factor * factor / _copies(state.shard)
            other += apart * factor * factor / _copies(state.shard)
        world = comm.world_group()
        norm = math.sqrt(sum_over(total, world))
        return norm, math.sqrt(sum_over(other, world)) if self._clips_apart else 0.0, is_bad

    def _num_zeros(self) -> int:
        zeros = (state.num_zeros() / _copies(state.shard) for state in self._states)
        return round(sum_over(math.fsum(zeros), comm.world_group()))

    def params_norm(self) -> float:
        """L2 norm of all parameters of the model."""
        squares = (
            sum(state.squares(state.shard.params)[:2]) / _copies(state.shard)
            for state in self._states
        )
        return math.sqrt(sum_over(math.fsum(squares), comm.world_group()))

    def state_figures(self) -> dict[str, float]:
        """Norms of moments and weights over the model (collective over the world)."""
        return state_figures(
            (part, _copies(state.shard)) for state in self._states for part in state.counted_parts()
        )

    def squares_by_parameter(self) -> dict[str, float]:
        """What this rank adds to the sum of squares of every parameter."""
        found: dict[str, float] = {}
        for state in self._states:
            for name, square in state.squares_by_parameter(state.shard.params):
                found[name] = found.get(name, 0.0) + square / _copies(state.shard)
        return found

    def _share(self) -> None:
        """Let other ranks have updated parameters; here they updated the same ones."""

    def is_finite(self) -> bool:
        """Whether all weights and moments of this rank are numbers."""
        return all(state.is_finite() for state in self._states)

    def refresh_main_params(self) -> None:
        """Take the main parameters from the model, after weights were loaded into it."""
        for state in self._states:
            state.refresh_main()

    def settle(self) -> None:
        """Take over what a checkpoint wrote into ``state_parts``."""
        for state in self._states:
            state.settle()

    def state_parts(self) -> Iterator[StatePart]:
        """What this rank keeps, parameter by parameter, for checkpoints."""
        for state in self._states:
            yield from state.parts()

    def num_bytes(self) -> int:
        """Memory of main parameters and moments on this rank."""
        return sum(state.num_bytes for state in self._states)


class DistributedOptimizer(MegatronOptimizer):
    """Every rank keeps the state of its shard of each bucket, and updates that.

    The other ranks get the updated parameters at the end of the step, or bucket by bucket when the
    next forward needs them.

    Source: Rajbhandari et al., 2020 (ZeRO), on Megatron-LM's buckets.
    """

    def _share(self) -> None:
        with timed("params-all-gather", 1):
            for model in self.models:
                model.start_param_sync()


def _copies(shard: OptimizerShard) -> int:
    """Ranks of the world that hold (and count) the same elements."""
    if shard.reduction.is_sharded:
        return 1 if shard.reduction.replicas is None else shard.reduction.replicas.size
    return shard.reduction.group.size


def get_megatron_optimizer(
    config: OptimizerConfig,
    models: Sequence[DistributedDataParallel],
    log_num_zeros: bool = False,
    *,
    grad_scaler: GradScaler | None = None,
    width_mult: float = 1.0,
    is_apart: Callable[[str], bool] | None = None,
) -> MegatronOptimizer:
    """Optimizer of all trainable parameters of the model chunks.

    Args:
        config: update rule and clipping.
        models: the chunks of this rank.
        log_num_zeros: count the zeros of the gradients in each step.
        grad_scaler: the loss scale, None for 1.
        width_mult: hidden size over that of the base model, with ``use_mup``.
        is_apart: see ``MegatronOptimizer``.
    """
    parameters = [item for model in models for item in named_parameters(model.module)]
    groups = get_param_groups(
        parameters,
        config.no_weight_decay_params,
        decoupled_lr=config.decoupled_lr is not None,
        is_matrix=lambda param: config.has_matrix_rule(param.ndim, shard_of(param).is_vocabulary),
        width=WidthRule(width_mult, config.algorithm),
        decays_qk_norms=config.apply_wd_to_qk_layernorm,
    )
    is_sharded = any(model.config.is_sharded for model in models)
    kind = DistributedOptimizer if is_sharded else MegatronOptimizer
    return kind(config, groups, models, grad_scaler, log_num_zeros, is_apart)
