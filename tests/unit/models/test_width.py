# SPDX-License-Identifier: Apache-2.0
"""Initial weights and factors that depend on a model's width, and Xavier's distribution."""

import math

import numpy as np
import pytest

from mindspeed_ms.config import ModelParallelConfig, TransformerConfig
from mindspeed_ms.core.tensor_parallel.random import draw_normal, draw_uniform, seed_initialization
from mindspeed_ms.models.gpt import gpt_spec, softmax_scale
from mindspeed_ms.models.width import embedding_factor, logits_divisor, width_mult


def config(**more):
    return TransformerConfig(
        **{
            "parallel_config": ModelParallelConfig(),
            "num_layers": 3,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "vocab_size": 96,
            "seq_length": 16,
            "init_method_std": 0.5,
            "untie_embeddings_and_output_weights": True,
            **more,
        },
    )


def stds(model):
    return {
        spec.megatron_name: spec.init.std for spec in gpt_spec(model).parameters() if spec.init.std
    }


def test_hidden_matrices_shrink_with_the_width_and_tables_do_not():
    usual = stds(config())
    wide = stds(config(use_mup=True, mup_base_hidden_size=16, embedding_init_method_std=0.25))
    assert usual.keys() == wide.keys()
    for name, std in wide.items():
        if "embedding" in name or name == "output_layer.weight":
            assert std == 0.25, name
        else:
            assert std == pytest.approx(usual[name] / 2.0), name


def test_factors_follow_the_options():
    usual = config()
    assert (width_mult(usual), embedding_factor(usual), logits_divisor(usual)) == (1.0, 1.0, 1.0)
    assert softmax_scale(usual) == 0.25
    wide = config(use_mup=True, mup_base_hidden_size=16, mup_embedding_mult=3.0)
    assert (width_mult(wide), embedding_factor(wide), logits_divisor(wide)) == (4.0, 3.0, 4.0)
    assert softmax_scale(wide) == 1.0 / 16.0
    own = config(
        use_mup=True,
        mup_base_hidden_size=16,
        mup_output_mult=0.5,
        mup_base_head_dim=9.0,
        mup_attn_scale_power=0.5,
    )
    assert logits_divisor(own) == 2.0
    assert softmax_scale(own) == pytest.approx(3.0 / math.sqrt(16.0))


def test_a_width_equal_to_the_base_keeps_the_scales_of_weights():
    assert stds(config(use_mup=True)) == stds(config())


def test_uniform_weights_are_those_of_torch():
    """``xavier_uniform_`` [3, 5], ``normal_`` [4, 8], ``xavier_uniform_`` [2, 2] of torch 2.13."""
    seed_initialization(1234)
    first = draw_uniform((3, 5), math.sqrt(6.0 / 8.0))
    draw_normal((4, 8), 1.0)
    second = draw_uniform((2, 2), math.sqrt(6.0 / 4.0))
    expected = [-0.8158319, -0.16991667, -0.41596207, -0.23098397, -0.7650456, 0.34752685]
    np.testing.assert_allclose(first.ravel()[:6], expected, rtol=1e-6)
    np.testing.assert_allclose(
        second.ravel(), [-1.0642884, 0.94027704, 0.7551328, 0.61924046], rtol=1e-6
    )


def test_xavier_draws_every_matrix_uniformly_and_counts_its_words():
    specs = list(gpt_spec(config(init_method_xavier_uniform=True)).parameters())
    matrices = [spec for spec in specs if len(spec.shape) == 2]
    assert all(spec.init.is_xavier for spec in matrices)
    twice = [spec for spec in matrices if spec.init.is_drawn_twice]
    assert [spec.words for spec in twice] == [2 * spec.size for spec in twice]
    once = [spec for spec in matrices if not spec.init.is_drawn_twice]
    assert [spec.words for spec in once] == [spec.size for spec in once]
