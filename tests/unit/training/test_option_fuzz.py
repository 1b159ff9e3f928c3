# SPDX-License-Identifier: Apache-2.0
"""Whatever a command line or a file says: no traceback; one line and status 2 for a mistake."""

import contextlib
import io
import logging
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mindspeed_ms.config import SECTION_CLASSES
from mindspeed_ms.config.section import field_names
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import dry_run
from mindspeed_ms.training.entry import user_errors
from mindspeed_ms.training.flags import ROWS, EntryPoint, Field
from mindspeed_ms.training.yaml_styles.guide_style import SPECIAL, TARGETS
from mindspeed_ms.training.yaml_styles.legacy_keys import (
    FOLDED_BLOCKS,
    INERT_ANYWHERE,
    INERT_KEYS,
    MOVED_KEYS,
)

SIZES = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 64,
}
WORDS = [
    part
    for name, value in {**SIZES, "padded_vocab_size": 512, "micro_batch_size": 2}.items()
    for part in ("--" + name, str(value))
] + ["--lr", "1e-3", "--print-args", "none", "--dry-run"]


def run(words):
    """Plan a command line; an exception other than SystemExit fails the test."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            args = parse_args(words)
            with user_errors():
                status = dry_run(args)
    except SystemExit as end:
        status = end.code
    finally:
        logging.disable(logging.NOTSET)
    assert status in (0, 2), words
    text = err.getvalue()
    assert text == "" if status == 0 else text.count("\n") <= 1, (words, text)
    assert text.rstrip("\n").isprintable(), repr(text)


# --- command lines

STRANGE = [
    *("0", "1", "2", "3", "8", "-1", "0.5", "1e3", "inf", "nan", "1e308", "1e-320", "9" * 18),
    *("9" * 25, "1" * 5000, "", " ", "x", "\udcff\udc80", "\0", "a\nb", "\x1b[31m", "true"),
    *("False", "None", "[1,2]", "[[1,1],[1,1]]", "([0]*3+[1]*1)", "[0]*99999999", "(" * 300),
    *("Et|ttL", "E(t*9999999999)L", "Et*3|(t|)*2L", "tp-pp", "/dev/null", "/nowhere/x", "é"),
    *("１２", "1_000", "0x10", "--", "-", "1,2,3", "1:2", "0:16 2.4B:320", "65536", "fp32", "z3"),
    *("selective", "full", "uniform", "rope", "swiglu", "16 16 64", "[", "]", "a=b", "%s", "{}"),
]
OURS = [row for row in ROWS if isinstance(row.state, Field | EntryPoint)]
OURS = [row for row in OURS if row.dest not in ("yaml", "yaml_cfg", "load", "use_checkpoint_args")]


@st.composite
def flags(draw):
    row = draw(st.sampled_from(OURS) | st.sampled_from(ROWS))
    counts = {"one": (1, 1), "many": (0, 3), "some": (1, 3), "three": (3, 3), "toggle": (0, 1)}
    least, most = counts.get(row.arity, (0, 0))
    value = st.sampled_from(STRANGE) | st.text(max_size=8) | st.integers().map(str)
    if row.choices:
        value = st.sampled_from([str(one) for one in row.choices]) | value
    return [draw(st.sampled_from(row.names)), *draw(st.lists(value, min_size=least, max_size=most))]


def check_command_line(given_flags, order):
    words = [word for flag in given_flags for word in flag]
    run([*WORDS, *words] if order else [*words, *WORDS])


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
COMMAND_LINES = given(st.lists(flags(), min_size=1, max_size=4), st.booleans())


@settings(max_examples=120, deadline=None, suppress_health_check=QUIET, derandomize=True)
@COMMAND_LINES
def test_no_command_line_ends_in_a_traceback(given_flags, order):
    check_command_line(given_flags, order)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=QUIET)
@COMMAND_LINES
def test_no_command_line_ends_in_a_traceback_long(given_flags, order):
    check_command_line(given_flags, order)


@pytest.mark.parametrize(
    "words",
    [
        ["--expert-tensor-parallel-size", "9223372036854775807"],
        ["--yaml", "(" * 300],
        ["--yaml", "a\0b"],
        ["--yaml", "/dev/zero"],
        ["--yaml-cfg", "/proc/self/mem"],
        ["\udcff"],
        ["--\x1b[31m"],
        ["--help", "\x1b[31m"],
        ["--nosuch\nflag", "1"],
    ],
)
def test_command_lines_that_once_did_more_harm(words):
    run([*WORDS, *words])


# --- files

VALUES = st.sampled_from(
    [
        *(None, True, False, 0, 1, 2, 4, -1, 10**30, 1.5, float("inf"), float("nan"), 1e300),
        *("", "x", "yes", "1_000", "010", "1:30", "[1,2]", "[[1,1],[1,1]]", "((((", "62,63"),
        *([], [1], [1, 2], [[1, 2], [3]], [None], {}, {"a": 1}, {"a": {"b": {"c": 1}}}, [{}]),
        *("\ud800", "\0", "a\nb", "\x1b", "fp16", "bf16", "float32", "swiglu", "rope", "GQA"),
        *(
            {"recompute": 1},
            {"clip_value": "x"},
            [{"cell": "x"}],
            {1: 2},
            "Ett|tL",
            "E(t*9999999)L",
        ),
        *(["flash_attention"], "flash_attention,zzz", "RMSNorm", 1e-300),
    ]
)
FLAT = [
    f"{section}.{name}"
    for section, cls in SECTION_CLASSES.items()
    for name in [*field_names(cls), *cls.ALIASES, *INERT_KEYS.get(section, ()), *INERT_ANYWHERE]
]
FLAT += [".".join(path) for path in [*MOVED_KEYS, *FOLDED_BLOCKS]]
GUIDE = [*TARGETS, *SPECIAL, "train_config.ms_training_config.bucket_size", "train_config"]
GUIDE += ["accelerate_config", "model_config.llm", "base", "pending", "pending.fused_norm"]
MEGATRON = [row.dest for row in ROWS]


def place(document, path, value):
    *parents, last = path.split(".")
    for parent in parents:
        if not isinstance(document.get(parent), dict):
            document[parent] = {}
        document = document[parent]
    document[last] = value


@st.composite
def documents(draw):
    style = draw(st.sampled_from([FLAT, FLAT, GUIDE, MEGATRON, [*FLAT, *GUIDE, *MEGATRON]]))
    flat = {"model_config": {**SIZES, "vocab_size": 512}}
    megatron = {**SIZES, "padded_vocab_size": 512, "micro_batch_size": 1, "lr": 1e-3}
    document = megatron if style is MEGATRON else flat
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(style) | st.sampled_from(list(SECTION_CLASSES)))
        place(document, path[: draw(st.sampled_from([None, None, None, None, -1]))], draw(VALUES))
    data = yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")
    for position, byte in draw(
        st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=1)
    ):
        data = data[:position] + bytes([byte]) + data[position + 1 :]
    return data


FLAGS_OF_FILES = st.sampled_from(["--yaml", "--yaml", "--yaml-cfg"])


def check_file(folder, data, flag):
    path = Path(folder) / "a.yaml"
    path.write_bytes(data)
    run([flag, str(path), "--print-args", "none", "--dry-run"])


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[*QUIET, HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=documents(), flag=FLAGS_OF_FILES)
@example(data=b"pending: {fused_norm: 1}\nmodel_config: {llm: {}}\n", flag="--yaml")
@example(data=b"train_config: 1\ndataset_config: [1]\n", flag="--yaml")
@example(data=b"accelerate_config: {precision: {fused_operators: 3}}\n", flag="--yaml")
@example(data=b"num_layers: 2\ndevice_tflops: [1]\n", flag="--yaml")
@example(data=b"\xff\xfe\x00", flag="--yaml")
def test_no_file_ends_in_a_traceback(tmp_path, data, flag):
    check_file(tmp_path, data, flag)


@pytest.mark.slow
@settings(
    max_examples=20_000,
    deadline=None,
    suppress_health_check=[*QUIET, HealthCheck.function_scoped_fixture],
)
@given(data=documents() | st.binary(max_size=60), flag=FLAGS_OF_FILES)
def test_no_file_ends_in_a_traceback_long(tmp_path, data, flag):
    check_file(tmp_path, data, flag)
