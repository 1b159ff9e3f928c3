# SPDX-License-Identifier: Apache-2.0
"""The command line: Megatron's ``parse_args`` and ``validate_args``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mindspeed_ms.backend import env
from mindspeed_ms.config.build import Sections
from mindspeed_ms.files.regular_file import read_text
from mindspeed_ms.training.command_line import (
    CommandLineParser,
    ExtraArgsProvider,
    build_parser,
    table_parser,
    without_brackets,
)
from mindspeed_ms.training.flags import BY_NAME, ROWS, Field
from mindspeed_ms.training.flags.datasets import PATHS
from mindspeed_ms.training.flags.experts import noise_on_scores
from mindspeed_ms.training.flags.layout import ZERO_FILES
from mindspeed_ms.training.flags.more_forks import place_adapters
from mindspeed_ms.training.from_args import (
    YamlSource,
    attributes_of,
    complete,
    contradictions,
    defaults_of_flags,
    field_value,
    init_configs_from_args,
    mirror,
    override,
    place_over,
    values_of_sections,
)
from mindspeed_ms.training.placeholders import gathered
from mindspeed_ms.training.yaml_styles.build import checked_sections, merge_sections
from mindspeed_ms.training.yaml_styles.command_yaml import with_files_said
from mindspeed_ms.training.yaml_styles.megatron_yaml import (
    flags_of,
    is_megatron_style,
    load_megatron_yaml,
)
from mindspeed_ms.training.yaml_styles.yaml_files import load_sections

logger = logging.getLogger(__name__)

__all__ = ["build_parser", "parse_args", "validate_args", "without_brackets"]


def parse_args(
    argv: Sequence[str] | None = None,
    extra_args_provider: ExtraArgsProvider | None = None,
    args_defaults: Mapping[str, Any] | None = None,
    ignore_unknown_args: bool = False,
    of_checkpoint: Sections | None = None,
) -> Namespace:
    """Return the command line as attributes with Megatron's names.

    Precedence: command line, then YAML files (``--yaml``), then defaults: the guide's with YAML,
        else Megatron's. Values that follow from others are filled by :func:`validate_args`.
    A wrong command line ends the process with one line and status 2.

    Args:
        argv: words after the program's name; None: those of the process.
        extra_args_provider: adds the user's own flags.
        args_defaults: attribute -> default of this entry point, used where nothing else gives a
            value.
        ignore_unknown_args: leave unknown flags alone instead of refusing them.
        of_checkpoint: fields of the model that a checkpoint states; they win.

    """
    parser = build_parser(extra_args_provider) if extra_args_provider else table_parser()
    words = sys.argv[1:] if argv is None else argv
    try:
        words = _readable(words)
    except ValueError as error:
        parser.error(str(error))
    parsed, unknown = parser.parse_known_args(words)
    if unknown and not ignore_unknown_args:
        if isinstance(parser, CommandLineParser):
            parser.unknown(unknown[0], words)
        parser.error(f"unknown flag {unknown[0]}")
    values = vars(parsed)
    values.setdefault("given_flags", [])
    if values["fake_process_group"]:
        values["dry_run"] = True
        values["world_size"] = values["world_size"] or env.get_int("WORLD_SIZE")
    if env.is_dry_run():
        values["dry_run"] = True
        values["world_size"] = values["world_size"] or env.get_int(env.DRY_RUN_RANKS)
    users = parser.user_defaults() if isinstance(parser, CommandLineParser) else {}
    given = {BY_NAME[name].dest for name in values["given_flags"]}
    if values["dry_run"]:  # a variable may have asked for it, which files do not undo
        given |= {"dry_run", "world_size"}
    place_adapters(values)
    try:
        refusals = values.setdefault("refusals", [])
        refusals += contradictions(values, given) + _two_sources(values)
        refusals += noise_on_scores(values)
        if refusals and not values["dry_run"]:
            raise ValueError(refusals[0])
        given |= {name for name, own in users.items() if values.get(name) != own}
        values = _with_files(values, given)
        _fill_defaults(values, args_defaults or {})
        if of_checkpoint:
            values |= attributes_of(of_checkpoint) | {"checkpoint_sections": of_checkpoint}
        values["padded_vocab_size"] = _padded_vocab_size(values)
    except ValueError as error:
        parser.error(str(error))
    mirror(values)
    return Namespace(**values)


_PLANS = {"--dry-run", "--dry_run", "--scale-down", "--scale_down", "--fake-process-group"}


def _readable(words: Sequence[str]) -> list[str]:
    """Return a command line with what the shell or another launcher has left to do, done.

    Raises:
        ValueError: that needs a value which is not there.
    """
    is_plan = env.is_dry_run() or bool(_PLANS.intersection(words))
    words, lines = gathered(with_files_said(words, is_plan))
    if lines and not is_plan:
        raise ValueError(f"{lines[0]}; give one, in quotes if it has blanks")
    for line in lines:
        logger.warning("%s: planned anyway, as files are not read", line)
    return without_brackets(words)


def _two_sources(values: dict[str, Any]) -> list[str]:
    """Return a line when data is both generated and read; a plan then takes generated data."""
    read = [flag for flag, dest in PATHS.items() if values[dest] is not None]
    if not values["mock_data"] or not read:
        return []
    values.update(dict.fromkeys(PATHS.values()))
    return [f"--mock-data and {read[0]} exclude each other; keep one of them"]


def _padded_vocab_size(values: dict[str, Any]) -> int | None:
    """Return the rows of the embedding, if a vocabulary is given as a number."""
    size = field_value("model_config.vocab_size", values)
    return size if isinstance(size, int) else None


def _fill_defaults(values: dict[str, Any], args_defaults: Mapping[str, Any]) -> None:
    for name, value in args_defaults.items():
        if name not in values:
            raise ValueError(f"args_defaults names {name!r}, which no flag sets; correct its name")
        if values[name] is None:
            values[name] = value


def given_attributes(args: Namespace) -> set[str]:
    """Attributes that the command line set."""
    return {BY_NAME[name].dest for name in args.given_flags if name in BY_NAME}


# --- files ----------------------------------------------------------------------------------------


def _with_files(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Return the parsed arguments on top of the files they name."""
    files = values["yaml"]
    if files and values["yaml_cfg"]:
        raise ValueError("--yaml and --yaml-cfg are two layouts of one thing; keep one of them")
    if not files:
        return _with_megatron_yaml(values, given) if values["yaml_cfg"] else values
    try:
        sections = merge_sections([load_sections(files)])
    except ValueError:
        if len(files) > 1 or not is_megatron_style(files[0]):
            raise
        return _with_megatron_yaml({**values, "yaml": None, "yaml_cfg": files[0]}, given)
    return _with_yaml(values, given, sections)


