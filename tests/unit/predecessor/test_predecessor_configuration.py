# SPDX-License-Identifier: Apache-2.0
"""The predecessor's configuration: its constructors, its keys, its files."""

import copy
import dataclasses
import pickle

import pytest
from mindspore.common.initializer import Normal, XavierUniform, Zero

from mindspeed_ms.config import ModelParallelConfig as PlainModelParallelConfig
from mindspeed_ms.config import TransformerConfig as PlainTransformerConfig
from mindspeed_ms.core.config import (
    AllConfig,
    DatasetConfig,
    GeneralConfig,
    LoraConfig,
    ModelParallelConfig,
    MoEConfig,
    OptimizerConfig,
    TrainingConfig,
    TransformerConfig,
    init_configs_from_yaml,
)
from mindspeed_ms.core.config.predecessor import settled
from mindspeed_ms.engine.current_config import set_all_config
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import resolve
from mindspeed_ms.training.yaml_styles.megatron_yaml import is_megatron_style
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict, load_sections

SIZES = {
    "vocab_size": 512,
    "num_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "seq_length": 64,
}

# --- constructors


def test_sections_are_linked_by_position():
    parallel, dataset, lora = ModelParallelConfig(), DatasetConfig(batch_size=3), LoraConfig()
    training = TrainingConfig(parallel, dataset, lora, seed=7)
    assert training.parallel_config is parallel and training.dataset_config is dataset
    assert training.lora_config is lora and training.seed == 7
    assert OptimizerConfig(parallel, learning_rate=0.1).parallel_config is parallel
    with pytest.raises(TypeError):
        TrainingConfig(parallel, dataset, lora, 7)


def test_a_model_takes_sizes_and_sections_by_position():
    parallel, training = ModelParallelConfig(), TrainingConfig()
    model = TransformerConfig(512, 4, 4, 64, 256, parallel, training, moe_config=MoEConfig())
    assert (model.vocab_size, model.num_layers, model.num_attention_heads) == (512, 4, 4)
    assert (model.hidden_size, model.ffn_hidden_size) == (64, 256)
    assert model.parallel_config is parallel and model.training_config is training
    plain = PlainTransformerConfig(512, 4, 4, 64, 256, parallel, training, seq_length=8)
    assert plain.ffn_hidden_size == 256


@pytest.mark.parametrize(
    ("given", "length"),
    [({}, 4096), ({"max_position_embeddings": 128}, 128), ({"seq_length": 16}, 16)],
)
def test_a_model_without_a_length_gets_one_and_says_so(given, length, caplog):
    with caplog.at_level("WARNING"):
        model = TransformerConfig(vocab_size=8, num_layers=1, num_attention_heads=1, hidden_size=8)
        model = TransformerConfig(8, 1, 1, 8, **given)
    assert model.seq_length == length
    assert caplog.messages[0] == "seq_length is not given; 4096 is taken"
    assert len(caplog.messages) == (1 if "seq_length" in given else 2)


def test_attributes_and_views_of_the_predecessor():
    model = TransformerConfig(**SIZES, attention_dropout_rate=0.1, hidden_dropout=0.2)
    assert (model.init_method, model.bias_init) == ("normal", "zeros")
    assert (model.attention_dropout, model.hidden_dropout) == (0.1, 0.2)
    values = vars(model)
    assert values["hidden_size"] == 64 and isinstance(
        values["parallel_config"], PlainModelParallelConfig
    )
    for section in (ModelParallelConfig(), TrainingConfig(), OptimizerConfig(), MoEConfig()):
        assert vars(section).keys() == {item.name for item in dataclasses.fields(section)}


