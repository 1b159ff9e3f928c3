# SPDX-License-Identifier: Apache-2.0
"""Checksums that files carry, and what is compared with them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mindspeed_ms.files.crc import crc32_of_file


@dataclass(frozen=True, slots=True)
class Checksum:
    """CRC-32 of some bytes of a file, as its writer noted it."""

    path: Path
    offset: int
    num_bytes: int
    crc32: int

    def verify(self) -> None:
        """Compare.

        Raises:
            ValueError: the bytes are others than were written.
            OSError: the file cannot be read.
        """
        if crc32_of_file(self.path, self.num_bytes, self.offset) != self.crc32:
            raise ValueError(
                f"{self.path} has another checksum than it was written with (bytes {self.offset} "
                f"to {self.offset + self.num_bytes}), it is damaged; choose another checkpoint "
                "with --ckpt-step, or copy it again"
            )


class Verified:
    """Checksums that have been compared: each is compared once, when its bytes are first needed.

    Args:
        done: those that need not be compared again.
    """

    def __init__(self, done: Iterable[Checksum] = ()) -> None:
        self._done = set(done)
        self._lock = threading.Lock()

    def require(self, checksum: Checksum) -> None:
        """Compare if that has not been done.

        Raises:
            ValueError: see ``Checksum.verify``.
        """
        with self._lock:
            if checksum in self._done:
                return
        checksum.verify()
        with self._lock:
            self._done.add(checksum)
