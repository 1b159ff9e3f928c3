# SPDX-License-Identifier: Apache-2.0
"""The arguments of a run, as far as somebody wants to read them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.training.flags import BY_NAME, ROWS
from mindspeed_ms.training.from_args import (
    HIDDEN_ARGUMENTS,
    defaults_of_flags,
    no_effect_report,
    values_of_sections,
)
from mindspeed_ms.training.one_line import one_line

_NOT_CHOSEN = frozenset({"rank", "local_rank", *(name for row in ROWS for name in row.attributes)})
"""Attributes that nobody chooses: the place of a rank, and repetitions of others."""


def dotted(name: str, value: object) -> str:
    """A name and its value in Megatron's shape."""
    return f"  {name} {'.' * (48 - len(name))} {one_line(str(value))}"


def config_lines(config: AllConfig) -> list[tuple[str, object]]:
    """(section.field, value) of a whole configuration, in its order."""
    return [
        (f"{section}.{key}", value)
        for section, values in config.to_dict().items()
        for key, value in values.items()
    ]


def print_arguments(args: argparse.Namespace) -> None:
    """Megatron's sorted table of arguments, and what had no effect.

    ``--print-args`` says how much: what was given or is not the default, everything, or nothing.
    """
    wanted = getattr(args, "print_args", "all")
    if wanted != "none":
        shown = vars(args) if wanted == "all" else dict(_changed(args))
        print_rank_0("------------------------ arguments ------------------------")
        for name in sorted(shown, key=str.lower):
            if name not in HIDDEN_ARGUMENTS:
                print_rank_0(dotted(name, shown[name]))
        print_rank_0("-------------------- end of arguments ---------------------")
    for line in no_effect_report(args):
        print_rank_0(one_line(line))


def _changed(args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Arguments that were given or differ from the default of their front door."""
    given = {BY_NAME[name].dest for name in getattr(args, "given_flags", ())}
    guide = values_of_sections({})
    is_yaml = getattr(args, "yaml_source", None) is not None
    defaults = guide if is_yaml else defaults_of_flags()
    for name, value in vars(args).items():
        usual = defaults.get(name)
        is_usual = value == usual or (usual is None and value == guide.get(name))
        if name in given or not (is_usual or name in _NOT_CHOSEN):
            yield name, value