def _with_yaml(values: dict[str, Any], given: set[str], sections: Sections) -> dict[str, Any]:
    """Return the parsed arguments on top of what YAML files of this project say."""
    base = values_of_sections(sections)
    place_over(sections, base, {name: values[name] for name in given if name in base})
    sections = checked_sections(sections)
    stated = values_of_sections(sections)
    by_itself = {row.dest for row in ROWS if not isinstance(row.state, Field) or row.state.by_rule}
    kept = {name: values[name] for name in values if name not in base or name in by_itself & given}
    merged = {**stated, **kept}
    baseline = {name: merged[name] for name in base}
    return {**merged, "yaml_source": YamlSource(sections, baseline)}


def _with_megatron_yaml(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Return the parsed arguments on top of a file in Megatron's own layout."""
    stated = load_megatron_yaml(values["yaml_cfg"])
    base = {**defaults_of_flags(), **stated}
    own = {name: value for name, value in values.items() if name not in base}
    merged = override(base, {name: values[name] for name in given if name in base})
    flags = dict.fromkeys((*values["given_flags"], *flags_of(stated)))
    return {**own, **merged, "yaml_cfg": values["yaml_cfg"], "given_flags": list(flags)}


# --- rules between arguments ----------------------------------------------------------------------


def validate_args(args: Namespace, world_size: int) -> Namespace:
    """Complete the arguments for a number of ranks and check them.

    Here are Megatron's rules on how flags go together; those on sizes and layout are
    :class:`~mindspeed_ms.config.AllConfig`'s.

    Args:
        args: result of :func:`parse_args`; what follows from other arguments is filled, as far as
            the size of the vocabulary is known.
        world_size: ranks of the run.

    Returns:
        ``args`` itself, as Megatron's function of this name does.

    Raises:
        ValueError: one line that names the flags, the rule and the fix.

    """
    if not getattr(args, "yaml", None):
        _require_given(args)
        _check_saving(args)
    if getattr(args, "world_size", None) not in (None, world_size):
        raise ValueError(
            f"--world-size {args.world_size} is for --dry-run, but {world_size} ranks run; leave "
            "it out, or start as many ranks"
        )
    _check_exclusions(args)
    _check_weight_decay(args)
    _read_shard_size(args)
    args.world_size = world_size
    _complete_batch(args)
    if getattr(args, "padded_vocab_size", None) is not None:
        complete(args, init_configs_from_args(args))
    return args


def _read_shard_size(args: Namespace) -> None:
    """Take ranks that share a copy of the weights from MindSpeed's files about sharding.

    Raises:
        ValueError: a file that cannot be read, or whose number is none. A dry run does without.
    """
    for flag, key in ZERO_FILES.items():
        path = getattr(args, flag[2:].replace("-", "_"), None)
        if path is None or args.zero_shard_size is not None:
            continue
        if args.dry_run and not os.path.exists(path):
            logger.warning("%s %s is not here; planned for all data-parallel ranks", flag, path)
            continue
        size = _shard_size(flag, path, key)
        if isinstance(size, int) and size > 0:
            args.zero_shard_size = size
        elif size not in (None, "auto"):
            raise ValueError(
                f"{flag} {path}: {key} is {size!r}; give the number of ranks that share a copy, or "
                "leave it out"
            )


def _shard_size(flag: str, path: str, key: str) -> object:
    try:
        content = yaml.safe_load(read_text(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{flag} {path} cannot be read ({text}); correct it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {path} holds no keys; give {key}: N, or leave it out")
    return content.get(key)


def _flag(dest: str) -> str:
    """Return how a user writes an argument."""
    return next((row.names[0] for row in ROWS if row.dest == dest), dest)


def _require_given(args: Namespace) -> None:
    missing = [
        row.names[0]
        for row in ROWS
        if row.typical is not None and getattr(args, row.dest, None) is None
    ]
    if getattr(args, "skip_train", False):
        missing = [name for name in missing if name != "--lr"]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
            f"give the flag{'' if len(missing) == 1 else 's'}, or --yaml with a configuration file"
        )


def _check_exclusions(args: Namespace) -> None:
    for row in ROWS:
        if not row.excludes or not getattr(args, row.dest, None):
            continue
        for other in row.excludes:
            if getattr(args, BY_NAME[other].dest, None):
                raise ValueError(f"{row.names[0]} and {other} exclude each other; keep one of them")


def _check_saving(args: Namespace) -> None:
    if getattr(args, "save", None) is None:
        return
    interval = getattr(args, "save_interval", None)
    if interval is None:
        raise ValueError(
            "--save needs --save-interval; give the number of iterations between checkpoints"
        )
    if interval < 1:
        raise ValueError(
            f"--save-interval is {interval}, but with --save must be at least 1: the number of "
            "iterations between checkpoints; raise it, or leave --save out"
        )


def _check_weight_decay(args: Namespace) -> None:
    style = getattr(args, "weight_decay_incr_style", "constant")
    if style == "constant":
        return
    for name in ("start_weight_decay", "end_weight_decay"):
        if getattr(args, name, None) is None:
            raise ValueError(
                f"--weight-decay-incr-style {style} needs {_flag(name)}; give both ends, or use "
                "constant"
            )


def _complete_batch(args: argparse.Namespace) -> None:
    """Fill data-parallel size and global batch, where the ranks hold whole copies of the model.

    A batch of several micro-batches is stated both ways, as the guide does.
    """
    copies = (
        (args.tensor_model_parallel_size or 1)
        * (args.pipeline_model_parallel_size or 1)
        * (args.context_parallel_size or 1)
    )
    if args.world_size % copies or not args.micro_batch_size:
        return
    args.data_parallel_size = args.world_size // copies
    per_round = args.micro_batch_size * args.data_parallel_size
    source = getattr(args, "yaml_source", None)
    if args.global_batch_size is None:
        args.global_batch_size = per_round * (args.micro_batch_num or 1)
        if source is not None:  # it follows from the files and changes nothing
            source.baseline["global_batch_size"] = args.global_batch_size
    elif args.micro_batch_num is None and args.global_batch_size % per_round == 0:
        args.micro_batch_num = args.global_batch_size // per_round
