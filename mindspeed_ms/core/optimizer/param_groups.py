# SPDX-License-Identifier: Apache-2.0
"""Parameters grouped by how the schedules treat them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mindspore import Parameter

from mindspeed_ms.core.parameter import shard_of

DEFAULT_NO_DECAY = "Default_Setup"


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


def get_param_groups(
    parameters: Sequence[tuple[str, Parameter]],
    no_weight_decay_params: Sequence[str] = (DEFAULT_NO_DECAY,),
    decoupled_lr: bool = False,
    is_matrix: Callable[[Parameter], bool] = lambda _: False,
) -> list[ParamGroup]:
    """Groups with decay first, then without; embedding and head apart when their rate is decoupled.

    Args:
        parameters: trainable parameters by name.
        no_weight_decay_params: regular expressions of names without decay; ``Default_Setup``
            stands for biases and one-dimensional parameters.
        decoupled_lr: embedding and head have a learning rate of their own.
        is_matrix: whether a parameter is updated by the rule of matrices.

    Source: Megatron-LM ``_get_param_groups`` (which parameters, which order).
    """
    groups: dict[tuple[bool, bool, bool], ParamGroup] = {}
    for name, param in parameters:
        no_decay = any(_matches(rule, name, param) for rule in no_weight_decay_params)
        decoupled = decoupled_lr and shard_of(param).is_vocabulary
        group = groups.setdefault(
            (no_decay, decoupled, is_matrix(param)),
            ParamGroup(
                wd_mult=0.0 if no_decay else 1.0,
                is_decoupled_lr=decoupled,
                is_matrix=is_matrix(param),
            ),
        )
        group.parameters.append((name, param))
    return [groups[key] for key in sorted(groups)]


def _matches(rule: str, name: str, param: Parameter) -> bool:
    if rule == DEFAULT_NO_DECAY:
        return name.endswith(".bias") or param.ndim == 1
    return re.search(rule, name) is not None
