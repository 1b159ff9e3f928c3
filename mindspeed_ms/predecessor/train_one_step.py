# SPDX-License-Identifier: Apache-2.0
"""One step of training for a network and an optimizer of the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.config import (
    DatasetConfig,
    ModelParallelConfig,
    TrainingConfig,
    TransformerConfig,
)
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.optimizer.clip_grads import clip_coefficient, counts_in_norm, sum_over
from mindspeed_ms.core.optimizer.grad_scaler import get_grad_scaler
from mindspeed_ms.core.pipeline_parallel.executor import StageExecutor, StageWork
from mindspeed_ms.core.pipeline_parallel.p2p_communication import StageLink, TransferFormat
from mindspeed_ms.plan.schedule_plan import Shape
from mindspeed_ms.predecessor.optimizer import (
    MixedPrecisionOptimizer,
    acting,
    chunks_of,
    clip_limit,
    number,
)
from mindspeed_ms.predecessor.reducer import ParallelTrainingReducer
from mindspeed_ms.predecessor.stages import ScriptStage, fill_shared_weights, mark_shared_weights

Outcome = tuple[Tensor, bool, float, float, float | None]
"""(loss, whether gradients were finite, loss scale, learning rate, norm of the gradients)."""


class TrainOneStepCell(Cell):
    """Forward, backward, reduction, clipping and update of one batch.

    A batch has ``micro_batch_num`` times ``batch_size`` sequences along its first dimension; it is
    cut into micro-batches, whose losses are averaged.

    Args:
        network_with_loss: returns the loss (or a tuple that begins with it); a list of chunks with
            virtual pipeline stages. Stages after the first have ``set_input_tensor``.
        optimizer: one of ``get_optimizer``, or a MindSpore optimizer that is called with gradients.
        opt_param_scheduler: moves with every step, None for none.
        training_config: loss scale, clipping (``grad_clip_kwargs``), micro-batches, reduction.
        model_config: type of what travels between stages.

    Shapes:
        inputs [batch_size * micro_batch_num, ...]; returns ``Outcome``, with the mean loss of this
        rank's micro-batches, which is 0 on stages other than the last.

    Parallelism: collective over the world.
    """

    def __init__(
        self,
        network_with_loss: Cell | Sequence[Cell],
        optimizer: Any,
        opt_param_scheduler: Any = None,
        training_config: TrainingConfig | None = None,
        model_config: TransformerConfig | None = None,
        **unused: Any,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.network_with_loss = network_with_loss
        self.training_config = training_config or TrainingConfig()
        self.model_config = model_config
        dataset = self.training_config.dataset_config or DatasetConfig()
        self.micro_batch_num = dataset.micro_batch_num
        self.chunks = _Chunks(chunks_of(network_with_loss))
        for chunk in self.chunks:
            chunk.set_train(True)
            mark_shared_weights(chunk)  # before there are buffers
        # In a tuple, so that the optimizer's own parameters stay its own.
        optimizer = acting(optimizer, self.training_config)
        self._tools = _Tools(optimizer, opt_param_scheduler)
        self._stages = _Chunks([ScriptStage(chunk) for chunk in self.chunks])
        self._flat = isinstance(optimizer, MixedPrecisionOptimizer)
        self.grad_scaler = (
            optimizer.grad_scaler if self._flat else get_grad_scaler(self.training_config)
        )
        self._plain = None if self._flat else _PlainStep(self.chunks, optimizer, self)
        if fill_shared_weights(list(self.chunks)) and self._flat:
            optimizer.reload_main_params()

    @property
    def optimizer(self) -> Any:
        """What updates the parameters."""
        return self._tools.optimizer

    @property
    def opt_param_scheduler(self) -> Any:
        """What moves learning rate and decay."""
        return self._tools.scheduler

    @property
    def loss_scale(self) -> float:
        """Factor on the loss of the coming step."""
        return 1.0 if self.grad_scaler is None else self.grad_scaler.scale

    def construct(self, *inputs: Any, **named: Any) -> Outcome:
        """One step; the inputs are those of the network."""
        scale, rate = self.loss_scale, self.learning_rate()
        if self._flat:
            self.optimizer.zero_grad()
        loss = self._forward_backward(inputs, named, scale)
        if self._plain is None:
            success = self.optimizer()
            norm = self.optimizer.last.grad_norm
        else:
            success, norm = self._plain.update(scale)
        if success and self.opt_param_scheduler is not None:
            self.opt_param_scheduler.step(self._samples())
        return loss, success, scale, rate, norm

    def learning_rate(self) -> float:
        """Of the first group."""
        groups = getattr(self.optimizer, "param_groups", None)
        if groups:
            return number(groups[0]["lr"])
        rate = self.optimizer.get_lr()
        return number(rate[0] if isinstance(rate, (tuple, list)) else rate)

    def _samples(self) -> int:
        dataset = self.training_config.dataset_config or DatasetConfig()
        ranks = parallel_state.get_data_parallel_world_size()
        return dataset.batch_size * self.micro_batch_num * ranks

    def _forward_backward(
        self, inputs: tuple[Any, ...], named: Mapping[str, Any], scale: float
    ) -> Tensor:
        group = parallel_state.get_pipeline_model_parallel_group()
        count, chunks = self.micro_batch_num, list(self._stages)
        work = StageWork(
            forward_step=_forward_step,
            data_iterators=[micro_batches(inputs, named, count) for _ in chunks],
            chunks=chunks,
            stage=group.rank,
            loss_scale=scale,
        )
        shape = Shape(group.size, count, len(chunks))
        link = StageLink(group, self._format()) if group.size > 1 else None
        reports = StageExecutor(shape, work, link).run()
        losses = [report["loss"][0] for report in reports]
        return Tensor(np.float32(math.fsum(losses) / max(len(losses), 1)))

    def _format(self) -> TransferFormat:
        """Stages tell each other shapes: networks of the user's own have any."""
        parallel = self.training_config.parallel_config or ModelParallelConfig()
        kind = parallel.recv_dtype if self.model_config is None else self.model_config.compute_dtype
        return TransferFormat(shape=(), dtype=memory.dtype_of(kind), variable_shapes=True)


