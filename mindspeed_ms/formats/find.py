# SPDX-License-Identifier: Apache-2.0
"""Which checkpoint a path means, and of which format it is.

A restart ends in the newest complete checkpoint of its run, or in one line that says there is none:
what a killed run left half-written is passed over, and so is a marker that is older than what was
saved after it.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mindspeed_ms.formats import own_format
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.catalog_check import check_catalog
from mindspeed_ms.formats.checkpoint_format import CheckpointFormat, SourceHints
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.names import Describe
from mindspeed_ms.formats.registry import FORMATS

_DAMAGE = (
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)
"""What contents that no reader foresaw may raise; it ends as one line like all other damage."""


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that exists and is complete."""

    folder: Path
    format: CheckpointFormat
    iteration: int
    """0 for released weights, and for formats that do not count."""
    notes: tuple[str, ...] = ()
    """What was passed over to come to it, a line each."""

    @property
    def kind(self) -> str:
        """Name of the format."""
        return self.format.name


class OnlyTornError(ValueError):
    """A run was killed before its first checkpoint was complete: there is nothing to take."""


def format_at(path: Path) -> CheckpointFormat | None:
    """Format of the checkpoint in a folder (or of a single file), whole or torn; None: nothing."""
    return next((item for item in FORMATS if item.is_at(path)), None)


def find_checkpoint(path: Path, step: int | None = None) -> Found | None:
    """The checkpoint that a path means; None where there is none at all.

    Args:
        path: the folder of a run, the folder of one checkpoint, or a file.
        step: iteration to take; None for the newest complete one of the run that saved last.

    Raises:
        OnlyTornError: no run has completed one yet, but one has begun to.
        ValueError: the iteration that is asked for does not exist or is incomplete, or there are
            only incomplete ones where a marker says there is one; the message lists those that
            can be taken.
    """
    if step is not None:
        return _of_iteration(path, step)
    found = _newest(path)
    if found is not None:
        return found
    kind = format_at(path)
    if kind is None:
        return None
    reason = kind.missing(path)
    if reason is not None:
        raise ValueError(f"{path} holds no complete checkpoint: it lacks {reason}")
    return Found(path, kind, _iteration_of(path))


def _of_iteration(path: Path, step: int) -> Found:
    folder = storage.iteration_folder(path, step)
    kind, reason = _state(folder)
    if kind is None or reason is not None:
        complete = [i for i in storage.iterations_in(path) if _lacking(path, i) is None]
        others = ", ".join(map(str, complete)) or "none"
        raise ValueError(
            f"{folder} holds no complete checkpoint{f': it lacks {reason}' if reason else ''}; "
            f"complete iterations in {path}: {others}. Choose one with --ckpt-step"
        )
    notes: tuple[str, ...] = ()
    if not own_format.is_healthy(folder):
        event = own_format.read_index(folder)[own_format.UNHEALTHY]
        notes = (f"WARNING: {folder} holds numbers that are none ({event}); it was named",)
    return Found(folder, kind, step, notes)


def _newest(root: Path) -> Found | None:
    """The newest complete checkpoint of the run that the marker belongs to."""
    marked, problem = _marker(root)
    if marked == storage.RELEASE:
        folder = root / storage.RELEASE
        kind, reason = _state(folder)
        if kind is None or reason is not None:
            raise ValueError(f"{folder} holds no complete checkpoint: it lacks {reason or 'files'}")
        return Found(folder, kind, 0)
    complete, torn, sick = _states(root, marked)
    if sick and not complete:
        raise ValueError(
            f"{root} holds only checkpoints saved after a step with NaN or Inf (iterations "
            f"{', '.join(map(str, sick))}); start anew in another folder, or take one with "
            "--ckpt-step"
        )
    if not complete:
        if problem or marked is not None:
            raise ValueError(_nothing_left(root, marked, problem, torn))
        if torn and format_at(root) is None:
            raise OnlyTornError(f"{root} holds no complete checkpoint: {_listed(torn)}")
        return None
    chosen, notes = _choose(root, marked, complete)
    if problem:
        notes.append(f"WARNING: {problem}; the newest complete checkpoint is taken")
    if marked is not None and marked not in (*complete, *torn, *sick):
        notes.append(
            f"WARNING: {root / storage.LATEST} names iteration {marked}, which is not there; the "
            "newest complete checkpoint is taken"
        )
    for iteration, reason in sorted(torn.items()):
        if iteration > chosen:
            notes.append(
                f"WARNING: iteration {iteration} is passed over, it is incomplete: it lacks "
                f"{reason}"
            )
    later = [i for i in sick if i > chosen]
    if later:
        notes.append(
            f"WARNING: iterations {', '.join(map(str, later))} are passed over, they were saved "
            "after a step with NaN or Inf; --ckpt-step takes one"
        )
    folder = storage.iteration_folder(root, chosen)
    kind = format_at(folder)
    assert kind is not None, "a complete checkpoint has a format"
    return Found(folder, kind, chosen, tuple(notes))


