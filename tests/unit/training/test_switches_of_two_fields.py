# SPDX-License-Identifier: Apache-2.0
"""A switch that sets two fields is told back only where both hold what it sets."""

import pytest

from mindspeed_ms.models.families.registry import BY_MODEL_TYPE
from mindspeed_ms.training.checkpoint_config import config_of_megatron, megatron_args
from mindspeed_ms.training.from_args import values_of_sections


@pytest.mark.parametrize("model_type", ["nemotron", "persimmon", "minimax_m2"])
def test_models_that_rotate_half_of_each_head_are_megatrons_too(model_type):
    family = BY_MODEL_TYPE[model_type]
    config = family.config(next(iter(family.presets.values())))
    arguments = megatron_args(config)
    back = config_of_megatron(arguments).model_config
    assert (back.rotary_percent, back.rotary_interleaved) == (0.5, False)
    assert not arguments["use_partial_rope"]


@pytest.mark.parametrize("both", [True, False])
def test_a_switch_is_told_where_both_fields_hold(both):
    fields = {"reset_attention_mask": True, "reset_position_ids": both}
    values = values_of_sections({"dataset_config": fields})
    assert values["dataloader_inter_document_masking"] is both
