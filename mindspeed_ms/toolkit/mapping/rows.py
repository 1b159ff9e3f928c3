# SPDX-License-Identifier: Apache-2.0
"""Tables that say what each key of another configuration means here.

A table maps key -> row. A row names our field, calls a function for keys that need more than a new
name, says in one line why a key changes nothing, or refuses it. A table inside a table is a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mindspeed_ms.config.all_config import SECTION_CLASSES
from mindspeed_ms.config.build import Sections
from mindspeed_ms.config.section import coerce_field, unknown_key

Values: TypeAlias = Mapping[str, Any]
"""Our dotted field -> value."""


@dataclass(frozen=True, slots=True)
class To:
    """The key is one of our fields, ``section.field``."""

    target: str


@dataclass(frozen=True, slots=True)
class Means:
    """The key needs more than a new name."""

    translate: Callable[[Any], Values]
    """Value -> our fields; raises ValueError with what the value must be."""


ASKS_NOTHING = (False, "", 0, -1)
"""Values about which nothing is said when their key has no effect, or is refused."""


@dataclass(frozen=True, slots=True)
class Inert:
    """The key changes nothing here."""

    reason: str
    quiet: tuple[object, ...] = ()
    """Further values that ask for nothing."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The key asks for something that does not exist here."""

    reason: str
    quiet: tuple[object, ...] = ()
    """Further values that ask for nothing."""


@dataclass(frozen=True, slots=True)
class Joint:
    """The key is read together with others, by the caller of ``apply``."""


Row: TypeAlias = "To | Means | Inert | Refused | Joint | Mapping[str, Row]"
Table: TypeAlias = Mapping[str, Row]


@dataclass(slots=True)
class Mapped:
    """What a foreign configuration comes to."""

    sections: Sections = field(default_factory=dict)
    """Our sections, only what was given."""
    joint: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value of the rows that are read together."""
    inert: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> keys that change nothing."""
    lines: list[str] = field(default_factory=list)
    """What else the user should know, one line each."""

    def put(self, values: Values) -> None:
        """Set fields."""
        for target, value in values.items():
            section, _, name = target.partition(".")
            self.sections.setdefault(section, {})[name] = value

    def get(self, target: str, default: object = None) -> Any:  # noqa: ANN401
        """A field's value, if it was given."""
        section, _, name = target.partition(".")
        return self.sections.get(section, {}).get(name, default)

    def add(self, other: Mapped) -> None:
        """Take over what another part of the configuration came to."""
        for section, values in other.sections.items():
            self.sections.setdefault(section, {}).update(values)
        self.joint.update(other.joint)
        for reason, keys in other.inert.items():
            self.inert.setdefault(reason, []).extend(keys)
        self.lines += other.lines

    def notes(self) -> list[str]:
        """All lines for the user; keys without effect are joined by their reason."""
        return [
            *self.lines,
            *(f"{', '.join(keys)}: no effect, {reason}" for reason, keys in self.inert.items()),
        ]


def apply(tree: Mapping[str, Any], table: Table, section: str = "") -> Mapped:
    """Translate a tree by a table.

    Args:
        tree: key -> value or a further tree; None means "not given".
        table: what each key means.
        section: where the tree stands in the file; messages name keys with it, ``joint`` without.

    Raises:
        ValueError: an unknown key, with the nearest name; a refused one; a value of another type.
    """
    mapped = Mapped()
    _apply(mapped, tree, table, "", section)
    return mapped


def _apply(
    mapped: Mapped, tree: Mapping[str, Any], table: Table, prefix: str, section: str
) -> None:
    for key, value in tree.items():
        path = f"{prefix}{key}"
        shown = f"{section}.{path}" if section else path
        if key not in table:
            raise unknown_key(shown.rpartition(".")[0] or "the file", str(key), table)
        row = table[key]
        if value is None:
            continue
        if isinstance(row, Mapping):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{shown} is {value!r}, but must hold key: value pairs; indent its keys below"
                )
            _apply(mapped, value, row, f"{path}.", section)
        elif isinstance(row, Joint):
            mapped.joint[path] = value
        else:
            _place(mapped, shown, value, row)


def _place(mapped: Mapped, shown: str, value: object, row: To | Means | Inert | Refused) -> None:
    if isinstance(row, To):
        mapped.put({row.target: checked(shown, row.target, value)})
    elif isinstance(row, Means):
        try:
            values = row.translate(value)
        except ValueError as error:
            raise ValueError(f"{shown} is {value!r}: {error}") from None
        mapped.put({target: checked(shown, target, item) for target, item in values.items()})
    elif value not in (*ASKS_NOTHING, *row.quiet):
        if isinstance(row, Refused):
            raise ValueError(f"{shown} {value!r} is not supported: {row.reason}")
        mapped.inert.setdefault(row.reason, []).append(shown)


def checked(path: str, target: str, value: object) -> object:
    """Check a value against our field's type; messages speak of the key the user wrote.

    Raises:
        ValueError: the value does not fit.
    """
    section, _, name = target.partition(".")
    if value is None:
        return None
    try:
        return coerce_field(SECTION_CLASSES[section], name, value)
    except ValueError as error:
        text = str(error).replace(f"{section}.{name} is", f"{path} is", 1)
        raise ValueError(text) from None


def inert(keys: Iterable[str], reason: str, *quiet: object) -> dict[str, Row]:
    """Rows of several keys that change nothing, for one reason."""
    return {key: Inert(reason, quiet) for key in keys}
