# SPDX-License-Identifier: Apache-2.0
"""Every rule of the configuration, with its message."""

import pytest
from section_values import model, whole

from mindspeed_ms.config import (
    DatasetConfig,
    LoraConfig,
    ModelParallelConfig,
    MoEConfig,
    OptimizerConfig,
    TrainingConfig,
    unsupported_reason,
)

# --- rules inside a section

PP2 = {"pipeline_model_parallel_size": 2}
WRONG_SECTIONS = [
    (ModelParallelConfig, {"tensor_model_parallel_size": 0}, "must be at least 1"),
    (ModelParallelConfig, {"tensor_model_parallel_size": "two"}, "must be a whole number"),
    (ModelParallelConfig, {"order": "tp-xx"}, "must name each of tp, cp"),
    (ModelParallelConfig, {"order": "tp-tp"}, "must name each of tp, cp"),
    (ModelParallelConfig, {"virtual_pipeline_model_parallel_size": 2}, "at least 2, given 1"),
    (ModelParallelConfig, {**PP2, "num_layer_list": [1, 2, 3]}, r"must have shape \(2,\)"),
    (ModelParallelConfig, {**PP2, "num_layer_list": [[1], [1, 2]]}, "uneven rows"),
    (ModelParallelConfig, {**PP2, "num_layer_list": [4, 0]}, "a stage without layers"),
    (ModelParallelConfig, {"num_layer_list": "[4"}, "must be a list"),
    (
        ModelParallelConfig,
        {"context_parallel_size": 4, "context_parallel_algo": "hybrid_cp_algo"},
        "needs ulysses_degree_in_cp",
    ),
    (
        ModelParallelConfig,
        {
            "context_parallel_size": 4,
            "context_parallel_algo": "hybrid_cp_algo",
            "ulysses_degree_in_cp": 4,
        },
        "and be smaller",
    ),
    (DatasetConfig, {"data_path": "a", "train_data_path": "b"}, "keep either data_path"),
    (DatasetConfig, {"data_path": "a", "mock_data": True}, "exclude each other"),
    (DatasetConfig, {"dataloader_type": "singel"}, "did you mean 'single'"),
    (DatasetConfig, {"mock_data": "yes"}, "must be true or false"),
    (LoraConfig, {"lora_dropout": 2.0}, "between 0 and 1"),
    (LoraConfig, {"target_cells": [1]}, "must be a list, each item key: value pairs"),
    (MoEConfig, {"num_experts": 2, "moe_router_topk": 3}, "must not exceed num_experts"),
    (
        MoEConfig,
        {"moe_pad_expert_input_to_capacity": True},
        "needs moe_expert_capacity_factor",
    ),
    (TrainingConfig, {"fp16": True, "bf16": True}, "exclude each other"),
    (TrainingConfig, {"loss_scale": 0.0}, "must be larger than 0"),
    (TrainingConfig, {"bucket_size": 100}, "set wrap_with_ddp: True"),
    (TrainingConfig, {"use_distributed_optimizer": True}, "set wrap_with_ddp: True"),
    (
        TrainingConfig,
        {"wrap_with_ddp": True, "bucket_size": 9, "ddp_num_buckets": 2},
        "both state how gradients are cut",
    ),
    (TrainingConfig, {"delay_grad_reduce": True}, "needs overlap_grad_reduce"),
    (TrainingConfig, {"training_iters": 1, "train_samples": 1}, "both state the length"),
    (TrainingConfig, {"rampup_batch_size": [1, 1, 8]}, "needs global_batch_size"),
    (TrainingConfig, {"rampup_batch_size": [1, 1]}, "must be a list of 3 items"),
    (
        TrainingConfig,
        {"rampup_batch_size": [1, 0, 8], "global_batch_size": 8},
        "three numbers of at least 1",
    ),
    (
        TrainingConfig,
        {"rampup_batch_size": [1, 2, 8], "global_batch_size": 8},
        "plus a multiple of",
    ),
    (TrainingConfig, {"profile_step_start": 9}, "must not be smaller than profile_step_start"),
    (TrainingConfig, {"log_interval": 0}, "must be at least 1"),
    (OptimizerConfig, {"min_lr": 1.0}, "must not exceed learning_rate"),
    (OptimizerConfig, {"lr_warmup_init": 1.0}, "warm-up goes upwards"),
    (OptimizerConfig, {"decoupled_min_lr": 0.1}, "needs decoupled_lr"),
    (OptimizerConfig, {"lr_warmup_fraction": 0.1, "lr_warmup_iters": 1}, "keep one"),
    (OptimizerConfig, {"lr_decay_style": "WSD"}, "needs the length of its last part"),
    (OptimizerConfig, {"betas": [0.9, 1.0]}, r"betas\[1\] .1.0. must lie"),
    (OptimizerConfig, {"end_weight_decay": 0.1}, "style is constant"),
    (
        OptimizerConfig,
        {
            "start_weight_decay": 0.2,
            "end_weight_decay": 0.1,
            "weight_decay_incr_style": "linear",
        },
        "must not be smaller than start_weight_decay",
    ),
    (OptimizerConfig, {"override_opt_param_scheduler": True}, "exclude each other"),
    (OptimizerConfig, {"learning_rate": float("nan")}, "must be a number"),
]


