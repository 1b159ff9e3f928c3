"""What a rank writes to its standard output, through ``logging``."""

from __future__ import annotations

import argparse
import logging
import sys

from mindspeed_ms.backend import comm
from mindspeed_ms.core.config import AllConfig, no_effect_report

_LINES = logging.getLogger("mindspeed_ms.lines")

HIDDEN_ARGUMENTS = frozenset({"given_flags", "refusals", "yaml_source"})
"""Attributes that are no arguments of the user."""


class _Output(logging.StreamHandler):
    """Our own handler, told from those that a user has added."""


def set_up_output(level: int | None = None) -> None:
    """Send the package's log and the report lines to standard output (idempotent).

    Report lines stand alone, as tools expect them; everything else carries its rank. Handlers that
    the user has added stay.
    """
    package = logging.getLogger("mindspeed_ms")
    package.setLevel(logging.INFO if level is None else level)
    package.propagate = False
    _write_to_output(package, f"[rank {comm.get_rank()}] %(levelname)s: %(message)s")
    _LINES.setLevel(logging.INFO)
    _LINES.propagate = False
    _write_to_output(_LINES, "%(message)s")


def _write_to_output(logger: logging.Logger, form: str) -> None:
    handler = _Output(sys.stdout)
    handler.setFormatter(logging.Formatter(form))
    others = [one for one in logger.handlers if not isinstance(one, _Output)]
    logger.handlers = [*others, handler]


def print_rank_0(line: str) -> None:
    """A report line from the first rank only."""
    if comm.get_rank() == 0:
        _LINES.info(line)


def print_rank_last(line: str) -> None:
    """A report line from the last rank only, where Megatron prints losses."""
    if comm.get_rank() == comm.get_world_size() - 1:
        _LINES.info(line)


def dotted(name: str, value: object) -> str:
    """A name and its value in Megatron's shape."""
    return f"  {name} {'.' * (48 - len(name))} {value}"


def config_lines(config: AllConfig) -> list[tuple[str, object]]:
    """(section.field, value) of a whole configuration, in its order."""
    return [
        (f"{section}.{key}", value)
        for section, values in config.to_dict().items()
        for key, value in values.items()
    ]


def print_arguments(args: argparse.Namespace) -> None:
    """Megatron's sorted table of arguments, and what had no effect."""
    print_rank_0("------------------------ arguments ------------------------")
    for name in sorted(vars(args), key=str.lower):
        if name not in HIDDEN_ARGUMENTS:
            print_rank_0(dotted(name, getattr(args, name)))
    print_rank_0("-------------------- end of arguments ---------------------")
    for line in no_effect_report(args):
        print_rank_0(line)
