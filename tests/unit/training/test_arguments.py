# SPDX-License-Identifier: Apache-2.0
"""The flag table, the parser made from it, and the way from arguments to the configuration."""

import argparse
import json
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import pytest
from flag_words import (
    BF16,
    CP2,
    DATA,
    FP32,
    MODEL,
    OPTIM,
    PARALLEL,
    SIZES,
    TRAIN,
    VPP,
    config_of,
    read,
)

from mindspeed_ms.config import MoEConfig, TrainingConfig, to_yaml
from mindspeed_ms.training.arguments import build_parser, parse_args, validate_args
from mindspeed_ms.training.flag_rules import RULES
from mindspeed_ms.training.flags import BY_NAME, ROWS, Field, Refused
from mindspeed_ms.training.flags.row import SAME, UNSET, field_doc
from mindspeed_ms.training.flags.value_types import eval_list
from mindspeed_ms.training.from_args import (
    init_configs_from_args,
    no_effect_report,
    values_of_sections,
)
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_yaml

GOLDEN = json.loads((Path(__file__).parents[2] / "data/golden_config.json").read_text())


# --- the table itself


def test_rows_are_well_formed():
    dests_of = {}
    for row in ROWS:
        assert row.group and row.summary, row.names[0]
        if isinstance(row.state, Field):
            for path in row.state.paths:
                assert field_doc(path)
                dests_of.setdefault(path, set()).add(row.dest)
        if row.choices and row.default is not None:
            assert row.default in row.choices, row.names[0]
    assert RULES.keys() <= dests_of.keys()


def test_flags_of_one_attribute_have_one_default():
    defaults = {}
    for row in ROWS:
        assert defaults.setdefault(row.dest, row.default) == row.default, row.dest


def test_rows_name_flags_and_attributes_that_exist():
    dests = {row.dest for row in ROWS}
    for row in ROWS:
        assert set(row.excludes) <= BY_NAME.keys(), row.names[0]
        assert not set(row.attributes) & dests, row.names[0]
        if isinstance(row.state, Field):
            assert set(row.state.clears) <= dests - {row.dest}, row.names[0]
            assert callable(row.state.means) <= (row.state.yields or row.state.back is not None)


def test_what_a_row_states_can_be_read_back():
    """A file that flags override is first turned into the flags that would say the same."""
    for row in ROWS:
        state = row.state
        if not isinstance(state, Field) or state.by_rule or callable(state.means):
            continue
        choices = row.choices or (row.default,)
        if isinstance(state.means, Mapping):
            for value, field in state.means.items():
                back = state.read_back(lambda path, field=field: field)
                assert state.stated(back) == field == state.stated(value), row.names[0]
                assert row.choices is None or back in row.choices
            continue
        for value in [True] if state.means is not SAME else choices:
            if state.means is SAME and value is not None and state.item is None:
                back = state.read_back(lambda path, value=value: value)
                assert back in (value, UNSET) or row.dest in ("normalization", "save"), row.names[0]
            elif state.item is None and value is not None:
                back = state.read_back(
                    lambda path, say=state.said, value=value: say(path, value, {})
                )
                assert back == value, row.names[0]


def test_the_guides_defaults_are_read_back_whole():
    values = values_of_sections({})
    assert values.keys() == {row.dest for row in ROWS} | {
        name for row in ROWS for name in row.attributes
    }
    assert values["adam_beta2"] == 0.999 and values["save"] == "./output" and values["load"] is None


def test_names_that_do_not_exist_are_found():
    with pytest.raises(ValueError, match="names model_config.nothing"):
        field_doc("model_config.nothing")


# --- golden runs

DIFFERENT = {
    "data_path": "the record drops the placeholder of the folder",
    "local_rank": "told by the launcher",
    "attention_backend": "recorded as an enum",
    "params_dtype": "recorded as a torch type",
    "cp_comm_type": "stands in context_parallel_algo",
    "moe_ffn_hidden_size": "filled for dense models too",
    "num_query_groups": "set to the heads without grouped attention",
    "add_qkv_bias": "set with add_bias_linear",
    "profile_ranks": "no effect here",
    "wandb_project": "no effect here",
    "wandb_exp_name": "no effect here",
    "wandb_save_dir": "no effect here",
    "no_save_optim": "None for False",
    "no_save_rng": "None for False",
    "async_save": "None for False",
    **{row.dest: "refused here" for row in ROWS if isinstance(row.state, Refused)},
}


