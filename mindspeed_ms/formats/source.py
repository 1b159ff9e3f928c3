# SPDX-License-Identifier: Apache-2.0
"""What a converter reads from: a checkpoint of any format, seen as the target needs it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mindspeed_ms.config.optimizer_config import STATE_NAMES
from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.catalog import Catalog, StoredTensor, TensorReader
from mindspeed_ms.formats.names import HEAD
from mindspeed_ms.formats.padding import read_repadded
from mindspeed_ms.models import ModelSpec, ParamSpec
from mindspeed_ms.plan.region import Region, Span

OPTIMIZER_KINDS = ("main", *STATE_NAMES)


class Source:
    """Tensors of a checkpoint with a chosen number of vocabulary rows and type of weights.

    Args:
        catalog: the checkpoint.
        spec: the model it holds.
        rows: rows of vocabulary tables, None for the stored ones.
        dtype: type of floating-point weights, None for the stored one.
    """

    def __init__(
        self,
        catalog: Catalog,
        spec: ModelSpec,
        rows: int | None = None,
        dtype: str | None = None,
    ) -> None:
        self.catalog, self.spec, self.rows, self._dtype = catalog, spec, rows, dtype
        self.reader = TensorReader()
        self._buffers, self._turn = [np.empty(0, np.uint8), np.empty(0, np.uint8)], 0
        self.taken: dict[str, int] = {}
        """Name of a weight -> numbers of it that were read."""
        self.weights = [name for name in catalog.tensors if kind_of(name) == ""]

    def kinds(self, name: str) -> list[str]:
        """Kinds of optimizer tensors there are of a parameter.

        Weights that are rounded on the way keep their exact values beside the moments.
        """
        found = [kind for kind in OPTIMIZER_KINDS if f"{kind}.{name}" in self.catalog.tensors]
        is_rounded = self.dtype(name) != "F32" and self.catalog.tensors[name].dtype == "F32"
        return ["main", *found] if found and is_rounded and "main" not in found else found

    def shape(self, name: str, kind: str = "") -> tuple[int, ...]:
        """Global shape of a parameter, or of a state of it that has another one."""
        if kind.startswith("soap_"):
            return self.catalog.tensors[f"{kind}.{name}"].shape
        shape = self.catalog.tensors[name].shape
        told = self.spec.by_name.get(name)
        if self.rows is not None and told is not None and told.is_vocabulary:
            return (self.rows, *shape[1:])
        return shape

    def span(self, spec: ParamSpec, rank: int, ranks: int) -> Span:
        """The part of a parameter that one of some tensor parallel ranks holds."""
        shape, spec = self.shape(spec.name), spec.among(ranks)
        if spec.partition_dim < 0 or ranks == 1:
            return Span.all_of(Region.whole(shape))
        return Span.all_of(
            Region.of_part(shape, spec.partition_dim, rank, ranks, spec.partition_stride)
        )

    def dtype(self, name: str, kind: str = "") -> str:
        """Type in which a tensor is written."""
        if kind:
            return "F32"
        stored = self.catalog.tensors[name].dtype
        told = self.spec.by_name.get(name)
        if told is not None and not told.is_trained:
            return stored  # too fine for 16 bits, and never converted by Megatron either
        return self._dtype if self._dtype and stored in dtypes.FLOATS else stored

    def read(
        self, name: str, kind: str = "", span: Span | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """A tensor, or a span of it, flat; fp32 weights come from the weights if need be.

        The array lies in ``out``, or in memory that the call after the next one uses again. While
        one tensor is written the next is read: whoever makes one of several calls gives ``out``.
        """
        stored = self._stored(name, kind)
        span = span or Span.all_of(Region.whole(self.shape(name, kind)))
        if not kind:
            self.taken[name] = self.taken.get(name, 0) + span.stop - span.start
        dtype = self.dtype(name, kind)
        if stored.shape != self.shape(name, kind):
            is_weight = kind in ("", "main")
            room = self._room(span, dtype) if span.is_complete and out is None else out
            return read_repadded(self.reader, stored, span, dtype, is_weight, room)
        room = self._room(span, dtype) if out is None else out
        return self.reader.read_span(stored, span, dtype, room)

    def _room(self, span: Span, dtype: str) -> np.ndarray:
        """One of two buffers in turn: fresh memory costs as much as reading into it."""
        size = (span.stop - span.start) * dtypes.width(dtype)
        self._turn = 1 - self._turn
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = np.empty(size, np.uint8)
        return self._buffers[self._turn][:size].view(dtypes.NUMPY[dtype])

    def _stored(self, name: str, kind: str) -> StoredTensor:
        key = f"{kind}.{name}" if kind else name
        if kind == "main" and key not in self.catalog.tensors:
            key = name
        return self.catalog.tensor(key)

    def not_taken(self) -> list[str]:
        """Weights of which not everything was read; the copy of a tied head need not be."""
        sizes = {name: math.prod(self.shape(name)) for name in self.weights}
        return [
            f"{name} ({self.taken.get(name, 0)} of {size} numbers)"
            for name, size in sizes.items()
            if self.taken.get(name, 0) < size and not (name == HEAD and self.spec.is_tied)
        ]

    def all_tensors(self, with_optimizer: bool) -> Iterator[tuple[str, str]]:
        """(name, kind) of everything there is."""
        for name in self.weights:
            yield name, ""
            for kind in self.kinds(name) if with_optimizer else ():
                yield name, kind


def kind_of(key: str) -> str:
    """Kind of a stored tensor, empty for weights."""
    head = key.partition(".")[0]
    return head if head in OPTIMIZER_KINDS else ""