@pytest.mark.parametrize(("cls", "values", "message"), WRONG_SECTIONS)
def test_rules_inside_a_section(cls, values, message):
    with pytest.raises(ValueError, match=message) as caught:
        cls(**values)
    assert "\n" not in str(caught.value)


WRONG_MODELS = [
    ({"num_attention_heads": 3}, "hidden_size .64. must be divisible by num_attention_heads"),
    ({"group_query_attention": True, "num_query_groups": 3}, "use 1, 2, 4 groups"),
    ({"max_position_embeddings": 32}, "must be at least seq_length"),
    ({"position_embedding_type": "rope", "rotary_percent": 0.1}, "an even number above 0"),
    ({"hidden_act": "swiglu", "gated_linear_unit": False}, "is gated, but"),
    ({"add_bias_linear": True, "mlp_has_bias": False}, "but mlp_has_bias is False"),
    ({"fp32_residual_connection": True, "residual_connection_dtype": "bf16"}, "contradicts"),
    ({"recompute_granularity": "full"}, "needs recompute_method"),
    ({"recompute_method": "block"}, "needs recompute_granularity full"),
    (
        {"recompute_granularity": "full", "recompute_method": "block"},
        "needs recompute_num_layers",
    ),
    ({"recompute_num_layers": 5}, "must not exceed num_layers"),
    ({"attn_post_norm_scale": 1.5}, "between 0 and 1"),
    ({"compute_dtype": "int8"}, "must be float32, bfloat16 or float16"),
    ({"params_dtype": 32}, "must be float32, bfloat16 or float16"),
    ({"fa_config": {"keep_probe": 1.0}}, "unknown key 'keep_probe' in model_config.fa_config"),
    ({"fa_config": 3}, "must be a block of keys"),
    ({"hidden_act": "swigl"}, "did you mean 'swiglu'"),
    ({"num_layers": True}, "must be a whole number"),
]


@pytest.mark.parametrize(("values", "message"), WRONG_MODELS)
def test_rules_inside_the_model_section(values, message):
    with pytest.raises(ValueError, match=message):
        model(**values)


# --- rules between sections

