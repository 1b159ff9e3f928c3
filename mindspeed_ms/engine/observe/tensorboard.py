# SPDX-License-Identifier: Apache-2.0
"""Event files of TensorBoard, written by ``tensorboardX``."""

from __future__ import annotations

import importlib
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.engine.observe.figures import BY_SAMPLES, Figures

_FLUSH_SECONDS = 5
"""Events are in the file after so long at most; to wait for them costs as much as a small step."""
_HEADER, _FOOTER = 12, 4
"""Bytes of a record before its contents (length, checksum) and behind them (checksum)."""


class TensorBoardWriter:
    """Writes figures to a folder.

    Args:
        folder: made if it is not there.
        queue_size: events that may wait to be written.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, queue_size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        library = importlib.import_module("tensorboardX")
        self._summary = importlib.import_module("tensorboardX.proto.summary_pb2").Summary
        # Its names count seconds: a run that goes on at once would write over the file before.
        # Readers take files by name, so what tells them apart has to grow.
        self._writer = library.SummaryWriter(
            str(folder),
            max_queue=queue_size,
            flush_secs=_FLUSH_SECONDS,
            filename_suffix=f".{time.time_ns()}",
        )

    def write(self, figures: Figures) -> None:
        """All values of one x axis are one event: that takes a tenth of the time of one each."""
        self._add(figures.by_iteration, figures.iteration)
        self._add(
            {tag + BY_SAMPLES: value for tag, value in figures.by_samples.items()},
            figures.consumed_samples,
        )

    def _add(self, values: Mapping[str, float], x: int) -> None:
        if values:
            kind = self._summary.Value
            summary = self._summary(
                value=[kind(tag=tag, simple_value=value) for tag, value in values.items()]
            )
            self._writer.file_writer.add_summary(summary, x)

    def write_texts(self, texts: Mapping[str, str], iteration: int) -> None:
        """Texts by tag, as Megatron writes its arguments."""
        for tag, text in texts.items():
            self._writer.add_text(tag, text, iteration)

    def close(self) -> None:
        """End the writing thread."""
        self._writer.close()


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
    removed = 0
    for file in sorted(folder.glob("events.out.tfevents.*")):
        kept, dropped = [], 0
        for record in _records(file.read_bytes()):
            event = event_class.FromString(record[_HEADER:-_FOOTER])
            if _is_later(event, iteration, consumed_samples):
                dropped += 1
            else:
                kept.append(record)
        if dropped:
            partial = file.with_name(f".{file.name}.partial")
            partial.write_bytes(b"".join(kept))
            os.replace(partial, file)
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
