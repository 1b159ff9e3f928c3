# SPDX-License-Identifier: Apache-2.0
"""What every configuration section shares: checked fields, unknown keys, plain data.

A section is a frozen dataclass. Its annotations are the only statement of its types;
:class:`Section` checks every value against them once, when the object is built, so that the rest of
the code can rely on them.
"""

from __future__ import annotations

import ast
import functools
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from mindspeed_ms.config.coercion import (
    PlainData,
    UnfitError,
    coerce,
    no_pairs,
    suggestion,
    unknown_key,
    wrong_value,
)

SectionT = TypeVar("SectionT", bound="Section")


class Section:
    """Base of the configuration dataclasses.

    Subclasses declare ``NAME`` (the YAML section), ``ALIASES`` (other accepted spellings of a key)
    and ``LINKS`` (fields that point to another section; they are never written to YAML). They
    override :meth:`_resolve` to fill values that follow from others and :meth:`_check` for rules
    within the section.
    """

    NAME: ClassVar[str] = ""
    ALIASES: ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    LINKS: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Check every given value against its annotation, then derive and check.

        Defaults fit; a test checks them once for all.
        """
        for item in section_fields(type(self)):
            given = getattr(self, item.name)
            if given is not item.default:
                object.__setattr__(self, item.name, coerce_field(type(self), item.name, given))
        self._resolve()
        self._check()

    def _resolve(self) -> None:
        """Fill fields left at None whose value follows from other fields."""

    def _check(self) -> None:
        """Raise ValueError when values of this section contradict each other."""

    def _fill(self, name: str, value: object) -> None:
        """Give a field its derived value if it has none yet. Only for use in :meth:`_resolve`."""
        if getattr(self, name) is None:
            self._set(name, value)

    def _set(self, name: str, value: object) -> None:
        """Replace the value of a field. Only for use in :meth:`_resolve`."""
        object.__setattr__(self, name, value)

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
        given = rename_keys(cls, values)
        missing = [name for name in required_fields(cls) if name not in given]
        if missing:
            raise ValueError(
                f"{cls.NAME}.{missing[0]} is missing; it has no default, so it must be given"
            )
        return cls(**given, **(links or {}))

    def to_dict(self) -> dict[str, PlainData]:
        """Return all values, defaults included, as data that YAML can hold."""
        return {
            item.name: to_plain(getattr(self, item.name))
            for item in section_fields(type(self))
            if item.name not in self.LINKS
        }


# --- questions about a section class --------------------------------------------------------------

_Answer = TypeVar("_Answer")


def per_class(function: Callable[[type[Section]], _Answer]) -> Callable[[type[Section]], _Answer]:
    """``functools.cache``, whose type takes no classes for hashable."""
    return cast("Callable[[type[Section]], _Answer]", functools.cache(function))


@per_class
def section_fields(cls: type[Section]) -> tuple[Field[Any], ...]:
    """Return the dataclass fields of a section class."""
    return fields(cls)  # type: ignore[arg-type]


@per_class
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
    item = _fields_by_name(cls).get(name)
    if item is None:
        raise ValueError(f"{cls.NAME} has no key {name!r}{suggestion(name, field_names(cls))}")
    if item.default_factory is not MISSING:
        return item.default_factory()
    return None if item.default is MISSING else item.default


@per_class
def _fields_by_name(cls: type[Section]) -> dict[str, Field[Any]]:
    return {item.name: item for item in section_fields(cls)}


@per_class
def _hints(cls: type[Section]) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@per_class
def field_docs(cls: type[Section]) -> dict[str, str]:
    """Return field -> its docstring (the string literal that follows it in the source)."""
    docs: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if issubclass(one, Section):
            docs |= _docs_of_class(_source_of(one))
    return docs


def _source_of(cls: type[Section]) -> ast.ClassDef:
    source = Path(str(sys.modules[cls.__module__].__file__)).read_text(encoding="utf-8")
    return next(
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )


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


# --- from plain data ----------------------------------------------------------------------------


def rename_keys(cls: type[Section], values: object) -> dict[str, Any]:
    """Return ``values`` under today's names, empty ones dropped.

    Raises:
        ValueError: not a mapping, an unknown key, or a key given under two names.

    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise no_pairs(cls.NAME, values)
    renamed: dict[str, Any] = {}
    source: dict[str, str] = {}
    names = field_names(cls)
    for key, value in values.items():
        name = cls.ALIASES.get(key, key)
        if name not in names:
            raise unknown_key(cls.NAME, key, [*names, *cls.ALIASES])
        if value is None:
            continue
        if name in renamed:
            raise ValueError(
                f"{cls.NAME} gives both {source[name]!r} and {key!r}, which are one option; keep "
                f"only {name!r}"
            )
        source[name] = key
        renamed[name] = value
    return renamed


def clean_section(cls: type[Section], values: object) -> dict[str, Any]:
    """Return ``values`` under today's names, checked and converted, empty ones dropped.

    Raises:
        ValueError: not a mapping, an unknown key, a key given under two names, or a value that its
            field does not take.

    """
    renamed = rename_keys(cls, values)
    return {name: coerce_field(cls, name, value) for name, value in renamed.items()}


def coerce_field(cls: type[Section], name: str, value: object) -> Any:  # noqa: ANN401
    """Check one value against the annotation of its field; return it converted.

    Raises:
        ValueError: the value does not fit; the message names section, key and what is expected.

    """
    hint = _hints(cls)[name]
    try:
        return coerce(value, hint)
    except UnfitError as unfit:
        raise wrong_value(f"{cls.NAME}.{name}", value, hint, unfit) from None


# --- to plain data --------------------------------------------------------------------------------


def to_plain(value: Any) -> PlainData:  # noqa: ANN401
    """Return a field's value as data that YAML can hold."""
    if isinstance(value, Section):
        return value.to_dict()
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return typing.cast("PlainData", value)
