# SPDX-License-Identifier: Apache-2.0
"""Two checkpoints of any formats side by side, and what one says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.catalog import Catalog, TensorReader
from mindspeed_ms.formats.source import kind_of

VOCABULARY = frozenset({names.EMBEDDING, names.HEAD})
"""Tables whose rows are padded to a number that the tensor parallel size divides."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two checkpoints differ."""

    name: str
    what: str


def diff(first: Catalog, second: Catalog, with_values: bool = True) -> list[Difference]:
    """Compare two checkpoints of any formats, tensor by tensor.

    Rows behind the smaller of two padded vocabularies are not compared.
    """
    found = [
        *(Difference(name, "only in the first") for name in first.tensors.keys() - second.tensors),
        *(Difference(name, "only in the second") for name in second.tensors.keys() - first.tensors),
    ]
    with TensorReader() as reader:
        for name in sorted(first.tensors.keys() & second.tensors.keys()):
            found += _diff_tensor(name, first, second, reader if with_values else None)
    return sorted(found, key=lambda item: item.name)


def _diff_tensor(
    name: str, first: Catalog, second: Catalog, reader: TensorReader | None
) -> list[Difference]:
    a, b = first.tensors[name], second.tensors[name]
    bare = name.removeprefix(f"{kind_of(name)}.")
    rows = None
    if a.shape != b.shape:
        if bare not in VOCABULARY or a.shape[1:] != b.shape[1:]:
            return [Difference(name, f"shape {list(a.shape)} and {list(b.shape)}")]
        rows = min(a.shape[0], b.shape[0])
    found = []
    if a.dtype != b.dtype:
        found.append(Difference(name, f"type {a.dtype} and {b.dtype}"))
    if (
        reader is None
        or a.digest is not None
        and (a.digest, a.shape, a.dtype)
        == (
            b.digest,
            b.shape,
            b.dtype,
        )
    ):
        return found
    left, right = reader.read(a)[:rows], reader.read(b)[:rows]
    if a.dtype == b.dtype and left.tobytes() == right.tobytes():
        return found
    left = dtypes.convert(left, a.dtype, "F32") if a.dtype in dtypes.FLOATS else left
    right = dtypes.convert(right, b.dtype, "F32") if b.dtype in dtypes.FLOATS else right
    error = np.abs(left.astype(np.float64) - right.astype(np.float64))
    changed = int((left != right).sum())
    if changed:
        found.append(
            Difference(name, f"{changed} of {left.size} numbers, at most by {error.max():.3e}")
        )
    return found


def describe(catalog: Catalog) -> dict[str, Any]:
    """What a checkpoint says of itself beside its tensors, as plain data."""
    kept = {
        key: value
        for key, value in catalog.common.items()
        if key not in ("rng", "files", "config", "megatron_args", "huggingface", "seal")
    }
    return json.loads(json.dumps(kept, default=str))
