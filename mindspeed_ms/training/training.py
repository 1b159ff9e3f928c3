# SPDX-License-Identifier: Apache-2.0
"""``pretrain`` under Megatron's path: from a command line, or from a configuration, to a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import psutil
from mindspore.nn import Cell

from mindspeed_ms import old_names
from mindspeed_ms.backend.spokesman import is_first_of_host
from mindspeed_ms.config import AllConfig, without_effect
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.forward_step import GetBatch
from mindspeed_ms.engine.run import Run, StepFunctions, carry_out
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.engine.train_loop import TrainState
from mindspeed_ms.training.checkpoint_target import is_converted
from mindspeed_ms.training.entry import user_errors
from mindspeed_ms.training.initialize import initialize_megatron
from mindspeed_ms.training.teacher_description import with_teacher

logger = logging.getLogger(__name__)

__all__ = ["StepReport", "TrainState", "pretrain"]


def pretrain(  # noqa: PLR0913 - Megatron's signature and the guide's keywords
    train_valid_test_datasets_provider: Callable | None,
    model_provider_func: Callable[..., Cell],
    model_type: Any = None,
    forward_step_func: Callable | None = None,
    process_non_loss_data_func: Callable | None = None,
    *,
    extra_args_provider: Callable | None = None,
    args_defaults: dict[str, Any] | None = None,
    all_config: AllConfig | None = None,
    train_data_loader: Iterable | None = None,
    get_batch_func: GetBatch | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainState:
    """Train a model; then evaluate it if the configuration asks for that.

    Args:
        train_valid_test_datasets_provider: numbers of samples -> (train, valid, test) datasets;
            None for the configured data.
        model_provider_func: (pre_process, post_process) -> model.
        model_type: accepted for Megatron's signature; there is one kind of model.
        forward_step_func: Megatron's ``forward_step(data_iterator, model)``, None for models that
            return their loss.
        process_non_loss_data_func: must be None.
        extra_args_provider: adds the user's own flags, when ``all_config`` is None.
        args_defaults: defaults of flags, when ``all_config`` is None.
        all_config: configuration; None parses the command line.
        train_data_loader: yields training micro-batches instead of the datasets.
        get_batch_func: data iterator -> model arguments.
        on_step: called with a report after every iteration.

    Returns:
        Where the run stands at its end.

    Raises:
        ValueError: contradictory or unsupported settings, before any long work.
        RunFailure: the run had begun and cannot go on.
        SystemExit: the same after one line was printed, when ``all_config`` is None: then the call
            is the entry point.

    Parallelism: called by every rank; collective.
    """
    if process_non_loss_data_func is not None:
        raise ValueError("process_non_loss_data_func is not supported; pass None")

    def open_run(config: AllConfig) -> Run:
        return Run(
            with_teacher(config),
            model_provider_func,
            train_valid_test_datasets_provider,
            train_data_loader,
            functions=StepFunctions(
                forward_step_func=forward_step_func,
                get_batch_func=get_batch_func,
                on_step=on_step,
            ),
            started=psutil.Process().create_time(),  # loading counts: jobs have a limit in all
        )

    if all_config is not None:
        for line in without_effect(all_config) if is_first_of_host() else ():
            logger.warning("%s", line)
        if is_converted(all_config):
            return TrainState()
        return carry_out(open_run(all_config))
    with user_errors():
        initialize_megatron(
            extra_args_provider=extra_args_provider, args_defaults=args_defaults or {}
        )
        if is_converted(get_all_config()):
            return TrainState()
        run = open_run(get_all_config())
    with user_errors(during_training=True):
        return carry_out(run)


__getattr__ = old_names.of(__name__)
