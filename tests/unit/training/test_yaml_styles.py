# SPDX-License-Identifier: Apache-2.0
"""The two YAML styles, files that build on others, and the way back to YAML."""

import logging
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from shipped import own_configs

from mindspeed_ms.config import to_yaml, unsupported_reason
from mindspeed_ms.config.section import field_names
from mindspeed_ms.training.yaml_styles.guide_style import TARGETS
from mindspeed_ms.training.yaml_styles.yaml_files import (
    find_yaml,
    init_configs_from_dict,
    init_configs_from_yaml,
    load_sections,
)

CONFIGS = Path(__file__).parents[3] / "configs"
SIZES = {
    "vocab_size": 512,
    "num_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "seq_length": 64,
}


def reload(config):
    return init_configs_from_dict(yaml.safe_load(to_yaml(config)))


@pytest.mark.parametrize(
    ("path", "world_size"),
    [
        ("tiny_gpt.yaml", 4),
        ("llama2_7b.yaml", 8),
        ("38BV3/model_38BV3.yaml", 128),
        ("mixtral_8x7b.yaml", 32),
        ("deepseek_v3.yaml", 1024),
        ("qwen2_moe.yaml", 16),
        ("tiny_mixtral.yaml", 2),
        ("tiny_deepseek_v3.yaml", 2),
        ("tiny_qwen2_moe.yaml", 2),
    ],
)
def test_shipped_configs_validate_and_go_round(path, world_size):
    config = init_configs_from_yaml(CONFIGS / path)
    config.validate(world_size)
    assert reload(config) == config


def test_every_shipped_file_is_read():
    for path in own_configs():
        assert load_sections(path), path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_need_nothing_that_is_missing(path):
    assert unsupported_reason(init_configs_from_yaml(path)) == []


# --- the 38BV3 style

GUIDE_FILES = [
    "model_38BV3_seq_4K.yaml",
    "model_38BV3_seq_4K_device_B2_accelerate.yaml",
    "model_38BV3_seq_4K_train.yaml",
]


def test_three_files_of_the_guide_make_one_configuration():
    config = init_configs_from_yaml(GUIDE_FILES)
    model, parallel = config.model_config, config.parallel_config
    assert (model.vocab_size, model.hidden_size, model.ffn_hidden_size) == (165664, 6144, 27648)
    assert (model.num_layers, model.num_attention_heads, model.num_query_groups) == (62, 48, 8)
    assert model.group_query_attention and model.kv_channels == 128
    assert (model.seq_length, model.max_position_embeddings) == (4096, 4096)
    assert (model.position_embedding_type, model.rotary_base) == ("rope", 10000.0)
    assert (model.init_method_std, model.embedding_init_method_std) == (0.00884, 0.5)
    assert (model.normalization, model.norm_epsilon) == ("FusedRMSNorm", 1e-5)
    assert model.use_sandwich_norm
    assert (model.attn_post_norm_scale, model.ffn_post_norm_scale) == (0.0447, 0.0825)
    assert (model.attention_dropout_rate, model.hidden_dropout_rate) == (0.0, 0.0)
    assert model.hidden_act == "swiglu"
    assert not (model.qkv_has_bias or model.out_proj_has_bias or model.mlp_has_bias)
    assert model.untie_embeddings_and_output_weights
    assert (model.params_dtype, model.compute_dtype) == ("float32", "bfloat16")
    assert model.softmax_compute_dtype == "float32"
    assert model.residual_connection_dtype == "bfloat16"
    assert not model.fp16_lm_cross_entropy
    assert model.use_flash_attention and model.apply_rope_fusion and model.apply_swiglu_fusion
    assert (parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size) == (8, 4)
    assert parallel.sequence_parallel and not parallel.gradient_accumulation_fusion
    assert parallel.num_layer_list is None and parallel.select_comm_recompute is None
    training = config.training_config
    assert training.wrap_with_ddp and training.use_distributed_optimizer
    assert training.accumulate_allreduce_grads_in_fp32 and not training.resume_training
    assert training.bucket_size == 200000000
    assert config.dataset_config.batch_size == 1
    assert config.dataset_config.make_vocab_size_divisible_by == 16
    assert config.dataset_config.tokenizer_use_fast


