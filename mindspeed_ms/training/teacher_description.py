# SPDX-License-Identifier: Apache-2.0
"""The model of a teacher in memory, as its checkpoint describes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.models import ModelSpec, gpt_spec
from mindspeed_ms.models.identity import identity
from mindspeed_ms.training.checkpoint_args import model_sections
from mindspeed_ms.training.checkpoint_config import config_of, spec_of

_DESCRIPTIONS = ("config", "huggingface", "megatron_args")


def with_teacher(config: AllConfig) -> AllConfig:
    """The configuration with the teacher's model, where its checkpoint says it is another.

    A checkpoint that describes no model holds the student's, as in MindSpeed.

    Raises:
        ValueError: it describes one that cannot be held here.
    """
    training = config.training_config
    is_told = training.qad_teacher_config is not None
    if not training.qad_enable or is_told or not Path(str(training.qad_teacher_load)).exists():
        return config
    found = find_checkpoint(Path(str(training.qad_teacher_load)))
    if found is None or found.kind == "peft":
        return config  # the run says what is wrong

    def describe(common: Mapping[str, Any]) -> ModelSpec:
        is_described = any(common.get(name) for name in _DESCRIPTIONS)
        return spec_of(common) if is_described else gpt_spec(config.model_config)

    common = open_checkpoint(found, describe).common
    if not any(common.get(name) for name in _DESCRIPTIONS):
        return config
    stated = config_of(common)
    if identity(stated) == identity(config):
        return config
    sections = config.to_dict()
    sections["training_config"]["qad_teacher_config"] = model_sections(stated)
    return assemble(sections, config.model_type)
