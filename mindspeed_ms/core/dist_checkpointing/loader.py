# SPDX-License-Identifier: Apache-2.0
"""Loading: every rank reads the parts of tensors that it owns, whoever wrote them.

Nothing is executed that a checkpoint contains. What the model needs and what the checkpoint holds
are compared by name and shape before anything is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from mindspeed_ms.backend import bars, comm, device, memory
from mindspeed_ms.config.optimizer_config import STATE_NAMES
from mindspeed_ms.core.dist_checkpointing.live_state import MAIN, WEIGHTS, LiveTensor, stored_name
from mindspeed_ms.core.dist_checkpointing.save_plan import owned_by_this_rank
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.optimizer import MegatronOptimizer
from mindspeed_ms.files.checksum import Verified
from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.catalog import Catalog, StoredTensor, TensorReader
from mindspeed_ms.formats.containers.digest import digest_part, text_of
from mindspeed_ms.formats.padding import read_repadded

logger = logging.getLogger(__name__)

SHOWN = 8
"""Names listed of what does not fit."""

SQUARES = "exp_avg_sq"

READERS = 2
"""Threads that read: one sums up what the other waits for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """What fits together."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> the one whose values it takes if the checkpoint has none of its name: a head
    that is tied there, or a copy of the embedding on another stage."""
    vocab_size: int | None = None
    """Tokens in use; rows behind them are padding and may be left behind. None: unknown."""
    main_is_weight: bool = False
    """Fill main parameters with the checkpoint's weights, not with its main parameters."""
    ignored: tuple[str, ...] = ()
    """Tensors of the checkpoint that the model may lack."""


@dataclass(slots=True)
class LoadReport:
    """What loading did beyond copying."""

    notes: list[str] = field(default_factory=list)
    num_bytes: int = 0
    """Read by this rank."""
    verified: int = 0
    """Tensors whose digest was compared, on all ranks."""
    not_finite: dict[str, int] = field(default_factory=dict)
    """Tensor -> numbers in it that are NaN or infinite, on all ranks."""


def load_tensors(
    catalog: Catalog,
    models: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer | None,
    tensors: Sequence[LiveTensor],
    options: LoadOptions,
) -> LoadReport:
    """Fill the run's tensors from a checkpoint of any layout.

    Args:
        catalog: the checkpoint.
        models: the chunks of this rank.
        optimizer: the optimizer, whose main parameters follow the weights if ``tensors`` does not
            hold its state.
        tensors: what to fill, from ``live_tensors``.
        options: what fits together.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape, or a file is damaged.
        RuntimeError: what was loaded is not what was saved.

    Parallelism: collective over the world.
    """
    report = LoadReport()
    sources = {tensor.key: _source_of(tensor, catalog, options) for tensor in tensors}
    _compare(catalog, tensors, sources, options)
    comparable = [tensor for tensor in tensors if _is_comparable(tensor, catalog, sources)]
    _verify_converted(catalog, tensors, sources, {id(tensor) for tensor in comparable})
    summed = {id(tensor) for tensor in owned_by_this_rank(comparable)}
    problem: str | None = None
    filled = _Filled()
    try:
        filled = _fill_all(catalog, tensors, sources, summed)
    except (ValueError, OSError) as error:
        problem = str(error)
    _raise_together(problem, ValueError)
    report.num_bytes = filled.num_bytes
    for model in models:
        model.start_param_sync()
        model.finish_param_sync()
    has_main = any(tensor.kind == MAIN for tensor in tensors)
    if optimizer is not None and not has_main:
        optimizer.refresh_main_params()
    if optimizer is not None:
        optimizer.settle()
    report.verified = _verify(catalog, filled.sums)
    report.not_finite = _together(filled.not_finite)
    report.notes += _notes(catalog, tensors, sources) + _not_finite_lines(report.not_finite)
    return report


def _source_of(tensor: LiveTensor, catalog: Catalog, options: LoadOptions) -> str | None:
    """Name of the stored tensor that fills one of the run."""
    alias = options.aliases.get(tensor.name)
    names = [tensor.name, alias]
    if tensor.is_shared and alias is not None:  # a tied head; what is stored of one is another's
        names = [alias]
    for name in filter(None, names):
        plain, main = stored_name(name, WEIGHTS), stored_name(name, MAIN)
        candidates = [stored_name(name, tensor.kind)]
        if tensor.kind == MAIN and options.main_is_weight:
            candidates = [plain]
        elif tensor.kind == MAIN:
            candidates.append(plain)  # of a run in fp32, or weights alone
        elif tensor.kind == WEIGHTS and tensor.dtype == "F32":
            stored = catalog.tensors.get(plain)
            if stored is not None and stored.dtype != "F32":
                candidates.insert(0, main)  # the more exact of the two
        for candidate in candidates:
            if candidate in catalog.tensors:
                return candidate
    return None


