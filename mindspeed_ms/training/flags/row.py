"""One row of the flag table: how a flag is written, what it takes, and what becomes of it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from mindspeed_ms.config.all_config import SECTION_CLASSES
from mindspeed_ms.config.dtypes import parse_dtype
from mindspeed_ms.config.section import field_docs, field_names


@dataclass(frozen=True, slots=True)
class Field:
    """The flag sets a field of the configuration.

    Attributes:
        path: ``section.field``, or ``section.block.field``.
        also: further fields whose value depends on the flag.
        without_effect: reason why the stored value changes nothing yet; None when it does.

    """

    path: str
    also: tuple[str, ...] = ()
    without_effect: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All fields the flag has a say in."""
        return (self.path, *self.also)


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

    ``names[0]`` is the spelling shown in help; ``dest`` the attribute of the Namespace; ``refuses``
    holds values, known to Megatron or MindSpeed, that do not exist here.
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

    @property
    def summary(self) -> str:
        """One line for help.

        The row's own text, or the docstring of its field, or the reason of its state.
        """
        if self.help:
            return self.help
        match self.state:
            case Field():
                start = "Switch off. " if self.arity == "off" else ""
                return start + field_doc(self.state.path)
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
            return None if str(given) in self.state.harmless else self.state
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


# --- value types ----------------------------------------------------------------------------------


def parse_bool(text: str) -> bool:
    """Read ``true`` or ``false``.

    Raises:
        ValueError: any other word.

    """
    word = text.strip().lower()
    if word in ("true", "yes", "1", "on"):
        return True
    if word in ("false", "no", "0", "off"):
        return False
    raise ValueError(text)


def bool_or_word(text: str) -> bool | str:
    """Read ``true``, ``false`` or another word as it is."""
    try:
        return parse_bool(text)
    except ValueError:
        return text


def dtype(text: str) -> Any:
    """Read the name of a data type."""
    return parse_dtype(text)


def unescaped(text: str) -> str:
    """Return a text without the backslashes and quotes that protected it from a shell."""
    return text.replace("\\", "").strip("\"'")


def number_or_list(text: str) -> int | list[int] | str:
    """Read ``3``, ``[0,1,1]`` or an expression such as ``([0]*3+[1]*58)``.

    A closing bracket at the end that was lost between shells is added.

    Raises:
        ValueError: neither a number nor a list expression.

    """
    stripped = text.strip()
    if stripped.lstrip("-").isdigit():
        return int(stripped)
    return eval_list(stripped + ")" * max(0, stripped.count("(") - stripped.count(")")))


def eval_list(text: str) -> list[int]:
    """Evaluate a list expression of integers, ``+`` and ``*`` without running code.

    Raises:
        ValueError: anything else.

    """
    wrong = ValueError(f"{text!r} is no list expression")
    try:
        result = _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError) as error:
        raise wrong from error
    if not isinstance(result, list):
        raise wrong
    return result


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluate(item) for item in items]
        case ast.Constant(value=int() as number):
            return number
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _evaluate(left) + _evaluate(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _evaluate(left) * _evaluate(right)
    raise TypeError(type(node).__name__)
