# SPDX-License-Identifier: Apache-2.0
"""From Megatron's arguments to :class:`AllConfig` and back, by the flag table."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, overload

from mindspeed_ms.config.all_config import SECTION_CLASSES, AllConfig
from mindspeed_ms.config.build import Sections
from mindspeed_ms.config.section import Section, field_default
from mindspeed_ms.config.support import without_effect
from mindspeed_ms.training.flag_rules import RULES, Arguments
from mindspeed_ms.training.flags import BY_NAME, ROWS, Field, Flag, NoEffect, Refused
from mindspeed_ms.training.flags.row import SAME, UNSET, ReadField
from mindspeed_ms.training.flags.switches import switched_off
from mindspeed_ms.training.yaml_styles.build import build_selected, checked_sections, merge_sections

WITHOUT_FLAG: Mapping[str, Any] = MappingProxyType(
    {
        "parallel_config.allow_uneven_stages": False,
        "model_config.mask_func_type": "attn_mask_fill",
        "dataset_config.data_layout": "SBH",
    }
)
"""Fields without a flag whose value for Megatron's arguments differs from the one for YAML."""

HIDDEN_ARGUMENTS = frozenset(
    {
        *("checkpoint_sections", "given_flags", "refusals", "repeated", "resolved"),
        "yaml_source",
    }
)
"""Attributes of a parsed Namespace that are no arguments of the user."""

Values = dict[str, Any]
"""Attribute of the Namespace -> value."""

_SETTING: tuple[tuple[Flag, Field], ...] = tuple(
    (row, row.state) for row in ROWS if isinstance(row.state, Field)
)
_ROW_OF = {row.dest: (row, state) for row, state in reversed(_SETTING)}
"""Attribute -> its first row."""


def _by_path() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Fields -> attributes that state them by themselves, and those that set them along."""
    own: dict[str, list[str]] = {}
    along: dict[str, list[str]] = {}
    for row, state in _SETTING:
        if row.dest not in own.setdefault(state.path, []):
            own[state.path].append(row.dest)
        for path in state.sets:
            along.setdefault(path, []).append(row.dest)
    return own, along


_OWN, _ALONG = _by_path()


@dataclass(slots=True)
class YamlSource:
    """Where arguments come from when YAML files were named.

    Attributes:
        sections: what the files and the command line say.
        baseline: the arguments that these sections amount to; only differences to it change them.

    """

    sections: Sections
    baseline: Values


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration, and the arguments it was built from."""

    values: Values
    config: AllConfig


# --- arguments to sections ------------------------------------------------------------------------


def defaults_of_flags() -> Values:
    """Return every argument with Megatron's default."""
    return {row.dest: row.default for row in reversed(ROWS)}


def override(base: Values, given: Mapping[str, Any]) -> Values:
    """Return arguments with those given put over them.

    What states the same field in another way, and what a flag replaces, loses its value.
    """
    values = dict(base)
    for dest in given:
        if dest not in _ROW_OF:
            continue
        row, state = _ROW_OF[dest]
        rivals = () if state.by_rule or state.item is not None else _OWN[state.path]
        for other in (*rivals, *state.clears):
            if other not in given and other in values:
                values[other] = _ROW_OF[other][0].default
    values.update(given)
    return values


def _stated(path: str, values: Values, given: Collection[str]) -> Any:
    """Return what single flags state about a field.

    Among several the given ones come first, then those that differ from their default.
    """
    own, along = _OWN.get(path, ()), _ALONG.get(path, ())
    if any(_ROW_OF[dest][1].item is not None for dest in own):
        return _items(path, values)
    found = []
    for dest in (*own, *along):
        if dest not in values:
            continue
        row, state = _ROW_OF[dest]
        value = values[dest]
        said = state.said(path, value, values)
        if said is not UNSET and said is not None:
            found.append((dest in given, value != row.default, said))
    return max(found, key=lambda entry: entry[:2])[2] if found else UNSET


def _items(path: str, values: Values) -> Any:
    """Return the list that flags of its items state; one that is absent keeps its default."""
    section, _, key = path.partition(".")
    items = list(field_default(SECTION_CLASSES[section], key))
    is_given = False
    for dest in _OWN[path]:
        row, state = _ROW_OF[dest]
        if state.item is not None and values.get(dest) is not None:
            items[state.item], is_given = values[dest], True
    return items if is_given else UNSET


