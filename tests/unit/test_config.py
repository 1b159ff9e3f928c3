"""The configuration dataclasses: types, derived values, and every rule with its message."""

import dataclasses
import pickle

import pytest
from mindspore.common import dtype as mstype

from mindspeed_ms.config import (
    SECTION_CLASSES,
    AllConfig,
    DatasetConfig,
    LoraConfig,
    ModelParallelConfig,
    MoEConfig,
    OptimizerConfig,
    TrainingConfig,
    TransformerConfig,
    padded_vocab_size,
    unsupported_reason,
)
from mindspeed_ms.config.dtypes import parse_dtype
from mindspeed_ms.config.section import field_default, field_docs, section_fields
from mindspeed_ms.training.global_args import get_args, set_global_args
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict

SIZES = {
    "vocab_size": 512,
    "num_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "seq_length": 64,
}


def model(**changes):
    return TransformerConfig(**{**SIZES, "compute_dtype": "float32", **changes})


def whole(model_changes=None, **sections):
    """Build an AllConfig from plain changes per section."""
    document = {"model_config": {**SIZES, "compute_dtype": "float32", **(model_changes or {})}}
    return init_configs_from_dict({**document, **sections})


# --- shape of the classes


@pytest.mark.parametrize("cls", SECTION_CLASSES.values(), ids=SECTION_CLASSES)
def test_every_field_has_a_docstring(cls):
    documented = field_docs(cls)
    assert not [item.name for item in section_fields(cls) if not documented.get(item.name)]


@pytest.mark.parametrize("cls", SECTION_CLASSES.values(), ids=SECTION_CLASSES)
def test_optional_fields_default_to_none(cls):
    # "empty in YAML" means "not given"; that only goes round when None is the default
    for item in section_fields(cls):
        if "| None" in str(item.type) and item.name not in cls.LINKS:
            assert item.default is None, item.name


@pytest.mark.parametrize("cls", SECTION_CLASSES.values(), ids=SECTION_CLASSES)
def test_aliases_name_fields(cls):
    names = {item.name for item in section_fields(cls)}
    assert set(cls.ALIASES.values()) <= names
    assert not set(cls.ALIASES) & names


def test_configs_are_frozen_and_have_no_stray_attributes():
    config = model()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 128
    with pytest.raises((AttributeError, TypeError)):
        config.hiden_size = 128
    with pytest.raises(TypeError):
        TransformerConfig(**SIZES, hiden_size=3)


def test_configs_can_be_compared_and_pickled():
    config = whole()
    assert pickle.loads(pickle.dumps(config)) == config
    assert model() != model(hidden_size=128)


# --- values


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float32", "float32"),
        ("fp32", "float32"),
        ("bf16", "bfloat16"),
        ("BFloat16", "bfloat16"),
        ("fp16", "float16"),
        ("torch.float16", "float16"),
        ("mindspore.bfloat16", "bfloat16"),
        (mstype.float16, "float16"),
    ],
)
def test_data_types_have_many_spellings(given, expected):
    assert model(compute_dtype=given).compute_dtype == expected


def test_derived_values():
    config = model()
    assert (config.ffn_hidden_size, config.kv_channels) == (256, 16)
    assert (config.max_position_embeddings, config.gated_linear_unit) == (64, False)
    assert config.embedding_init_method_std == config.init_method_std == 0.01
    assert config.residual_connection_dtype == "float32"
    assert config.num_kv_groups == 4
    assert config.has_learned_positions and not config.is_rms_norm
    assert (config.attention_dropout, config.hidden_dropout, config.data_layout) == (0, 0, "BSH")


@pytest.mark.parametrize(("hidden", "ffn"), [(64, 128), (4096, 10880), (1024, 2688)])
def test_swiglu_width_is_eight_thirds_in_multiples_of_64(hidden, ffn):
    config = model(hidden_size=hidden, hidden_act="swiglu")
    assert config.ffn_hidden_size == ffn
    assert config.gated_linear_unit


def test_compute_dtype_follows_the_guide_by_default():
    config = TransformerConfig(**SIZES)
    assert config.compute_dtype == "float16"
    assert config.params_dtype == "float32"
    assert config.residual_connection_dtype == "float16"
    residual = TransformerConfig(**SIZES, fp32_residual_connection=True).residual_connection_dtype
    assert residual == "float32"


def test_lists_may_be_written_as_text():
    layout = ModelParallelConfig(
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=2,
        num_layer_list="[[1,2],[3,4]]",
        noop_layers="0, 9",
        recompute="[[1,0],[0,1]]",
    )
    assert layout.num_layer_list == ((1, 2), (3, 4))
    assert layout.noop_layers == (0, 9)
    assert layout.recompute_config == {"recompute": ((1, 0), (0, 1))}
    assert ModelParallelConfig().recompute_config is None


def test_data_path_may_be_words_or_a_list_with_weights():
    assert DatasetConfig(data_path="0.3 a 0.7 b").data_path == ("0.3", "a", "0.7", "b")
    assert DatasetConfig(data_path=[0.3, "a", 1, "b"]).data_path == ("0.3", "a", "1", "b")
    assert DatasetConfig(data_path="a").split == "969, 30, 1"
    assert DatasetConfig().split is None


def test_numbers_are_accepted_in_the_forms_yaml_leaves_them():
    assert TrainingConfig(training_iters=1e3).training_iters == 1000
    assert OptimizerConfig(learning_rate="1e-5").learning_rate == 1e-5
    assert OptimizerConfig(betas=[0.9, 0.95]).betas == (0.9, 0.95)


