# SPDX-License-Identifier: Apache-2.0
"""The parser made from the flag table: one line and status 2 for a mistake, help in three sizes."""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from mindspeed_ms.backend.plain_parser import PlainParser
from mindspeed_ms.backend.spokesman import is_first_of_host
from mindspeed_ms.training.entry import USER_ERROR_STATUS, say
from mindspeed_ms.training.flags import BY_NAME, ROWS, EntryPoint, Field, Flag, Refused
from mindspeed_ms.training.flags.row import Arity
from mindspeed_ms.training.flags.synonyms import unknown_flag_message
from mindspeed_ms.training.flags.value_types import RULES, decimal, whole

_NARGS: Mapping[Arity, Any] = {
    "one": None,
    "many": "*",
    "some": "+",
    "three": 3,
    "on": 0,
    "off": 0,
    "toggle": "?",
}

ExtraArgsProvider = Callable[[argparse.ArgumentParser], argparse.ArgumentParser | None]
"""Adds the user's own flags to the parser."""


LONGEST_CHOICES = 80
"""Characters of a flag's choices in help; the rest is in docs/flags.md."""


def _metavar(row: Flag) -> str | None:
    """Return what stands for the value in help."""
    if row.arity in ("on", "off"):
        return None
    if row.choices:
        refused = {bad for bad, _ in row.refuses}
        shown = ",".join(str(one) for one in row.choices if one not in refused)
        if len(shown) > LONGEST_CHOICES:
            shown = shown[: shown.rindex(",", 0, LONGEST_CHOICES)] + ",..."
        return "{" + shown + "}"
    if row.arity == "toggle":
        return "BOOL"
    names: dict[Any, str] = {int: "N", float: "X"}
    return names.get(row.type, "VALUE")


