"""Folders of MindSpore ``.ckpt`` files as MindSpeed-Core-MS r0.1.0 reads and writes them.

``rank_N/<prefix>.ckpt`` holds the part of one rank under this project's names, layers counted over
the whole model; rank N = tensor rank + tensor size x (data rank + data size x pipeline stage). The
optimizer's tensors carry the prefixes ``exp_avg.`` and ``exp_avg_sq.``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.containers import mindspore_file, storage
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.facts import ModelFacts
from mindspeed_ms.formats.source import Source, kind_of
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


def read_catalog(path: Path, tensor_parallel: int | None = None) -> Catalog:
    """What a folder (or a single file) holds.

    Args:
        path: a folder with ``rank_N/*.ckpt`` or with one file, or that file.
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
    is_gated = _is_gated(files)
    catalog = Catalog({}, {"iteration": _iteration(files[0])}, f"MindSpore checkpoint {path}")
    description = path / DESCRIPTION
    if description.is_file():
        catalog.common.update(json.loads(description.read_text(encoding="utf-8")))
    for file in files:
        for key, tensor in file.tensors.items():
            if _is_state(key):
                _add(catalog, key, tensor, file, (file.rank % parts, parts, is_gated))
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


def _is_gated(files: list[_RankFile]) -> bool:
    """Whether the first matrix of an MLP holds [gate; up]: it is twice as wide as the second."""
    for file in files:
        for key, tensor in file.tensors.items():
            second = file.tensors.get(key.replace("mapping", "projection"))
            if key.endswith("mapping.weight") and second is not None:
                return tensor.shape[0] == 2 * second.shape[1]
    return False


def _iteration(file: _RankFile) -> int:
    step = file.tensors.get("global_step") or file.tensors.get("step_num")
    if step is None:
        return 0
    with file.path.open("rb") as raw:
        raw.seek(step.stretches[0].offset)
        return int(np.frombuffer(raw.read(dtypes.width(step.dtype)), dtypes.NUMPY[step.dtype])[0])


def _add(
    catalog: Catalog,
    key: str,
    tensor: mindspore_file.CkptTensor,
    file: _RankFile,
    place: tuple[int, int, bool],
) -> None:
    rank, parts, is_gated = place
    split = names.split_of(key.removeprefix(f"{kind_of(key)}."), is_gated)
    shape = list(tensor.shape)
    region = Region.whole(shape)
    if split.dim >= 0 and parts > 1:
        shape[split.dim] *= parts
        region = Region.of_part(shape, split.dim, rank, parts, split.stride)
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
    facts: ModelFacts,
    root: Path,
    target: MindSporeTarget,
    progress: Callable[[int], None],
) -> Path:
    """Write the files of all ranks; return the folder."""
    for stage in range(target.placement.num_stages):
        for rank in range(target.tensor):
            keys = _keys_of_stage(source, facts, target, stage)
            entries = [
                safetensors.Entry(
                    f"{kind}.{name}" if kind else name,
                    source.dtype(name, kind),
                    _span(source, facts, name, rank, target.tensor).region.shape,
                    partial(_read, source, facts, (name, kind), (rank, target.tensor), progress),
                )
                for name, kind in keys
            ]
            copies = range(target.data_parallel if target.all_copies else 1)
            for copy in copies:
                number = rank + target.tensor * (copy + target.data_parallel * stage)
                _put(root / f"rank_{number}", target, entries)
    _describe(source, facts, root)
    return root


def _describe(source: Source, facts: ModelFacts, root: Path) -> None:
    kept = ("iteration", "consumed_train_samples", "scheduler", "optimizer", "megatron_args")
    common = {key: source.catalog.common.get(key) for key in kept if source.catalog.common.get(key)}
    text = json.dumps({**common, "vocab_size": facts.vocab_size, "facts": asdict(facts)}, indent=1)
    storage.write_text(root / DESCRIPTION, text)


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
    source: Source, facts: ModelFacts, target: MindSporeTarget, stage: int
) -> list[tuple[str, str]]:
    layers = set(target.placement.layers_of_stage(stage))
    last = target.placement.num_stages - 1
    keys = []
    for name, kind in source.all_tensors(target.with_optimizer):
        layer = names.layer_of(name)
        is_first = ".embedding." in name
        is_mine = layer in layers if layer is not None else stage == (0 if is_first else last)
        is_copy = name == names.EMBEDDING and facts.is_tied and stage == last
        if is_mine or is_copy:
            keys.append((name, kind))
    return keys


def _span(source: Source, facts: ModelFacts, name: str, rank: int, parts: int) -> Span:
    shape = source.shape(name)
    split = names.split_of(name, facts.swiglu)
    if split.dim < 0 or parts == 1:
        return Span.all_of(Region.whole(shape))
    return Span.all_of(Region.of_part(shape, split.dim, rank, parts, split.stride))


def _read(
    source: Source,
    facts: ModelFacts,
    item: tuple[str, str],
    place: tuple[int, int],
    progress: Callable[[int], None],
) -> np.ndarray:
    name, kind = item
    array = source.read(name, kind, _span(source, facts, name, *place))
    progress(array.nbytes)
    return array