@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_golden_command_lines_resolve_to_what_megatron_recorded(name):
    run = GOLDEN["runs"][name]
    recorded = {**GOLDEN["common_args"], **run["args"]}
    args = parse_args(run["command_line"])
    args.padded_vocab_size = 512  # from the tokenizer, 504 tokens
    validate_args(args, run["world_size"])
    assert {
        key: value
        for key, value in vars(args).items()
        if key in recorded and key not in DIFFERENT and value != recorded[key]
    } == {}
    before = dict(vars(args))
    config = init_configs_from_args(args)
    assert init_configs_from_args(args) == config
    assert vars(args) == before
    config.validate(run["world_size"])
    assert config.global_batch_size(run["world_size"]) == recorded["global_batch_size"]
    model = config.model_config
    for key in ("hidden_size", "ffn_hidden_size", "kv_channels", "num_layers", "norm_epsilon"):
        assert getattr(model, key) == recorded[key]
    assert model.vocab_size == recorded["padded_vocab_size"]
    assert model.compute_dtype == FP32
    assert model.has_learned_positions == (recorded["position_embedding_type"] != "rope")
    assert config.optimizer_config.learning_rate == recorded["lr"]
    assert config.optimizer_config.betas == (recorded["adam_beta1"], recorded["adam_beta2"])
    assert not config.training_config.save_checkpoints


@pytest.mark.parametrize(
    ("name", "activation", "has_bias"),
    [
        ("a_gpt2_hot", "gelu", True),
        ("a_gpt2_fused_tanh_gelu_hot", "fast_gelu", True),
        ("b_llama_hot", "swiglu", False),
        ("l_gpt2_legacy", "gelu", True),
    ],
)
def test_golden_activation_and_bias(name, activation, has_bias):
    args = parse_args(GOLDEN["runs"][name]["command_line"])
    args.padded_vocab_size = 512
    model = init_configs_from_args(args).model_config
    assert model.hidden_act == activation
    assert {model.qkv_has_bias, model.out_proj_has_bias, model.mlp_has_bias} == {has_bias}


def test_a_recorded_namespace_of_megatron_is_accepted():
    run = GOLDEN["runs"]["e_llama_dp2_distopt_hot"]
    recorded = Namespace(**GOLDEN["common_args"], **run["args"])
    config = init_configs_from_args(recorded)
    assert config.training_config.use_distributed_optimizer
    assert config.training_config.wrap_with_ddp
    assert config.parallel_config.context_parallel_algo == "megatron_cp_algo"
    assert config.model_config.params_dtype == FP32


# --- Megatron's derived defaults


def test_megatrons_defaults_apply_without_yaml():
    config = config_of()
    model, optimizer = config.model_config, config.optimizer_config
    assert (model.hidden_dropout_rate, model.attention_dropout_rate) == (0.1, 0.1)
    assert (model.init_method_std, model.position_embedding_type) == (0.02, "learned_absolute")
    assert (model.compute_dtype, model.attention_softmax_in_fp32) == (FP32, False)
    assert model.add_bias_linear and model.qkv_has_bias and model.mlp_has_bias
    assert model.hidden_act == "fast_gelu"  # the fused bias + gelu kernel
    assert (optimizer.weight_decay, optimizer.clip_grad) == (0.01, 1.0)
    assert optimizer.lr_decay_style == "linear"
    assert not optimizer.use_checkpoint_opt_param_scheduler
    training = config.training_config
    assert training.wrap_with_ddp and training.check_for_nan_in_grad and not training.no_load_rng
    assert (training.seed, training.log_interval, training.ckpt_format) == (1234, 100, "torch_dist")
    assert (training.hysteresis, training.loss_scale_growth_factor) == (2, 2.0)
    parallel = config.parallel_config
    assert parallel.gradient_accumulation_fusion and not parallel.allow_uneven_stages
    assert not parallel.overlap_p2p_comm


