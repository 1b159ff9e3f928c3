# SPDX-License-Identifier: Apache-2.0
"""Distillation from saved logits: a teacher writes its likeliest tokens, a student reads them.

Legend: s places of a sequence on this rank, b sequences of a micro-batch, v vocabulary, p tensor
parallel ranks, K tokens kept of a place. A file holds the sequences of one step that one data and
context parallel rank saw; sequences are counted over the whole run, so a student may have other
batch sizes and another layout.

Source: Megatron-LM ``megatron/training/distillation`` (what is kept, and the loss); the files are
this project's own.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.backend.base import Group, ReduceOp
from mindspeed_ms.backend.numpy_types import bfloat16_to_float32
from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.core.teacher import Teacher
from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.files.regular_file import json_object, require_regular
from mindspeed_ms.files.whole import appears_whole
from mindspeed_ms.ops.portable.arrays import bfloat16_bits, tensor_of, wide

ABSENT = -1
"""Token of an entry that does not count."""

FAR = -1.0e3
"""Logarithm of its probability."""

_NAME = re.compile(r"^samples_(\d+)_(\d+)__dp(\d+)_cp(\d+)\.npz$")


class _MissingError(ValueError):
    """No file holds a sequence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOptions:
    """What a teacher writes."""

    folder: Path
    top_k: int
    top_p: float | None = None
    min_k: int = 1
    dtype: str = "fp16"
    identity: str = ""
    """Of the data: seed, length, samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """What a student reads."""

    folder: Path
    alpha: float = 1.0
    """Weight of the teacher's loss; the rest is that of the labels."""
    ignores_errors: bool = False
    """Take the labels' loss alone where the teacher's tokens are missing or of other data."""
    identity: str = ""


