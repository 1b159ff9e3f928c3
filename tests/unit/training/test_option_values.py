# SPDX-License-Identifier: Apache-2.0
"""Nonsense is refused, one rule per kind over all options, whichever way they are given."""

import typing
from typing import Annotated

import pytest

from mindspeed_ms.config import SECTION_CLASSES
from mindspeed_ms.config.kinds import MayBeEmpty, Range
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.section import coerce_field, field_names
from mindspeed_ms.config.transformer_config import FlashAttentionConfig
from mindspeed_ms.config.yaml_reader import read_yaml, yaml_text
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import dry_run
from mindspeed_ms.training.entry import user_errors
from mindspeed_ms.training.flags import ROWS, EntryPoint, Field
from mindspeed_ms.training.from_args import no_effect_report
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict

SIZES = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 "
    "--max-position-embeddings 64 --micro-batch-size 2 --padded-vocab-size 512 --lr 1e-3"
).split()
MODEL = {
    "vocab_size": 512,
    "num_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "seq_length": 64,
}


def ending(capsys, words):
    """Plan a command line; return (status, standard error)."""
    capsys.readouterr()
    status = 0
    try:
        args = parse_args([*words, "--dry-run"])
        with user_errors():
            status = dry_run(args)
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().err


def assert_refused(capsys, words):
    status, text = ending(capsys, words)
    assert status == 2, words
    assert text.count("\n") == 1 and "Traceback" not in text, (words, text)
    return text


# --- the command line, over the whole flag table

PARTS = 4
BAD_NUMBERS = {
    int: (
        "1_00",
        "10_00_000",
        "1__000",
        "_100",
        "0x10",
        "1e3",
        "inf",
        "nan",
        "１２",
        "",
        " ",
        "9" * 30,
        "9" * 5000,
    ),
    float: ("inf", "-inf", "nan", "1e400", "1_000.0", "0x1p3", "", "१", "infinity"),
}


def words_of(row, value):
    return [row.names[0], *[value] * (3 if row.arity == "three" else 1)]


@pytest.mark.parametrize("part", range(PARTS))
def test_numbers_on_a_command_line_are_plain_and_finite(part, capsys):
    rows = [row for row in ROWS if row.type in BAD_NUMBERS and row.arity != "toggle"]
    assert len(rows) > 300
    for index, row in enumerate(rows[part::PARTS]):
        values = BAD_NUMBERS[row.type]
        if row.arity == "many":  # a plan takes a blank word for an empty variable: no value
            values = tuple(value for value in values if value.strip())
        text = assert_refused(capsys, words_of(row, values[index % len(values)]))
        assert row.names[0] in text


@pytest.mark.parametrize("value", ["", "  ", "a\0b", "\udcff"])
def test_texts_on_a_command_line_are_not_empty_and_can_be_written_to_a_file(value, capsys):
    rows = [row for row in ROWS if row.type is str and isinstance(row.state, Field | EntryPoint)]
    rows = [row for row in rows if row.arity in ("one", "some", "many") and not row.choices]
    assert len(rows) > 40
    for row in rows:
        assert row.names[0] in assert_refused(capsys, words_of(row, value))


def test_lists_on_a_command_line_are_not_empty(capsys):
    for row in ROWS:
        is_file = row.small is None  # a plan does without
        if row.arity == "many" and isinstance(row.state, Field) and not is_file:
            assert "is empty" in assert_refused(capsys, [row.names[0]])


# --- fields, whichever way they are given

CLASSES = [*SECTION_CLASSES.values(), FlashAttentionConfig, LatentAttentionConfig]


def kinds_of(hint):
    """(type, marks) of the alternatives of an annotation."""
    if typing.get_origin(hint) is Annotated:
        base, *marks = typing.get_args(hint)
        yield base, marks
    elif typing.get_args(hint) and typing.get_origin(hint) not in (tuple, dict, typing.Literal):
        for part in typing.get_args(hint):
            yield from kinds_of(part)
    else:
        yield hint, []


FIELDS = [
    (cls, name, dict(kinds_of_pairs))
    for cls in CLASSES
    for name, hint in typing.get_type_hints(cls, include_extras=True).items()
    if name in field_names(cls)
    for kinds_of_pairs in [[(str(base), marks) for base, marks in kinds_of(hint)]]
]


def fields_of(kind):
    return [(cls, name, kinds[str(kind)]) for cls, name, kinds in FIELDS if str(kind) in kinds]


def test_every_float_is_finite():
    assert len(fields_of(float)) > 40
    for cls, name, _ in fields_of(float):
        for value in (float("inf"), float("nan"), "inf", "nan", "1_0", 10**400):
            with pytest.raises(ValueError, match=name):
                coerce_field(cls, name, value)


def test_every_whole_number_fits_into_64_bits():
    assert len(fields_of(int)) > 60
    for cls, name, _ in fields_of(int):
        for value in (2**63, -(2**70), 1e30):
            with pytest.raises(ValueError, match=name):
                coerce_field(cls, name, value)