@pytest.mark.parametrize(
    ("words", "path", "expected"),
    [
        ("--swiglu", MODEL + "ffn_hidden_size", 128),
        ("--swiglu --hidden-size 4096", MODEL + "ffn_hidden_size", 10880),
        ("", MODEL + "ffn_hidden_size", 256),
        ("", MODEL + "kv_channels", 16),
        ("--bf16", TRAIN + "accumulate_allreduce_grads_in_fp32", True),
        ("--bf16", MODEL + "params_dtype", BF16),
        ("--bf16", PARALLEL + "recv_dtype", BF16),
        ("--fp16", TRAIN + "check_for_nan_in_grad", False),
        ("--fp16 --loss-scale 8", TRAIN + "check_for_nan_in_grad", True),
        ("--sequence-parallel", PARALLEL + "sequence_parallel", False),
        ("--apply-query-key-layer-scaling", MODEL + "attention_softmax_in_fp32", True),
        ("--data-path a", DATA + "split", "969, 30, 1"),
        ("--data-path a --split 1,0,0", DATA + "split", "1,0,0"),
        ("--mock-data", DATA + "dataloader_type", "single"),
        ("--weight-decay 0.2", OPTIM + "end_weight_decay", 0.2),
        ("--use-rotary-position-embeddings", MODEL + "position_embedding_type", "rope"),
        ("--no-position-embedding", MODEL + "position_embedding_type", "none"),
        (
            "--no-position-embedding --position-embedding-type rope",
            MODEL + "position_embedding_type",
            "rope",
        ),
        ("--recompute-activations", MODEL + "recompute_granularity", "selective"),
        (
            "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1",
            PARALLEL + "virtual_pipeline_model_parallel_size",
            2,
        ),
        (
            "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
            PARALLEL + "virtual_pipeline_model_parallel_size",
            2,
        ),
        (f"{VPP}", PARALLEL + "overlap_p2p_comm", True),
        ("--tensor-model-parallel-size 2", PARALLEL + "expert_tensor_parallel_size", 2),
        ("--use-tp-pp-dp-mapping", PARALLEL + "order", "tp-cp-ep-pp-dp"),
        (f"{CP2} --cp-comm-type p2p", PARALLEL + "context_parallel_algo", "megatron_cp_algo"),
        (f"{CP2} --cp-comm-type a2a a2a", PARALLEL + "context_parallel_algo", "ulysses_cp_algo"),
        (
            f"{CP2} --cp-comm-type allgather",
            PARALLEL + "context_parallel_algo",
            "kvallgather_cp_algo",
        ),
        (
            f"{CP2} --cp-comm-type all_gather",
            PARALLEL + "context_parallel_algo",
            "kvallgather_cp_algo",
        ),
        ("--attention-mask-type general", PARALLEL + "attention_mask_type", "general"),
        ("--cp-attention-mask-type full", PARALLEL + "attention_mask_type", "full"),
        (
            f"{CP2} --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 2 2",
            PARALLEL + "ulysses_degree_in_cp",
            2,
        ),
        ("--squared-relu", MODEL + "hidden_act", "squared_relu"),
        ("--no-bias-gelu-fusion", MODEL + "hidden_act", "gelu"),
        ("--disable-bias-linear", MODEL + "hidden_act", "gelu"),
        ("--no-bias-gelu-fusion --openai-gelu", MODEL + "hidden_act", "fast_gelu"),
        ("--normalization RMSNorm --use-fused-rmsnorm", MODEL + "normalization", "FusedRMSNorm"),
        ("--no-rope-fusion", MODEL + "apply_rope_fusion", False),
        ("--no-rope-fusion --use-fused-rotary-pos-emb", MODEL + "apply_rope_fusion", True),
        ("--load x", TRAIN + "resume_training", True),
        ("--load x --finetune", TRAIN + "resume_training", False),
        ("--save x --save-interval 2", TRAIN + "save_checkpoints", True),
        ("--rampup-batch-size 4 4 8 --global-batch-size 8", TRAIN + "rampup_batch_size", (4, 4, 8)),
        ("--num-experts 4", "moe_config.moe_ffn_hidden_size", 256),
        (
            "--num-experts 4 --moe-layer-freq ([0]*2+[1]*2)",
            "moe_config.moe_layer_freq",
            (0, 0, 1, 1),
        ),
        (
            "--use-checkpoint-opt-param-scheduler",
            OPTIM + "use_checkpoint_opt_param_scheduler",
            True,
        ),
        ("--layernorm-epsilon 1e-3", MODEL + "norm_epsilon", 1e-3),
        ("--tokenizer-name-or-path t", DATA + "tokenizer_model", "t"),
        ("--seed 0", TRAIN + "seed", 0),
    ],
)
def test_derived_and_joined_values(words, path, expected):
    assert read(config_of(*words.split()), path) == expected


