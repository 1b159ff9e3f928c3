# SPDX-License-Identifier: Apache-2.0
"""Layers of newer kinds are written in the order in which Megatron-core builds them."""

import json
from types import SimpleNamespace

import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.formats.megatron_writer import MegatronWriter
from mindspeed_ms.formats.names import current_name
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


FUSED = {
    "grouped heads": (
        {**GROUPS, "qk_layernorm": True},
        "self_attention.linear_qkv self_attention.q_layernorm self_attention.k_layernorm "
        "mlp.linear_fc1",
    ),
    "states": (KINDS["states"][0], "self_attention.in_proj self_attention.out_norm mlp.linear_fc1"),
    "narrow vectors": (
        {
            "multi_latent_attention": True,
            "mla_config": LatentAttentionConfig(q_lora_rank=8),
            "qk_layernorm": True,
            "moe_config": MoEConfig(num_experts=4, moe_layer_freq=(0, 1)),
        },
        "input_layernorm self_attention.linear_q_up_proj self_attention.linear_kv_up_proj "
        "mlp.linear_fc1",
    ),
    "a linear layer": (KINDS["a linear layer"][0], "self_attention"),
}


@pytest.mark.parametrize("kind", FUSED)
def test_norms_have_the_names_of_transformer_engine(kind):
    """Of the first layer; Megatron-core's layer specs say which norms it computes with a matrix."""
    changes, norms = FUSED[kind]
    spec = gpt_spec(model_config(LLAMA, NO_BIAS, {"num_layers": 2}, **changes))
    writer = object.__new__(MegatronWriter)
    writer._target, writer._spec = SimpleNamespace(naming="te"), spec
    names = {one.megatron_name: writer._file_name(one.megatron_name) for one in spec.parameters()}
    assert all(current_name(theirs) == own for own, theirs in names.items())
    layer = [name.partition("layers.0.")[2] for name in names.values() if "layers.0." in name]
    found = [name.rpartition(".")[0] for name in layer if "norm" in name]
    assert found == norms.split()


def test_a_norm_before_a_router_keeps_its_name():
    changes = FUSED["narrow vectors"][0]
    spec = gpt_spec(model_config(LLAMA, NO_BIAS, {"num_layers": 2}, **changes))
    writer = object.__new__(MegatronWriter)
    writer._target, writer._spec = SimpleNamespace(naming="te"), spec
    name = "decoder.layers.1.pre_mlp_layernorm.weight"
    assert name in spec.by_megatron_name
    assert writer._file_name(name) == name
