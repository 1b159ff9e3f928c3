# SPDX-License-Identifier: Apache-2.0
"""DeepSeek V2: attention from narrow vectors, shared experts, experts chosen within groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.families import llama
from mindspeed_ms.models.families.decoder import Decoder
from mindspeed_ms.models.families.expert_rules import DenseFirst, Groups, Shared, experts
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.rope import Rope
from mindspeed_ms.models.families.rules import Biases, Fields, Key, Only, Rule, value_of

_LATENT = "model_config.mla_config."
_BLOCK = "model_config.rope_scaling."

FIXED: dict[str, Any] = {
    **llama.FIXED,
    "model_config.multi_latent_attention": True,
    "model_config.qk_layernorm": True,
    # The norms of the narrow vectors have this epsilon whatever the file says of the others.
    f"{_LATENT}norm_epsilon": 1e-6,
    "moe_config.moe_router_dtype": "fp32",
}


@dataclass(frozen=True, slots=True)
class EqualHeads:
    """As many heads of keys and values as of queries."""

    keys: frozenset[str] = frozenset({"num_attention_heads", "num_key_value_heads"})

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """The heads.

        Raises:
            ValueError: another number of heads of keys and values.
        """
        heads = value_of(theirs, "num_attention_heads")
        groups = theirs.get("num_key_value_heads")
        if groups not in (None, heads):
            raise ValueError(
                f"config.json has num_key_value_heads {groups} for {heads} heads; attention from "
                "narrow vectors makes keys and values for every head"
            )
        return {"model_config.num_attention_heads": heads}

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Both keys."""
        return dict.fromkeys(sorted(self.keys), config.model_config.num_attention_heads)


@dataclass(frozen=True, slots=True)
class LatentRope:
    """Positions of the rotated channels; yarn by Megatron's fields where these say the same."""

    plain: Rope = Rope()  # noqa: RUF009 - it is frozen

    @property
    def keys(self) -> frozenset[str]:
        """As of other models."""
        return self.plain.keys

    def read(self, theirs: Mapping[str, Any]) -> Fields:
        """Base, and what stretches.

        Raises:
            ValueError: positions are stretched in a way that is not known.
        """
        fields = self.plain.read(theirs)
        divisor = fields.pop("model_config.rotary_seq_len_interpolation_factor", None)
        if divisor is not None:  # Megatron's field is not for this kind of attention
            fields |= {f"{_BLOCK}rope_type": "linear", f"{_BLOCK}factor": divisor}
        block = {key.removeprefix(_BLOCK): value for key, value in fields.items() if _BLOCK in key}
        growths = block.get("mscale", 0.0), block.get("mscale_all_dim", 0.0)
        is_megatrons = (
            block.get("rope_type") == "yarn"
            and "attention_factor" not in block
            and block["truncate"]
            and all(growths) == any(growths)
        )
        if not is_megatrons:
            return {f"{_LATENT}rope_type": "rope", **fields}
        return {
            "model_config.rotary_base": fields["model_config.rotary_base"],
            f"{_LATENT}rope_type": "yarn",
            f"{_LATENT}rotary_scaling_factor": float(block["factor"]),
            f"{_LATENT}original_max_position_embeddings": block["original_max_position_embeddings"],
            f"{_LATENT}beta_fast": float(block["beta_fast"]),
            f"{_LATENT}beta_slow": float(block["beta_slow"]),
            f"{_LATENT}mscale": float(growths[0] or 1.0),
            f"{_LATENT}mscale_all_dim": float(growths[1]),
        }

    def write(self, config: AllConfig) -> dict[str, Any]:
        """Spelled as in ``transformers`` 4."""
        model, latent = config.model_config, config.model_config.mla_config
        written = self.plain.write(config)
        if latent.rope_type != "yarn" or latent.rotary_scaling_factor == 1.0:
            return written
        scaling = {
            "rope_type": "yarn",
            "factor": latent.rotary_scaling_factor,
            "original_max_position_embeddings": latent.original_max_position_embeddings
            or model.max_position_embeddings,
            "beta_fast": latent.beta_fast,
            "beta_slow": latent.beta_slow,
        }
        if latent.mscale_all_dim:
            scaling |= {"mscale": latent.mscale, "mscale_all_dim": latent.mscale_all_dim}
        return {**written, "rope_scaling": scaling}


def scaling(default: float) -> Key:
    """The factor of the experts' weights.

    Args:
        default: what a file without the key means.
    """
    return Key(
        "routed_scaling_factor",
        "moe_config.moe_router_topk_scaling_factor",
        default,
        lambda factor: None if factor == 1.0 else float(factor),
        lambda factor: factor or 1.0,
    )


def narrow_queries(default: int) -> Key:
    """The width of the vector that queries come from; null: they come from the hidden state.

    Args:
        default: what a file without the key means.
    """
    return Key("q_lora_rank", f"{_LATENT}q_lora_rank", default, is_nullable=True)


COMMON: tuple[Rule, ...] = llama.rules(
    *experts("n_routed_experts"),
    *(
        Key(key, f"{_LATENT}{name}")
        for key, name in (
            ("kv_lora_rank", "kv_lora_rank"),
            ("qk_nope_head_dim", "qk_head_dim"),
            ("qk_rope_head_dim", "qk_pos_emb_head_dim"),
            ("v_head_dim", "v_head_dim"),
        )
    ),
    narrow_queries(1536),
    Biases("attention_bias", (f"{_LATENT}down_proj_has_bias", "model_config.out_proj_has_bias")),
    Only("moe_layer_freq", (1,), 1),
    heads=EqualHeads(),
    rope=LatentRope(),
)
NEUTRAL = frozenset(
    {
        "aux_loss_alpha",
        "ep_size",
        "head_dim",
        "output_router_logits",
        "pretraining_tp",
        "qk_head_dim",
        "router_aux_loss_coef",
        "seq_aux",
    }
)

FAMILY = Family(
    name="deepseek_v2",
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    fixed={**FIXED, "moe_config.moe_router_pre_softmax": True},
    rules=(
        *COMMON,
        DenseFirst(),
        Shared(2),
        scaling(1.0),
        Groups(1, "group_limited_greedy"),
        Only("scoring_func", ("softmax",), "softmax"),
        Only("mlp_bias", (False,), False),
    ),
    places=Decoder(),
    neutral=NEUTRAL | {"norm_topk_prob"},  # its class does not read it
    presets={
        "deepseek_v2_lite": {
            "model_type": "deepseek_v2",
            "vocab_size": 102400,
            "num_hidden_layers": 27,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1408,
            "first_k_dense_replace": 1,
            "routed_scaling_factor": 1.0,
            "topk_method": "greedy",
            "max_position_embeddings": 163840,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
            "bos_token_id": 100000,
            "eos_token_id": 100001,
        }
    },
)
