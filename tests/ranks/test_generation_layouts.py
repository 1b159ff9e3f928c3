# SPDX-License-Identifier: Apache-2.0
"""Every layout generates the tokens of one rank."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import LLAMA, NO_BIAS, SIZES

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.engine.model_chunks import build_model_chunks
from mindspeed_ms.engine.start import fill_run_state
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.toolkit.generation.mixin import TextGenerator

pytestmark = pytest.mark.ranks

GQA = {**SIZES, **LLAMA, **NO_BIAS, "group_query_attention": True, "num_query_groups": 2}
GQA |= {"num_layers": 4, "seq_length": 32}
EXPERTS = {"num_experts": 4, "moe_router_topk": 2, "moe_grouped_gemm": True}
MODELS = {
    "llama": {"model_config": GQA},
    "gpt2": {
        "model_config": {**SIZES, "num_layers": 4, "seq_length": 32}
        | {"position_embedding_type": "absolute"}
    },
    "latent": {
        "model_config": {**GQA, "multi_latent_attention": True, "group_query_attention": False}
        | {"mla_config": {"kv_lora_rank": 8, "qk_head_dim": 8, "qk_pos_emb_head_dim": 4}}
    },
    "experts": {"model_config": GQA, "moe_config": EXPERTS},
    "biased experts": {
        "model_config": {**GQA, "mlp_has_bias": True, "out_proj_has_bias": True},
        "moe_config": {**EXPERTS, "moe_grouped_gemm": False},
    },
    "further": {"model_config": {**GQA, "mtp_num_layers": 2}, "moe_config": EXPERTS},
}
PROMPTS = ([3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5])
TP, PP, EP = (f"{name}_model_parallel_size" for name in ("tensor", "pipeline", "expert"))


def _config(model, parallel) -> AllConfig:
    sections = MODELS[model]
    return assemble({**sections, "parallel_config": parallel, "training_config": {"seed": 7}})


def built_model(model, parallel):
    """The model's chunks on this rank, and its configuration."""
    parallel_state.destroy_model_parallel()
    config = _config(model, parallel)
    fill_run_state(config)

    def provide(pre_process, post_process):
        return GPTModel(config.model_config, pre_process=pre_process, post_process=post_process)

    return build_model_chunks(provide, config), config


def drafted_worker(model, parallel):
    """Tokens with drafts of each kind, and how many were drafted and accepted."""
    generator = TextGenerator(*built_model(model, parallel))
    drafting = {"use_mtp": True}, {"prompt_lookup_num_tokens": 3}, {"assistant_model": generator}
    found = [
        generator.generate(PROMPTS, max_new_tokens=10, return_dict_in_generate=True, **options)
        for options in drafting
    ]
    parallel_state.destroy_model_parallel()
    return [(one.sequences.asnumpy(), one.num_drafted, one.num_accepted) for one in found]


def tokens_worker(model, parallel, steps=6):
    """Greedy tokens and their logits, [steps, B] and [steps, B, v]."""
    chunks, config = built_model(model, parallel)
    found = []
    with InferenceEngine(chunks, config.model_config) as engine:
        slots, logits = engine.add(PROMPTS)
        for _ in range(steps):
            found.append(logits.copy())
            logits = engine.step(slots, logits.argmax(-1))
    parallel_state.destroy_model_parallel()
    return np.array(found)


@pytest.mark.parametrize(
    ("model", "ranks", "parallel"),
    [
        ("llama", 2, {TP: 2}),
        ("llama", 2, {TP: 2, "sequence_parallel": True}),
        ("llama", 2, {PP: 2}),
        ("gpt2", 2, {PP: 2, "virtual_pipeline_model_parallel_size": 2}),
        ("gpt2", 2, {TP: 2, "sequence_parallel": True}),
        ("latent", 2, {TP: 2, "sequence_parallel": True}),
        ("experts", 2, {EP: 2}),
        ("experts", 2, {TP: 2, "sequence_parallel": True}),
        ("llama", 4, {TP: 2, PP: 2}),
        ("experts", 4, {TP: 2, PP: 2, "sequence_parallel": True}),
    ],
)
def test_layouts_give_the_tokens_of_one_rank(dist_run, model, ranks, parallel):
    alone = dist_run(tokens_worker, ranks=1, model=model, parallel={})[0]
    for found in dist_run(tokens_worker, ranks=ranks, model=model, parallel=parallel):
        assert (found.argmax(-1) == alone.argmax(-1)).all()
        np.testing.assert_allclose(found, alone, atol=5e-5)


@pytest.mark.parametrize(
    "parallel", [{TP: 2, "sequence_parallel": True}, {PP: 2}, {EP: 2}], ids=["tp2", "pp2", "ep2"]
)
def test_layouts_draft_alike(dist_run, parallel):
    alone = dist_run(drafted_worker, ranks=1, model="further", parallel={})[0]
    for ranks in dist_run(drafted_worker, ranks=2, model="further", parallel=parallel):
        for found, wanted in zip(ranks, alone, strict=True):
            assert (found[0] == alone[0][0]).all() and found[1:] == wanted[1:]
    (_, drafted, accepted), (_, found, _), (_, all_drafted, all_accepted) = alone
    assert drafted > accepted > 0 and found > 0 and all_drafted == all_accepted > 0
