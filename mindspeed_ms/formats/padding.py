# SPDX-License-Identifier: Apache-2.0
"""Vocabulary tables with another number of rows than are stored: the padding differs by layout."""

from __future__ import annotations

import numpy as np

from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.catalog import StoredTensor, TensorReader
from mindspeed_ms.plan.region import Span


def read_repadded(  # noqa: PLR0913 - as the reader's own method, and how rows are added
    reader: TensorReader,
    stored: StoredTensor,
    span: Span,
    dtype: str,
    repeats_last: bool,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """A span of a table, flat; rows behind the stored ones are new padding.

    Args:
        reader: reads the table.
        stored: the table as it is stored.
        span: what is wanted, in the table's new shape.
        dtype: type of the result.
        repeats_last: new rows repeat the last stored one (weights); else they are zero (moments).
        out: contiguous memory for all of the span's region.

    Source: Megatron-LM ``tools/checkpoint`` (the last row is repeated).
    """
    region = span.region
    rows = np.concatenate([np.arange(start, start + length) for start, length in region.runs[0]])
    out = np.empty(region.size, dtypes.NUMPY[dtype]) if out is None else out
    local = out.reshape(region.shape)
    known = int((rows < stored.shape[0]).sum())
    if known:
        part = region.select(0, 0, known)
        reader.read_span(stored, Span.all_of(part), dtype, out[: part.size])
    if known < len(rows) and repeats_last:
        last = region.with_runs(0, [(stored.shape[0] - 1, 1)])
        local[known:] = reader.read_span(stored, Span.all_of(last), dtype).reshape(last.shape)
    else:
        local[known:] = 0
    return local.reshape(-1)[span.start : span.stop]


def padded_rows(vocab_size: int | None, stored_rows: int, divisor: int, parts: int) -> int:
    """Rows of a table that is to be cut into equal parts.

    Args:
        vocab_size: tokens in use, None if unknown: then no row is left behind.
        stored_rows: rows there are.
        divisor: each part has a multiple of this many rows.
        parts: tensor parallel size.
    """
    if stored_rows % parts == 0 and vocab_size is None:
        return stored_rows
    multiple = divisor * parts
    return -(-(vocab_size or stored_rows) // multiple) * multiple
