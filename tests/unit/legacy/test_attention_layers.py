# SPDX-License-Identifier: Apache-2.0
"""Windows, caps, slopes, sinks and rotation of layers, from configuration to numbers."""

from __future__ import annotations

import math
from pathlib import Path

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest

from mindspeed_ms.backend import autograd
from mindspeed_ms.config import TransformerConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.legacy.model import CoreAttention, GPTModel
from mindspeed_ms.legacy.model.enums import AttnMaskType
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.scores import alibi_slopes

RECORDED = Path(__file__).parents[2] / "data/transformers_attention/attention.npz"
pytestmark = pytest.mark.usefixtures("single_rank")

SIZES = {
    "vocab_size": 32,
    "num_layers": 4,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "seq_length": 16,
    "compute_dtype": "float32",
}


def config_of(**options):
    return TransformerConfig(**{**SIZES, **options})


def sections_of(**model):
    return {"model_config": {**SIZES, **model}}


def core_of(config, layer=1):
    return CoreAttention(layer, config, AttnMaskType.causal)


# transformers' sliding_window 4 is a window of 3 tokens before the own one.
WINDOW = {"window_size": (3, 0)}
CASES = {
    "mistral": WINDOW,
    "gemma2": {**WINDOW, "attn_logit_softcapping": 1.5, "query_pre_attn_scalar": 24},
    "gpt_oss": {**WINDOW, "softmax_type": "learnable"},
    "alibi": {**WINDOW, "position_embedding_type": "alibi"},
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_layer_computes_what_transformers_computes(name):
    with np.load(RECORDED) as archive:
        data = {key.split("|")[1]: archive[key] for key in archive if key.startswith(f"{name}|")}
    core = core_of(config_of(**CASES[name]))
    if "sinks" in data:
        core.softmax_offset.set_data(ref.tensor(data["sinks"]))
    leaves = [ref.leaf(ref.tensor(data[key])) for key in "qkv"]
    autograd.enable()
    out = core(*leaves, None)
    autograd.backward(out, ref.tensor(data["dout"]))
    ref.assert_close(ref.values(out), data["out"], 2e-6)
    for leaf, key in zip(leaves, ("dq", "dk", "dv"), strict=True):
        ref.assert_close(ref.values(autograd.get_grad(leaf)), data[key], 2e-6)
    if "sinks" in data:
        grad = autograd.get_grad(core.softmax_offset)
        ref.assert_close(ref.values(grad), data["dsinks"], 2e-6)


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({}, [(None, None)] * 4),
        ({"window_size": (5, 0)}, [(5, 0)] * 4),
        ({"window_size": (5, -1)}, [(5, None)] * 4),
        ({"window_size": "5,0", "window_attn_skip_freq": 2}, [(5, 0), (None, None)] * 2),
        (
            {"window_size": (-1, 3), "window_attn_skip_freq": [1, 0, 0, 1]},
            [(None, 3), (None, None), (None, None), (None, 3)],
        ),
        ({"window_size": (5, 0), "window_attn_skip_freq": 1}, [(None, None)] * 4),
        ({"fa_config": {"pre_tokens": 9}}, [(9, None)] * 4),
        ({"fa_config": {"pre_tokens": 9, "next_tokens": 2}}, [(9, 2)] * 4),
        ({"fa_config": {"pre_tokens": 9, "sparse_mode": 1}}, [(None, None)] * 4),
        ({"fa_config": {"pre_tokens": 9, "sparse_mode": 2}}, [(None, None)] * 4),
        ({"fa_config": {"pre_tokens": 9, "next_tokens": 2, "sparse_mode": 4}}, [(9, 2)] * 4),
        ({"fa_config": {"sparse_mode": 4}}, [(None, 0)] * 4),
    ],
)
def test_each_layer_has_its_window(options, windows):
    """Megatron counts layers from 1 and leaves out those that the frequency divides."""
    config = config_of(**options)
    assert [layer.attention.core_attention.window for layer in gpt_spec(config).layers] == windows
    assert [core_of(config, layer).options["window"] for layer in range(1, 5)] == windows


@pytest.mark.parametrize("options", [{"window_size": (3, 0)}, {"fa_config": {"pre_tokens": 3}}])
def test_a_token_sees_its_window_and_no_more(options):
    core = core_of(config_of(**options))
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((16, 1, 4, 8)) for _ in range(3))
    plain = ref.values(core(*map(ref.tensor, (q, k, v)), None))
    k[5] += 1.0
    changed = ref.values(core(*map(ref.tensor, (q, k, v)), None))
    rows = np.abs(changed - plain).max((1, 2))
    assert np.flatnonzero(rows).tolist() == [5, 6, 7, 8]