def test_a_model_of_the_predecessor_is_one_of_ours():
    model = TransformerConfig(**SIZES)
    assert isinstance(model, PlainTransformerConfig)
    assert copy.deepcopy(model) == model == pickle.loads(pickle.dumps(model))
    assert dataclasses.replace(model, hidden_size=128).kv_channels == 16
    config = AllConfig(model_config=model)
    assert config.model_config is model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hiden_size": 3}, "unknown key 'hiden_size' in model_config; did you mean 'hidden_size'"),
        ({"num_experts": 4}, "num_experts belongs to moe_config; give it there"),
        ({"use_retriever": True}, "model_config.use_retriever is True, which does not exist here"),
        ({"hidden_dropout": 2.0}, "must lie between 0 and 1"),
    ],
)
def test_mistakes_in_a_model_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**SIZES, **given)


def test_inert_arguments_of_a_model_are_told(caplog):
    with caplog.at_level("WARNING"):
        TransformerConfig(**SIZES, attention_type="self_attn", bias_dropout_fusion=False)
    assert [line.partition(" ")[0] for line in caplog.messages] == [
        "model_config.bias_dropout_fusion"
    ]


def test_sections_take_older_keys_as_arguments(caplog):
    clip = {"grad_clip_type": "ClipGlobalNorm", "clip_value": 0.5}
    with caplog.at_level("WARNING"):
        training = TrainingConfig(
            ModelParallelConfig(recompute_config={"recompute": [1]}),
            DatasetConfig(dataset_dir="./dataset", batch_size=2),
            grad_clip_kwargs=clip,
            loss_func_kwargs={"loss_func_type": "VocabParallelCrossEntropy"},
        )
        optimizer = OptimizerConfig(training.parallel_config, beta1=0.5, lr_decay_samples=0)
    assert training.parallel_config.recompute == (1,) and training.dataset_config.batch_size == 2
    assert training.grad_clip_kwargs == clip and optimizer.betas == (0.5, 0.999)
    assert copy.deepcopy(training) == training
    assert [line.partition(" ")[0] for line in caplog.messages] == [
        "dataset_config.dataset_dir",
        "training_config.loss_func_kwargs",
    ]
    with pytest.raises(ValueError, match="unknown key 'epoks'"):
        TrainingConfig(epoks=3)
    with pytest.raises(ValueError, match="num_experts belongs to moe_config"):
        TransformerConfig(**SIZES, num_experts=4)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        (TrainingConfig, "grad_clip_kwargs", None),
        (TrainingConfig, "enable_compile_cache", False),
        (OptimizerConfig, "zero_config", None),
        (OptimizerConfig, "learning_rate_scheduler_kwargs", None),
        (DatasetConfig, "dataset_dir", "./dataset"),
        (DatasetConfig, "train_samples", 0),
        (ModelParallelConfig, "overlap_grad_reduce", False),
    ],
)
def test_what_was_not_given_reads_as_the_predecessors_default(section, name, value):
    made = section()
    assert getattr(made, name) == value and copy.deepcopy(made) == made
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = made.nonsense


def test_a_model_reads_as_the_predecessors():
    model = TransformerConfig(**SIZES)
    assert (model.use_retriever, model.encoder_num_layers) == (False, None)
    assert (model.attention_type, model.model_type) == ("self_attn", "encoder_or_decoder")


def test_arguments_that_files_hand_to_another_section_stay(caplog):
    with caplog.at_level("WARNING"):
        assert ModelParallelConfig(overlap_grad_reduce=False).overlap_grad_reduce is False
        assert caplog.messages == []
        assert ModelParallelConfig(overlap_grad_reduce=True).overlap_grad_reduce is True
    assert caplog.messages == [
        "parallel_config.overlap_grad_reduce is kept as an attribute: "
        "training_config.overlap_grad_reduce counts"
    ]
    assert DatasetConfig(train_samples=64).train_samples == 64


