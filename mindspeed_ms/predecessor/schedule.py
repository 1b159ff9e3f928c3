# SPDX-License-Identifier: Apache-2.0
"""Learning rates and decays that move with the samples, written into an optimizer's groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.config import DatasetConfig, OptimizerConfig, TrainingConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.optimizer import optimizer_param_scheduler as engine


class OptimizerParamScheduler(engine.OptimizerParamScheduler):
    """The engine's schedule, which also sets the groups of an optimizer.

    Args:
        optimizer: has ``param_groups`` with ``lr`` and ``weight_decay``; its groups may have
            ``lr_mult`` and ``wd_mult``.
        rest: the engine's arguments.
    """

    def __init__(self, optimizer: Any, *rest: Any, **named: Any) -> None:
        super().__init__(*rest, **named)
        self.optimizer = optimizer
        # A group that was made without decay stays without.
        self._decays = [_number(group.get("weight_decay", 1.0)) != 0.0 for group in self._groups()]
        self._apply()

    def step(self, increment: int = 1) -> engine.ParamValues:
        """Move on by samples; the groups have the values of the next step then."""
        values = super().step(increment)
        self._apply()
        return values

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> engine.ParamValues:
        """Continue from a stored position."""
        values = super().load_state_dict(state_dict)
        self._apply()
        return values

    def _groups(self) -> list[dict[str, Any]]:
        return [group for group in self.optimizer.param_groups if "params" in group]

    def _apply(self) -> None:
        rate, decay = self.values()
        start = self.schedule.start_wd or self.schedule.end_wd
        for group, decays in zip(self._groups(), self._decays, strict=True):
            _put(group, "lr", rate * group.get("lr_mult", 1.0))
            if decays and start:
                _put(group, "weight_decay", decay * group.get("wd_mult", 1.0))


def _number(value: Any) -> float:
    return float(value.asnumpy()) if isinstance(value, Tensor) else float(value)


def _put(group: dict[str, Any], key: str, value: float) -> None:
    """A parameter keeps its identity: the optimizer and its ``lrs`` hold it as well."""
    if isinstance(group.get(key), Parameter):
        group[key].set_data(Tensor(value, mstype.float32))
    else:
        group[key] = value


def get_optimizer_param_scheduler(
    optimizer: Any,
    optimizer_config: OptimizerConfig,
    dataset_config: DatasetConfig,
    training_config: TrainingConfig,
) -> OptimizerParamScheduler:
    """The schedule of a configuration for an optimizer with ``param_groups``.

    Raises:
        ValueError: a decaying rate without a length, or lengths that do not fit.
    """
    ranks = 1
    if parallel_state.model_parallel_is_initialized():
        ranks = parallel_state.get_data_parallel_world_size()
    samples = dataset_config.batch_size * dataset_config.micro_batch_num * ranks
    total = getattr(dataset_config, "train_samples", 0)
    if total and training_config.train_samples is None and not training_config.training_iters:
        training_config = replace(training_config, train_samples=total)
    return OptimizerParamScheduler(
        optimizer,
        engine.make_param_schedule(training_config, optimizer_config, samples),
        optimizer_config.use_checkpoint_opt_param_scheduler,
        optimizer_config.override_opt_param_scheduler,
    )
