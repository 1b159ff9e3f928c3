# SPDX-License-Identifier: Apache-2.0
"""Event files of TensorBoard, written by ``tensorboardX``."""

from __future__ import annotations

import importlib
import logging
import math
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.engine.observe.figures import BY_SAMPLES, Figures
from mindspeed_ms.files.regular_file import read_bytes
from mindspeed_ms.files.whole import appears_whole, name_it

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 5
"""Events are in the file after so long at most; to wait for them costs as much as a small step."""
_LARGEST_FP32 = 3.4028234663852886e38
_HEADER, _FOOTER = 12, 4
"""Bytes of a record before its contents (length, checksum) and behind them (checksum)."""


class TensorBoardWriter:
    """Writes figures to a folder.

    Events are encoded here, since MindSpore switches protobuf to its pure Python form, in which the
    events of one step took 0.8 ms; framing and checksums are the library's.

    Args:
        folder: made if it is not there.
        queue_size: events that may wait to be written.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, queue_size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        records = importlib.import_module("tensorboardX.record_writer")
        self._summaries = importlib.import_module("tensorboardX.summary")
        self._event = importlib.import_module("tensorboardX.proto.event_pb2").Event
        # Its names count seconds: a run that goes on at once would write over the file before.
        # Readers take files by name, so what tells them apart has to grow.
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
        self._path = folder / name
        self._file = records.RecordWriter(str(self._path))
        self._waiting: deque[bytes] = deque()
        self._queue_size = queue_size
        self._problem: OSError | None = None
        self._is_told = False
        self._ends, self._wakes = False, threading.Event()
        version = self._event(wall_time=time.time(), file_version="brain.Event:2")
        self._put(version.SerializeToString())
        self._thread = threading.Thread(target=self._write_behind, daemon=True)
        self._thread.start()

    def write(self, figures: Figures) -> None:
        """All values of one x axis are one event.

        Raises:
            OSError: what was given before could not be written.
        """
        self._add(figures.by_iteration, figures.iteration)
        self._add(
            {tag + BY_SAMPLES: value for tag, value in figures.by_samples.items()},
            figures.consumed_samples,
        )
        if self._problem is not None:
            self._is_told = True
            raise self._problem

    def _add(self, values: Mapping[str, float], x: int) -> None:
        if values:
            self._put(scalar_event(values, x, time.time()))

    def _put(self, event: bytes) -> None:
        self._waiting.append(event)
        if len(self._waiting) >= self._queue_size:
            self._wakes.set()

    def _write_behind(self) -> None:
        """Write what waits, every few seconds: a step does not wait for the disk."""
        while not self._ends and self._problem is None:
            self._wakes.wait(_FLUSH_SECONDS)
            self._wakes.clear()
            self._drain()

    def _drain(self) -> None:
        if not self._waiting:
            return
        try:
            while self._waiting:
                self._file.write(self._waiting.popleft())
            self._file.flush()
            os.stat(self._path)  # who removes the file, keeps what is written to it from readers
        except OSError as error:
            name_it(error, self._path)
            self._problem = error

    def write_texts(self, texts: Mapping[str, str], iteration: int) -> None:
        """Texts by tag, as Megatron writes its arguments."""
        for tag, text in texts.items():
            summary = self._summaries.text(tag, text)
            event = self._event(wall_time=time.time(), step=iteration, summary=summary)
            self._put(event.SerializeToString())

    def close(self) -> None:
        """Write the rest and end the writing thread.

        Raises:
            OSError: not all that was given could be written.
        """
        self._ends = True
        self._wakes.set()
        self._thread.join()
        if self._problem is None:
            self._drain()
        try:
            self._file.close()
        except OSError as error:
            self._problem = self._problem or error
        if self._problem is not None and not self._is_told:
            raise self._problem


def scalar_event(values: Mapping[str, float], x: int, wall_time: float) -> bytes:
    """An ``Event`` of TensorBoard with scalars, in protobuf's encoding.

    Args:
        values: by tag.
        x: the step.
        wall_time: seconds since 1970.
    """
    summary = bytearray()
    for tag, value in values.items():
        name = tag.encode()
        inside = b"\x0a" + _varint(len(name)) + name + b"\x15" + struct.pack("<f", _fp32(value))
        summary += b"\x0a" + _varint(len(inside)) + inside
    head = b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(x)
    return bytes(head + b"\x2a" + _varint(len(summary)) + summary)


def _fp32(value: float) -> float:
    """What fp32 holds of a number; beyond its range infinity, as protobuf makes it."""
    return (
        value if abs(value) <= _LARGEST_FP32 or value != value else math.copysign(math.inf, value)
    )


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first, the highest bit set where another follows."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def cut_events(folder: Path, iteration: int, consumed_samples: int) -> int:
    """Take out what an earlier part of the run wrote about steps that are done again.

    TensorBoard's own mark of a restart (``purge_step``) takes away everything from one x value
    on, and here some axes count iterations and others sequences: it would wipe out most of the
    curves over sequences.

    Args:
        folder: of the event files.
        iteration: the last one that stays.
        consumed_samples: sequences up to there.

    Returns:
        Events that were taken out.

    Raises:
        OSError: a file cannot be replaced.
    """
    event_class = importlib.import_module("tensorboardX.proto.event_pb2").Event
    damage = importlib.import_module("google.protobuf.message").DecodeError
    removed = 0
    for file in sorted(folder.glob("events.out.tfevents.*")):
        kept, dropped = [], 0
        try:
            for record in _records(read_bytes(file)):
                event = event_class.FromString(record[_HEADER:-_FOOTER])
                if _is_later(event, iteration, consumed_samples):
                    dropped += 1
                else:
                    kept.append(record)
        except (damage, ValueError, OSError) as error:  # curves are worth no end of a run
            logger.warning("WARNING: event file %s stays as it is: %s", file, error)
            continue
        if dropped:
            with appears_whole(file) as unfinished:
                unfinished.write_bytes(b"".join(kept))
            removed += dropped
    return removed


def _records(data: bytes) -> Iterator[bytes]:
    """The complete records of a file; a run that was killed may have left a part of one."""
    at = 0
    while at + _HEADER + _FOOTER <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + _HEADER + length + _FOOTER
        if end > len(data):
            return
        yield data[at:end]
        at = end


def _is_later(event: Any, iteration: int, consumed_samples: int) -> bool:
    values = [value for value in event.summary.value if value.HasField("simple_value")]
    if not values:
        return False
    by_samples = values[0].tag.endswith(BY_SAMPLES)
    return event.step > (consumed_samples if by_samples else iteration)