@pytest.mark.parametrize("own", [True, False, None])
def test_of_two_copies_the_read_one_counts(own, caplog):
    training = {"wrap_with_ddp": True} | ({} if own is None else {"overlap_grad_reduce": own})
    document = {
        "model_config": SIZES,
        "parallel_config": {"overlap_grad_reduce": True},
        "training_config": training,
    }
    with caplog.at_level("WARNING"):
        config = init_configs_from_dict(document)
    assert config.training_config.overlap_grad_reduce is (own is not False)
    told = [line for line in caplog.messages if "parallel_config.overlap_grad_reduce" in line]
    assert len(told) == (0 if own is None else 1)


# --- keys of its first line

OLD_KEYS = [
    ("model_config", "model_customize_staged", "x"),
    ("model_config", "eod_id", 0),
    ("dataset_config", "eod_id", 0),
    ("dataset_config", "pad_token", 1),
    ("model_config", "pad_token", 1),
    ("model_config", "pad_token_id", 1),
    ("training_config", "checkpoint_dir", "./x"),
    ("model_config", "attn_type", "self_attn"),
    ("moe_config", "moe_input_noise_eps", 0.1),
    ("dataset_config", "dataset_size", 64),
    ("dataset_config", "seq_length", 64),
    ("training_config", "loss_func_type", "VocabParallelCrossEntropy"),
    ("training_config", "use_dist_ckpt", False),
    ("training_config", "dist_ckpt_format", "x"),
]


@pytest.mark.parametrize(("section", "key", "value"), OLD_KEYS)
def test_inert_keys_load_with_a_line(section, key, value, caplog):
    document = {"model_config": dict(SIZES)}
    document.setdefault(section, {})[key] = value
    with caplog.at_level("WARNING"):
        init_configs_from_dict(document)
    assert [line.partition(" ")[0] for line in caplog.messages] == [f"{section}.{key}"]


@pytest.mark.parametrize(
    ("section", "given", "path", "expected"),
    [
        ("optimizer_config", {"beta1": 0.8}, "optimizer_config.betas", (0.8, 0.999)),
        ("optimizer_config", {"beta1": 0.8, "beta2": 0.9}, "optimizer_config.betas", (0.8, 0.9)),
        ("optimizer_config", {"lr_decay_samples": 0}, "optimizer_config.lr_decay_samples", None),
        ("optimizer_config", {"lr_decay_iters": 0}, "optimizer_config.lr_decay_iters", None),
        (
            "optimizer_config",
            {"lr_warmup_fraction": 0.1, "lr_warmup_iters": 5},
            "optimizer_config.lr_warmup_iters",
            0,
        ),
        (
            "optimizer_config",
            {"weight_decay_incre_style": "linear"},
            "optimizer_config.weight_decay_incr_style",
            "linear",
        ),
        (
            "model_config",
            {"cp_attention_mask_type": "full"},
            "parallel_config.attention_mask_type",
            "full",
        ),
        (
            "model_config",
            {"init_method": "normal"},
            "model_config.init_method_xavier_uniform",
            False,
        ),
        (
            "model_config",
            {"init_method": "xavier_uniform"},
            "model_config.init_method_xavier_uniform",
            True,
        ),
        ("model_config", {"use_post_norm": False}, "model_config.use_final_norm", False),
        ("training_config", {"shuffle": True}, "dataset_config.shuffle", True),
    ],
)
def test_keys_with_a_meaning_find_their_place(section, given, path, expected):
    document = {"model_config": dict(SIZES)}
    document.setdefault(section, {}).update(given)
    value = init_configs_from_dict(document)
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected


def test_options_of_zero_are_told(caplog):
    options = {"param_resident": True, "param_resident_rate": 0.5, "cpu_offload": True}
    options |= {"allreduce_after_grad_accumulation": True, "grad_allreduce_op": "mean"}
    with caplog.at_level("WARNING"):
        made = OptimizerConfig(zero_config={**options, "opt_parallel_group": None})
    told = [line.partition(" ")[0].rpartition(".")[2] for line in caplog.messages]
    assert sorted(told) == sorted(options.keys() - {"grad_allreduce_op"})
    assert made.zero_config["param_resident"] is True


