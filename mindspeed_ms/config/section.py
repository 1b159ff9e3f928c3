"""What every configuration section shares: type checks, unknown keys, plain data.

A section is a frozen dataclass. Its annotations are the only statement of its types;
:class:`Section` checks every value against them once, when the object is built, so that the rest of
the code can rely on them.
"""

from __future__ import annotations

import ast
import difflib
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union

from mindspeed_ms.config.dtypes import DType, parse_dtype

SectionT = TypeVar("SectionT", bound="Section")

PlainData: typing.TypeAlias = "None | bool | int | float | str | list[Any] | dict[str, Any]"
"""What YAML can hold."""


class Section:
    """Base of the configuration dataclasses.

    Subclasses declare ``NAME`` (the YAML section), ``ALIASES`` (other accepted spellings of a key)
    and ``LINKS`` (fields that point to another section; they are never written to YAML). They
    override :meth:`_resolve` to fill values that follow from others and :meth:`_check` for rules
    within the section.
    """

    __slots__ = ()

    NAME: ClassVar[str] = ""
    ALIASES: ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    LINKS: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Check every value against its annotation, then derive and check."""
        for item in section_fields(type(self)):
            value = coerce_field(type(self), item.name, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
        self._resolve()
        self._check()

    def _resolve(self) -> None:
        """Fill fields left at None whose value follows from other fields."""

    def _check(self) -> None:
        """Raise ValueError when values of this section contradict each other."""

    def _fill(self, name: str, value: object) -> None:
        """Give a field its derived value if it has none yet. Only for use in :meth:`_resolve`."""
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _require_at_least(self, minimum: float, *names: str) -> None:
        """Raise ValueError for each named field that is given and smaller than ``minimum``."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(
                    f"{self.NAME}.{name} ({value}) must be at least {minimum}; "
                    f"set it to {minimum} or more"
                )

    def _require_fraction(self, *names: str) -> None:
        """Raise ValueError for each named field outside 0..1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"{self.NAME}.{name} ({value}) must lie between 0 and 1; choose a value in "
                    "that range"
                )

    @classmethod
    def from_dict(
        cls: type[SectionT], values: Mapping[str, Any], links: Mapping[str, Section] | None = None
    ) -> SectionT:
        """Build the section from plain data.

        Args:
            values: field (or alias) -> value, as read from YAML. An empty value (None) means "not
                given".
            links: the sections that the link fields point to.

        Raises:
            ValueError: an unknown key, a value of the wrong type, a missing required key or a
                broken rule.

        """
        given = clean_section(cls, values)
        missing = [name for name in required_fields(cls) if name not in given]
        if missing:
            raise ValueError(
                f"{cls.NAME}.{missing[0]} is missing; it has no default, so it must be given"
            )
        return cls(**given, **(links or {}))

    def to_dict(self) -> dict[str, PlainData]:
        """Return all values, defaults included, as data that YAML can hold."""
        return {
            item.name: _plain(getattr(self, item.name))
            for item in section_fields(type(self))
            if item.name not in self.LINKS
        }


# --- questions about a section class --------------------------------------------------------------


def section_fields(cls: type[Section]) -> tuple[Field[Any], ...]:
    """Return the dataclass fields of a section class."""
    return fields(cls)  # type: ignore[arg-type]


def field_names(cls: type[Section]) -> tuple[str, ...]:
    """Return the names a user may set, links excluded."""
    return tuple(item.name for item in section_fields(cls) if item.name not in cls.LINKS)


def required_fields(cls: type[Section]) -> tuple[str, ...]:
    """Return the names that have no default."""
    return tuple(
        item.name
        for item in section_fields(cls)
        if item.default is MISSING and item.default_factory is MISSING
    )


def field_default(cls: type[Section], name: str) -> Any:  # noqa: ANN401  (a field can be of any type)
    """Return the default of one field, None for a required one."""
    for item in section_fields(cls):
        if item.name == name:
            if item.default_factory is not MISSING:
                return item.default_factory()
            return None if item.default is MISSING else item.default
    raise ValueError(f"{cls.NAME} has no key {name!r}{suggestion(name, field_names(cls))}")


_HINTS: dict[type[Section], dict[str, Any]] = {}
_DOCS: dict[type[Section], dict[str, str]] = {}


def _hints(cls: type[Section]) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def field_docs(cls: type[Section]) -> dict[str, str]:
    """Return field -> its docstring (the string literal that follows it in the source)."""
    if cls not in _DOCS:
        source = Path(str(sys.modules[cls.__module__].__file__)).read_text(encoding="utf-8")
        _DOCS[cls] = next(
            _docs_of_class(node)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__
        )
    return _DOCS[cls]


def _docs_of_class(class_node: ast.ClassDef) -> dict[str, str]:
    docs = {}
    for field_node, text_node in zip(class_node.body, class_node.body[1:], strict=False):
        if (
            isinstance(field_node, ast.AnnAssign)
            and isinstance(field_node.target, ast.Name)
            and isinstance(text_node, ast.Expr)
            and isinstance(text_node.value, ast.Constant)
        ):
            docs[field_node.target.id] = " ".join(str(text_node.value.value).split())
    return docs


# --- messages -------------------------------------------------------------------------------------


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, empty when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_key(section: str, key: str, known: Iterable[str]) -> ValueError:
    """Return the error for a key that a section does not have."""
    known = sorted(known)
    near = suggestion(key, known) or f"; known keys: {', '.join(known[:12])}" + (
        ", ..." if len(known) > 12 else ""
    )
    return ValueError(f"unknown key {key!r} in {section}{near}")


# --- from plain data ------------------------------------------------------------------------------


def clean_section(cls: type[Section], values: object) -> dict[str, Any]:
    """Return ``values`` under today's names, checked and converted, empty ones dropped.

    Raises:
        ValueError: not a mapping, an unknown key, a key given under two names, or a value of the
            wrong type.

    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{cls.NAME} is {values!r}, but must hold key: value pairs; indent its keys below it"
        )
    cleaned: dict[str, Any] = {}
    source: dict[str, str] = {}
    names = field_names(cls)
    for key, value in values.items():
        name = cls.ALIASES.get(key, key)
        if name not in names:
            raise unknown_key(cls.NAME, str(key), [*names, *cls.ALIASES])
        if value is None:
            continue
        if name in cleaned:
            raise ValueError(
                f"{cls.NAME} gives both {source[name]!r} and {key!r}, which are one option; keep "
                f"only {name!r}"
            )
        source[name] = key
        cleaned[name] = coerce_field(cls, name, value)
    return cleaned


