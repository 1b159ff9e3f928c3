# SPDX-License-Identifier: Apache-2.0
"""Which files a ``torch`` checkpoint of Megatron-LM must have: those of every rank of the model.

``mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt`` is the part of one rank. How many ranks there are is
written in the arguments that every file holds, not in which folders have arrived.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.files.regular_file import is_regular
from mindspeed_ms.formats import names
from mindspeed_ms.formats.containers.torch_file import TorchFile
from mindspeed_ms.formats.megatron_parts import Rank, RankFile

MODEL_FILE = "model_optim_rng.pt"
WITHOUT_OPTIMIZER_FILE = "model_rng.pt"
OPTIMIZER_FILE = "distrib_optim.pt"
_FOLDER = re.compile(r"mp_rank_(\d{1,6})(?:_(\d{1,6}))?(?:_(\d{1,6}))?")


def is_checkpoint(path: Path) -> bool:
    """Whether a folder holds a rank's folder."""
    return path.is_dir() and any(_FOLDER.fullmatch(item.name) for item in path.iterdir())


def missing_ranks(folder: Path) -> str | None:
    """What a checkpoint lacks, in words, by its first file; None if all ranks are there.

    A first file that is damaged tells nothing; the damage shows when the checkpoint is opened.
    """
    paths = _files(folder)
    if not paths:
        return f"any mp_rank_*/{MODEL_FILE}"
    unfinished = [item.name for item in folder.glob("mp_rank_*") if not _model_file(item)]
    if unfinished:
        return f"{sorted(unfinished)[0]}/{MODEL_FILE}"
    _, first = min(paths.items())
    try:
        args = arguments_of(TorchFile(first))
        return _missing(_ranks(paths, args), args) or _missing_optimizer(paths)
    except ValueError:
        return None


def open_ranks(folder: Path) -> list[RankFile]:
    """The files of all ranks, by expert, pipeline and tensor rank.

    Raises:
        ValueError: one is damaged or missing, says nothing about its model, or is of another
            checkpoint than the first.
    """
    paths = _files(folder)
    if not paths:
        raise ValueError(f"{folder} holds no mp_rank_*/{MODEL_FILE}; name a checkpoint's folder")
    files = {name: TorchFile(path) for name, path in paths.items()}
    first = files[min(files)]
    args = arguments_of(first)
    ranks = _ranks(paths, args)
    lacking = _missing(ranks, args) or _missing_optimizer(paths)
    if lacking:
        raise ValueError(
            f"{folder} lacks {lacking}; its files are missing: copy the whole checkpoint"
        )
    for file in files.values():
        _same_checkpoint(first, args, file)
    found = [RankFile(ranks[name], folder / name, file) for name, file in files.items()]
    _require_own_places(found)
    return sorted(found, key=lambda item: (item.rank.expert, item.rank.pipeline, item.rank.tensor))


def lacks_optimizer(files: list[RankFile]) -> bool:
    """Whether a distributed optimizer was saved whose files are not there."""
    content = files[0].file.content
    was_saved = names.get(content["args"], "use_distributed_optimizer") and content.get("optimizer")
    return bool(was_saved) and not is_regular(files[0].folder / OPTIMIZER_FILE)


def _files(folder: Path) -> dict[str, Path]:
    """Name of each rank's folder, and its file."""
    found = {item.name: _model_file(item) for item in folder.iterdir()}
    return {name: path for name, path in found.items() if path is not None}


def _model_file(folder: Path) -> Path | None:
    if not _FOLDER.fullmatch(folder.name):
        return None
    paths = (folder / MODEL_FILE, folder / WITHOUT_OPTIMIZER_FILE)
    return next((path for path in paths if is_regular(path)), None)


def arguments_of(file: TorchFile) -> Namespace:
    """Megatron's arguments in a file.

    Raises:
        ValueError: it holds none.
    """
    content = file.content
    args = content.get("args") if isinstance(content, Mapping) else None
    if not isinstance(args, Namespace) or not vars(args):
        raise ValueError(
            f"{file.path} holds no 'args', Megatron's arguments, so neither the model nor its "
            "number of ranks is known; use a checkpoint that Megatron has saved"
        )
    return args


