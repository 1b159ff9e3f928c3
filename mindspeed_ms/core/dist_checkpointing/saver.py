# SPDX-License-Identifier: Apache-2.0
"""Saving: every rank writes its share, then the first one declares the checkpoint complete.

In the background only the writing runs; what must be agreed upon between ranks happens in the
training loop, between two iterations. Training waits for the copy of the state into host memory,
and for the previous checkpoint if that is still being written.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindspeed_ms.backend import bars, comm, memory
from mindspeed_ms.core.dist_checkpointing.live_state import LiveTensor
from mindspeed_ms.core.dist_checkpointing.retention import Saved, expired, saved_in
from mindspeed_ms.core.dist_checkpointing.run_folder import RunFolder
from mindspeed_ms.core.dist_checkpointing.save_plan import owned_by_this_rank
from mindspeed_ms.formats import dtypes, own_format
from mindspeed_ms.formats.containers import mindspore_file, storage
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers.digest import digest_part
from mindspeed_ms.formats.own_format import WrittenFile, WrittenPiece
from mindspeed_ms.plan.region import Span

logger = logging.getLogger(__name__)

COPIERS = 2
"""Threads that copy while training waits: one does not use all of a memory's bandwidth."""


class SaveError(RuntimeError):
    """A checkpoint could not be written; the files of the attempt are gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveSettings:
    """How checkpoints are written and kept."""

    root: Path
    """Folder of all checkpoints of the run."""
    container: Literal["safetensors", "ckpt"] = "safetensors"
    """Kind of the ranks' files."""
    keep: int | None = None
    """Checkpoints kept; None: all."""
    retain_interval: int | None = None
    """Iterations this divides are kept for ever."""
    crc_check: bool = False
    """Read every file again after writing and compare its checksum."""
    is_async: bool = False
    """Write in the background."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What belongs to a checkpoint beside tensors."""

    iteration: int
    common: dict[str, Any]
    """For the index; equal on all ranks."""
    rank_state: dict[str, Any]
    """This rank's random states."""
    config: str
    """The resolved configuration, as YAML."""


@dataclass(slots=True)
class _Item:
    """A tensor and the array that is written."""

    tensor: LiveTensor
    array: np.ndarray
    digest: int = 0

    def summed_up(self) -> np.ndarray:
        """The array, when what it adds to the digest has been noted."""
        self.digest = digest_part(self.array, self.tensor.span, self.tensor.shape)
        return self.array


class _Pending:
    """A checkpoint that is being written by this rank."""

    def __init__(self, snapshot: Snapshot, folder: Path, generation: str) -> None:
        self.snapshot, self.folder, self.generation = snapshot, folder, generation
        self.file: WrittenFile | None = None
        self.error: str | None = "the writer ended without a result"
        self.thread: threading.Thread | None = None

    def run(self, work: Callable[[], WrittenFile | None]) -> None:
        """Do the writing and note how it ended."""
        try:
            self.file = work()
            self.error = None
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            self.error = f"{type(error).__name__}: {error}"

    @property
    def is_written(self) -> bool:
        """Whether this rank has done its part, or failed."""
        return self.thread is None or not self.thread.is_alive()


