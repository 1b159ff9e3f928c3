# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with adapters put into it, as a converter reads it."""

from __future__ import annotations

import numpy as np

from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.peft import AdapterDeltas
from mindspeed_ms.formats.source import Source
from mindspeed_ms.models import ModelSpec
from mindspeed_ms.plan.region import Region, Span


class MergedSource(Source):
    """Weights W + s B A of a base and its adapters; the sums are made in fp32.

    Args:
        catalog: the base.
        spec: the model without adapters.
        deltas: what they add.
        rows: see ``Source``.
        dtype: see ``Source``.
    """

    def __init__(
        self,
        catalog: Catalog,
        spec: ModelSpec,
        deltas: AdapterDeltas,
        rows: int | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(catalog, spec, rows, dtype)
        self._deltas = deltas

    def read(
        self, name: str, kind: str = "", span: Span | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """A tensor, or the region of a complete span of it, flat; a merged one in fresh memory."""
        if kind not in ("", "main") or name not in self._deltas:
            return super().read(name, kind, span, out)
        merged = self._deltas.merged(name, self.reader.read(self._stored(name, kind), "F32"))
        span = span or Span.all_of(Region.whole(merged.shape))
        if not kind:
            self.taken[name] = self.taken.get(name, 0) + span.stop - span.start
        part = np.empty(span.region.shape, np.float32)
        for start, local, size in span.region.boxes():
            held = tuple(slice(low, low + extent) for low, extent in zip(start, size, strict=True))
            place = tuple(slice(low, low + extent) for low, extent in zip(local, size, strict=True))
            part[place] = merged[held]
        flat = part.reshape(-1)[span.start : span.stop]
        return dtypes.convert(flat, "F32", self.dtype(name, kind))
