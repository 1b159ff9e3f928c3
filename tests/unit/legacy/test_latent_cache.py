# SPDX-License-Identifier: Apache-2.0
"""A cache of latent attention keeps narrow vectors only, and steps read them as they are."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, SIZES, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config.build import assemble
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.lora_config import LoraConfig
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.planning.cache import cache_bytes_per_token

pytestmark = pytest.mark.usefixtures("single_rank")
RANK, TURNED = 5, 2
LATENT = {"kv_lora_rank": RANK, "qk_head_dim": 4, "qk_pos_emb_head_dim": TURNED, "v_head_dim": 3}
SPARSE = {
    "experimental_attention_variant": "dsa",
    "dsa_indexer_n_heads": 3,
    "dsa_indexer_head_dim": 5,
    "dsa_indexer_topk": 3,
}
PROMPTS = ([3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5])
needs_native = pytest.mark.skipif("ops.selected() != 'cpu'")
assert ops  # the condition above names it


def _model(latent=None, **changes):
    set_seed(5)
    base = {**LLAMA, **NO_BIAS, "multi_latent_attention": True}
    section = LatentAttentionConfig(**LATENT, **(latent or {"q_lora_rank": 4}))
    return GPTModel(model_config(base, seq_length=128, mla_config=section, **changes))


def _whole(model, row):
    """Logits behind the last of some tokens, computed without a cache, from heads' keys."""
    ids = memory.from_numpy(np.array([row], np.int32))
    places = memory.from_numpy(np.arange(len(row), dtype=np.int32)[None])
    with autograd.no_grad():
        return memory.as_numpy(model(ids, places, None))[0, -1]


def _goes_on(model, prompts, *, native, steps=4):
    """Hold steps against whole sequences; return the engine's cache."""
    model.decodes_alike = native
    rows = [list(prompt) for prompt in prompts]
    with InferenceEngine([model], model.config) as engine:
        slots, logits = engine.add(rows)
        for _ in range(steps):
            for row, own in zip(rows, logits, strict=True):
                np.testing.assert_allclose(own, _whole(model, row), atol=3e-5)
                row.append(int(own.argmax()))
            logits = engine.step(slots, [row[-1] for row in rows])
        assert (engine._decoders is not None and engine._may_decode) is native
    return engine.cache


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
@pytest.mark.parametrize("latent", [None, {"rotary_interleaved": False}], ids=["pairs", "halves"])
def test_steps_read_narrow_vectors(native, latent):
    model = _model(latent)
    cache = _goes_on(model, PROMPTS, native=native)
    for layer in range(1, model.config.num_layers + 1):
        (store,) = cache.stores(layer)
        assert store.shape == (cache.num_slots, cache.room, 1, RANK + TURNED)


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
def test_prompts_that_follow_others(native):
    """Many tokens at once behind some that a slot has: keys are made of what it keeps."""
    model = _model()
    model.decodes_alike = native
    first, second = list(range(1, 30)), [int(t) for t in np.arange(40) * 7 % 31]
    with InferenceEngine([model], model.config) as engine:
        slots, _ = engine.add([first, first[:3]])
        logits = engine.extend(slots, [second, second[:20]])
        np.testing.assert_allclose(logits[0], _whole(model, first + second), atol=3e-5)
        np.testing.assert_allclose(logits[1], _whole(model, first[:3] + second[:20]), atol=3e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_the_matrix_that_is_taken_in(dora):
    config = LoraConfig(use_lora=True, lora_rank=2, use_dora=dora, target_modules="kv_b_proj")
    model = _model(lora_config=config)
    own = [one for one in model.get_parameters() if "kv_up_proj" in one.name and one.requires_grad]
    assert own
    for param in own:
        values = np.random.default_rng(len(param.name)).uniform(0.5, 1.0, param.shape)
        memory.copy_from_host(param, values.astype(np.float32))
    _goes_on(model, PROMPTS, native=False)


@needs_native
def test_weights_as_eight_bits():
    model = _model()
    with InferenceEngine([model], model.config, in_int8=True) as engine:
        slots, _ = engine.add(PROMPTS)
        found = engine.step(slots, [1, 2, 3])
    wanted = [_whole(model, [*row, token]) for row, token in zip(PROMPTS, (1, 2, 3), strict=True)]
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("options", [None, {}, SPARSE], ids=["heads", "latent", "sparse"])
def test_the_planner_knows_the_bytes(options):
    section = {**SIZES, **LLAMA, **NO_BIAS, "seq_length": 32, "num_layers": 2}
    if options is not None:
        section |= {"multi_latent_attention": True, "mla_config": {**LATENT, "q_lora_rank": 4}}
        section |= options
    config = assemble({"model_config": section})
    model = GPTModel(config.model_config)
    with InferenceEngine([model], config.model_config) as engine:
        slots, _ = engine.add([[1, 2, 3]])
        engine.step(slots, [4])
    tokens = engine.cache.num_slots * engine.cache.room
    assert engine.cache.num_bytes == cache_bytes_per_token(config, 0) * tokens