def _named(name: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function under the name that messages call its values by."""

    def named(text: str) -> Any:
        return read(text)

    named.__name__ = name
    return named


_NUMBERS: Mapping[Any, Callable[[str], Any]] = {
    int: _named("int", whole),
    float: _named("float", decimal),
}


def _reader(row: Flag) -> Callable[[str], Any]:
    """Return what reads a word of a flag: numbers are plain and finite, texts are not empty."""
    if row.type in _NUMBERS:
        return _NUMBERS[row.type]
    if row.type is str and isinstance(row.state, Field | EntryPoint):
        return _filled
    return row.type


def _filled(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a value or leave the flag out")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise argparse.ArgumentTypeError("is not valid UTF-8 text; correct it")
    return text


class _FlagAction(argparse.Action):
    """Stores the value of one row and notes that the flag was given."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, row: Flag) -> None:
        self.row = row
        super().__init__(
            option_strings,
            dest,
            nargs=_NARGS[row.arity],
            const=True if row.arity == "toggle" else None,
            default=row.default,
            type=_reader(row),
            choices=row.choices,
            help=row.names[0],  # the text is made by the formatter, only when somebody asks
            metavar=_metavar(row),
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del option_string
        name = self.row.names[0]
        if self.row.arity in ("on", "off"):
            values = self.row.arity == "on"
        refusal = self.row.refusal(values)
        if refusal is not None:
            takes_none = isinstance(self.row.state, Refused) and not self.row.state.harmless
            shown = name if takes_none else f"{name} {_as_typed(values)}"
            line = f"{shown} is refused: {refusal.advice}"
            _note(namespace, "given_flags", name)
            _note(namespace, "refusals", line)
            return
        if values == [] and isinstance(self.row.state, Field):
            parser.error(f"argument {name}: is empty; give a value or leave the flag out")
        if isinstance(self.row.state, EntryPoint) and self.row.arity == "some":
            values = [*(getattr(namespace, self.dest) or ()), *values]
        else:
            self._note_repetition(namespace, values)
        _note(namespace, "given_flags", name)
        setattr(namespace, self.dest, values)

    def _note_repetition(self, namespace: Namespace, values: Any) -> None:
        given = {BY_NAME[name].dest for name in getattr(namespace, "given_flags", ())}
        before = getattr(namespace, self.dest, None)
        if self.dest in given and before != values:
            line = (
                f"{self.row.names[0]} is given twice, as {_as_typed(before)} and "
                f"{_as_typed(values)}: the last one counts"
            )
            _note(namespace, "repeated", line)


def _note(namespace: Namespace, where: str, line: str) -> None:
    setattr(namespace, where, [*getattr(namespace, where, ()), line])


def _as_typed(values: Any) -> str:
    return " ".join(map(str, values)) if isinstance(values, list) else str(values)


class CommandLineParser(PlainParser):
    """Ends with one line and status 2 when the command line is wrong."""

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr, on one rank of a host, and leave."""
        if "'$" in message:
            message += " (a shell variable that was not expanded?)"
        read = re.search(r": invalid (\w+) value: ", message)
        if read and read[1] in RULES:
            message += f"; give {RULES[read[1]]}"
        say(message, f"{self.prog}: ")
        self.exit(USER_ERROR_STATUS)

    def unknown(self, word: str, words: Sequence[str]) -> NoReturn:
        """End because a word among others is no flag."""
        own = [
            name
            for name, action in self._option_string_actions.items()
            if not isinstance(action, _FlagAction)
        ]
        before = dict(zip(words[1:], words, strict=False)).get(word, "")
        if (
            not word.startswith("-")
            and before in BY_NAME
            and BY_NAME[before].arity in ("on", "off")
        ):
            self.error(f"unexpected word {word[:100]!r}; {before} takes no value")
        self.error(unknown_flag_message(word, ROWS, own))

    def user_defaults(self) -> dict[str, Any]:
        """Return attribute -> default of the flags that are not from the table."""
        own = [
            action
            for action in self._actions
            if not isinstance(action, _FlagAction | _HelpAction | argparse._HelpAction)
        ]
        return {action.dest: action.default for action in own}

    def yield_to_user(self) -> None:
        """Let the user's default win where a user's flag sets the same attribute as one of ours."""
        users = self.user_defaults()
        for action in self._actions:
            if isinstance(action, _FlagAction) and action.dest in users:
                action.default = argparse.SUPPRESS


# --- help -----------------------------------------------------------------------------------------


class _HelpAction(argparse.Action):
    """``--help``: the flags people use; ``--help GROUP`` or ``--help FLAG``; ``--help-all``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if not is_first_of_host():
            parser.exit(0)
        del namespace
        is_all = option_string is not None and option_string.replace("_", "-") == "--help-all"
        titles = list(dict.fromkeys(row.group.partition(":")[0] for row in ROWS))
        if values:
            name = " ".join(values)
            shown = _asked(name, titles)
            if not shown:
                parser.error(
                    f"--help {name}: no group or flag has this name; the groups are "
                    f"{', '.join(titles)}"
                )
        elif is_all:
            shown = {row.names[0] for row in ROWS}
        else:
            shown = {row.names[0] for row in ROWS if row.common}
        text = _formatted(parser, shown, keeps_users=not values, is_short=not values and not is_all)
        if not values and not is_all:
            text += (
                f"\n{len(shown)} of {len(ROWS)} flags are shown. --help GROUP shows those of a "
                "group, --help FLAG one\nflag, --help-all all. Groups: " + _wrapped(titles) + "\n"
            )
        sys.stdout.write(text)
        parser.exit(0)


def _wrapped(titles: Iterable[str], width: int = 96) -> str:
    lines = [""]
    for title in titles:
        if len(lines[-1]) + len(title) > width:
            lines.append("")
        lines[-1] += f"{title}, "
    return "\n  ".join(["", *(line.rstrip() for line in lines)]).rstrip(",") + "."


def _asked(name: str, titles: Sequence[str]) -> set[str]:
    """Return the flags of a group, or one flag, by a name or a part of it."""
    wanted = name.strip().lower()
    row = BY_NAME.get("--" + wanted.lstrip("-"))
    if row is not None:
        return {row.names[0]}
    found = [title for title in titles if title.lower() == wanted] or [
        title for title in titles if wanted and wanted in title.lower()
    ]
    found = found or difflib.get_close_matches(wanted, titles, n=1)
    return {row.names[0] for row in ROWS if row.group.partition(":")[0] in found}


def _formatted(
    parser: argparse.ArgumentParser, shown: set[str], keeps_users: bool, is_short: bool
) -> str:
    """Return the help of these flags, and of the user's own; the short one has a sentence each."""
    formatter = _ShortHelpFormatter(parser.prog) if is_short else _HelpFormatter(parser.prog)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    formatter.add_text(parser.description)
    for group in parser._action_groups:
        actions = [
            action
            for action in group._group_actions
            if (action.row.names[0] in shown if isinstance(action, _FlagAction) else keeps_users)
        ]
        if actions:
            formatter.start_section(group.title)
            formatter.add_arguments(actions)
            formatter.end_section()
    return formatter.format_help()


class _HelpFormatter(argparse.HelpFormatter):
    """Shows one spelling per flag; the others differ only by ``_`` for ``-``."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not isinstance(action, _FlagAction):
            return action.help
        text = self._text(action.row)
        if action.row.arity == "one" and action.default is not None:
            whose = "" if isinstance(action.row.state, EntryPoint) else "Megatron's "
            text += f" ({whose}default: {action.default})"
        return text.replace("%", "%%")

    def _text(self, row: Flag) -> str:
        return row.summary

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not isinstance(action, _FlagAction):
            return super()._format_action_invocation(action)
        name = action.option_strings[0]
        if action.nargs == 0:
            return name
        return f"{name} {self._format_args(action, action.dest.upper())}"


class _ShortHelpFormatter(_HelpFormatter):
    """Shows one sentence per flag."""

    def _text(self, row: Flag) -> str:
        return row.summary.partition(". ")[0].removesuffix(".")


def build_parser(extra_args_provider: ExtraArgsProvider | None = None) -> argparse.ArgumentParser:
    """Return the parser for every row of the flag table and the user's own flags.

    A user's flag replaces one of the table that is spelled the same.
    """
    parser: argparse.ArgumentParser = CommandLineParser(
        usage="%(prog)s [flags]",
        description="Train a GPT model. Flags are Megatron's; - and _ are the same in their names.",
        allow_abbrev=False,
        conflict_handler="resolve",
        formatter_class=_HelpFormatter,
        add_help=False,
    )
    parser.add_argument(
        "-h",
        "--help",
        nargs="*",
        action=_HelpAction,
        default=argparse.SUPPRESS,
        metavar="GROUP",
        help="Show the flags people use, those of a group, or one flag.",
    )
    parser.add_argument(
        "--help-all",
        "--help_all",
        nargs=0,
        action=_HelpAction,
        default=argparse.SUPPRESS,
        help="Show every flag.",
    )
    groups: dict[str, Any] = {}
    for row in ROWS:
        group = groups.get(row.group)
        if group is None:
            group = groups[row.group] = parser.add_argument_group(row.group)
        group.add_argument(*row.names, dest=row.dest, action=_FlagAction, row=row)
    if extra_args_provider is not None:
        parser = extra_args_provider(parser) or parser
    if isinstance(parser, CommandLineParser):
        parser.yield_to_user()
    return parser


@functools.cache
def table_parser() -> argparse.ArgumentParser:
    """Return the parser of the flag table alone, made once: parsing does not change it."""
    return build_parser()


def without_brackets(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with bracketed lists taken apart.

    Lists of Megatron's YAML arguments reach a flag that takes several values as one word
    ``[a b]``, as words ``[a``, ``b]``, or, if they are numbers, as one word ``1 2``.

    >>> without_brackets(["--recompute-modules", "[mlp layernorm]", "--bf16"])
    ['--recompute-modules', 'mlp', 'layernorm', '--bf16']
    """
    result: list[str] = []
    takes_several = is_number = is_open = False
    for word in words:
        if word.startswith("--"):
            row = BY_NAME.get(word)
            takes_several = row is not None and row.arity in ("some", "many", "three")
            is_number, is_open = row is not None and row.type in (int, float), False
        elif takes_several and (is_open or word.startswith("[")):
            is_open = not word.endswith("]")
            result.extend(word.strip("[]").replace(",", " ").split())
            continue
        elif takes_several and is_number:
            result.extend(word.split())
            continue
        result.append(word)
    return result
