# SPDX-License-Identifier: Apache-2.0
"""What a format of checkpoints has to offer. The registry lists those there are.

Outside of it on purpose: which iteration of a run is taken (``find``), how tensors are read
(``catalog``), and what is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.names import Describe


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceHints:
    """What is known about a checkpoint beside its files."""

    describe: Describe
    """Its common part -> the model, for formats with names of their own."""

    tensor: int | None = None
    """Ranks every tensor is cut for; None: as the files tell."""


class CheckpointFormat(Protocol):
    """One kind of checkpoint."""

    name: str
    """In messages and in the log."""

    def is_at(self, path: Path) -> bool:
        """Whether a folder or file holds a checkpoint of this format, whole or torn.

        Only names are looked at. Two formats never claim the same path.
        """
        ...

    def missing(self, path: Path) -> str | None:
        """What a torn checkpoint lacks, in words; None if it is complete.

        Called for what ``is_at`` has claimed. Looks at names and sizes, and reads at most a
        description; damage within files shows when the checkpoint is opened and read.
        """
        ...

    def open(self, path: Path, hints: SourceHints) -> Catalog:
        """What the checkpoint holds, under this project's names; tensors stay in their files.

        Raises:
            ValueError: it is damaged or incomplete, or the files do not say what is needed.
            OSError: a file cannot be read.
        """
        ...
