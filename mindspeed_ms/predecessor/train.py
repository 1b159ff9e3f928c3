# SPDX-License-Identifier: Apache-2.0
"""The predecessor's loop over a dataset."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mindspore import Tensor

from mindspeed_ms.backend import autograd
from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.engine.output import attached, print_every_rank
from mindspeed_ms.predecessor.checkpoints import save_checkpoint
from mindspeed_ms.predecessor.optimizer import chunks_of
from mindspeed_ms.predecessor.train_one_step import Outcome, TrainOneStepCell


def train(  # noqa: PLR0913 - the predecessor's public signature
    train_one_step_cell: TrainOneStepCell,
    train_dataloader: Any,
    training_config: TrainingConfig | None = None,
    val_dataloader: Any = None,
    metrics: Mapping[str, Any] | None = None,
    evaluation_func: Callable[..., Any] | None = None,
    resume_dict: Mapping[str, int] | None = None,
    get_batch_func: Callable[[Iterator], Any] | None = None,
    **options: Any,
) -> list[float]:
    """Train for ``epochs``, or ``training_iters`` steps, and print a line per step.

    Args:
        train_one_step_cell: carries out a step.
        train_dataloader: a MindSpore dataset whose columns are the network's arguments, or an
            iterable of such dicts or tuples; read from its start in every epoch.
        training_config: lengths and intervals; None for the cell's.
        val_dataloader: data of the evaluations, at ``eval_interval``.
        metrics: accepted for the signature; the loss is reported.
        evaluation_func: (cell, data, metrics) -> anything, instead of the mean loss.
        resume_dict: ``epoch_num`` and ``step_num`` that ``load_checkpoint`` returned: where to go
            on.
        get_batch_func: (iterator) -> the network's arguments of a step.
        options: accepted for the signature.

    Returns:
        The loss of every step.

    Parallelism: collective over the world.
    """
    config = training_config or train_one_step_cell.training_config
    with attached():
        loop = _Loop(train_one_step_cell, config, resume_dict or {}, train_dataloader)
        evaluate = None
        if val_dataloader is not None:
            evaluate = _evaluation(train_one_step_cell, val_dataloader, metrics, evaluation_func)
        while not loop.is_over():
            before = loop.step
            for batch in _batches(train_dataloader, get_batch_func, loop.to_skip()):
                loop.run(batch, evaluate)
                if loop.is_over():
                    break
            if loop.step == before and loop.step_in_epoch == 0:
                raise ValueError("the training data is empty; give at least one batch")
            loop.end_epoch()
        loop.save_at_end()
    return loop.losses


class _Loop:
    """Where training stands."""

    def __init__(
        self, cell: TrainOneStepCell, config: TrainingConfig, resume: Mapping[str, int], data: Any
    ) -> None:
        self.cell, self.config = cell, config
        self.epoch, self.step_in_epoch = int(resume.get("epoch_num", 0)), 0
        self._skip = int(resume.get("step_num", 0))
        self.step = self.epoch * _num_batches(data) if self.epoch else 0
        self.losses: list[float] = []
        self._saved = -1

    def to_skip(self) -> int:
        """Batches of this epoch that were trained before."""
        skipped, self._skip = self._skip, 0
        self.step_in_epoch = skipped
        self.step += skipped
        return skipped

    def is_over(self) -> bool:
        """Whether the epochs, or else the steps, are done."""
        steps, epochs = self.config.training_iters, self.config.epochs
        if steps and self.step >= steps:
            return True
        if epochs is None:
            return not steps and self.epoch >= 1
        return self.epoch >= epochs

    def run(self, batch: tuple[tuple[Any, ...], dict[str, Any]], evaluate: Any) -> None:
        """One step, its line, and what is due after it."""
        start = time.perf_counter()
        inputs, named = batch
        outcome = self.cell(*inputs, **named)
        self.step += 1
        self.step_in_epoch += 1
        self.losses.append(float(outcome[0].asnumpy()))
        if self.step % (self.config.log_interval or 1) == 0:
            seconds = time.perf_counter() - start
            print_every_rank(step_line(self.epoch + 1, self.step_in_epoch, outcome, seconds))
        if evaluate is not None and self.config.eval_interval:
            if self.step % self.config.eval_interval == 0:
                evaluate()
        if self.config.save_interval and self.step % self.config.save_interval == 0:
            self._save()

    def end_epoch(self) -> None:
        """The next epoch begins."""
        self.epoch, self.step_in_epoch = self.epoch + 1, 0

    def save_at_end(self) -> None:
        """The last step is kept if checkpoints are."""
        if self.config.save_interval and self._saved != self.step:
            self._save()

    def _save(self) -> None:
        self._saved = self.step
        save_checkpoint(
            self.config,
            self.cell.network_with_loss,
            self.cell.optimizer,
            self.cell.opt_param_scheduler,
            self.config.output_dir,
            format="safetensors" if self.config.ckpt_format == "safetensors" else "ckpt",
            prefix=self.config.prefix,
            epoch_num=self.epoch,
            step_num=self.step_in_epoch,
            crc_check=self.config.crc_check,
            keep_checkpoint_max=self.config.keep_checkpoint_max,
        )


def _num_batches(data: Any) -> int:
    """Batches of an epoch.

    Raises:
        ValueError: the data does not know.
    """
    for count in ("get_dataset_size", "__len__"):
        if hasattr(data, count):
            return int(getattr(data, count)())
    raise ValueError(
        f"{type(data).__name__} does not know its length, so that training cannot go on in a later "
        "epoch; give a dataset with get_dataset_size or len"
    )


def step_line(epoch: int, step: int, outcome: Outcome, seconds: float) -> str:
    """The predecessor's line of a step."""
    loss, is_finite, scale, rate, norm = outcome
    return (
        f"INFO - Epoch: {epoch}, Step: {step}, Loss: {float(loss.asnumpy()):.16f}, "
        f"Finite_grads: {is_finite}, Loss_scale: {scale}, Learning_rate: {rate:.16f}, "
        f"Grad_norm: {norm}, Time: {seconds * 1000.0:.2f} ms"
    )