def test_every_text_is_filled_or_says_that_it_may_be_empty():
    assert len(fields_of(str)) > 25
    for cls, name, marks in fields_of(str):
        for value in ("a\0", "\ud800"):
            with pytest.raises(ValueError, match=name):
                coerce_field(cls, name, value)
        if any(isinstance(mark, MayBeEmpty) for mark in marks):
            assert coerce_field(cls, name, "") == ""
        else:
            with pytest.raises(ValueError, match="is empty; give a value or leave it out"):
                coerce_field(cls, name, "")


def test_every_list_is_filled():
    for cls, name, kinds in FIELDS:
        if any(kind.startswith("tuple[") for kind in kinds):
            with pytest.raises(ValueError, match=name):
                coerce_field(cls, name, [])


def test_every_size_has_a_smallest_value():
    """A whole number without a range is a decision."""
    free = {name for _, name, marks in fields_of(int) if not has_range(marks)}
    assert free == set(RECOMPUTE_LISTS)
    free = {name for _, name, marks in fields_of(float) if not has_range(marks)}
    assert free == {"moe_expert_capacity_factor"}  # negative: no limit


RECOMPUTE_LISTS = ("recompute", "select_recompute", "select_comm_recompute")
"""A number of layers, a switch, or a list; the plan of recomputation checks them."""


def has_range(marks):
    return any(isinstance(mark, Range) for mark in marks)


ABOVE_ZERO = (
    "--lr --adam-eps --norm-epsilon --rotary-base --rope-scaling-factor --loss-scale "
    "--initial-loss-scale --min-loss-scale --rotary-seq-len-interpolation-factor --rotary-percent "
    "--rotary-scaling-factor --decoupled-lr --moe-router-topk-scaling-factor "
    "--moe-router-bias-update-rate --moe-expert-capacity-factor --yarn-beta-fast --yarn-beta-slow"
).split()
FROM_ZERO = (
    "--min-lr --weight-decay --clip-grad --init-method-std --lr-warmup-init --hidden-dropout "
    "--attention-dropout --moe-z-loss-coeff --moe-aux-loss-coeff --moe-input-jitter-eps "
    "--mtp-loss-scaling-factor --fim-rate --mid-level-dataset-surplus --lr-warmup-fraction"
).split()
TOO_LARGE = [
    ("--adam-eps", "2"),
    ("--norm-epsilon", "1e3"),
    ("--hidden-dropout", "1.5"),
    ("--num-workers", "5000"),
    ("--num-dataset-builder-threads", "100000"),
    ("--num-layers", "1000000"),
    ("--tensor-model-parallel-size", "1000000000"),
    ("--num-experts", "1000000000"),
    ("--world-size", "1000000000"),
    ("--seed", "4294967296"),
]


@pytest.mark.parametrize("flag", ABOVE_ZERO)
def test_rates_epsilons_bases_and_factors_are_above_zero(flag, capsys):
    values = ("0",) if flag == "--moe-expert-capacity-factor" else ("0", "-1")
    for value in values:
        assert_refused(capsys, [*SIZES, flag, value])


@pytest.mark.parametrize("flag", FROM_ZERO)
def test_other_rates_are_not_negative(flag, capsys):
    assert_refused(capsys, [*SIZES, flag, "-0.5"])


@pytest.mark.parametrize(("flag", "value"), TOO_LARGE)
def test_absurd_numbers_are_refused(flag, value, capsys):
    assert_refused(capsys, [*SIZES, flag, value])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--split=-1,2,3", "must be one to three numbers"),
        ("--split 0,0,0", "that are not all 0"),
        ("--split 1,2,3,4", "one to three numbers"),
        ("--split a,b", "for example 949,50,1"),
        ("--data-path nan a 1 b", "a weight of at least 0 before each"),
        ("--data-path -1 a 2 b", "a weight of at least 0 before each"),
        ("--data-path 0 a 0 b", "a weight of at least 0 before each"),
        ("--step-batch-size-schedule 8", "must be a list of TOKENS:SIZE"),
        ("--step-batch-size-schedule 0:0", "must be a list of TOKENS:SIZE"),
        ("--moe-layer-freq 0", "moe_layer_freq (0) must be at least 1"),
        ("--moe-layer-freq [0,2]", "moe_layer_freq is [0, 2], but must be a list, each item one"),
        ("--moe-layer-freq [0]*99999999", "invalid number_or_list value"),
        ("--n-shared-experts -1", "invalid natural value: '-1'"),
        ("--device-memory 0", "invalid positive value: '0'"),
        ("--lr-decay-iters 0", "lr_decay_iters (0) must be at least 1"),
        ("--pipeline-model-parallel-layout E(t*99999999)L", ""),
    ],
)
def test_texts_of_a_form_are_checked(words, message, capsys):
    assert message in assert_refused(capsys, [*SIZES, *words.split()])


