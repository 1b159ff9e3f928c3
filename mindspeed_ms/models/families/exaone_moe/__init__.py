# SPDX-License-Identifier: Apache-2.0
"""K-EXAONE: EXAONE 4's attention behind norms, and experts as in DeepSeek V3."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.deepseek_v2 import scaling
from mindspeed_ms.models.families.deepseek_v3 import SIGMOID
from mindspeed_ms.models.families.expert_rules import (
    Groups,
    ListedBlocks,
    Normed,
    Shared,
    experts,
)
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads
from mindspeed_ms.models.families.window import FULL, SLIDING, RotatedWindows

FAMILY = Family(
    name="exaone_moe",
    model_type="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    fixed={**llama.FIXED, **SIGMOID, "model_config.qk_layernorm": True},
    rules=llama.rules(
        *experts("num_experts"),
        ListedBlocks(1),
        Shared(1, "num_shared_experts"),
        Groups(2),
        Normed(default=True, has_single_scores=True),
        scaling(2.5),
        RotatedWindows(rotates_without=True),
        heads=Heads(default_groups=32),
        epsilon=1e-5,
    ),
    places=Decoder(choice_bias="e_score_correction_bias"),
    neutral=frozenset({"output_router_logits", "router_aux_loss_coef"}),
    presets={
        "k_exaone_236b_a23b": {
            "model_type": "exaone_moe",
            "vocab_size": 153600,
            "num_hidden_layers": 48,
            "hidden_size": 6144,
            "intermediate_size": 18432,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_experts": 128,
            "num_shared_experts": 1,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2048,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 2.5,
            "sliding_window": 128,
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL] * 12,
            "max_position_embeddings": 262144,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
        }
    },
)