class CheckpointSaver:
    """Writes the checkpoints of a run.

    Args:
        settings: where and how.

    Parallelism: all methods are collective over the world.
    """

    def __init__(self, settings: SaveSettings) -> None:
        self.settings = settings
        self.last_saved: int | None = None
        self.kept: int | None = None
        """An iteration whose checkpoint stays."""
        self.stall_seconds = 0.0
        """How long training stood still for the last save."""
        self._pending: _Pending | None = None
        self._owned: list[LiveTensor] | None = None
        self._described: list[tuple[object, ...]] | None = None
        self._copies: list[np.ndarray] = []
        self._earlier: list[Saved] | None = None
        """Complete checkpoints in the folder, on the first rank; read when it is first needed."""
        self._folder = RunFolder(settings.root)

    def open(self) -> list[str]:
        """Take the folder, before anything else is done.

        Returns:
            What is to be said of it, a line each.

        Raises:
            ValueError: see ``RunFolder.open``.
        """
        return self._folder.open()

    def check_room(self, tensors: Sequence[LiveTensor]) -> None:
        """Find out at the start of a run whether one of its checkpoints fits on the disk.

        Raises:
            SaveError: it does not.

        Parallelism: collective over the world.
        """
        mine = sum(
            tensor.num_elements * dtypes.width(tensor.dtype) for tensor in self._plan(tensors)
        )
        everyones = comm.all_gather_object(mine) if comm.get_world_size() > 1 else [mine]
        free = storage.free_bytes(self.settings.root) if comm.get_rank() == 0 else 0
        if comm.get_world_size() > 1:
            free = comm.broadcast_object(free, 0)
        if sum(everyones) > free:
            raise SaveError(
                f"a checkpoint takes {sum(everyones) / 1e6:.1f} MB, but {free / 1e6:.1f} MB are "
                f"free in {self.settings.root}; make room, or give --save (YAML: output_dir) "
                "another folder"
            )

    def save(self, tensors: Sequence[LiveTensor], snapshot: Snapshot) -> None:
        """Write a checkpoint; in the background if the settings say so.

        Raises:
            SaveError: this or the previous checkpoint could not be written, on any rank.
        """
        started = time.monotonic()
        self.finish()
        owned = self._plan(tensors)
        folder = storage.iteration_folder(self.settings.root, snapshot.iteration)
        pending = _Pending(snapshot, folder, self._open_folder(folder))
        items = [_Item(tensor, memory.flat_view(tensor.tensor)) for tensor in owned]
        if self.settings.is_async:
            items = self._copied(items)
            thread = threading.Thread(
                target=pending.run, args=(lambda: self._write(pending, items),), name="save"
            )
            pending.thread = thread
            thread.start()
            self._pending = pending
        else:
            pending.run(lambda: self._write(pending, items))
            self._complete(pending)
        self.stall_seconds = time.monotonic() - started

    def poll(self) -> None:
        """Complete a checkpoint whose files all ranks have written; return at once otherwise.

        Raises:
            SaveError: a rank could not write its file.
        """
        if self._pending is None:
            return
        if all(comm.all_gather_object(self._pending.is_written)):
            self.finish()

    def finish(self) -> None:
        """Wait for a checkpoint that is being written, and complete it.

        Raises:
            SaveError: a rank could not write its file.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.thread is not None:
            pending.thread.join()
        self._complete(pending)

    def abandon(self) -> None:
        """Give up the folder, and a checkpoint that is being written: this rank's file of it goes.

        Unlike the other methods not collective.
        """
        pending, self._pending = self._pending, None
        if pending is not None and pending.thread is not None:
            pending.thread.join()
            self._discard(pending)
        self._folder.close()

    def _discard(self, pending: _Pending) -> None:
        """Remove what this rank has written of a checkpoint that will not be complete."""
        names = [self._file_name(pending)]
        if comm.get_rank() == 0:
            names.append(_config_name(pending))
        partial = [name + storage.PARTIAL for name in (*names, storage.INDEX)]
        for name in (*names, *partial):
            with contextlib.suppress(OSError):
                (pending.folder / name).unlink()
        with contextlib.suppress(OSError):  # the last of the ranks finds it empty
            pending.folder.rmdir()

    def _file_name(self, pending: _Pending) -> str:
        return f"rank_{comm.get_rank():05d}{pending.generation}.{self.settings.container}"

    def _plan(self, tensors: Sequence[LiveTensor]) -> list[LiveTensor]:
        """What this rank writes: agreed upon once, as long as the tensors stay the same."""
        described: list[tuple[object, ...]] = [
            (t.key, t.span, t.dtype, memory.address(t.tensor)) for t in tensors
        ]
        changed = comm.all_gather_object(described != self._described)
        if self._owned is None or any(changed):
            self._owned = owned_by_this_rank(tensors)
            self._described = described
        return self._owned

    def _open_folder(self, folder: Path) -> str:
        """Make the folder; return what this save adds to its files' names."""
        answer: tuple[str, str | None] = ("", None)
        if comm.get_rank() == 0:
            try:
                if lost := self._folder.keep():
                    logger.warning("%s", lost)
                    self._earlier = None
                folder.mkdir(parents=True, exist_ok=True)
                answer = (storage.next_generation(folder), None)
            except (OSError, ValueError) as error:
                answer = ("", str(error))
        if comm.get_world_size() > 1:
            answer = comm.broadcast_object(answer, 0)
        generation, problem = answer
        if problem is not None:
            raise SaveError(
                f"the checkpoint folder {folder} cannot be made ({problem}); give --save a folder "
                "that can be written"
            )
        return generation

    def _copied(self, items: list[_Item]) -> list[_Item]:
        """Copies of the arrays, in memory that is used again by the next save."""
        if [copy.shape for copy in self._copies] != [item.array.shape for item in items]:
            self._copies = [np.empty_like(item.array) for item in items]
        with ThreadPoolExecutor(COPIERS, thread_name_prefix="copy") as pool:
            list(pool.map(np.copyto, self._copies, [item.array for item in items]))
        return [_Item(item.tensor, copy) for copy, item in zip(self._copies, items, strict=True)]

    def _write(self, pending: _Pending, items: list[_Item]) -> WrittenFile | None:
        """Write and verify this rank's file; None if it has nothing to write."""
        if not items:
            return None
        settings = self.settings
        name = self._file_name(pending)
        partial = pending.folder / (name + storage.PARTIAL)
        is_shown = comm.get_rank() == 0 and not settings.is_async
        total = sum(item.array.nbytes for item in items)
        with bars.bar("saving", total, "B", is_shown=is_shown) as progress:
            entries = [
                safetensors.Entry(
                    _key(item),
                    item.tensor.dtype,
                    _shape_in_file(item),
                    functools.partial(_counted, item, progress),
                )
                for item in items
            ]
            if settings.container == "ckpt":
                record, stretches = mindspore_file.write_file(partial, entries, settings.crc_check)
                mindspore_file.read_index(partial)
            else:
                record, stretches = safetensors.write_file(partial, entries)
                safetensors.read_header(partial)
        own_format.verify_file(partial, record, settings.crc_check)
        storage.put_in_place(partial, pending.folder / name)
        pieces = [
            piece
            for item, places in zip(items, stretches, strict=True)
            for piece in _pieces(item, places)
        ]
        return WrittenFile(name, record, tuple(pieces))

    def _complete(self, pending: _Pending) -> None:
        """Write the index when every rank has written its file; then move the marker."""
        report = (pending.error, pending.file, pending.snapshot.rank_state)
        reports = comm.all_gather_object(report) if comm.get_world_size() > 1 else [report]
        errors = [f"rank {rank}: {item[0]}" for rank, item in enumerate(reports) if item[0]]
        is_complete = False
        if not errors:
            answer = self._declare(pending, reports) if comm.get_rank() == 0 else (None, False)
            if comm.get_world_size() > 1:
                answer = comm.broadcast_object(answer, 0)
            error, is_complete = answer
            errors = [f"rank 0: {error}"] if error else []
        iteration = pending.snapshot.iteration
        if errors and is_complete:
            raise SaveError(
                f"the checkpoint of iteration {iteration} is complete, but {'; '.join(errors)}; "
                "repair the folder, then resume"
            )
        if errors:
            self._discard(pending)
            raise SaveError(
                f"the checkpoint of iteration {iteration} could not be written ({'; '.join(errors)}"
                f"); the newest complete one is {self._newest_complete()}: make room or repair the "
                "disk, then resume from there"
            )
        self.last_saved = iteration

    def _declare(self, pending: _Pending, reports: Sequence[tuple]) -> tuple[str | None, bool]:
        """On the first rank: index, marker, removal of old checkpoints.

        Returns:
            A problem, and whether the checkpoint is complete all the same.
        """
        settings, snapshot = self.settings, pending.snapshot
        is_complete, config = False, _config_name(pending)
        try:
            files = [file for _, file, _ in reports if file is not None]
            storage.write_text(pending.folder / config, snapshot.config)
            common = {
                **snapshot.common,
                "config_file": config,
                "rng": [state for _, _, state in reports],
            }
            own_format.write_index(pending.folder, own_format.build_index(files, common))
            is_complete = True  # from here on nothing of it may be removed
            storage.sync_folder(settings.root)
            saved = Saved.of(snapshot.iteration, common)
            if saved.is_sound:  # programs that only know the marker must not load NaN
                storage.set_latest(settings.root, snapshot.iteration)
            kept = {storage.INDEX, config, *(file.name for file in files)}
            storage.remove_leftovers(pending.folder, kept)
        except (OSError, RuntimeError, ValueError) as error:
            # The index may have taken its place before its folder failed to reach the disk.
            return str(error), is_complete or own_format.config_of(pending.folder) == config
        if settings.keep is not None:
            self._prune(saved, settings.keep)
        return None, is_complete

    def _prune(self, newest: Saved, keep: int) -> None:
        """Remove what the run does not keep."""
        root = self.settings.root
        if self._earlier is None:
            self._earlier = saved_in(root, 0, newest.iteration)
        earlier = [saved for saved in self._earlier if saved.iteration < newest.iteration]
        old = expired(earlier, newest, keep, self.settings.retain_interval, self.kept)
        try:
            storage.prune(root, newest.iteration, old)
        except OSError as error:
            logger.warning("older checkpoints could not be removed: %s", error)
        self._earlier = [*(saved for saved in earlier if saved.iteration not in old), newest]

    def _newest_complete(self) -> str:
        try:
            complete = storage.complete_iterations(self.settings.root)
        except OSError as error:
            return f"unknown ({error})"
        return f"iteration {complete[-1]}" if complete else "none"