def test_good_forms_pass():
    dataset = {"split": "98,2", "data_path": "0.3 a 0.7 b"}
    config = init_configs_from_dict({"model_config": MODEL, "dataset_config": dataset})
    assert config.dataset_config.data_path == ("0.3", "a", "0.7", "b")
    training = {"step_batch_size_schedule": "0:16 2.4B:320"}
    init_configs_from_dict({"model_config": MODEL, "training_config": training})


# --- flags that contradict each other


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--swiglu --squared-relu", "--swiglu and --squared-relu set one option"),
        ("--hidden-act gelu --swiglu", "to different values (gelu, swiglu); keep one of them"),
        ("--zero-level z1 --enable-zero3", "parallel_config.zero_level, to different values"),
        ("--recompute-granularity full --recompute-activations", "keep one of them"),
        ("--mock-data --data-path a", "--mock-data and --data-path exclude each other"),
        ("--mock-data --valid-data-path a", "--mock-data and --valid-data-path exclude"),
    ],
)
def test_flags_of_one_option_that_contradict_each_other_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args([*SIZES, *words.split()])
    text = capsys.readouterr().err
    assert caught.value.code == 2 and text.count("\n") == 1 and message in text, text
    assert message in parse_args([*SIZES, *words.split(), "--dry-run"]).refusals[0]


@pytest.mark.parametrize(
    "words",
    [
        "--swiglu --hidden-act swiglu",
        "--use-rotary-position-embeddings --position-embedding-type rope",
        "--no-position-embedding --position-embedding-type rope",
        "--normalization RMSNorm --use-fused-rmsnorm",
        "--enable-zero3 --layerzero",
    ],
)
def test_flags_of_one_option_that_agree_pass(words):
    assert parse_args([*SIZES, *words.split()]).refusals == []


def test_a_flag_given_twice_counts_once_and_is_told():
    args = parse_args([*SIZES, "--lr", "2e-3", "--seed", "5", "--seed", "5"])
    assert args.lr == 2e-3
    assert no_effect_report(args) == [
        "--lr is given twice, as 0.001 and 0.002: the last one counts"
    ]


# --- YAML


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("training_config", "training_iters: 1_000"),
        ("training_config", "training_iters: 010"),
        ("training_config", "training_iters: 0x10"),
        ("training_config", "training_iters: 0o17"),
        ("training_config", "training_iters: 1:30"),
        ("training_config", "training_iters: '5'"),
        ("training_config", "bf16: yes"),
        ("training_config", "bf16: off"),
        ("training_config", "bf16: 1"),
        ("training_config", "output_dir: ''"),
        ("training_config", "output_dir: 2024-01-01x\0"),
        ("training_config", "grad_clip_kwargs: {grad_clip_type: ClipGlobalNorm, clip_valu: 1}"),
        ("optimizer_config", "learning_rate: .inf"),
        ("optimizer_config", "learning_rate: .nan"),
        ("optimizer_config", "learning_rate: 1_0.0"),
        ("optimizer_config", "learning_rate: 1e999"),
        ("optimizer_config", "learning_rate: !!float '1'"),
        ("lora_config", "target_cells: [{target_cells: [x]}, {cel: y, rank: 3}]"),
        ("model_config", "fa_config: {keep_probe: 1}"),
        ("dataset_config", "num_workers: 100000"),
    ],
)
def test_yaml_values_that_look_like_something_else_are_refused(section, text, tmp_path, capsys):
    path = tmp_path / "a.yaml"
    rest = "" if section == "model_config" else f"\n{section}:\n  {text}\n"
    model = "model_config:\n" + "".join(f"  {key}: {value}\n" for key, value in MODEL.items())
    path.write_text(model + (f"  {text}\n" if section == "model_config" else rest))
    assert_refused(capsys, ["--yaml", str(path)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000, "nests blocks more than"),
        ("a: &a [*a]", "named within itself"),
        ("? [1, 2]\n: 3", "a key is not a word"),
        ("? {a: 1}\n: 3", "a key is not a word"),
        ("a: !!python/object/apply:os.system [ls]", "is not accepted"),
        ("a: !!set {b}", "is not accepted"),
        ("<<: 3", "is not valid YAML"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
    ],
)
def test_strange_yaml_ends_with_one_line(text, message, tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert message in assert_refused(capsys, ["--yaml", str(path)])


def test_aliases_cannot_repeat_a_text_without_end(tmp_path):
    path = tmp_path / "a.yaml"
    layers = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"]
    layers += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    path.write_text("\n".join(layers))
    with pytest.raises(ValueError, match="holds more than 100000 values"):
        read_yaml(path)


def test_a_huge_file_is_no_configuration(tmp_path):
    path = tmp_path / "a.yaml"
    with path.open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(ValueError, match="at most"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["yes", "010", "1e-5", "1_000", "1:30", "null", "~", "0x1f", ""])
def test_text_that_looks_like_a_number_survives_a_file(text, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(yaml_text({"a": text, "b": [text], "c": 1e-5, "d": 1, "e": True}))
    assert read_yaml(path) == {"a": text, "b": [text], "c": 1e-5, "d": 1, "e": True}
