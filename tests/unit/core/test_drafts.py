# SPDX-License-Identifier: Apache-2.0
"""Layers for further tokens draft what they would make of whole sequences."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, model_config

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.core.inference.layer_drafts import LayerDrafts
from mindspeed_ms.engine.parallel_setup import set_seed
from mindspeed_ms.legacy.model import GPTModel

pytestmark = pytest.mark.usefixtures("single_rank")

LATENT = LatentAttentionConfig(
    kv_lora_rank=5, qk_head_dim=4, qk_pos_emb_head_dim=2, v_head_dim=3, q_lora_rank=4
)
MODELS = {
    "one layer twice": {"mtp_num_layers": 2, "mtp_use_repeated_layer": True},
    "one layer": {"mtp_num_layers": 1},
    "three layers": {"mtp_num_layers": 3},
    "latent experts": {
        "mtp_num_layers": 2,
        "multi_latent_attention": True,
        "mla_config": LATENT,
        "moe_config": MoEConfig(num_experts=4, moe_router_topk=2),
    },
}
PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]


def _whole(model, row, depth):
    """Logits of every depth behind the last place that the model has seen, from all tokens.

    The row ends with a token that the model has not seen, and with the drafts of earlier depths.
    """
    seen = len(row) - 1 - depth
    ids = np.array([row[:seen]], np.int32)
    places = np.arange(seen, dtype=np.int32)[None]
    ahead = [memory.from_numpy(np.array([row[k + 1 : k + 1 + seen]])) for k in range(depth + 1)]
    ahead += ahead[-1:] * (model.config.mtp_num_layers - len(ahead))
    with autograd.no_grad():
        hidden = model.language_model(memory.from_numpy(ids), memory.from_numpy(places), None)
        further = model.language_model.further_hidden_states(hidden, ahead, None, None)[depth]
        logits = model.parallel_lm_logits(further, model.head_weights(), parallel_output=False)
    return memory.as_numpy(logits)[-1, 0]


@pytest.mark.parametrize("name", list(MODELS))
def test_drafts_are_those_of_whole_sequences(name):
    """Also behind drafts that were turned down, which later places must not rest on."""
    set_seed(5)
    model = GPTModel(model_config({**LLAMA, **NO_BIAS, **MODELS[name]}, seq_length=32))
    rng = np.random.default_rng(0)
    rows = [list(prompt) for prompt in PROMPTS]
    with InferenceEngine([model], model.config) as engine:
        drafts = LayerDrafts(engine)
        slots, logits = drafts.add(rows)
        for row, own in zip(rows, logits, strict=True):
            row.append(int(own.argmax()))
        for _ in range(4):
            proposed: list[list[int]] = [[] for _ in rows]

            def choose(logits, proposed=proposed):
                depth = len(proposed[0])
                for row, ahead, own in zip(rows, proposed, logits, strict=True):
                    np.testing.assert_allclose(own, _whole(model, row + ahead, depth), atol=3e-5)
                    ahead.append(int(own.argmax()))
                return np.array([ahead[depth] for ahead in proposed])

            drafts.propose(slots, rows, choose, drafts.depth)
            fed = [[row[-1], *own] for row, own in zip(rows, proposed, strict=True)]
            drafts.verify(slots, fed)
            wanted = rng.integers(1, drafts.depth + 2, len(rows))  # as if the others were wrong
            for row, ahead, count in zip(rows, proposed, wanted, strict=True):
                row.extend([*ahead[: count - 1], int(rng.integers(0, 32))])
            drafts.keep(slots, np.full(len(rows), drafts.depth + 1), wanted)
    assert getattr(model, "decodes_alike", None) is (True if ops.selected() == "cpu" else None)


def test_a_model_without_such_layers_cannot_draft():
    model = GPTModel(model_config(LLAMA))
    with pytest.raises(ValueError, match="no layers for further tokens"):
        LayerDrafts(InferenceEngine([model], model.config))