def _config_name(pending: _Pending) -> str:
    return f"config{pending.generation}.yaml"


def _counted(item: _Item, progress: bars.Bar) -> np.ndarray:
    """What is written of an item; the bar counts it."""
    progress.update(item.array.nbytes)
    return item.summed_up()


def _key(item: _Item) -> str:
    tensor = item.tensor
    if tensor.span.is_complete:
        return tensor.key
    return f"{tensor.key}[{tensor.span.start}:{tensor.span.stop}]"


def _shape_in_file(item: _Item) -> tuple[int, ...]:
    span = item.tensor.span
    return span.region.shape if span.is_complete else (span.stop - span.start,)


def _pieces(item: _Item, places: Sequence[safetensors.Stretch]) -> list[WrittenPiece]:
    """The pieces of a tensor: one, or several where the file cuts it."""
    tensor, pieces = item.tensor, []
    position = tensor.span.start
    for place in places:
        count = place.num_bytes // dtypes.width(tensor.dtype)
        span = Span(tensor.span.region, position, position + count)
        pieces.append(
            WrittenPiece(
                name=tensor.key,
                shape=tensor.shape,
                dtype=tensor.dtype,
                key=_key(item),
                span=span,
                offset=place.offset,
                digest=item.digest if position == tensor.span.start else 0,
            )
        )
        position += count
    return pieces
