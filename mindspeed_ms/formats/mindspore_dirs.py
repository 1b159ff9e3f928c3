"""Folders of MindSpore ``.ckpt`` files as MindSpeed-Core-MS r0.1.0 reads and writes them.

``rank_N/<prefix>.ckpt`` holds the part of one rank under this project's names, layers counted over
the whole model; rank N = tensor rank + tensor size x (data rank + data size x pipeline stage). The
optimizer's tensors carry the prefixes ``exp_avg.`` and ``exp_avg_sq.``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.containers import mindspore_file, storage
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.source import Source, kind_of
from mindspeed_ms.models import ModelSpec, ParamSpec
from mindspeed_ms.plan.layer_placement import LayerPlacement
from mindspeed_ms.plan.region import Region, Span

DESCRIPTION = "description.json"
"""What the converter knew of the run beside its tensors."""

_RANK = re.compile(r"rank_(\d+)")
_SHARD_KEYS = re.compile(r"(.*\.)?buffer_\d+_bucket_\d+$")


@dataclass(slots=True)
class _RankFile:
    rank: int
    path: Path
    tensors: dict[str, mindspore_file.CkptTensor]


def read_catalog(
    path: Path, describe: names.Describe, tensor_parallel: int | None = None
) -> Catalog:
    """What a folder (or a single file) holds.

    Args:
        path: a folder with ``rank_N/*.ckpt`` or with one file, or that file.
        describe: its common part -> the model.
        tensor_parallel: ranks every tensor is cut for; None finds it out from the shapes.

    Raises:
        ValueError: files are damaged, or hold optimizer shards that have to be joined first.
    """
    files = _open(path)
    sharded = [key for file in files for key in file.tensors if _SHARD_KEYS.match(key)]
    if sharded:
        raise ValueError(
            f"{path} holds shards of a distributed optimizer ({sharded[0]}); join them first with "
            "tools/convert_ckpt/combine_ckpt_dp_zero.py"
        )
    parts = tensor_parallel or _tensor_parallel(files)
    catalog = Catalog({}, {"iteration": _iteration(files[0])}, f"MindSpore checkpoint {path}")
    description = path / DESCRIPTION
    if description.is_file():
        catalog.common.update(json.loads(description.read_text(encoding="utf-8")))
    spec = describe(catalog.common)
    for file in files:
        for key, tensor in file.tensors.items():
            if _is_state(key):
                _add(catalog, spec, key, tensor, file, (file.rank % parts, parts))
    catalog.common["is_tied"] = names.HEAD not in catalog.tensors
    return catalog


def _is_state(key: str) -> bool:
    return key.removeprefix(f"{kind_of(key)}.").startswith("language_model.")


def _open(path: Path) -> list[_RankFile]:
    if path.is_file():
        return [_RankFile(0, path, tensors_in(path))]
    found = []
    for folder in sorted(path.glob("rank_*")):
        match = _RANK.fullmatch(folder.name)
        files = [*folder.glob("*.ckpt"), *folder.glob("*.safetensors")]
        if match and files:
            newest = max(files, key=lambda item: (item.stat().st_mtime, item.name))
            found.append(_RankFile(int(match[1]), newest, tensors_in(newest)))
    if not found:
        single = sorted(path.glob("*.ckpt"))
        if len(single) != 1:
            raise ValueError(
                f"{path} holds {len(single)} .ckpt files and no rank_N folders; name one file"
            )
        return _open(single[0])
    return found


def tensors_in(path: Path) -> dict[str, mindspore_file.CkptTensor]:
    """Tensors of a ``.ckpt`` or safetensors file."""
    if path.suffix == ".ckpt":
        return mindspore_file.read_index(path)[0]
    tensors = {}
    for key, place in safetensors.read_header(path)[0].items():
        count = int(np.prod(place.shape, dtype=np.int64)) * dtypes.width(place.dtype)
        stretch = safetensors.Stretch(place.offset, count)
        tensors[key] = mindspore_file.CkptTensor(place.dtype, place.shape, [stretch])
    return tensors


def _tensor_parallel(files: list[_RankFile]) -> int:
    """From a matrix that is cut along its columns and the norm beside it."""
    for file in files:
        for key, tensor in file.tensors.items():
            if key.endswith("attention.out_proj.weight") and kind_of(key) == "":
                return max(1, tensor.shape[0] // tensor.shape[1])
    return 1


def _iteration(file: _RankFile) -> int:
    step = file.tensors.get("global_step") or file.tensors.get("step_num")
    if step is None:
        return 0
    with file.path.open("rb") as raw:
        raw.seek(step.stretches[0].offset)
        return int(np.frombuffer(raw.read(dtypes.width(step.dtype)), dtypes.NUMPY[step.dtype])[0])


def _add(
    catalog: Catalog,
    spec: ModelSpec,
    key: str,
    tensor: mindspore_file.CkptTensor,
    file: _RankFile,
    place: tuple[int, int],
) -> None:
    rank, parts = place
    name = key.removeprefix(f"{kind_of(key)}.")
    told = spec.tied_head if name == names.HEAD else spec.by_name.get(name)
    if told is None:
        raise ValueError(
            f"{catalog.source} holds {name}, which is not in the model that is described; correct "
            "the configuration"
        )
    shape, dim = list(tensor.shape), told.partition_dim
    region = Region.whole(shape)
    if dim >= 0 and parts > 1:
        shape[dim] *= parts
        region = Region.of_part(shape, dim, rank, parts, told.partition_stride)
    stored = catalog.tensors.setdefault(key, StoredTensor(tuple(shape), tensor.dtype))
    if stored.shape != tuple(shape):
        raise ValueError(
            f"{catalog.source}: {key} has shape {tensor.shape} in {file.path}, which does not go "
            f"with {stored.shape}; give the tensor parallel size of the source"
        )
    if any(piece.span.region == region for piece in stored.pieces):
        return
    position = 0
    for stretch in tensor.stretches:
        count = stretch.num_bytes // dtypes.width(tensor.dtype)
        span = Span(region, position, position + count)
        stored.pieces.append(StoredPiece(span, tensor.dtype, file.path, stretch.offset))
        position += count


@dataclass(frozen=True, kw_only=True, slots=True)
class MindSporeTarget:
    """Layout and file names of what is written."""

    placement: LayerPlacement
    tensor: int = 1
    data_parallel: int = 1
    """Data x context parallel ranks, which numbers are left out for."""
    all_copies: bool = False
    """Write the files of all data parallel ranks, not only of the first."""
    prefix: str = "network"
    container: str = "ckpt"
    with_optimizer: bool = True


def write(
    source: Source,
    described: Mapping[str, Any],
    root: Path,
    target: MindSporeTarget,
    progress: Callable[[int], None],
) -> Path:
    """Write the files of all ranks; return the folder.

    Args:
        source: what is converted.
        described: the model, as plain data.
        root: the folder.
        target: layout and file names.
        progress: told the bytes of every tensor written.
    """
    for stage in range(target.placement.num_stages):
        for rank in range(target.tensor):
            keys = _keys_of_stage(source, target, stage)
            entries = [
                safetensors.Entry(
                    f"{kind}.{spec.name}" if kind else spec.name,
                    source.dtype(spec.name, kind),
                    source.span(spec, rank, target.tensor).region.shape,
                    partial(_read, source, (spec, kind), (rank, target.tensor), progress),
                )
                for spec, kind in keys
            ]
            copies = range(target.data_parallel if target.all_copies else 1)
            for copy in copies:
                number = rank + target.tensor * (copy + target.data_parallel * stage)
                _put(root / f"rank_{number}", target, entries)
    _describe(source, described, root)
    return root


def _describe(source: Source, described: Mapping[str, Any], root: Path) -> None:
    kept = ("iteration", "consumed_train_samples", "scheduler", "optimizer", "megatron_args")
    common = {key: source.catalog.common.get(key) for key in kept if source.catalog.common.get(key)}
    storage.write_text(root / DESCRIPTION, json.dumps({**common, **described}, indent=1))


def _put(folder: Path, target: MindSporeTarget, entries: list[safetensors.Entry]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{target.prefix}.{target.container}"
    partial_path = final.with_name(final.name + storage.PARTIAL)
    if target.container == "ckpt":
        mindspore_file.write_file(partial_path, entries)
    else:
        safetensors.write_file(partial_path, entries, {"format": "ms"})
    storage.put_in_place(partial_path, final)


def _keys_of_stage(
    source: Source, target: MindSporeTarget, stage: int
) -> list[tuple[ParamSpec, str]]:
    """Parameters of a stage and their kinds; the last one of several may have the table too."""
    placement, spec = target.placement, source.spec
    mine: dict[str, ParamSpec] = {}
    for chunk in range(placement.num_chunks):
        mine |= {one.name: one for one in spec.of_chunk(placement, stage, chunk)}
    if placement.num_stages > 1 and stage == placement.num_stages - 1 and spec.is_tied:
        mine.pop(spec.tied_head.name, None)
        mine[spec.table.name] = spec.table
    return [
        (mine[name], kind)
        for name, kind in source.all_tensors(target.with_optimizer)
        if name in mine
    ]


def _read(
    source: Source,
    item: tuple[ParamSpec, str],
    place: tuple[int, int],
    progress: Callable[[int], None],
) -> np.ndarray:
    spec, kind = item
    array = source.read(spec.name, kind, source.span(spec, *place))
    progress(array.nbytes)
    return array
