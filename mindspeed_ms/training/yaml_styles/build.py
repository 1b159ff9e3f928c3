# SPDX-License-Identifier: Apache-2.0
"""From plain sections (section -> key -> value) to an :class:`AllConfig`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mindspeed_ms.config.all_config import SECTION_CLASSES, AllConfig
from mindspeed_ms.config.build import Sections, assemble, build_sections, fill_types
from mindspeed_ms.config.coercion import no_pairs, unknown_key
from mindspeed_ms.config.section import Section, clean_section
from mindspeed_ms.training.yaml_styles.guide_style import (
    PENDING,
    is_guide_style,
    join_kernel_choices,
    translate,
)
from mindspeed_ms.training.yaml_styles.legacy_keys import modernize


def clean_sections(document: Mapping[str, Any], model_type: str = "model_config") -> Sections:
    """Return the sections of one document, either style, with today's key names and checked values.

    Raises:
        ValueError: an unknown section or key, or a value of the wrong type.

    """
    if PENDING in document:
        raise unknown_key("the file", PENDING, SECTION_CLASSES)
    if is_guide_style(document):
        document = translate(document)
    renamed: dict[str, Any] = {}
    for name, values in document.items():
        section = "model_config" if name == model_type else name
        if section not in SECTION_CLASSES and section != PENDING:
            raise unknown_key("the file", str(name), SECTION_CLASSES)
        if values is not None and not isinstance(values, Mapping):
            raise no_pairs(name, values)
        renamed[section] = values or {}
    current = modernize(renamed)
    pending = current.pop(PENDING, None)
    sections = checked_sections(current)
    if pending:
        sections[PENDING] = pending
    return sections


def checked_sections(sections: Mapping[str, Mapping[str, Any]]) -> Sections:
    """Return sections with today's key names with their values checked.

    Raises:
        ValueError: a value that its field does not take.

    """
    return {
        name: clean_section(SECTION_CLASSES[name], values) if name != PENDING else dict(values)
        for name, values in sections.items()
    }


def merge_sections(layers: Iterable[Mapping[str, Mapping[str, Any]]]) -> Sections:
    """Return the union of several sets of sections; a later one wins key by key."""
    merged: Sections = {}
    for layer in layers:
        for name, values in layer.items():
            merged.setdefault(name, {}).update(values)
    return merged


def _build_all(
    sections: Mapping[str, Mapping[str, Any]], model_type: str = "model_config"
) -> AllConfig:
    """Build and validate the whole configuration from merged, cleaned sections.

    Raises:
        ValueError: a missing key or a broken rule.

    """
    merged = merge_sections([sections])
    join_kernel_choices(merged)
    return assemble(merged, model_type)


def build_selected(
    sections: Mapping[str, Mapping[str, Any]],
    config_classes: Sequence[type[Section]] | None,
    model_type: str = "model_config",
) -> AllConfig | Section | list[Section]:
    """Build everything, or only the sections of the given classes.

    Returns:
        An AllConfig when no classes are given, one section for one class, else a list in the order
        of the classes.

    """
    if not config_classes:
        return _build_all(sections, model_type)
    for cls in config_classes:
        known = SECTION_CLASSES.get(getattr(cls, "NAME", ""))
        if known is None or not (isinstance(cls, type) and issubclass(cls, known)):
            raise ValueError(
                f"{cls!r} is not a configuration class; use "
                f"{', '.join(c.__name__ for c in SECTION_CLASSES.values())}"
            )
    merged = merge_sections([sections])
    join_kernel_choices(merged)
    fill_types(merged)
    built = build_sections(merged, [cls.NAME for cls in config_classes])
    chosen = [built[cls.NAME] for cls in config_classes]
    return chosen[0] if len(chosen) == 1 else chosen
