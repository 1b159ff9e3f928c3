# SPDX-License-Identifier: Apache-2.0
"""The predecessor's optimizers: a rule and its groups, carried out on the engine's flat buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.nn import Cell, CellList

from mindspeed_ms.backend import device, memory
from mindspeed_ms.config import ModelParallelConfig, OptimizerConfig, TrainingConfig
from mindspeed_ms.core.distributed.bucket import add_
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
    ZeroLevel,
)
from mindspeed_ms.core.distributed.finalize_model_grads import finalize_model_grads
from mindspeed_ms.core.optimizer import optimizer as engine
from mindspeed_ms.core.optimizer.grad_scaler import GradScaler, get_grad_scaler
from mindspeed_ms.core.optimizer.param_groups import ParamGroup
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.predecessor.data_parallel import (
    DistributedDataParallel,
    FlatModel,
    flat_model_of,
    takes_gradients,
)

Params = Sequence[Parameter] | Sequence[Mapping[str, Any]]
"""Parameters, or groups of them: ``{"params": [...], "lr": ..., "weight_decay": ...}``."""

_RULES = {"SGD": "SGD", "Adam": "AdamW", "AdamW": "AdamW", "AdamWeightDecay": "AdamW"}
"""Class of a MindSpore optimizer -> update rule."""


def number(value: Any) -> float:
    """A learning rate or decay that may be a tensor."""
    return float(value.asnumpy()) if isinstance(value, Tensor) else float(value)


class _Holder(Cell):
    """Parameters without a model, under their own names."""

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        super().__init__(auto_prefix=False)
        for parameter in parameters:
            self.insert_param_to_cell(parameter.name.replace(".", "_"), parameter)


class MixedPrecisionOptimizer:
    """AdamW, Adam or SGD on fp32 main parameters, for a training loop of the user's own.

    Args:
        optimizer: a MindSpore optimizer with ``param_groups`` (``mint.optim``), or groups; it
            gives the groups, their rates, and the rule. It makes no step itself.
        config: clipping, and what the optimizer leaves open.
        grad_scaler: the loss scale, None for 1.
        init_state_fn: accepted for the signature; moments start at zero.

    Raises:
        ValueError: an optimizer without groups, or whose rule does not exist here.

    Parallelism: a step is collective over the world.
    """

    is_sharded: bool | None = None
    """What the buffers must be; None: either."""

    def __init__(
        self,
        optimizer: Any,
        config: OptimizerConfig,
        grad_scaler: GradScaler | None = None,
        init_state_fn: Callable | None = None,
        **unused: Any,
    ) -> None:
        self.optimizer, self.init_state_fn = optimizer, init_state_fn
        self.config = _completed(config, optimizer)
        self.param_groups = groups_of(optimizer, self.config)
        parameters = [param for group in self.param_groups for param in group["params"]]
        self.models = models_of(parameters)
        self._check_buffers()
        names = {
            id(param): name
            for model in self.models
            for name, param in named_parameters(model.module)
        }
        self._groups = [
            ParamGroup(parameters=[(names[id(param)], param) for param in group["params"]])
            for group in self.param_groups
        ]
        sharded = any(model.config.is_sharded for model in self.models)
        kind = engine.DistributedOptimizer if sharded else engine.MegatronOptimizer
        self.inner = kind(self.config, self._groups, self.models, grad_scaler)
        self.last: engine.StepResult | None = None
        """What the last step did."""

    def _check_buffers(self) -> None:
        for model in self.models:
            if self.is_sharded is not None and model.config.is_sharded != self.is_sharded:
                raise ValueError(
                    f"{type(self).__name__} needs a DistributedDataParallel whose "
                    f"use_distributed_optimizer is {self.is_sharded}"
                )

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters, group by group."""
        return [param for group in self.param_groups for param in group["params"]]

    @property
    def lrs(self) -> list[float]:
        """Learning rate of every group."""
        return [number(group["lr"]) for group in self.param_groups]

    @property
    def grad_scaler(self) -> GradScaler | None:
        """The loss scale."""
        return self.inner.grad_scaler

    def get_lr(self) -> list[float]:
        """Learning rate of every group."""
        return self.lrs

    def get_loss_scale(self) -> Tensor:
        """Factor on the loss of the coming step."""
        return Tensor(np.float32(self.inner.loss_scale))

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss times its scale."""
        return loss * self.inner.loss_scale

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for model in self.models:
            model.zero_grad_buffer()

    def __call__(self, grads: Sequence[Tensor] | None = None) -> bool:
        """Reduce and apply the gradients in the buffers.

        Args:
            grads: of ``parameters`` in their order, for parameters without a
                ``DistributedDataParallel``; the buffers of the others have theirs.

        Returns:
            Whether the step was made: not when gradients overflowed under a loss scale.
        """
        for param, grad in zip(self.parameters, grads or (), strict=False):
            if not takes_gradients(param):
                add_(param.main_grad, grad.contiguous())
        finalize_model_grads(self.models)
        for group, ours in zip(self.param_groups, self._groups, strict=True):
            ours.lr, ours.weight_decay = number(group["lr"]), number(group["weight_decay"])
        self.last = self.inner.step()
        if grads is not None:
            self.zero_grad()
        return self.last.success

    construct = __call__

    def step(self) -> bool:
        """Reduce and apply the gradients in the buffers; see the call."""
        return self()

    def reload_main_params(self) -> None:
        """Take the main parameters from the model, after weights were loaded into it."""
        self.inner.refresh_main_params()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Moments and main parameters of this rank by name, and the number of steps."""
        state: dict[str, np.ndarray] = {"state_step": np.array(self.inner.num_steps, np.int64)}
        for part in self.inner.state_parts():
            for kind, tensor in {**part.state, "main": part.main_param}.items():
                state[f"{kind}.{part.name}:{part.param_start}"] = memory.as_numpy(tensor).copy()
        return state

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what ``state_dict`` returned, in the same layout.

        Raises:
            ValueError: something is missing.
        """
        self.inner.num_steps = int(_entry(state, "state_step"))
        for part in self.inner.state_parts():
            for kind, tensor in {**part.state, "main": part.main_param}.items():
                values = _entry(state, f"{kind}.{part.name}:{part.param_start}")
                memory.copy_from_host(tensor, np.ascontiguousarray(values))


class Float16OptimizerWithFloat16Params(MixedPrecisionOptimizer):
    """Main parameters in fp32 of a model in 16 bits; every rank updates all of them.

    Args:
        optimizer, config, grad_scaler, init_state_fn: see ``MixedPrecisionOptimizer``.
    """

    is_sharded = False


class DistributedOptimizer(MixedPrecisionOptimizer):
    """Every data parallel rank updates its shard, and the ranks gather the parameters.

    Args:
        optimizer: see ``MixedPrecisionOptimizer``.
        config: see ``MixedPrecisionOptimizer``.
        grad_scaler: the loss scale, None for 1.
        init_state_fn: accepted for the signature.
        per_model_buffers: accepted for the signature; parameters know their buffers.
        data_parallel_group: accepted for the signature; the buffers know their ranks.
    """

    is_sharded = True

    def __init__(
        self,
        optimizer: Any,
        config: OptimizerConfig,
        grad_scaler: GradScaler | None = None,
        init_state_fn: Callable | None = None,
        per_model_buffers: Any = None,
        data_parallel_group: str | None = None,
        **unused: Any,
    ) -> None:
        super().__init__(optimizer, config, grad_scaler, init_state_fn)
        self.per_model_buffers = per_model_buffers
        self.data_parallel_group = data_parallel_group


class AdamW(MixedPrecisionOptimizer):
    """AdamW whose state, gradients or weights are shared out over data parallel ranks.

    Args:
        network: the model, whose parameters move into flat buffers.
        params: parameters or groups of them, None for all trainable ones.
        learning_rate: of groups without one.
        betas: decay rates of the moments.
        eps: addend to the root of the second moment.
        weight_decay: of groups without one.
        zero_level: z1, z2 or z3; None for none.
        grad_allreduce_op: ``mean`` or ``sum`` over the ranks.
        grad_scaler: the loss scale, None for 1.
        clip_grad: largest norm of the gradients, 0 for no limit.
    """

    def __init__(  # noqa: PLR0913 - the predecessor's public signature
        self,
        network: Cell | None,
        params: Params | None = None,
        learning_rate: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        zero_level: ZeroLevel | None = None,
        grad_allreduce_op: str = "mean",
        grad_scaler: GradScaler | None = None,
        clip_grad: float = 0.0,
        **unused: Any,
    ) -> None:
        config = OptimizerConfig(
            optimizer_type="AdamW",
            learning_rate=learning_rate,
            betas=(betas[0], betas[1]),
            eps=eps,
            weight_decay=weight_decay,
            clip_grad=clip_grad,
        )
        if params is None:
            params = [param for cell in chunks_of(network) for param in cell.trainable_params()]
        flatten(network, _flat_params(params), zero_level, grad_allreduce_op == "sum")
        super().__init__(list(params), config, grad_scaler)


def get_optimizer(
    optimizer_config: OptimizerConfig,
    training_config: TrainingConfig,
    params: Params | None = None,
    network: Cell | Sequence[Cell] | None = None,
    return_instance: bool = True,
    **options: Any,
) -> Any:  # noqa: ANN401 - an optimizer, or a constructor of one
    """The optimizer of a configuration.

    Args:
        optimizer_config: rule, rates, clipping.
        training_config: loss scale, and how gradients are reduced.
        params: parameters or groups of them, None for all trainable ones of the network.
        network: the model or its chunks; with ``wrap_with_ddp`` those of ``get_model``.
        return_instance: False: return a function that makes it.
        options: ``grad_allreduce_op`` (mean, sum) and others of ``AdamW``.

    Raises:
        ValueError: neither parameters nor a network.
    """
    if network is None and params is None:
        raise ValueError("get_optimizer got neither params nor network; give one of them")
    parallel = optimizer_config.parallel_config or training_config.parallel_config
    make = functools.partial(
        _make,
        optimizer_config,
        training_config,
        parallel or ModelParallelConfig(),
        params,
        network,
        **options,
    )
    return make() if return_instance else make


def _make(
    config: OptimizerConfig,
    training: TrainingConfig,
    parallel: ModelParallelConfig,
    params: Params | None,
    network: Any,
    **options: Any,
) -> MixedPrecisionOptimizer:
    scaler = get_grad_scaler(training)
    if not config.clip_grad:
        config = replace(config, clip_grad=clip_limit(training))
    if params is None:
        params = [param for cell in chunks_of(network) for param in cell.trainable_params()]
    sums = options.get("grad_allreduce_op", training.loss_reduction) == "sum"
    flatten(network, _flat_params(params), parallel.zero_level, sums)
    kind = MixedPrecisionOptimizer
    if training.wrap_with_ddp:
        sharded = training.use_distributed_optimizer
        kind = DistributedOptimizer if sharded else Float16OptimizerWithFloat16Params
    return kind(list(params), config, scaler)


def acting(optimizer: Any, training: TrainingConfig | None = None) -> Any:
    """What carries out the steps of an optimizer: itself, or what stands in for one of mint.

    The kernels of ``mindspore.mint.optim`` exist on Ascend only. On CPU the engine's rule works on
    its groups instead, whose rates and decays stay the ones that count.

    Args:
        optimizer: of the script.
        training: loss scale, clipping and reduction of a stand-in; None makes none.
    """
    if device.is_ascend() or not type(optimizer).__module__.startswith("mindspore.mint."):
        return optimizer
    made = getattr(optimizer, "stand_in", None)
    if made is None and training is not None:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        flatten(None, params, None, training.loss_reduction == "sum")
        config = OptimizerConfig(clip_grad=clip_limit(training))
        made = MixedPrecisionOptimizer(optimizer, config, get_grad_scaler(training))
        object.__setattr__(optimizer, "stand_in", made)
    return optimizer if made is None else made


def clip_limit(config: TrainingConfig) -> float:
    """Largest norm of the gradients in ``grad_clip_kwargs``; 0 for none."""
    given = getattr(config, "grad_clip_kwargs", None)
    if given is None:
        return 0.0
    return float(given.get("clip_value", 1.0)) if isinstance(given, Mapping) else float(given)


# --- parameters, groups, buffers ------------------------------------------------------------------


def chunks_of(network: Any) -> list[Cell]:
    """The model chunks of a network: itself, or the elements of a list."""
    if network is None:
        return []
    is_list = isinstance(network, (list, tuple, CellList))
    return list(network) if is_list else [network]


def flatten(
    network: Any, parameters: Sequence[Parameter], zero_level: ZeroLevel | None, sums: bool
) -> None:
    """Move parameters that have no flat buffers yet into some.

    Args:
        network: the model or its chunks; None for parameters without one.
        parameters: to be trained.
        zero_level: what data parallel ranks share out.
        sums: do not average gradients.
    """
    if all(flat_model_of(parameter) is not None for parameter in parameters):
        return
    config = DistributedDataParallelConfig(zero_level=zero_level)
    for cell in chunks_of(network) or [_Holder(parameters)]:
        if not isinstance(cell, DistributedDataParallel):
            FlatModel(config, cell, sums=sums)


def models_of(parameters: Sequence[Parameter]) -> list[FlatModel]:
    """The wrappers whose buffers hold these parameters, each once; made where there is none."""
    flatten(None, parameters, None, sums=False)
    found: dict[int, FlatModel] = {}
    for parameter in parameters:
        model = flat_model_of(parameter)
        assert model is not None, "every parameter has buffers now"
        found.setdefault(id(model), model)
    trained = {id(parameter) for parameter in parameters}
    for model in found.values():
        for name, parameter in named_parameters(model.module):
            if id(parameter) not in trained:
                raise ValueError(
                    f"{name} is trainable, but the optimizer was not given it; give all "
                    "parameters of a model, or set requires_grad = False"
                )
    return list(found.values())


def groups_of(optimizer: Any, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups with ``params``, ``lr``, ``weight_decay``; those of a MindSpore optimizer are its own.

    Raises:
        ValueError: neither groups nor parameters.
    """
    groups = getattr(optimizer, "param_groups", optimizer)
    if not isinstance(groups, (list, tuple)) or not groups:
        raise ValueError(
            f"{type(optimizer).__name__} has no param_groups; use an optimizer of mint.optim, "
            "parameters, or groups of them"
        )
    if isinstance(groups[0], Parameter):
        groups = [{"params": list(groups)}]
    made = []
    for group in groups:
        if "params" not in group:  # {"order_params": ...}
            continue
        group.setdefault("lr", config.learning_rate)
        group.setdefault("weight_decay", config.weight_decay)
        made.append(group)
    return made