@pytest.mark.parametrize(
    ("given", "deviation", "is_xavier"),
    [
        (Normal, 0.01, False),
        (Normal(0.5), 0.5, False),
        (XavierUniform(), 0.01, True),
    ],
)
def test_a_model_starts_as_an_initializer_says(given, deviation, is_xavier):
    config = TransformerConfig(**SIZES, init_method=given, bias_init=Zero())
    assert config.init_method is given and config.init_method_std == deviation
    assert config.init_method_xavier_uniform is is_xavier
    assert copy.deepcopy(config) == config


@pytest.mark.parametrize("given", [Normal(0.1, mean=1.0), XavierUniform(gain=2), 0.02])
def test_other_initializers_of_a_model_are_named(given):
    with pytest.raises(ValueError, match="it may be normal or xavier_uniform"):
        TransformerConfig(**SIZES, init_method=given)


def test_the_activation_that_has_another_meaning_is_told(caplog):
    with caplog.at_level("WARNING"):
        TransformerConfig(**SIZES, hidden_act="fast_gelu")
    assert any("quick_gelu is MindSpore's operator" in line for line in caplog.messages)


def test_a_length_beside_the_data_is_the_models(caplog):
    sizes = {key: value for key, value in SIZES.items() if key != "seq_length"}
    with caplog.at_level("WARNING"):
        config = init_configs_from_dict(
            {"model_config": sizes, "dataset_config": {"seq_length": 32}}
        )
    assert config.model_config.seq_length == 32 and caplog.messages == []


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"optimizer_config": {"beta1": 0.8, "betas": [0.9, 0.9]}}, "are one option, but differ"),
        ({"training_config": {"model_customise_staged": 1}}, "unknown key"),
        ({"training_config": {"grad_clip_kwargs": {"clip": 1}}}, "unknown key 'clip' in grad_clip"),
        ({"optimizer_config": {"zero_config": {"resident": 1}}}, "unknown key 'resident' in optim"),
        (
            {"optimizer_config": {"zero_config": {"grad_allreduce_op": "sum"}}},
            "use training_config",
        ),
        ({"optimizer_config": {"zero_config": 2}}, "zero_config is 2, which does not exist here"),
        ({"model_config": {**SIZES, "init_method": "ones"}}, "may be normal or xavier_uniform"),
        ({"model_config": {**SIZES, "bias_init": "ones"}}, "biases start at zero"),
    ],
)
def test_contradictions_and_misspellings_stay_refused(document, message):
    with pytest.raises(ValueError, match=message):
        init_configs_from_dict({"model_config": SIZES, **document})


def write(folder, text):
    path = folder / "a.yaml"
    path.write_text(text)
    return path


def test_a_file_without_a_length_loads(tmp_path, caplog):
    sizes = "".join(f"  {k}: {v}\n" for k, v in SIZES.items() if k != "seq_length")
    path = write(tmp_path, f"model_config:\n{sizes}training_config:\n  seed: 3\n")
    with caplog.at_level("WARNING"):
        model, training = init_configs_from_yaml(path, [TransformerConfig, TrainingConfig])
    assert (model.seq_length, training.seed) == (4096, 3)
    assert caplog.messages == ["seq_length is not given; 4096 is taken"]
    assert init_configs_from_yaml(path, model_config={"seq_length": 8}).model_config.seq_length == 8


def test_of_a_key_written_twice_the_last_value_counts(tmp_path, caplog):
    path = write(tmp_path, "training_config:\n  seed: 3\n  seed: 4\n")
    with caplog.at_level("WARNING"):
        assert init_configs_from_yaml(path, [TrainingConfig]).seed == 4
    assert caplog.messages == ["seed is written twice; the last value counts"]
    with pytest.raises(ValueError, match="'seed' is written twice"):
        load_sections(path)


