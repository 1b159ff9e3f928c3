# SPDX-License-Identifier: Apache-2.0
"""Layers of newer kinds are written in the order in which Megatron-core builds them."""

import json
from types import SimpleNamespace

import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.formats.megatron_writer import MegatronWriter
from mindspeed_ms.models.gpt import gpt_spec

GROUPS = {"group_query_attention": True, "num_query_groups": 2}
BLOCKS = [
    {"attention": {"replace_with_linear": True}, "mlp": {"no_op": True}},
    {"attention": {"no_op": True}, "mlp": {"replace_with_linear": True}},
]
KINDS = {
    "sinks": (
        {"softmax_type": "learnable", **GROUPS},
        "self_attention.core_attention.softmax_offset self_attention.linear_proj.weight "
        "self_attention.linear_qkv.weight",
    ),
    "states": (
        {
            "hidden_act": "swiglu",
            "experimental_attention_variant": "gated_delta_net",
            "linear_attention_freq": (1, 0),
        },
        "self_attention.dt_bias self_attention.A_log self_attention.in_proj.weight "
        "self_attention.conv1d.weight self_attention.out_norm.weight "
        "self_attention.out_proj.weight",
    ),
    "chosen keys": (
        {
            "multi_latent_attention": True,
            "mla_config": LatentAttentionConfig(q_lora_rank=8),
            "experimental_attention_variant": "dsa",
            "dsa_indexer_n_heads": 2,
            "dsa_indexer_head_dim": 64,
            "dsa_indexer_topk": 4,
        },
        "self_attention.core_attention.indexer.linear_wq_b.weight "
        "self_attention.core_attention.indexer.linear_wk.weight "
        "self_attention.core_attention.indexer.k_norm.weight "
        "self_attention.core_attention.indexer.k_norm.bias "
        "self_attention.core_attention.indexer.linear_weights_proj.weight "
        "self_attention.linear_proj.weight self_attention.linear_q_down_proj.weight "
        "self_attention.linear_q_up_proj.weight self_attention.linear_kv_down_proj.weight "
        "self_attention.linear_kv_up_proj.weight",
    ),
    "a linear layer": (
        {"heterogeneous_layers_config_encoded_json": json.dumps({"block_configs": BLOCKS})},
        "self_attention.weight",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_sorted_as_megatron_core_names_its_parameters(kind):
    changes, attention = KINDS[kind]
    config = model_config(LLAMA, NO_BIAS, {"num_layers": 2}, **changes)
    writer = object.__new__(MegatronWriter)
    writer._target = SimpleNamespace(naming="local")
    found = [one.megatron_name for one in gpt_spec(config).of_layer(0, None)]
    wanted = [f"decoder.layers.0.{name}" for name in ["input_layernorm.weight", *attention.split()]]
    ordered = sorted(sorted(found), key=writer._place)
    assert ordered[: len(wanted)] == wanted
    assert set(wanted) <= set(found)
    blocks = [name.partition(".0.")[2].partition(".")[0] for name in ordered]
    assert blocks == sorted(
        blocks, key=["input_layernorm", "self_attention", "pre_mlp_layernorm", "mlp"].index
    )
