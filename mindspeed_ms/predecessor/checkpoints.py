# SPDX-License-Identifier: Apache-2.0
"""The predecessor's checkpoints: one file per rank and step, named by epoch and step.

``rank_0/network_rank_0-1_20.ckpt`` holds the parameters of rank 0 after step 20 of epoch 1, by
name, and beside them the optimizer's state, the schedule and the place in the data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from mindspore.nn import Cell

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.files.whole import appears_whole
from mindspeed_ms.predecessor.optimizer import MixedPrecisionOptimizer, acting, chunks_of

_PLACE = "epoch_num", "step_num"
_STATE, _SCHEDULE = "optimizer_state.", "opt_param_scheduler_json"


def get_checkpoint_name(
    ckpt_path: str | os.PathLike[str],
    format: str = "ckpt",  # noqa: A002 - the predecessor's public signature
    get_name_from_file: bool = False,
    prefix: str = "network",
    epoch_num: int | None = None,
    step_num: int | None = None,
) -> str:
    """Path of this rank's file.

    Args:
        ckpt_path: folder of all ranks.
        format: ``ckpt`` or ``safetensors``.
        get_name_from_file: the newest file there is, instead of one to be written.
        prefix: how names begin.
        epoch_num: epochs before this one; None: no numbers in the name.
        step_num: steps of the epoch.

    Raises:
        ValueError: an unknown format, or no file where one is asked for.
    """
    if format not in ("ckpt", "safetensors"):
        raise ValueError(f"format is {format!r}; it must be ckpt or safetensors")
    rank = comm.get_rank()
    folder = Path(ckpt_path) / f"rank_{rank}"
    if get_name_from_file:
        return get_last_checkpoint(folder, format)
    numbers = "" if epoch_num is None or step_num is None else f"-{epoch_num}_{step_num}"
    return str(folder / f"{prefix}_rank_{rank}{numbers}.{format}")


def get_last_checkpoint(ckpt_path: str | os.PathLike[str], format: str = "ckpt") -> str:  # noqa: A002
    """The file of the highest epoch and step in a folder.

    Raises:
        ValueError: there is none.
    """
    files = sorted(Path(ckpt_path).glob(f"*.{format}"), key=_numbers)
    if not files:
        raise ValueError(f"{ckpt_path} has no *.{format} file; name the folder of a rank")
    return str(files[-1])


def _numbers(path: Path) -> tuple[int, int]:
    found = re.search(r"-(\d+)_(\d+)$", path.stem)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def save_checkpoint(  # noqa: PLR0913 - the predecessor's public signature
    config: Any,
    model: Any,
    optimizer: Any = None,
    opt_param_scheduler: Any = None,
    ckpt_path: str | os.PathLike[str] = "./",
    format: str = "ckpt",  # noqa: A002
    prefix: str = "network",
    epoch_num: int = 0,
    step_num: int = 0,
    crc_check: bool = False,
    keep_checkpoint_max: int = 5,
    **unused: Any,
) -> str:
    """Write this rank's file, then delete its oldest ones.

    Args:
        config: accepted for the signature.
        model: the network, or its chunks.
        optimizer: its state is kept as well; None for none.
        opt_param_scheduler: its place is kept as well; None for none.
        ckpt_path: folder of all ranks.
        format: ``ckpt`` or ``safetensors``.
        prefix: how names begin.
        epoch_num: epochs that are done.
        step_num: steps of the present epoch that are done.
        crc_check: write a checksum (``ckpt``).
        keep_checkpoint_max: files of this rank to keep, 0 for all.
        unused: accepted for the signature.

    Returns:
        The file.
    """
    path = Path(get_checkpoint_name(ckpt_path, format, False, prefix, epoch_num, step_num))
    entries = dict(_named(model))
    entries |= {name: Parameter(Tensor(value)) for name, value in _state_of(optimizer).items()}
    for name, value in zip(_PLACE, (epoch_num, step_num), strict=True):
        entries[name] = Parameter(Tensor(np.array([value], np.int64)))
    if opt_param_scheduler is not None:
        text = json.dumps(opt_param_scheduler.state_dict()).encode()
        entries[_SCHEDULE] = Parameter(Tensor(np.frombuffer(text, np.uint8).astype(np.int32)))
    rows = [{"name": name, "data": value} for name, value in entries.items()]
    with appears_whole(path) as unfinished:
        ms.save_checkpoint(rows, str(unfinished), format=format, crc_check=crc_check)
    _forget_old(path, format, prefix, keep_checkpoint_max)
    return str(path)


def _forget_old(newest: Path, form: str, prefix: str, keep: int) -> None:
    files = [
        file
        for file in newest.parent.glob(f"{prefix}_rank_*.{form}")
        if _numbers(file) != (-1, -1) and file != newest
    ]
    files.sort(key=lambda file: file.stat().st_mtime)
    for file in files[: max(0, len(files) + 1 - keep)] if keep else ():
        file.unlink()


def load_checkpoint(
    config: Any,
    model: Any,
    optimizer: Any = None,
    opt_param_scheduler: Any = None,
    ckpt_path: str | os.PathLike[str] = "./",
    format: str = "ckpt",  # noqa: A002
    crc_check: bool = False,
    **unused: Any,
) -> dict[str, int]:
    """Read this rank's file into a network, an optimizer and a schedule.

    Args:
        config: ``no_load_optim`` of its training section leaves the optimizer as it is.
        model: the network, or its chunks.
        optimizer: gets its state, if the file has one; None for none.
        opt_param_scheduler: gets its place, if the file has one; None for none.
        ckpt_path: a file, a rank's folder, or the folder of all ranks.
        format: ``ckpt`` or ``safetensors``.
        crc_check: check the checksum (``ckpt``).
        unused: accepted for the signature.

    Returns:
        ``epoch_num`` and ``step_num`` of the file, for ``train(resume_dict=...)``.

    Raises:
        ValueError: no file, or parameters that are missing in it.
    """
    path = _file_of(Path(ckpt_path), format)
    entries = ms.load_checkpoint(str(path), format=format, crc_check=crc_check)
    for name, parameter in _named(model).items():
        if name not in entries:
            raise ValueError(f"{path} has no parameter {name}; it is of another model")
        stored = entries[name]
        if tuple(stored.shape) != tuple(parameter.shape):
            raise ValueError(
                f"{path}: {name} has shape {tuple(stored.shape)}, but {tuple(parameter.shape)} is "
                "needed; load it in the layout it was written in"
            )
        _overwrite(parameter, stored)
    _restore(optimizer, _training_of(config), entries)
    if opt_param_scheduler is not None and _SCHEDULE in entries:
        text = entries[_SCHEDULE].asnumpy().astype(np.uint8).tobytes()
        opt_param_scheduler.load_state_dict(json.loads(text))
    numbers = dict(zip(_PLACE, _numbers(path), strict=True))
    return {
        name: int(entries[name].asnumpy()[0]) if name in entries else max(0, numbers[name])
        for name in _PLACE
    }


def _file_of(path: Path, form: str) -> Path:
    if path.is_file():
        return path
    own = path / f"rank_{comm.get_rank()}"
    return Path(get_last_checkpoint(own if own.is_dir() else path, form))


def _overwrite(parameter: Parameter, stored: Tensor) -> None:
    """New values in the parameter's own memory: it may be a part of a flat buffer."""
    memory.copy_(parameter, Tensor(stored.asnumpy(), parameter.dtype))


