# SPDX-License-Identifier: Apache-2.0
"""The flag table against the flags of Megatron and MindSpeed, and real launch scripts."""

import json
import re
from pathlib import Path

import pytest
from launch_corpus import SCRIPTS, expanded

from mindspeed_ms.training.arguments import parse_args, without_brackets
from mindspeed_ms.training.dry_run import resolve
from mindspeed_ms.training.flags import BY_NAME, ROWS, EntryPoint, Field, NoEffect, Refused
from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.markdown import flags_document
from mindspeed_ms.training.from_args import no_effect_report

DATA = Path(__file__).parents[2] / "data"
DOCUMENT = Path(__file__).parents[3] / "docs/flags.md"
KNOWN = json.loads((DATA / "known_flags.json").read_text())
ARITIES = {"one": "one", "on": "none", "off": "none", "many": "*", "some": "+", "three": "3"}

RENAMED = {
    "--apply-layernorm-1p": "the attribute of older versions is kept",
    "--layernorm-epsilon": "the guide's name",
    "--norm-epsilon": "the guide's name",
    "--ddp-bucket-size": "the guide's name",
    "--override-lr-scheduler": "today's name",
    "--use-checkpoint-lr-scheduler": "today's name",
    "--s3-cache-path": "today's name",
    "--tokenizer-hf-no-use-fast": "a switch of what is on",
    "--tokenizer-not-use-fast": "a switch of what is on",
    "--tokenizer-special-tokens": "today's name",
    "--tokenizer-name-or-path": "Megatron's name",
    "--profile-with-memory": "the guide's name",
    "--fp8-format": "the newest name",
    "--moe-intermediate-size": "Megatron's name",
    "--multi-head-latent-attention": "Megatron's name",
    "--qk-nope-head-dim": "Megatron's name",
    "--qk-rope-head-dim": "Megatron's name",
    "--num-nextn-predict-layers": "Megatron's name",
    "--encoder-num-layers": "today's name; its own attribute is kept beside it",
    "--encoder-seq-length": "today's name; its own attribute is kept beside it",
    "--num-virtual-stages-per-pipeline-rank": "its own attribute is kept beside it",
    "--use-fused-rotary-pos-emb": "Megatron's name; its own attribute is kept beside it",
    "--verify-integrity": "the guide's name; its own attribute is kept beside it",
    "--npu-deterministic": "Megatron's name; its own attribute is kept beside it",
}
"""Flag -> why its attribute has another name than in the version that was read."""


MORE_WORDS = {"--window-size": ARITIES["some"]}
"""Flags that take their numbers in several words, too."""


def test_there_are_as_many_flags_as_in_both_projects():
    assert len(KNOWN) > 1170
    assert len(SCRIPTS) == 514


@pytest.mark.parametrize("part", range(8))
def test_every_known_flag_has_a_row_with_its_arity_and_choices(part):
    for name in list(KNOWN)[part::8]:
        arity, dest, choices = KNOWN[name]
        row = BY_NAME[name]
        assert isinstance(row.state, (Field, NoEffect, Refused, EntryPoint))
        if row.arity == "toggle":
            assert arity in ("none", "one"), name
        else:
            assert ARITIES[row.arity] == MORE_WORDS.get(name, arity), name
        if row.choices:
            assert set(choices) <= set(map(str, row.choices)), name
        assert row.dest == dest or name in RENAMED, name


def test_a_refused_flag_says_what_to_use_instead():
    for row in ROWS:
        if isinstance(row.state, Refused):
            assert row.state.reason and row.state.instead, row.names[0]
            assert (
                row.default is None
                or row.arity != "one"
                or str(row.default) in (row.state.harmless)
            ), f"{row.names[0]}: its default must pass"


def test_the_document_is_current():
    assert DOCUMENT.read_text(encoding="utf-8") == flags_document(), (
        "run python tools/flags_document.py"
    )


def test_the_short_notation_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="is no kind of flag"):
        compact("a", NoEffect("b"), "--c complex")
    with pytest.raises(ValueError, match="only a refused flag"):
        compact("a", NoEffect("b"), "--c int !1")
    both = compact("a", NoEffect("b"), "--c switch\n--d negative\n--e int+\n--f on=true")
    assert [row.names[0] for row in both] == ["--c", "--no-c", "--no-d", "--e", "--f"]
    assert [row.default for row in both] == [False, False, True, None, True]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--cp-comm-type [a2a+p2p]", "--cp-comm-type a2a+p2p"),
        ("--recompute-modules [mlp layernorm] --bf16", "--recompute-modules mlp layernorm --bf16"),
        ("--num-layers 2", "--num-layers 2"),
    ],
)
def test_lists_of_yaml_arguments_are_taken_apart(words, expected):
    assert without_brackets(words.split()) == expected.split()


