# SPDX-License-Identifier: Apache-2.0
"""A run: opened from a configuration, trained, evaluated, saved, closed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Literal

from mindspore.nn import Cell

from mindspeed_ms.backend import comm
from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core import distillation, loss_options, run_state
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.num_microbatches_calculator import update_num_microbatches
from mindspeed_ms.core.optimizer import (
    OptimizerParamScheduler,
    get_grad_scaler,
    get_megatron_optimizer,
)
from mindspeed_ms.core.optimizer.param_groups import group_numbers
from mindspeed_ms.core.run_state import RunState
from mindspeed_ms.core.timers import timed
from mindspeed_ms.data.loader import SampleDataset
from mindspeed_ms.engine import output
from mindspeed_ms.engine.batch_counts import nothing_to_train, num_train_iters
from mindspeed_ms.engine.checkpointing import load_checkpoint, make_saver, true_vocab_size
from mindspeed_ms.engine.forward_step import (
    GetBatch,
    TokenWeights,
    default_forward_step,
    megatron_forward_step,
)
from mindspeed_ms.engine.health import Health
from mindspeed_ms.engine.memory_check import require_memory
from mindspeed_ms.engine.micro_batches import BatchReader
from mindspeed_ms.engine.model_chunks import get_model
from mindspeed_ms.engine.observe.observer import Observer
from mindspeed_ms.engine.observe.record import Warnings
from mindspeed_ms.engine.observe.saved_steps import saved_steps
from mindspeed_ms.engine.output import print_rank_0, print_rank_last
from mindspeed_ms.engine.pretrained import started_from_pretrained
from mindspeed_ms.engine.qk_clip import QkClip
from mindspeed_ms.engine.random_states import HostGenerators
from mindspeed_ms.engine.restart import resumed
from mindspeed_ms.engine.run_checkpoints import RunCheckpoints
from mindspeed_ms.engine.run_data import RunData, build_run_data, whole_set
from mindspeed_ms.engine.start import check_configuration, fill_run_state, report_layout, write_json
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.engine.teacher import reporting, teacher_of
from mindspeed_ms.engine.teaching import set_up_distillation
from mindspeed_ms.engine.train_loop import (
    TrainingSetup,
    evaluate_and_print_results,
    train,
    validate,
)
from mindspeed_ms.engine.train_state import TrainState
from mindspeed_ms.models.model import predicts_further
from mindspeed_ms.models.width import width_mult


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFunctions:
    """Functions of the user's that a step calls.

    Args:
        forward_step_func: Megatron's ``forward_step(data_iterator, model)``, None for models that
            return their loss.
        get_batch_func: data iterator -> model arguments.
        on_step: called with a report after every iteration. A text that it returns, the same on
            all ranks, ends training and says why.
    """

    forward_step_func: Callable | None = None
    get_batch_func: GetBatch | None = None
    on_step: Callable[[StepReport], str | None] | None = None


class Run:
    """A training run of this process.

    It is open from the moment it is made; ``close``, or the end of a ``with`` block, takes
    everything back that it has brought into the process. Runs may follow one another, also after
    one that failed, and several may be open at a time: Megatron's functions without a run argument
    (``get_tensor_model_parallel_group()``, ``get_num_microbatches()``, ...) answer for the run
    whose method is being carried out, and outside of methods as if there were none.

        with Run(config, model_provider) as run:
            run.train()
            run.evaluate()

    Args:
        config: the configuration.
        model_provider: (pre_process, post_process) -> model.
        datasets_provider: numbers of samples -> (train, valid, test) datasets; None for the
            configured data.
        train_data_loader: yields training micro-batches instead of the datasets; a provider that is
            given too then serves validation and test.
        functions: forward function, batches and callback of the user's.
        started: beginning of the time that ``exit_duration_in_mins`` limits, in seconds since the
            epoch; None: now.

    Attributes:
        config: the configuration.
        model: the chunks of this rank.
        state: iteration and samples consumed.
        stop_reason: why ``train`` left before the last iteration; None if it did not.

    Raises:
        ValueError: contradictory or unsupported settings, before any long work.

    Parallelism: every rank makes the same runs and calls the same methods in the same order.
    """

    def __init__(
        self,
        config: AllConfig,
        model_provider: Callable[..., Cell],
        datasets_provider: Callable | None = None,
        train_data_loader: Iterable | None = None,
        *,
        functions: StepFunctions | None = None,
        started: float | None = None,
    ) -> None:
        self.config = config
        self.stop_reason: str | None = None
        self.model: list[DistributedDataParallel] = []
        self.state = TrainState()
        self._undo = ExitStack()
        self._members = RunState(run_state.current().args)
        self._generators = HostGenerators()
        self._warnings = Warnings()
        self._setup: TrainingSetup | None = None
        self._data: RunData | None = None
        check_configuration(config)
        try:
            with self.active():
                with timed("model-and-optimizer-setup", 0):
                    setup = self._build(model_provider, functions or StepFunctions(), started)
                with timed("train/valid/test-data-iterators-setup", 0):
                    self._read(datasets_provider, train_data_loader)
                setup.observer.print_timers(
                    "model-and-optimizer-setup", "train/valid/test-data-iterators-setup"
                )
        except BaseException:
            self._abandon()
            raise

    def _build(
        self, model_provider: Callable[..., Cell], functions: StepFunctions, started: float | None
    ) -> TrainingSetup:
        self.config = started_from_pretrained(resumed(self.config))
        fill_run_state(self.config)
        report_layout(self.config)
        require_memory(self.config)
        saver = make_saver(self.config)
        if saver is not None:
            self._undo.callback(saver.abandon)
        observer = Observer(self.config, self._warnings)
        self._undo.callback(observer.close)
        self.model = get_model(model_provider, self.config)
        for chunk in self.model:
            self._undo.callback(chunk.detach)
        setup = _set_up(self.config, self.model, functions, observer)
        setup.started = time.time() if started is None else started
        _load(setup, saver)
        self.state = setup.state
        observer.begin(setup.state, self.model, setup.optimizer)
        setup.saved_steps = saved_steps(self.config, self.model)
        if setup.saved_steps is not None:
            self._undo.callback(setup.saved_steps.close)
        if setup.checkpoints is not None:
            setup.checkpoints.check_room(setup)
        self._setup = setup
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        print_rank_0(
            f"[after model, optimizer, and learning rate scheduler are built] datetime: {now} "
        )
        return setup

    def _read(self, datasets_provider: Callable | None, train_data_loader: Iterable | None) -> None:
        self._data = build_run_data(self.config, datasets_provider, train_data_loader, self.state)
        self._undo.callback(self._data.close)

    @property
    def _opened(self) -> TrainingSetup:
        if self._setup is None:
            raise RuntimeError("the run is closed; open a new one")
        return self._setup

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context in which Megatron's functions without a run argument answer for this run."""
        if run_state.current() is self._members:
            yield
            return
        level = self.config.training_config.logging_level
        with (
            run_state.activated(self._members),
            output.attached(level, self._warnings),
            self._generators.active(),
        ):
            yield

    def train(self, num_iterations: int | None = None) -> TrainState:
        """Go on training.

        Args:
            num_iterations: so many, but not beyond the configured length; None: to its end.

        Returns:
            Where the run stands then.
        """
        setup = self._opened
        assert self._data is not None, "an open run has data"
        with self.active():
            print_rank_0("training ...")
            nothing = nothing_to_train(self.config, setup.state)
            if nothing is None and self._data.train is None:
                nothing = "nothing to train: there is no training data"
            if nothing is not None or self._data.train is None:
                print_rank_0(f"WARNING: {nothing}")
                return setup.state
            for chunk in setup.model:  # who shares it may have switched it to evaluation
                if not chunk.module.training:
                    chunk.module.set_train(True)
            until = None if num_iterations is None else setup.state.iteration + num_iterations
            self.stop_reason = train(setup, self._data.train, self._data.valid, until)
        return setup.state

    def evaluate(
        self,
        split: Literal["validation", "test"] = "validation",
        dataset: SampleDataset | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate a split and print Megatron's lines; losses by name for each of its sets.

        Args:
            split: the data of the run.
            dataset: samples that are evaluated instead, all of them once.
        """
        setup = self._opened
        assert self._data is not None, "an open run has data"
        with self.active():
            if dataset is not None:
                whole = whole_set(self.config, dataset)
                try:
                    prefix = f"iteration {setup.state.iteration} on given data"
                    return evaluate_and_print_results(setup, [whole], prefix)
                finally:
                    whole.iterator.close()
            prefix = f"iteration {setup.state.iteration} on {split} set"
            if split == "validation":
                return validate(setup, self._data.valid, prefix)
            return evaluate_and_print_results(setup, self._data.test, prefix, split)

    def save(self) -> None:
        """Write a checkpoint of the present iteration, unless there is one.

        Raises:
            ValueError: the configuration keeps no checkpoints.
        """
        setup = self._opened
        if setup.checkpoints is None:
            raise ValueError(
                "the run keeps no checkpoints; set save_checkpoints: True and output_dir"
            )
        with self.active():
            setup.checkpoints.at_end(setup)

    def keep(self, iteration: int | None) -> None:
        """Let the checkpoint of an iteration stay, whatever newer ones there are; None: no such."""
        checkpoints = self._opened.checkpoints
        if checkpoints is not None:
            checkpoints.keep(iteration)

    def tell_where(self) -> None:
        """Print where the trained model is, when what is written in the background is complete.

        Parallelism: collective over the world.
        """
        setup = self._opened
        with self.active():
            if setup.checkpoints is not None:
                setup.checkpoints.finish()
                print_rank_last(setup.checkpoints.where(setup.state.iteration))
            else:
                print_rank_last(
                    "the model is not saved: no folder was given (--save DIR --save-interval N, or "
                    "save_checkpoints and output_dir)"
                )

    def load_weights(self, path: str | PathLike[str], iteration: int | None = None) -> None:
        """Give the model the weights of a checkpoint of any format; nothing else changes.

        Args:
            path: file or folder.
            iteration: which checkpoint of a run; None: the newest.

        Raises:
            ValueError: there is no usable checkpoint, or it does not fit the model.
        """
        setup = self._opened
        sections = self.config.to_dict()
        sections["training_config"] |= {
            "load_checkpoint": fspath(path),
            "ckpt_step": iteration,
            "finetune": True,
            "resume_training": False,
            "exit_on_missing_checkpoint": True,
        }
        config = assemble(sections, self.config.model_type)
        with self.active():
            load_checkpoint(config, setup.model, setup.optimizer, setup.scheduler)

    def close(self) -> None:
        """Complete what goes on in the background and leave nothing behind; the model stays usable.

        Parallelism: collective, unlike the end of a ``with`` block by an exception.
        """
        try:
            if self._setup is not None:
                with self.active():
                    if self._setup.checkpoints is not None:
                        self._setup.checkpoints.finish()
                    for chunk in self.model:
                        chunk.finish_param_sync()
                    self._setup.observer.close()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Leave nothing behind, without other ranks' help: they may be anywhere."""
        self._setup = self._data = None
        self._undo.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()


def carry_out(run: Run) -> TrainState:
    """Train to the end and evaluate, as far as the configuration asks for that; close the run.

    Returns:
        Where the run stands at its end.
    """
    with run:
        if not run.config.training_config.skip_train:
            run.train()
        if run.stop_reason is None:
            run.evaluate("validation")
            run.evaluate("test")
        if not run.config.training_config.skip_train:
            run.tell_where()
        return run.state


def _set_up(
    config: AllConfig,
    model: list[DistributedDataParallel],
    functions: StepFunctions,
    observer: Observer,
) -> TrainingSetup:
    optimizer = get_megatron_optimizer(
        config.optimizer_config,
        model,
        config.training_config.log_num_zeros_in_grad,
        grad_scaler=get_grad_scaler(config.training_config),
        width_mult=width_mult(config.model_config),
        is_apart=predicts_further if config.model_config.mtp_detach_heads else None,
    )
    dump = config.training_config.dump_param_to_param_group_map
    if dump is not None:
        numbers = group_numbers(optimizer.param_groups)
        if comm.get_rank() == 0:
            write_json("--dump-param-to-param-group-map", Path(dump), numbers)
    clipping = config.model_config
    if clipping.qk_clip:
        chunks = [one.module for one in model]
        optimizer.row_factors = QkClip(chunks, clipping.qk_clip_threshold, clipping.qk_clip_alpha)
    options = loss_options.current()
    options.weighs_by_tokens = config.training_config.calculate_per_token_loss
    options.sums = config.training_config.loss_reduction == "sum"
    options.label_smoothing = config.training_config.label_smoothing
    set_up_distillation(config)
    teacher = teacher_of(config, model, true_vocab_size(config))
    distillation.current().live = teacher
    weights = None
    if config.training_config.calculate_per_token_loss:
        weights = TokenWeights(config.dataset_config.batch_size * config.model_config.seq_length)
    if functions.forward_step_func is None:
        forward_step = default_forward_step(
            functions.get_batch_func or BatchReader(config), weights
        )
    else:
        forward_step = megatron_forward_step(functions.forward_step_func, weights)
    if teacher is not None:
        forward_step = reporting(forward_step, teacher)
    batch_size = config.global_batch_size(comm.get_world_size())
    return TrainingSetup(
        config=config,
        model=model,
        optimizer=optimizer,
        scheduler=OptimizerParamScheduler.from_config(
            config.training_config, config.optimizer_config, batch_size
        ),
        forward_step=forward_step,
        token_weights=weights,
        health=Health(
            config.training_config.check_for_nan_in_grad,
            config.training_config.check_weight_hash_across_dp_replicas_interval,
        ),
        observer=observer,
        on_step=functions.on_step,
    )


def _load(setup: TrainingSetup, saver: CheckpointSaver | None) -> None:
    """Continue from a checkpoint if the configuration names one, and prepare saving."""
    config = setup.config
    with timed("load-checkpoint", 0):
        loaded = load_checkpoint(config, setup.model, setup.optimizer, setup.scheduler)
    if loaded.state.iteration:
        setup.observer.print_timers("load-checkpoint")
    setup.state = loaded.state
    setup.train_iters = num_train_iters(config, setup.state)
    update_num_microbatches(setup.state.consumed_train_samples, consistency_check=False)
    if saver is not None:
        setup.checkpoints = RunCheckpoints(
            saver, loaded, true_vocab_size(config), setup.observer.after_background_save
        )
