# SPDX-License-Identifier: Apache-2.0
"""What the steps of a log line take in energy.

Source: Megatron-LM ``energy_monitor`` (what is counted: steps alone, of all ranks together).
    Deliberate difference: the hosts' processors are counted, where their kernels tell; figures
    that nobody knows are left out, not 0.
"""

from __future__ import annotations

from pathlib import Path

from mindspeed_ms.backend import comm
from mindspeed_ms.backend.host_energy import HostEnergy
from mindspeed_ms.engine.output import print_rank_0


class EnergyLog:
    """Adds up the energy of steps; one rank of each host counts for all.

    Args:
        root: where ``sys`` lies.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._host = HostEnergy(root) if comm.get_local_rank() == 0 else None
        self._joules: float | None = 0.0
        self._is_told = False

    def start_step(self) -> None:
        """A step begins."""
        if self._host is not None:
            self._host.start()

    def end_step(self) -> None:
        """It is over."""
        taken = None if self._host is None else self._host.taken()
        if self._joules is not None:
            self._joules = None if taken is None else self._joules + taken

    def lap(self, num_steps: int) -> float | None:
        """Joules per step and rank since the last lap; None, said once, if a host cannot tell.

        Parallelism: collective over the world.
        """
        hosts = comm.all_gather_object((self._host is not None, self._joules))
        self._joules = 0.0
        counted = [joules for counts, joules in hosts if counts]
        if any(joules is None for joules in counted):
            if not self._is_told:
                print_rank_0(
                    "--log-energy: the kernel of a host has no counters that this user may read "
                    f"(/{HostEnergy.FOLDER}/intel-rapl:*/energy_uj); energy is not in the log"
                )
            self._is_told = True
            return None
        return sum(counted) / num_steps / len(hosts)
