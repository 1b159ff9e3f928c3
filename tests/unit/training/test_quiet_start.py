# SPDX-License-Identifier: Apache-2.0
"""What a user sees at start: help in three sizes, suggestions, few arguments, answers first."""

import re
from pathlib import Path

import pytest

from mindspeed_ms.backend import launch, spokesman
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import dry_run
from mindspeed_ms.training.entry import user_errors
from mindspeed_ms.training.flags import BY_NAME, ROWS
from mindspeed_ms.training.flags.synonyms import SYNONYMS, acts, unknown_flag_message
from mindspeed_ms.training.one_line import one_line

SIZES = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 "
    "--max-position-embeddings 64 --micro-batch-size 2 --padded-vocab-size 512 --lr 1e-3"
).split()


def output_of(capsys, words, status=0):
    """Standard output of a plan."""
    capsys.readouterr()
    args = parse_args([*SIZES, *words, "--dry-run"])
    with user_errors():
        assert dry_run(args) == status
    return capsys.readouterr().out


def help_of(capsys, *words, provider=None):
    with pytest.raises(SystemExit) as caught:
        parse_args(list(words), extra_args_provider=provider)
    assert caught.value.code == 0
    return capsys.readouterr().out


def flags_shown(text):
    return set(re.findall(r"^  (--[\w-]+)", text, re.MULTILINE))


# --- help -----------------------------------------------------------------------------------------


def test_short_help_shows_the_flags_people_use(capsys):
    text = help_of(capsys, "--help")
    shown = flags_shown(text) - {"--help-all"}
    assert shown == {row.names[0] for row in ROWS if row.common}
    assert 55 <= len(shown) <= 75
    assert {"--num-layers", "--lr", "--save", "--load", "--yaml", "--dry-run", "--bf16"} <= shown
    assert all(acts(BY_NAME[name]) for name in shown)
    assert "--help GROUP" in text and "mixture of experts" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("words", "expected", "missing"),
    [
        ("precision", "--grad-reduce-in-bf16", "--num-layers"),
        ("mixture of experts", "--moe-z-loss-coeff", "--lr"),
        ("experts", "--moe-z-loss-coeff", "--lr"),
        ("refused", "--hybrid-context-parallel", "--lr"),
        ("lr-decay-style", "--lr-decay-style", "--lr"),
        ("hidden_size", "--hidden-size", "--lr"),
    ],
)
def test_help_of_a_group_or_a_flag(words, expected, missing, capsys):
    shown = flags_shown(help_of(capsys, "--help", *words.split()))
    assert expected in shown and missing not in shown


