# SPDX-License-Identifier: Apache-2.0
"""Where each parameter lies in a flat buffer, and which part each rank owns: arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

PARAM_ALIGNMENT = 64
"""Elements: with the distributed optimizer each parameter starts at a multiple of this."""

BUCKET_ALIGNMENT = 128
"""Elements: with the distributed optimizer buckets end at a multiple of this and of the ranks."""

HIGH_BANDWIDTH_ALIGNMENT = 2**16
"""Elements: the same where the network wants large equal messages."""

Shapes = Sequence[tuple[str, tuple[int, ...]]]
"""Name and local shape of each parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Place of one parameter in a flat buffer, in elements."""

    name: str
    start: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last element."""
        return self.start + math.prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketSpan:
    """Consecutive slots that are reduced together, in elements of the whole buffer."""

    start: int
    end: int
    """One past the last element, padding included."""
    slots: tuple[Slot, ...]

    @property
    def size(self) -> int:
        """Elements, padding included."""
        return self.end - self.start

    def shard(self, rank: int, ranks: int) -> tuple[int, int]:
        """First and one past the last element that ``rank`` owns.

        Raises:
            ValueError: the bucket does not divide into equal parts.
        """
        if self.size % ranks:
            raise ValueError(
                f"a bucket of {self.size} elements cannot be cut into {ranks} equal shards; pad it "
                "to a multiple of the ranks"
            )
        part = self.size // ranks
        return self.start + rank * part, self.start + (rank + 1) * part


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferLayout:
    """All buckets of a buffer, in the order of the backward pass."""

    buckets: tuple[BucketSpan, ...]

    @property
    def size(self) -> int:
        """Elements of the buffer, padding included."""
        return self.buckets[-1].end if self.buckets else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutRules:
    """How parameters are packed."""

    param_alignment: int = 1
    """Elements: every parameter starts at a multiple of this."""

    bucket_alignment: int = 1
    """Elements: every bucket ends at a multiple of this."""

    bucket_size: int | None = None
    """Elements after which a bucket closes; None: one bucket."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """What decides how data parallel ranks pack parameters into buffers."""

    ranks: int
    """Over which gradients are averaged."""

    shards: int | None
    """Ranks that share the optimizer's work out; None: each of them does all of it."""

    shards_gradients: bool
    """ZeRO-2 and beyond."""

    is_bucketed: bool
    """Reduce a part while the backward makes the next."""

    bucket_size: int | None
    """Elements after which a bucket closes; None: by the number of ranks."""

    alignment_bytes: int
    """Every parameter starts at a multiple of this many bytes of the gradient buffer."""

    high_bandwidth: bool
    """See ``HIGH_BANDWIDTH_ALIGNMENT``."""

    def rules(self, largest: int, width: int, is_whole: bool) -> LayoutRules:
        """How one buffer is packed.

        Args:
            largest: elements of its largest parameter.
            width: bytes of a gradient.
            is_whole: see ``is_kept_whole``.
        """
        aligned = max(1, self.alignment_bytes // width)
        bucket_size = self.bucket_size
        if not is_whole:
            bucket_size = 1  # a bucket per weight: the unit that is gathered
        elif self.shards_gradients:
            # Scratch memory holds whole buckets, so they must stay small.
            bucket_size = bucket_size or largest
        elif not self.is_bucketed:
            bucket_size = None
        elif bucket_size is None:
            bucket_size = default_bucket_size(self.ranks)
        if self.shards is None:
            return LayoutRules(param_alignment=aligned, bucket_size=bucket_size)
        return LayoutRules(
            param_alignment=max(PARAM_ALIGNMENT, aligned),
            bucket_alignment=sharded_alignment(self.shards, self.high_bandwidth),
            bucket_size=bucket_size,
        )


def is_kept_whole(
    zero_level: str | None, *, dims: int, partition_dim: int, is_expert: bool
) -> bool:
    """Whether ranks hold all of a parameter all the time, as without ZeRO-3.

    The others must be asked for before every use; only the parallel layers do that in backward,
    too.
    """
    return not (zero_level == "z3" and dims > 1 and partition_dim >= 0 and not is_expert)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The part of one parameter that lies in a range of the buffer."""

    name: str
    start: int
    """First element, counted from the start of the range."""
    size: int
    param_start: int
    """First element, counted from the start of the parameter."""


def flat_layout(shapes: Shapes, alignment: int = 1) -> tuple[list[Slot], int]:
    """Slots in the given order and the size of the buffer, in elements.

    Args:
        shapes: name and local shape of each parameter.
        alignment: every slot starts at a multiple of this many elements.
    """
    slots, end = [], 0
    for name, shape in shapes:
        slots.append(Slot(name=name, start=_up(end, alignment), shape=tuple(shape)))
        end = slots[-1].end
    return slots, end


def buffer_layout(
    shapes: Shapes, rules: LayoutRules, own_bucket: Collection[str] = ()
) -> BufferLayout:
    """Pack parameters, given in the order of the model, backwards into buckets.

    A bucket closes with the parameter that fills it. A name in ``own_bucket`` gets a bucket to
    itself: copies of a tied embedding on two pipeline stages are then sharded alike.

    Source: Megatron-LM ``_ParamAndGradBuffer`` (order, padding, where buckets close).
    """
    buckets: list[BucketSpan] = []
    slots: list[Slot] = []
    bucket_start = position = 0

    def close(end: int) -> int:
        nonlocal slots, bucket_start
        end = _up(end, rules.bucket_alignment)
        buckets.append(BucketSpan(start=bucket_start, end=end, slots=tuple(slots)))
        slots, bucket_start = [], end
        return end

    for name, shape in reversed(shapes):
        start = _up(position, rules.param_alignment)
        if name in own_bucket and slots:
            start = close(start)
        slots.append(Slot(name=name, start=start, shape=tuple(shape)))
        position = slots[-1].end
        is_full = rules.bucket_size is not None and position - bucket_start >= rules.bucket_size
        if is_full or name in own_bucket:
            position = close(position)
    if slots:
        close(position)
    return BufferLayout(buckets=tuple(buckets))


def default_bucket_size(ranks: int) -> int:
    """Elements per bucket for a data parallel size, where nothing else is asked for."""
    return max(40_000_000, 1_000_000 * ranks)


def sharded_alignment(ranks: int, high_bandwidth: bool = False) -> int:
    """Elements a bucket is padded to, so that ``ranks`` shards of it are equal."""
    return math.lcm(ranks, HIGH_BANDWIDTH_ALIGNMENT if high_bandwidth else BUCKET_ALIGNMENT)


def pieces_in(span: BucketSpan, start: int, end: int) -> list[Piece]:
    """The parts of the bucket's parameters that lie in [start, end), in order."""
    found = []
    for slot in span.slots:
        low, high = max(slot.start, start), min(slot.end, end)
        if low < high:
            found.append(
                Piece(
                    name=slot.name,
                    start=low - start,
                    size=high - low,
                    param_start=low - slot.start,
                )
            )
    return found


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
