# SPDX-License-Identifier: Apache-2.0
"""GLM-4.5: grouped heads, half of each rotated, before experts chosen like those of DeepSeek V3."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.deepseek_v2 import scaling
from mindspeed_ms.models.families.deepseek_v3 import SIGMOID, Further, places_of, without_further
from mindspeed_ms.models.families.expert_rules import DenseFirst, Groups, Normed, Shared, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Heads, Key


def _glm45(layers: int, hidden: int, inner: int, num_experts: int, dense: int) -> dict[str, Any]:
    is_large = layers == 92
    return {
        "model_type": "glm4_moe",
        "vocab_size": 151552,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
        "use_qk_norm": is_large,
        "n_routed_experts": num_experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536 if is_large else 1408,
        "first_k_dense_replace": dense,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.5 if is_large else 1.0,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "eos_token_id": [151329, 151336, 151338],
    }


FAMILY = Family(
    name="glm4_moe",
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    fixed={
        **llama.FIXED,
        **SIGMOID,
    },
    rules=llama.rules(
        *experts("n_routed_experts"),
        DenseFirst(1),
        Shared(1),
        Groups(2),
        Further(),
        Normed(default=True, has_single_scores=True),
        scaling(1.0),
        Biases("attention_bias", ("model_config.qkv_has_bias",)),
        Key("use_qk_norm", "model_config.qk_layernorm", False),
        heads=Heads(default_groups=8),
        rope=Rope(share=0.5),
        epsilon=1e-5,
    ),
    places=places_of,
    absent=without_further,
    neutral=frozenset({"output_router_logits", "router_aux_loss_coef"}),
    presets={
        "glm4.5_air": _glm45(46, 4096, 10944, 128, 1),
        "glm4.5": _glm45(92, 5120, 12288, 160, 3),
    },
)
