# SPDX-License-Identifier: Apache-2.0
"""The model of a teacher in memory."""

from __future__ import annotations

from mindspeed_ms.config.all_config import AllConfig
from mindspeed_ms.config.build import Sections, assemble
from mindspeed_ms.config.section import field_default

_OF_STAGES = (
    *("pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"),
    *("num_layers_per_virtual_pipeline_stage", "num_layer_list", "noop_layers"),
    *("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"),
    *("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split"),
    *("pipeline_model_parallel_layout", "standalone_embedding_stage"),
    *("microbatch_group_size_per_vp_stage", "recompute", "select_recompute"),
    *("select_comm_recompute", "zero_level", "zero_shard_size"),
)
"""Fields of a layout that a model without stages and without gradients has no use for."""


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
    sections["model_config"] |= {
        "params_dtype": student.params_dtype,
        "compute_dtype": student.compute_dtype,
        "seq_length": student.seq_length,
        "vocab_size": student.vocab_size,
        "recompute_granularity": None,
        "recompute_method": None,
        "recompute_num_layers": None,
        "recompute_modules": None,
    }
    layout = type(config.parallel_config)
    if not sections["moe_config"].get("num_experts"):
        sections["parallel_config"] |= {
            "expert_model_parallel_size": 1,
            "expert_tensor_parallel_size": None,
        }
    sections["parallel_config"] |= {name: field_default(layout, name) for name in _OF_STAGES}
    for name in ("qad_enable", "qad_teacher_load", "qad_teacher_config"):
        sections["training_config"].pop(name)
    sections["lora_config"] = {}
    return assemble(sections, config.model_type)
