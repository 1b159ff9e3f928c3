"""The count of operations against the sum over all matrix products."""

import mindspore as ms
import pytest

from mindspeed_ms.core.config import TransformerConfig
from mindspeed_ms.training.flops import flops_per_step, tflops_per_rank


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
    assert flops_per_step(config, 5) == pytest.approx(3 * forward, rel=1e-12)
    assert tflops_per_rank(config, 5, 2.0, 4) == pytest.approx(3 * forward / 8e12)
