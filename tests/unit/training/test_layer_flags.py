# SPDX-License-Identifier: Apache-2.0
"""Flags of published layers, and yarn under the names of Megatron and MindSpeed."""

import math

import pytest
from flag_words import SIZES

from mindspeed_ms.config.rope_scaling_config import RopeScalingConfig
from mindspeed_ms.training.arguments import parse_args, validate_args
from mindspeed_ms.training.from_args import init_configs_from_args, no_effect_report

YARN = (
    "--rotary-scaling-factor 32 --yarn-original-max-position-embeddings 16 --yarn-beta-fast 16 "
    "--yarn-beta-slow 2"
)
STRETCHED = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
}


def model_of(words, base=()):
    args = parse_args([*SIZES, *base, *words.split()])
    return init_configs_from_args(args).model_config


SIDE = int(SIZES[SIZES.index("--hidden-size") + 1])
DEPTH = int(SIZES[SIZES.index("--num-layers") + 1])


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (
            "--scale-depth 1.4 --dim-model-base 16 --scale-emb 12",
            {
                "residual_multiplier": 1.4 / math.sqrt(DEPTH),
                "logits_scaling": SIDE / 16,
                "embedding_multiplier": 12.0,
            },
        ),
        (
            "--input-embeds-norm --interleave-sliding-window 8",
            {
                "embedding_multiplier": math.sqrt(SIDE),
                "window_size": (7, 0),
                "window_attn_skip_freq": 2,
            },
        ),
        (
            "--output-multiplier-scale 0.5 --embedding-multiplier-scale 78.4",
            {"logits_scaling": 2.0, "embedding_multiplier": 78.4},
        ),
        ("--position-embedding-type nope", {"position_embedding_type": "none"}),
    ],
)
def test_a_flag_is_the_field_it_stands_for(words, fields):
    model = model_of(words)
    for name, value in fields.items():
        expected = pytest.approx(value) if isinstance(value, float) else value
        assert getattr(model, name) == expected, name


def test_every_second_layer_has_the_window_from_the_first_on():
    model = model_of("--interleave-sliding-window 8")
    assert [model.has_window(layer) for layer in range(4)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (f"--position-embedding-type yarn {YARN}", {}),
        (f"--position-embedding-type yarn {YARN} --mscale 1 --mscale-all-dim 0", {}),
        (f"--position-embedding-type rope --rope-scaling-type yarn {YARN}", {}),
        (
            f"--position-embedding-type yarn {YARN} --no-yarn-correction-range-round-to-int "
            "--mscale 0.5 --mscale-all-dim 2",
            {
                "truncate": False,
                "attention_factor": (0.05 * math.log(32) + 1) / (0.2 * math.log(32) + 1),
            },
        ),
        (
            "--position-embedding-type rope --rope-scaling-type yarn --yarn-scaling-factor 40",
            {
                "factor": 40.0,
                "original_max_position_embeddings": None,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
        (
            "--position-embedding-type yarn --yarn-scaling-factor 16 "
            "--yarn-original-max-position-embeddings 16",
            {"factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0},
        ),
        (
            "--position-embedding-type yarn",
            {
                "factor": 1.0,
                "original_max_position_embeddings": None,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        ),
    ],
)
def test_yarn_stretches_plain_rope(words, changed):
    model = model_of(words)
    assert model.position_embedding_type == "rope"
    assert model.rope_scaling == RopeScalingConfig(**STRETCHED | changed)


def test_yarn_stays_when_the_arguments_are_completed():
    words = f"--position-embedding-type yarn {YARN} --mscale 0.5 --padded-vocab-size 128"
    args = parse_args([*SIZES, *words.split()])
    first = init_configs_from_args(args).model_config
    validate_args(args, 1)
    args.seq_length //= 2
    second = init_configs_from_args(args).model_config
    assert second.rope_scaling == first.rope_scaling
    assert not [line for line in no_effect_report(args) if "yarn" in line or "rotary" in line]


def test_multi_latent_attention_keeps_its_own_yarn():
    words = f"--multi-latent-attention --position-embedding-type yarn {YARN}"
    model = model_of(words)
    assert not model.rope_scaling.is_on
    assert model.mla_config.rotary_scaling_factor == 32.0
    assert model.mla_config.beta_fast == 16.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--yarn-scaling-factor 4", "add --rope-scaling-type yarn"),
        ("--position-embedding-type yarn --rope-scaling-type llama3", "keep one of them"),
        (
            "--position-embedding-type rope --rope-scaling-type yarn --yarn-scaling-factor 4 "
            "--rope-scaling-beta-fast 16 --yarn-beta-fast 8",
            "--rope-scaling-beta-fast 16.0 and --yarn-beta-fast 8.0 say one thing of yarn",
        ),
        (
            "--position-embedding-type rope --rope-scaling-type yarn --yarn-scaling-factor 4 "
            "--rotary-scaling-factor 2",
            "--yarn-scaling-factor 4.0 and --rotary-scaling-factor 2.0 say one thing of yarn",
        ),
        (
            "--position-embedding-type rope --rope-scaling-type yarn --yarn-scaling-factor 4 "
            "--rope-scaling-factor 16",
            "--yarn-scaling-factor 4.0 and --rope-scaling-factor 16.0 say one thing of yarn",
        ),
    ],
)
def test_what_contradicts_is_one_line(words, message):
    with pytest.raises(ValueError, match=message):
        args = parse_args([*SIZES, *words.split()])
        validate_args(args, 1)
        init_configs_from_args(args)
