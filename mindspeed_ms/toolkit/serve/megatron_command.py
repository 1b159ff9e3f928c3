# SPDX-License-Identifier: Apache-2.0
"""``tools/run_text_generation_server.py`` with Megatron's flags.

Source: Megatron-LM's tool of that name (flags, the port, what they limit).
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mindspeed_ms.backend.spokesman import is_first_of_host
from mindspeed_ms.data.tokenizers import TokenizerSettings
from mindspeed_ms.files.regular_file import real_path
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.models.identity import RUN_SETTINGS
from mindspeed_ms.toolkit.models import layout_flags
from mindspeed_ms.toolkit.serve.command import Settings, serve
from mindspeed_ms.training.arguments import given_attributes, parse_args
from mindspeed_ms.training.checkpoint_config import MODEL_SECTIONS, config_of, spec_of
from mindspeed_ms.training.entry import user_errors
from mindspeed_ms.training.flags import ROWS, Field
from mindspeed_ms.training.flags.other_programs import SERVER_FLAGS
from mindspeed_ms.training.flags.row import Flag
from mindspeed_ms.training.from_args import no_effect_report

PORT = 5000
GIB = 2**30
_READ = frozenset(
    {"load", "ckpt_step", "bf16", "fp16", "sequence_parallel", "context_parallel_size"}
    | {*layout_flags.SIZES, *(item.name for item in fields(TokenizerSettings))}
)
"""Attributes of training that the server reads, or checks, beside those of the model."""


def add_server_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags that Megatron's tool has beside those of training, and this server's own."""
    group = parser.add_argument_group("text generation server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen at")
    group.add_argument("--port", type=int, default=PORT, help="0: any that is free")
    group.add_argument("--api-key", action="append", default=[], help="a key clients must send")
    group.add_argument("--served-model-name", help="its name in OpenAI's requests")
    group.add_argument("--tokenizer", help="folder of a Hugging Face tokenizer")
    group.add_argument("--max-queue", type=int, default=256, help="sequences that may wait")
    return parser


def settings_of(args: Namespace) -> Settings:
    """The settings that Megatron's flags stand for.

    Raises:
        ValueError: no checkpoint is named, or flags contradict the one that is.
    """
    if not args.load:
        raise ValueError("there is no checkpoint; name its folder with --load")
    folder = Path(args.load)
    if args.ckpt_step is not None:
        folder = folder / f"iter_{args.ckpt_step:07d}"
    if args.context_parallel_size > 1:
        raise ValueError(
            f"--context-parallel-size is {args.context_parallel_size}; text generation needs 1: "
            "its cache is not shared out along the sequence"
        )
    for line in contradictions(args, folder):
        raise ValueError(line)
    return Settings(
        model=str(folder),
        name=args.served_model_name or real_path(args.load).name,
        host=args.host,
        port=args.port,
        api_keys=tuple(args.api_key),
        max_rows=max_rows_of(args),
        max_queue=max(args.max_queue, 0),
        max_length=args.inference_max_seq_length,
        max_step_tokens=_first(
            args.inference_dynamic_batching_max_tokens_override,
            args.inference_dynamic_batching_max_tokens,
            2048,
        ),
        max_tokens_to_oom=args.max_tokens_to_oom,
        max_cache_bytes=int(args.inference_dynamic_batching_buffer_size_gb * GIB),
        loading=layout_flags.loading_options(args),
        access_log=bool(args.inference_text_gen_server_logging),
        log_interval=args.inference_logging_step_interval,
    )


def max_rows_of(args: Namespace) -> int:
    """Sequences that run at a time: the newest of Megatron's names for it comes first."""
    rows = _first(
        args.inference_dynamic_batching_max_requests_override,
        args.inference_dynamic_batching_max_requests,
        args.inference_max_batch_size,
        args.inference_max_requests,
    )
    if rows < 1:
        raise ValueError(f"{rows} requests at a time were asked for; it must be at least 1")
    return int(rows)


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def contradictions(args: Namespace, folder: Path) -> Iterator[str]:
    """Flags of the model that the checkpoint states otherwise."""
    found = find_checkpoint(folder, None)
    if found is None:
        raise ValueError(f"{folder} holds no checkpoint; correct --load")
    stated = config_of(open_checkpoint(found, spec_of).common).to_dict()
    given = given_attributes(args)
    for row in ROWS:
        if row.dest not in given or not isinstance(row.state, Field):
            continue
        section, _, name = row.state.path.partition(".")
        value = row.state.said(row.state.path, getattr(args, row.dest), vars(args))
        if section not in MODEL_SECTIONS or name in RUN_SETTINGS or not _is_plain(value):
            continue
        own = stated[section].get(name, value)
        if _is_plain(own) and own != value:
            yield (
                f"{row.names[0]} makes {name} {value}, but in the checkpoint it is {own}; correct "
                "the flag, or leave it out"
            )


def unread(args: Namespace) -> list[str]:
    """A line about the flags of training that were given and that no server reads."""
    given = given_attributes(args)
    names = [row.names[0] for row in ROWS if row.dest in given and _is_of_training(row)]
    if not names:
        return []
    return [f"{', '.join(names)}: of training, the server does not read them"]


def _is_of_training(row: Flag) -> bool:
    if not isinstance(row.state, Field) or row.dest in _READ:
        return False
    return not any(path.partition(".")[0] in MODEL_SECTIONS for path in row.state.paths)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def main(words: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the status.

    Args:
        words: of the command line; None: those of the process.
    """
    args = parse_args(words, add_server_flags)
    with user_errors():
        settings = settings_of(args)
        told = (line for line in no_effect_report(args) if line.split()[0] not in SERVER_FLAGS)
        if is_first_of_host():
            sys.stdout.writelines(f"{line}\n" for line in told)
            sys.stderr.writelines(f"{line}\n" for line in unread(args))
        serve(settings, args)
    return 0
