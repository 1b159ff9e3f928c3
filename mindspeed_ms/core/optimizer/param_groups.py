# SPDX-License-Identifier: Apache-2.0
"""Parameters grouped by how the schedules treat them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from mindspore import Parameter

from mindspeed_ms.backend import comm
from mindspeed_ms.config.optimizer_config import Algorithm
from mindspeed_ms.core.parameter import shard_of

DEFAULT_NO_DECAY = "Default_Setup"

GroupKind: TypeAlias = tuple[bool, bool, bool, float, float]
"""No decay, a rate of its own, the rule of matrices, factors on the rate and on Adam's eps."""


@dataclass(slots=True)
class ParamGroup:
    """Parameters with one learning rate and one weight decay.

    ``lr`` and ``weight_decay`` are set before each step from the schedules' values times the
    group's multipliers.
    """

    wd_mult: float = 1.0
    lr_mult: float = 1.0
    is_decoupled_lr: bool = False
    eps_mult: float = 1.0
    is_matrix: bool = False
    """Updated by the rule of matrices."""
    parameters: list[tuple[str, Parameter]] = field(default_factory=list)
    lr: float = 0.0
    weight_decay: float = 0.0

    @property
    def kind(self) -> GroupKind:
        """What its parameters have in common; groups are in this order."""
        return (
            self.wd_mult == 0.0,
            self.is_decoupled_lr,
            self.is_matrix,
            self.lr_mult,
            self.eps_mult,
        )


@dataclass(frozen=True, slots=True)
class WidthRule:
    """How rates follow the width of a model (maximal update parametrisation).

    Source: Yang et al., 2022; Megatron-LM ``get_mup_config_overrides``.
    """

    mult: float = 1.0
    """Hidden size over that of the base model."""
    algorithm: Algorithm = "adamw"

    def lr_mult(self, name: str, param: Parameter, is_matrix: bool) -> float:
        """Factor on the learning rate; ``is_matrix``: the parameter has the rule of matrices."""
        if self.algorithm == "sgd":
            return 1.0 if _is_hidden(name, param) else self.mult
        return 1.0 / self.mult if _is_hidden(name, param) and not is_matrix else 1.0

    def eps_mult(self, name: str, param: Parameter) -> float:
        """Factor on Adam's eps."""
        is_adam = self.algorithm == "adamw"
        return 1.0 / self.mult if is_adam and _is_hidden(name, param) else 1.0


def _is_hidden(name: str, param: Parameter) -> bool:
    """Whether both sides of a matrix grow with the width, or the input's alone: not of a table."""
    shard = shard_of(param)
    return param.ndim > 1 and "embedding" not in name and not (shard.is_tied or shard.shared)


def get_param_groups(
    parameters: Sequence[tuple[str, Parameter]],
    no_weight_decay_params: Sequence[str] = (DEFAULT_NO_DECAY,),
    decoupled_lr: bool = False,
    is_matrix: Callable[[Parameter], bool] = lambda _: False,
    width: WidthRule | None = None,
    decays_qk_norms: bool = False,
) -> list[ParamGroup]:
    """Groups with decay first, then without; embedding and head apart when their rate is decoupled.

    Args:
        parameters: trainable parameters by name.
        no_weight_decay_params: regular expressions of names without decay; ``Default_Setup``
            stands for biases and one-dimensional parameters.
        decoupled_lr: embedding and head have a learning rate of their own.
        is_matrix: whether a parameter is updated by the rule of matrices.
        width: factors that the model's width has on rates; None: none.
        decays_qk_norms: ``Default_Setup`` leaves the norms of queries and keys with decay.

    Source: Megatron-LM ``_get_param_groups`` (which parameters, which order).
    """
    rule = width or WidthRule()
    groups: dict[GroupKind, ParamGroup] = {}
    for name, param in parameters:
        no_decay = any(_matches(one, name, param) for one in no_weight_decay_params)
        no_decay &= not (decays_qk_norms and _is_qk_norm(name))
        decoupled = decoupled_lr and shard_of(param).is_vocabulary
        matrix = is_matrix(param)
        lr_mult = 1.0 if decoupled else rule.lr_mult(name, param, matrix)
        eps_mult = rule.eps_mult(name, param)
        group = ParamGroup(
            wd_mult=0.0 if no_decay else 1.0,
            lr_mult=lr_mult,
            eps_mult=eps_mult,
            is_decoupled_lr=decoupled,
            is_matrix=matrix,
        )
        groups.setdefault(group.kind, group).parameters.append((name, param))
    return [groups[key] for key in sorted(groups)]


def group_numbers(groups: Sequence[ParamGroup]) -> dict[str, int]:
    """The number of each parameter's group, in the order of the groups of all ranks.

    Parallelism: collective over the world.

    Source: Megatron-LM ``get_megatron_optimizer`` (``dump_param_to_param_group_map``).
    """
    own = {name: group.kind for group in groups for name, _ in group.parameters}
    kinds: dict[str, GroupKind] = {}
    for of_rank in comm.all_gather_object(own):
        kinds |= of_rank
    numbers = {kind: number for number, kind in enumerate(sorted(set(kinds.values())))}
    return {name: numbers[kind] for name, kind in kinds.items()}


def _is_qk_norm(name: str) -> bool:
    return "q_layernorm." in name or "k_layernorm." in name


def _matches(rule: str, name: str, param: Parameter) -> bool:
    if rule == DEFAULT_NO_DECAY:
        return name.endswith(".bias") or param.ndim == 1
    return re.search(rule, name) is not None
