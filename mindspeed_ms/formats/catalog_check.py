# SPDX-License-Identifier: Apache-2.0
"""What a catalog must be for its tensors to be the checkpoint's: checked once, for every format."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mindspeed_ms.files.regular_file import require_regular
from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.catalog import Catalog, StoredTensor
from mindspeed_ms.plan.region import Region, Span

_MAX_CELLS = 1 << 26
"""Of the grid in which the pieces of a tensor are laid out."""


def check_catalog(catalog: Catalog) -> None:
    """Every piece lies inside its file and its tensor, and pieces make up all of it, once.

    Raises:
        ValueError: one does not; the message names the tensor and the file.
        OSError: a file cannot be read.
    """
    sizes: dict[Path, int] = {}
    for name, tensor in catalog.tensors.items():
        for piece in tensor.pieces:
            if piece.path not in sizes:
                sizes[piece.path] = require_regular(piece.path)
            end = piece.offset + piece.num_bytes
            if piece.offset < 0 or end > sizes[piece.path]:
                raise ValueError(
                    f"{piece.path} has {sizes[piece.path]} bytes, but {name} lies at "
                    f"{piece.offset} to {end}; it is damaged: use another checkpoint"
                )
        problem = _problem(tensor)
        if problem:
            raise ValueError(
                f"{catalog.source}: {name} of shape {list(tensor.shape)} {problem}; files are "
                "missing or damaged: copy the whole checkpoint again, or use another one"
            )


def _problem(tensor: StoredTensor) -> str:
    """What is wrong with a tensor, in words; nothing if its pieces make it up."""
    if tensor.dtype not in dtypes.NUMPY:
        return f"has the unknown type {tensor.dtype!r}"
    if len(tensor.pieces) == 1:
        piece = tensor.pieces[0]
        if piece.span.is_complete and piece.span.region.is_whole(tensor.shape):
            return ""
    count = 0
    for piece in tensor.pieces:
        span = piece.span
        bounds = span.region.bounds
        if len(bounds) != len(tensor.shape) or any(
            high > extent for (_, high), extent in zip(bounds, tensor.shape, strict=True)
        ):
            return f"has a piece at {bounds} in {piece.path}"
        if not 0 <= span.start <= span.stop <= span.region.size:
            return f"has elements {span.start} to {span.stop} of {bounds} in {piece.path}"
        if piece.is_transposed and not (len(bounds) == 2 and span.is_complete):
            return f"has a part of a transposed matrix in {piece.path}"
        count += span.stop - span.start
    total = math.prod(tensor.shape)
    if count != total:
        return f"has {count} of its {total} numbers in the files"
    if not _is_covered(tensor):
        return "has pieces that lie over each other"
    return ""


def _is_covered(tensor: StoredTensor) -> bool:
    """Whether pieces of the right size in sum leave no gap."""
    by_region: dict[Region, list[Span]] = {}
    for piece in tensor.pieces:
        by_region.setdefault(piece.span.region, []).append(piece.span)
    spans: list[Span] = []
    for region, parts in by_region.items():
        spans += [Span.all_of(region)] if _follow_each_other(parts) else parts
    return len(spans) == 1 or _is_tiled(tensor.shape, spans)


def _follow_each_other(spans: list[Span]) -> bool:
    """Whether spans of one region make it up: the shards of an optimizer do."""
    position = 0
    for span in sorted(spans, key=lambda item: item.start):
        if span.start != position:
            return False
        position = span.stop
    return position == spans[0].region.size


def _is_tiled(shape: tuple[int, ...], spans: list[Span]) -> bool:
    """Whether every element belongs to exactly one span.

    The tensor is cut at every edge of a span; each cell of that grid must lie in one.
    """
    boxes = [(block.globally, block.local[1]) for span in spans for block in span.blocks()]
    edges = []
    for dim, extent in enumerate(shape):
        cuts = {0, extent}
        for start, size in boxes:
            cuts |= {start[dim], start[dim] + size[dim]}
        edges.append({edge: place for place, edge in enumerate(sorted(cuts))})
    cells = [len(cuts) - 1 for cuts in edges]
    if math.prod(cells) > _MAX_CELLS:
        return False  # no layout cuts a tensor so small
    times = np.zeros(cells, np.uint8)
    for start, size in boxes:
        cell = tuple(
            slice(cuts[low], cuts[low + extent])
            for cuts, low, extent in zip(edges, start, size, strict=True)
        )
        times[cell] += 1
    return bool((times == 1).all())
