# SPDX-License-Identifier: Apache-2.0
"""The configuration dataclasses: types, and derived values."""

import dataclasses
import pickle

import pytest
from mindspore.common import dtype as mstype
from section_values import SIZES, model, whole

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
)
from mindspeed_ms.config.dtypes import parse_dtype
from mindspeed_ms.config.section import field_default, field_docs, section_fields
from mindspeed_ms.training.global_args import get_args, set_global_args
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict

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