class _Tools:
    """Holds what is no part of the cell."""

    def __init__(self, optimizer: Any, scheduler: Any) -> None:
        self.optimizer, self.scheduler = optimizer, scheduler


class _Chunks:
    """The model chunks, which the cell has already under another name."""

    def __init__(self, cells: Sequence[Any]) -> None:
        self.cells = tuple(cells)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.cells)

    def trainable(self) -> list[Parameter]:
        """Parameters of all chunks."""
        return [param for cell in self.cells for param in cell.trainable_params()]


def micro_batches(
    inputs: tuple[Any, ...], named: Mapping[str, Any], count: int
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The parts of a batch, cut along the first dimension; what is no tensor goes to each.

    Raises:
        ValueError: a first dimension that does not divide.
    """

    def part(value: Any, index: int) -> Any:
        if count == 1 or not isinstance(value, Tensor) or value.ndim == 0:
            return value
        rows, rest = divmod(value.shape[0], count)
        if rest:
            raise ValueError(
                f"a batch has {value.shape[0]} rows; micro_batch_num ({count}) must divide them"
            )
        return memory.contiguous(value[index * rows : (index + 1) * rows])

    for index in range(count):
        yield (
            tuple(part(value, index) for value in inputs),
            {name: part(value, index) for name, value in named.items()},
        )


def _forward_step(data: Iterator, model: Any) -> tuple[Tensor, Any]:
    inputs, named = next(data)
    output = model(*inputs, **named)
    output = output[0] if isinstance(output, tuple) else output

    def loss_func(loss: Tensor) -> tuple[Tensor, float, dict[str, tuple[float, float]]]:
        return loss, 1.0, {"loss": (float(loss.asnumpy()), 1.0)}

    return output, loss_func


class _PlainStep:
    """Update of parameters without flat buffers by an optimizer that is called with gradients."""

    def __init__(self, chunks: _Chunks, optimizer: Any, step: TrainOneStepCell) -> None:
        self.optimizer, self._step = optimizer, step
        wanted = getattr(optimizer, "parameters", None)
        self.params: list[Parameter] = list(chunks.trainable() if wanted is None else wanted)
        self.reducer = ParallelTrainingReducer(self.params, step.training_config)
        self._grads: dict[int, Tensor] = {}
        for param in self.params:
            autograd.take_gradients(param, _Adder(self._grads, id(param)))

    def update(self, scale: float) -> tuple[bool, float | None]:
        """Whether the gradients were finite (then they were applied), and their norm."""
        grads = [self._grads.pop(id(param), None) for param in self.params]
        grads = [
            memory.zeros(param.shape, param.dtype) if grad is None else grad
            for param, grad in zip(self.params, grads, strict=True)
        ]
        self.reducer.inplace_reduce_grad(grads)
        norm = self._norm(grads) / scale
        is_finite = self.reducer.reduce_is_finite(math.isfinite(norm))
        scaler, factor = self._step.grad_scaler, 1.0 / scale
        if scaler is not None:
            scaler.update(not is_finite)
            if not is_finite:
                return False, None
        limit = clip_limit(self._step.training_config)
        if limit > 0.0:
            factor *= clip_coefficient(norm, limit)
        if factor != 1.0:
            grads = [grad * factor for grad in grads]
        self.optimizer(tuple(grads))
        return is_finite, norm

    def _norm(self, grads: Sequence[Tensor]) -> float:
        """L2 norm over the model, every parameter counted once."""
        groups = (
            parallel_state.get_tensor_model_parallel_group(),
            parallel_state.get_expert_tensor_parallel_group(),
        )
        total = math.fsum(
            ops.l2_norm_squared(ops.cast(memory.contiguous(grad), mstype.float32))
            for param, grad in zip(self.params, grads, strict=True)
            if counts_in_norm(param, *groups)
        )
        group: Group = parallel_state.get_model_parallel_group()
        return math.sqrt(sum_over(total, group)) if math.isfinite(total) else math.inf


class _Adder:
    """Sums the gradients of a parameter."""

    def __init__(self, totals: dict[int, Tensor], key: int) -> None:
        self._totals, self._key = totals, key

    def __call__(self, grad: Tensor) -> None:
        before = self._totals.get(self._key)
        self._totals[self._key] = memory.contiguous(grad) if before is None else before + grad