def test_a_band_of_the_fused_kernel_shows_later_tokens_and_needs_no_causal_mask():
    band = {"fa_config": {"pre_tokens": 3, "next_tokens": 2, "sparse_mode": 4}}
    core = core_of(config_of(**band))
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((16, 1, 4, 8)) for _ in range(3))
    plain = ref.values(core(*map(ref.tensor, (q, k, v)), None))
    k[5] += 1.0
    changed = ref.values(core(*map(ref.tensor, (q, k, v)), None))
    rows = np.abs(changed - plain).max((1, 2))
    assert np.flatnonzero(rows).tolist() == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_attn_skip_freq": 2}, "window_size is not given"),
        ({"window_size": (-2, 0)}, "at least -1"),
        ({"window_size": (3, 0), "window_attn_skip_freq": 0}, "at least 1"),
        ({"window_size": (3, 0), "window_attn_skip_freq": [1, 0]}, "each of the 4 layers"),
        ({"window_size": (3, 0), "window_attn_skip_freq": [1, 2, 0, 0]}, "between 0 and 1"),
        ({"window_size": (3, 0), "fa_config": {"pre_tokens": 5}}, "two windows"),
        ({"attn_logit_softcapping": 0.0}, "larger than 0"),
        ({"softmax_scale": 1.0, "query_pre_attn_scalar": 2.0}, "keep one"),
        ({"no_rope_freq": 4}, "position_embedding_type rope"),
        ({"rotary_base_local": 100.0}, "window_size is not given"),
        ({"fa_config": {"next_tokens": -1}}, "at least 0"),
        ({"softmax_compute_dtype": "bfloat16"}, "keep one"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config_of(**options)


@pytest.mark.parametrize(
    ("mode", "masks", "message"),
    [
        (2, "full", "hides later tokens"),
        (3, "general", "hides later tokens"),
        (4, "general", "takes no other mask"),
        (0, "full", "with a mask only"),
    ],
)
def test_modes_of_the_fused_kernel_fit_the_masks(mode, masks, message):
    sections = sections_of(fa_config={"sparse_mode": mode, "pre_tokens": 4})
    assemble(sections)
    with pytest.raises(ValueError, match=message):
        assemble({**sections, "parallel_config": {"attention_mask_type": masks}})


def attended(config, layer=1, size=1.0):
    rng = np.random.default_rng(2)
    q, k, v = (ref.tensor(rng.standard_normal((16, 2, 4, 8)) * size) for _ in range(3))
    return ref.values(core_of(config, layer)(q, k, v, None))


def test_the_softmax_has_the_type_that_the_configuration_says():
    wide = attended(config_of())
    model = assemble(sections_of(softmax_compute_dtype="bfloat16")).model_config
    assert not model.attention_softmax_in_fp32
    narrow = attended(model)
    assert 1e-4 < np.abs(narrow - wide).max() < 3e-2
    fused = config_of(
        softmax_compute_dtype="bfloat16", attention_softmax_in_fp32=False, use_flash_attention=True
    )
    np.testing.assert_array_equal(attended(fused), wide)


def test_a_ring_refuses_a_softmax_in_sixteen_bits():
    sections = {
        **sections_of(softmax_compute_dtype="bfloat16"),
        "parallel_config": {
            "context_parallel_size": 2,
            "context_parallel_algo": "megatron_cp_algo",
        },
    }
    with pytest.raises(ValueError, match="does not know in time"):
        assemble(sections)


def test_scaling_by_the_layer_rounds_scores_to_float16_and_keeps_them_in_range():
    """Only where activations are float16; the divided scores are rounded, the result is not."""
    options = {"apply_query_key_layer_scaling": True, "compute_dtype": "float16"}
    plain = attended(config_of())
    scaled = [attended(config_of(**options), layer) for layer in (1, 3)]
    for one in scaled:
        assert 0 < np.abs(one - plain).max() < 4e-3
    assert np.abs(scaled[0] - scaled[1]).max() > 0
    large = attended(config_of(**options), layer=4, size=200.0)
    assert np.isfinite(large).all()
    ref.assert_close(large, attended(config_of(), size=200.0), 1e-3)
    for same in ({"compute_dtype": "float32"}, {"use_flash_attention": True}):
        np.testing.assert_array_equal(attended(config_of(**{**options, **same})), plain)


def test_slopes_of_linear_biases():
    assert alibi_slopes(8) == [2.0**-power for power in range(1, 9)]
    twelve = alibi_slopes(12)
    assert twelve[:8] == alibi_slopes(8) and twelve[8:] == alibi_slopes(16)[:8:2]
    assert len(alibi_slopes(1)) == 1


@pytest.mark.parametrize("kind", ["learnable", "off-by-one"])
def test_sinks_are_a_parameter_or_zero(kind):
    model = GPTModel(config_of(softmax_type=kind, position_embedding_type="rope"))
    names = [name for name, _ in named_parameters(model) if name.endswith("softmax_offset")]
    described = [one.name for one in gpt_spec(config_of(softmax_type=kind)).parameters()]
    assert names == [name for name in described if name.endswith("softmax_offset")]
    assert len(names) == (4 if kind == "learnable" else 0)
    if kind == "learnable":
        assert names[1] == "language_model.encoder.layers.1.attention.core_attention.softmax_offset"
    core = core_of(config_of(softmax_type=kind))
    if kind == "off-by-one":
        q = ref.tensor(np.zeros((4, 1, 4, 8)))
        v = ref.tensor(np.ones((4, 1, 4, 8)))
        want = np.arange(1, 5) / np.arange(2, 6)  # n scores of 0 and the sink's
        np.testing.assert_allclose(ref.values(core(q, q, v, None))[:, 0, 0], want, rtol=1e-6)


def logits_of(config, ids):
    model = GPTModel(config)
    model.set_train(False)
    for _, parameter in named_parameters(model):
        rng = np.random.default_rng(parameter.size)
        parameter.set_data(ref.tensor(rng.standard_normal(parameter.shape) * 0.3))
    positions = ms.Tensor(np.arange(ids.shape[1], dtype=np.int32)[None])
    with autograd.no_grad():
        return ref.values(model(ms.Tensor(ids), positions, None))


def test_rotation_can_be_left_out_of_layers_and_have_another_base_in_some():
    rope = {"position_embedding_type": "rope"}
    ids = np.random.default_rng(4).integers(0, 32, (2, 16)).astype(np.int32)
    plain = logits_of(config_of(**rope), ids)
    never = logits_of(config_of(**rope, no_rope_freq=1), ids)
    np.testing.assert_array_equal(never, logits_of(config_of(position_embedding_type="none"), ids))
    some = logits_of(config_of(**rope, no_rope_freq=2), ids)
    listed = logits_of(config_of(**rope, no_rope_freq=[0, 1, 0, 1]), ids)
    np.testing.assert_array_equal(some, listed)
    assert np.abs(some - plain).max() > 1e-3 < np.abs(some - never).max()
    window = {**rope, "window_size": (200, 0), "window_attn_skip_freq": [1, 0, 1, 0]}
    np.testing.assert_array_equal(logits_of(config_of(**window), ids), plain)
    same = logits_of(config_of(**window, rotary_base_local=10000.0), ids)
    np.testing.assert_array_equal(same, plain)
    local = logits_of(config_of(**window, rotary_base_local=50.0), ids)
    assert np.abs(local - plain).max() > 1e-3


def test_the_largest_scores_are_noted_when_a_tensor_is_given():
    core = core_of(config_of())
    core.max_logits = ref.tensor(np.full(4, -np.inf))
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((16, 2, 4, 8)) for _ in range(3))
    core(*map(ref.tensor, (q, k, v)), None)
    scores = np.einsum("ibnd,jbnd->bnij", q, k) / math.sqrt(8)
    scores = np.where(np.tri(16, dtype=bool), scores, -np.inf)
    np.testing.assert_allclose(ref.values(core.max_logits), scores.max((0, 2, 3)), rtol=1e-5)


def test_a_window_is_credited_in_the_operations():
    whole, narrow = (
        gpt_spec(config_of(**options)).layers[0].attention.operations(16)
        for options in ({}, {"window_size": (3, 0)})
    )
    assert whole[0] == narrow[0] and narrow[1] == whole[1] / 4
    both = config_of(fa_config={"pre_tokens": 3, "next_tokens": 4, "sparse_mode": 4})
    assert gpt_spec(both).layers[0].attention.operations(16)[1] == whole[1] / 2
