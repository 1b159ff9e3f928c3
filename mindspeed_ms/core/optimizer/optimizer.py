"""AdamW on fp32 main parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import OptimizerConfig
from mindspeed_ms.core.distributed import DistributedDataParallel
from mindspeed_ms.core.optimizer.clip_grads import (
    clip_coefficient,
    counted_once,
    l2_norm,
    num_zeros,
)
from mindspeed_ms.core.optimizer.param_groups import ParamGroup, get_param_groups
from mindspeed_ms.core.parameter import named_parameters


@dataclass(slots=True)
class AdamState:
    """What the optimizer keeps for one parameter, each of its local shape, fp32."""

    main_param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of an optimizer step."""

    success: bool
    grad_norm: float | None
    num_zeros_in_grad: int | None


class MegatronOptimizer:
    """AdamW (Loshchilov and Hutter, 2019) with gradient clipping by the norm over the model.

    Parameters in fp32 are their own main parameters; others get an fp32 copy that is updated and
    rounded back after each step.

    Args:
        config: update rule and clipping.
        groups: parameters by learning rate and weight decay.
        log_num_zeros: count the zeros of the gradients in each step.
    """

    def __init__(
        self, config: OptimizerConfig, groups: Sequence[ParamGroup], log_num_zeros: bool = False
    ) -> None:
        if config.algorithm != "adamw":
            raise ValueError(
                f"optimizer_type is {config.optimizer_type!r}; only AdamW is supported: use 'adam'"
            )
        self.config = config
        self.param_groups = list(groups)
        self.log_num_zeros = log_num_zeros
        self.num_steps = 0
        self._tp_group = parallel_state.get_tensor_model_parallel_group()
        self._model_group = parallel_state.get_model_parallel_group()
        self.state = {
            name: AdamState(
                main_param=_main_copy(param),
                exp_avg=memory.zeros(param.shape),
                exp_avg_sq=memory.zeros(param.shape),
            )
            for group in self.param_groups
            for name, param in group.parameters
        }

    def parameters(self) -> list[Parameter]:
        """All parameters, group by group."""
        return [param for group in self.param_groups for _, param in group.parameters]

    def set_schedule(self, lr: float, weight_decay: float, decoupled_lr: float | None) -> None:
        """Set every group's learning rate and weight decay for the next step."""
        for group in self.param_groups:
            base = decoupled_lr if group.is_decoupled_lr and decoupled_lr is not None else lr
            group.lr = base * group.lr_mult
            group.weight_decay = weight_decay * group.wd_mult

    def step(self) -> StepResult:
        """Clip and apply the gradients that lie in ``param.main_grad``."""
        grads = [param.main_grad for param in counted_once(self.parameters(), self._tp_group)]
        zeros = num_zeros(grads, self._model_group) if self.log_num_zeros else None
        norm, coefficient = None, 1.0
        if self.config.clip_grad > 0.0:
            norm = l2_norm(grads, self._model_group)
            coefficient = clip_coefficient(norm, self.config.clip_grad)
        self.num_steps += 1
        for group in self.param_groups:
            for name, param in group.parameters:
                self._update(group, param, self.state[name], coefficient)
        return StepResult(True, norm, zeros)

    def params_norm(self) -> float:
        """L2 norm of all parameters of the model."""
        params = counted_once(self.parameters(), self._tp_group)
        return l2_norm(params, self._model_group)

    def _update(
        self, group: ParamGroup, param: Parameter, state: AdamState, coefficient: float
    ) -> None:
        beta1, beta2 = self.config.betas
        ops.adamw_(
            state.main_param,
            param.main_grad,
            state.exp_avg,
            state.exp_avg_sq,
            lr=group.lr,
            beta1=beta1,
            beta2=beta2,
            eps=self.config.eps,
            weight_decay=group.weight_decay,
            step=self.num_steps,
            grad_scale=coefficient,
        )
        if state.main_param is not param:
            ops.copy_cast_(param, state.main_param)


def _main_copy(param: Parameter) -> Tensor:
    if param.dtype == mstype.float32:
        return param
    copy = memory.empty(param.shape)
    ops.copy_cast_(copy, param)
    return copy


def get_megatron_optimizer(
    config: OptimizerConfig,
    models: Sequence[DistributedDataParallel],
    log_num_zeros: bool = False,
) -> MegatronOptimizer:
    """Optimizer of all trainable parameters of the model chunks."""
    parameters = [item for model in models for item in named_parameters(model.module)]
    groups = get_param_groups(
        parameters,
        config.no_weight_decay_params,
        decoupled_lr=config.decoupled_lr is not None,
    )
    return MegatronOptimizer(config, groups, log_num_zeros)