TP2 = {"tensor_model_parallel_size": 2}
WRONG_PAIRS = [
    ({"num_attention_heads": 1}, {"parallel_config": TP2}, "num_attention_heads .1. must be"),
    ({"ffn_hidden_size": 99}, {"parallel_config": TP2}, "ffn_hidden_size .* use 98 or 100"),
    ({"vocab_size": 511}, {"parallel_config": TP2}, "vocab_size .511. must be divisible"),
    (
        {
            "group_query_attention": True,
            "num_query_groups": 2,
            "num_attention_heads": 6,
            "hidden_size": 24,
            "ffn_hidden_size": 96,
            "vocab_size": 513,
        },
        {"parallel_config": {"tensor_model_parallel_size": 3}},
        "num_query_groups .2. must be a multiple or divisor of tensor_model_parallel_size .3.",
    ),
    *(
        (
            {"group_query_attention": True, "num_query_groups": 1, **option},
            {"parallel_config": TP2},
            "needs whole key/value groups .* 1 .num_query_groups. for 2 ranks",
        )
        for option in ({"qk_clip": True}, {"qk_layernorm": True, "qk_layernorm_full": True})
    ),
    (
        {"group_query_attention": True, "num_query_groups": 1},
        {"parallel_config": TP2, "optimizer_config": {"optimizer_type": "muon"}},
        "cut the 1 groups .num_query_groups. into pieces; use --muon-no-split-qkv",
    ),
    (
        {"seq_length": 63},
        {"parallel_config": {**TP2, "sequence_parallel": True}},
        "seq_length .63. must be divisible .* use 62 or 64",
    ),
    (
        {"seq_length": 66},
        {"parallel_config": {"context_parallel_size": 2}},
        "2 × context_parallel_size",
    ),
    (
        {"num_attention_heads": 2},
        {"parallel_config": {"context_parallel_size": 4}},
        "use megatron_cp_algo",
    ),
    (
        {
            "num_attention_heads": 12,
            "hidden_size": 48,
            "group_query_attention": True,
            "num_query_groups": 6,
        },
        {"parallel_config": {"context_parallel_size": 4}},
        "num_query_groups per tensor-parallel rank .6. must divide",
    ),
    (
        {"seq_length": 12},
        {
            "parallel_config": {
                "context_parallel_size": 2,
                "context_parallel_algo": "kvallgather_cp_algo",
                "tensor_model_parallel_size": 4,
                "sequence_parallel": True,
            }
        },
        "context_parallel_size × tensor_model_parallel_size with sequence_parallel .8.",
    ),
    ({}, {"parallel_config": {"noop_layers": [4]}}, "layers are numbered 0 to 3"),
    ({}, {"parallel_config": {**PP2, "num_layer_list": [1, 2]}}, "holds 3 layers"),
    ({}, {"parallel_config": {"pipeline_model_parallel_size": 8}}, "use at most 4 stages"),
    (
        {},
        {"parallel_config": {**PP2, "virtual_pipeline_model_parallel_size": 3}},
        "pipeline stages × chunks",
    ),
    (
        {"num_layers": 5},
        {"parallel_config": {**PP2, "allow_uneven_stages": False}},
        "num_layers .5. must be divisible by pipeline_model_parallel_size",
    ),
    (
        {},
        {"parallel_config": {**PP2, "num_layers_per_virtual_pipeline_stage": 3}},
        "num_layers_per_virtual_pipeline_stage",
    ),
    (
        {},
        {
            "parallel_config": {
                **PP2,
                "num_layers_per_virtual_pipeline_stage": 1,
                "virtual_pipeline_model_parallel_size": 4,
            }
        },
        "which makes 2 chunks",
    ),
    ({}, {"training_config": {"bf16": True}}, "compute_dtype is float32"),
    ({"fp16_lm_cross_entropy": True}, {}, "needs compute_dtype float16"),
    ({}, {"parallel_config": {"expert_model_parallel_size": 2}}, "needs experts"),
    (
        {},
        {
            "parallel_config": {"expert_model_parallel_size": 2},
            "moe_config": {"num_experts": 3},
        },
        "num_experts .3. must be divisible",
    ),
    (
        {},
        {
            "parallel_config": {"expert_tensor_parallel_size": 2},
            "moe_config": {"num_experts": 2, "moe_ffn_hidden_size": 3},
        },
        "expert ffn width .3. must be divisible",
    ),
    (
        {},
        {"moe_config": {"num_experts": 2, "moe_layer_freq": [1, 0]}},
        "moe_layer_freq lists 2 layers",
    ),
    (
        {},
        {"parallel_config": {"tensor_model_parallel_size": 2}, "moe_config": {"num_experts": 2}},
        "with experts needs sequence_parallel",
    ),
    (
        {"multi_latent_attention": True, "group_query_attention": True, "num_query_groups": 2},
        {},
        "keys and values for every head",
    ),
    ({"mtp_num_layers": 1}, {}, "needs position_embedding_type rope or none"),
    ({"mla_config": {"qk_pos_emb_head_dim": 3}}, {}, "must be even"),
    (
        {},
        {"optimizer_config": {"lr_decay_samples": 9}, "training_config": {"training_iters": 9}},
        "use lr_decay_iters or train_samples",
    ),
    (
        {},
        {"optimizer_config": {"lr_warmup_iters": 9}, "training_config": {"train_samples": 9}},
        "use lr_warmup_samples or training_iters",
    ),
    (
        {},
        {"optimizer_config": {"overlap_param_gather": True}},
        "needs use_distributed_optimizer",
    ),
    (
        {},
        {
            "optimizer_config": {"overlap_param_gather": True},
            "parallel_config": {"zero_level": "z1"},
        },
        "needs overlap_grad_reduce",
    ),
    ({}, {"parallel_config": {"zero_shard_size": 2}}, "set use_distributed_optimizer: True"),
]