def test_help_of_nothing_names_the_groups(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help", "nonsense"])
    text = capsys.readouterr().err
    assert caught.value.code == 2 and text.count("\n") == 1 and "the groups are" in text


def test_help_all_is_complete(capsys):
    text = help_of(capsys, "--help-all")
    assert {row.names[0] for row in ROWS} <= flags_shown(text)
    for group in {row.group for row in ROWS}:
        assert f"\n{group}:\n" in text


def test_help_shows_the_users_own_flags_and_no_refused_values(capsys):
    def provider(parser):
        parser.add_argument_group("mine").add_argument("--my-flag", help="of mine")
        return parser

    text = help_of(capsys, "--help", provider=provider)
    assert "--my-flag" in text and "of mine" in text
    assert "soap" not in text and "relative," not in text


# --- suggestions ----------------------------------------------------------------------------------


def meant(word):
    return unknown_flag_message(word, ROWS, [])


def test_other_names_are_no_flags_and_lead_to_flags_that_act():
    for name, text in SYNONYMS.items():
        assert f"--{name}" not in BY_NAME or not acts(BY_NAME[f"--{name}"]), name
        for flag in re.findall(r"--[a-z][\w-]+", text):
            assert acts(BY_NAME[flag]), (name, flag)


@pytest.mark.parametrize(
    ("word", "flag"),
    [
        ("--learning-rate", "--lr"),
        ("--learning_rate", "--lr"),
        ("--Learning-Rate", "--lr"),
        ("--lr-rate", "--lr"),
        ("--lrate", "--lr"),
        ("-lr", "--lr"),
        ("--epochs", "--train-iters"),
        ("--max-steps", "--train-iters"),
        ("--max_steps=10", "--train-iters"),
        ("--iterations", "--train-iters"),
        ("--gradient-accumulation-steps", "--global-batch-size"),
        ("--per_device_train_batch_size", "--micro-batch-size"),
        ("--mbs", "--micro-batch-size"),
        ("--gbs", "--global-batch-size"),
        ("--seq-len", "--seq-length"),
        ("--max-seq-len", "--seq-length"),
        ("--context-length", "--seq-length"),
        ("--tp", "--tensor-model-parallel-size"),
        ("--pp", "--pipeline-model-parallel-size"),
        ("--cp", "--context-parallel-size"),
        ("--ep", "--expert-model-parallel-size"),
        ("--tensor-parallel-size", "--tensor-model-parallel-size"),
        ("--dp", "--world-size"),
        ("--layers", "--num-layers"),
        ("--num-hidden-layers", "--num-layers"),
        ("--num-head", "--num-attention-heads"),
        ("--num-kv-heads", "--num-query-groups"),
        ("--intermediate-size", "--ffn-hidden-size"),
        ("--rope-theta", "--rotary-base"),
        ("--warmup-steps", "--lr-warmup-iters"),
        ("--warmup-ratio", "--lr-warmup-fraction"),
        ("--max-grad-norm", "--clip-grad"),
        ("--grad-clip", "--clip-grad"),
        ("--wd", "--weight-decay"),
        ("--weight-decy", "--weight-decay"),
        ("--output-dir", "--save"),
        ("--resume-from-checkpoint", "--load"),
        ("--save-steps", "--save-interval"),
        ("--logging-steps", "--log-interval"),
        ("--eval-steps", "--eval-interval"),
        ("--dataset", "--data-path"),
        ("--tokenizer", "--tokenizer-model"),
        ("--dtype", "--bf16"),
        ("--gradient-checkpointing", "--recompute-granularity"),
        ("--zero", "--zero-level"),
        ("--config-file", "--yaml"),
        ("--hiden-size", "--hidden-size"),
        ("--optimiser", "--optimizer"),
        ("--tokeniser-type", "--tokenizer-type"),
    ],
)
def test_a_foreign_or_misspelt_name_leads_to_a_flag_that_acts(word, flag):
    text = meant(word)
    assert flag in text and "\n" not in text
    assert text.startswith(f"unknown flag {word.partition('=')[0]}; ")
    assert all(
        acts(BY_NAME[name]) for name in re.findall(r"--[a-z][\w-]+", text.partition("; ")[2])
    )


def test_a_flag_without_effect_is_named_only_when_it_is_meant():
    assert "--te-rng-tracker, which changes nothing here?" in meant("--te-rng-trakcer")
    assert meant("--zzzz").endswith("--help shows the usual flags, --help-all every flag")
    assert "my-flag" in unknown_flag_message("--my-flg", ROWS, ["--my-flag"])


@pytest.mark.parametrize("word", ["--\x1b[31mx", "--a\nb", "--" + "x" * 5000, "\x07"])
def test_a_message_is_one_line_whatever_was_typed(word):
    assert one_line(meant(word)).isprintable() and len(one_line(meant(word))) < 400


# --- arguments ------------------------------------------------------------------------------------


def arguments_in(text):
    return re.findall(r"^  (\w+) \.* ", text, re.MULTILINE)


def test_only_what_was_given_or_is_not_the_default_is_shown(capsys):
    shown = arguments_in(output_of(capsys, ["--swiglu", "--seed", "1234"]))
    assert {"swiglu", "seed", "hidden_size", "lr", "ffn_hidden_size"} <= set(shown)
    assert not {"adam_beta1", "weight_decay", "encoder_seq_length", "yaml", "fp8"} & set(shown)
    assert len(shown) < 40


def test_a_file_is_compared_with_the_guides_defaults(capsys):
    capsys.readouterr()
    args = parse_args("--yaml tiny_gpt.yaml --tensor-model-parallel-size 1 --dry-run".split())
    assert dry_run(args) == 0
    shown = arguments_in(capsys.readouterr().out)
    assert {"hidden_size", "lr_decay_style", "tensor_model_parallel_size"} <= set(shown)
    assert not {"hidden_dropout", "lr_warmup_samples", "log_style"} & set(shown)


def test_all_arguments_are_megatrons_table(capsys):
    text = output_of(capsys, ["--print-args", "all"])
    shown = arguments_in(text)
    assert {row.dest for row in ROWS} <= set(shown)
    assert shown[:50] == sorted(shown[:50], key=str.lower)
    assert f"\n  hidden_size {'.' * 37} 64\n" in text
    assert "resolved configuration" in text and "model_config.hidden_size" in text
    assert "given_flags" not in text and "yaml_source" not in text


def test_no_arguments_are_shown_when_nobody_wants_them(capsys):
    text = output_of(capsys, ["--print-args", "none", "--manual-gc"])
    assert arguments_in(text) == []
    assert text.splitlines()[-1].startswith("--manual-gc has no effect")


def test_the_answer_of_a_dry_run_comes_first(capsys):
    text = output_of(capsys, ["--is-hybrid-model", "--fix-router"], status=2)
    assert text.startswith("------------------------- layout ----")
    assert text.index("--is-hybrid-model is refused") < text.index("- arguments -")
    assert text.index("--fix-router is refused") < text.index("- arguments -")


def test_a_mistake_is_all_that_a_dry_run_shows(capsys):
    with pytest.raises(SystemExit), user_errors():
        dry_run(parse_args([*SIZES, "--hidden-size", "66", "--dry-run"]))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


# --- one of a host speaks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True),
        ({"PMI_SIZE": "4", "PMI_RANK": "0", "MPI_LOCALRANKID": "0"}, True),
        ({"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALRANKID": "1"}, False),
        ({"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "0"}, True),
        ({"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "DEVICE_ID": "0"}, False),
        ({"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "LOCAL_RANK": "0"}, False),
        ({"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "2"}, False),
        ({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": "0"}, True),
        (
            {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": "1", "DEVICE_ID": "1"},
            False,
        ),
        ({"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "MS_NODE_ID": "1"}, False),
    ],
)
def test_the_first_rank_of_a_host_speaks(variables, expected, monkeypatch):
    for name in ("PMI_SIZE", "PMI_RANK", "MS_ROLE", "LOCAL_RANK", "DEVICE_ID", "MS_NODE_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert spokesman.is_first_of_host() == expected


class Child:
    """A process that has a place among those of its host."""

    def __init__(self, place, role="MS_WORKER", program="python"):
        self.variables = {"DEVICE_ID": place, "MS_ROLE": role}
        self.program = program

    def exe(self):
        """What it runs."""
        return self.program

    def environ(self):
        """Variables of the process."""
        return self.variables


@pytest.mark.parametrize(("is_over", "expected"), [(True, True), (False, False)])
def test_another_rank_speaks_when_the_first_goes_on(is_over, expected, monkeypatch):
    children = [Child("0"), Child("1"), Child("0", "MS_SCHED"), Child("0", program="tail")]
    waited = []

    def wait(processes, timeout):
        waited.extend(processes)
        return ([], []) if is_over else ([], processes)

    class Launcher:
        """The parent of all ranks."""

        def parent(self):
            """Itself, for short."""
            return self

        def exe(self):
            """What a rank runs."""
            return "python"

        def children(self):
            """The ranks."""
            return children

    monkeypatch.setattr(launch, "told_by_launcher", lambda: (1, 2))
    monkeypatch.setenv("MS_ROLE", "MS_WORKER")
    monkeypatch.setenv("DEVICE_ID", "1")
    monkeypatch.setattr(spokesman.psutil, "Process", Launcher)
    monkeypatch.setattr(spokesman.psutil, "wait_procs", wait)
    assert spokesman.is_told_by_another(0.1) == expected
    assert waited == children[:1]


def test_a_quiet_rank_ends_without_a_word(monkeypatch, capsys):
    monkeypatch.setattr("mindspeed_ms.training.entry.failure.is_told_elsewhere", lambda _: True)
    with pytest.raises(SystemExit) as caught:
        parse_args(["--hiden-size", "3"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit), user_errors():
        raise ValueError("wrong")
    assert capsys.readouterr().err == ""


def test_a_variable_asks_for_a_dry_run_of_a_file_too(monkeypatch):
    monkeypatch.setenv("MINDSPEED_MS_DRY_RUN", "1")
    monkeypatch.setenv("MINDSPEED_MS_DRY_RUN_RANKS", "4")
    args = parse_args(["--yaml", str(Path(__file__).parents[3] / "configs" / "tiny_gpt.yaml")])
    assert args.dry_run and args.world_size == 4
