# SPDX-License-Identifier: Apache-2.0
"""Megatron-LM's ``torch_dist`` checkpoints (torch's distributed format) as catalogs, read only.

``.metadata`` lists for every tensor its global shape and the chunks it was written in, and for
every chunk the place in a ``.distcp`` file, where it lies as a ``torch.save`` file of its own.
Layers of equal form are stacked along a first dimension, experts along the next one. A distributed
optimizer's tensors are flattened: as many rows as the weight has parts along each dimension, and a
last dimension that counts the elements of a part. ``common.pt`` holds everything that is no tensor.

Source: PyTorch ``torch/distributed/checkpoint`` (layout); Megatron-core ``sharded_state_dict``
(names of keys).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.config.optimizer_config import STATE_NAMES
from mindspeed_ms.files.regular_file import is_regular, open_regular
from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.checkpoint_format import SourceHints
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.containers.safe_pickle import Inert, SafeUnpickler, TensorRef, Walk, plain
from mindspeed_ms.formats.containers.torch_file import TorchFile
from mindspeed_ms.formats.megatron_files import arguments_of
from mindspeed_ms.models import ModelSpec
from mindspeed_ms.plan.region import Region, Span

METADATA = ".metadata"
"""Written last."""
COMMON = "common.pt"
_MAX_STACKED = 1 << 20
"""Layers x experts in one tensor."""

_KINDS = {
    **{f"optimizer.state.{name}.": name for name in STATE_NAMES},
    "optimizer.state.fp32_param.": "main",
}
"""Start of a key -> kind of the tensor; others that begin with ``optimizer.`` depend on the number
of data parallel ranks and are not read."""

_CHAINED = re.compile(r"^chained_\d+\.(?=optimizer\.)")
"""Optimizers of dense parameters and of experts, if there are two."""

_MODEL = ("embedding.", "decoder.", "output_layer.", "mtp.", "language_model.")


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of a tensor and where it lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    start: int
    length: int


def read_catalog(folder: Path, describe: names.Describe) -> Catalog:
    """What a checkpoint holds; tensors stay in their files.

    Args:
        folder: of the checkpoint.
        describe: its common part -> the model.

    Raises:
        ValueError: a file is damaged or missing.
    """
    tensors, buffers = _read_metadata(folder)
    common, steps = _read_common(folder)
    args = common["args"]
    weights = {key: shape for key, (shape, _) in tensors.items() if key.startswith(_MODEL)}
    catalog = Catalog({}, _common(common, args, steps), f"Megatron checkpoint {folder}")
    spec = describe(catalog.common)
    left = len(buffers)
    for key, (shape, chunks) in tensors.items():
        kind, name = _kind(key)
        if name.endswith("_extra_state") or not name.startswith(_MODEL):
            left += _CHAINED.sub("", key).startswith("optimizer.")
            continue
        for chunk in chunks:
            _add_chunk(catalog, spec, (kind, name), shape, chunk, weights)
    for name in [name for name in catalog.tensors if name.startswith("main.")]:
        if catalog.tensors[name.removeprefix("main.")].dtype == "F32":  # a view of the weight
            del catalog.tensors[name]
    catalog.common["is_tied"] = names.HEAD not in catalog.tensors
    if left:
        catalog.common["not_read"] = (
            f"{left} tensors of the optimizer, which are sharded for one number of ranks; save "
            "without --no-ckpt-fully-parallel-save to convert them"
        )
    return catalog


def _kind(key: str) -> tuple[str, str]:
    key = _CHAINED.sub("", key)
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


_Tensors = dict[str, tuple[tuple[int, ...], list[_Chunk]]]
"""Key -> global shape and chunks."""


def _read_metadata(folder: Path) -> tuple[_Tensors, list[str]]:
    """The tensors, and the keys of an optimizer's whole buffers, which are stored as objects."""
    path = folder / METADATA
    with open_regular(path) as file:
        data = file.read()
    try:
        return _tensors_of(_state(SafeUnpickler(data).load()), folder)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it is damaged or of a "
            "version of torch that is not known: use another checkpoint"
        ) from None


def _tensors_of(content: Mapping[str, Any], folder: Path) -> tuple[_Tensors, list[str]]:
    places: dict[tuple[str, tuple[int, ...] | None], tuple[Path, int, int]] = {}
    paths: dict[str, Path] = {}
    taken: set[tuple[str, int]] = set()
    for index, info in content["storage_data"].items():
        key, where = _state(index), _state(info)
        offset = key.get("offset")
        name = where["relative_path"]
        if name not in paths:
            paths[name] = storage.inside(folder, name)
        if (name, where["offset"]) in taken:
            raise ValueError(f"two parts lie at byte {where['offset']} of {name}")
        taken.add((name, where["offset"]))
        places[key["fqn"], None if offset is None else tuple(offset)] = (
            paths[name],
            _number(where["offset"]),
            _number(where["length"]),
        )
    found: _Tensors = {}
    buffers = []
    for key, value in content["state_dict_metadata"].items():
        if isinstance(value, Inert) and value.state is None:  # an object, not a tensor
            if "optimizer." in key and ".param_state" in key:
                buffers.append(key)
            continue
        fields = _state(value)
        if "chunks" not in fields:
            continue
        chunks = []
        for chunk in map(_state, fields["chunks"]):
            offsets = tuple(map(_number, chunk["offsets"]))
            sizes = tuple(map(_number, chunk["sizes"]))
            chunks.append(_Chunk(offsets, sizes, *places[key, offsets]))
        found[key] = (tuple(map(_number, fields["size"])), chunks)
    return found, buffers


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is no size or place")
    return value