def _flat_params(params: Params) -> list[Parameter]:
    found: list[Parameter] = []
    for item in params:
        found += [item] if isinstance(item, Parameter) else list(item.get("params", ()))
    return found


def _completed(config: OptimizerConfig, optimizer: Any) -> OptimizerConfig:
    """The configuration with the rule of a MindSpore optimizer.

    Raises:
        ValueError: a rule that does not exist here.
    """
    defaults = getattr(optimizer, "defaults", None)
    if not isinstance(defaults, Mapping):
        return config
    kind = type(optimizer).__name__
    if kind not in _RULES:
        raise ValueError(f"{kind} has no counterpart here; use mint.optim.AdamW, Adam or SGD")
    found: dict[str, Any] = {"optimizer_type": _RULES[kind]}
    if kind == "Adam":
        found["decoupled_weight_decay"] = False
    if "betas" in defaults:
        found["betas"] = tuple(number(beta) for beta in defaults["betas"])
    if "eps" in defaults:
        found["eps"] = number(defaults["eps"])
    if "momentum" in defaults:
        found["sgd_momentum"] = number(defaults["momentum"])
    if number(defaults.get("maximize", 0)) or number(defaults.get("amsgrad", 0)):
        raise ValueError(f"{kind} with maximize or amsgrad has no counterpart here; leave them out")
    return replace(config, **found)


def _entry(state: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in state:
        raise ValueError(
            f"the stored optimizer state has no {name}; it was written for another layout"
        )
    return state[name]