def test_one_file_includes_the_three():
    three, one = init_configs_from_yaml(GUIDE_FILES), init_configs_from_yaml("model_38BV3.yaml")
    for section in ("model_config", "parallel_config"):
        assert getattr(one, section).to_dict() == getattr(three, section).to_dict()
    assert one.dataset_config.batch_size == three.dataset_config.batch_size


def test_commented_keys_of_the_guide_work_when_written():
    layer_list = "[[4,4,4,4],[4,4,4,4],[4,4,4,4],[4,4,4,2]]"
    pipeline = {
        "num_stages": 4,
        "layer_list": layer_list,
        "virtual_pipeline_model_parallel_size": 4,
        "noop_layers": "60,61",
    }
    overrides = {
        "accelerate_config": {"parallelization": {"pipeline": pipeline}},
        "train_config": {"recompute_config": {"select_comm_recompute": layer_list}},
        "model_config": {"llm": {"blocks": {"num_layers": 62}}},
    }
    sizes = {key: value for key, value in SIZES.items() if key != "num_layers"}
    model = {**overrides["model_config"], **sizes}
    config = init_configs_from_dict({**overrides, "model_config": model})
    shape = ((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 2))
    assert config.parallel_config.num_layer_list == shape
    assert config.parallel_config.select_comm_recompute == shape
    assert config.parallel_config.noop_layers == (60, 61)


@pytest.mark.parametrize("target", sorted(set(TARGETS.values())))
def test_keys_of_the_guide_lead_to_fields(target):
    from mindspeed_ms.config import SECTION_CLASSES

    section, _, key = target.partition(".")
    assert key in field_names(SECTION_CLASSES[section])


def guide(**precision):
    return {"model_config": SIZES, "accelerate_config": {"precision": precision}}


def test_special_precision_keys():
    config = init_configs_from_dict(
        guide(compute_dtype="fp16", logits_compute_dtype="fp16", grad_accumulation_dtype="fp16")
    )
    assert config.model_config.fp16_lm_cross_entropy
    assert not config.training_config.accumulate_allreduce_grads_in_fp32
    config = init_configs_from_dict(guide(nofused_operators=["flash_attention", "rmsnorm"]))
    assert not config.model_config.use_flash_attention


@pytest.mark.parametrize(
    ("kind", "is_grouped", "groups"), [("MHA", False, 32), ("MQA", True, 1), ("GQA", True, 2)]
)
def test_attention_kinds(kind, is_grouped, groups):
    attention = {"attention_type": kind, **({"kv_group_size": 2} if kind == "GQA" else {})}
    model = {**SIZES, "llm": {"blocks": {"attention": attention}}}
    config = init_configs_from_dict({"model_config": model}).model_config
    assert (config.group_query_attention, config.num_query_groups) == (is_grouped, groups)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (guide(compute_dtyp="fp16"), "unknown key 'compute_dtyp' .* did you mean 'compute_dtype'"),
        (guide(logits_compute_dtype="bf16"), "the loss takes float32 or float16"),
        (guide(fused_operators="ropes"), "unknown key 'ropes' .* did you mean 'rope'"),
        ({"accelerate_config": {"precision": 3}}, "must hold key: value pairs"),
        ({"train_config": {"ms_training_config": {"bukket": 1}}}, "unknown key 'bukket'"),
        (
            {"model_config": {"llm": {"blocks": {"attention": {"attention_type": "XQA"}}}}},
            "must be GQA, MHA or MQA",
        ),
        ({"model_config": {"llm": {"heads": {"shared": 1}}}}, "unknown key"),
    ],
)
def test_mistakes_in_the_38bv3_style(document, message):
    with pytest.raises(ValueError, match=message):
        init_configs_from_dict(document)


