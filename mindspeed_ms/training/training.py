"""``pretrain``: the one training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from mindspore.nn import Cell

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import AllConfig, unsupported_reason
from mindspeed_ms.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from mindspeed_ms.core.num_microbatches_calculator import get_calculator
from mindspeed_ms.core.optimizer import OptimizerParamScheduler, get_megatron_optimizer
from mindspeed_ms.core.parameter import named_parameters, num_elements
from mindspeed_ms.legacy.data.data_samplers import build_pretraining_data_loader
from mindspeed_ms.training import data as training_data
from mindspeed_ms.training.entry import user_errors
from mindspeed_ms.training.forward import GetBatch, default_forward_step, megatron_forward_step
from mindspeed_ms.training.global_vars import get_all_config
from mindspeed_ms.training.initialize import initialize_megatron, set_up_run
from mindspeed_ms.training.output import print_rank_0
from mindspeed_ms.training.train_loop import (
    StepReport,
    TrainingSetup,
    TrainState,
    evaluate_and_print_results,
    train,
)

__all__ = ["StepReport", "TrainState", "get_model", "pretrain", "train"]

logger = logging.getLogger(__name__)


def pretrain(
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

    Parallelism: called by every rank; collective.
    """
    with user_errors():
        if process_non_loss_data_func is not None:
            raise ValueError("process_non_loss_data_func is not supported; pass None")
        if all_config is None:
            initialize_megatron(
                extra_args_provider=extra_args_provider, args_defaults=args_defaults or {}
            )
            all_config = get_all_config()
        else:
            set_up_run(all_config)
        reasons = unsupported_reason(all_config)
        if reasons:
            raise ValueError("; ".join(reasons))
        setup = _setup(
            all_config,
            get_model(model_provider_func, all_config),
            forward_step_func,
            get_batch_func,
            on_step,
        )
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        print_rank_0(
            f"[after model, optimizer, and learning rate scheduler are built] datetime: {now} "
        )
        train_iterator, valid_loader, test_loader = _build_data(
            all_config, train_valid_test_datasets_provider, train_data_loader
        )
    print_rank_0("training ...")
    if train_iterator is not None and not all_config.training_config.skip_train:
        train(setup, train_iterator, valid_loader)
    iteration = setup.state.iteration
    for loader, split in ((valid_loader, "validation"), (test_loader, "test")):
        if loader is not None and all_config.training_config.eval_iters > 0:
            evaluate_and_print_results(setup, loader, f"iteration {iteration} on {split} set")
    return setup.state


def get_model(
    model_provider_func: Callable[..., Cell], config: AllConfig
) -> list[DistributedDataParallel]:
    """Build this rank's part of the model and attach its gradient buffers."""
    module = model_provider_func(
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    module.set_train(True)
    for name, param in named_parameters(module):
        param.name = name
    count = sum(num_elements(param) for _, param in named_parameters(module))
    logger.debug("parameters on this rank: %d", count)
    if parallel_state.get_data_parallel_rank() == 0:
        tensor = parallel_state.get_tensor_model_parallel_rank()
        pipeline = parallel_state.get_pipeline_model_parallel_rank()
        logger.info(
            "number of parameters on (tensor, pipeline) model parallel rank (%d, %d): %d",
            tensor,
            pipeline,
            count,
        )
    training = config.training_config
    ddp_config = DistributedDataParallelConfig(
        average_in_collective=training.ddp_average_in_collective,
        mem_align_elements=128 if training.enable_mem_align else 1,
    )
    return [DistributedDataParallel(ddp_config, module)]


def _setup(
    config: AllConfig,
    model: list[DistributedDataParallel],
    forward_step_func: Callable | None,
    get_batch_func: GetBatch | None,
    on_step: Callable[[StepReport], None] | None,
) -> TrainingSetup:
    optimizer = get_megatron_optimizer(
        config.optimizer_config, model, config.training_config.log_num_zeros_in_grad
    )
    step = (
        default_forward_step(get_batch_func)
        if forward_step_func is None
        else megatron_forward_step(forward_step_func)
    )
    batch_size = config.global_batch_size(comm.get_world_size())
    return TrainingSetup(
        config=config,
        model=model,
        optimizer=optimizer,
        scheduler=OptimizerParamScheduler.from_config(
            config.training_config, config.optimizer_config, batch_size
        ),
        forward_step=step,
        train_iters=num_train_iters(config),
        on_step=on_step,
    )


def num_train_iters(config: AllConfig) -> int:
    """Iterations of the run, also when its length is given in samples.

    With samples, the iterations of a growing batch are counted by walking its schedule.
    """
    training = config.training_config
    if training.train_samples is None:
        return training.training_iters
    return get_calculator().iterations_for(training.train_samples)


def _build_data(
    config: AllConfig,
    datasets_provider: Callable | None,
    train_data_loader: Iterable | None,
) -> tuple[training_data.EndlessLoader | None, Iterable | None, Iterable | None]:
    """(training micro-batches, validation loader, test loader)."""
    if train_data_loader is not None:
        return training_data.EndlessLoader(train_data_loader), None, None
    provider = datasets_provider or training_data.train_valid_test_datasets_provider
    datasets = provider(training_data.get_train_valid_test_num_samples(config))
    train_loader, valid_loader, test_loader = (
        build_pretraining_data_loader(dataset, 0) for dataset in datasets
    )
    train_iterator = None if train_loader is None else training_data.EndlessLoader(train_loader)
    return train_iterator, valid_loader, test_loader