def _named(model: Any) -> dict[str, Parameter]:
    """Parameters of a network by their names."""
    found: dict[str, Parameter] = {}
    for index, chunk in enumerate(chunks_of(model)):
        cell: Cell = getattr(chunk, "module", chunk)
        for name, parameter in cell.parameters_and_names():
            # Ours are numbered through the model; a script's own chunks may use a name again.
            found[f"chunk{index}.{name}" if name in found else name] = parameter
    return found


def _training_of(config: Any) -> Any:
    return getattr(config, "training_config", config)


def _state_of(optimizer: Any) -> dict[str, np.ndarray]:
    """The state of ours, or the moments of MindSpore's, under a prefix."""
    optimizer = acting(optimizer)
    if optimizer is None:
        return {}
    if isinstance(optimizer, MixedPrecisionOptimizer):
        found: Mapping[str, np.ndarray] = optimizer.state_dict()
    elif isinstance(optimizer, Cell):
        found = {name: value.asnumpy() for name, value in _own_state(optimizer).items()}
    else:
        found = {}
    return {_STATE + name: value for name, value in found.items()}


def _own_state(optimizer: Cell) -> dict[str, Parameter]:
    """What a MindSpore optimizer holds beside the model's parameters."""
    trained = {id(parameter) for parameter in optimizer.parameters}
    return {
        parameter.name: parameter
        for parameter in optimizer.get_parameters()
        if id(parameter) not in trained
    }


def _restore(optimizer: Any, training: Any, entries: Mapping[str, Parameter]) -> None:
    optimizer = acting(optimizer)
    is_ours = isinstance(optimizer, MixedPrecisionOptimizer)
    if is_ours:
        optimizer.reload_main_params()
    if optimizer is None or getattr(training, "no_load_optim", False):
        return
    state = {
        name.removeprefix(_STATE): value.asnumpy()
        for name, value in entries.items()
        if name.startswith(_STATE)
    }
    if is_ours and state:
        optimizer.load_state_dict(state)
    elif isinstance(optimizer, Cell):
        for name, parameter in _own_state(optimizer).items():
            if name in state:
                memory.copy_(parameter, Tensor(state[name], parameter.dtype))
