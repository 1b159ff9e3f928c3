"""The arguments of a run, as Megatron prints them."""

from __future__ import annotations

import argparse

from mindspeed_ms.config import AllConfig
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.training.from_args import no_effect_report

HIDDEN_ARGUMENTS = frozenset({"checkpoint_sections", "given_flags", "refusals", "yaml_source"})
"""Attributes that are no arguments of the user."""


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
