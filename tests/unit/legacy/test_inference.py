# SPDX-License-Identifier: Apache-2.0
"""Steps over a cache give the logits of whole sequences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.config.rope_scaling_config import RopeScalingConfig
from mindspeed_ms.core.inference.engine import InferenceEngine, refuse_layout
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel

pytestmark = pytest.mark.usefixtures("single_rank")

GQA = {**LLAMA, **NO_BIAS, "group_query_attention": True, "num_query_groups": 2}
LATENT = {
    **LLAMA,
    **NO_BIAS,
    "multi_latent_attention": True,
    "mla_config": LatentAttentionConfig(
        kv_lora_rank=5, qk_head_dim=4, qk_pos_emb_head_dim=2, v_head_dim=3, q_lora_rank=4
    ),
}
SPARSE = {
    **LATENT,
    "experimental_attention_variant": "dsa",
    "dsa_indexer_n_heads": 3,
    "dsa_indexer_head_dim": 5,
    "dsa_indexer_topk": 3,
}
MODELS = {
    "gpt2": {"position_embedding_type": "absolute"},
    "llama": GQA,
    "untied": {**GQA, "untie_embeddings_and_output_weights": True, "qk_layernorm": True},
    "window": {**GQA, "window_size": (3, 0), "window_attn_skip_freq": 2},
    "capped": {**GQA, "attn_logit_softcapping": 1.5, "softmax_type": "learnable"},
    "alibi": {"position_embedding_type": "alibi"},
    "two bases": {**GQA, "window_size": (3, 0), "rotary_base_local": 100.0},
    "latent": LATENT,
    "sparse": SPARSE,
    "shared choice": {
        **SPARSE,
        "num_layers": 4,
        "dsa_indexer_topk_freq": 2,
        "dsa_indexer_skip_topk_offset": 2,
    },
    "experts": {
        **GQA,
        "moe_config": MoEConfig(num_experts=4, moe_router_topk=2, moe_expert_capacity_factor=0.1),
    },
    "further": {**GQA, "mtp_num_layers": 1},
    "side by side": {**GQA, "use_parallel_residual": True, "use_rope_scaling": True},
    "one norm": {
        **{**GQA, "normalization": "LayerNorm", "norm_has_bias": False, "head_has_bias": True},
        **{"use_parallel_residual": True, "shares_input_norm": True},
        "untie_embeddings_and_output_weights": True,
    },
    "norms behind": {
        **{**GQA, "use_pre_norm": False, "use_sandwich_norm": True},
        **{"qk_layernorm": True, "qk_layernorm_full": True, "residual_multiplier": 0.4},
    },
    "factors": {
        **{**GQA, "embedding_multiplier": 5.0, "residual_multiplier": 0.3},
        **{"logits_scaling": 0.7, "final_logit_softcapping": 0.4, "embed_layernorm": True},
    },
    "clamped": {
        **{**GQA, "hidden_act": "quick_gelu", "gated_linear_unit": True},
        **{"activation_func_clamp_value": 0.05, "glu_linear_offset": 1.0},
    },
    "tanh gate": {**GQA, "hidden_act": "fast_gelu", "gated_linear_unit": True},
    "norms of heads": {
        **{**GQA, "qk_layernorm": True, "qk_layernorm_per_head": True, "clip_qkv": 0.2},
        **{"normalization": "LayerNorm", "norm_has_bias": False},
    },
    "later places": {"position_embedding_type": "absolute", "position_embedding_offset": 2},
    "relu": {"hidden_act": "relu", "rotary_seq_len_interpolation_factor": 3},
    "longrope": {
        **GQA,
        "rope_scaling": RopeScalingConfig(
            rope_type="longrope",
            factor=2.0,
            original_max_position_embeddings=8,
            short_factor=(1.0, 1.2),
            long_factor=(1.5, 4.0),
        ),
    },
}
"""The first prompt outgrows the short factors of longrope on its way."""
PROMPTS = ([3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5])
STEPS = 4


def _model(name, **changes):
    set_seed(5)
    return GPTModel(model_config(MODELS[name], seq_length=16, **changes))


def _whole(model, row):
    """Logits behind the last of some tokens, computed without a cache."""
    ids = np.array([row], np.int32)
    positions = np.arange(len(row), dtype=np.int32)[None]
    with autograd.no_grad():
        logits = model(memory.from_numpy(ids), memory.from_numpy(positions), None)
    return memory.as_numpy(logits)[0, -1]


def _engine(name="llama", **options):
    model = _model(name)
    return InferenceEngine([model], model.config, **options)


@pytest.mark.parametrize("name", list(MODELS))
def test_steps_give_the_logits_of_whole_sequences(name):
    model = _model(name)
    whole = model
    if name == "experts":  # whole sequences of a model without a capacity: a cache drops no token
        whole = _model(name, moe_config=MoEConfig(num_experts=4, moe_router_topk=2))
    rows = [list(prompt) for prompt in PROMPTS]
    with InferenceEngine([model], model.config) as engine:
        slots, logits = engine.add(rows)
        for _ in range(STEPS):
            chosen = logits.argmax(-1)
            for row, token, own in zip(rows, chosen, logits, strict=True):
                np.testing.assert_allclose(own, _whole(whole, row), atol=3e-5)
                row.append(int(token))
            logits = engine.step(slots, chosen)
    # The first answer compares the native form with the Cells, where a model has one.
    is_native = ops.selected() == "cpu" and name not in ("sparse", "shared choice")
    assert getattr(model, "decodes_alike", None) is (True if is_native else None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_native_form_in_sixteen_bits(name, dtype):
    model = _model(name, params_dtype=dtype, compute_dtype=dtype)
    engine = InferenceEngine([model], model.config)
    slots, _ = engine.add(PROMPTS)
    engine.step(slots, [1, 2, 3])
    assert getattr(model, "decodes_alike", None) is (True if ops.selected() == "cpu" else None)
    again, _ = engine.add(PROMPTS)
    found = engine.step(again, [1, 2, 3])
    engine.cache.truncate(again, [7, 1, 3])
    model.decodes_alike = False
    engine._may_decode = False
    slow = engine.step(again, [1, 2, 3])
    assert np.abs(found - slow).max() < 0.05 * np.abs(slow).max()


@pytest.mark.skipif("ops.selected() != 'cpu'")
def test_a_native_form_that_computes_something_else_is_not_used():
    model = _model("llama")
    decoder = model.decoder()
    decoder.layers[0].input_norm.eps = 5.0  # as if the model had a part that the form does not know
    model.decoder = lambda in_int8=False: decoder
    engine = InferenceEngine([model], model.config)
    slots, logits = engine.add(PROMPTS)
    rows = [list(prompt) for prompt in PROMPTS]
    for _ in range(3):
        chosen = logits.argmax(-1)
        for row, token in zip(rows, chosen, strict=True):
            row.append(int(token))
        logits = engine.step(slots, chosen)
        np.testing.assert_allclose(logits[0], _whole(model, rows[0]), atol=3e-5)
    assert model.decodes_alike is False


@pytest.mark.parametrize("rows", [1, 3, 8, 16, 17])
def test_any_number_of_rows(rows):
    engine = _engine("two bases")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 32, rng.integers(1, 9)).tolist() for _ in range(rows)]
    slots, _ = engine.add(prompts)
    for step in range(3):
        new = rng.integers(0, 32, rows)
        found = engine.step(slots, new)
        for prompt, token in zip(prompts, new, strict=True):
            prompt.append(int(token))
        if step == 2:
            for prompt, own in zip(prompts, found, strict=True):
                np.testing.assert_allclose(own, _whole(engine.chunks[0], prompt), atol=3e-5)


def test_the_logits_behind_every_token_of_a_prompt():
    engine = _engine()
    slots = engine.cache.take(1)
    logits = engine.extend(slots, [PROMPTS[0]], wants_all=True)
    assert logits.shape == (len(PROMPTS[0]), 1, 32)
    for end in range(1, len(PROMPTS[0]) + 1):
        _, last = engine.add([PROMPTS[0][:end]])
        np.testing.assert_allclose(logits[end - 1], last, atol=1e-5)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rotation_that_goes_by_length_goes_by_the_own_length(rope_type):
    """Not by that of the rows beside it, nor by the room of the cache, in either form."""
    stretching = MODELS["longrope"]["rope_scaling"]
    stretching = replace(stretching, rope_type=rope_type)
    set_seed(5)
    model = GPTModel(model_config(GQA, rope_scaling=stretching))  # made for sequences of 8
    engine = InferenceEngine([model], model.config)
    prompts, new = ([3, 1, 4, 1, 5, 9, 2], [6]), ([1, 2], [3, 4], [5, 6])
    together = engine.add(prompts)[0]
    found = np.array([engine.step(together, tokens) for tokens in new])
    for row, prompt in enumerate(prompts):
        own, _ = engine.add([prompt])
        alone = [engine.step(own, tokens[row : row + 1])[0] for tokens in new]
        np.testing.assert_allclose(found[:, row], alone, atol=1e-5)


def test_sequences_come_and_go_while_others_go_on():
    """Twice as many slots, and twice their room, are made on the way."""
    engine = _engine()
    alone = [engine.step(*_first(engine, prompt)) for prompt in PROMPTS]
    assert engine.cache.num_slots == 4
    slots, logits = engine.add([PROMPTS[0]])
    for _ in range(40):
        logits = engine.step(slots, logits.argmax(-1))
    before = engine.cache.num_bytes
    others, first = engine.add(PROMPTS[1:])
    together = engine.step(
        np.concatenate([others[::-1], slots]), [*first[::-1].argmax(-1), logits[0].argmax()]
    )
    np.testing.assert_allclose(together[:2], np.concatenate(alone[:0:-1]), atol=1e-5)
    engine.free(others)
    again, logits = engine.add([PROMPTS[0]])
    assert set(again) <= set(others)
    np.testing.assert_allclose(engine.step(again, logits.argmax(-1)), alone[0], atol=1e-5)
    assert engine.cache.num_bytes >= before
    with pytest.raises(ValueError, match="freed twice"):
        engine.free(others)


def _first(engine, prompt):
    slots, logits = engine.add([prompt])
    return slots, logits.argmax(-1)


def test_beams_go_on_from_each_other_and_tokens_are_taken_back():
    engine = _engine()
    slots, _ = engine.add(PROMPTS)
    wanted = engine.step(slots[[2, 2, 0]], [7, 7, 7])[[0, 2]]
    engine.cache.truncate(slots, [7, 1, 3])
    engine.cache.reorder(slots, np.array([2, 2, 0]))
    assert engine.cache.lengths[slots].tolist() == [3, 3, 7]
    found = engine.step(slots, [7, 7, 7])
    np.testing.assert_allclose(found, wanted[[0, 0, 1]], atol=1e-5)


def test_refusals():
    engine = _engine("gpt2", max_length=100)
    with pytest.raises(ValueError, match="17 tokens, but the model has 16 positions"):
        engine.add([[1] * 17])
    with pytest.raises(ValueError, match="token 32 is outside of the vocabulary of 32"):
        engine.add([[1, 32]])
    with pytest.raises(ValueError, match="at least one token"):
        engine.add([[1], []])
    assert engine.cache.num_free == engine.cache.num_slots  # nothing is lost by a refusal
    with pytest.raises(ValueError, match="attention_mask_type is full"):
        refuse_layout(model_config(parallel_config={"attention_mask_type": "full"}))


def test_a_model_trains_again_afterwards():
    model = _model("llama").set_train(True)
    with InferenceEngine([model], model.config):
        assert not model.training
    assert model.training