def _read_common(folder: Path) -> tuple[Mapping[str, Any], list[float]]:
    """What is no tensor, and the numbers of optimizer steps in it.

    Raises:
        ValueError: it is missing or damaged, or says nothing about the model.
    """
    path = folder / COMMON
    if not is_regular(path):
        raise ValueError(
            f"{path} is missing, which holds the iteration and Megatron's arguments; copy the "
            "whole checkpoint"
        )
    file = TorchFile(path)
    arguments_of(file)
    content = file.content
    return content, list(_steps(content.get("optimizer"), file))


def _common(common: Mapping[str, Any], args: Any, steps: Sequence[float]) -> dict[str, Any]:
    iteration = common.get("iteration", 0)
    scheduler = common.get("opt_param_scheduler")
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


def _steps(
    state: Any, file: TorchFile, walk: Walk | None = None, depth: int = 0
) -> Iterator[float]:
    """Numbers of optimizer steps, wherever the kinds of optimizers keep them."""
    walk = walk or Walk()
    walk.meet(depth)
    if isinstance(state, list):
        for value in state:
            yield from _steps(value, file, walk, depth + 1)
    if not isinstance(state, Mapping):
        return
    for key, value in state.items():
        if key not in ("step", "common_step"):
            yield from _steps(value, file, walk, depth + 1)
        elif isinstance(value, TensorRef):
            yield float(file.numbers(value)[0])
        elif isinstance(value, int | float):
            yield value


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


def _span(chunk: _Chunk, shape: tuple[int, ...], whole_shape: tuple[int, ...], axes: int) -> Span:
    """What a chunk holds of a tensor, without the dimensions that layers and experts lie along.

    Args:
        chunk: its place in the stored tensor.
        shape: of the stored tensor; one dimension more than ``whole_shape`` if it is flattened.
        whole_shape: of the tensor.
        axes: number of leading dimensions of both that are left out.
    """
    places = zip(chunk.offsets[axes:], chunk.sizes[axes:], strict=True)
    if len(shape) == len(whole_shape):
        return Span.all_of(Region(tuple(((offset, size),) for offset, size in places)))
    (*numbers, (start, size)) = places
    extents = [
        extent // parts for extent, parts in zip(whole_shape[axes:], shape[axes:-1], strict=True)
    ]
    runs = tuple(
        ((number * extent, extent),) for (number, _), extent in zip(numbers, extents, strict=True)
    )
    return Span(Region(runs), start, start + size)


def _own_name(name: str, spec: ModelSpec, catalog: Catalog) -> str:
    """Name here of a parameter.

    Raises:
        ValueError: the model has none of that name.
    """
    current = names.current_name(name)
    if current == "output_layer.weight":
        return names.HEAD
    if current not in spec.by_megatron_name:
        raise ValueError(
            f"{catalog.source} holds {name}, which is not in the model that is described; correct "
            "the configuration"
        )
    return spec.by_megatron_name[current].name


def _add_chunk(
    catalog: Catalog,
    spec: ModelSpec,
    place: tuple[str, str],
    shape: tuple[int, ...],
    chunk: _Chunk,
    weights: Mapping[str, tuple[int, ...]],
) -> None:
    kind, name = place
    file = TorchFile(chunk.path, chunk.start, chunk.length)
    ref = file.content
    axes = int(bool(re.search(r"\.layers\.(?!\d)", name))) + int(".experts.experts." in name)
    if (
        not isinstance(ref, TensorRef)
        or not ref.is_contiguous
        or not 0 < math.prod(chunk.sizes) == math.prod(ref.shape)
        or math.prod(chunk.sizes[:axes]) > _MAX_STACKED
        or len(chunk.sizes) != len(shape)
    ):
        raise ValueError(f"{chunk.path} holds no tensor of shape {chunk.sizes} for {name}")
    whole = file.whole(ref)
    stacked = list(_stacked(name, chunk))
    whole_shape = weights.get(name, shape) if kind else shape
    span = _span(chunk, shape, whole_shape, axes)
    for full, first in stacked:
        own = _own_name(full, spec, catalog)
        key = f"{kind}.{own}" if kind else own
        start = whole.offset + first * dtypes.width(whole.dtype)
        piece = StoredPiece(span, whole.dtype, whole.path, start, checksum=whole.checksum)
        tensor = catalog.tensors.setdefault(
            key, StoredTensor(tuple(whole_shape[axes:]), whole.dtype)
        )
        tensor.pieces.append(piece)


class TorchDistFormat:
    """Megatron's ``torch_dist`` checkpoints behind ``CheckpointFormat``."""

    name = "torch_dist"

    def is_at(self, path: Path) -> bool:
        """A folder with the list of all tensors, or with files of tensors."""
        return is_regular(path / METADATA) or any(path.glob("*.distcp"))

    def missing(self, path: Path) -> str | None:
        """The list is written last."""
        return None if is_regular(path / METADATA) else f"{METADATA}, which is written last"

    def open(self, path: Path, hints: SourceHints) -> Catalog:
        """Read the list of all tensors and the heads of their files."""
        return read_catalog(path, hints.describe)


FORMAT = TorchDistFormat()