def test_layers_exchange_in_one_way():
    with pytest.raises(ValueError, match="names a kind per layer"):
        config_of(*CP2.split(), "--cp-comm-type", "p2p", "a2a")


def test_the_vocabulary_is_padded_when_its_size_is_given():
    words = [word for word in SIZES if word not in ("--padded-vocab-size", "512")]
    size = ["--vocab-size", "1000", "--make-vocab-size-divisible-by", "64"]
    assert parse_args([*words, *size]).padded_vocab_size == 1024
    null = [*size, "--tokenizer-type", "NullTokenizer", "--vocab-size", "1024"]
    assert parse_args([*words, *null]).padded_vocab_size == 1088
    tp2 = [*size, "--tensor-model-parallel-size", "2"]
    assert init_configs_from_args(parse_args([*words, *tp2])).model_config.vocab_size == 1024
    other = [*size, "--tokenizer-type", "GPT2BPETokenizer"]
    with pytest.raises(ValueError, match="vocab_size is missing; give --padded-vocab-size"):
        init_configs_from_args(parse_args([*words, *other]))


def test_world_size_decides_batch_and_micro_batches():
    args = validate_args(parse_args([*SIZES, "--tensor-model-parallel-size", "2"]), 8)
    assert (args.world_size, args.data_parallel_size, args.global_batch_size) == (8, 4, 8)
    config = config_of("--global-batch-size", "32", world_size=4)
    assert config.dataset_config.micro_batch_num == 4
    assert config.num_micro_batches(4) == 4


def test_other_model_section_names_and_selected_classes():
    args = parse_args(SIZES)
    config = init_configs_from_args(args, "llama_config")
    assert config.llama_config is config.model_config
    assert config.model_config.hidden_size == 64 and config.model_config.num_layers == 4
    training, moe = init_configs_from_args(args, config_classes=[TrainingConfig, MoEConfig])
    assert training.seed == 1234 and moe.num_experts == 1


# --- YAML and command line


@pytest.mark.parametrize("name", ["tiny_gpt.yaml", "llama2_7b.yaml", "model_38BV3.yaml"])
def test_a_yaml_file_alone_means_the_same_as_loading_it(name):
    args = parse_args(["--yaml", name])
    expected = init_configs_from_yaml(name)
    assert init_configs_from_args(args) == expected
    assert args.hidden_size == expected.model_config.hidden_size
    validate_args(args, 128)
    assert init_configs_from_args(args) == expected