def _batches(
    data: Any, get_batch: Callable[[Iterator], Any] | None, skip: int
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of the steps of an epoch, without the first ones."""
    make = getattr(data, "create_dict_iterator", None)
    rows = iter(data) if make is None else make()
    if get_batch is not None:
        rows = _asked(rows, get_batch)
    for index, row in enumerate(rows):
        if index < skip:
            continue
        if isinstance(row, Mapping):
            yield (), dict(row)
        else:
            yield tuple(row) if isinstance(row, (tuple, list)) else (row,), {}


def _asked(rows: Iterator, get_batch: Callable[[Iterator], Any]) -> Iterator[Any]:
    """What a function takes from an iterator, until that has no more."""
    while True:
        try:
            yield get_batch(rows)
        except StopIteration:
            return


def _evaluation(
    cell: TrainOneStepCell,
    data: Any,
    metrics: Mapping[str, Any] | None,
    function: Callable[..., Any] | None,
) -> Callable[[], None]:
    """Reports the user's own evaluation, or the mean loss over the data."""

    def evaluate() -> None:
        if function is not None:
            wanted = len(inspect.signature(function).parameters)
            result = function(*(cell, data, metrics)[:wanted])
            print_every_rank(f"INFO - Evaluation: {result}")
            return
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            raise ValueError("train() evaluates without pipeline stages only; give evaluation_func")
        (model,) = chunks_of(cell.network_with_loss)
        model.set_train(False)
        losses = []
        with autograd.no_grad():
            for inputs, named in _batches(data, None, 0):
                output = model(*inputs, **named)
                loss = output[0] if isinstance(output, tuple) else output
                losses.append(float(loss.asnumpy()) if isinstance(loss, Tensor) else float(loss))
        model.set_train(True)
        mean = math.fsum(losses) / max(len(losses), 1)
        print_every_rank(f"INFO - Evaluation: Loss: {mean:.16f}")

    return evaluate
