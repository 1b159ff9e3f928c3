# SPDX-License-Identifier: Apache-2.0
"""Multi-latent attention against float64, and yarn's angles."""

import math

import mindspore as ms
import numpy as np
import ops_reference as ref
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config import DatasetConfig
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.core.tensor_parallel.random import seed_initialization
from mindspeed_ms.legacy.model import AttnMaskType, AttnType, GPTModel
from mindspeed_ms.legacy.model.megatron_names import megatron_names
from mindspeed_ms.legacy.model.multi_latent_attention import (
    MultiLatentAttention,
    YarnRotaryEmbedding,
    latent_rotary,
    yarn_growth,
)
from mindspeed_ms.plan.recompute_plan import LayerRecompute

pytestmark = pytest.mark.usefixtures("single_rank")
SEQ, BATCH, HIDDEN, HEADS = 6, 2, 12, 3
SIZES = {
    "kv_lora_rank": 5,
    "qk_head_dim": 4,
    "qk_pos_emb_head_dim": 2,
    "v_head_dim": 3,
}
FORMS = {
    "plain-queries": {},
    "narrow-queries": {"q_lora_rank": 4},
    "wide-values": {"q_lora_rank": 4, "v_head_dim": 8},
    "equal-heads": {"v_head_dim": 6},
    "yarn": {
        "q_lora_rank": 4,
        "qk_pos_emb_head_dim": 8,
        "rotary_scaling_factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 4.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    "rope": {"rope_type": "rope", "qk_pos_emb_head_dim": 4},
}


def config(norms=True, model=None, **latent):
    own = {
        "num_attention_heads": HEADS,
        "hidden_size": HIDDEN,
        "ffn_hidden_size": 16,
        "seq_length": SEQ,
        "init_method_std": 0.4,
        "rotary_base": 100.0,
        "qk_layernorm": norms,
        "multi_latent_attention": True,
        "mla_config": LatentAttentionConfig(**{**SIZES, **latent}),
        "dataset_config": DatasetConfig(batch_size=BATCH),
    }
    return model_config(LLAMA, NO_BIAS, own, **(model or {}))


def build(settings, recompute=()):
    seed_initialization(3)
    layer = MultiLatentAttention(
        settings,
        1,
        AttnType.self_attn,
        AttnMaskType.causal,
        recompute=LayerRecompute(modules=frozenset(recompute)),
    )
    return layer.set_train(True)


def angles(settings):
    """cos and sin [s, R/2] of the formulas of the YaRN paper, in float64."""
    latent = settings.mla_config
    channels, base = latent.qk_pos_emb_head_dim, settings.rotary_base
    frequency = base ** (-np.arange(0, channels, 2) / channels)
    growth = 1.0
    if latent.rope_type == "yarn" and latent.rotary_scaling_factor > 1:
        length = latent.original_max_position_embeddings

        def pair(turns):
            return channels * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(math.floor(pair(latent.beta_fast)), 0)
        high = min(math.ceil(pair(latent.beta_slow)), channels - 1)
        ramp = np.clip((np.arange(channels // 2) - low) / max(high - low, 1e-3), 0, 1)
        factor = latent.rotary_scaling_factor
        frequency = frequency / factor * ramp + frequency * (1 - ramp)
        growth = (0.1 * latent.mscale * math.log(factor) + 1) / (
            0.1 * latent.mscale_all_dim * math.log(factor) + 1
        )
    turned = np.outer(np.arange(SEQ), frequency)
    return np.cos(turned) * growth, np.sin(turned) * growth


def turn(x, cos, sin):
    """Rotate neighbouring channels of [s, b, n, R]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None, None], sin[:, None, None]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, odd * cos + even * sin
    return out


def reference(settings, names):
    """The layer as a function of x and its weights in float64."""
    latent = settings.mla_config
    cos, sin = angles(settings)
    content, rotated, values = latent.qk_head_dim, latent.qk_pos_emb_head_dim, latent.v_head_dim
    scale = 1 / math.sqrt(content + rotated)
    if latent.rotary_scaling_factor > 1:
        scale *= (0.1 * latent.mscale_all_dim * math.log(latent.rotary_scaling_factor) + 1) ** 2

    def layer(x, *weights):
        w = dict(zip(names, weights, strict=True))
        narrow = x
        if latent.q_lora_rank is not None:
            narrow = x @ w["q_down_proj.weight"].T
            if settings.qk_layernorm:
                narrow = ref.rms_norm(narrow, w["q_layernorm.weight"])
        up = w["q_proj.weight" if latent.q_lora_rank is None else "q_up_proj.weight"]
        q = (narrow @ up.T).reshape(SEQ, BATCH, HEADS, content + rotated)
        mixed = x @ w["kv_down_proj.weight"].T
        narrow, shared = mixed[..., : latent.kv_lora_rank], mixed[..., latent.kv_lora_rank :]
        if settings.qk_layernorm:
            narrow = ref.rms_norm(narrow, w["kv_layernorm.weight"])
        kv = (narrow @ w["kv_up_proj.weight"].T).reshape(SEQ, BATCH, HEADS, content + values)
        q = np.concatenate([q[..., :content], turn(q[..., content:], cos, sin)], -1)
        shared = np.repeat(turn(shared[:, :, None], cos, sin), HEADS, axis=2)
        k = np.concatenate([kv[..., :content], shared], -1)
        scores = np.einsum("ibnd,jbnd->bnij", q, k)
        probs = ref.softmax(scores, causal=True, scale=scale)
        context = np.einsum("bnij,jbnd->ibnd", probs, kv[..., content:]).reshape(SEQ, BATCH, -1)
        return context @ w["out_proj.weight"].T

    return layer


X = np.random.RandomState(0).randn(SEQ, BATCH, HIDDEN)
DY = np.random.RandomState(1).randn(SEQ, BATCH, HIDDEN)


def run(layer, settings):
    leaf = ref.leaf(ref.tensor(X))
    autograd.enable()
    y, bias = layer(leaf, rotary_pos_emb=latent_rotary(settings)(SEQ))
    assert bias is None
    autograd.backward(y, ref.tensor(DY))
    grads = [ref.values(autograd.get_grad(param)) for _, param in named_parameters(layer)]
    return [ref.values(y), ref.values(autograd.get_grad(leaf)), *grads]


@pytest.mark.parametrize("norms", [True, False], ids=["norms", "no-norms"])
@pytest.mark.parametrize("form", FORMS)
def test_layer_matches_float64(form, norms):
    settings = config(norms, **FORMS[form])
    layer = build(settings)
    names = [name for name, _ in named_parameters(layer)]
    inputs = [X, *(ref.values(param) for _, param in named_parameters(layer))]
    function = reference(settings, names)
    y, *grads = run(layer, settings)
    ref.assert_close(y, function(*inputs), 3e-6, "y")
    for index, (name, grad) in enumerate(zip(["x", *names], grads, strict=True)):
        for seed in range(3):
            direction = np.random.RandomState(seed).randn(*grad.shape)
            ends = []
            for sign in (1, -1):
                moved = list(inputs)
                moved[index] = moved[index] + sign * 1e-6 * direction
                ends.append(np.sum(DY * function(*moved)))
            slope = (ends[0] - ends[1]) / 2e-6
            size = np.linalg.norm(grad) * np.linalg.norm(direction)
            assert abs(np.sum(grad * direction) - slope) <= 1e-5 * size, name


@pytest.mark.parametrize(
    "modules", [("core_attn",), ("mla_up_proj",), ("core_attn", "mla_up_proj")]
)
def test_recomputation_changes_no_number(modules):
    settings = config(**FORMS["yarn"])
    for plain, again in zip(
        run(build(settings), settings), run(build(settings, modules), settings), strict=True
    ):
        np.testing.assert_array_equal(plain, again)


def test_yarn_of_factor_one_is_rope():
    latent = LatentAttentionConfig(**{**SIZES, "qk_pos_emb_head_dim": 8})
    yarn = YarnRotaryEmbedding(8, 100.0, latent, 64)
    plain = latent_rotary(config(rope_type="rope", qk_pos_emb_head_dim=8))
    for got, want in zip(yarn(SEQ), plain(SEQ), strict=True):
        np.testing.assert_allclose(got.asnumpy(), want.asnumpy(), atol=1e-6)
    assert yarn_growth(1.0, 5.0) == 1.0
    assert yarn_growth(math.e**10, 0.5) == pytest.approx(1.5)


def test_names_are_those_of_megatron():
    model = GPTModel(config(q_lora_rank=4))
    prefix = "decoder.layers.1.self_attention."
    names = set(megatron_names(model).values())
    assert {name.removeprefix(prefix) for name in names if name.startswith(prefix)} == {
        "linear_proj.weight",
        "linear_q_down_proj.weight",
        "linear_q_up_proj.weight",
        "linear_kv_down_proj.weight",
        "linear_kv_up_proj.weight",
        "q_layernorm.weight",
        "kv_layernorm.weight",
    }


@pytest.mark.parametrize("dtype", [ms.float32, ms.bfloat16], ids=str)
def test_columns_are_split_and_joined_bit_by_bit(dtype):
    rng = np.random.RandomState(4)
    x = ref.tensor(rng.randn(3, 2, 4, 7), dtype)
    parts = ops.split_columns(x, (4, 1, 2))
    np.testing.assert_array_equal(
        np.concatenate([ref.values(part) for part in parts], -1), ref.values(x)
    )
    joined = ops.join_columns(parts, padding=2)
    np.testing.assert_array_equal(ref.values(joined)[..., :7], ref.values(x))
    assert np.abs(ref.values(joined)[..., 7:]).max() == 0.0


def test_gradients_of_columns():
    rng = np.random.RandomState(4)
    wide, narrow = (ref.leaf(ref.tensor(rng.randn(3, 2, n, c))) for n, c in ((4, 2), (1, 3)))
    autograd.enable()
    y = ops.join_columns((wide, narrow), padding=1)
    dy = rng.randn(*y.shape)
    autograd.backward(y, ref.tensor(dy))
    ref.assert_close(ref.values(autograd.get_grad(wide)), dy[..., :2], 1e-7)
    want = dy[..., 2:5].sum(axis=2, keepdims=True)
    ref.assert_close(ref.values(autograd.get_grad(narrow)), want, 1e-6)
    x = ref.leaf(ref.tensor(rng.randn(2, 5)))
    left, _ = ops.split_columns(x, (2, 3))
    autograd.backward(left, ref.tensor(np.ones((2, 2))))
    np.testing.assert_array_equal(ref.values(autograd.get_grad(x)), [[1, 1, 0, 0, 0]] * 2)


def test_wrong_columns_are_refused():
    x = memory.zeros((2, 3, 5))
    with pytest.raises(ValueError, match="sizes .2, 2. for 5 columns"):
        ops.split_columns(x, (2, 2))
    with pytest.raises(ValueError, match="must agree in all but the last"):
        ops.join_columns((x, memory.zeros((3, 3, 5))))
