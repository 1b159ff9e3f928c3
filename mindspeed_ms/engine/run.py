"""A run: from a configuration to its last evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from mindspore.nn import Cell

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig, unsupported_reason
from mindspeed_ms.core.distributed import DistributedDataParallel
from mindspeed_ms.core.num_microbatches_calculator import get_calculator, update_num_microbatches
from mindspeed_ms.core.optimizer import (
    OptimizerParamScheduler,
    get_grad_scaler,
    get_megatron_optimizer,
)
from mindspeed_ms.engine.checkpointing import load_checkpoint, make_saver, true_vocab_size
from mindspeed_ms.engine.forward_step import (
    GetBatch,
    TokenWeights,
    default_forward_step,
    megatron_forward_step,
)
from mindspeed_ms.engine.model_chunks import get_model
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.run_checkpoints import RunCheckpoints
from mindspeed_ms.engine.run_data import build_run_data
from mindspeed_ms.engine.start import set_up_run
from mindspeed_ms.engine.train_loop import (
    StepReport,
    TrainingSetup,
    TrainState,
    evaluate_and_print_results,
    train,
)


def pretrain(
    config: AllConfig,
    model_provider: Callable[..., Cell],
    datasets_provider: Callable | None = None,
    *,
    forward_step_func: Callable | None = None,
    train_data_loader: Iterable | None = None,
    get_batch_func: GetBatch | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainState:
    """Train a model; then evaluate it if the configuration asks for that.

    Args:
        config: the configuration.
        model_provider: (pre_process, post_process) -> model.
        datasets_provider: numbers of samples -> (train, valid, test) datasets; None for the
            configured data.
        forward_step_func: Megatron's ``forward_step(data_iterator, model)``, None for models that
            return their loss.
        train_data_loader: yields training micro-batches instead of the datasets.
        get_batch_func: data iterator -> model arguments.
        on_step: called with a report after every iteration.

    Returns:
        Where the run stands at its end.

    Raises:
        ValueError: contradictory or unsupported settings, before any long work.

    Parallelism: called by every rank; collective.
    """
    set_up_run(config)
    reasons = unsupported_reason(config)
    if reasons:
        raise ValueError("; ".join(reasons))
    setup = _setup(
        config, get_model(model_provider, config), forward_step_func, get_batch_func, on_step
    )
    _load(setup)
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    print_rank_0(
        f"[after model, optimizer, and learning rate scheduler are built] datetime: {now} "
    )
    data = build_run_data(
        config,
        datasets_provider,
        train_data_loader,
        consumed_train_samples=setup.state.consumed_train_samples,
        consumed_valid_samples=consumed_valid_samples(config, setup.state.iteration),
    )
    print_rank_0("training ...")
    if data.train is not None and not config.training_config.skip_train:
        if train(setup, data.train, data.valid):
            return setup.state
    iteration = setup.state.iteration
    for sets, split in ((data.valid, "validation"), (data.test, "test")):
        evaluate_and_print_results(setup, sets, f"iteration {iteration} on {split} set")
    return setup.state


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
