# SPDX-License-Identifier: Apache-2.0
"""What every rank of a layout holds is what the description says, with the same initial values."""

import pytest

FAMILIES = {
    "learned queries": {"num_layers": 3, "use_query_layer": True},
    "gpt2": {"num_layers": 4, "position_embedding_offset": 2},
    "llama": {
        "num_layers": 5,
        "position_embedding_type": "rope",
        "group_query_attention": True,
        "num_query_groups": 2,
        "hidden_act": "swiglu",
        "normalization": "RMSNorm",
        "untie_embeddings_and_output_weights": True,
        "qk_layernorm": True,
        "use_sandwich_norm": True,
    },
    "sinks in windows": {
        "num_layers": 4,
        "position_embedding_type": "alibi",
        "window_size": (5, 0),
        "window_attn_skip_freq": 2,
        "softmax_type": "learnable",
    },
    "norms of all heads behind the blocks": {
        "num_layers": 4,
        "position_embedding_type": "rope",
        "group_query_attention": True,
        "num_query_groups": 2,
        "use_pre_norm": False,
        "use_sandwich_norm": True,
        "qk_layernorm": True,
        "qk_layernorm_full": True,
    },
    "side by side behind one norm that only multiplies": {
        "num_layers": 4,
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
    },
    "experts": {
        "num_layers": 4,
        "position_embedding_type": "rope",
        "hidden_act": "swiglu",
        "qkv_has_bias": False,
        "out_proj_has_bias": False,
        "mlp_has_bias": False,
        "moe_config": {
            "num_experts": 4,
            "moe_ffn_hidden_size": 24,
            "moe_layer_freq": (0, 1, 1, 1),
            "moe_shared_expert_intermediate_size": 20,
            "moe_shared_expert_gate": True,
            "moe_router_has_bias": True,
        },
    },
    "latent": {
        "num_layers": 4,
        "position_embedding_type": "rope",
        "multi_latent_attention": True,
        "mla_config": {
            "q_lora_rank": 10,
            "kv_lora_rank": 6,
            "qk_head_dim": 6,
            "qk_pos_emb_head_dim": 4,
            "v_head_dim": 6,
            "rope_type": "rope",
        },
        "qk_layernorm": True,
        "normalization": "RMSNorm",
        "mtp_num_layers": 1,
    },
}
LAYOUTS = {
    "tp2-sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline_model_parallel_size": 2}),
    "ep2": (2, {"expert_model_parallel_size": 2}),
    "tp2-sp-pp2": (
        4,
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "pipeline_model_parallel_size": 2,
        },
    ),
    "tp2-sp-etp1-ep2-pp2": (
        4,
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "expert_model_parallel_size": 2,
            "expert_tensor_parallel_size": 1,
            "pipeline_model_parallel_size": 2,
        },
    ),
}


def config_of(family, layout):
    from mindspeed_ms.config.build import assemble

    model = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 16}
    model |= {"ffn_hidden_size": 48, "compute_dtype": "float32", **FAMILIES[family]}
    moe = model.pop("moe_config", {})
    return assemble(
        {
            "model_config": model,
            "moe_config": moe,
            "parallel_config": {**layout, "allow_uneven_stages": True},
        }
    )


def held_worker(family, layout):
    """Parameters of this rank and what was planned for it, by stage."""
    from mindspeed_ms.core import parallel_state
    from mindspeed_ms.core.parameter import named_buffers, named_parameters, shard_of
    from mindspeed_ms.engine.parallel_setup import set_parallel_context, set_seed
    from mindspeed_ms.legacy.model import GPTModel
    from mindspeed_ms.planning.parameters import chunk_parameters

    config = config_of(family, layout)
    set_parallel_context(config.parallel_config)
    set_seed(1234)
    model = GPTModel(
        config.model_config,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    planned = chunk_parameters(config, parallel_state.get_pipeline_model_parallel_rank(), chunk=0)
    built = [
        (
            name,
            param.asnumpy(),
            shard_of(param).region(param.shape).bounds,
            shard_of(param).partial_gradient,
            shard_of(param).partition_rank,
        )
        for name, param in [*named_parameters(model), *named_buffers(model)]
    ]
    count = len(named_parameters(model))
    parallel_state.destroy_model_parallel()
    return {
        "built": built,
        "trained": [(name, values.shape) for name, values, *_ in built[:count]],
        "planned": [(one.name, one.shape) for one in planned],
    }


CASES = [
    (family, name)
    for family in FAMILIES
    for name in LAYOUTS
    if "ep2" not in name or family == "experts"
]


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_ranks_hold_what_is_described(dist_run, family, layout):
    from mindspeed_ms.core.parameter import ShardSpec
    from mindspeed_ms.models import gpt_spec

    (whole,) = dist_run(held_worker, ranks=1, family=family, layout={})
    values = {name: array for name, array, *_ in whole["built"]}
    ranks, sizes = LAYOUTS[layout]
    config = config_of(family, sizes)
    spec = gpt_spec(config.model_config)
    tensor = config.parallel_config.tensor_model_parallel_size
    expert_tensor = config.parallel_config.expert_tensor_parallel_size or tensor
    seen = set()
    for result in dist_run(held_worker, ranks=ranks, family=family, layout=sizes):
        if "ep2" not in layout:  # ranks beside the first have other experts than planned
            assert sorted(result["planned"]) == sorted(result["trained"])
        assert {shape for _, shape in result["planned"]} == {s for _, s in result["trained"]}
        for name, array, _, is_partial, rank in result["built"]:
            copy = spec.embedding_copy
            told = spec.by_name[name] if name in spec.by_name else copy
            assert told.name == name
            assert array.shape == told.local_shape(tensor, expert_tensor), name
            parts = tensor if told.expert is None else expert_tensor
            shard = ShardSpec(
                partition_dim=told.partition_dim,
                partition_stride=told.partition_stride,
                partitions=parts if told.partition_dim >= 0 else 1,
                partition_rank=rank,
            )
            source = name if name in values else next(spec.before_layers()).name
            expected = shard.local_slice(values[source])
            assert (array == expected).all(), name
            if told.partial_gradient != "never" and tensor > 1:
                assert is_partial, name
            seen.add(name)
    assert seen >= spec.by_name.keys()
