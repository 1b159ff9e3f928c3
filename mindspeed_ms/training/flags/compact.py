# SPDX-License-Identifier: Apache-2.0
r"""A short notation for the many flags that set no field.

One flag a line: ``--name|--other-spelling kind=default >attribute !value,value``. Kinds:

============  ==================================================================================
on, off       no value; ``on`` when no kind is written, ``on=true`` when it is on anyway
negative      ``--no-name`` and ``--disable-name`` switch the attribute ``name`` off
switch        ``--name`` and ``--no-name``
toggle        ``true``, ``false`` or nothing
int ...       one value of that type: ``int``, ``float``, ``str``, ``list`` (a list expression)
int+, int*    several of them: at least one, or any number
============  ==================================================================================

``!`` names the values of a refused flag that ask for what happens anyway.

Examples:
    >>> rows = compact("a group", NoEffect("of a reason"), "--one\n--no-two off >two")
    >>> [row.dest for row in rows]
    ['one', 'two']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mindspeed_ms.training.flags.row import (
    Arity,
    Field,
    Flag,
    NoEffect,
    Refused,
    in_group,
    off,
    on,
    toggle,
    value,
    values,
)
from mindspeed_ms.training.flags.value_types import number_or_list

_TYPES: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {"int": int, "float": float, "str": str, "list": number_or_list}
)
_ARITIES: Mapping[str, Arity] = MappingProxyType({"+": "some", "*": "many"})


def compact(group: str, state: NoEffect | Refused | Field, text: str) -> tuple[Flag, ...]:
    """Return the rows of a block of lines that share one state.

    Raises:
        ValueError: a line that is not in the notation.
    """
    rows = [row for line in text.strip().splitlines() for row in _rows(line, state)]
    return in_group(group, rows)


def _rows(line: str, state: NoEffect | Refused | Field) -> list[Flag]:
    names, *words = line.split()
    first, *aliases = names.split("|")
    more: dict[str, Any] = {"aliases": tuple(aliases)}
    kind, default = "on", ""
    for word in words:
        if word.startswith(">"):
            more["dest"] = word[1:]
        elif not word.startswith("!"):
            kind, _, default = word.partition("=")
        elif isinstance(state, Refused):
            state = replace(state, harmless=tuple(word[1:].split(",")))
        else:
            raise ValueError(f"only a refused flag has harmless values: {line!r}")
    bare = first.removeprefix("--")
    dest = more.pop("dest", bare.replace("-", "_"))
    if kind == "switch":
        return [on(first, state, dest=dest), off(f"--no-{bare}", dest, state, default=False)]
    if kind == "negative":
        return [off(f"--no-{bare}", dest, state, aliases=(f"--disable-{bare}",))]
    if kind in ("on", "off"):
        if default:
            more["default"] = default == "true"
        if kind == "off":
            return [off(first, dest, state, **more)]
        return [on(first, state, dest=dest, **more)]
    if kind == "toggle":
        return [toggle(first, state, dest=dest, **more)]
    return [_with_values(first, kind, default, state, dest=dest, **more)]


def _with_values(
    name: str, kind: str, default: str, state: NoEffect | Refused | Field, **more: Any
) -> Flag:
    base = kind.rstrip("+*")
    if base not in _TYPES:
        raise ValueError(f"{kind!r} is no kind of flag, in the line of {name}")
    if base != kind:
        return values(name, _TYPES[base], state, _ARITIES[kind[len(base) :]], **more)
    return value(name, _TYPES[base], state, _TYPES[base](default) if default else None, **more)
