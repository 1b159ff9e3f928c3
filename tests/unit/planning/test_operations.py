# SPDX-License-Identifier: Apache-2.0
"""The count of operations against the sum over all matrix products."""

import mindspore as ms
import pytest

from mindspeed_ms.config import MoEConfig, TransformerConfig
from mindspeed_ms.planning.operations import step_operations, tflops_per_rank


@pytest.mark.parametrize("gated", [False, True])
def test_equals_the_sum_over_matrix_products(gated):
    config = TransformerConfig(
        vocab_size=1000,
        num_layers=3,
        num_attention_heads=8,
        hidden_size=64,
        ffn_hidden_size=160,
        seq_length=32,
        group_query_attention=True,
        num_query_groups=2,
        hidden_act="swiglu" if gated else "gelu",
        compute_dtype=ms.float32,
    )
    tokens, heads_by_channels = 5 * 32, 8 * 8
    qkv = 2 * tokens * 64 * (8 + 2 * 2) * 8
    out = 2 * tokens * heads_by_channels * 64
    # Queries times keys and weights times values, over the whole square as Megatron counts.
    scores = 2 * 2 * tokens * 32 * heads_by_channels
    mlp = 2 * tokens * 64 * 160 * (3 if gated else 2)
    head = 2 * tokens * 64 * 1000
    forward = 3 * (qkv + out + scores + mlp) + head
    assert step_operations(config, 5) == pytest.approx(3 * forward, rel=1e-12)
    assert tflops_per_rank(config, 5, 2.0, 4) == pytest.approx(3 * forward / 8e12)


def test_experts_latent_attention_and_further_tokens_are_counted():
    config = TransformerConfig(
        vocab_size=1000,
        num_layers=3,
        num_attention_heads=4,
        hidden_size=64,
        ffn_hidden_size=160,
        seq_length=32,
        hidden_act="swiglu",
        position_embedding_type="rope",
        compute_dtype=ms.float32,
        multi_latent_attention=True,
        mla_config={
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "qk_head_dim": 8,
            "qk_pos_emb_head_dim": 4,
            "v_head_dim": 10,
        },
        mtp_num_layers=1,
        moe_config=MoEConfig(
            num_experts=8,
            moe_router_topk=2,
            moe_ffn_hidden_size=40,
            moe_shared_expert_intermediate_size=30,
            moe_layer_freq=(0, 1, 1),
        ),
    )
    queries = 64 * 24 + 24 * 4 * 12
    keys = 64 * (16 + 4) + 16 * 4 * (8 + 10)
    attention = queries + keys + 4 * 10 * 64 + 32 * 4 * (12 + 10)
    dense, experts = 3 * 64 * 160, 3 * 64 * (2 * 40 + 30) + 64 * 8
    products = 4 * attention + dense + 3 * experts + 2 * 1000 * 64 + 2 * 64 * 64
    assert step_operations(config, 5) == pytest.approx(6 * 5 * 32 * products, rel=1e-12)
