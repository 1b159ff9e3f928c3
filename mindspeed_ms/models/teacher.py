# SPDX-License-Identifier: Apache-2.0
"""The model of a teacher in memory."""

from __future__ import annotations

from mindspeed_ms.config.all_config import AllConfig
from mindspeed_ms.config.build import Sections, assemble

_SHARED = ("tensor", "context", "expert", "ulysses", "sequence", "attention", "order")
"""Words in the names of what a teacher takes over from the student's layout: all but stages,
recomputation and sharded weights, which a model without gradients on one stage has not."""


def teacher_config(config: AllConfig) -> AllConfig:
    """The configuration of a run's teacher: all layers on one rank, the student's other layout.

    Its types, batch, length and rows of the vocabulary are the student's.

    Raises:
        ValueError: the sections that describe it do not fit together.
    """
    student = config.model_config
    sections: Sections = config.to_dict()
    for name, values in (config.training_config.qad_teacher_config or {}).items():
        sections[name] = {**sections.get(name, {}), **values}
    for name in ("params_dtype", "compute_dtype", "seq_length", "vocab_size"):
        sections["model_config"][name] = getattr(student, name)
    has_experts = bool(sections["moe_config"].get("num_experts"))
    sections["parallel_config"] = {
        name: value
        for name, value in sections["parallel_config"].items()
        if any(word in name for word in _SHARED) and (has_experts or "expert" not in name)
    }
    for name in ("qad_enable", "qad_teacher_load", "qad_teacher_config"):
        sections["training_config"].pop(name)
    sections["lora_config"] = {}
    return assemble(sections, config.model_type)
