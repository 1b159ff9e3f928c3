# SPDX-License-Identifier: Apache-2.0
"""From clean sections (section -> field -> value) to an :class:`AllConfig`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from mindspeed_ms.config.all_config import SECTION_CLASSES, AllConfig
from mindspeed_ms.config.dtypes import FLOAT32
from mindspeed_ms.config.section import Section, required_fields

logger = logging.getLogger(__name__)

Sections = dict[str, dict[str, Any]]
"""Section -> field -> value."""

MISSING_KEY_HELP = {
    "vocab_size": "give --padded-vocab-size (in YAML vocab_size), or a tokenizer from which it "
    "follows",
}
"""Required key -> what to do about it, where more than "give it" is to be said."""


def fill_types(sections: Sections) -> None:
    """Give the types that follow from fp16, bf16 and compute_dtype, where the user gave none."""
    training = sections.get("training_config", {})
    model = sections.setdefault("model_config", {})
    for switch, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        if training.get(switch):
            model.setdefault("params_dtype", dtype)
            model.setdefault("compute_dtype", dtype)
    if training.get("bf16"):
        training.setdefault("accumulate_allreduce_grads_in_fp32", True)
    if model.get("softmax_compute_dtype", FLOAT32) != FLOAT32:
        model.setdefault("attention_softmax_in_fp32", False)
    if "compute_dtype" in model:
        sections.setdefault("parallel_config", {}).setdefault("recv_dtype", model["compute_dtype"])


def build_sections(
    sections: Mapping[str, Mapping[str, Any]], names: Iterable[str]
) -> dict[str, Section]:
    """Build the named sections and those they link to.

    Raises:
        ValueError: a required key is missing or a rule within a section is broken.

    """
    wanted = set(names)
    for name in [*wanted]:
        wanted |= SECTION_CLASSES[name].LINKS
    built: dict[str, Section] = {}
    for name, cls in SECTION_CLASSES.items():
        if name not in wanted:
            continue
        values = sections.get(name, {})
        for key in required_fields(cls):
            if values.get(key) is None:
                advice = MISSING_KEY_HELP.get(key, "give it, it has no default")
                raise ValueError(f"{name}.{key} is missing; {advice}")
        links = {link: built[link] for link in cls.LINKS if link in built}
        built[name] = cls.from_dict(values, links)
    return built


def assemble(
    sections: Mapping[str, Mapping[str, Any]], model_type: str = "model_config"
) -> AllConfig:
    """Build the whole configuration, which is valid then, from sections with today's names.

    What ``AllConfig.to_dict`` returns, and the configuration in a checkpoint, are such sections.

    Raises:
        ValueError: an unknown key, a missing one or a broken rule.

    """
    own = {name: dict(values) for name, values in sections.items()}
    fill_types(own)
    built = build_sections(own, SECTION_CLASSES)
    config = AllConfig(**built, model_type=model_type)  # type: ignore[arg-type]
    if own.get("parallel_config", {}).get("sequence_parallel"):
        if not config.parallel_config.sequence_parallel:
            logger.warning("sequence_parallel is off: tensor_model_parallel_size is 1")
    return config
