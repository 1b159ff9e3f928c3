"""``pretrain``: the one training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from mindspore.nn import Cell

from mindspeed_ms.backend import comm
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.config import AllConfig, unsupported_reason
from mindspeed_ms.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from mindspeed_ms.core.layer_placement import layer_placement
from mindspeed_ms.core.num_microbatches_calculator import get_calculator, update_num_microbatches
from mindspeed_ms.core.optimizer import (
    OptimizerParamScheduler,
    get_grad_scaler,
    get_megatron_optimizer,
)
from mindspeed_ms.core.parameter import named_parameters, num_elements
from mindspeed_ms.training.checkpointing import load_checkpoint, make_saver, true_vocab_size
from mindspeed_ms.training.entry import user_errors
from mindspeed_ms.training.forward import (
    GetBatch,
    TokenWeights,
    default_forward_step,
    megatron_forward_step,
)
from mindspeed_ms.training.global_vars import get_all_config
from mindspeed_ms.training.initialize import initialize_megatron, set_up_run
from mindspeed_ms.training.output import print_rank_0
from mindspeed_ms.training.run_checkpoints import RunCheckpoints
from mindspeed_ms.training.run_data import build_run_data
from mindspeed_ms.training.train_loop import (
    StepReport,
    TrainingSetup,
    TrainState,
    evaluate_and_print_results,
    train,
)

__all__ = ["StepReport", "TrainState", "get_model", "pretrain", "train"]

logger = logging.getLogger(__name__)


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
        _load(setup)
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        print_rank_0(
            f"[after model, optimizer, and learning rate scheduler are built] datetime: {now} "
        )
        data = build_run_data(
            all_config,
            train_valid_test_datasets_provider,
            train_data_loader,
            consumed_train_samples=setup.state.consumed_train_samples,
            consumed_valid_samples=consumed_valid_samples(all_config, setup.state.iteration),
        )
    print_rank_0("training ...")
    if data.train is not None and not all_config.training_config.skip_train:
        if train(setup, data.train, data.valid):
            return setup.state
    iteration = setup.state.iteration
    for sets, split in ((data.valid, "validation"), (data.test, "test")):
        evaluate_and_print_results(setup, sets, f"iteration {iteration} on {split} set")
    return setup.state


def get_model(
    model_provider_func: Callable[..., Cell], config: AllConfig
) -> list[DistributedDataParallel]:
    """Build this rank's model chunks and attach their gradient buffers."""
    modules = build_model_chunks(model_provider_func, config)
    for module in modules:
        module.set_train(True)
        for name, param in named_parameters(module):
            param.name = name
    count = sum(num_elements(param) for module in modules for _, param in named_parameters(module))
    logger.debug("parameters on this rank: %d", count)
    if parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0:
        tensor = parallel_state.get_tensor_model_parallel_rank()
        pipeline = parallel_state.get_pipeline_model_parallel_rank()
        logger.info(
            "number of parameters on (tensor, pipeline) model parallel rank (%d, %d): %d",
            tensor,
            pipeline,
            count,
        )
    ddp_config = data_parallel_config(config, count)
    is_first_stage = parallel_state.get_pipeline_model_parallel_rank() == 0
    return [
        DistributedDataParallel(
            ddp_config, module, disable_bucketing=not is_first_stage or chunk > 0
        )
        for chunk, module in enumerate(modules)
    ]