@pytest.mark.parametrize(("model_changes", "sections", "message"), WRONG_PAIRS)
def test_rules_between_sections(model_changes, sections, message):
    with pytest.raises(ValueError, match=message) as caught:
        whole(model_changes, **sections)
    assert "\n" not in str(caught.value)


def test_sequence_parallelism_is_off_where_there_is_nothing_to_split(caplog):
    """As in Megatron, whichever way the configuration comes; front doors say so."""
    assert not ModelParallelConfig(sequence_parallel=True).sequence_parallel
    assert ModelParallelConfig(**TP2, sequence_parallel=True).sequence_parallel
    with caplog.at_level("WARNING"):
        config = whole(parallel_config={"sequence_parallel": True})
    assert not config.parallel_config.sequence_parallel
    assert caplog.messages == ["sequence_parallel is off: tensor_model_parallel_size is 1"]
    caplog.clear()
    whole(parallel_config={**TP2, "sequence_parallel": True})
    assert caplog.messages == []


def test_equal_ends_of_a_constant_weight_decay_count():
    optimizer = OptimizerConfig(weight_decay=0.3, start_weight_decay=0.1, end_weight_decay=0.1)
    assert (optimizer.start_weight_decay, optimizer.end_weight_decay) == (0.1, 0.1)


def test_probability_of_keeping_is_one_minus_dropout():
    assert model(fa_config={"keep_prob": 0.9}).attention_dropout_rate == 0.1
    with pytest.raises(ValueError, match="both say how many attention weights are dropped"):
        model(fa_config={"keep_prob": 0.9}, attention_dropout_rate=0.2)
    model(fa_config={"keep_prob": 0.9}, attention_dropout_rate=0.1)


def test_all_layers_may_be_dense_beside_experts():
    config = whole(moe_config={"num_experts": 2, "moe_layer_freq": [0, 0, 0, 0]})
    assert config.moe_config.moe_layers(4) == (False,) * 4


def test_uneven_stages_are_split_automatically_in_yaml():
    config = whole({"num_layers": 5}, parallel_config=PP2)
    assert config.parallel_config.allow_uneven_stages
    apart = {**PP2, "allow_uneven_stages": False, "decoder_first_pipeline_num_layers": 2}
    whole({"num_layers": 5}, parallel_config=apart)


@pytest.mark.parametrize(
    ("sections", "world", "message"),
    [
        ({"parallel_config": TP2}, 3, "start 2 or 4 ranks"),
        ({"parallel_config": TP2}, 1, "start 2 ranks"),
        ({}, 0, "must be at least 1"),
        (
            {"parallel_config": {"zero_level": "z1", "zero_shard_size": 3}},
            4,
            r"zero_shard_size \(3\) .* a divisor of 4",
        ),
        (
            {
                "parallel_config": {"expert_model_parallel_size": 4},
                "moe_config": {"num_experts": 4},
            },
            2,
            "expert tensor × expert × pipeline",
        ),
        ({"training_config": {"global_batch_size": 6}}, 4, "use 4 or 8"),
        (
            {
                "training_config": {"global_batch_size": 8},
                "dataset_config": {"micro_batch_num": 3},
            },
            2,
            "which is 4 micro-batches",
        ),
    ],
)
def test_rules_on_the_number_of_ranks(sections, world, message):
    config = whole(**sections)
    with pytest.raises(ValueError, match=message):
        config.validate(world)


# --- what is not there yet


def test_the_basic_configuration_is_supported():
    config = whole(
        {"hidden_act": "swiglu", "hidden_dropout_rate": 0.1, "recompute_granularity": "selective"},
        parallel_config={**TP2, "sequence_parallel": True},
    )
    assert unsupported_reason(config) == []


@pytest.mark.parametrize(
    ("model_changes", "sections", "start"),
    [
        (
            {},
            {"training_config": {"loss_reduction": "sum", "calculate_per_token_loss": True}},
            "loss_reduction sum",
        ),
    ],
)
def test_unsupported_features_are_named(model_changes, sections, start):
    (reason,) = unsupported_reason(whole(model_changes, **sections))
    assert reason.startswith(start)
    assert ";" in reason