def _ranks(paths: Mapping[str, Path], args: Namespace) -> dict[str, Rank]:
    """Place of each folder in the model, by its name."""
    has_pipeline = _size(args, "pipeline") > 1
    ranks = {}
    for name in paths:
        match = _FOLDER.fullmatch(name)
        assert match is not None, "only such folders are listed"
        second, third = match[2], match[3]
        if second is not None and third is None and not has_pipeline:
            second, third = None, second
        ranks[name] = Rank(int(match[1]), int(second or 0), int(third or 0))
    return ranks


def _missing(ranks: Mapping[str, Rank], args: Namespace) -> str | None:
    """Which ranks are not there, or are too many, in words."""
    tensor, pipeline, expert = (_size(args, axis) for axis in ("tensor", "pipeline", "expert"))
    dense = {(rank.tensor, rank.pipeline) for rank in ranks.values()}
    experts = {rank.expert for rank in ranks.values()}
    wanted = {(t, p) for t in range(tensor) for p in range(pipeline)}
    if dense == wanted and experts == set(range(expert)):
        return None
    extra = dense - wanted or experts - set(range(expert))
    gone = sorted(wanted - dense)
    if extra:
        return (
            f"agreement: its arguments say tensor {tensor} x pipeline {pipeline} x expert {expert},"
            f" it holds {len(ranks)} folders mp_rank_*"
        )
    what = (
        f"tensor rank {gone[0][0]} of stage {gone[0][1]}"
        if gone
        else f"expert rank {min(set(range(expert)) - experts)}"
    )
    return (
        f"{what}: it holds {len(dense)} of the {len(wanted)} ranks of tensor {tensor} x pipeline "
        f"{pipeline}, and {len(experts)} of {expert} expert ranks"
    )


def _missing_optimizer(paths: Mapping[str, Path]) -> str | None:
    """The file of a distributed optimizer that other ranks have."""
    has = {name: is_regular(path.with_name(OPTIMIZER_FILE)) for name, path in paths.items()}
    if all(has.values()) or not any(has.values()):
        return None
    return f"{min(name for name, there in has.items() if not there)}/{OPTIMIZER_FILE}"


def _size(args: Namespace, axis: str) -> int:
    value = names.get(args, f"{axis}_model_parallel_size", 1)
    if type(value) is not int or not 1 <= value < 1 << 20:
        raise ValueError(f"its arguments say {axis}_model_parallel_size {value!r:.40}")
    return value


_SHARED = ("iteration", "checkpoint_version")
_LAYOUT = (
    "num_layers",
    "hidden_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
)


def _require_own_places(files: list[RankFile]) -> None:
    """Each file knows the rank that has saved it: files that changed folders are another model.

    Tensor ranks count fastest, experts and stages behind them in either order. Converters write the
    same arguments into all files, which then tell nothing.
    """
    savers = [names.get(arguments_of(item.file), "rank") for item in files]
    if not all(type(one) is int for one in savers) or len(set(savers)) != len(savers):
        return
    by_saver = [item for _, item in sorted(zip(savers, files, strict=True), key=lambda one: one[0])]
    orders = [
        sorted(files, key=lambda item: (item.rank.pipeline, item.rank.expert, item.rank.tensor)),
        sorted(files, key=lambda item: (item.rank.expert, item.rank.pipeline, item.rank.tensor)),
    ]
    if by_saver in orders:
        return
    here, there = next(pair for pair in zip(by_saver, orders[0], strict=True) if pair[0] != pair[1])
    raise ValueError(
        f"{here.file.path} was saved by rank {names.get(arguments_of(here.file), 'rank')}, whose "
        f"folder is {there.folder.name}; files have changed places: copy the checkpoint again"
    )


def _same_checkpoint(first: TorchFile, args: Namespace, file: TorchFile) -> None:
    """Files of two saves beside each other make a model that never was."""
    others = arguments_of(file)
    differing: list[tuple[str, Any, Any]] = [
        (key, first.content.get(key), file.content.get(key))
        for key in _SHARED
        if first.content.get(key) != file.content.get(key)
    ]
    differing += [
        (key, names.get(args, key), names.get(others, key))
        for key in _LAYOUT
        if names.get(args, key) != names.get(others, key)
    ]
    if differing:
        key, mine, theirs = differing[0]
        raise ValueError(
            f"{file.path} has {key} {theirs!r:.40}, but {first.path} has {mine!r:.40}; they are "
            "of two checkpoints: copy one of them again as a whole"
        )
