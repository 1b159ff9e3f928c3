# SPDX-License-Identifier: Apache-2.0
"""The flag table as a document."""

from __future__ import annotations

from collections import Counter

from mindspeed_ms.training.flags import ROWS, EntryPoint, Field, Flag, NoEffect, Refused

_HEAD = """# Flags

Generated from the flag table by `python tools/flags_document.py`; a test keeps it current.

Every flag of Megatron-LM (2.5 to its head of 2026) and of MindSpeed is known, with `-` or `_` in
its name, and has one of three states:

- **implemented**: it sets the field named;
- **no effect**: it is accepted, and the reason is printed once at start;
- **refused**: the run does not start; the line says what to use instead. With `--dry-run` the rest
  of the command line is planned all the same. Values said to pass ask for what happens anyway.

Abbreviations and unknown flags are refused; a misspelt flag gets the nearest one as an answer.
"""


def flags_document() -> str:
    """Return the text of ``docs/flags.md``."""
    parts = [_HEAD, _summary()]
    groups: dict[str, list[Flag]] = {}
    for row in ROWS:
        groups.setdefault(row.group, []).append(row)
    for title, rows in groups.items():
        parts.append(
            f"\n## {title[0].upper()}{title[1:]}\n\n| flag | default | state |\n|---|---|---|\n"
        )
        parts.extend(_line(row) for row in rows)
    return "".join(parts)


def _summary() -> str:
    counts = Counter(_kind(row) for row in ROWS)
    listed = ", ".join(f"{counts[name]} {name}" for name in ("implemented", "no effect", "refused"))
    return f"\n{len(ROWS)} rows: {listed}.\n"


def _kind(row: Flag) -> str:
    """Return the state of a flag in a word."""
    match row.state:
        case Field(without_effect=str()) | NoEffect():
            return "no effect"
        case Field(unavailable=str()) | Refused():
            return "refused"
    return "implemented"


def _line(row: Flag) -> str:
    default = "" if row.default is None or row.arity in ("on", "off") else f"`{row.default}`"
    names = " ".join(f"`{name}`" for name in row.names if "_" not in name or name == row.names[0])
    return f"| {names} | {default} | {_state(row)} |\n".replace("||", "\\|\\|")


def _state(row: Flag) -> str:
    match row.state:
        case Field(path=path, without_effect=str() as reason):
            text = f"no effect, kept in `{path}`: {reason}"
        case Field(path=path, unavailable=str() as reason):
            text = f"kept in `{path}`; a run that asks for more than usual is refused: {reason}"
        case Field(path=path):
            text = f"implemented: `{path}`"
        case NoEffect(reason=reason):
            text = f"no effect: {reason}"
        case Refused(harmless=harmless) as refused:
            passing = f" (passes: {', '.join(harmless)})" if harmless else ""
            text = f"refused{passing}: {refused.advice}"
        case EntryPoint(use=use):
            text = f"implemented: {use}"
    bad = ", ".join(f"`{value}`" for value, _ in row.refuses)
    return f"{text}; refused values: {bad}" if bad else text
