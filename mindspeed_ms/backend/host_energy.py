# SPDX-License-Identifier: Apache-2.0
"""How much energy the processors of this host take."""

from __future__ import annotations

from pathlib import Path


class HostEnergy:
    """The kernel's counters of the processors' packages.

    Args:
        root: where ``sys`` lies.

    Source: Linux kernel ``power/powercap/powercap`` (files).
    """

    FOLDER = "sys/class/powercap"

    def __init__(self, root: Path = Path("/")) -> None:
        # Zones within a package have a second colon, and what they count is in the package's.
        zones = sorted((root / self.FOLDER).glob("intel-rapl:*"))
        self._zones = [zone for zone in zones if zone.name.count(":") == 1]
        self._began: list[int] | None = None

    def start(self) -> None:
        """Begin to count."""
        self._began = self._read("energy_uj")

    def taken(self) -> float | None:
        """Joules since ``start``; None where no counter can be read, as for most users."""
        began, now, ranges = self._began, self._read("energy_uj"), self._read("max_energy_range_uj")
        if not began or now is None or ranges is None:
            return None
        passed = zip(began, now, ranges, strict=True)
        return sum((after - before) % (last + 1) for before, after, last in passed) / 1e6

    def _read(self, name: str) -> list[int] | None:
        try:
            return [int((zone / name).read_text()) for zone in self._zones]
        except (OSError, ValueError):
            return None