def test_weight_decay_ends_follow_it_when_constant():
    config = OptimizerConfig(weight_decay=0.1)
    assert (config.start_weight_decay, config.end_weight_decay) == (0.1, 0.1)
    ramp = OptimizerConfig(weight_decay_incr_style="linear", end_weight_decay=0.1)
    assert (ramp.start_weight_decay, ramp.end_weight_decay) == (0.0, 0.1)


@pytest.mark.parametrize(
    ("name", "algorithm"), [("AdamWeightDecay", "adamw"), ("adam", "adamw"), ("SGD", "sgd")]
)
def test_optimizer_names(name, algorithm):
    assert OptimizerConfig(optimizer_type=name).algorithm == algorithm


def test_loss_scale_growth():
    assert TrainingConfig().loss_scale_growth_factor == 2.0
    assert TrainingConfig(loss_scale_factor=4).loss_scale_growth_factor == 4.0
    assert TrainingConfig(fp16=True).is_dynamic_loss_scale
    assert not TrainingConfig(fp16=True, loss_scale=128).is_dynamic_loss_scale


def test_profile_folder_lies_below_output_dir():
    assert TrainingConfig(output_dir="out/").profile_save_path == "out/profile"


def test_nan_check_has_megatrons_name_too():
    assert TrainingConfig(check_for_nan_in_grad=True).check_for_nan_in_loss_and_grad


def test_negative_capacity_means_no_limit():
    assert MoEConfig(moe_expert_capacity_factor=-1.0).moe_expert_capacity_factor is None


@pytest.mark.parametrize(
    ("size", "divisor", "tp", "padded"),
    [(504, 128, 1, 512), (504, 128, 2, 512), (504, 128, 8, 1024), (512, 128, 4, 512)],
)
def test_vocabulary_padding(size, divisor, tp, padded):
    assert padded_vocab_size(size, divisor, tp) == padded


# --- the whole


def test_sections_link_to_each_other():
    config = whole(parallel_config={"tensor_model_parallel_size": 2})
    assert config.model_config.parallel_config is config.parallel_config
    assert config.model_config.training_config is config.training_config
    assert config.training_config.dataset_config is config.dataset_config
    assert config.optimizer_config.parallel_config is config.parallel_config


def test_a_link_to_other_settings_is_refused():
    with pytest.raises(ValueError, match="model_config.parallel_config differs"):
        AllConfig(
            model_config=model(),
            parallel_config=ModelParallelConfig(tensor_model_parallel_size=2),
        )


def test_the_model_section_answers_to_the_name_the_user_gave_it():
    config = init_configs_from_dict({"llama": SIZES}, model_type="llama")
    assert config.llama is config.model_config
    with pytest.raises(AttributeError, match="no section 'gpt'"):
        _ = config.gpt


def test_selected_classes():
    document = {"model_config": SIZES, "training_config": {"seed": 7}}
    training = init_configs_from_dict(document, [TrainingConfig])
    assert training.seed == 7
    both = init_configs_from_dict(document, [TransformerConfig, TrainingConfig])
    assert both[0].training_config is both[1]
    assert init_configs_from_dict({}, [MoEConfig, LoraConfig]) == [MoEConfig(), LoraConfig()]
    with pytest.raises(ValueError, match="is not a configuration class"):
        init_configs_from_dict({}, [int])


@pytest.mark.parametrize(
    ("training", "micro", "world", "expected"),
    [
        ({"global_batch_size": 16}, {"batch_size": 2}, 4, 4),
        ({}, {"batch_size": 2, "micro_batch_num": 3}, 4, 3),
        ({"global_batch_size": 16}, {"batch_size": 2, "micro_batch_num": 4}, 4, 4),
        ({"global_batch_size": 17, "decrease_batch_size_if_needed": True}, {"batch_size": 4}, 4, 2),
    ],
)
def test_micro_batches(training, micro, world, expected):
    config = whole(
        training_config=training,
        dataset_config=micro,
        parallel_config={"tensor_model_parallel_size": 2},
    )
    assert config.num_micro_batches(world) == expected
    assert config.global_batch_size(world) == expected * config.dataset_config.batch_size * 2
    assert config.validate(world) is config


def test_bf16_sets_the_types_where_none_are_given():
    config = init_configs_from_dict({"model_config": SIZES, "training_config": {"bf16": True}})
    assert config.model_config.params_dtype == "bfloat16"
    assert config.model_config.compute_dtype == "bfloat16"
    assert config.parallel_config.recv_dtype == "bfloat16"
    assert config.training_config.accumulate_allreduce_grads_in_fp32


def test_global_args():
    set_global_args(None)
    with pytest.raises(RuntimeError, match="not known yet"):
        get_args()
    marker = object()
    set_global_args(marker)
    assert get_args() is marker
    set_global_args(None)


def test_names_that_do_not_exist_are_found():
    with pytest.raises(ValueError, match="has no key 'sed'; did you mean 'seed'"):
        field_default(TrainingConfig, "sed")
    with pytest.raises(ValueError, match="vocab_size is missing; it has no default"):
        TransformerConfig.from_dict({})
    with pytest.raises(ValueError, match="is not a data type"):
        parse_dtype("int8")


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
        {"group_query_attention": True, "num_query_groups": 1},
        {"parallel_config": TP2},
        "num_query_groups .1. must be divisible",
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
        ({"init_method_xavier_uniform": True}, {}, "init_method_xavier_uniform"),
        ({}, {"training_config": {"loss_reduction": "sum"}}, "loss_reduction sum"),
    ],
)
def test_unsupported_features_are_named(model_changes, sections, start):
    (reason,) = unsupported_reason(whole(model_changes, **sections))
    assert reason.startswith(start)
    assert ";" in reason
