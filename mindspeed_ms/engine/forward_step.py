# SPDX-License-Identifier: Apache-2.0
"""One micro-batch through the model, in Megatron's protocol. Legend: b micro-batch, s sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core import loss_options, parallel_state
from mindspeed_ms.core.context_parallel import count_over_sequence
from mindspeed_ms.core.pipeline_parallel.schedules import LossFunc
from mindspeed_ms.core.timers import timed
from mindspeed_ms.engine.datasets import MODEL_INPUTS, get_batch
from mindspeed_ms.engine.shared_sequences import OwnSteps, SharedSequences

GetBatch = Callable[[Iterator], Any]
"""(data iterator) -> model arguments by name, or the five tensors of Megatron's ``get_batch``."""


@dataclass(slots=True)
class TokenWeights:
    """Weighs micro-batches by their tokens, for ``--calculate-per-token-loss``.

    Every loss is divided by the most tokens a micro-batch can have. After the step the gradients
    are multiplied by ``factor``, which puts the tokens there were in its place.
    """

    most: int
    """Tokens of a micro-batch without masked ones."""
    seen: float = 0.0
    """Tokens whose loss this rank took in the step so far."""

    def share(self, tokens: float, own: float | None = None) -> float:
        """Weight of a micro-batch's mean; its tokens are counted.

        Args:
            tokens: that the mean is over.
            own: those of them that this rank holds, None for all: the mean is then one over the
                ranks of the context parallel group, whose gradients are counted on each of them.
        """
        self.seen += tokens if own is None else own
        ranks = 1 if own is None else parallel_state.get_context_parallel_world_size()
        return tokens / self.most / ranks

    def factor(self, microbatches: int) -> float:
        """What completes the gradients of a step.

        Parallelism: collective over the world. Only the last stage has seen tokens, and ranks of a
        tensor-parallel group have seen the same.
        """
        total = memory.from_numpy(np.array([self.seen], np.float32))
        comm.all_reduce(total)
        copies = parallel_state.get_tensor_model_parallel_world_size()
        tokens = float(memory.as_numpy(total)[0]) / copies
        ranks = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        return self.most * microbatches * ranks / max(tokens, 1.0)


def default_forward_step(
    get_batch_func: GetBatch | None = None, weights: TokenWeights | None = None
) -> Callable[[Iterator, Any], tuple[Tensor, LossFunc]]:
    """Forward step of a model that returns its masked mean loss, as ``GPTModel`` does."""
    read = get_batch_func or get_batch
    sequences = SharedSequences()

    def forward_step(data_iterator: Iterator, model: Any) -> tuple[Tensor, LossFunc]:
        with timed("batch-generator", 2):
            batch = sequences.own_part(_named(read(data_iterator)))
        tokens = _num_tokens(batch)

        def loss_func(loss: Tensor) -> tuple[Tensor, float, dict[str, tuple[Any, Any]]]:
            mean = float(memory.as_numpy(loss).item())
            if loss_options.current().sums:
                mean /= max(_whole(batch, tokens), 1.0)
            if weights is not None:
                loss = loss * weights.share(_whole(batch, tokens), tokens)
            return loss, tokens, {"lm loss": (mean * tokens, tokens)}

        return sequences.forward(model, batch), loss_func

    return forward_step


def megatron_forward_step(
    user_step: Callable[[Iterator, Any], tuple[Tensor, Callable]],
    weights: TokenWeights | None = None,
) -> Callable[[Iterator, Any], tuple[Tensor, LossFunc]]:
    """Adapt a Megatron ``forward_step``, whose loss function may return two or three values.

    ``(loss, report)``: a mean over the micro-batch. ``(sum, number of tokens, report)``: the mean
    is taken here. A reported value is a mean, or a (sum, number of tokens) pair.
    """
    steps = OwnSteps()

    def forward_step(data_iterator: Iterator, model: Any) -> tuple[Tensor, LossFunc]:
        with steps.watched():
            output, user_loss = user_step(data_iterator, model)

        def loss_func(output: Tensor) -> tuple[Tensor, float, dict[str, tuple[Any, Any]]]:
            result = user_loss(output)
            if len(result) == 2:
                if weights is not None:
                    raise ValueError(
                        "the loss function of forward_step returned (loss, report), but "
                        "calculate_per_token_loss needs (sum, number of tokens, report)"
                    )
                loss, report = result
                return loss, 1.0, {name: _pair(value) for name, value in report.items()}
            total, count, report = result
            tokens = max(float(_scalar(count)), 1.0)
            mean = total / tokens
            if weights is not None:
                mean = mean * weights.share(tokens)
            return mean, tokens, {name: _pair(value) for name, value in report.items()}

        return output, loss_func

    return forward_step


def _named(batch: Any) -> dict[str, Any]:
    if isinstance(batch, dict):
        return batch
    values = tuple(batch)
    if len(values) != len(MODEL_INPUTS):
        raise ValueError(
            f"get_batch_func returned {len(values)} values; it must return a dict of model "
            f"arguments, or {len(MODEL_INPUTS)} tensors: {', '.join(MODEL_INPUTS)}"
        )
    return dict(zip(MODEL_INPUTS, values, strict=True))


def _num_tokens(batch: dict[str, Any]) -> float:
    mask = batch.get("loss_mask")
    return 1.0 if mask is None else float(memory.as_numpy(mask).sum(dtype=np.float64))


def _whole(batch: dict[str, Any], own: float) -> float:
    """Tokens that count in whole sequences, of which this rank holds some.

    Parallelism: collective over the context parallel group.
    """
    mask, group = batch.get("loss_mask"), parallel_state.get_context_parallel_group()
    return own if mask is None or group.size == 1 else count_over_sequence(mask, group)[1]


def _pair(value: Any) -> tuple[float, float]:
    if isinstance(value, (tuple, list)):
        return float(_scalar(value[0])), float(_scalar(value[1]))
    values = np.atleast_1d(_scalar(value))
    return (float(values[0]), float(values[1])) if values.size == 2 else (float(values[0]), 1.0)


def _scalar(value: Any) -> Any:
    return value.asnumpy() if isinstance(value, Tensor) else value
