# SPDX-License-Identifier: Apache-2.0
"""What a parameter knows about itself: its shard, its place in norms, and where gradients go.

Saving, loading, clipping and gradient reduction read this metadata; nothing is guessed from names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common import dtype as mstype
from mindspore.common.initializer import Initializer, initializer
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.backend.base import Group
from mindspeed_ms.models.parameter import ParamSpec
from mindspeed_ms.plan.region import Region, Stack

InitMethod: TypeAlias = (
    Callable[[Sequence[int]], np.ndarray]
    | Initializer
    | type[Initializer]
    | str
    | float
    | np.ndarray
    | Tensor
)
"""Full (unsharded) shape -> fp32 values; MindSpore initializers, their classes and names work too,
and so do a number and the full values themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """How the local tensor relates to the full one."""

    partition_dim: int = -1
    """Dimension split over the tensor parallel group, -1 when every rank holds all of it."""

    partition_stride: Stack = 1
    """Stacked matrices that are split one by one: 2 for [gate; up], whose rank r holds
    [gate_r; up_r]; or their sizes."""

    row_blocks: tuple[int, ...] = ()
    """Rows of matrices that lie in one in turns: (queries, gates if any, key, value) of a key/value
    group; such groups follow each other. Empty: it is one matrix."""

    partitions: int = 1
    """Number of ranks the full tensor is split over."""

    partition_rank: int = 0
    """Which part this rank holds."""

    partial_gradient: bool = False
    """True when each tensor parallel rank sees only its part of the sequence (or of the heads), so
    the gradient must be summed over the group."""

    is_expert: bool = False
    """True for parameters that are reduced over the expert data parallel group."""

    is_vocabulary: bool = False
    """True for tables whose rows are tokens: their number is padded, and differs between layouts;
    they may have their own learning rate."""

    is_tied: bool = False
    """True for a table that two pipeline stages hold; both copies get a gradient bucket of their
    own."""

    shared: bool = False
    """True for the copy of a tied parameter that norms must not count again."""

    def full_shape(self, local_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the unsharded tensor."""
        shape = list(local_shape)
        if self.partition_dim >= 0:
            shape[self.partition_dim] *= self.partitions
        return tuple(shape)

    def region(self, local_shape: Sequence[int]) -> Region:
        """Which global indices the local tensor holds, for checkpoints."""
        full = self.full_shape(local_shape)
        if self.partition_dim < 0 or self.partitions == 1:
            return Region.whole(full)
        return Region.of_part(
            full, self.partition_dim, self.partition_rank, self.partitions, self.partition_stride
        )

    def local_slice(self, full: np.ndarray) -> np.ndarray:
        """The part of an unsharded array that this rank holds."""
        if self.partition_dim < 0 or self.partitions == 1:
            return full
        axis = self.partition_dim
        if isinstance(self.partition_stride, tuple):
            stacked = np.split(full, np.cumsum(self.partition_stride)[:-1], axis=axis)
            mine = [np.split(one, self.partitions, axis=axis) for one in stacked]
            return np.concatenate([parts[self.partition_rank] for parts in mine], axis=axis)
        blocks = np.split(full, self.partitions * self.partition_stride, axis=axis)
        return np.concatenate(blocks[self.partition_rank :: self.partitions], axis=axis)

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The unsharded array from the parts of all ranks: the inverse of ``local_slice``."""
        if self.partition_dim < 0 or self.partitions == 1:
            return parts[0]
        cuts: int | np.ndarray
        if isinstance(self.partition_stride, tuple):
            cuts = np.cumsum(self.partition_stride)[:-1] // self.partitions
        else:
            cuts = self.partition_stride
        blocks = [np.split(part, cuts, axis=self.partition_dim) for part in parts]
        return np.concatenate(
            [block for stacked in zip(*blocks, strict=True) for block in stacked],
            axis=self.partition_dim,
        )


@dataclass(slots=True)
class GradSink:
    """Where an operation may accumulate a weight gradient by itself.

    ``main_grad`` has the parameter's shape in fp32; ``mark_ready`` must be called after each
    accumulation, in place of the engine's hook.
    """

    main_grad: Tensor
    mark_ready: Callable[[], None]


_REPLICATED = ShardSpec()


def shard_spec_of(
    spec: ParamSpec, group: Group | None = None, sequence_parallel: bool = False
) -> ShardSpec:
    """How this rank holds a described parameter.

    Args:
        spec: the whole parameter.
        group: ranks that split it; None if it is whole.
        sequence_parallel: ranks of the tensor parallel group hold different tokens.
    """
    spec = spec.among(1 if group is None else group.size)
    is_split = group is not None and spec.partition_dim >= 0
    return ShardSpec(
        partition_dim=spec.partition_dim,
        partition_stride=spec.partition_stride,
        partitions=group.size if group is not None and is_split else 1,
        partition_rank=group.rank if group is not None and is_split else 0,
        partial_gradient=spec.partial_gradient == "always"
        or (spec.partial_gradient == "sequence" and sequence_parallel),
        is_expert=spec.expert is not None,
        is_vocabulary=spec.is_vocabulary,
    )


def shard_of(parameter: Parameter) -> ShardSpec:
    """Metadata of a parameter; one that was made elsewhere counts as replicated."""
    return getattr(parameter, "shard", _REPLICATED)


def grad_sink_of(parameter: Parameter) -> GradSink | None:
    """Gradient sink of a parameter, None while no buffer is attached."""
    return getattr(parameter, "grad_sink", None)


def make_ready(parameter: Tensor, dtype: mstype.Type | None = None) -> Tensor:
    """The values of a parameter, in ``dtype`` if one is given, after what must happen before.

    Such as gathering its shards; costs nothing where parameters are whole. Called by operations
    that take a parameter, in forward and again in backward if they read it there.
    """
    before_use = getattr(parameter, "before_use", None)
    if before_use is not None:
        before_use()
    if dtype is None or parameter.dtype == dtype:
        return parameter
    return ops.cast(parameter, dtype)


def initial_values(init_method: InitMethod, shape: Sequence[int]) -> np.ndarray:
    """Unsharded fp32 values for a shape; a number fills it.

    Raises:
        ValueError: values of another shape, or what gives none.
    """
    if isinstance(init_method, type) and issubclass(init_method, Initializer):
        init_method = init_method()
    if isinstance(init_method, (int, float)):
        return np.full(tuple(shape), init_method, np.float32)
    if isinstance(init_method, (Initializer, str)):
        init_method = initializer(init_method, tuple(shape), mstype.float32)
    if isinstance(init_method, Tensor):
        init_method = (init_method.init_data() if init_method.has_init else init_method).asnumpy()
    if isinstance(init_method, np.ndarray):
        if init_method.shape != tuple(shape):
            raise ValueError(
                f"init_method has values of shape {init_method.shape}; the whole parameter is "
                f"{tuple(shape)}"
            )
        return init_method.astype(np.float32)
    if not callable(init_method):
        raise ValueError(
            f"init_method is {init_method!r}; give an initializer of MindSpore, its class or name, "
            "a number, values, or a function of the shape"
        )
    return init_method(tuple(shape))


def create_parameter(
    local_shape: Sequence[int],
    init_method: InitMethod,
    *,
    dtype: str | mstype.Type = "float32",
    name: str = "weight",
    shard: ShardSpec = _REPLICATED,
) -> Parameter:
    """Parameter whose values are this rank's part of the unsharded initial values.

    Every rank draws the full values in the same order, so the weights do not depend on the layout.
    """
    full = initial_values(init_method, shard.full_shape(local_shape))
    kind = memory.dtype_of(dtype)
    if full.size > 1 and not any(full.strides):
        # Nothing was drawn (see counting_draws): whoever asked for that fills the memory.
        parameter = Parameter(memory.empty(tuple(local_shape), kind), name=name)
        parameter.shard = shard
        return parameter
    values = np.ascontiguousarray(shard.local_slice(full), dtype=np.float32)
    tensor = memory.from_numpy(values)
    parameter = Parameter(tensor if kind == mstype.float32 else tensor.astype(kind), name=name)
    parameter.shard = shard
    return parameter


def num_elements(parameter: Parameter) -> int:
    """Number of local elements."""
    return math.prod(parameter.shape)


def named_parameters(cell: Cell) -> list[tuple[str, Parameter]]:
    """Trainable parameters with their path names, each once, in construction order."""
    return [
        (name, parameter)
        for name, parameter in cell.parameters_and_names()
        if parameter.requires_grad
    ]


def is_frozen(parameter: Parameter) -> bool:
    """Whether it is part of a model whose adapters alone are trained, and no adapter."""
    return getattr(parameter, "is_frozen", False)


def named_buffers(cell: Cell) -> list[tuple[str, Parameter]]:
    """State that is not trained but belongs into checkpoints, with path names."""
    return [
        (name, parameter)
        for name, parameter in cell.parameters_and_names()
        if not parameter.requires_grad
    ]
