# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the predecessor's scripts around a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.config import (
    AllConfig,
    ModelParallelConfig,
    OptimizerConfig,
    TrainingConfig,
    TransformerConfig,
)
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel.cross_entropy import VocabParallelCrossEntropy
from mindspeed_ms.engine.model_chunks import data_parallel_config
from mindspeed_ms.legacy.model.loss import LossWithMask
from mindspeed_ms.legacy.model.mlp import get_activation
from mindspeed_ms.legacy.model.moe.router import Routing
from mindspeed_ms.legacy.model.moe.token_dispatcher import AlltoAllTokenDispatcher, Dispatched
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.predecessor.data_parallel import DistributedDataParallel
from mindspeed_ms.predecessor.stages import ModelChunks, mark_shared_weights


def get_act_func(name: str) -> Callable[..., Tensor]:
    """The activation of a ``hidden_act`` name, (x, bias=None) -> activation(x + bias).

    Raises:
        ValueError: an unknown name.
    """
    activation = get_activation(name)

    def function(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return activation(x, bias)

    return function


class StageLayers(int):
    """Number of layers of a stage, which also unpacks into (number, number of the first one)."""

    first: int

    def __new__(cls, count: int, first: int) -> StageLayers:  # noqa: PYI034
        """A number that knows where the layers begin."""
        made = super().__new__(cls, count)
        made.first = first
        return made

    def __iter__(self) -> Iterator[int]:
        return iter((int(self), self.first))


def _get_num_layers(
    config: TransformerConfig, model_type: Any = None, is_decoder_stage: bool = False
) -> StageLayers:
    """Layers of this rank's stage (with virtual stages: of the current chunk).

    Args:
        config: model configuration.
        model_type: accepted for the signature.
        is_decoder_stage: must be False.

    Raises:
        ValueError: a decoder of an encoder-decoder model.
    """
    if is_decoder_stage:
        raise ValueError("is_decoder_stage is True; only decoder-only models exist here")
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:  # whatever its file says
        return StageLayers(config.num_layers, 0)
    placement = layer_placement(config, config.parallel_config)
    layers = placement.layers_of(
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_virtual_pipeline_model_parallel_rank() or 0,
    )
    return StageLayers(len(layers), layers[0] if layers else 0)


def get_attention_mask(input_mask: Tensor, data_layout: str = "BSH") -> Tensor:
    """Which keys a query may look at: itself and earlier ones, where both are tokens.

    Args:
        input_mask: 1 for a token and 0 for padding, [b, S], or [S, b] with ``SBH``.
        data_layout: ``BSH`` or ``SBH``.

    Returns:
        [b, S, S] of the type of ``input_mask``: 1 where a key may be looked at.

    Raises:
        ValueError: another layout.
    """
    if data_layout not in ("BSH", "SBH"):
        raise ValueError(f"data_layout is {data_layout!r}; give BSH or SBH")
    batch, length = tuple(input_mask.shape)[:: 1 if data_layout == "BSH" else -1]
    tokens = input_mask.asnumpy().reshape(batch, length, 1)
    lower = np.tril(np.ones((length, length), tokens.dtype))
    return Tensor(tokens * tokens.swapaxes(1, 2) * lower).astype(input_mask.dtype)


# --- loss and gradients ---------------------------------------------------------------------------


class MaskedLoss(LossWithMask):
    """``LossWithMask`` for logits of any leading shape, with a mask that may be left out.

    Shapes:
        logits [..., v/p], label and mask [...].
    """

    def construct(self, logits: Tensor, label: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """The mean over the tokens whose mask is not 0."""
        rows = (1, -1)
        logits = logits.reshape((1, -1, logits.shape[-1]))
        label = label.reshape(rows)
        if loss_mask is None:
            loss_mask = Tensor(np.ones(tuple(label.shape), np.float32))
        return super().construct(logits, label, ops.cast(loss_mask.reshape(rows), mstype.float32))


def get_loss_func(
    training_config: TrainingConfig | None = None, return_instance: bool = True, **unused: Any
) -> Any:  # noqa: ANN401 - a loss, or a constructor of one
    """The masked mean of the vocabulary-parallel cross entropy.

    Args:
        training_config: accepted for the signature.
        return_instance: False: return a function that makes it.
        unused: accepted for the signature.
    """

    def make(**_unused: Any) -> MaskedLoss:
        return MaskedLoss(VocabParallelCrossEntropy())

    return make() if return_instance else make


class GradAccumulator:
    """Sums gradients over micro-batches.

    Args:
        micro_batch_num: calls after which the result is complete.
        op: ``mean`` or ``sum`` over them.

    Raises:
        ValueError: another ``op``, or a number below 1.
    """

    def __init__(self, micro_batch_num: int, op: str = "mean") -> None:
        if op not in ("mean", "sum") or micro_batch_num < 1:
            raise ValueError(
                f"op is {op!r} and micro_batch_num {micro_batch_num}; give mean or sum, and at "
                "least 1"
            )
        self.accumulate_step, self.op, self.counter = micro_batch_num, op, 0
        self._totals: list[Tensor] = []

    def __call__(self, grads: Sequence[Tensor]) -> list[Tensor] | None:
        """The result after the last micro-batch; None after the others."""
        self.counter += 1
        self._totals = (
            [total + grad for total, grad in zip(self._totals, grads, strict=True)]
            if self._totals
            else list(grads)
        )
        if self.counter < self.accumulate_step:
            return None
        totals, count = self._totals, self.counter
        self.counter, self._totals = 0, []
        return [total / count for total in totals] if self.op == "mean" else totals


def set_weight_decay(
    params: Sequence[Parameter], weight_decay: float = 1e-1
) -> list[dict[str, Any]]:
    """Groups with decay and, for biases and one-dimensional parameters, without."""
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for param in params:
        groups[param.ndim == 1 or param.name.endswith("bias")]["params"].append(param)
    return [*(group for group in groups if group["params"]), {"order_params": list(params)}]


# --- the model of a stage -------------------------------------------------------------------------


def get_model(
    model_provider_func: Callable[..., Cell], training_config: TrainingConfig | AllConfig
) -> ModelChunks:
    """The model of this rank's stage as a list of its chunks, mostly one.

    Args:
        model_provider_func: (pre_process, post_process) -> model that returns its loss.
        training_config: with ``wrap_with_ddp`` the chunks are wrapped; its ``parallel_config``
            tells the number of chunks.

    Returns:
        A list of cells, and a cell itself: with one chunk it is called, and has its members.
    """
    training = (
        training_config.training_config
        if isinstance(training_config, AllConfig)
        else training_config
    )
    parallel = training.parallel_config or ModelParallelConfig()
    count = parallel.virtual_pipeline_model_parallel_size or 1
    if parallel.num_layer_list and isinstance(parallel.num_layer_list[0], (list, tuple)):
        count = len(parallel.num_layer_list)
    parallel_state.set_virtual_pipeline_model_parallel_world_size(count if count > 1 else None)
    chunks = []
    for index in range(count):
        parallel_state.set_virtual_pipeline_model_parallel_rank(index if count > 1 else None)
        chunk = model_provider_func(
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
        )
        chunk.set_train(True)
        mark_shared_weights(chunk)
        chunks.append(wrapped(chunk, training, parallel, is_first=index == 0))
    return ModelChunks(chunks)


def wrapped(
    chunk: Cell, training: TrainingConfig, parallel: ModelParallelConfig, *, is_first: bool
) -> Cell:
    """A chunk in ``DistributedDataParallel``, if the configuration wants that."""
    if not training.wrap_with_ddp:
        return chunk
    count = sum(param.size for param in chunk.trainable_params())
    config = data_parallel_config(training, parallel, OptimizerConfig(), count)
    bucketed = is_first and parallel_state.get_pipeline_model_parallel_rank() == 0
    return DistributedDataParallel(training, config, chunk, disable_bucketing=not bucketed)


# --- experts --------------------------------------------------------------------------------------


class MoEAlltoAllTokenDispatcher(AlltoAllTokenDispatcher):
    """The engine's dispatcher, also with the predecessor's arguments.

    ``token_permutation(hidden, probs, indices)`` returns (rows by local expert, rows per expert)
    and keeps the way; the following ``token_unpermutation(rows, bias)`` takes it back.
    """

    _way: Dispatched | None = None

    def token_permutation(self, hidden: Tensor, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """The engine's with a ``Routing``, the predecessor's with two tensors.

        Shapes: hidden [..., h]; probs and indices [T, K].
        """
        if arguments and isinstance(arguments[0], Routing):
            return super().token_permutation(hidden, *arguments, **named)
        probs, indices = (*arguments, named.get("probs"), named.get("indices"))[:2]
        self._shape = tuple(hidden.shape)
        experts = np.ascontiguousarray(indices.asnumpy().astype(np.int32))
        routing = Routing(ops.cast(probs, mstype.float32), experts, None)
        rows, counts, self._way = super().token_permutation(
            hidden.reshape((-1, hidden.shape[-1])), routing
        )
        return rows, Tensor(np.array(counts, np.int32))

    def token_unpermutation(self, rows: Tensor, way: Any = None) -> Any:  # noqa: ANN401
        """The engine's with its way, the predecessor's with a bias (or none): (output, bias)."""
        if isinstance(way, Dispatched):
            return super().token_unpermutation(rows, way)
        if self._way is None:
            raise ValueError("token_unpermutation comes after token_permutation")
        kept, self._way = self._way, None
        output = super().token_unpermutation(rows, kept)
        return output.reshape(self._shape), way
