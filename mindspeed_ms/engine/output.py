"""What a rank writes to its standard output, through ``logging``."""

from __future__ import annotations

import logging
import sys

from mindspeed_ms.backend import comm

_LINES = logging.getLogger("mindspeed_ms.lines")


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
