# SPDX-License-Identifier: Apache-2.0
"""Flags of commands that load a model to use it: its layout over ranks, and its type."""

from __future__ import annotations

import argparse
from typing import Any

SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "expert_model_parallel_size",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that ``loading_options`` reads."""
    types = parser.add_mutually_exclusive_group()
    types.add_argument("--bf16", action="store_true", help="weights and computation in bfloat16")
    types.add_argument("--fp16", action="store_true", help="weights and computation in float16")
    layout = parser.add_argument_group("layout")
    for name in SIZES:
        layout.add_argument(f"--{name.replace('_', '-')}", type=positive, default=1)
    layout.add_argument("--sequence-parallel", action="store_true")


def loading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keywords of ``from_pretrained``, from these flags or from Megatron's of the same names.

    Raises:
        ValueError: two types.
    """
    if arguments.bf16 and arguments.fp16:
        raise ValueError("--bf16 and --fp16 name two types; keep one of them")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in SIZES}
    if arguments.sequence_parallel:
        options["sequence_parallel"] = True
    if arguments.bf16 or arguments.fp16:
        options["dtype"] = "bfloat16" if arguments.bf16 else "float16"
    return options


def positive(text: str) -> int:
    """A whole number from 1 up, for ``argparse``."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value
