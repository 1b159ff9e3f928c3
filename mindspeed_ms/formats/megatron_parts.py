# SPDX-License-Identifier: Apache-2.0
"""The parts of Megatron's checkpoints: what a rank's file holds of which global tensor."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_ms.formats import names
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.containers.torch_file import TensorRef, TorchFile
from mindspeed_ms.models import ParamSpec
from mindspeed_ms.plan.region import Region, Span

_DOWN = re.compile(r"\.(q|kv)_down_proj\.weight$")


@dataclass(frozen=True, slots=True)
class Rank:
    """Place of a file in the model."""

    tensor: int
    pipeline: int
    expert: int


@dataclass(slots=True)
class Part:
    """A parameter as one rank holds it."""

    name: str
    """In Megatron-core, experts counted over the whole model."""
    file_name: str
    """In the file."""
    ref: TensorRef
    shape: tuple[int, ...]
    """Local shape."""
    first: int = 0
    """First element within ``ref``, which several experts may share."""
    is_transposed: bool = False
    spec: ParamSpec = field(init=False)
    """The whole parameter."""


@dataclass(slots=True)
class Chunk:
    """The parameters of one model chunk of a rank, in the order of the model."""

    parts: list[Part] = field(default_factory=list)


@dataclass(slots=True)
class RankFile:
    """A rank's file, opened."""

    rank: Rank
    folder: Path
    file: TorchFile
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the split depends on."""

    tensor: int
    pipeline: int
    expert: int
    is_tied: bool
    version: float
    heads: int
    num_experts: int
    expert_tensor: int
    """Parts an expert's matrices are cut into; the tensor parallel size unless it was given."""

    @classmethod
    def of(cls, args: Any, files: list[RankFile]) -> Sizes:
        """From the saved arguments, and from the ranks there are."""
        ranks = [item.rank for item in files]
        return cls(
            tensor=1 + max(rank.tensor for rank in ranks),
            pipeline=1 + max(rank.pipeline for rank in ranks),
            expert=1 + max(rank.expert for rank in ranks),
            is_tied=not names.get(args, "untie_embeddings_and_output_weights", False),
            version=float(files[0].file.content.get("checkpoint_version", 0)),
            heads=int(names.get(args, "num_attention_heads", 1)),
            num_experts=int(names.get(args, "num_experts", 0)),
            expert_tensor=int(
                names.get(args, "expert_tensor_parallel_size", 0)
                or 1 + max(rank.tensor for rank in ranks)
            ),
        )

    @property
    def experts_per_rank(self) -> int:
        """Experts in one file."""
        return self.num_experts // self.expert


def global_span(part: Part, rank: Rank, sizes: Sizes) -> tuple[tuple[int, ...], Span]:
    """Global shape of a parameter, and what of it a rank holds."""
    parts = part.spec.ranks_of(sizes.tensor, sizes.expert_tensor)
    spec = part.spec.among(parts)
    dim = spec.partition_dim
    if _DOWN.search(spec.name) and part.shape[0] != spec.shape[0]:
        dim = 0  # cut by some versions of Megatron, whole in others
    shape = list(part.shape)
    if dim >= 0:
        shape[dim] *= parts
        region = Region.of_part(shape, dim, rank.tensor % parts, parts, spec.partition_stride)
    else:
        region = Region.whole(shape)
    if ".qkv_proj." in spec.name and sizes.version < 2.0:
        region = _old_query_rows(region, tuple(shape), sizes)
    return tuple(shape), Span.all_of(region)


def _old_query_rows(region: Region, shape: tuple[int, ...], sizes: Sizes) -> Region:
    """Rows of query, key and value in checkpoints of version 0 and 1.

    Version 0 holds [3, heads, d], version 1 [heads, d, 3]; since version 2 it is [heads, 3, d].
    """
    heads = sizes.heads // sizes.tensor
    dim = shape[0] // (3 * sizes.heads)
    (low, _), *_ = region.bounds
    if sizes.version < 1.0:
        order = [(head * 3 + kind, 0, dim) for kind in range(3) for head in range(heads)]
    else:
        order = [
            (head * 3 + kind, index, 1)
            for head in range(heads)
            for index in range(dim)
            for kind in range(3)
        ]
    return region.with_runs(0, [(low + block * dim + at, size) for block, at, size in order])


def add_piece(catalog: Catalog, name: str, shape: tuple[int, ...], piece: StoredPiece) -> None:
    """Put a piece of a tensor into a catalog; what several ranks hold alike counts once.

    Raises:
        ValueError: ranks disagree about the shape.
    """
    tensor = catalog.tensors.setdefault(name, StoredTensor(shape, piece.dtype))
    if tensor.shape != shape:
        raise ValueError(
            f"{catalog.source}: {name} is of shape {list(tensor.shape)} on one rank and "
            f"{list(shape)} by {piece.path}; its files are of different models"
        )
    if all(other.span != piece.span for other in tensor.pieces):
        tensor.pieces.append(piece)
