# SPDX-License-Identifier: Apache-2.0
"""What Megatron's functions without a run argument read: the members of the run that is active.

``get_data_parallel_group()``, ``get_num_microbatches()``, ``get_args()`` and their like mean "the"
run of the process. Here a run owns a ``RunState`` and makes it the active one while it works, so
that several runs can follow one another, or be alive side by side, without a trace in each other.
Code outside of runs (scripts that call ``initialize_model_parallel`` themselves, tests) works on a
state that is there from the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

Member = TypeVar("Member")


class RunState:
    """The members of one run, by their kind.

    Args:
        args: what ``get_args()`` returns; the front door that parses a command line sets it.
    """

    def __init__(self, args: Any = None) -> None:
        self.args = args
        self._members: dict[type, object] = {}

    def find(self, kind: type[Member]) -> Member | None:
        """The member of a kind; None if there is none."""
        return cast("Member | None", self._members.get(kind))

    def member(self, kind: type[Member]) -> Member:
        """The member of a kind, made when it is first asked for."""
        found = self._members.get(kind)
        if found is None:
            found = self._members[kind] = kind()
        return cast("Member", found)

    def put(self, member: object) -> None:
        """Make an object the member of its kind."""
        self._members[type(member)] = member

    def remove(self, kind: type) -> None:
        """Forget the member of a kind."""
        self._members.pop(kind, None)


class _Active:
    """The one process-wide reference."""

    def __init__(self) -> None:
        self.state = RunState()


_ACTIVE = _Active()


def current() -> RunState:
    """The state of the run that is active."""
    return _ACTIVE.state


def member_of_current(kind: type[Member]) -> Member:
    """``current().member(kind)``, for what is asked many times in a step."""
    found = _ACTIVE.state._members.get(kind)
    return _ACTIVE.state.member(kind) if found is None else cast("Member", found)


def renew() -> RunState:
    """Make a state without members the active one; it keeps the arguments."""
    _ACTIVE.state = RunState(_ACTIVE.state.args)
    return _ACTIVE.state


@contextmanager
def activated(state: RunState) -> Iterator[RunState]:
    """Make a state the active one for a block."""
    previous, _ACTIVE.state = _ACTIVE.state, state
    try:
        yield state
    finally:
        _ACTIVE.state = previous
