# SPDX-License-Identifier: Apache-2.0
"""Steps of mixtures of experts and of latent attention in the native form of a model."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel

pytestmark = [
    pytest.mark.usefixtures("single_rank"),
    pytest.mark.skipif("ops.selected() != 'cpu'"),
]
assert ops  # the condition above names it

GQA = {**LLAMA, **NO_BIAS, "group_query_attention": True, "num_query_groups": 2}
LATENT = {"kv_lora_rank": 5, "qk_head_dim": 4, "qk_pos_emb_head_dim": 2, "v_head_dim": 3}
MLA = {**LLAMA, **NO_BIAS, "multi_latent_attention": True, "qk_layernorm": True}
PROMPTS = ([3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5])
STEPS = 5


def _experts(**settings):
    return {"moe_config": MoEConfig(**{"num_experts": 8, "moe_router_topk": 3, **settings})}


DEEPSEEK = {
    "moe_router_topk": 4,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_num_groups": 4,
    "moe_router_group_topk": 2,
    "moe_router_group_scores": 2,
    "moe_router_topk_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": 12,
    "moe_router_dtype": "fp32",
}
MODELS = {
    "mixtral": {**GQA, **_experts()},
    "one choice": {**GQA, **_experts(moe_router_topk=1, moe_router_score_function="sigmoid")},
    "qwen": {
        **GQA,
        "qk_layernorm": True,
        **_experts(moe_router_pre_softmax=True, moe_router_norm_topk_prob=True),
    },
    "shared with a gate": {
        **GQA,
        **_experts(
            moe_router_pre_softmax=True,
            moe_shared_expert_intermediate_size=12,
            moe_shared_expert_gate=True,
        ),
    },
    "biases": {
        "hidden_act": "gelu",
        **_experts(moe_router_has_bias=True, moe_ffn_hidden_size=9),
    },
    "roots": {**GQA, **_experts(moe_router_score_function="sqrtsoftplus")},
    "groups": {
        **GQA,
        **_experts(
            moe_router_topk=4,
            moe_router_pre_softmax=True,
            moe_router_num_groups=4,
            moe_router_group_topk=2,
        ),
    },
    "grouped": {**GQA, **_experts(moe_grouped_gemm=True, moe_router_dtype="fp64")},
    "capacity": {**GQA, **_experts(moe_expert_capacity_factor=0.1)},
    "deepseek 2": {**MLA, "mla_config": LatentAttentionConfig(**LATENT)},
    "deepseek 3": {
        **MLA,
        "mla_config": LatentAttentionConfig(**LATENT, q_lora_rank=6),
        **_experts(**DEEPSEEK, first_k_dense_replace=1),
    },
}


def _model(name, **changes):
    set_seed(5)
    model = GPTModel(model_config(MODELS[name], seq_length=16, num_layers=3, **changes))
    random = np.random.default_rng(1)
    for cell in model.language_model.encoder.layers:
        bias = getattr(getattr(cell.mlp, "router", None), "expert_bias", None)
        if bias is not None:
            memory.as_numpy(bias)[:] = random.normal(size=bias.shape) * 0.2
    return model


def _stepped(model, is_native):
    """Greedy tokens and the logits of every step."""
    found, tokens = [], []
    with InferenceEngine([model], model.config) as engine:
        slots, logits = engine.add(PROMPTS)
        if not is_native:
            engine._may_decode = False
        for _ in range(STEPS):
            tokens.append(logits.argmax(-1))
            logits = engine.step(slots, tokens[-1]).copy()
            found.append(logits)
    return np.array(found), np.array(tokens)


@pytest.mark.parametrize("name", list(MODELS))
def test_steps_are_those_of_the_cells(name):
    model = _model(name)
    with autograd.no_grad():
        slow, wanted = _stepped(model, is_native=False)
        first, _ = _stepped(model, is_native=True)  # its first step compares both
        assert model.decodes_alike is True
        found, tokens = _stepped(model, is_native=True)
    np.testing.assert_allclose(found, slow, atol=3e-5)
    np.testing.assert_allclose(first, slow, atol=3e-5)
    assert (tokens == wanted).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["mixtral", "deepseek 3"])
def test_in_sixteen_bits(name, dtype):
    model = _model(name, params_dtype=dtype, compute_dtype=dtype)
    engine = InferenceEngine([model], model.config)
    assert model.decoder() is not None
    slots, _ = engine.add(PROMPTS)
    found = model.decoder()(engine.context(slots, [np.array([token]) for token in (1, 2, 3)]))
    slow = engine._through_cells(engine.context(slots, [np.array([token]) for token in (1, 2, 3)]))
    assert np.abs(found - slow).max() < 0.05 * np.abs(slow).max()


@pytest.mark.parametrize("rows", [1, 7, 16])
def test_a_row_does_not_depend_on_the_others(rows):
    model = _model("deepseek 3")
    with InferenceEngine([model], model.config) as engine:
        first, _ = engine.add([[9]])
        engine.step(first, [3])  # of the Cells
        alone, _ = engine.add([[5, 6]])
        engine.step(alone, [3])
        wanted = engine.step(alone, [4]).copy()
        prompts = [[5, 6]] + [[token, 8] for token in range(rows - 1)]
        slots = np.concatenate([engine.add([prompt])[0] for prompt in prompts])
        engine.step(slots, [3] * rows)
        found = engine.step(slots, [4] * rows)
    assert (found[0] == wanted[0]).all()


def test_a_router_that_the_form_does_not_know_goes_on_in_its_cells():
    model = _model("mixtral", **_experts(moe_router_force_biased=0.5))
    assert model.decoder() is None
    assert _model("mixtral").decoder() is not None