# --- the flat style


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"model_confg": {}}, "unknown key 'model_confg' .* did you mean 'model_config'"),
        ({"model_config": {**SIZES, "hiden_size": 1}}, "did you mean 'hidden_size'"),
        ({"model_config": {**SIZES, "zzz": 1}}, "known keys: "),
        ({"model_config": [1]}, "model_config is .* must hold key: value pairs"),
        ({"training_config": {"seed": "x"}}, "training_config.seed is 'x', but must be a whole"),
        ({"model_config": {"num_layers": 2}}, "model_config.vocab_size is missing; give --padded"),
        (
            {"model_config": {**SIZES, "hidden_dropout": 0.1, "hidden_dropout_rate": 0.1}},
            "which are one option; keep only 'hidden_dropout_rate'",
        ),
        (
            {"model_config": {**SIZES, "use_retriever": True}},
            "use_retriever is True, which does not exist here",
        ),
        (
            {"training_config": {"grad_clip_kwargs": {"grad_clip_type": "X"}}},
            "grad_clip_type 'X' does not exist",
        ),
        (
            {
                "training_config": {"grad_clip_kwargs": {"clip_value": 1.0}},
                "optimizer_config": {"clip_grad": 2.0},
            },
            "one option, but differ",
        ),
        ({"parallel_config": {"recompute_config": {"full": 1}}}, "known keys: recompute"),
        ({"parallel_config": {"recompute_config": 3}}, "must hold key: value pairs"),
    ],
)
def test_mistakes_in_the_flat_style(document, message):
    with pytest.raises(ValueError, match=message) as caught:
        init_configs_from_dict(document)
    assert "\n" not in str(caught.value)


def test_older_keys_find_their_place(caplog):
    with caplog.at_level(logging.WARNING):
        config = init_configs_from_dict(
            {
                "model_config": {
                    **SIZES,
                    "num_experts": 1,
                    "attention_dropout": 0.1,
                    "attention_type": "self_attn",
                    "bias_dropout_fusion": True,
                    "rotary_config": {"rotary_percent": 0.5, "seq_len_interpolation_factor": 2},
                },
                "parallel_config": {"recompute_config": {"recompute": [1]}},
                "training_config": {"grad_clip_kwargs": {"clip_value": 0.5}},
                "dataset_config": {"train_samples": 0, "micro_batch_size": 3},
            }
        )
    assert config.model_config.attention_dropout_rate == 0.1
    assert config.model_config.rotary_percent == 0.5
    assert config.model_config.rotary_seq_len_interpolation_factor == 2.0
    assert config.parallel_config.recompute == (1,)
    assert config.optimizer_config.clip_grad == 0.5
    assert config.training_config.train_samples is None
    assert config.dataset_config.batch_size == 3
    assert "model_config.bias_dropout_fusion has no effect" in caplog.text
    moved = init_configs_from_dict({"model_config": SIZES, "dataset_config": {"train_samples": 8}})
    assert moved.training_config.train_samples == 8


def test_empty_values_mean_not_given():
    config = init_configs_from_dict(
        {"model_config": {**SIZES, "norm_epsilon": None}, "training_config": None}
    )
    assert config.model_config.norm_epsilon == 1e-5


# --- files


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


FLAT = "model_config:\n" + "".join(f"  {key}: {value}\n" for key, value in SIZES.items())


def test_numbers_in_exponent_form(tmp_path):
    path = write(tmp_path, "a.yaml", FLAT + "  norm_epsilon: 1e-6\n")
    assert init_configs_from_yaml(path).model_config.norm_epsilon == 1e-6


def test_a_file_wins_over_its_base_and_a_later_file_over_an_earlier(tmp_path):
    write(tmp_path, "base.yaml", FLAT + "training_config:\n  seed: 1\n  log_interval: 5\n")
    top = write(tmp_path, "top.yaml", "base: base.yaml\ntraining_config:\n  seed: 2\n")
    config = init_configs_from_yaml(top)
    assert (config.training_config.seed, config.training_config.log_interval) == (2, 5)
    late = write(tmp_path, "late.yaml", "training_config:\n  seed: 3\n")
    assert init_configs_from_yaml([top, late]).training_config.seed == 3
    assert init_configs_from_yaml(top, training_config={"seed": 4}).training_config.seed == 4


