# SPDX-License-Identifier: Apache-2.0
"""Layers whose blocks differ: what a file says of them, and what is refused."""

import json

import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms.config.block_options import BlockShape, shapes_of
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.models.gpt import gpt_spec


def text(*blocks):
    return json.dumps({"block_configs": list(blocks), "hidden_size": 1})


USUAL = {"attention": {}, "ffn": {}}


def test_both_spellings_of_sizes_are_read():
    found = shapes_of(
        text(
            {"attention": {"n_heads_in_group": 4, "sparsify": None}, "ffn": {"ffn_mult": 2.625}},
            {"attention": {"num_query_groups": 4}, "mlp": {"ffn_hidden_size": 40}},
            {"attention": {"n_heads_in_group": None, "no_op": True}, "ffn": {"ffn_mult": None}},
            {"attention": {"replace_with_linear": True}, "mlp": {"no_op": True}},
        ),
        8,
        8192,
    )
    assert found == (
        BlockShape(num_query_groups=2, ffn_hidden_size=14336),
        BlockShape(num_query_groups=4, ffn_hidden_size=40),
        BlockShape(attention="none"),
        BlockShape(attention="linear", mlp="none"),
    )


BAD = {
    "no JSON": ("{", "is no JSON"),
    "no list": ("{}", "no list block_configs"),
    "no blocks": (text({"attention": {}}, USUAL), "block 0 of block_configs needs attention"),
    "too few": (text(USUAL), "has 1 entries for 2 layers"),
    "heads": (text(USUAL, {"attention": {"n_heads_in_group": 3}, "ffn": {}}), "must divide"),
    "groups": (
        text(USUAL, {"attention": {"num_query_groups": 3}, "ffn": {}}),
        "groups must divide the heads",
    ),
    "a factor": (text(USUAL, {"attention": {}, "ffn": {"ffn_mult": "2"}}), "above 0"),
    "a width": (text(USUAL, {"attention": {}, "ffn": {"ffn_hidden_size": 0.5}}), "whole"),
    "a size of nothing": (
        text(USUAL, {"attention": {"num_query_groups": 2, "no_op": True}, "ffn": {}}),
        "leave out the size",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_line(name):
    given, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        config(heterogeneous_layers_config_encoded_json=given)


def config(**changes):
    sizes = {"num_layers": 2, "num_attention_heads": 4}
    return model_config(LLAMA, NO_BIAS, sizes, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"multi_latent_attention": True, "mla_config": LatentAttentionConfig()},
        {"mtp_num_layers": 1},
        {"use_parallel_residual": True},
    ],
)
def test_other_kinds_of_layers_are_refused_beside_them(changes):
    given = text(USUAL, {"attention": {"no_op": True}, "ffn": {}})
    with pytest.raises(ValueError, match="do not go together"):
        config(heterogeneous_layers_config_encoded_json=given, **changes)


def test_a_layer_without_any_block_is_none():
    nothing = {"attention": {"no_op": True}, "ffn": {"no_op": True}}
    usual = {"attention": {}, "ffn": {"ffn_hidden_size": 40}}
    spec = gpt_spec(config(heterogeneous_layers_config_encoded_json=text(usual, nothing)))
    assert spec.layers[1] is None
    assert spec.layers[0].mlp.width == 40
