# SPDX-License-Identifier: Apache-2.0
"""Prompts in the native form of a model."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import memory
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel, decoding

pytestmark = [
    pytest.mark.usefixtures("single_rank"),
    pytest.mark.skipif("ops.selected() != 'cpu'"),
]
assert ops  # the condition above names it

LENGTHS = (70, 3, 21)
GQA = {**LLAMA, **NO_BIAS, "group_query_attention": True, "num_query_groups": 2}
LATENT = LatentAttentionConfig(
    kv_lora_rank=6, qk_head_dim=4, qk_pos_emb_head_dim=2, v_head_dim=3, q_lora_rank=6
)
MODELS = {
    "gpt": {},
    "llama": {**GQA, "window_size": (9, 0)},
    "mixtral": {**GQA, "moe_config": MoEConfig(num_experts=4, moe_router_topk=2)},
    "latent": {**LLAMA, **NO_BIAS, "multi_latent_attention": True, "mla_config": LATENT},
}


def _model(name, **changes):
    set_seed(5)
    return GPTModel(model_config(MODELS[name], seq_length=128, num_layers=2, **changes))


def _prompts(model):
    random = np.random.default_rng(2)
    return [random.integers(0, model.config.vocab_size, length) for length in LENGTHS]


def _logits(model, is_native, **options):
    """Behind some prompts, and behind further tokens of the same sequences."""
    engine = InferenceEngine([model], model.config)
    engine._may_decode = is_native
    slots = engine.cache.take(len(LENGTHS))
    first = engine.extend(slots, _prompts(model), **options)
    return first, engine.extend(slots, [row[:20] for row in _prompts(model)], **options)


@pytest.mark.parametrize("most", [512, 19])
@pytest.mark.parametrize("name", list(MODELS))
def test_prompts_are_those_of_the_cells(name, most, monkeypatch):
    monkeypatch.setattr(decoding, "MOST_TOKENS", most)
    model = _model(name)
    for found, wanted in zip(_logits(model, True), _logits(model, False), strict=True):
        np.testing.assert_allclose(found, wanted, atol=3e-5)
    assert model.decodes_alike is True


def test_logits_behind_every_token():
    model = _model("llama")
    pairs = zip(
        _logits(model, True, wants_all=True), _logits(model, False, wants_all=True), strict=True
    )
    for found, wanted in pairs:
        assert found.shape == wanted.shape
        for row, length in enumerate(LENGTHS):
            np.testing.assert_allclose(found[:length, row], wanted[:length, row], atol=3e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt", "latent"])
def test_prompts_in_sixteen_bits(name, dtype):
    model = _model(name, params_dtype=dtype, compute_dtype=dtype)
    for found, wanted in zip(_logits(model, True), _logits(model, False), strict=True):
        assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(
    "sizes", [(17, 768, 40), (48, 34, 14), (33, 66, 29), (20, 7, 20), (64, 32, 5)]
)
def test_products_of_many_rows_with_bfloat16(sizes):
    rows, inputs, outputs = sizes
    random = np.random.default_rng(3)
    x = random.normal(size=(rows, inputs)).astype(np.float32)
    weight = ops.cast(
        memory.from_numpy(random.normal(size=(outputs, inputs)).astype(np.float32)),
        memory.dtype_of("bfloat16"),
    )
    head = decoding.decode.Linear(weight.data_ptr(), None, None, inputs, outputs)
    none = decoding.decode.Norm()
    found = decoding.decode.decode_head(x, none, head, decoding.STORAGE[weight.dtype])
    halves = decoding.widened(memory.as_numpy(ops.cast(memory.from_numpy(x), weight.dtype)))
    wanted = halves.astype(np.float64) @ decoding.widened(memory.as_numpy(weight)).T
    np.testing.assert_allclose(found, wanted, atol=3e-5 * inputs**0.5, rtol=1e-5)