def _compare(
    catalog: Catalog,
    tensors: Sequence[LiveTensor],
    sources: Mapping[str, str | None],
    options: LoadOptions,
) -> None:
    """Refuse what does not correspond, with every difference named, on all ranks together."""
    missing = {key for key, source in sources.items() if source is None}
    used = {source for source in sources.values() if source is not None}
    wrong = set()
    for tensor in tensors:
        source = sources[tensor.key]
        if source is None:
            continue
        shape = catalog.tensors[source].shape
        if shape != tensor.shape and not _is_repadding(tensor, shape, options.vocab_size):
            wrong.add(f"{tensor.key} {list(shape)} instead of {list(tensor.shape)}")
    mine = (missing, used, wrong)
    everyones = comm.all_gather_object(mine) if comm.get_world_size() > 1 else [mine]
    missing, used, wrong = (set().union(*(item[part] for item in everyones)) for part in range(3))
    kinds = {tensor.kind for tensor in tensors}
    unexpected = {
        name
        for name in catalog.tensors
        if name not in used
        and _kind_of(name) in kinds
        and name not in options.ignored
        # 16-bit weights whose exact values were taken instead, or the other way round
        and name.removeprefix(f"{MAIN}.") not in used
        and stored_name(name, MAIN) not in used
    }
    parts = [
        f"{what}: {_listed(names)}"
        for what, names in (
            ("missing in it", missing),
            ("not in the model", unexpected),
            ("of another shape", wrong),
        )
        if names
    ]
    if parts:
        raise ValueError(
            f"{catalog.source} does not fit the model; {'; '.join(parts)}. Check the model's "
            "sizes, or take them from it with --use-checkpoint-args; without the optimizer's "
            "tensors use --no-load-optim"
        )


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _kind_of(name: str) -> str:
    """Kind of a stored tensor; parameters' own names never begin with a kind."""
    head, _, _ = name.partition(".")
    return head if head in KINDS else WEIGHTS


KINDS = (MAIN, *STATE_NAMES)
"""Prefixes of the optimizer's tensors."""


def _is_repadding(tensor: LiveTensor, stored: tuple[int, ...], vocab_size: int | None) -> bool:
    """Whether only the padding of the vocabulary differs, and no token in use would be lost."""
    if not tensor.is_vocabulary or stored[1:] != tensor.shape[1:]:
        return False
    return stored[0] < tensor.shape[0] or (vocab_size is not None and tensor.shape[0] >= vocab_size)


def _is_comparable(tensor: LiveTensor, catalog: Catalog, sources: Mapping[str, str | None]) -> bool:
    """Whether a tensor is taken over as it is, so that its digest must be the saved one."""
    stored = catalog.tensors[sources[tensor.key] or ""]
    return (
        stored.digest is not None
        and sources[tensor.key] == tensor.key
        and (stored.shape, stored.dtype) == (tensor.shape, tensor.dtype)
    )


def _verify_converted(
    catalog: Catalog,
    tensors: Sequence[LiveTensor],
    sources: Mapping[str, str | None],
    comparable: set[int],
) -> None:
    """Compare the checksums of what no digest will prove: tensors that are converted or padded."""
    names = {sources[tensor.key] or "" for tensor in tensors if id(tensor) not in comparable}
    everyones = comm.all_gather_object(names) if comm.get_world_size() > 1 else [names]
    verify_checksums(catalog, set().union(*everyones))


