"""The command line.

A parser generated from the flag table, and Megatron's rules between its arguments.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from mindspeed_ms.config.build import Sections
from mindspeed_ms.training.derived_args import derive
from mindspeed_ms.training.flags import BY_NAME, ROWS, EntryPoint, Flag, Refused
from mindspeed_ms.training.from_args import (
    YamlSource,
    attributes_of,
    defaults_of_flags,
    override_by_command_line,
    values_of_sections,
)
from mindspeed_ms.training.yaml_styles.megatron_yaml import flags_of, load_megatron_yaml
from mindspeed_ms.training.yaml_styles.yaml_files import load_sections

REQUIRED = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "seq_length",
    "max_position_embeddings",
    "micro_batch_size",
)
"""Arguments without which Megatron does not start."""

_NARGS: Mapping[str, Any] = {
    "one": None,
    "many": "*",
    "some": "+",
    "three": 3,
    "on": 0,
    "off": 0,
    "toggle": "?",
}

ExtraArgsProvider = Callable[[argparse.ArgumentParser], argparse.ArgumentParser | None]
"""Adds the user's own flags to the parser."""


def _metavar(row: Flag) -> str | None:
    """Return what stands for the value in help; None lets the choices stand there."""
    if row.choices or row.arity in ("on", "off"):
        return None
    if row.arity == "toggle":
        return "BOOL"
    names: dict[Any, str] = {int: "N", float: "X"}
    return names.get(row.type, "VALUE")


class _FlagAction(argparse.Action):
    """Stores the value of one row and notes that the flag was given."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, row: Flag) -> None:
        self.row = row
        super().__init__(
            option_strings,
            dest,
            nargs=_NARGS[row.arity],
            const=True if row.arity == "toggle" else None,
            default=row.default,
            type=row.type,
            choices=row.choices,
            help=row.names[0],  # the text is made by the formatter, only when somebody asks
            metavar=_metavar(row),
        )

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del option_string
        name = self.row.names[0]
        namespace.given_flags = [*getattr(namespace, "given_flags", ()), name]
        if self.row.arity in ("on", "off"):
            values = self.row.arity == "on"
        refusal = self.row.refusal(values)
        if refusal is not None:
            takes_none = isinstance(self.row.state, Refused) and not self.row.state.harmless
            shown = name if takes_none else f"{name} {_as_typed(values)}"
            line = f"{shown} is refused: {refusal.advice}"
            namespace.refusals = [*getattr(namespace, "refusals", ()), line]
            return
        if isinstance(self.row.state, EntryPoint) and self.row.arity == "some":
            values = [*(getattr(namespace, self.dest) or ()), *values]
        setattr(namespace, self.dest, values)


def _as_typed(values: Any) -> str:
    return " ".join(map(str, values)) if isinstance(values, list) else str(values)


class _HelpFormatter(argparse.HelpFormatter):
    """Shows one spelling per flag; the others differ only by ``_`` for ``-``."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not isinstance(action, _FlagAction):
            return action.help
        text = action.row.summary
        if action.row.arity == "one" and action.default is not None:
            text += f" (Megatron's default: {action.default})"
        return text.replace("%", "%%")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not isinstance(action, _FlagAction):
            return super()._format_action_invocation(action)
        name = action.option_strings[0]
        if action.nargs == 0:
            return name
        return f"{name} {self._format_args(action, action.dest.upper())}"


class _Parser(argparse.ArgumentParser):
    """Ends with one line and status 2 when the command line is wrong."""

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and leave."""
        if "'$" in message:
            message += " (a shell variable that was not expanded?)"
        self.exit(2, f"{self.prog}: error: {message}\n")

    def spellings(self) -> list[str]:
        """Return every flag this parser knows, the user's own included."""
        return sorted(self._option_string_actions)

    def user_defaults(self) -> dict[str, Any]:
        """Return attribute -> default of the flags that are not from the table."""
        own = [action for action in self._actions if not isinstance(action, _FlagAction)]
        return {action.dest: action.default for action in own if action.dest != "help"}

    def yield_to_user(self) -> None:
        """Let the user's default win where a user's flag sets the same attribute as one of ours."""
        users = self.user_defaults()
        for action in self._actions:
            if isinstance(action, _FlagAction) and action.dest in users:
                action.default = argparse.SUPPRESS


