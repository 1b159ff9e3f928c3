# SPDX-License-Identifier: Apache-2.0
"""Embeddings that are normalized before anything else, as Bloom's are."""

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms.backend import memory
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.legacy.model import GPTModel

pytestmark = pytest.mark.usefixtures("single_rank")
IDS = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], np.int32)


def model_of(**more):
    model = GPTModel(model_config({**LLAMA, **NO_BIAS, "embed_layernorm": True, **more}))
    random = np.random.RandomState(3)
    for name, param in named_parameters(model):
        if "embedding.norm" in name:
            memory.flat_view(param)[...] = random.randn(16).astype(np.float32)
    return model


@pytest.mark.parametrize("multiplier", [1.0, 3.0])
def test_a_layer_norm_follows_the_table(multiplier):
    model = model_of(embedding_multiplier=multiplier, norm_epsilon=1e-2)
    embedding = model.language_model.embedding
    found = memory.as_numpy(embedding(memory.from_numpy(IDS), None))[:, 0]
    rows = memory.as_numpy(embedding.word_embeddings.weight)[IDS[0]].astype(np.float64)
    gamma, beta = (memory.as_numpy(one) for one in (embedding.norm.gamma, embedding.norm.beta))
    centred = rows - rows.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, multiplier * (centred / spread * gamma + beta), rtol=2e-5)


def test_generation_with_a_cache_normalizes_too():
    model = model_of()
    whole = memory.as_numpy(model(memory.from_numpy(IDS), None, None))[0, -1]
    with InferenceEngine([model], model.config) as engine:
        _, logits = engine.add([IDS[0].tolist()])
    np.testing.assert_allclose(np.asarray(logits)[0], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"position_embedding_type": "absolute"}, "a table of positions"),
        ({"mtp_num_layers": 1}, "mtp_num_layers"),
    ],
)
def test_what_it_does_not_go_with(more, message):
    with pytest.raises(ValueError, match=f"embed_layernorm and {message} do not go together"):
        model_of(**more)
