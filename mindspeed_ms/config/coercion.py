# SPDX-License-Identifier: Apache-2.0
"""Values of one annotation: checked and converted from what YAML or a program gives.

``Literal``, ``Annotated`` kinds (see :mod:`mindspeed_ms.config.kinds`), unions, tuples, mappings,
blocks of keys and plain types are understood; anything else is a mistake of ours.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from mindspeed_ms.config.dtypes import DType, parse_dtype
from mindspeed_ms.config.kinds import Form, MayBeEmpty, Range

PlainData: typing.TypeAlias = "None | bool | int | float | str | list[Any] | dict[str, Any]"
"""What YAML can hold."""

_LARGEST_INT = 2**63 - 1
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12


def shown(value: object) -> str:
    """Return a value for a message: in Python's notation, shortened, on one line."""
    return _SHORT.repr(value)


class UnfitError(ValueError):
    """A value does not fit an annotation.

    Attributes:
        problem: what is wrong with a value of the right type; None for a wrong type.

    """

    def __init__(self, problem: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem


# --- messages -------------------------------------------------------------------------------------


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, empty when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_key(section: str, key: object, known: Iterable[str]) -> ValueError:
    """Return the error for a key that a section does not have."""
    known = sorted(known)
    near = suggestion(str(key)[:100], known) or f"; known keys: {', '.join(known[:12])}" + (
        ", ..." if len(known) > 12 else ""
    )
    return ValueError(f"unknown key {shown(key)} in {section}{near}")


def no_pairs(name: object, value: object) -> ValueError:
    """Return the error for a section that is no block of keys."""
    return ValueError(
        f"{name} is {shown(value)}, but must hold key: value pairs; indent its keys below it"
    )


def wrong_value(name: str, value: object, hint: Any, unfit: UnfitError) -> ValueError:  # noqa: ANN401
    """Return the error for a value that does not fit the annotation of its field."""
    if unfit.problem is not None:
        return ValueError(f"{name} ({shown(value)}) {unfit.problem}")
    near = ""
    choices = [choice for choice in _choices(hint) if isinstance(choice, str)]
    if choices and isinstance(value, str):
        near = suggestion(value[:100], choices)
    return ValueError(f"{name} is {shown(value)}, but must be {describe(hint)}{near}")


# --- values ---------------------------------------------------------------------------------------


def coerce(value: Any, hint: Any) -> Any:  # noqa: ANN401
    """Return a value as its annotation wants it.

    Raises:
        UnfitError: it does not fit.

    """
    if hint == DType:
        try:
            return parse_dtype(value)
        except ValueError:
            raise UnfitError from None
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return _coerce_annotated(value, hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, typing.get_args(hint))
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            return value
        raise UnfitError
    if origin is tuple:
        return _filled(_coerce_tuple(value, typing.get_args(hint)))
    if origin is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise UnfitError
    converted = _coerce_plain(value, hint)
    return _filled(converted) if hint is str else converted


def _coerce_annotated(value: Any, hint: Any) -> Any:  # noqa: ANN401
    base, *marks = typing.get_args(hint)
    is_empty = isinstance(value, str | list | tuple) and not value
    if is_empty and any(isinstance(mark, MayBeEmpty) for mark in marks):
        return "" if base is str else ()
    converted = coerce(value, base)
    for mark in marks:
        problem = mark.problem(converted) if isinstance(mark, Range | Form) else None
        if problem:
            raise UnfitError(problem)
    return converted


def _coerce_union(value: Any, choices: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """Take the first choice that fits; what is wrong with a value of a right type is told."""
    if value is None:
        if type(None) in choices:
            return None
        raise UnfitError
    told = UnfitError()
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return coerce(value, choice)
        except UnfitError as unfit:
            told = told if told.problem else unfit
    raise told


def _filled(value: Any) -> Any:  # noqa: ANN401
    """Refuse an empty text or list, and text that no file can hold."""
    if len(value) == 0:
        raise UnfitError("is empty; give a value or leave it out")
    if isinstance(value, str):
        if "\0" in value:
            raise UnfitError("holds a NUL character; remove it")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UnfitError("is not valid Unicode; write it in UTF-8")
    return value


def _coerce_tuple(value: Any, item_hints: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ANN401
    of_words = item_hints[0] is str
    if isinstance(value, str):
        value = value.split() if of_words else _parse_list(value)
    if not isinstance(value, list | tuple):
        raise UnfitError
    if of_words:  # a blend mixes weights and paths; YAML reads the weights as numbers
        value = [str(item) if type(item) in (int, float) else item for item in value]
    if len(item_hints) == 2 and item_hints[1] is Ellipsis:
        return tuple(coerce(item, item_hints[0]) for item in value)
    if len(item_hints) != len(value):
        raise UnfitError
    return tuple(coerce(item, hint) for item, hint in zip(value, item_hints, strict=True))


def _parse_list(text: str) -> list[Any] | tuple[Any, ...]:
    """Read ``"[[4,4],[4,4]]"``, ``"62,63"`` or ``"a, b"``."""
    stripped = text.strip()
    if stripped[:1] in ("[", "("):
        try:
            parsed = ast.literal_eval(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UnfitError from None
        if isinstance(parsed, list | tuple):
            return parsed
        raise UnfitError
    items = [item.strip() for item in stripped.split(",") if item.strip()]
    return [int(item) if re.fullmatch(r"-?[0-9]{1,18}", item) else item for item in items]


def _coerce_plain(value: Any, hint: Any) -> Any:  # noqa: ANN401
    if hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        return _coerce_int(value)
    elif hint is float:
        return _coerce_float(value)
    elif hint is str:
        if isinstance(value, str | Path):
            return str(value)
    elif hasattr(hint, "from_dict"):  # a block of keys
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return hint.from_dict(value)
    else:
        raise TypeError(f"no rule to check a value against {hint!r}")
    raise UnfitError


def _coerce_int(value: Any) -> int:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnfitError
    if isinstance(value, float):
        if not value.is_integer():
            raise UnfitError
        value = int(value)
    if abs(value) > _LARGEST_INT:
        raise UnfitError("has more than 64 bits; give a smaller number")
    return value


def _coerce_float(value: Any) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnfitError
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise UnfitError
    try:
        number = float(value)
    except OverflowError:
        raise UnfitError from None
    if not math.isfinite(number):
        raise UnfitError
    return number


def _choices(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))
    return ()


_PLAIN_TEXT = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "empty",
    DType: "float32, bfloat16 or float16",
}


def describe(hint: Any) -> str:  # noqa: ANN401
    """Return what an annotation takes, in words."""
    if hint in _PLAIN_TEXT:
        return _PLAIN_TEXT[hint]
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return describe(items[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, items))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(part) for part in items if part is not type(None))
    if origin is dict:
        return "key: value pairs"
    if origin is tuple:
        if len(items) == 2 and items[1] is Ellipsis:
            return f"a list, each item {describe(items[0])}"
        return f"a list of {len(items)} items"
    return f"a block of keys ({hint.__name__})"
