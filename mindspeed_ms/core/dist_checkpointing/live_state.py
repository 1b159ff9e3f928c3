# SPDX-License-Identifier: Apache-2.0
"""What this rank holds of the run's tensors, each as a span of a global tensor.

Weights and optimizer state are taken from the shards that the optimizer updates. So nothing is
gathered, not even with ZeRO-3, and a rank writes and reads what it owns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms.backend import memory
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.optimizer import MegatronOptimizer
from mindspeed_ms.core.parameter import is_frozen, num_elements, shard_of
from mindspeed_ms.plan.region import Region, Span

WEIGHTS = ""
"""Kind of the weights in the type of the model; other kinds are prefixes of tensor names."""

MAIN = "main"
"""Kind of the optimizer's fp32 copies of weights in 16 bits."""

_DTYPE_NAMES = {
    mstype.float32: "F32",
    mstype.float16: "F16",
    mstype.bfloat16: "BF16",
    mstype.float64: "F64",
    mstype.int64: "I64",
    mstype.int32: "I32",
    mstype.int16: "I16",
    mstype.int8: "I8",
    mstype.uint8: "U8",
    mstype.bool_: "BOOL",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveTensor:
    """Part of a tensor of the run, in this rank's memory."""

    name: str
    """Of the parameter."""
    kind: str
    """``WEIGHTS``, ``MAIN`` or a state of the update rule such as ``exp_avg``."""
    shape: tuple[int, ...]
    """Of the global tensor."""
    dtype: str
    span: Span
    tensor: Tensor
    """The elements of the span, flat."""
    is_shared: bool = False
    """A copy of what another pipeline stage holds; loaded, but not saved."""
    is_vocabulary: bool = False
    """Rows are tokens; their number is padded, and differs between layouts."""

    @property
    def key(self) -> str:
        """Name in checkpoints."""
        return stored_name(self.name, self.kind)

    @property
    def num_elements(self) -> int:
        """Elements of the span."""
        return self.span.stop - self.span.start


def stored_name(name: str, kind: str) -> str:
    """Name of a tensor of some kind in checkpoints.

    >>> stored_name("language_model.output_layer.weight", "exp_avg")
    'exp_avg.language_model.output_layer.weight'
    """
    return f"{kind}.{name}" if kind else name


def live_tensors(
    models: Sequence[DistributedDataParallel], optimizer: MegatronOptimizer | None = None
) -> list[LiveTensor]:
    """Weights, and with an optimizer its state, as far as this rank owns them.

    State that is not trained belongs to the weights, under its names in the model; frozen weights
    below adapters do not.
    """
    found = [tensor for model in models for tensor in _weights(model)]
    found += [tensor for model in models for tensor in _untrained(model)]
    return found if optimizer is None else [*found, *_optimizer_state(optimizer)]


def gradient_tensors(models: Sequence[DistributedDataParallel]) -> list[LiveTensor]:
    """Reduced gradients under the names of the weights, as far as this rank owns them."""
    return [
        _live(
            piece.name,
            WEIGHTS,
            param,
            piece.param_start,
            memory.view_of(shard.grads, piece.start, (piece.size,)),
        )
        for model in models
        for shard in model.shards
        for param, piece in shard.pieces
    ]


def _weights(model: DistributedDataParallel) -> Iterator[LiveTensor]:
    for shard in model.shards:
        for param, piece in shard.pieces:
            part = memory.view_of(shard.params, piece.start, (piece.size,))
            yield _live(piece.name, WEIGHTS, param, piece.param_start, part)


def _untrained(model: DistributedDataParallel) -> Iterator[LiveTensor]:
    for name, param in model.module.parameters_and_names():
        if not param.requires_grad and num_elements(param) and not is_frozen(param):
            yield _whole(name, param)


def base_tensors(models: Sequence[DistributedDataParallel]) -> list[LiveTensor]:
    """What lies below the adapters of a model: frozen weights, and state that is not trained."""
    return [
        _whole(name, param)
        for model in models
        for name, param in model.module.parameters_and_names()
        if not param.requires_grad and num_elements(param)
    ]


def parameters_of(cell: Cell) -> list[LiveTensor]:
    """All parameters of a model that has no optimizer and no gradient buffers."""
    return [_whole(name, param) for name, param in cell.parameters_and_names()]


def _whole(name: str, param: Parameter) -> LiveTensor:
    flat = memory.contiguous(param).view((num_elements(param),))
    return _live(name, WEIGHTS, param, 0, flat)


def _optimizer_state(optimizer: MegatronOptimizer) -> Iterator[LiveTensor]:
    for part in optimizer.state_parts():
        if part.param.dtype != mstype.float32:
            yield _live(part.name, MAIN, part.param, part.param_start, part.main_param)
        for kind, tensor in part.state.items():
            yield _live(part.name, kind, part.param, part.param_start, tensor)
        for kind, tensor in part.whole.items():
            yield LiveTensor(
                name=part.name,
                kind=kind,
                shape=tensor.shape,
                dtype=_DTYPE_NAMES[tensor.dtype],
                span=Span(Region.whole(tensor.shape), 0, memory.num_elements(tensor)),
                tensor=tensor.view((-1,)),
                is_shared=shard_of(part.param).shared,
            )


def _live(name: str, kind: str, param: Parameter, start: int, flat: Tensor) -> LiveTensor:
    shard = shard_of(param)
    region = shard.region(param.shape)
    return LiveTensor(
        name=name,
        kind=kind,
        shape=shard.full_shape(param.shape),
        dtype=_DTYPE_NAMES[flat.dtype],
        span=Span(region, start, start + memory.num_elements(flat)),
        tensor=flat,
        is_shared=shard.shared,
        is_vocabulary=shard.is_vocabulary,
    )