def test_yaml_keeps_the_guides_defaults():
    config = init_configs_from_args(parse_args(["--config", "tiny_gpt.yaml"]))
    assert config.model_config.hidden_dropout_rate == 0.0
    assert config.optimizer_config.use_checkpoint_opt_param_scheduler


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("--lr 1e-2", {"learning_rate": 0.01}),
        ("--squared-relu", {"hidden_act": "squared_relu", "gated_linear_unit": False}),
        ("--hidden-dropout 0.1", {"hidden_dropout_rate": 0.1}),
        (
            "--weight-decay 0.2",
            {"weight_decay": 0.2, "start_weight_decay": 0.2, "end_weight_decay": 0.2},
        ),
        (
            "--add-bias-linear",
            {
                "add_bias_linear": True,
                "qkv_has_bias": True,
                "out_proj_has_bias": True,
                "mlp_has_bias": True,
            },
        ),
        ("--disable-bias-linear", {}),
        ("--no-bias-gelu-fusion", {}),
        (
            "--position-embedding-type learned_absolute",
            {"position_embedding_type": "learned_absolute"},
        ),
        ("--mock-data", {"mock_data": True, "data_path": None}),
        ("--adam-beta2 0.99", {"betas": [0.9, 0.99]}),
        ("--train-samples 800", {"train_samples": 800, "training_iters": 0}),
        (
            "--override-opt_param-scheduler",
            {"override_opt_param_scheduler": True, "use_checkpoint_opt_param_scheduler": False},
        ),
        ("--use-fused-rmsnorm", {"normalization": "FusedRMSNorm"}),
        ("--save here", {"output_dir": "here", "save_checkpoints": True}),
        ("--load it", {"load_checkpoint": "it", "resume_training": True}),
        ("--load it --finetune", {"load_checkpoint": "it", "finetune": True}),
        ("--load it --resume-training false", {"load_checkpoint": "it"}),
        ("--pre-tockens 9", {"fa_config": {"pre_tokens": 9}}),
    ],
)
def test_flags_win_over_yaml(words, changed, tmp_path):
    original = init_configs_from_yaml("tiny_gpt.yaml")
    words = words.split()
    if "--train-samples" in words:  # lengths must stay of one kind
        words += ["--lr-warmup-iters", "0"]
        changed = {**changed, "lr_warmup_iters": 0}
    config = init_configs_from_args(parse_args(["--yaml", "tiny_gpt.yaml", *words]))
    before, after = original.to_dict(), config.to_dict()
    difference = {
        key: value
        for section in after
        for key, value in after[section].items()
        if value != before[section][key] and key != "profile_save_path"
    }
    if "fa_config" in changed:
        assert difference["fa_config"] == {**before["model_config"]["fa_config"], "pre_tokens": 9}
    else:
        expected = {
            key: value
            for key, value in changed.items()
            if any(key in part and part[key] != value for part in before.values())
        }
        assert difference == expected


def test_flags_win_over_a_resolved_yaml_too(tmp_path):
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(init_configs_from_yaml("tiny_gpt.yaml")))
    words = "--bf16 --weight-decay 0.3 --swiglu --use-distributed-optimizer".split()
    config = init_configs_from_args(parse_args(["--yaml", str(path), *words]))
    assert config.model_config.compute_dtype == BF16
    assert config.optimizer_config.end_weight_decay == 0.3
    assert config.training_config.use_distributed_optimizer


def test_values_set_after_parsing_count(tmp_path):
    path = tmp_path / "no_vocab.yaml"
    path.write_text(
        "model_config: {num_layers: 2, hidden_size: 8, num_attention_heads: 2, seq_length: 8}\n"
        "dataset_config: {tokenizer_type: GPT2BPETokenizer}\n"
    )
    args = parse_args(["--yaml", str(path)])
    with pytest.raises(ValueError, match="vocab_size is missing"):
        init_configs_from_args(args)
    args.padded_vocab_size = 128
    assert init_configs_from_args(args).model_config.vocab_size == 128


def test_several_yaml_files():
    args = parse_args(["--yaml", "tiny_gpt.yaml", "--config", "llama2_7b.yaml"])
    assert args.yaml == ["tiny_gpt.yaml", "llama2_7b.yaml"]
    assert args.hidden_size == 4096
    assert args.min_lr == 3e-5


# --- the user's own flags


def test_extra_flags_are_added_and_may_replace_ours():
    def provider(parser):
        group = parser.add_argument_group("mine")
        group.add_argument("--my-flag", type=int, default=3)
        group.add_argument("--attn-post-norm-scale", type=float, default=0.25)
        return parser

    args = parse_args([*SIZES, "--my-flag", "4"], extra_args_provider=provider)
    assert (args.my_flag, args.attn_post_norm_scale) == (4, 0.25)
    assert init_configs_from_args(args).model_config.attn_post_norm_scale == 0.25

    def scale(*words):
        args = parse_args(["--yaml", "model_38BV3.yaml", *words], extra_args_provider=provider)
        return init_configs_from_args(args).model_config.attn_post_norm_scale

    assert scale() == 0.0447
    assert scale("--attn-post-norm-scale", "0.5") == 0.5


def test_defaults_of_the_entry_point_fill_what_is_empty(capsys):
    args = parse_args(SIZES, args_defaults={"tokenizer_type": "NullTokenizer", "seed": 9})
    assert (args.tokenizer_type, args.seed) == ("NullTokenizer", 1234)
    with pytest.raises(SystemExit):
        parse_args(SIZES, args_defaults={"tokeniser": 1})
    assert "which no flag sets" in capsys.readouterr().err


