# SPDX-License-Identifier: Apache-2.0
"""Folders of MindSpore ``.ckpt`` files as MindSpeed-Core-MS r0.1.0 reads and writes them.

``rank_N/<prefix>.ckpt`` holds the part of one rank under this project's names, layers counted over
the whole model; rank N = tensor rank + tensor size x (data rank + data size x pipeline stage). The
optimizer's tensors carry the prefixes ``exp_avg.`` and ``exp_avg_sq.``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.files.checksum import Checksum
from mindspeed_ms.files.regular_file import MAX_TEXT_BYTES, is_regular, open_regular
from mindspeed_ms.formats import dtypes, names, own_format
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.checkpoint_format import SourceHints
from mindspeed_ms.formats.containers import mindspore_file, sealed_json, storage
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers.new_file import FileRecord
from mindspeed_ms.formats.source import Source, kind_of
from mindspeed_ms.models import ModelSpec, ParamSpec
from mindspeed_ms.plan.layer_placement import LayerPlacement
from mindspeed_ms.plan.region import Region, Span

DESCRIPTION = "description.json"
"""What the converter knew of the run beside its tensors."""

_RANK = re.compile(r"rank_(\d+)")
_SHARD_KEYS = re.compile(r"(.*\.)?buffer_\d+_bucket_\d+$")


_STEP = re.compile(r"(\d+)_(\d+)$")
"""Epoch and step at the end of a file's name."""


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
        tensor_parallel: ranks every tensor is cut for; None takes it from the description, or
            finds it out from the shapes.

    Raises:
        ValueError: files are damaged or missing, or hold optimizer shards that have to be joined
            first.
    """
    catalog = Catalog({}, {}, f"MindSpore checkpoint {path}")
    description = _description(path)
    files = _open(path, description, catalog.notes)
    sharded = [key for file in files for key in file.tensors if _SHARD_KEYS.match(key)]
    if sharded:
        raise ValueError(
            f"{path} holds shards of a distributed optimizer ({sharded[0]}); join them first with "
            "tools/convert_ckpt/combine_ckpt_dp_zero.py"
        )
    catalog.common["iteration"] = _iteration(files)
    catalog.common.update(
        {key: value for key, value in description.items() if key not in ("files", "seal")}
    )
    parts = tensor_parallel or description.get("tensor") or _tensor_parallel(files)
    _check_ranks(path, {file.rank for file in files}, parts)
    if not description:
        catalog.notes.append(
            f"WARNING: {path} has no {DESCRIPTION}: tensor parallel size {parts} follows from the "
            f"shapes, iteration {catalog.common['iteration']} from the file; sizes of the model "
            "are those of the configuration"
        )
    spec = describe(catalog.common)
    for file in files:
        checksum = mindspore_file.checksum_of(file.path) if file.path.suffix == ".ckpt" else None
        checksum = _noted(path, file.path, description) or checksum
        for key, tensor in file.tensors.items():
            if _is_state(key):
                _add(catalog, spec, key, tensor, file, (file.rank % parts, parts), checksum)
    catalog.common["is_tied"] = names.HEAD not in catalog.tensors
    return catalog


def _check_ranks(path: Path, ranks: set[int], parts: int) -> None:
    """Of every group of tensor parallel ranks, all are there."""
    if type(parts) is not int or parts < 1:
        raise ValueError(f"{path}: a tensor parallel size of {parts!r:.40} is none")
    wanted = {rank // parts * parts + part for rank in ranks for part in range(parts)}
    if wanted - ranks:
        raise ValueError(
            f"{path} holds no rank_{min(wanted - ranks)}, which a tensor parallel size of {parts} "
            "asks for; copy the whole checkpoint, or give the size of the source"
        )


def _is_state(key: str) -> bool:
    return key.removeprefix(f"{kind_of(key)}.").startswith("language_model.")


def _description(path: Path) -> dict[str, Any]:
    """What the converter noted; nothing where the files come from elsewhere."""
    description = path / DESCRIPTION
    if not path.is_dir() or not description.exists():
        return {}
    return sealed_json.read(description, MAX_TEXT_BYTES, is_required=False)


def _noted(path: Path, file: Path, description: Mapping[str, Any]) -> Checksum | None:
    """The checksum that the description has of a file."""
    for name, record in (description.get("files") or {}).items():
        if path / name == file:
            return Checksum(file, 0, record["bytes"], record["crc32"])
    return None


def _open(path: Path, description: Mapping[str, Any], notes: list[str]) -> list[_RankFile]:
    if path.is_file():
        return [_RankFile(0, path, tensors_in(path))]
    named = description.get("files")
    if named:
        paths = {_rank_of(Path(name).parent.name): storage.inside(path, name) for name in named}
        lacking = _lacking(path, named)
        if lacking:
            raise ValueError(f"{path} lacks {lacking}; copy the whole checkpoint")
    else:
        paths = _newest_of_all(path, notes)
    if not paths:
        single = sorted(path.glob("*.ckpt"))
        if len(single) != 1:
            raise ValueError(
                f"{path} holds {len(single)} .ckpt files and no rank_N folders; name one file"
            )
        return _open(single[0], {}, notes)
    return [_RankFile(rank, file, tensors_in(file)) for rank, file in sorted(paths.items())]


def _rank_of(name: str) -> int:
    match = _RANK.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r:.60} is no folder of a rank; {DESCRIPTION} is damaged")
    return int(match[1])


def _newest_of_all(path: Path, notes: list[str]) -> dict[int, Path]:
    """The file of each rank, all of one save: the newest that every rank has."""
    by_rank: dict[int, dict[str, Path]] = {}
    for folder in path.glob("rank_*"):
        match = _RANK.fullmatch(folder.name)
        files = [item for item in folder.glob("*") if item.suffix in (".ckpt", ".safetensors")]
        if match and folder.is_dir():
            by_rank[int(match[1])] = {
                re.sub(rf"rank_?{match[1]}(?!\d)", "rank", item.name): item for item in files
            }
    if not by_rank:
        return {}
    common = set.intersection(*(set(files) for files in by_rank.values()))
    if not common:
        rank = min(by_rank, key=lambda item: len(by_rank[item]))
        raise ValueError(
            f"{path} has no file that every rank has; rank_{rank} holds "
            f"{', '.join(sorted(by_rank[rank])[:4]) or 'none'}: copy the files of one save"
        )
    newest = max(common, key=lambda name: _age(by_rank, name))
    if len(common) > 1:
        notes.append(f"{path}: of {len(common)} saves {newest} is read, the newest")
    return {rank: files[newest] for rank, files in by_rank.items()}


def _age(by_rank: Mapping[int, Mapping[str, Path]], name: str) -> tuple:
    match = _STEP.search(Path(name).stem)
    steps = (int(match[1]), int(match[2])) if match else (-1, -1)
    return steps, min(files[name].stat().st_mtime for files in by_rank.values()), name


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


def _iteration(files: list[_RankFile]) -> int:
    """Of all files together.

    Raises:
        ValueError: they are of several saves.
    """
    steps = {_step_in(file): file for file in files}
    if len(steps) > 1:
        first, second, *_ = steps.items()
        raise ValueError(
            f"{first[1].path} is of iteration {first[0]} and {second[1].path} of {second[0]}; copy "
            "the files of one save"
        )
    return next(iter(steps))


def _step_in(file: _RankFile) -> int:
    step = file.tensors.get("global_step") or file.tensors.get("step_num")
    if step is None:
        return 0
    with open_regular(file.path) as raw:
        raw.seek(step.stretches[0].offset)
        return int(np.frombuffer(raw.read(dtypes.width(step.dtype)), dtypes.NUMPY[step.dtype])[0])


def _add(  # noqa: PLR0913 - what a piece is made of
    catalog: Catalog,
    spec: ModelSpec,
    key: str,
    tensor: mindspore_file.CkptTensor,
    file: _RankFile,
    place: tuple[int, int],
    checksum: Checksum | None,
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
        stored.pieces.append(
            StoredPiece(span, tensor.dtype, file.path, stretch.offset, checksum=checksum)
        )
        position += count


def _lacking(path: Path, named: Mapping[str, Any]) -> str | None:
    """The first file of a description that is not there in its size."""
    for name, record in named.items():
        file = storage.inside(path, name)
        if not is_regular(file):
            return name
        if file.stat().st_size != record["bytes"]:
            return f"{record['bytes']} bytes of {name}, it has {file.stat().st_size}"
    return None


class MindSporeFormat:
    """MindSpore's folders and files behind ``CheckpointFormat``."""

    name = "mindspore"

    def is_at(self, path: Path) -> bool:
        """A file, a folder with one, or folders of ranks."""
        if path.is_file():
            return path.suffix == ".ckpt" and not own_format.FORMAT.is_at(path)
        if not path.is_dir() or own_format.FORMAT.is_at(path):
            return False
        patterns = ("*.ckpt", "rank_*/*.ckpt*", "rank_*/*.safetensors*")
        return (path / DESCRIPTION).exists() or any(any(path.glob(item)) for item in patterns)

    def missing(self, path: Path) -> str | None:
        """A file of the description, which is written last; without one, a finished file."""
        if path.is_file():
            return None
        if any(path.glob(f"rank_*/*{storage.PARTIAL}")) and not (path / DESCRIPTION).exists():
            return f"{DESCRIPTION}, which is written last"
        try:
            return _lacking(path, _description(path).get("files") or {})
        except (ValueError, OSError, LookupError, TypeError, AttributeError):
            return None  # damage shows when it is opened

    def open(self, path: Path, hints: SourceHints) -> Catalog:
        """Read the lists of all files."""
        return read_catalog(path, hints.describe, hints.tensor)


