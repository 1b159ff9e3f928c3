# SPDX-License-Identifier: Apache-2.0
"""``progress.txt`` beside the checkpoints: what was done when, by how many ranks.

Source: Megatron-LM ``append_to_progress_log`` and
``compute_throughputs_and_append_to_progress_log`` (format of the lines, and what is told).
"""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from pathlib import Path

from mindspeed_ms.backend import env
from mindspeed_ms.files.regular_file import read_bytes

FILE_NAME = "progress.txt"
_TIME = "%Y-%m-%d %H:%M:%S"
_OPERATIONS = "Floating-point operations: "


class ProgressFile:
    """Appends lines; rank 0 has one.

    Args:
        folder: of the checkpoints.
        world_size: ranks of the run.
        operations: floating point operations when this job begins.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, world_size: int, operations: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE_NAME
        self._world_size = world_size
        self._began, self._operations = datetime.now(), operations
        self._clock = time.monotonic()  # the other may be set meanwhile
        self._append("Starting job")

    def saved(self, iteration: int, operations: float, tokens: int, *, in_background: bool) -> None:
        """A checkpoint was written, or handed to the background."""
        rate = 1e12 * self._world_size
        seconds = max(time.monotonic() - self._clock, 1e-9)
        since, before = self._first_of_this_size()
        all_seconds = max((datetime.now() - since).total_seconds(), seconds)
        self._append(
            "\t".join(
                (
                    "Saving async checkpoint" if in_background else "Saved checkpoint",
                    f"Iteration: {iteration}",
                    f"Job throughput: {(operations - self._operations) / seconds / rate:.1f} "
                    "TFLOP/s/GPU",
                    f"Cumulative throughput: {(operations - before) / all_seconds / rate:.1f} "
                    "TFLOP/s/GPU",
                    f"{_OPERATIONS}{operations:.2e}",
                    f"Tokens (in billions): {tokens / 1e9:.2f}",
                )
            )
        )

    def completed(self, iteration: int) -> None:
        """A checkpoint that was handed to the background is complete."""
        self._append(f"Saved async checkpoint\tIteration: {iteration}")

    def _append(self, text: str) -> None:
        job = env.get("SLURM_JOB_ID") or ""
        now = datetime.now().strftime(_TIME)
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(f"{now}\tJob ID: {job}\t# GPUs: {self._world_size}\t{text}\n")

    def _first_of_this_size(self) -> tuple[datetime, float]:
        """When the jobs of this many ranks began, and the operations done by then."""
        began: tuple[datetime, float] | None = None
        done = 0.0
        for line in read_bytes(self._path).decode("utf-8", "replace").splitlines():
            moment, _, ranks, what, *rest = [*line.split("\t"), "", "", ""]
            found = [part for part in rest if part.startswith(_OPERATIONS)]
            if ranks != f"# GPUs: {self._world_size}":
                began = None
            with contextlib.suppress(ValueError):  # a line that a full disk has cut
                if what == "Starting job" and began is None:
                    began = datetime.strptime(moment, _TIME), done
                if found:
                    done = float(found[0].removeprefix(_OPERATIONS))
        return began or (self._began, self._operations)
