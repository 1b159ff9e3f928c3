# SPDX-License-Identifier: Apache-2.0
"""One row of the flag table: how a flag is written, what it takes, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from mindspeed_ms.config.all_config import SECTION_CLASSES
from mindspeed_ms.config.section import field_docs, field_names
from mindspeed_ms.config.support import UNAVAILABLE, WITHOUT_EFFECT
from mindspeed_ms.training.flags.value_types import parse_bool

SAME: Any = type("Same", (), {"__repr__": lambda _: "SAME"})()
"""The field holds what the flag says."""

UNSET: Any = type("Unset", (), {"__repr__": lambda _: "UNSET"})()
"""Nothing is said about a field."""

ReadField: TypeAlias = Callable[[str], Any]
"""Path -> value of that field."""


@dataclass(frozen=True, slots=True)
class Field:
    """The flag sets a field of the configuration.

    Among several flags of one field those on the command line come first, then those that differ
    from their default, then the order of the table; ``training/flag_rules.py`` has the fields that
    several flags decide together.

    Attributes:
        path: ``section.field``, or ``section.block.field``.
        means: what the field holds when the flag is given: ``SAME``, a mapping or a function from
            the flag's value, or a constant. A value of None, and a switch that is off and stands
            for a constant, say nothing.
        back: from the field's value, and a reader of other fields, to the flag's; needed when
            ``means`` is a function.
        item: the flag states this item of the field's list only.
        sets: further fields -> function from the flag's value, which may be None, to theirs; UNSET
            or None for nothing.
        also: further fields whose rule reads the flag.
        by_rule: only the field's rule reads the flag; by itself it says nothing.
        clears: attributes of other flags whose values in a file the flag replaces.
        beside: attribute of another flag, whose value functions of this one's take as well.
        yields: another flag of the same field may contradict this one, and then wins.

    """

    path: str
    means: Any = SAME
    back: Callable[[Any, ReadField], Any] | None = None
    item: int | None = None
    sets: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    by_rule: bool = False
    clears: tuple[str, ...] = ()
    beside: str | None = None
    yields: bool = False

    @property
    def without_effect(self) -> str | None:
        """Reason why the stored value changes nothing; None when it does."""
        return WITHOUT_EFFECT.get(self.path)

    @property
    def unavailable(self) -> str | None:
        """Reason why a run that asks for it is refused at start; None when it is not."""
        return UNAVAILABLE.get(self.path)

    @property
    def paths(self) -> tuple[str, ...]:
        """All fields the flag has a say in."""
        return (self.path, *self.sets, *self.also)

    def stated(self, value: Any, *besides: Any) -> Any:
        """Return what the field holds when the flag has this value, UNSET for nothing.

        Args:
            value: the flag's.
            *besides: that of the flag ``beside``, if there is one.

        """
        if value is None or self.by_rule:
            return UNSET
        if self.means is SAME:
            return value
        if isinstance(self.means, Mapping):
            return self.means.get(value, UNSET)
        if callable(self.means):
            return self.means(value, *besides)
        return self.means if value else UNSET

    def said(self, path: str, value: Any, values: Mapping[str, Any]) -> Any:
        """Return what one of the flag's fields holds, UNSET or None for nothing.

        Args:
            path: the field.
            value: the flag's.
            values: those of all flags, by attribute.

        """
        besides = () if self.beside is None else (values.get(self.beside),)
        return self.sets.get(path, self.stated)(value, *besides)

    def read_back(self, read: ReadField) -> Any:
        """Return the flag's value that the fields amount to, UNSET when they do not tell."""
        own = read(self.path)
        if self.back is not None:
            return self.back(own, read)
        if self.by_rule or callable(self.means):
            return UNSET
        if self.item is not None:
            return own[self.item]
        if self.means is SAME:
            return list(own) if isinstance(own, tuple) else own
        if isinstance(self.means, Mapping):
            return next((flag for flag, field in self.means.items() if field == own), UNSET)
        others = ((read(path), says(True)) for path, says in self.sets.items())
        return own == self.means and all(held == said for held, said in others)


@dataclass(frozen=True, slots=True)
class NoEffect:
    """The flag is accepted and changes nothing; the reason is reported once at start."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The flag asks for something that does not exist here.

    Attributes:
        reason: why.
        instead: what to use.
        harmless: values, as text, that ask for what happens anyway and therefore pass.

    """

    reason: str
    instead: str
    harmless: tuple[str, ...] = ()

    @property
    def advice(self) -> str:
        """Reason and way out."""
        return f"{self.reason}; {self.instead}"


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """The flag is consumed while arguments are parsed; no field holds it.

    Attributes:
        use: what for.

    """

    use: str


