# SPDX-License-Identifier: Apache-2.0
"""dots.llm1: experts as in DeepSeek V3 over heads whose queries and keys are normalised."""

from __future__ import annotations

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.deepseek_v2 import scaling
from mindspeed_ms.models.families.deepseek_v3 import SIGMOID
from mindspeed_ms.models.families.expert_rules import DenseFirst, Groups, Normed, Shared, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rules import Heads
from mindspeed_ms.models.families.window import LateWindows

FAMILY = Family(
    name="dots1",
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    fixed={**llama.FIXED, **SIGMOID, "model_config.qk_layernorm": True},
    rules=llama.rules(
        *experts("n_routed_experts"),
        DenseFirst(),
        Shared(),
        scaling(1.0),
        Groups(2),
        Normed(has_single_scores=True),
        llama.ATTENTION_BIAS,
        LateWindows(4096, 62),
        heads=Heads(default_groups=32),
    ),
    places=Decoder(),
    neutral=frozenset({"output_router_logits", "router_aux_loss_coef"}),
    presets={
        "dots_llm1": {
            "model_type": "dots1",
            "vocab_size": 152064,
            "num_hidden_layers": 62,
            "hidden_size": 4096,
            "intermediate_size": 10944,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "n_routed_experts": 128,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "sliding_window": None,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000000.0,
            "eos_token_id": 151645,
        }
    },
)