def build_parser(extra_args_provider: ExtraArgsProvider | None = None) -> argparse.ArgumentParser:
    """Return the parser for every row of the flag table and the user's own flags.

    A user's flag replaces one of the table that is spelled the same.
    """
    parser: argparse.ArgumentParser = _Parser(
        usage="%(prog)s [flags]",
        description="Train a GPT model. Flags are Megatron's; - and _ are the same in their names.",
        allow_abbrev=False,
        conflict_handler="resolve",
        formatter_class=_HelpFormatter,
    )
    groups: dict[str, Any] = {}
    for row in ROWS:
        group = groups.get(row.group)
        if group is None:
            group = groups[row.group] = parser.add_argument_group(row.group)
        group.add_argument(*row.names, dest=row.dest, action=_FlagAction, row=row)
    if extra_args_provider is not None:
        parser = extra_args_provider(parser) or parser
    if isinstance(parser, _Parser):
        parser.yield_to_user()
    return parser


def parse_args(
    argv: Sequence[str] | None = None,
    extra_args_provider: ExtraArgsProvider | None = None,
    args_defaults: Mapping[str, Any] | None = None,
    ignore_unknown_args: bool = False,
    of_checkpoint: Sections | None = None,
) -> Namespace:
    """Return the command line as attributes with Megatron's names, derived values included.

    Precedence: command line, then YAML files (``--yaml``), then defaults: the guide's with YAML,
        else Megatron's.
    A wrong command line ends the process with one line and status 2.

    Args:
        argv: words after the program's name; None: those of the process.
        extra_args_provider: adds the user's own flags.
        args_defaults: attribute -> default of this entry point, used where nothing else gives a
            value.
        ignore_unknown_args: leave unknown flags alone instead of refusing them.
        of_checkpoint: fields of the model that a checkpoint states; they win.

    """
    parser = build_parser(extra_args_provider)
    words = sys.argv[1:] if argv is None else argv
    parsed, unknown = parser.parse_known_args(without_brackets(words))
    if unknown and not ignore_unknown_args:
        known = parser.spellings() if isinstance(parser, _Parser) else list(BY_NAME)
        parser.error(unknown_flag_message(unknown[0], known))
    values = vars(parsed)
    values.setdefault("given_flags", [])
    refusals = values.setdefault("refusals", [])
    if refusals and not values["dry_run"]:
        parser.error(refusals[0])
    users = parser.user_defaults() if isinstance(parser, _Parser) else {}
    try:
        if values["yaml"] and values["yaml_cfg"]:
            raise ValueError("--yaml and --yaml-cfg are two layouts of one thing; keep one of them")
        if values["yaml"]:
            values = _with_yaml(values, users)
        elif values["yaml_cfg"]:
            values = _with_megatron_yaml(values, users)
        _fill_defaults(values, args_defaults or {})
        if of_checkpoint:
            values |= attributes_of(of_checkpoint) | {"checkpoint_sections": of_checkpoint}
        values = derive(values)
    except ValueError as error:
        parser.error(str(error))
    return Namespace(**values)


def _fill_defaults(values: dict[str, Any], args_defaults: Mapping[str, Any]) -> None:
    for name, value in args_defaults.items():
        if name not in values:
            raise ValueError(f"args_defaults names {name!r}, which no flag sets; correct its name")
        if values[name] is None:
            values[name] = value