def test_unknown_flags_may_be_left_alone():
    assert parse_args([*SIZES, "--their-flag", "3"], ignore_unknown_args=True).hidden_size == 64


def test_a_provider_may_return_nothing():
    parser = build_parser(lambda parser: parser.add_argument("--mine") and None)
    assert isinstance(parser, argparse.ArgumentParser)


# --- mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--hiden-size 3", "unknown flag --hiden-size; did you mean --hidden-size?"),
        ("--hiden_size=3", "unknown flag --hiden_size; did you mean --hidden-size?"),
        ("--num-layer 3", "abbreviations are not accepted, write --num-layer"),
        ("--zzzz", "unknown flag --zzzz; --help shows the usual flags, --help-all every flag"),
        ("word", "unexpected word 'word'"),
        ("--hidden-size x", "invalid int value: 'x'; give a whole number"),
        ("--hidden-size", "expected one argument"),
        ("--lr-decay-style cosin", "invalid choice: 'cosin'"),
        ("--compute-dtype int4", "invalid dtype value: 'int4'"),
        ("--drop-remainder maybe", "invalid parse_bool value: 'maybe'; give true or false"),
        ("--world-size 0", "invalid ranks value: '0'; give a whole number from 1 to"),
        ("--moe-layer-freq [1,x]", "invalid number_or_list value"),
        ("--rampup-batch-size 1 2", "expected 3 arguments"),
        (
            "--hybrid-context-parallel",
            "is refused: ranks are not laid out .*; use tensor, ",
        ),
        ("--yaml none.yaml", "there is no configuration file none.yaml"),
    ],
)
def test_wrong_command_lines_end_with_one_line_and_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(words.split())
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert re.search(message, text), text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--train-iters 5 --train-samples 5", "--train-iters and --train-samples exclude"),
        ("--train-iters 5 --lr-decay-samples 5", "--lr-decay-samples exclude"),
        ("--train-samples 5 --lr-decay-iters 5", "--lr-decay-iters exclude"),
        ("--lr-warmup-fraction 0.1 --lr-warmup-iters 5", "--lr-warmup-iters exclude"),
        ("--fp16 --bf16", "--fp16 and --bf16 exclude"),
        ("--save x", "--save needs --save-interval"),
        (
            "--weight-decay-incr-style linear --end-weight-decay 0.1",
            "needs --start-weight-decay",
        ),
    ],
)
def test_flags_that_do_not_go_together(words, message):
    with pytest.raises(ValueError, match=message):
        validate_args(parse_args([*SIZES, *words.split()]), 1)


def test_missing_sizes_are_named_together():
    with pytest.raises(ValueError, match="^--num-layers, --hidden-size, .* --lr are missing"):
        validate_args(parse_args([]), 1)
    with pytest.raises(ValueError, match="^--lr is missing"):
        validate_args(parse_args(SIZES[:-2]), 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--num-attention-heads 3", "must be divisible by num_attention_heads"),
        ("--pipeline-model-parallel-size 3", "num_layers .4. must be divisible by pipeline"),
        ("--num-layer-list [1,2]", "num_layer_list has shape"),
        ("--tensor-model-parallel-size 3", "must be divisible by tensor_model_parallel_size"),
    ],
)
def test_sizes_from_flags_obey_the_rules(words, message):
    with pytest.raises(ValueError, match=message):
        config_of(*words.split())


@pytest.mark.parametrize("text", ["__import__('os')", "[1", "3", "[1]+x", "1.5"])
def test_list_expressions_run_no_code(text):
    with pytest.raises(ValueError, match="is no list expression"):
        eval_list(text)


# --- report


def test_flags_without_effect_are_reported_once_with_the_reason():
    words = "--manual-gc --no-bias-dropout-fusion --manual-gc --test-mode --seed 3".split()
    report = no_effect_report(parse_args([*SIZES, *words]))
    assert len(report) == 3
    assert report[0].startswith("--manual-gc has no effect: ")
    assert report[2].startswith("--test-mode has no effect: ")
    assert no_effect_report(Namespace()) == []