def field_value(path: str, values: Values, given: Collection[str] = ()) -> Any:
    """Return the value of one field, UNSET when the arguments say nothing about it."""
    stated = _stated(path, values, given)
    return RULES[path](stated, Arguments(values)) if path in RULES else stated


def _fields_of(dests: Iterable[str]) -> list[str]:
    """Return the fields that these arguments have a say in."""
    paths: dict[str, None] = {}
    for dest in dests:
        if dest in _ROW_OF:
            state = _ROW_OF[dest][1]
            cleared = (_ROW_OF[other][1].path for other in state.clears)
            paths.update(dict.fromkeys((*state.paths, *cleared)))
    return list(paths)


def _place(
    sections: Sections, values: Values, given: Collection[str], paths: Iterable[str]
) -> None:
    """Give these fields of the sections the values that the arguments state."""
    for path in paths:
        value = field_value(path, values, given)
        section, _, key = path.partition(".")
        target = sections.setdefault(section, {})
        head, _, rest = key.partition(".")
        if rest:
            block = target.get(head)
            target[head] = block.to_dict() if isinstance(block, Section) else dict(block or {})
            target, head = target[head], rest
        if value is UNSET:
            target.pop(head, None)
        else:
            target[head] = value


def sections_from_args(run_args: Namespace) -> Sections:
    """Return the sections that the arguments describe. The Namespace is not changed.

    Raises:
        ValueError: an argument has a value that its field does not take.

    """
    values = _with_further_attributes(vars(run_args))
    of_checkpoint = values.get("checkpoint_sections") or {}
    return merge_sections([_stated_sections(values), checked_sections(of_checkpoint)])


def _stated_sections(values: Values) -> Sections:
    """Return the sections that command line and YAML files describe."""
    source = values.get("yaml_source")
    sections: Sections
    if source is None:
        given = {BY_NAME[name].dest for name in values.get("given_flags", ())}
        sections = {}
        _place(sections, values, given, _fields_of(_ROW_OF.keys() & values.keys()))
        for path, value in WITHOUT_FLAG.items():
            section, _, key = path.partition(".")
            sections.setdefault(section, {})[key] = value
        return checked_sections(sections)
    changed = {
        dest: values[dest]
        for dest, before in source.baseline.items()
        if dest in values and values[dest] != before
    }
    sections = merge_sections([source.sections])
    place_over(sections, source.baseline, changed)
    return checked_sections(sections)


def place_over(sections: Sections, base: Values, given: Mapping[str, Any]) -> None:
    """Change sections, which amount to the arguments ``base``, to what is given over them."""
    _place(sections, override(base, given), given.keys(), _fields_of(given))


def _with_further_attributes(values: Mapping[str, Any]) -> Values:
    """Return arguments under today's attributes, also those that have an older one only."""
    result = dict(values)
    for row, _ in _SETTING:
        for other in row.attributes:
            if result.get(row.dest) is None and values.get(other) is not None:
                result[row.dest] = values[other]
    return result