FORMAT = MindSporeFormat()


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
    """Write the files of all ranks and the description; return the folder.

    Args:
        source: what is converted.
        described: the model, as plain data.
        root: the folder.
        target: layout and file names.
        progress: told the bytes of every tensor written.
    """
    records: dict[str, FileRecord] = {}
    with storage.NewFiles() as files:
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
                    name = f"rank_{number}/{target.prefix}.{target.container}"
                    records[name] = _put(files.partial(root / name), target, entries)
        files.write_text(root / DESCRIPTION, _describe(source, described, target, records))
        files.replaces([root / DESCRIPTION, *(root / name for name in (*records, *_old(root)))])
    return root


def _old(root: Path) -> list[str]:
    """Files of an earlier conversion to the same folder."""
    try:
        named = list(_description(root).get("files") or ())
        return [name for name in named if storage.inside(root, name)]
    except (ValueError, OSError):
        return []


def _describe(
    source: Source,
    described: Mapping[str, Any],
    target: MindSporeTarget,
    records: dict[str, FileRecord],
) -> str:
    kept = ("iteration", "consumed_train_samples", "scheduler", "optimizer", "megatron_args")
    common = {key: source.catalog.common.get(key) for key in kept if source.catalog.common.get(key)}
    files = {
        name: {"bytes": record.num_bytes, "crc32": record.crc32} for name, record in records.items()
    }
    return sealed_json.dumps({**common, **described, "tensor": target.tensor, "files": files})


def _put(path: Path, target: MindSporeTarget, entries: list[safetensors.Entry]) -> FileRecord:
    if target.container == "ckpt":
        return mindspore_file.write_file(path, entries, with_crc=True)[0]
    return safetensors.write_file(path, entries, {"format": "ms"})[0]


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
