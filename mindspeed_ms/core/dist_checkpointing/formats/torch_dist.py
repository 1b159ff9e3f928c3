"""Megatron-LM's ``torch_dist`` checkpoints (torch's distributed format) as catalogs, read only.

``.metadata`` lists for every tensor its global shape and the chunks it was written in, and for
every chunk the place in a ``.distcp`` file, where it lies as a ``torch.save`` file of its own.
Layers of equal form are stacked along a first dimension, experts along the next one. ``common.pt``
holds everything that is no tensor.

Source: PyTorch ``torch/distributed/checkpoint`` (layout); Megatron-core ``sharded_state_dict``
(names of keys).
"""

from __future__ import annotations

import itertools
import math
import pickle
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.core.dist_checkpointing.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.core.dist_checkpointing.formats import names
from mindspeed_ms.core.dist_checkpointing.formats.torch_file import (
    Inert,
    SafeUnpickler,
    TensorRef,
    TorchFile,
    plain,
)
from mindspeed_ms.core.dist_checkpointing.region import Region, Span

_KINDS = {
    "optimizer.state.exp_avg.": "exp_avg",
    "optimizer.state.exp_avg_sq.": "exp_avg_sq",
    "optimizer.state.fp32_param.": "main",
}
"""Start of a key -> kind of the tensor; others that begin with ``optimizer.`` depend on the number
of data parallel ranks and are not read."""

_MODEL = ("embedding.", "decoder.", "output_layer.", "language_model.")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a tensor and where it lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    start: int
    length: int


def read_catalog(folder: Path) -> Catalog:
    """What a checkpoint holds; tensors stay in their files.

    Raises:
        ValueError: a file is damaged or missing.
    """
    tensors = _read_metadata(folder)
    common = _read_common(folder)
    args = common.get("args", Namespace())
    weights = {key for key in tensors if key.startswith(_MODEL)}
    catalog = Catalog({}, _common(common, args), f"Megatron checkpoint {folder}")
    left = 0
    for key, (shape, chunks) in tensors.items():
        kind, name = _kind(key)
        if name.endswith("_extra_state") or not name.startswith(_MODEL):
            left += key.startswith("optimizer.")
            continue
        for chunk in chunks:
            _add_chunk(catalog, kind, name, shape, chunk, weights)
    catalog.common["is_tied"] = names.HEAD not in catalog.tensors
    if left:
        catalog.common["not_read"] = (
            f"{left} tensors of the optimizer, which are sharded for one number of ranks; save "
            "with --dist-ckpt-optim-fully-reshardable to convert them"
        )
    return catalog


def _kind(key: str) -> tuple[str, str]:
    for start, kind in _KINDS.items():
        if key.startswith(start):
            return kind, key.removeprefix(start)
    return "", key


def _state(value: Any) -> Mapping[str, Any]:
    """Fields of an object of torch's."""
    state = value.state if isinstance(value, Inert) else None
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], Mapping):
        state = state[1]
    if not isinstance(state, Mapping):
        raise ValueError(f"its metadata holds {type(value).__name__} where fields are expected")
    return state


def _read_metadata(folder: Path) -> dict[str, tuple[tuple[int, ...], list[_Chunk]]]:
    path = folder / ".metadata"
    with path.open("rb") as file:
        try:
            content = _state(SafeUnpickler(file).load())
            places = {}
            for index, info in content["storage_data"].items():
                key, where = _state(index), _state(info)
                offset = key.get("offset")
                places[key["fqn"], None if offset is None else tuple(offset)] = (
                    folder / where["relative_path"],
                    int(where["offset"]),
                    int(where["length"]),
                )
            found = {}
            for key, value in content["state_dict_metadata"].items():
                fields = _state(value)
                if "chunks" not in fields:
                    continue
                chunks = []
                for chunk in map(_state, fields["chunks"]):
                    offsets = tuple(map(int, chunk["offsets"]))
                    sizes = tuple(map(int, chunk["sizes"]))
                    chunks.append(_Chunk(offsets, sizes, *places[key, offsets]))
                found[key] = (tuple(map(int, fields["size"])), chunks)
        except (
            pickle.UnpicklingError,
            LookupError,
            AttributeError,
            TypeError,
            EOFError,
            ValueError,
        ) as error:
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}: {error}); it is damaged or of a "
                "version of torch that is not known: use another checkpoint"
            ) from None
    return found