def test_names_are_looked_up_in_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "mine").mkdir(parents=True)
    write(tmp_path / "configs" / "mine", "deep.yaml", FLAT)
    assert find_yaml("deep.yaml") == Path("configs/mine/deep.yaml")
    assert find_yaml("tiny_gpt.yaml") == CONFIGS / "tiny_gpt.yaml"
    write(tmp_path, "tiny_gpt.yaml", FLAT)
    assert find_yaml("tiny_gpt.yaml") == Path("tiny_gpt.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", r"is not valid YAML: .* \(line 2"),
        ("seed: 1\nseed: 2\n", "key 'seed' is written twice"),
        ("- 1\n", "holds no keys"),
        ("", "holds no keys"),
        ("base: 3\n", "base is 3, but must be a file name"),
        ("base: wrong.yaml\n", "builds on itself"),
        ("base: none.yaml\n", "there is no configuration file none.yaml"),
        ("training_config:\n  sed: 1\n", "wrong.yaml: unknown key 'sed'"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    path = write(tmp_path, "wrong.yaml", text)
    with pytest.raises(ValueError, match=message) as caught:
        init_configs_from_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file(tmp_path):
    with pytest.raises(ValueError, match="there is no configuration file"):
        init_configs_from_yaml(tmp_path / "none.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="is not a text file"):
        init_configs_from_yaml(tmp_path / "image.yaml")


# --- there and back

_LAYOUTS = st.sampled_from(
    [
        {},
        {"tensor_model_parallel_size": 2, "sequence_parallel": True},
        {"pipeline_model_parallel_size": 2, "num_layer_list": [1, 3], "recompute": [[1, 0]]},
        {
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "num_layer_list": "[[1,1],[1,1]]",
            "noop_layers": [3],
        },
    ]
)
_RATES = st.floats(min_value=0.0, max_value=1.0)


@settings(max_examples=20, deadline=None)
@given(
    layout=_LAYOUTS,
    model=st.fixed_dictionaries(
        {},
        optional={
            "hidden_act": st.sampled_from(["gelu", "fast_gelu", "swiglu", "squared_relu"]),
            "compute_dtype": st.sampled_from(["fp32", "bf16", "fp16"]),
            "norm_epsilon": st.floats(min_value=1e-12, max_value=1e-2),
            "attention_dropout_rate": _RATES,
            "init_method_std": st.floats(min_value=0.0, max_value=10.0),
            "fa_config": st.just({"sparse_mode": 2, "pre_tokens": 128}),
            "position_embedding_type": st.sampled_from(["rope", "absolute", "none"]),
        },
    ),
    optimizer=st.fixed_dictionaries(
        {},
        optional={
            "learning_rate": st.floats(min_value=1e-9, max_value=1.0),
            "weight_decay": _RATES,
            "betas": st.tuples(st.floats(0.0, 0.99), st.floats(0.0, 0.99)),
            "lr_warmup_fraction": _RATES,
        },
    ),
    data=st.fixed_dictionaries(
        {},
        optional={
            "data_path": st.lists(st.sampled_from(["0.5", "data/a", "1", "b"]), min_size=1),
            "eos_token_id": st.integers(0, 511),
            "tokenizer_type": st.sampled_from(["NullTokenizer", "yes", "1e-5"]),
        },
    ),
)
def test_resolved_yaml_loads_back_equal(layout, model, optimizer, data):
    config = init_configs_from_dict(
        {
            "model_config": {**SIZES, **model},
            "parallel_config": layout,
            "optimizer_config": optimizer,
            "dataset_config": data,
        }
    )
    again = reload(config)
    assert again == config