def data_parallel_config(config: AllConfig, num_parameters: int) -> DistributedDataParallelConfig:
    """How a configuration reduces gradients on this rank, and what it shards.

    Args:
        config: the configuration.
        num_parameters: elements on this rank, for ``ddp_num_buckets``.
    """
    training = config.training_config
    is_first_stage = parallel_state.get_pipeline_model_parallel_rank() == 0
    is_delayed = training.delay_grad_reduce and not is_first_stage
    bucket_size = training.bucket_size
    if training.ddp_num_buckets is not None:
        bucket_size = max(1, num_parameters // training.ddp_num_buckets)
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=training.accumulate_allreduce_grads_in_fp32,
        overlap_grad_reduce=training.overlap_grad_reduce and not is_delayed,
        overlap_param_gather=config.optimizer_config.overlap_param_gather,
        use_distributed_optimizer=training.use_distributed_optimizer,
        bucket_size=bucket_size,
        average_in_collective=training.ddp_average_in_collective,
        pad_buckets_for_high_nccl_busbw=training.ddp_pad_buckets_for_high_nccl_busbw,
        mem_align_bytes=512 if training.enable_mem_align else 1,
        check_for_nan_in_grad=training.check_for_nan_in_grad,
        zero_level=config.parallel_config.zero_level,
    )


def build_model_chunks(model_provider_func: Callable[..., Cell], config: AllConfig) -> list[Cell]:
    """The models of this pipeline stage: one, or one per virtual stage.

    While a chunk is built, ``parallel_state`` names it as the current virtual stage.
    """
    chunks = layer_placement(config.model_config, config.parallel_config).num_chunks
    parallel_state.set_virtual_pipeline_model_parallel_world_size(chunks if chunks > 1 else None)
    modules = []
    for chunk in range(chunks):
        parallel_state.set_virtual_pipeline_model_parallel_rank(chunk if chunks > 1 else None)
        modules.append(
            model_provider_func(
                pre_process=parallel_state.is_pipeline_first_stage(),
                post_process=parallel_state.is_pipeline_last_stage(),
            )
        )
    return modules


def _setup(
    config: AllConfig,
    model: list[DistributedDataParallel],
    forward_step_func: Callable | None,
    get_batch_func: GetBatch | None,
    on_step: Callable[[StepReport], None] | None,
) -> TrainingSetup:
    optimizer = get_megatron_optimizer(
        config.optimizer_config,
        model,
        config.training_config.log_num_zeros_in_grad,
        grad_scaler=get_grad_scaler(config.training_config),
    )
    weights = None
    if config.training_config.calculate_per_token_loss:
        weights = TokenWeights(config.dataset_config.batch_size * config.model_config.seq_length)
    step = (
        default_forward_step(get_batch_func, weights)
        if forward_step_func is None
        else megatron_forward_step(forward_step_func, weights)
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
        token_weights=weights,
        train_iters=num_train_iters(config),
        on_step=on_step,
    )


def _load(setup: TrainingSetup) -> None:
    """Continue from a checkpoint if the configuration names one, and prepare saving."""
    config, state = setup.config, setup.state
    saver = make_saver(config)
    progress = load_checkpoint(config, setup.model, setup.optimizer, setup.scheduler)
    state.iteration = progress.iteration
    state.consumed_train_samples = progress.consumed_train_samples
    update_num_microbatches(state.consumed_train_samples, consistency_check=False)
    if saver is not None:
        training = config.training_config
        is_same = Path(training.load_checkpoint) == Path(training.output_dir)
        loaded = state.iteration if is_same else None
        setup.checkpoints = RunCheckpoints(saver, loaded, true_vocab_size(config))


def num_train_iters(config: AllConfig) -> int:
    """Iterations of the run, also when its length is given in samples.

    With samples, the iterations of a growing batch are counted by walking its schedule.
    """
    training = config.training_config
    if training.train_samples is None:
        return training.training_iters
    return get_calculator().iterations_for(training.train_samples)


def consumed_valid_samples(config: AllConfig, iteration: int) -> int:
    """Samples that evaluations up to an iteration have read.

    Source: Megatron-LM ``build_train_valid_test_data_iterators`` (formula).
    """
    training = config.training_config
    if not training.eval_interval:
        return 0
    evaluations = iteration // training.eval_interval
    return evaluations * training.eval_iters * config.global_batch_size(comm.get_world_size())