State: TypeAlias = Field | NoEffect | Refused | EntryPoint
Arity: TypeAlias = Literal["one", "many", "some", "three", "on", "off", "toggle"]
"""one value; many (0 or more); some (1 or more); three; on and off take none; toggle takes true,
false or nothing.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """A row.

    Attributes:
        names: its spellings; the first is shown in help.
        dest: attribute of the Namespace.
        refuses: values, known to Megatron or MindSpeed, that do not exist here.
        attributes: further attributes that always hold the same value.
        typical: what a plan takes when a flag that Megatron requires is not given; None: it is not
            required.
        excludes: flags that it does not go together with.
        small: its value with ``--scale-down``; ``SAME``: it stays, or a rule decides.
        common: ``--help`` shows it.

    """

    names: tuple[str, ...]
    dest: str
    arity: Arity
    state: State
    type: Callable[[str], Any] = str
    default: Any = None
    choices: tuple[Any, ...] | None = None
    refuses: tuple[tuple[str, Refused], ...] = ()
    group: str = ""
    help: str = ""
    attributes: tuple[str, ...] = ()
    typical: Any = None
    excludes: tuple[str, ...] = ()
    small: Any = SAME
    common: bool = False

    @property
    def summary(self) -> str:
        """One line for help.

        The row's own text, or the docstring of its field, or the reason of its state.
        """
        if self.help:
            return self.help
        match self.state:
            case Field(without_effect=str() as reason):
                return f"Accepted without effect: {reason}."
            case Field(unavailable=reason):
                start = "Switch off: " if self.arity == "off" else ""
                end = f" Not available: {reason}." if reason else ""
                return start + field_doc(self.state.path) + end
            case NoEffect():
                return f"Accepted without effect: {self.state.reason}."
            case Refused():
                passing = f" ({', '.join(self.state.harmless)} passes)" * bool(self.state.harmless)
                return f"Refused{passing}: {self.state.advice}."
            case EntryPoint():
                return self.state.use
        raise AssertionError(f"{self.names[0]} has no state")

    def refusal(self, given: Any) -> Refused | None:
        """Return why a given value is refused, None when it passes."""
        if isinstance(self.state, Refused):
            text = " ".join(map(str, given)) if isinstance(given, list) else str(given)
            return None if text in self.state.harmless else self.state
        items = given if isinstance(given, list) else [given]
        return next((why for bad, why in self.refuses if bad in items), None)


def field_doc(path: str) -> str:
    """Return the docstring of a field.

    Raises:
        ValueError: there is no such field.

    """
    section, _, key = path.partition(".")
    cls = SECTION_CLASSES[section]
    head, _, rest = key.partition(".")
    if head not in field_names(cls):
        raise ValueError(f"the flag table names {path}, which does not exist; correct the row")
    return field_docs(cls)[head] if not rest else f"{field_docs(cls)[head]} ({rest})"


def given_means(constant: Any) -> Callable[[Any], Any]:
    """Return a function for ``Field.sets``: a constant when the flag has a value."""
    return lambda given: UNSET if given is None else constant


def or_never(path: str) -> Field:
    """A field that counts steps or minutes, and whose flag takes 0 as never, as Megatron's does."""
    return Field(path, means=lambda count: count or UNSET, back=lambda count, _: count)


def asked_means(constant: Any) -> Callable[[Any], Any]:
    """Return a function for ``Field.sets``: a constant when the flag asks for something."""
    return lambda given: constant if given else UNSET


def value(
    name: str, kind: Callable[[str], Any], state: State, default: Any = None, **more: Any
) -> Flag:
    """Return the row of a flag that takes one value."""
    return _flag(name, "one", state, type=kind, default=default, **more)


def values(
    name: str, kind: Callable[[str], Any], state: State, arity: Arity = "many", **more: Any
) -> Flag:
    """Return the row of a flag that takes several values."""
    return _flag(name, arity, state, type=kind, **more)


def on(name: str, state: State, **more: Any) -> Flag:
    """Return the row of a flag that switches something on."""
    more.setdefault("default", False)
    return _flag(name, "on", state, **more)


def off(name: str, dest: str, state: State, **more: Any) -> Flag:
    """Return the row of a flag that switches something off that is on by default."""
    more.setdefault("default", True)
    return _flag(name, "off", state, dest=dest, **more)


def toggle(name: str, state: State, default: bool | None = None, **more: Any) -> Flag:
    """Return the row of a boolean of the guide: ``--name``, ``--name True`` or ``--name False``."""
    return _flag(name, "toggle", state, type=parse_bool, default=default, **more)


def _flag(name: str, arity: Arity, state: State, **more: Any) -> Flag:
    spellings = [name, *more.pop("aliases", ())]
    names = tuple(dict.fromkeys(form for one in spellings for form in _spellings(one)))
    dest = more.pop("dest", None) or name.lstrip("-").replace("-", "_")
    return Flag(names=names, dest=dest, arity=arity, state=state, **more)


def _spellings(name: str) -> tuple[str, str]:
    """Return a flag as given and with underscores, as the guide writes names."""
    return name, "--" + name[2:].replace("-", "_")


def in_group(title: str, rows: Iterable[Flag]) -> tuple[Flag, ...]:
    """Return the rows with their help group set."""
    return tuple(replace(row, group=title) for row in rows)
