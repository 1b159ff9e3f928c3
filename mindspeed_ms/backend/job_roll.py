# SPDX-License-Identifier: Apache-2.0
"""The roll call at the start of a job: who has come, who is missing, who gets which rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mindspeed_ms.backend.job_health import names
from mindspeed_ms.backend.job_messages import Message


@dataclass(eq=False)
class Member:
    """A process that has asked to join."""

    wish: Message
    address: str
    is_local: bool
    """It runs on the server's own host."""
    server_address: str = ""
    """The server's address on the way to it."""
    rank: int = -1

    @property
    def host(self) -> tuple[str, str]:
        """What ranks that share memory have in common."""
        return self.address, self.wish["name"]

    @property
    def place(self) -> str:
        """Its host, for messages."""
        name = self.wish["name"]
        return f"{name} ({self.address})" if name and not self.is_local else self.address

    @property
    def title(self) -> str:
        """Its number and where it runs, for messages."""
        rank = self.wish["rank"] if self.rank < 0 else self.rank
        name = "a rank" if rank is None else f"rank {rank}"
        return f"{name} (pid {self.wish['pid']} on {self.place})"


@dataclass
class RollCall:
    """Collects ``size`` processes."""

    size: int
    present: list[Member] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether everybody is there."""
        return len(self.present) == self.size

    def objection(self, new: Member) -> str | None:
        """Why a process makes the job impossible; None if it may join."""
        rank, size = new.wish["rank"], new.wish["size"]
        if size != self.size:
            return (
                f"{new.title} expects {size} ranks, the scheduler {self.size}; start every host "
                "with the same --worker_num"
            )
        if rank is not None and rank >= self.size:
            return f"rank {rank} on {new.place} is outside 0..{self.size - 1}; check --node_rank"
        for other in self.present:
            if rank is not None and other.wish["rank"] == rank:
                return (
                    f"rank {rank} has connected twice, from {other.place} and from {new.place}; "
                    "give every host its own --node_rank"
                )
        return None

    def missing(self) -> str:
        """Which ranks have not come yet; empty if all have."""
        known = {member.wish["rank"] for member in self.present}
        count = self.size - len(self.present)
        if None in known or not count:
            return f"{count} of {self.size} ranks" if count else ""
        return names(rank for rank in range(self.size) if rank not in known)

    def numbered(self) -> list[Member]:
        """Everybody in rank order, with their numbers.

        Ranks as asked for; hosts that ask for none get consecutive numbers, the server's first.
        """
        first_seen = {member.host: at for at, member in reversed(list(enumerate(self.present)))}
        free = sorted(
            (member for member in self.present if member.wish["rank"] is None),
            key=lambda m: (not m.is_local, first_seen[m.host], m.wish["local_rank"] or 0),
        )
        taken = {m.wish["rank"]: m for m in self.present if m.wish["rank"] is not None}
        ordered = [taken[rank] if rank in taken else free.pop(0) for rank in range(self.size)]
        for rank, member in enumerate(ordered):
            member.rank = rank
        return ordered


def address_for(member: Member, members: Iterable[Member]) -> str:
    """The address under which the ranks of other hosts reach a member's host; "" if there are none.

    A local member may have come over the loopback interface; what counts then is where the server
    itself was found by the others.
    """
    if not member.is_local:
        return member.address
    return next((other.server_address for other in members if not other.is_local), "")
