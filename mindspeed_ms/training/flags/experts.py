"""Further flags of experts, latent attention and multi-token prediction, with other spellings."""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import Field, Flag, NoEffect, Refused, in_group, on, value

_EXPERTS = "moe_config."
_LATENT = "model_config.mla_config."

OTHER_NAMES = in_group(
    "mixture of experts",
    [
        value(
            "--moe-intermediate-size",
            int,
            Field(f"{_EXPERTS}moe_ffn_hidden_size"),
            dest="moe_ffn_hidden_size",
            help="Same as --moe-ffn-hidden-size.",
        ),
        value(
            "--n-group",
            int,
            Field(f"{_EXPERTS}moe_router_num_groups"),
            dest="moe_router_num_groups",
            help="Same as --moe-router-num-groups.",
        ),
        value(
            "--topk-group",
            int,
            Field(f"{_EXPERTS}moe_router_group_topk"),
            dest="moe_router_group_topk",
            help="Same as --moe-router-group-topk.",
        ),
        value(
            "--routed-scaling-factor",
            float,
            Field(f"{_EXPERTS}moe_router_topk_scaling_factor"),
            dest="moe_router_topk_scaling_factor",
            help="Same as --moe-router-topk-scaling-factor.",
        ),
        value(
            "--n-shared-experts",
            int,
            Field(f"{_EXPERTS}moe_shared_expert_intermediate_size"),
            help="Shared experts of --moe-ffn-hidden-size each; another way to state "
            "--moe-shared-expert-intermediate-size.",
        ),
    ],
)

OTHER_NAMES_OF_LAYERS = in_group(
    "multi-latent attention",
    [
        on(
            "--multi-head-latent-attention",
            Field("model_config.multi_latent_attention"),
            dest="multi_latent_attention",
            help="Same as --multi-latent-attention.",
        ),
        value(
            "--qk-nope-head-dim",
            int,
            Field(f"{_LATENT}qk_head_dim"),
            128,
            dest="qk_head_dim",
            help="Same as --qk-head-dim.",
        ),
        value(
            "--qk-rope-head-dim",
            int,
            Field(f"{_LATENT}qk_pos_emb_head_dim"),
            64,
            dest="qk_pos_emb_head_dim",
            help="Same as --qk-pos-emb-head-dim.",
        ),
        value(
            "--num-nextn-predict-layers",
            int,
            Field("model_config.mtp_num_layers"),
            dest="mtp_num_layers",
            help="Same as --mtp-num-layers.",
        ),
    ],
)

ROWS: tuple[Flag, ...] = (
    *OTHER_NAMES,
    *OTHER_NAMES_OF_LAYERS,
    *compact(
        "mixture of experts",
        NoEffect("no token is dropped unless --moe-expert-capacity-factor is given"),
        "--moe-no-drop",
    ),
    *compact(
        "mixture of experts",
        Refused("DeepSpeed's expert layer is not available", "use megatron_moe"),
        """
--moe-model-type str=megatron_moe !megatron_moe
--moe-train-capacity-factor float=1.0 !1.0
--noisy-gate-policy str !None
--no-use-rts off=false >use_rts
""",
    ),
    *compact(
        "mixture of experts",
        Refused(
            "the router does not do this",
            "use --moe-router-load-balancing-type, --moe-expert-capacity-factor and "
            "--moe-router-dtype",
        ),
        """
--moe-use-sinkhorn
--moe-token-dropping
--moe-router-force-biased float
--moe-router-quantile-balancing-ema float=0.0 !0.0
--moe-expert-rank-capacity-factor float
--moe-apply-probs-on-input
--seq-aux
--norm-topk-prob
--router-gating-in-fp32
--moe-device-level-aux-loss-coeff float=0.0 !0.0
--moe-comm-aux-loss-coeff float=0.0 !0.0
""",
    ),
    *compact(
        "mixture of experts",
        Refused("dense and expert layers are told apart by one list", "use --moe-layer-freq"),
        "--first-k-dense-replace int",
    ),
    *compact(
        "multi-token prediction",
        Refused("multi-token prediction has one form", "use --mtp-num-layers"),
        """
--mtp-detach-heads
--mtp-hsm
--mtp-standalone
--mtp-use-repeated-layer
""",
    ),
)