@pytest.mark.parametrize("layout", [None, "BSH", "SBH"])
def test_a_file_that_says_the_layout_means_it(tmp_path, layout):
    sizes = "".join(f"  {k}: {v}\n" for k, v in SIZES.items())
    line = f"dataset_config:\n  data_layout: {layout}\n" if layout else ""
    path = write(tmp_path, f"model_config:\n{sizes}{line}")
    set_all_config(None)  # whatever ran before in this process
    alone = init_configs_from_yaml(path)
    assert alone.model_config.batch_first is (layout != "SBH")  # a script's own cells
    set_all_config(alone)
    try:  # in a run of pretrain, as the guide's model expects
        assert alone.model_config.batch_first is (layout == "BSH")
    finally:
        set_all_config(None)
    model = init_configs_from_yaml(path, [TransformerConfig])
    assert model.batch_first is (layout != "SBH") and model.adds_masks


# --- its second line, in Megatron's layout

SECOND = """
num_layers: 4
hidden_size: 64
num_attention_heads: 4
seq_length: 64
max_position_embeddings: 64
micro_batch_size: 1
padded_vocab_size: 512
lr: 1.0e-3
mock_data: true
mask_func_type: attn_mask_fill
eod_id: 0
epochs: 1
model_customize_staged: x
loss_reduction: mean
use_post_norm: true
data_layout: BSH
dist_ckpt_format: torch_dist
loss_func_type: VocabParallelCrossEntropy
softmax_compute_dtype: float32
pad_token: 1
shuffle: false
weight_decay_incre_style: constant
use_dist_ckpt: false
use_lora: false
"""


@pytest.mark.parametrize("flag", ["--yaml-cfg", "--yaml"])
def test_its_second_line_loads_through_either_flag(flag, tmp_path, caplog):
    path = write(tmp_path, SECOND)
    with caplog.at_level("WARNING"):
        config = resolve(parse_args([flag, str(path)])).config
    assert config.model_config.hidden_size == 64 and config.dataset_config.mock_data
    assert config.model_config.attention_dropout_rate == 0.1  # Megatron's defaults
    assert {line.partition(" ")[0] for line in caplog.messages} == {
        *("mask_func_type", "eod_id", "epochs", "model_customize_staged", "data_layout"),
        *("loss_func_type", "softmax_compute_dtype", "pad_token"),
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("num_layers: x", "num_layers is 'x', but must be a whole number"),
        ("bf16: 1", "bf16 is 1, but must be true or false"),
        ("yaml: other.yaml", "yaml names another file"),
        ("a: {hidden_size: 8}\nb: {hidden_size: 16}", "hidden_size is given twice"),
        ("device_memory: -1", "device_memory is -1, which is no positive"),
    ],
)
def test_mistakes_in_megatrons_layout_are_named(line, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--yaml-cfg", str(write(tmp_path, line + "\nmicro_batch_size: 1\n"))])
    text = capsys.readouterr().err
    assert caught.value.code == 2 and text.count("\n") == 1 and message in text, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_layers: 2\n", True),
        ("language_model: {num_layers: 2}\n", True),
        ("model_config: {num_layers: 2}\n", False),
        ("train_config: {}\n", False),
        ("base: tiny_gpt.yaml\n", False),
        ("nonsense: 3\n", False),
    ],
)
def test_megatrons_layout_is_recognised(text, expected, tmp_path):
    assert is_megatron_style(write(tmp_path, text)) == expected


# --- assignments