def verify_checksums(catalog: Catalog, names: Iterable[str]) -> ChecksumReport:
    """Compare the checksums that the files of some tensors carry, shared out over the ranks.

    Args:
        catalog: the checkpoint.
        names: its tensors; the same on all ranks.

    Raises:
        ValueError: a file is damaged, on whichever rank that was found.

    Parallelism: collective over the world.
    """
    pieces = [piece for name in sorted(names) for piece in catalog.tensors[name].pieces]
    checksums = {piece.checksum for piece in pieces if piece.checksum is not None}
    unchecked = {piece.path for piece in pieces if piece.checksum is None}
    largest_first = sorted(checksums, key=lambda item: (-item.num_bytes, item.path, item.offset))
    problem = None
    try:
        for checksum in largest_first[comm.get_rank() :: comm.get_world_size()]:
            checksum.verify()
    except (ValueError, OSError) as error:
        problem = str(error)
    _raise_together(problem, ValueError)
    return ChecksumReport(
        len({checksum.path for checksum in checksums} - unchecked),
        sum(checksum.num_bytes for checksum in checksums),
        tuple(sorted(map(str, unchecked))),
    )


@dataclass(frozen=True, slots=True)
class ChecksumReport:
    """What comparing checksums could say."""

    num_files: int
    """Compared."""
    num_bytes: int
    unchecked: tuple[str, ...]
    """Files that carry no checksums."""

    def lines(self) -> list[str]:
        """In words."""
        lines = [f"checksums of {self.num_files} files are right ({self.num_bytes / 1e6:.1f} MB)"]
        if self.unchecked:
            more = f" and {len(self.unchecked) - 1} more" if self.unchecked[1:] else ""
            lines.append(
                f"WARNING: {self.unchecked[0]}{more} carry no checksums; only sizes and headers "
                "could be checked"
            )
        return lines


@dataclass(slots=True)
class _Filled:
    """What filling found out."""

    num_bytes: int = 0
    sums: dict[str, int] = field(default_factory=dict)
    """Key -> sum over what memory holds afterwards."""
    not_finite: dict[str, int] = field(default_factory=dict)
    """Key -> numbers that are NaN or infinite, if any."""


def _fill_all(
    catalog: Catalog,
    tensors: Sequence[LiveTensor],
    sources: Mapping[str, str | None],
    summed: set[int],
) -> _Filled:
    """Fill all tensors, several at a time where threads can write into their memory.

    Args:
        catalog: the checkpoint.
        tensors: what to fill.
        sources: key of a tensor -> name of the stored one.
        summed: ``id`` of those whose part of the digest is wanted.
    """
    # Compared already by all ranks together, or the digest will show.
    verified = Verified(
        piece.checksum
        for tensor in catalog.tensors.values()
        for piece in tensor.pieces
        if piece.checksum is not None
    )
    readers = [TensorReader(verified) for _ in range(READERS)]
    free = list(readers)

    def fill(tensor: LiveTensor, place: np.ndarray | None) -> tuple[str, int, int]:
        reader = free.pop()
        try:
            held = _fill(tensor, place, catalog.tensors[sources[tensor.key] or ""], reader)
        finally:
            free.append(reader)
        progress.update(memory.num_bytes(tensor.tensor))
        if tensor.kind == SQUARES and (count := dtypes.count_negative(held, tensor.dtype)):
            raise ValueError(
                f"{tensor.key} holds {count} numbers below zero, but it is a mean of squares: "
                f"{catalog.source} is damaged, or its files were exchanged; use another one"
            )
        digest = digest_part(held, tensor.span, tensor.shape) if id(tensor) in summed else 0
        return tensor.key, digest, dtypes.count_not_finite(held, tensor.dtype)

    places = [_place(tensor) for tensor in tensors]
    total = sum(memory.num_bytes(tensor.tensor) for tensor in tensors)
    try:
        with (
            bars.bar("loading", total, "B", is_shown=comm.get_rank() == 0) as progress,
            ThreadPoolExecutor(READERS, thread_name_prefix="load") as pool,
        ):
            jobs = [
                pool.submit(fill, tensor, place)
                for tensor, place in zip(tensors, places, strict=True)
                if place is not None
            ]
            try:
                parts = [job.result() for job in jobs]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        # What a device holds goes through memory of this thread.
        for tensor, place in zip(tensors, places, strict=True):
            if place is None:
                parts.append(fill(tensor, None))
    finally:
        for reader in readers:
            reader.close()
    filled = _Filled(sum(reader.bytes_read for reader in readers))
    done = {tensor.key for tensor in tensors if id(tensor) in summed}
    for key, digest, count in parts:
        if key in done:
            filled.sums[key] = filled.sums.get(key, 0) + digest
        if count:
            filled.not_finite[key] = filled.not_finite.get(key, 0) + count
    return filled


