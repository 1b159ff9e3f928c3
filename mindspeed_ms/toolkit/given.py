# SPDX-License-Identifier: Apache-2.0
"""What callers of the high-level room hand over is looked at before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any

import numpy as np

LARGEST_ID = (1 << 31) - 1


def shown(value: object) -> str:
    """A value on one line, in a message."""
    return " ".join(f"{value!r:.100}".split())


def callables(name: str, given: Any) -> list[Callable[..., Any]]:
    """A list of functions, empty for None.

    Raises:
        TypeError: it is no list, or something in it cannot be called.
    """
    if given is None:
        return []
    if isinstance(given, list | tuple) and all(map(callable, given)):
        return list(given)
    raise TypeError(f"{name} is {shown(given)}, but must be a list of functions")


def mapping(name: str, given: Any) -> Mapping[str, Any]:
    """Values by name.

    Raises:
        TypeError: it is something else, or a name is no text.
    """
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return given
    raise TypeError(f"{name} is {shown(given)}, but must be values by name, as in a dict")


def switch(name: str, given: Any) -> bool:
    """True or False.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(given, bool | np.bool_):
        return bool(given)
    raise TypeError(f"{name} is {shown(given)}, but must be True or False")


def rows(name: str, given: Any, kinds: type | UnionType = object) -> list[Any]:
    """A list, or a tuple.

    Args:
        name: for the message.
        given: the value.
        kinds: of what is in it.

    Raises:
        TypeError: it is something else, or holds something else.
    """
    if isinstance(given, list | tuple) and all(isinstance(one, kinds) for one in given):
        return list(given)
    raise TypeError(f"{name} is {shown(given)}, but must be a list of the right kind")


def with_methods(name: str, given: Any, *methods: str) -> Any:
    """An object that has some methods, or None.

    Raises:
        TypeError: it lacks one.
    """
    if given is not None and not all(callable(getattr(given, one, None)) for one in methods):
        words = " and ".join(f"{one}()" for one in methods)
        raise TypeError(f"{name} is {shown(given)}, but must be an object with {words}")
    return given


def whole(name: str, given: Any, least: int) -> int:
    """A whole number.

    Raises:
        TypeError: it is none.
        ValueError: it is too small.
    """
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise TypeError(f"{name} is {shown(given)}, but must be a whole number")
    if given < least:
        raise ValueError(f"{name} is {given}, but must be at least {least}")
    return int(given)


def token_id(given: Any) -> int:
    """An id of a token.

    Raises:
        TypeError: it is no whole number.
        ValueError: no vocabulary has it.
    """
    number = whole("a token's id", given, 0)
    if number > LARGEST_ID:
        raise ValueError(f"a token's id is {number}, more than any vocabulary has")
    return number