def test_what_is_assigned_is_checked_and_what_follows_is_derived_anew():
    parallel, training = ModelParallelConfig(), TrainingConfig()
    model = TransformerConfig(**SIZES, parallel_config=parallel, training_config=training)
    model.hidden_size, model.attention_dropout = 128, 0.25
    assert (model.kv_channels, model.ffn_hidden_size) == (32, 512)
    assert model.attention_dropout_rate == 0.25
    parallel.sequence_parallel = True  # nothing to split yet
    assert not parallel.sequence_parallel
    parallel.tensor_model_parallel_size = 2
    assert model.parallel_config.sequence_parallel
    parallel.tensor_model_parallel_size = None
    assert parallel.tensor_model_parallel_size == 1
    with pytest.raises(ValueError, match=r"model_config.num_layers is 'x', but must be"):
        model.num_layers = "x"
    with pytest.raises(ValueError, match="num_experts belongs to moe_config"):
        model.num_experts = 4
    with pytest.raises(ValueError, match="did you mean 'hidden_size'"):
        model.hiden_size = 4
    assert model.num_layers == 4 and copy.deepcopy(model).kv_channels == 32
    copied = pickle.loads(pickle.dumps(model))
    copied.hidden_size = 64
    assert (copied.kv_channels, model.kv_channels) == (16, 32)


def test_a_rule_that_waits_for_another_assignment_is_told(caplog):
    model = TransformerConfig(**SIZES)
    with caplog.at_level("WARNING"):
        model.hidden_size = 30
    assert caplog.messages[0].startswith("hidden_size (30) must be divisible by")
    with pytest.raises(ValueError, match="must be divisible"):
        settled(model)
    model.num_attention_heads = 3
    assert settled(model).kv_channels == 10 and len(caplog.messages) == 1


def test_attributes_of_a_scripts_own_are_kept_with_a_line(caplog):
    with caplog.at_level("WARNING"):
        parallel = ModelParallelConfig(data_parallel=2, zzz=1, use_sequence_parallel=True)
        parallel.yyy = 3
        moe = MoEConfig(add_bias_linear=False, moe_input_noise_eps=None)
    assert (parallel.data_parallel, parallel.zzz, parallel.yyy) == (2, 1, 3)
    assert moe.add_bias_linear is False and moe.moe_input_noise_eps is None
    assert [line.partition(" ")[0] for line in caplog.messages] == [
        *("parallel_config.data_parallel", "parallel_config.zzz", "parallel_config.yyy"),
        "moe_config.add_bias_linear",
    ]
    general = GeneralConfig(parallel_config=parallel, loss_reduction="mean")
    assert general.parallel_config is parallel and general.loss_reduction == "mean"


LINKED = """
training_config: {checkpoint_dir: ./a.pt, seed: 3}
parallel_config: {tensor_parallel: 2, use_sequence_parallel: true}
dataset_config: {dataset_size: 6, seq_length: 16, train_samples: 100}
optimizer_config: {lr_decay_samples: 0}
moe_config: {num_experts: 1}
model_config:
  {vocab_size: 8, num_layers: 4, num_heads: 4, hidden_size: 16, pad_token_id: -1,
   mlp_has_gate: true}
"""


@pytest.mark.parametrize(
    "classes", [None, [TrainingConfig, ModelParallelConfig, TransformerConfig]]
)
def test_sections_of_a_file_are_linked_open_and_hold_its_keys(tmp_path, classes):
    built = init_configs_from_yaml(write(tmp_path, LINKED), classes)
    training, parallel, model = (
        built or ()
        if classes
        else (
            *(built.training_config, built.parallel_config),
            built.model_config,
        )
    )
    assert training.checkpoint_dir == "./a.pt" and model.pad_token_id == -1
    assert model.dataset_config.dataset_size == 6 and model.dataset_config.seq_length == 16
    assert model.num_attention_heads == 4 and model.gated_linear_unit
    assert parallel.sequence_parallel and parallel.tensor_model_parallel_size == 2
    assert model.parallel_config is parallel is training.parallel_config
    parallel.num_layer_list, training.train_samples = [2, 2], None
    assert model.parallel_config.num_layer_list == (2, 2)
    if classes is None:
        built.parallel_config.tensor_model_parallel_size = 4
        assert built.model_config.parallel_config.tensor_model_parallel_size == 4
        assert built.dataset_config.train_samples == 100
