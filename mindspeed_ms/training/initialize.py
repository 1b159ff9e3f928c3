# SPDX-License-Identifier: Apache-2.0
"""From a command line to a run that is ready to build its model."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mindspeed_ms.backend import comm, launch
from mindspeed_ms.backend.spokesman import is_first_of_host
from mindspeed_ms.data.tokenizers import build_tokenizer
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.engine.start import refuse_unsupported, set_up_run
from mindspeed_ms.training.arguments import given_attributes, parse_args, validate_args
from mindspeed_ms.training.checkpoint_args import (
    is_absent,
    layout_of_checkpoint,
    rows_of_checkpoint,
    sections_from_checkpoint,
)
from mindspeed_ms.training.dry_run import dry_run
from mindspeed_ms.training.entry import tell_user_errors
from mindspeed_ms.training.flags import BY_NAME, EntryPoint
from mindspeed_ms.training.flags.vocabulary import rows_of
from mindspeed_ms.training.from_args import init_configs_from_args
from mindspeed_ms.training.global_args import get_args, set_global_args
from mindspeed_ms.training.print_arguments import print_arguments
from mindspeed_ms.training.scale_down import scale_down, sizes_of_flags

__all__ = ["get_args", "initialize_megatron", "set_up_run"]

logger = logging.getLogger(__name__)


def initialize_megatron(
    extra_args_provider: Callable | None = None,
    args_defaults: dict[str, Any] | None = None,
    ignore_unknown_args: bool = False,
    argv: Sequence[str] | None = None,
) -> argparse.Namespace:
    """Parse the command line, start communication, create the groups and seed the run.

    Afterwards ``get_args()`` returns the arguments. In a script, a mistake of the user's that
    nobody catches from here on ends in one line and status 2; see ``entry``.

    Args:
        extra_args_provider: adds the user's own flags to the parser.
        args_defaults: defaults of this entry point.
        ignore_unknown_args: leave unknown flags alone.
        argv: flags to parse instead of the command line.

    Raises:
        ValueError: flags that do not go together or that do not fit the number of ranks.
        SystemExit: a wrong flag; one line has been printed. A dry run, which has printed its plan.

    Source: Megatron-LM ``initialize_megatron`` (order of the steps).
    """
    tell_user_errors()
    if not is_first_of_host():
        logging.getLogger("mindspeed_ms").addHandler(logging.NullHandler())
    args = parse_args(argv, extra_args_provider, args_defaults, ignore_unknown_args)
    if args.use_checkpoint_args and (args.dry_run or args.scale_down):
        args.use_checkpoint_args = not is_absent(args.load, args.ckpt_step)
    if args.use_checkpoint_args:
        model = sections_from_checkpoint(args.load, args.ckpt_step, given_attributes(args))
        if args.use_mp_args_from_checkpoint_args:
            model = {**model, **layout_of_checkpoint(args.load, args.ckpt_step)}
        args = parse_args(argv, extra_args_provider, args_defaults, ignore_unknown_args, model)
    _choose_log_line(args)
    if args.dry_run:
        raise SystemExit(dry_run(args))
    # What does not need the other ranks is checked before they are met: a refusal is then the first
    # thing to be seen, and is seen once.
    world_size = _num_ranks()
    changes = [*sizes_of_flags(args), *scale_down(args, world_size)] if args.scale_down else []
    _complete_vocabulary(args)
    config = init_configs_from_args(validate_args(args, world_size))
    refuse_unsupported(config)
    set_up_run(config)
    args.rank, args.local_rank = comm.get_rank(), comm.get_local_rank()
    set_global_args(args)
    print_arguments(args)
    for line in changes:
        print_rank_0(line)
    return args


def _num_ranks() -> int:
    """Ranks of the job, which need not be met yet if the launcher tells their number."""
    told = launch.told_by_launcher()
    if told is not None and not comm.is_initialized():
        return told[1]
    comm.init_process_group()
    return comm.get_world_size()


def _choose_log_line(args: argparse.Namespace) -> None:
    """Who gives flags beside a YAML file reads Megatron's line, too; a terminal has the short one.

    What a program may read, in a file or a pipe, keeps its shape.
    """
    is_open = args.log_style is None or not (
        "--log-style" in args.given_flags or getattr(args, "yaml_source", None)
    )
    if is_open and sys.stdout.isatty():
        args.log_style = "short"
    has_flags = any(not isinstance(BY_NAME[name].state, EntryPoint) for name in args.given_flags)
    if args.log_style is None and has_flags:
        args.log_style = "megatron"


def _complete_vocabulary(args: argparse.Namespace) -> None:
    """Pad the tokenizer's vocabulary, unless the padded size was given.

    A model that is taken from a checkpoint keeps its rows: models of the hub have more than their
    tokenizers have tokens.
    """
    if args.padded_vocab_size is not None or args.tokenizer_type is None:
        return
    rows = rows_of_checkpoint(args.load, args.ckpt_step) if args.use_checkpoint_args else 0
    tokens = max(build_tokenizer(args).vocab_size, rows)
    args.padded_vocab_size = rows_of(tokens, args)
