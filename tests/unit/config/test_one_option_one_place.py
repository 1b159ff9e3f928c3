# SPDX-License-Identifier: Apache-2.0
"""A plain option touches its row, its field and its reader: copies are counted."""

import ast
from pathlib import Path

import pytest

import mindspeed_ms
from mindspeed_ms.config import SECTION_CLASSES, unsupported_reason
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.rope_scaling_config import RopeScalingConfig
from mindspeed_ms.config.section import coerce_field, field_default, field_names
from mindspeed_ms.config.support import UNAVAILABLE, WITHOUT_EFFECT, without_effect
from mindspeed_ms.config.transformer_config import FlashAttentionConfig
from mindspeed_ms.training import from_args
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.flags import ROWS, Field
from mindspeed_ms.training.from_args import init_configs_from_args
from mindspeed_ms.training.yaml_styles.yaml_files import init_configs_from_dict

PACKAGE = Path(mindspeed_ms.__file__).parent
TREES = {
    path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
SETTING = {row.dest for row in ROWS if isinstance(row.state, Field)}
BLOCKS = {
    "model_config.fa_config": FlashAttentionConfig,
    "model_config.mla_config": LatentAttentionConfig,
    "model_config.rope_scaling": RopeScalingConfig,
}
SIZES = {
    "vocab_size": 512,
    "num_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 64,
    "seq_length": 64,
}

# --- copies ---------------------------------------------------------------------------------------

OTHER_FORMATS = ("checkpoint_args.py", "checkpoint_config.py", "conversion.py")
"""Files of the front room that translate what Megatron's checkpoints say."""

MOST_STRINGS = 45
"""Attributes of flags that stand as text in the front room outside the table. Lower it, never raise
it: a row can say what several flags of a field mean, what a flag replaces, and its small value."""

MOST_MENTIONS = 111
"""The same, with those that are read as ``args.name``. DeepSpeed's kind of experts is one flag that
four fields follow, so two of them are rules."""


def docstrings(tree):
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def test_few_options_are_known_outside_their_row():
    strings, attributes = set(), set()
    for path, tree in TREES.items():
        if path.parts[0] != "training" or path.parts[1] in ("flags", *OTHER_FORMATS):
            continue
        texts = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in texts:
                strings |= {node.value} & SETTING if isinstance(node.value, str) else set()
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                attributes |= {node.attr} & SETTING if node.value.id in ("args", "given") else set()
    assert len(strings) <= MOST_STRINGS, sorted(strings)
    assert len(strings | attributes) <= MOST_MENTIONS, sorted(strings | attributes)


# --- readers --------------------------------------------------------------------------------------

OUTSIDE = [tree for path, tree in TREES.items() if path.parts[0] not in ("config", "training")]
READ_BY_THE_FRONT = (
    *("use_checkpoint_args", "ckpt_convert_format", "ckpt_convert_save"),
    *("make_vocab_size_divisible_by", "pad_vocab_size"),
)
"""Fields that are used before anything is built."""

BECOME_OTHERS = {
    "training_config.loss_scale_factor": (3.0, "training_config.loss_scale_growth_factor", 3.0),
    "model_config.fp32_residual_connection": (
        *(True, "model_config.residual_connection_dtype", "float32"),
    ),
    "model_config.fa_config": (
        *({"keep_prob": 0.75}, "model_config.attention_dropout_rate", 0.25),
    ),
}
"""Field -> a value, and the field that it fills when a section is built."""


def names_read(tree):
    """Attributes and texts of a piece of code: ``getattr`` reads by text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def names_with_an_effect():
    """Names read outside the configuration, and what its own functions of such names read."""
    known = {name for tree in OUTSIDE for name in names_read(tree)}
    functions = [
        (node.name, set(names_read(node)))
        for path, tree in TREES.items()
        if path.parts[0] == "config" and path.name != "support.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name not in ("_check", "_resolve")
    ]
    before = -1
    while len(known) != before:
        before = len(known)
        for name, reads in functions:
            known |= reads if name in known else set()
    return known


KNOWN = names_with_an_effect()
PATHS = [
    f"{section}.{name}"
    for section, cls in {**SECTION_CLASSES, **BLOCKS}.items()
    for name in field_names(cls)
]


@pytest.mark.parametrize("path", PATHS)
def test_a_field_is_read_where_something_happens_or_says_that_it_is_not(path):
    name = path.rpartition(".")[2]
    if name in READ_BY_THE_FRONT or name == "keep_prob" or path in {*BECOME_OTHERS, *BLOCKS}:
        return
    is_stated = path in WITHOUT_EFFECT or path in UNAVAILABLE
    assert name in KNOWN or is_stated, f"nobody reads {path}; give it its effect or say so"


@pytest.mark.parametrize("path", BECOME_OTHERS)
def test_some_fields_fill_others(path):
    value, other, expected = BECOME_OTHERS[path]
    section, key = path.split(".")
    document = {"model_config": {**SIZES, "compute_dtype": "bf16"}}
    document.setdefault(section, {})[key] = value
    config = init_configs_from_dict(document)
    other_section, other_key = other.split(".")
    assert getattr(getattr(config, other_section), other_key) == expected


def test_what_is_said_to_have_no_effect_exists():
    assert {*WITHOUT_EFFECT, *UNAVAILABLE} <= set(PATHS)
    assert not set(WITHOUT_EFFECT) & set(UNAVAILABLE)


ASKED = {
    "model_config.init_method_xavier_uniform": True,
    "model_config.fa_config.pre_tokens": 7,
    "model_config.fa_config.next_tokens": -1,
    "model_config.fa_config.sparse_mode": 4,
    "training_config.profile": True,
    "training_config.loss_reduction": "sum",
}


@pytest.mark.parametrize("path", UNAVAILABLE)
def test_what_is_said_to_be_unavailable_is_refused(path):
    section, _, key = path.partition(".")
    head, _, inner = key.partition(".")
    given = {head: {inner: ASKED[path]}} if inner else {head: ASKED[path]}
    if path.endswith("sparse_mode"):
        given["fa_config"]["next_tokens"] = 3
    document = {"model_config": dict(SIZES)}
    document.setdefault(section, {}).update(given)
    assert UNAVAILABLE[path] in " ".join(unsupported_reason(init_configs_from_dict(document)))


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        ({}, False),
        ({"pre_tokens": 63}, False),
        ({"pre_tokens": 62}, False),
        ({"pre_tokens": 5, "sparse_mode": 2}, False),
        ({"next_tokens": 9}, False),
        ({"next_tokens": 9, "sparse_mode": 4}, False),
    ],
)
def test_only_windows_that_change_attention_are_refused(options, is_refused):
    config = init_configs_from_dict({"model_config": {**SIZES, "fa_config": options}})
    assert bool(unsupported_reason(config)) == is_refused


def test_epochs_alone_are_no_length():
    config = init_configs_from_dict({"model_config": SIZES, "training_config": {"epochs": 2}})
    assert "epochs 2: training_iters or" in unsupported_reason(config)[0]


def test_fields_without_effect_are_told_when_they_are_set():
    model = {**SIZES, "mask_func_type": "attn_mask_fill"}
    training = {"training_iters": 1, "eval_metric": "f1", "output_dir": "elsewhere"}
    config = init_configs_from_dict({"model_config": model, "training_config": training})
    assert [line.partition(" ")[0] for line in without_effect(config)] == [
        "training_config.eval_metric",
    ]


# --- one pass -------------------------------------------------------------------------------------


def test_the_way_from_words_to_a_configuration_is_gone_once(monkeypatch):
    calls = {"_place": 0, "build_selected": 0}

    def counted(name):
        own = getattr(from_args, name)

        def function(*args, **more):
            calls[name] += 1
            return own(*args, **more)

        return function

    for name in calls:
        monkeypatch.setattr(from_args, name, counted(name))
    words = "--num-layers 2 --hidden-size 8 --num-attention-heads 2 --seq-length 8 --lr 1e-3"
    words += " --micro-batch-size 1 --padded-vocab-size 16"
    args = validate_args(parse_args(words.split()), 2)
    config = init_configs_from_args(args)
    assert init_configs_from_args(args) is config
    assert calls == {"_place": 1, "build_selected": 1}
    args.hidden_size = 16
    assert init_configs_from_args(args).model_config.hidden_size == 16


@pytest.mark.parametrize("cls", [*SECTION_CLASSES.values(), *BLOCKS.values()])
def test_defaults_fit_their_annotation(cls):
    """They are not checked again when a section is built."""
    for name in field_names(cls):
        default = field_default(cls, name)
        if default is not None:
            assert coerce_field(cls, name, default) == default
