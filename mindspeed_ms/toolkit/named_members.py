# SPDX-License-Identifier: Apache-2.0
"""Results whose members are keys and places, too, as ``transformers.ModelOutput`` has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any


class NamedMembers:
    """Base of dataclasses whose members may be None, which then are not there."""

    __slots__ = ()

    def __getitem__(self, place: str | int | slice) -> Any:
        if not isinstance(place, str):
            return self.to_tuple()[place]
        if place not in self.keys():
            raise KeyError(place)
        return getattr(self, place)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def keys(self) -> list[str]:
        """Names of the members that there are."""
        names = [member.name for member in fields(self)]  # type: ignore[arg-type]
        return [name for name in names if getattr(self, name) is not None]

    def values(self) -> list[Any]:
        """The members that there are."""
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        """Names and members."""
        return list(zip(self.keys(), self.values(), strict=True))

    def get(self, name: str, default: Any = None) -> Any:
        """A member, or ``default`` where it is not there."""
        return self[name] if name in self.keys() else default

    def to_tuple(self) -> tuple[Any, ...]:
        """The members that there are, without their names."""
        return tuple(self.values())
