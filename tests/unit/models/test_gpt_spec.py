# SPDX-License-Identifier: Apache-2.0
"""The description of a model against the Cells that are built from it, on one rank."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Parameter
from shipped import own_configs
from tiny_models import model_config

from mindspeed_ms.config import AllConfig, ModelParallelConfig, MoEConfig, TransformerConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.core.parameter import named_buffers, named_parameters, shard_of
from mindspeed_ms.core.tensor_parallel.random import (
    draw_normal,
    seed_initialization,
    seek_initialization,
)
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_yaml

CONFIGS = Path(__file__).parents[3] / "configs"
YAMLS = sorted(
    path.relative_to(CONFIGS)
    for path in own_configs()
    if "model_config:" in path.read_text(encoding="utf-8") and path.parent.name != "38BV3"
)
pytestmark = pytest.mark.usefixtures("single_rank")


def shrunk(config: AllConfig) -> AllConfig:
    """The same kinds of layers in a size that a test can build."""
    sections = {name: dict(values) for name, values in config.to_dict().items()}
    model, moe = sections["model_config"], sections["moe_config"]
    model |= {"num_layers": min(model["num_layers"], 4), "vocab_size": 64, "seq_length": 16}
    model |= {"hidden_size": 32, "ffn_hidden_size": 48, "max_position_embeddings": 16}
    model |= {"num_attention_heads": 4, "kv_channels": 8}
    model["num_query_groups"] = 2 if model["group_query_attention"] else 4
    if model["multi_latent_attention"]:
        small = {"kv_lora_rank": 6, "qk_head_dim": 6, "qk_pos_emb_head_dim": 4, "v_head_dim": 6}
        rank = model["mla_config"]["q_lora_rank"] and 10
        model["mla_config"] = {**model["mla_config"], **small, "q_lora_rank": rank}
    if moe["num_experts"] > 1:
        moe |= {"num_experts": 4, "moe_ffn_hidden_size": 24, "moe_router_topk": 2}
        moe["moe_shared_expert_intermediate_size"] = (
            moe["moe_shared_expert_intermediate_size"] and 20
        )
        if moe["moe_router_num_groups"]:
            moe |= {"moe_router_num_groups": 2, "moe_router_group_topk": 1}
        if isinstance(moe["moe_layer_freq"], list):
            moe["moe_layer_freq"] = moe["moe_layer_freq"][: model["num_layers"]]
    parallel = ModelParallelConfig().to_dict()
    training = {"use_distributed_optimizer": False, "wrap_with_ddp": True}
    kept = {"model_config": model, "moe_config": moe, "parallel_config": parallel}
    return assemble({**kept, "training_config": training})


def held(model: GPTModel) -> dict[str, Parameter]:
    return dict([*named_parameters(model), *named_buffers(model)])


VARIANTS = {
    "normalized embeddings": {
        "position_embedding_type": "alibi",
        "normalization": "RMSNorm",
        "embed_layernorm": True,
    },
    "one layer for two further tokens": {
        "position_embedding_type": "rope",
        "mtp_num_layers": 2,
        "mtp_use_repeated_layer": True,
    },
    "learned queries": {"use_query_layer": True},
    "learned positions behind other rows, norms without factors": {
        "position_embedding_offset": 2,
        "norm_has_factor": False,
    },
    "rope, untied, gated": {
        "position_embedding_type": "rope",
        "untie_embeddings_and_output_weights": True,
        "hidden_act": "swiglu",
        "normalization": "RMSNorm",
    },
    "grouped, sandwich, query norms": {
        "position_embedding_type": "rope",
        "group_query_attention": True,
        "num_query_groups": 2,
        "use_sandwich_norm": True,
        "ffn_post_norm_scale": 0.5,
        "qk_layernorm": True,
        "layernorm_zero_centered_gamma": True,
        "normalization": "RMSNorm",
    },
    "no final norm, no biases": {
        "use_final_norm": False,
        "qkv_has_bias": False,
        "out_proj_has_bias": False,
        "mlp_has_bias": False,
    },
    "sinks in windows, some layers not rotated": {
        "position_embedding_type": "rope",
        "window_size": (5, 0),
        "window_attn_skip_freq": (1, 0, 1),
        "rotary_base_local": 100.0,
        "no_rope_freq": (0, 1, 0),
        "softmax_type": "learnable",
    },
    "norms behind the blocks, of all heads": {
        "position_embedding_type": "rope",
        "group_query_attention": True,
        "num_query_groups": 2,
        "use_pre_norm": False,
        "use_sandwich_norm": True,
        "qk_layernorm": True,
        "qk_layernorm_full": True,
    },
    "gates of gelu, side by side": {
        "hidden_act": "gelu",
        "gated_linear_unit": True,
        "use_parallel_residual": True,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
    },
    "side by side behind one norm that only multiplies": {
        "position_embedding_type": "rope",
        "normalization": "LayerNorm",
        "norm_has_bias": False,
        "use_parallel_residual": True,
        "shares_input_norm": True,
        "qk_layernorm": True,
        "qk_layernorm_per_head": True,
        "clip_qkv": 0.5,
        "untie_embeddings_and_output_weights": True,
        "head_has_bias": True,
        "embed_layernorm": True,
        "embed_layernorm_epsilon": 1e-3,
    },
    "gates beside queries, heads of one length": {
        "position_embedding_type": "rope",
        "group_query_attention": True,
        "num_query_groups": 2,
        "attention_output_gate": True,
        "qk_l2_norm": True,
    },
    "linear attention beside gated heads": {
        "position_embedding_type": "rope",
        "hidden_act": "swiglu",
        "attention_output_gate": True,
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": (1, 0, 1),
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 6,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "sparse attention": {
        "position_embedding_type": "rope",
        "multi_latent_attention": True,
        "mla_config": LatentAttentionConfig(kv_lora_rank=8, qk_head_dim=8, qk_pos_emb_head_dim=4),
        "experimental_attention_variant": "dsa",
        "dsa_indexer_n_heads": 2,
        "dsa_indexer_head_dim": 8,
        "dsa_indexer_topk": 4,
    },
    "blocks of other shapes": {
        "position_embedding_type": "rope",
        "add_bias_linear": True,
        "heterogeneous_layers_config_encoded_json": json.dumps(
            {
                "block_configs": [
                    {"attention": {"num_query_groups": 2}, "mlp": {"ffn_hidden_size": 24}},
                    {"attention": {"replace_with_linear": True}, "mlp": {"no_op": True}},
                    {"attention": {"no_op": True}, "mlp": {"replace_with_linear": True}},
                ]
            }
        ),
    },
    "narrow experts, thresholds": {
        "add_bias_linear": True,
        "moe_config": MoEConfig(
            num_experts=4,
            moe_latent_size=12,
            moe_router_load_balancing_type="quantile_balancing",
            moe_router_has_bias=True,
        ),
    },
    "16-bit weights": {"params_dtype": "bfloat16", "compute_dtype": "bfloat16"},
}


def variant(changes: dict) -> TransformerConfig:
    sizes = {"vocab_size": 64, "num_layers": 3, "num_attention_heads": 4, "hidden_size": 32}
    defaults = {"ffn_hidden_size": None, "init_method_std": 0.01, "seq_length": 16}
    return model_config(sizes, defaults, **changes)


def assert_described(config: TransformerConfig) -> None:
    seed_initialization(7)
    parameters, spec = held(GPTModel(config)), gpt_spec(config)
    assert parameters.keys() == spec.by_name.keys()
    for name, param in parameters.items():
        told, shard = spec.by_name[name], shard_of(param)
        assert tuple(param.shape) == told.shape, name
        assert param.requires_grad == told.is_trained, name
        assert str(param.dtype).lower() == told.dtype, name
        assert (shard.partition_dim, shard.partition_stride) == (
            told.partition_dim,
            told.partition_stride,
        ), name
        assert shard.is_expert == (told.expert is not None), name
        assert shard.is_vocabulary == told.is_vocabulary, name
    trained = [param.size for param in parameters.values() if param.requires_grad]
    assert spec.num_parameters == sum(trained)


@pytest.mark.parametrize("name", YAMLS, ids=str)
def test_shipped_models_are_built_as_described(name):
    assert_described(shrunk(init_configs_from_yaml(CONFIGS / name)).model_config)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_model_is_built_as_described(changes):
    assert_described(variant(changes))


@pytest.mark.parametrize("name", YAMLS, ids=str)
def test_initial_values_lie_where_the_description_says(name):
    """Each parameter alone, drawn from its own place in the stream."""
    config = shrunk(init_configs_from_yaml(CONFIGS / name)).model_config
    seed_initialization(7)
    parameters, spec = held(GPTModel(config)), gpt_spec(config)
    position, found = 0, 0
    for told in spec.parameters():
        if told.init.std is None:
            np.testing.assert_array_equal(
                parameters[told.name].asnumpy().astype(np.float32), np.float32(told.init.value)
            )
            continue
        start = position + (told.words // 2 if told.init.is_drawn_twice else 0)
        seed_initialization(7)
        seek_initialization(start)
        expected = draw_normal(told.shape, told.init.std)
        actual = parameters[told.name].astype("float32").asnumpy()
        tolerance = 0.0 if told.dtype == "float32" else 0.01
        np.testing.assert_allclose(actual, expected, rtol=tolerance, err_msg=told.name)
        position, found = position + told.words, found + 1
    assert found > 4
    head = () if spec.head is None else spec.head.parameters()
    assert position == spec.head_start + sum(told.words for told in head)


def test_names_of_megatron_are_told_apart():
    for changes in VARIANTS.values():
        spec = gpt_spec(variant(changes))
        assert len(spec.by_megatron_name) == len(spec.by_name)


def test_a_layer_that_passes_its_input_through_has_no_parameters():
    config = variant({})
    parallel = replace(config.parallel_config, noop_layers=(1,))
    spec = gpt_spec(replace(config, parallel_config=parallel))
    assert spec.layers[1] is None and not list(spec.of_layer(1))
    assert spec.layer_starts[1] == spec.layer_starts[2] < spec.layer_starts[3]


@pytest.mark.parametrize("has_gate", [False, True])
def test_the_blocks_of_a_group_are_all_of_its_rows(has_gate):
    """An optimizer of matrices takes them apart; gates are a matrix of their own."""
    sizes = {"group_query_attention": True, "num_query_groups": 2}
    config = model_config(sizes, attention_output_gate=has_gate)
    attention = gpt_spec(config).layers[0].attention
    assert sum(attention.row_blocks) * attention.num_groups == attention.qkv_proj.outputs
    assert attention.row_blocks == ((8, 8, 4, 4) if has_gate else (8, 4, 4))
