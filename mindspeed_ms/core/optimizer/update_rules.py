# SPDX-License-Identifier: Apache-2.0
"""Update rules on flat fp32 memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.config import OptimizerConfig
from mindspeed_ms.config.optimizer_config import STATES


@dataclass(frozen=True, slots=True)
class Hyper:
    """Values of one step for one segment."""

    lr: float
    weight_decay: float
    step: int
    """Number of this update, from 1."""
    grad_scale: float
    """Factor on the gradient: clipping and the inverse of the loss scale."""
    eps_mult: float = 1.0
    """Factor on Adam's eps."""


class UpdateRule(Protocol):
    """How gradients change parameters; ``state_names`` are its fp32 tensors per parameter."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state tensors."""

    def apply(self, main: Tensor, grad: Tensor, state: Mapping[str, Tensor], hyper: Hyper) -> None:
        """Update ``main`` and ``state`` in place; the gradient may be destroyed."""


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), in one pass over memory.

    With ``decoupled=False`` the decay is added to the gradient: Adam with L2 regularisation.
    """

    state_names: tuple[str, ...] = STATES["adamw"]

    def __init__(self, betas: tuple[float, float], eps: float, decoupled: bool = True) -> None:
        self.betas, self.eps, self.decoupled = betas, eps, decoupled

    def apply(self, main: Tensor, grad: Tensor, state: Mapping[str, Tensor], hyper: Hyper) -> None:
        """One step."""
        scale, decay = hyper.grad_scale, hyper.weight_decay
        if not self.decoupled and decay:
            ops.scale_(grad, scale)
            ops.axpy_(grad, main, decay)
            scale, decay = 1.0, 0.0
        ops.adamw_(
            main,
            grad,
            state["exp_avg"],
            state["exp_avg_sq"],
            lr=hyper.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=self.eps * hyper.eps_mult,
            weight_decay=decay,
            step=hyper.step,
            grad_scale=scale,
        )


class EmaAdamW:
    """Adam, and behind each step e = decay e + (1 - decay) w, which begins as the weights.

    Source: MindSpeed's ``fused_ema_adamw`` (behaviour).
    """

    state_names: tuple[str, ...] = STATES["ema_adamw"]

    def __init__(self, adam: AdamW, decay: float) -> None:
        self._adam, self.decay = adam, decay

    def apply(self, main: Tensor, grad: Tensor, state: Mapping[str, Tensor], hyper: Hyper) -> None:
        """One step."""
        average = state["ema_params"]
        if hyper.step == 1:
            ops.copy_cast_(average, main)
        self._adam.apply(main, grad, state, hyper)
        ops.scale_(average, self.decay)
        ops.axpy_(average, main, 1.0 - self.decay)


class Sgd:
    """v = momentum v + (grad + decay w); w = w - lr v."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.state_names: tuple[str, ...] = STATES["sgd"] if momentum else ()

    def apply(self, main: Tensor, grad: Tensor, state: Mapping[str, Tensor], hyper: Hyper) -> None:
        """One step."""
        velocity, scale = grad, hyper.grad_scale
        if self.momentum:
            velocity = state["momentum_buffer"]
            ops.scale_(velocity, self.momentum)
            ops.axpy_(velocity, grad, scale)
        else:
            ops.scale_(velocity, scale)
        if hyper.weight_decay:
            ops.axpy_(velocity, main, hyper.weight_decay)
        ops.axpy_(main, velocity, -hyper.lr)


class Lion:
    """w = (1 - lr decay) w - lr sign(b1 m + (1 - b1) grad); m = b2 m + (1 - b2) grad.

    Source: Chen et al., 2023.
    """

    state_names: tuple[str, ...] = STATES["lion"]

    def __init__(self, betas: tuple[float, float], decoupled: bool = True) -> None:
        self.betas, self.decoupled = betas, decoupled

    def apply(self, main: Tensor, grad: Tensor, state: Mapping[str, Tensor], hyper: Hyper) -> None:
        """One step."""
        ops.scale_(grad, hyper.grad_scale)
        decay = hyper.weight_decay
        if decay and not self.decoupled:
            ops.axpy_(grad, main, decay)
            decay = 0.0
        ops.lion_(
            main,
            grad,
            state["exp_avg"],
            lr=hyper.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=decay,
        )


def get_update_rule(config: OptimizerConfig) -> UpdateRule:
    """The rule of a configuration for what is updated element by element."""
    if config.element_algorithm == "sgd":
        return Sgd(config.sgd_momentum)
    if config.element_algorithm == "lion":
        return Lion((config.lion_beta1, config.lion_beta2), config.decoupled_weight_decay)
    adam = AdamW(config.betas, config.eps, config.decoupled_weight_decay)
    return EmaAdamW(adam, config.ema_decay) if config.keeps_average else adam