def _with_yaml(values: Mapping[str, Any], user_defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parsed arguments on top of the YAML files they name."""
    sections = load_sections(values["yaml"])
    given = _given(values, user_defaults)
    base = values_of_sections(sections)
    own = {name: value for name, value in values.items() if name not in base}
    command_line = {name: values[name] for name in given if name in base}
    merged = override_by_command_line(base, command_line)
    source = YamlSource(sections, derive(base), frozenset(given))
    return {**own, **merged, "yaml": values["yaml"], "yaml_source": source}


def _with_megatron_yaml(
    values: Mapping[str, Any], user_defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parsed arguments on top of a file in Megatron's own layout."""
    stated = load_megatron_yaml(values["yaml_cfg"])
    given = _given(values, user_defaults)
    base = {**defaults_of_flags(), **stated}
    own = {name: value for name, value in values.items() if name not in base}
    merged = override_by_command_line(base, {name: values[name] for name in given if name in base})
    flags = dict.fromkeys((*values["given_flags"], *flags_of(stated)))
    return {**own, **merged, "yaml_cfg": values["yaml_cfg"], "given_flags": list(flags)}


def given_attributes(args: Namespace) -> set[str]:
    """Attributes that the command line set."""
    return {BY_NAME[name].dest for name in args.given_flags if name in BY_NAME}


def _given(values: Mapping[str, Any], user_defaults: Mapping[str, Any]) -> set[str]:
    """Attributes that the command line sets."""
    given = {BY_NAME[name].dest for name in values["given_flags"]}
    return given | {name for name, own in user_defaults.items() if values.get(name) != own}


def without_brackets(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with bracketed lists taken apart.

    Lists of Megatron's YAML arguments reach a flag that takes several values as one word
    ``[a b]``, as words ``[a``, ``b]``, or, if they are numbers, as one word ``1 2``.

    >>> without_brackets(["--recompute-modules", "[mlp layernorm]", "--bf16"])
    ['--recompute-modules', 'mlp', 'layernorm', '--bf16']
    """
    result: list[str] = []
    takes_several = is_number = is_open = False
    for word in words:
        if word.startswith("--"):
            row = BY_NAME.get(word)
            takes_several = row is not None and row.arity in ("some", "many", "three")
            is_number, is_open = row is not None and row.type in (int, float), False
        elif takes_several and (is_open or word.startswith("[")):
            is_open = not word.endswith("]")
            result.extend(word.strip("[]").replace(",", " ").split())
            continue
        elif takes_several and is_number:
            result.extend(word.split())
            continue
        result.append(word)
    return result


def unknown_flag_message(word: str, known: Iterable[str]) -> str:
    """Return the message for a word that is no flag: the nearest flags, or those it abbreviates."""
    if not word.startswith("-"):
        return f"unexpected word {word!r}; values follow the flag they belong to"
    name = word.partition("=")[0]
    known = [flag for flag in known if flag.startswith("--")]
    shown = {flag.replace("_", "-"): flag for flag in reversed(sorted(known))}
    dashed = name.replace("_", "-")
    longer = [flag for flag in shown if flag.startswith(dashed)] if len(dashed) > 4 else []
    if longer:
        return (
            f"unknown flag {name}; abbreviations are not accepted, write {' or '.join(longer[:3])}"
        )
    close = difflib.get_close_matches(dashed, shown, n=1, cutoff=0.6)
    hint = f"did you mean {shown[close[0]]}?" if close else "--help lists all flags"
    return f"unknown flag {name}; {hint}"


# --- rules between arguments ----------------------------------------------------------------------


def validate_args(args: Namespace, world_size: int) -> Namespace:
    """Complete the arguments for a number of ranks and check Megatron's rules between them.

    Rules on sizes and layout are those of :meth:`AllConfig.validate`; here are the ones on how
    flags go together.

    Args:
        args: result of :func:`parse_args`; ``world_size``, ``data_parallel_size`` and
            ``global_batch_size`` are set.
        world_size: ranks of the run.

    Returns:
        ``args`` itself, as Megatron's function of this name does.

    Raises:
        ValueError: one line that names the flags, the rule and the fix.

    """
    if not getattr(args, "yaml", None):
        _require_given(args)
    if getattr(args, "world_size", None) not in (None, world_size):
        raise ValueError(
            f"--world-size {args.world_size} is for --dry-run, but {world_size} ranks run; leave "
            "it out, or start as many ranks"
        )
    _check_length(args)
    _check_checkpoints(args)
    _check_weight_decay(args)
    args.world_size = world_size
    vars(args).update(derive(vars(args)))
    return args


def _flag(dest: str) -> str:
    """Return how a user writes an argument."""
    return next((row.names[0] for row in ROWS if row.dest == dest), dest)


def _require_given(args: Namespace) -> None:
    missing = [_flag(name) for name in REQUIRED if getattr(args, name, None) is None]
    if getattr(args, "lr", None) is None and not getattr(args, "skip_train", False):
        missing.append("--lr")
    if missing:
        raise ValueError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
            f"give the flag{'' if len(missing) == 1 else 's'}, or --yaml with a configuration file"
        )


def _refuse_together(args: Namespace, first: str, others: Sequence[str]) -> None:
    if not getattr(args, first, None):
        return
    for other in others:
        if getattr(args, other, None):
            raise ValueError(
                f"{_flag(first)} and {_flag(other)} exclude each other; keep one of them"
            )


def _check_length(args: Namespace) -> None:
    samples = ("train_samples", "lr_decay_samples", "lr_warmup_samples")
    _refuse_together(args, "train_iters", samples)
    _refuse_together(args, "train_samples", ("lr_decay_iters", "lr_warmup_iters"))
    _refuse_together(args, "lr_warmup_fraction", ("lr_warmup_iters", "lr_warmup_samples"))
    _refuse_together(args, "rampup_batch_size", ("step_batch_size_schedule",))
    _refuse_together(args, "fp16", ("bf16",))


def _check_checkpoints(args: Namespace) -> None:
    if getattr(args, "yaml", None):
        return
    if getattr(args, "save", None) is not None and not getattr(args, "save_interval", None):
        raise ValueError(
            "--save needs --save-interval; give the number of iterations between checkpoints"
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
