# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints of a run may go.

Only those that the run has saved itself count: others in its folder, of earlier runs, stay. The
newest one whose numbers are sound never goes, however many with NaN have been saved after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_ms.formats import own_format
from mindspeed_ms.formats.containers import storage


@dataclass(frozen=True, slots=True)
class Saved:
    """A complete checkpoint."""

    iteration: int
    run: str | None
    """None: not noted."""
    is_sound: bool

    @classmethod
    def of(cls, iteration: int, common: dict[str, Any]) -> Saved:
        """From what the index says beside tensors."""
        is_sound = common.get(own_format.UNHEALTHY) is None
        return cls(iteration, common.get(own_format.RUN) or None, is_sound)


def saved_in(root: Path, start: int, end: int | None) -> list[Saved]:
    """The complete checkpoints of a folder from ``start`` to before ``end``, ascending.

    Damaged ones are left out.
    """
    found = []
    for iteration in storage.complete_iterations(root):
        if start <= iteration and (end is None or iteration < end):
            try:
                index = own_format.read_index(storage.iteration_folder(root, iteration))
            except (ValueError, OSError):
                continue
            found.append(Saved.of(iteration, index))
    return found


def continued_run(root: Path, iteration: int) -> str | None:
    """The run that goes on from a checkpoint: its own, if it is the newest of it; None: a new one.

    From an older one the run is another: the later checkpoints are not its own.
    """
    run = own_format.run_of(storage.iteration_folder(root, iteration))
    later = (i for i in storage.complete_iterations(root) if i > iteration)
    is_newest = all(own_format.run_of(storage.iteration_folder(root, i)) != run for i in later)
    return run if is_newest else None


def expired(
    checkpoints: Iterable[Saved],
    newest: Saved,
    keep: int,
    retain_interval: int | None = None,
    kept: int | None = None,
) -> list[int]:
    """Iterations that may go, ascending.

    Args:
        checkpoints: complete ones before the newest, of whatever run.
        newest: the one that has just been saved.
        keep: so many of the run stay, the newest included.
        retain_interval: iterations that it divides stay for ever.
        kept: an iteration that stays.
    """
    mine = [*(saved for saved in checkpoints if saved.run == newest.run), newest]
    mine.sort(key=lambda saved: saved.iteration)
    staying = {saved.iteration for saved in mine[-keep:]}
    staying |= {max((saved.iteration for saved in mine if saved.is_sound), default=0)}
    if kept is not None:
        staying.add(kept)
    if retain_interval:
        staying |= {saved.iteration for saved in mine if saved.iteration % retain_interval == 0}
    return [saved.iteration for saved in mine if saved.iteration not in staying]