def _place(tensor: LiveTensor) -> np.ndarray | None:
    """A tensor's memory, if this process can write to it."""
    if device.is_ascend() or not memory.num_elements(tensor.tensor):
        return None
    return memory.flat_view(tensor.tensor)


def _fill(
    tensor: LiveTensor, place: np.ndarray | None, stored: StoredTensor, reader: TensorReader
) -> np.ndarray:
    """Fill a tensor; return what it holds then, in this process's memory."""
    if stored.shape == tensor.shape:
        array = reader.read_span(stored, tensor.span, tensor.dtype, place)
    else:
        is_weight = tensor.kind in (WEIGHTS, MAIN)
        array = read_repadded(reader, stored, tensor.span, tensor.dtype, is_weight)
    if place is None:
        memory.copy_from_host(tensor.tensor, array)
        return memory.flat_view(tensor.tensor) if memory.num_elements(tensor.tensor) else array
    if array is not place:
        np.copyto(place, array)
    return place


def _together(counts: dict[str, int]) -> dict[str, int]:
    """Counts of all ranks; copies of a tensor on several ranks count once."""
    everyones = comm.all_gather_object(counts) if comm.get_world_size() > 1 else [counts]
    found: dict[str, int] = {}
    for one in everyones:
        for key, count in one.items():
            found[key] = max(found.get(key, 0), count)
    return dict(sorted(found.items()))


def _not_finite_lines(found: Mapping[str, int]) -> list[str]:
    if not found:
        return []
    first, count = next(iter(found.items()))
    more = f", and {len(found) - 1} more tensors hold such" if len(found) > 1 else ""
    return [
        f"WARNING: {first} holds {count} numbers that are NaN or infinite{more}; the checkpoint "
        "was saved by a run that had diverged, or is damaged"
    ]


def _verify(catalog: Catalog, sums: dict[str, int]) -> int:
    """Compare what memory holds now with the digests that were saved.

    Raises:
        RuntimeError: one differs.
    """
    everyones = comm.all_gather_object(sums) if comm.get_world_size() > 1 else [sums]
    totals: dict[str, int] = {}
    for one in everyones:
        for key, value in one.items():
            totals[key] = totals.get(key, 0) + value
    wrong = [key for key, value in totals.items() if text_of(value) != catalog.tensors[key].digest]
    if wrong:
        paths = sorted({str(piece.path) for piece in catalog.tensors[wrong[0]].pieces})
        raise RuntimeError(
            f"{wrong[0]}{f' and {len(wrong) - 1} more tensors' if wrong[1:] else ''} of "
            f"{catalog.source} differ from what was saved (digest); damaged is one of "
            f"{', '.join(paths[:SHOWN])}: choose another checkpoint with --ckpt-step"
        )
    return len(totals)


def _notes(
    catalog: Catalog, tensors: Sequence[LiveTensor], sources: Mapping[str, str | None]
) -> list[str]:
    """What was not simply copied, in words."""
    notes: dict[str, None] = {}
    for tensor in tensors:
        source = sources[tensor.key] or ""
        stored = catalog.tensors[source]
        if stored.shape != tensor.shape:
            notes[
                f"{tensor.key}: {stored.shape[0]} rows became {tensor.shape[0]} "
                "(padding of the vocabulary)"
            ] = None
        if stored.dtype != tensor.dtype and not tensor.is_shared:
            notes[f"tensors were converted from {stored.dtype} to {tensor.dtype}"] = None
        if source == stored_name(tensor.name, MAIN) and tensor.kind == WEIGHTS:
            notes["fp32 weights were taken from the checkpoint's fp32 copies"] = None
        elif source != tensor.key and not tensor.is_shared and tensor.kind == WEIGHTS:
            notes[f"{tensor.key} was taken from {source}"] = None
    gathered = comm.all_gather_object(list(notes)) if comm.get_world_size() > 1 else [list(notes)]
    return list(dict.fromkeys(note for one in gathered for note in one))


def _raise_together(problem: str | None, kind: type[Exception]) -> None:
    """Raise on every rank what happened on one, so that none waits for the others."""
    everyones = comm.all_gather_object(problem) if comm.get_world_size() > 1 else [problem]
    for rank, text in enumerate(everyones):
        if text:
            raise kind(text if len(everyones) == 1 else f"rank {rank}: {text}")
