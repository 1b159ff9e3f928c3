"""The flag table as a document."""

from __future__ import annotations

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
    kinds: dict[str, tuple[type, ...]] = {
        "implemented": (Field, EntryPoint),
        "no effect": (NoEffect,),
        "refused": (Refused,),
    }
    counts = {
        name: sum(isinstance(row.state, kind) for row in ROWS) for name, kind in kinds.items()
    }
    listed = ", ".join(f"{count} {name}" for name, count in counts.items())
    return f"\n{len(ROWS)} rows: {listed}.\n"


def _line(row: Flag) -> str:
    default = "" if row.default is None or row.arity in ("on", "off") else f"`{row.default}`"
    names = " ".join(f"`{name}`" for name in row.names if "_" not in name or name == row.names[0])
    return f"| {names} | {default} | {_state(row)} |\n".replace("||", "\\|\\|")


def _state(row: Flag) -> str:
    match row.state:
        case Field(path=path, without_effect=None):
            text = f"implemented: `{path}`"
        case Field(path=path, without_effect=reason):
            text = f"no effect, kept in `{path}`: {reason}"
        case NoEffect(reason=reason):
            text = f"no effect: {reason}"
        case Refused(harmless=harmless) as refused:
            passing = f" (passes: {', '.join(harmless)})" if harmless else ""
            text = f"refused{passing}: {refused.advice}"
        case EntryPoint(use=use):
            text = f"implemented: {use}"
    bad = ", ".join(f"`{value}`" for value, _ in row.refuses)
    return f"{text}; refused values: {bad}" if bad else text