@dataclass(slots=True)
class Distillation:
    """What the run does; a model outside of a run does nothing."""

    saves: SaveOptions | None = None
    loads: LoadOptions | None = None
    live: Teacher | None = None
    """In memory, on the last pipeline stage."""
    first_sample: int = 0
    micro_batch: int = 0
    places: np.ndarray | None = None
    """Places of a whole sequence on this rank; None: all."""
    listed: list[tuple[Path, int, int]] | None = None
    """Files of the teacher with their first and last sequence; None: the folder is to be read."""
    _kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    _files: dict[Path, dict[str, np.ndarray]] = field(default_factory=dict)

    @property
    def is_on(self) -> bool:
        """Whether anything is saved, read or asked of a teacher."""
        return not (self.saves is self.loads is self.live is None)

    def begin_step(self, first_sample: int) -> None:
        """Begin with the sequences from ``first_sample`` on, counted over the run."""
        self.first_sample, self.micro_batch = first_sample, 0
        self._kept.clear()

    def samples(self, rows: int) -> np.ndarray:
        """Numbers of the sequences of the next micro-batch, [b]; it is counted."""
        ranks = parallel_state.get_data_parallel_world_size()
        rank = parallel_state.get_data_parallel_rank()
        start = self.first_sample + (self.micro_batch * ranks + rank) * rows
        self.micro_batch += 1
        return np.arange(start, start + rows)

    # ---- the teacher -----------------------------------------------------------------------------

    def keep(self, logits: Tensor, group: Group) -> None:
        """Note the likeliest tokens of a micro-batch.

        Args:
            logits: [s, b, v/p].
            group: tensor parallel ranks.

        Parallelism: collective over ``group``.
        """
        assert self.saves is not None, "asked of a teacher"
        samples = self.samples(logits.shape[1])
        values, tokens = likeliest(wide(memory.contiguous(logits)), self.saves.top_k, group)
        if self.saves.top_p is not None:
            values, tokens = nucleus(values, tokens, self.saves.top_p, self.saves.min_k)
        self._kept.append((samples, values, tokens))

    def end_step(self) -> None:
        """Write what was noted in the step, on the first rank of every tensor parallel group."""
        if self.saves is None or not self._kept:
            return
        kept, self._kept = self._kept, []
        if parallel_state.get_tensor_model_parallel_rank() != 0:
            return
        most = max(values.shape[-1] for _, values, _ in kept)
        samples = np.concatenate([one for one, _, _ in kept])
        values = np.concatenate([_padded(one, most, FAR) for _, one, _ in kept], axis=1)
        tokens = np.concatenate([_padded(one, most, ABSENT) for _, _, one in kept], axis=1)
        name = (
            f"samples_{samples.min():09d}_{samples.max():09d}__"
            f"dp{parallel_state.get_data_parallel_rank()}_"
            f"cp{parallel_state.get_context_parallel_rank()}.npz"
        )
        places = np.arange(values.shape[0]) if self.places is None else self.places
        target = self.saves.folder / name
        with appears_whole(target) as unfinished, unfinished.open("wb") as file:
            np.savez_compressed(
                file,
                meta=json.dumps({"identity": self.saves.identity, "dtype": self.saves.dtype}),
                samples=samples,
                places=places,
                values=_stored(values, self.saves.dtype),
                tokens=tokens.astype(np.int32),
            )

    # ---- the student -----------------------------------------------------------------------------

    def teacher(self, rows: int, length: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Log probabilities and tokens [s, b, K] of the next micro-batch; None: there are none.

        Raises:
            ValueError: they are missing, or were saved with other data.
        """
        assert self.loads is not None, "asked of a student"
        samples = self.samples(rows)
        places = np.arange(length) if self.places is None else self.places
        try:
            return self._looked_up(samples, places)
        except ValueError:
            if self.loads.ignores_errors:
                return None
            raise

    def _looked_up(self, samples: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is read; files that came since the folder was listed count."""
        try:
            return self._read(samples, places)
        except _MissingError:
            self.listed = None
            return self._read(samples, places)

    def _read(self, samples: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.loads is not None, "asked of a student"
        found: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        for path in self._covering(int(samples.min()), int(samples.max())):
            content = self._open(path)
            for column in np.flatnonzero(np.isin(content["samples"], samples)):
                found.setdefault(int(content["samples"][column]), []).append(
                    (
                        content["places"],
                        content["values"][:, column],
                        content["tokens"][:, column],
                    )
                )
        most = max((part[1].shape[-1] for parts in found.values() for part in parts), default=1)
        values = np.full((len(places), len(samples), most), FAR, np.float32)
        tokens = np.full(values.shape, ABSENT, np.int64)
        for row, sample in enumerate(samples):
            filled = np.zeros(len(places), bool)
            for held, logs, ids in found.get(int(sample), ()):
                order = np.argsort(held)
                here, there = np.isin(places, held), np.searchsorted(held[order], places)
                source = order[there[here]]
                values[here, row, : logs.shape[-1]] = logs[source]
                tokens[here, row, : ids.shape[-1]] = ids[source]
                filled |= here
            if not filled.all():
                raise _MissingError(
                    f"{self.loads.folder} holds no logits of sequence {sample} of the run; save "
                    "them for as many samples as this run reads, or set logits_load_ignore_errors"
                )
        return values, tokens

    def _covering(self, first: int, last: int) -> list[Path]:
        """Files that may hold some of these sequences."""
        assert self.loads is not None, "asked of a student"
        if self.listed is None:  # once, not for every micro-batch: there is a file for every step
            matches = ((path, _NAME.match(path.name)) for path in self.loads.folder.iterdir())
            self.listed = sorted((path, int(m[1]), int(m[2])) for path, m in matches if m)
        found = [path for path, begin, end in self.listed if begin <= last and end >= first]
        for path in set(self._files) - set(found):
            del self._files[path]
        return found

    def _open(self, path: Path) -> dict[str, np.ndarray]:
        assert self.loads is not None, "asked of a student"
        if path not in self._files:
            with taken_apart(path, "logits that a teacher saved"):
                content, meta = _arrays_of(path)
            if meta["identity"] != self.loads.identity:
                raise ValueError(
                    f"{path} was saved with other data ({meta['identity']}) than this run reads "
                    f"({self.loads.identity}); use the teacher's seed, lengths and data, or set "
                    "logits_load_ignore_errors"
                )
            content["values"] = _read_values(content["values"], meta["dtype"])
            if not np.isfinite(content["values"]).all():
                raise ValueError(f"{path} holds logits that are no numbers; save them anew")
            self._files[path] = content
        return self._files[path]


def _arrays_of(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a file holds, and what it says of itself.

    Raises:
        ValueError: there is no file, it is damaged, or its arrays are not those that a teacher
            saves.
    """
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            content = {name: _array_of(archive, f"{name}.npy") for name in (*_AXES, "meta")}
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error}); save the logits anew") from None
    told = str(content.pop("meta"))
    meta = json_object(told, str(path))
    if meta["dtype"] not in _TYPES:
        raise ValueError(f"dtype is {meta['dtype']!r:.40}")
    sizes: dict[str, int] = {}
    for name, axes in _AXES.items():
        array, kinds = content[name], _TYPES[meta["dtype"]] if name == "values" else "iu"
        if array.ndim != len(axes) or array.dtype.kind not in kinds:
            raise ValueError(f"{name} is an array of {array.dtype} {list(array.shape)}")
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has {size} along {axis}, others {sizes[axis]}")
    return content, meta


_AXES = {"samples": "b", "places": "s", "values": "sbK", "tokens": "sbK"}
_TYPES = {"bf16": "u", "fp16": "f", "fp32": "f"}
_LARGEST = 1 << 36
"""Bytes of an array that a file may claim to hold; what it does not hold is not taken for it."""


def _array_of(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of a file, whose header is compared with what is there before room is taken."""
    known = archive.getinfo(name)
    if known.file_size > _LARGEST:
        raise ValueError(f"{name} claims {known.file_size} bytes")
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"{name} is an array of version {version}")
        shape, order, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize > known.file_size:
            raise ValueError(f"{name} is no array of {dtype} {list(shape)}")
        data = stream.read()  # to its end, where its checksum is compared
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order else "C")


def current() -> Distillation:
    """That of the run."""
    return run_state.member_of_current(Distillation)


def likeliest(logits: np.ndarray, k: int, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities and tokens [s, b, K] of the k likeliest tokens, the likeliest first.

    Parallelism: collective over the group.
    """
    columns = logits.shape[-1]
    count = min(k, columns)
    chosen = np.argpartition(-logits, count - 1, axis=-1)[..., :count]
    scores = np.take_along_axis(logits, chosen, -1)
    chosen = chosen + group.rank * columns
    total = _log_sum(logits, group)
    if group.size > 1:
        everyones = comm.all_gather_object((scores, chosen), group)
        scores = np.concatenate([one for one, _ in everyones], axis=-1)
        chosen = np.concatenate([one for _, one in everyones], axis=-1)
    order = np.argsort(-scores, axis=-1, kind="stable")[..., : min(k, columns * group.size)]
    return (
        np.take_along_axis(scores, order, -1) - total[..., None],
        np.take_along_axis(chosen, order, -1),
    )


def nucleus(
    values: np.ndarray, tokens: np.ndarray, share: float, min_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Only the first tokens of every place whose probabilities together reach ``share``."""
    before = np.cumsum(np.exp(values), axis=-1) - np.exp(values)
    kept = before < share
    kept[..., :min_k] = True
    most = int(kept.sum(-1).max())
    values, tokens = np.where(kept, values, FAR), np.where(kept, tokens, ABSENT)
    return values[..., :most], tokens[..., :most]


def _log_sum(logits: np.ndarray, group: Group) -> np.ndarray:
    """Logarithm of the sum of exponentials over the whole vocabulary, [s, b]."""
    largest = _reduced(logits.max(-1), group, ReduceOp.MAX)
    sums = np.exp(logits - largest[..., None]).sum(-1, dtype=np.float64).astype(np.float32)
    return largest + np.log(_reduced(sums, group, ReduceOp.SUM))


def _reduced(values: np.ndarray, group: Group, op: ReduceOp) -> np.ndarray:
    if group.size == 1:
        return values
    tensor = tensor_of(np.ascontiguousarray(values, np.float32))
    comm.all_reduce(tensor, op=op, group=group)
    return np.array(wide(tensor))


def _padded(values: np.ndarray, most: int, filler: float) -> np.ndarray:
    wider = [(0, 0), (0, 0), (0, most - values.shape[-1])]
    return np.pad(values, wider, constant_values=filler)


def _stored(values: np.ndarray, dtype: str) -> np.ndarray:
    values = values.astype(np.float32)
    if dtype == "bf16":
        return bfloat16_bits(values)
    return values.astype(np.float16) if dtype == "fp16" else values


def _read_values(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return bfloat16_to_float32(values)
    return values.astype(np.float32)


class _TeacherLoss(autograd.Function):
    """Sum over the teacher's tokens of t exp(t) - exp(t) log q, with t its log probabilities."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, values: np.ndarray, tokens: np.ndarray, group: Group
    ) -> Tensor:
        z = np.array(wide(memory.contiguous(logits)))
        total = _log_sum(z, group)
        start = group.rank * z.shape[-1]
        here = (tokens >= start) & (tokens < start + z.shape[-1])
        local = np.where(here, tokens - start, 0)
        share = np.where(tokens == ABSENT, 0.0, np.exp(values)).astype(np.float32)
        student = np.take_along_axis(z, local, -1) - total[..., None]
        losses = np.where(here, share * (values - student), 0.0).sum(-1)
        ctx.logits, ctx.total, ctx.dtype = z, total, logits.dtype
        ctx.share, ctx.local = share, (np.where(here, share, 0.0), local)
        return tensor_of(_reduced(losses.astype(np.float32), group, ReduceOp.SUM))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dz = np.exp(ctx.logits - ctx.total[..., None]) * ctx.share.sum(-1, keepdims=True)
        mine, local = ctx.local
        s, b = np.indices(local.shape[:2])
        np.subtract.at(dz, (s[..., None], b[..., None], local), mine)
        dz *= wide(memory.contiguous(grad)).reshape((*dz.shape[:2], 1))
        return tensor_of(dz, ctx.dtype), None, None, None


def teacher_loss(logits: Tensor, values: np.ndarray, tokens: np.ndarray, group: Group) -> Tensor:
    """Divergence of the student from the teacher on the teacher's tokens, fp32 [s, b].

    Args:
        logits: of the student, [s, b, v/p].
        values: log probabilities of the teacher, [s, b, K].
        tokens: their tokens; ``ABSENT`` where there is none.
        group: tensor parallel ranks.

    Parallelism: collective over ``group``.
    """
    return _TeacherLoss.apply(logits, values, tokens, group)