def contradictions(values: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Return one line for each field about which given flags state different things."""
    lines = []
    for path, dests in _OWN.items():
        said = {}
        for dest in dests:
            row, state = _ROW_OF[dest]
            if dest in given and state.item is None and not state.yields:
                stated = state.said(path, values[dest], values)
                if stated is not UNSET:
                    said[row.names[0]] = stated
        if len(set(map(str, said.values()))) > 1:
            lines.append(
                f"{' and '.join(said)} set one option, {path}, to different values "
                f"({', '.join(map(str, said.values()))}); keep one of them"
            )
    return lines


# --- the way back ---------------------------------------------------------------------------------


def values_of_sections(sections: Mapping[str, Mapping[str, Any]]) -> Values:
    """Return every argument as the sections, completed by the guide's defaults, state it."""
    values = defaults_of_flags()
    values.update(_read_back(lambda path: _of_sections(sections, path)))
    mirror(values)
    return values


def attributes_of(sections: Sections) -> Values:
    """Return the arguments that these fields are, and no others."""
    sections = checked_sections(sections)
    found = _read_back(lambda path: _of_sections(sections, path))
    return {dest: value for dest, value in found.items() if _is_among(dest, sections)}


def _is_among(dest: str, sections: Sections) -> bool:
    section, _, key = _ROW_OF[dest][1].path.partition(".")
    return key.partition(".")[0] in sections.get(section, {})


def _of_sections(sections: Mapping[str, Mapping[str, Any]], path: str) -> Any:
    """Return a field of sections, its default when they do not give it."""
    section, _, key = path.partition(".")
    head, _, rest = key.partition(".")
    found = sections.get(section, {}).get(head)
    if found is None:
        found = field_default(SECTION_CLASSES[section], head)
    return getattr(found, rest) if rest else found


def complete(args: Namespace, config: AllConfig) -> None:
    """Give the arguments the values that were resolved for them, as Megatron's own have.

    Args:
        args: result of ``parse_args``.
        config: what was built from them.

    """
    known = vars(args)

    def read(path: str) -> Any:
        found: Any = config
        for name in path.split("."):
            found = getattr(found, name)
        return found

    resolved = {
        dest: value
        for dest, value in _read_back(read).items()
        if dest in known and _ROW_OF[dest][1].means is SAME
    }
    if known.get("yaml_source") is not None:
        known["yaml_source"].baseline.update(resolved)
    known.update(resolved)
    mirror(known)
    known["resolved"] = Resolved(_setting(known), config)


def _read_back(read: ReadField) -> Values:
    """Return attribute -> value that the fields amount to, where they tell."""
    found = {dest: state.read_back(read) for dest, (_, state) in _ROW_OF.items()}
    return {dest: value for dest, value in found.items() if value is not UNSET}


def mirror(values: Values) -> None:
    """Keep attributes of other versions equal to today's."""
    for row, _ in _SETTING:
        for other in row.attributes:
            values[other] = values.get(row.dest)


def _setting(values: Mapping[str, Any]) -> Values:
    """Return the arguments that set fields."""
    return {dest: values[dest] for dest in _ROW_OF if dest in values}


# --- arguments to the configuration ---------------------------------------------------------------


@overload
def init_configs_from_args(
    run_args: Namespace, model_type: str = "model_config", config_classes: None = None
) -> AllConfig: ...


@overload
def init_configs_from_args(
    run_args: Namespace,
    model_type: str = "model_config",
    *,
    config_classes: Sequence[type[Section]],
) -> Section | list[Section]: ...


def init_configs_from_args(
    run_args: Namespace,
    model_type: str = "model_config",
    config_classes: Sequence[type[Section]] | None = None,
) -> AllConfig | Section | list[Section]:
    """Build the configuration from Megatron's arguments.

    The arguments are only read, so that the call can be repeated. Attributes that no flag names are
    ignored; attributes that are absent leave their field at the guide's default.

    Args:
        run_args: Namespace of ``parse_args``, or any object of attributes with Megatron's names.
        model_type: name of the model section in the result.
        config_classes: build only these classes; None builds an :class:`AllConfig`.

    Returns:
        An :class:`AllConfig`, or one section for one class, or a list of sections in the order of
        the classes.

    Raises:
        ValueError: a wrong value, a missing size or a broken rule.

    """
    resolved = getattr(run_args, "resolved", None)
    if resolved is not None and config_classes is None:
        is_same_name = resolved.config.model_type == model_type
        if is_same_name and resolved.values == _setting(vars(run_args)):
            return resolved.config
    return build_selected(sections_from_args(run_args), config_classes, model_type)


def no_effect_report(run_args: Namespace) -> list[str]:
    """Return one line, with why, for what was given and changes nothing, or is given twice."""
    lines = list(getattr(run_args, "repeated", ()))
    if getattr(run_args, "yaml_source", None) is not None and hasattr(run_args, "resolved"):
        flags = (BY_NAME[name].state for name in run_args.given_flags)
        told = tuple(f"{state.path} " for state in flags if isinstance(state, Field))
        lines += [
            line for line in without_effect(run_args.resolved.config) if not line.startswith(told)
        ]
    refusals = getattr(run_args, "refusals", ())
    for name in dict.fromkeys(getattr(run_args, "given_flags", ())):
        match BY_NAME[name].state:
            case NoEffect(reason=reason):
                lines.append(f"{name} has no effect: {reason}")
            case Field(without_effect=str() as reason):
                lines.append(f"{name} has no effect: {reason}")
            case Refused() if not any(line.startswith(f"{name} ") for line in refusals):
                lines.append(f"{name} has no effect: its value asks for what happens anyway")
    return lines + switched_off(ROWS, getattr(run_args, "given_flags", ()), vars(run_args))
