# SPDX-License-Identifier: Apache-2.0
"""Angles of stretched positions, against their formulas."""

import math

import numpy as np
import pytest

from mindspeed_ms.config.rope_scaling_config import RopeScalingConfig
from mindspeed_ms.models.rotation import frequencies, growth

PLAIN = 100.0 ** (-np.arange(0, 16, 2) / 16)


def found(length=32, longest=32, **fields):
    return frequencies(RopeScalingConfig(**fields), 100.0, 16, length, longest)


def test_without_stretching():
    np.testing.assert_allclose(found(), PLAIN, rtol=1e-6)
    assert growth(RopeScalingConfig(), 32) == 1.0


def test_linear_divides_every_angle():
    np.testing.assert_allclose(found(rope_type="linear", factor=4.0), PLAIN / 4, rtol=1e-6)


@pytest.mark.parametrize(("length", "base"), [(20, 100.0), (64, 100.0 * 4.0 ** (16 / 14))])
def test_dynamic_raises_the_base_with_the_length(length, base):
    expected = base ** (-np.arange(0, 16, 2) / 16)
    scaling = {"rope_type": "dynamic", "factor": 3.0}
    np.testing.assert_allclose(found(length, **scaling), expected, rtol=1e-5)


def test_llama3_slows_channels_that_turn_rarely():
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}
    turns = 64 * PLAIN / (2 * math.pi)
    kept = np.clip((turns - 1) / 3, 0, 1)
    expected = PLAIN * (kept + (1 - kept) / 8)
    assert 0 < (kept == 0).sum() < 8 and (kept == 1).any()
    np.testing.assert_allclose(found(**scaling), expected, rtol=1e-6)


@pytest.mark.parametrize("truncate", [False, True])
def test_yarn_slows_a_range_of_channels(truncate):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    low, high = (
        16 * math.log(256 / (turns * 2 * math.pi)) / (2 * math.log(100.0)) for turns in (8.0, 1.0)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    slowed = np.clip((np.arange(8) - low) / (min(high, 15) - low), 0, 1)
    expected = PLAIN / 4 * slowed + PLAIN * (1 - slowed)
    np.testing.assert_allclose(
        found(**scaling, beta_fast=8.0, truncate=truncate), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.1 * math.log(4) + 1),
        (
            {"mscale": 0.5, "mscale_all_dim": 2.0},
            (0.05 * math.log(4) + 1) / (0.2 * math.log(4) + 1),
        ),
        ({"mscale": 0.5}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 1.5}, 1.5),
    ],
)
def test_yarn_makes_queries_and_keys_larger(fields, expected):
    scaling = RopeScalingConfig(rope_type="yarn", factor=4.0, **fields)
    assert growth(scaling, 32) == pytest.approx(expected)


def test_longrope_divides_channel_by_channel():
    short, long = tuple(range(1, 9)), tuple(range(2, 10))
    scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    scaling |= {"original_max_position_embeddings": 16, "factor": 2.0}
    np.testing.assert_allclose(found(16, **scaling), PLAIN / short, rtol=1e-6)
    np.testing.assert_allclose(found(17, **scaling), PLAIN / long, rtol=1e-6)
    expected = math.sqrt(1 + math.log(2) / math.log(16))
    assert growth(RopeScalingConfig(**scaling), 32) == pytest.approx(expected)
    with pytest.raises(ValueError, match="3 factors for 8 pairs"):
        found(**{**scaling, "short_factor": (1.0, 1.0, 1.0), "long_factor": (1.0,) * 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_type": "longrope"}, "needs short_factor and long_factor"),
        ({"rope_type": "llama3", "high_freq_factor": 1.0}, "must be above"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        RopeScalingConfig(**fields)