def _states(root: Path, marked: int | str | None) -> tuple[list[int], dict[int, str], list[int]]:
    """Complete iterations, torn ones with what they lack, and those of a run that had diverged.

    From the newest down to the marked one, or to the first that is complete.
    """
    complete: list[int] = []
    torn: dict[int, str] = {}
    sick: list[int] = []
    iterations = storage.iterations_in(root)
    last = marked if isinstance(marked, int) and marked in iterations else None
    for iteration in reversed(iterations):
        reason = _lacking(root, iteration)
        if reason is not None:
            torn[iteration] = reason
        elif own_format.is_healthy(storage.iteration_folder(root, iteration)):
            complete.insert(0, iteration)
        else:
            sick.insert(0, iteration)
        if complete and (last is None or iteration <= last):
            break
    return complete, torn, sick


def _choose(root: Path, marked: int | str | None, complete: list[int]) -> tuple[int, list[str]]:
    """The iteration to take, and what is to be said of the marker."""
    newest = complete[-1]
    if marked not in complete or newest == marked:
        return newest, []
    assert isinstance(marked, int), "a marked iteration is a number"
    run = own_format.run_of(storage.iteration_folder(root, marked))
    later = [i for i in complete if i > marked]
    same = [i for i in later if own_format.run_of(storage.iteration_folder(root, i)) == run]
    chosen = same[-1] if same else marked
    notes = []
    if same:
        notes.append(
            f"WARNING: {root / storage.LATEST} names iteration {marked}, but {chosen} was saved "
            f"after it and is complete; it is taken (--ckpt-step {marked} takes the older one)"
        )
    others = [i for i in later if i not in same]
    if others:
        notes.append(
            f"iterations {', '.join(map(str, others))} are of another run; --ckpt-step takes one"
        )
    return chosen, notes


def _marker(root: Path) -> tuple[int | str | None, str]:
    """What the marker says, and what is wrong with it."""
    if not root.is_dir():
        return None, ""
    try:
        return storage.read_latest(root), ""
    except (ValueError, OSError) as error:
        return None, str(error)


def _nothing_left(root: Path, marked: int | str | None, problem: str, torn: dict[int, str]) -> str:
    if problem:
        return problem
    return (
        f"{root} holds no complete checkpoint, though its marker names iteration {marked}; "
        f"{_listed(torn) or 'no iteration is there'}: copy it again, or correct --load"
    )


def _listed(torn: dict[int, str]) -> str:
    return "; ".join(f"iteration {number} lacks {reason}" for number, reason in torn.items())


def _state(folder: Path) -> tuple[CheckpointFormat | None, str | None]:
    """Format of a checkpoint, and what it lacks."""
    kind = format_at(folder)
    return kind, None if kind is None else kind.missing(folder)


def _lacking(root: Path, iteration: int) -> str | None:
    kind, reason = _state(storage.iteration_folder(root, iteration))
    return "any checkpoint file" if kind is None else reason


def _iteration_of(folder: Path) -> int:
    digits = folder.name.removeprefix("iter_")
    return int(digits) if folder.name.startswith("iter_") and digits.isdecimal() else 0


def open_checkpoint(found: Found, describe: Describe, tensor: int | None = None) -> Catalog:
    """What a checkpoint holds, under this project's names.

    Args:
        found: the checkpoint.
        describe: its common part -> the model, for formats with names of their own.
        tensor: ranks its tensors are cut for, where the files do not tell.

    Raises:
        ValueError: it is damaged, or of a form that is not read.
        OSError: a file cannot be read.
    """
    try:
        catalog = found.format.open(found.folder, SourceHints(describe=describe, tensor=tensor))
        check_catalog(catalog)
    except ValueError as error:
        if str(found.folder) in str(error):
            raise
        raise ValueError(f"{found.folder} cannot be read: {error}") from error
    except _DAMAGE as error:
        raise ValueError(
            f"{found.folder} cannot be read as a checkpoint of format {found.kind} "
            f"({type(error).__name__}: {error}); it is damaged: use another one"
        ) from error
    return catalog