def _read_common(folder: Path) -> Mapping[str, Any]:
    path = folder / "common.pt"
    if not path.is_file():
        return {}
    content = TorchFile(path).content
    return content if isinstance(content, Mapping) else {}


def _common(common: Mapping[str, Any], args: Any) -> dict[str, Any]:
    iteration = common.get("iteration", 0)
    scheduler = common.get("opt_param_scheduler")
    steps = [
        group["step"]
        for group in _groups(common.get("optimizer"))
        if isinstance(group.get("step"), int | float)
    ]
    result: dict[str, Any] = {
        "iteration": iteration if isinstance(iteration, int) else 0,
        "consumed_train_samples": names.get(args, "consumed_train_samples"),
        "vocab_size": names.get(args, "vocab_size"),
        "scheduler": plain(scheduler) if scheduler else None,
        "optimizer": {"num_steps": int(steps[0])} if steps else {},
    }
    if vars(args):
        result["megatron_args"] = plain(vars(args))
    return result


def _groups(state: Any) -> list[Mapping[str, Any]]:
    """Parameter groups wherever the optimizer keeps them."""
    if isinstance(state, Mapping):
        if isinstance(state.get("param_groups"), list):
            return state["param_groups"]
        return [group for value in state.values() for group in _groups(value)]
    if isinstance(state, list):
        return [group for value in state for group in _groups(value)]
    return []


def _stacked(name: str, chunk: _Chunk) -> Iterator[tuple[str, int]]:
    """Name of every parameter in a chunk, and its first element there."""
    axes = []
    if re.search(r"\.layers\.(?!\d)", name):
        axes.append(r"\.layers\.(?!\d)")
    if ".experts.experts." in name:
        axes.append(r"\.experts\.experts\.")
    size = math.prod(chunk.sizes[len(axes) :])
    ranges = [range(chunk.sizes[axis]) for axis in range(len(axes))]
    for number, place in enumerate(itertools.product(*ranges)):
        full = name
        for axis, pattern in enumerate(axes):
            index = chunk.offsets[axis] + place[axis]
            word = ".layers." if "layers" in pattern else ".experts.local_experts."
            full = re.sub(pattern, f"{word}{index}.", full, count=1)
        yield full, number * size


def _add_chunk(
    catalog: Catalog,
    kind: str,
    name: str,
    shape: tuple[int, ...],
    chunk: _Chunk,
    weights: set[str],
) -> None:
    file = TorchFile(chunk.path, chunk.start, chunk.length)
    ref = file.content
    if not isinstance(ref, TensorRef) or math.prod(ref.shape) != math.prod(chunk.sizes):
        raise ValueError(f"{chunk.path} holds no tensor of shape {chunk.sizes} for {name}")
    stacked = list(_stacked(name, chunk))
    axes = int(bool(re.search(r"\.layers\.(?!\d)", name))) + int(".experts.experts." in name)
    runs = tuple(
        ((offset, size),)
        for offset, size in zip(chunk.offsets[axes:], chunk.sizes[axes:], strict=True)
    )
    has_bias = (
        f"{name.rpartition('.')[0]}.bias" in weights or name.replace("weight", "bias") in weights
    )
    for full, first in stacked:
        own = names.own_name(full, lambda _: has_bias)
        key = f"{kind}.{own}" if kind else own
        span = Span.all_of(Region(runs))
        whole = file.piece(ref, Span.all_of(Region.whole(ref.shape)))
        width = whole.num_bytes // max(1, math.prod(ref.shape))
        piece = StoredPiece(span, whole.dtype, whole.path, whole.offset + first * width)
        tensor = catalog.tensors.setdefault(key, StoredTensor(tuple(shape[axes:]), whole.dtype))
        tensor.pieces.append(piece)