def test_lists_may_be_one_word():
    words = ["--rampup-batch-size", "8 8 64", "--hierarchical-context-parallel-sizes", "[2 4]"]
    assert without_brackets(words) == [
        *("--rampup-batch-size", "8", "8", "64"),
        *("--hierarchical-context-parallel-sizes", "2", "4"),
    ]


def test_a_harmless_value_of_a_refused_flag_is_reported():
    args = parse_args("--hybrid-mlp-ratio 0.0 --hybrid-attention-ratio 0.0".split())
    assert no_effect_report(args) == [
        "--hybrid-mlp-ratio has no effect: its value asks for what happens anyway",
        "--hybrid-attention-ratio has no effect: its value asks for what happens anyway",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--hybrid-mlp-ratio 1", "--hybrid-mlp-ratio 1.0 is refused: layers of this kind"),
        ("--sparse-mode 5", "--sparse-mode 5 is refused: lengths of prefixes .* --sparse-mode 1"),
        ("--sparse-mode 7", "--sparse-mode 7 is refused: the fused kernel has no such mode"),
        ("--alibi-fusion-attn-type 3", "--alibi-fusion-attn-type 3 is refused: .* use 2"),
        ("--outer-dp-sharding-strategy optim", "is refused: ranks are not laid out"),
        ("--batch-size 4", "--batch-size is refused: Megatron refuses this name too; use --micro"),
        ("--tensor-model-parallel-size ${TP}", "a shell variable that was not expanded"),
    ],
)
def test_refused_values_end_with_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(words.split())
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and re.search(message, text), text


def test_a_dry_run_collects_refusals_and_keeps_the_rest():
    args = parse_args("--dry-run --sparse-mode 7 --num-layers 3 --hybrid-context-parallel".split())
    assert [line.split(" is refused")[0] for line in args.refusals] == [
        "--sparse-mode 7",
        "--hybrid-context-parallel",
    ]
    assert (args.sparse_mode, args.num_layers) == (0, 3)


# --- launch scripts


CANNOT_RUN = {
    "mindspeed@master:tests_extend/system_tests/feature_tests/unaligned_pp.sh": (
        "num_attention_heads (25) must be divisible by tensor_model_parallel_size (2)"
    ),
}
"""Script -> why it cannot be laid out."""


@pytest.mark.parametrize("part", range(16))
def test_every_launch_script_resolves(part):
    for name in list(SCRIPTS)[part::16]:
        args = parse_args([*expanded(SCRIPTS[name]), "--dry-run"])
        if name in CANNOT_RUN:
            with pytest.raises(ValueError, match=re.escape(CANNOT_RUN[name])):
                resolve(args)
            continue
        resolved = resolve(args)
        assert resolved.config.model_config.num_layers == args.num_layers, name
        states = {BY_NAME[flag].state.__class__ for flag in args.given_flags}
        assert states <= {Field, NoEffect, Refused, EntryPoint}
        without_effect = [
            flag for flag in args.given_flags if isinstance(BY_NAME[flag].state, NoEffect)
        ]
        assert len(no_effect_report(args)) >= len(set(without_effect))


# --- Megatron's YAML layout

LAYOUT = DATA / "megatron_layout.yaml"


def test_megatrons_yaml_layout_states_arguments():
    args = parse_args(["--yaml-cfg", str(LAYOUT)])
    config = resolve(args).config
    model, optimizer = config.model_config, config.optimizer_config
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size) == (4, 64, 128)
    assert (model.hidden_act, model.normalization, model.norm_epsilon) == (
        *("swiglu", "RMSNorm", 1e-6),
    )
    assert model.num_kv_groups == 4 and not model.qkv_has_bias and model.rotary_percent == 0.5
    assert config.training_config.bf16 and config.training_config.global_batch_size == 8
    assert (optimizer.learning_rate, optimizer.betas) == (2.5e-4, (0.9, 0.95))
    assert model.vocab_size == 512
    assert any(line.startswith("--manual-gc has no effect") for line in no_effect_report(args))


def test_flags_win_over_megatrons_yaml_layout():
    args = parse_args(["--yaml-cfg", str(LAYOUT), "--num-layers", "6", "--adam-beta2", "0.99"])
    config = resolve(args).config
    assert config.model_config.num_layers == 6
    assert config.optimizer_config.betas == (0.9, 0.99)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("hiden_size: 3", "unknown key 'hiden_size'; did you mean 'hidden_size'?"),
        ("activation_func: relu", "activation_func is 'relu', but must be swiglu"),
        ("hybrid_mlp_ratio: 1.0", "hybrid_mlp_ratio 1.0 is refused: layers of this kind"),
        ("lr_decay_style: cosin", "lr_decay_style is 'cosin', but must be one of constant"),
    ],
)
def test_mistakes_in_megatrons_yaml_layout(line, message, tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text(f"num_layers: 2\n{line}\n")
    with pytest.raises(SystemExit):
        parse_args(["--yaml-cfg", str(path)])
    assert message in capsys.readouterr().err