def coerce_field(cls: type[Section], name: str, value: object) -> Any:  # noqa: ANN401
    """Check one value against the annotation of its field; return it converted.

    Raises:
        ValueError: the value does not fit; the message names section, key and what is expected.

    """
    hint = _hints(cls)[name]
    try:
        return _coerce(value, hint)
    except _Mismatch:
        pass
    near = ""
    choices = _choices(hint)
    if choices and isinstance(value, str):
        near = suggestion(value, [c for c in choices if isinstance(c, str)])
    raise ValueError(f"{cls.NAME}.{name} is {value!r}, but must be {_describe(hint)}{near}")


class _Mismatch(Exception):  # noqa: N818  (control flow inside this module, never seen by a user)
    """A value does not fit a type."""


def _coerce(value: Any, hint: Any) -> Any:  # noqa: ANN401
    if hint == DType:
        try:
            return parse_dtype(value)
        except ValueError:
            raise _Mismatch from None
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, typing.get_args(hint))
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint)):
            return value
        raise _Mismatch
    if origin is tuple:
        return _coerce_tuple(value, typing.get_args(hint))
    if origin is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise _Mismatch
    return _coerce_scalar(value, hint)


def _coerce_union(value: Any, choices: tuple[Any, ...]) -> Any:  # noqa: ANN401
    if value is None:
        if type(None) in choices:
            return None
        raise _Mismatch
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _coerce(value, choice)
        except _Mismatch:
            continue
    raise _Mismatch


def _coerce_tuple(value: Any, item_hints: tuple[Any, ...]) -> tuple[Any, ...]:  # noqa: ANN401
    of_words = item_hints[0] is str
    if isinstance(value, str):
        value = value.split() if of_words else _parse_list(value)
    if not isinstance(value, list | tuple):
        raise _Mismatch
    if of_words:  # a blend mixes weights and paths; YAML reads the weights as numbers
        value = [str(item) if type(item) in (int, float) else item for item in value]
    if len(item_hints) == 2 and item_hints[1] is Ellipsis:
        return tuple(_coerce(item, item_hints[0]) for item in value)
    if len(item_hints) != len(value):
        raise _Mismatch
    return tuple(_coerce(item, hint) for item, hint in zip(value, item_hints, strict=True))


def _parse_list(text: str) -> list[Any] | tuple[Any, ...]:
    """Read ``"[[4,4],[4,4]]"``, ``"62,63"`` or ``"a, b"``."""
    stripped = text.strip()
    if stripped[:1] in "[(":
        try:
            parsed = ast.literal_eval(stripped)
        except (ValueError, SyntaxError):
            raise _Mismatch from None
        if isinstance(parsed, list | tuple):
            return parsed
        raise _Mismatch
    items = [item.strip() for item in stripped.split(",") if item.strip()]
    return [int(item) if item.lstrip("-").isdigit() else item for item in items]


def _coerce_scalar(value: Any, hint: Any) -> Any:  # noqa: ANN401, PLR0911  (one return per type reads best)
    if hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif hint is float:
        return _coerce_float(value)
    elif hint is str:
        if isinstance(value, str | Path):
            return str(value)
    elif isinstance(hint, type) and issubclass(hint, Section):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return hint.from_dict(value)
    else:
        raise TypeError(f"no rule to check a value against {hint!r}")
    raise _Mismatch


def _coerce_float(value: Any) -> float:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Mismatch
    try:
        number = float(value)
    except ValueError:
        raise _Mismatch from None
    if math.isnan(number):
        raise _Mismatch
    return number


def _choices(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))
    return ()


_SCALAR_TEXT = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "empty",
    DType: "float32, bfloat16 or float16",
}


def _describe(hint: Any) -> str:  # noqa: ANN401
    if hint in _SCALAR_TEXT:
        return _SCALAR_TEXT[hint]
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(hint))
    if origin in (Union, types.UnionType):
        parts = [_describe(part) for part in typing.get_args(hint) if part is not type(None)]
        return " or ".join(parts)
    if origin is dict:
        return "key: value pairs"
    if origin is tuple:
        items = typing.get_args(hint)
        if len(items) == 2 and items[1] is Ellipsis:
            return f"a list, each item {_describe(items[0])}"
        return f"a list of {len(items)} items"
    return f"a block of keys ({hint.__name__})"


# --- to plain data --------------------------------------------------------------------------------


def _plain(value: Any) -> PlainData:  # noqa: ANN401
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return typing.cast("PlainData", value)
