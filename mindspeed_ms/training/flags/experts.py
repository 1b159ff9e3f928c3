# SPDX-License-Identifier: Apache-2.0
"""Flags of mixture of experts, multi-latent attention and multi-token prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import (
    UNSET,
    Field,
    Flag,
    NoEffect,
    ReadField,
    Refused,
    in_group,
    on,
    toggle,
    value,
    values,
)
from mindspeed_ms.training.flags.value_types import natural, number_or_list, whole

_EXPERTS = "moe_config."
_LATENT = "model_config.mla_config."
_TYPE = f"{_EXPERTS}moe_router_load_balancing_type"
_OTHER_ROUTERS = ("softmax_topk", "group_limited_greedy", "pai_megatron_aux_loss", "noaux_tc")
"""Routers of MindSpeed-LLM; ``flag_rules`` says what they are."""
_GROUPS = f"{_EXPERTS}moe_router_num_groups"
_WIDTH = f"{_EXPERTS}moe_ffn_hidden_size"
_SHARED_WIDTH = f"{_EXPERTS}moe_shared_expert_intermediate_size"


def noise_on_scores(values: Mapping[str, Any]) -> list[str]:
    """Return a line for the noise that DeepSpeed puts on scores when a token has one expert."""
    if values["noisy_gate_policy"] != "RSample" or values["moe_router_topk"] != 1:
        return []
    return [
        "--noisy-gate-policy RSample with --moe-router-topk 1 is refused: noise is put on the "
        "router's input, not on its scores; use Jitter, or --moe-input-jitter-eps"
    ]


def _weighs_all(routers: Sequence[str] | str | None, _: int | None) -> Any:
    """Those routers of MindSpeed-LLM take the softmax of all scores."""
    return True if {*_names(routers)} & {*_OTHER_ROUTERS[:3]} else UNSET


def _scores_alone(routers: Sequence[str] | str | None, _: int | None) -> Any:
    return "sigmoid" if "noaux_tc" in _names(routers) else UNSET


def _one_group_a_rank(routers: Sequence[str] | str | None, ranks: int | None) -> Any:
    return ranks or 1 if "group_limited_greedy" in _names(routers) else UNSET


def _of_one_group(chosen: int | None) -> Any:
    """The best one of no groups is the best one of one group."""
    return 1 if chosen == 1 else UNSET


def _names(routers: Sequence[str] | str | None) -> Sequence[str]:
    return [routers] if isinstance(routers, str) else routers or ()


def _every_layer(freq: Sequence[int] | int | None) -> Any:
    """-1, MindSpeed-LLM's word for experts in all layers, is 1."""
    return 1 if freq == -1 else freq


def _layers(freq: Sequence[int] | int, _: ReadField) -> Any:
    return list(freq) if isinstance(freq, tuple) else freq


MOE = in_group(
    "mixture of experts",
    [
        value(
            "--num-experts",
            int,
            Field(
                f"{_EXPERTS}num_experts",
                back=lambda count, _: None if count == 1 else count,
                also=(_WIDTH, f"{_EXPERTS}moe_router_has_bias"),
            ),
            common=True,
        ),
        value("--moe-router-topk", int, Field(f"{_EXPERTS}moe_router_topk"), 2, common=True),
        values(
            "--moe-router-load-balancing-type",
            str,
            Field(
                _TYPE,
                sets={
                    f"{_EXPERTS}moe_router_pre_softmax": _weighs_all,
                    f"{_EXPERTS}moe_router_score_function": _scores_alone,
                    _GROUPS: _one_group_a_rank,
                },
                beside="expert_model_parallel_size",
            ),
            arity="some",
            default="aux_loss",
            choices=(
                "aux_loss",
                "seq_aux_loss",
                "global_aux_loss",
                "sinkhorn",
                "none",
                "quantile_balancing",
                *_OTHER_ROUTERS,
            ),
        ),
        values(
            "--moe-aux-loss-coeff",
            float,
            Field(f"{_EXPERTS}moe_aux_loss_coeff"),
            arity="some",
            default=0.0,
        ),
        value("--moe-z-loss-coeff", float, Field(f"{_EXPERTS}moe_z_loss_coeff")),
        value("--moe-input-jitter-eps", float, Field(f"{_EXPERTS}moe_input_jitter_eps")),
        value(
            "--moe-token-dispatcher-type",
            str,
            Field(f"{_EXPERTS}moe_token_dispatcher_type"),
            "allgather",
            choices=("allgather", "alltoall", "alltoall_seq", "flex"),
        ),
        on("--moe-grouped-gemm", Field(f"{_EXPERTS}moe_grouped_gemm")),
        on(
            "--moe-permute-fusion",
            Field(f"{_EXPERTS}moe_permute_fusion"),
        ),
        value("--moe-ffn-hidden-size", int, Field(_WIDTH, also=(_SHARED_WIDTH,))),
        value(
            "--moe-shared-expert-intermediate-size",
            int,
            Field(_SHARED_WIDTH),
        ),
        on("--moe-shared-expert-overlap", Field(f"{_EXPERTS}moe_shared_expert_overlap")),
        on("--moe-shared-expert-gate", Field(f"{_EXPERTS}moe_shared_expert_gate")),
        on("--moe-layer-recompute", Field(f"{_EXPERTS}moe_layer_recompute")),
        on("--moe-per-layer-logging", Field(f"{_EXPERTS}moe_per_layer_logging")),
        value(
            "--moe-layer-freq",
            number_or_list,
            Field(f"{_EXPERTS}moe_layer_freq", means=_every_layer, back=_layers),
            1,
        ),
        value(
            "--moe-expert-capacity-factor", float, Field(f"{_EXPERTS}moe_expert_capacity_factor")
        ),
        on(
            "--moe-pad-expert-input-to-capacity",
            Field(f"{_EXPERTS}moe_pad_expert_input_to_capacity"),
        ),
        value(
            "--moe-token-drop-policy",
            str,
            Field(f"{_EXPERTS}moe_token_drop_policy"),
            "probs",
            choices=("probs", "position"),
        ),
        value(
            "--moe-router-score-function",
            str,
            Field(f"{_EXPERTS}moe_router_score_function"),
            "softmax",
            choices=("softmax", "sigmoid", "sqrtsoftplus"),
        ),
        on("--moe-router-pre-softmax", Field(f"{_EXPERTS}moe_router_pre_softmax")),
        value(
            "--moe-router-topk-scaling-factor",
            float,
            Field(f"{_EXPERTS}moe_router_topk_scaling_factor"),
        ),
        on("--moe-router-enable-expert-bias", Field(f"{_EXPERTS}moe_router_enable_expert_bias")),
        value(
            "--moe-router-bias-update-rate",
            float,
            Field(f"{_EXPERTS}moe_router_bias_update_rate"),
            1e-3,
        ),
        value("--moe-router-num-groups", int, Field(_GROUPS)),
        value(
            "--moe-router-group-topk",
            int,
            Field(f"{_EXPERTS}moe_router_group_topk", sets={_GROUPS: _of_one_group}),
        ),
        value("--moe-router-group-scores", int, Field(f"{_EXPERTS}moe_router_group_scores")),
        toggle("--moe-router-has-bias", Field(f"{_EXPERTS}moe_router_has_bias")),
        value(
            "--moe-router-quantile-balancing-ema",
            float,
            Field(f"{_EXPERTS}moe_router_quantile_balancing_ema"),
            0.0,
        ),
        value("--moe-router-force-biased", float, Field(f"{_EXPERTS}moe_router_force_biased")),
        on("--moe-apply-probs-on-input", Field(f"{_EXPERTS}moe_apply_probs_on_input")),
        on("--moe-use-upcycling", Field(f"{_EXPERTS}moe_use_upcycling")),
        value(
            "--moe-upcycling-granularity",
            int,
            Field(f"{_EXPERTS}moe_upcycling_granularity"),
            1,
        ),
        value("--moe-latent-size", int, Field(f"{_EXPERTS}moe_latent_size")),
        value(
            "--moe-router-dtype",
            str,
            Field(f"{_EXPERTS}moe_router_dtype"),
            choices=("fp32", "fp64"),
        ),
        on(
            "--moe-router-force-load-balancing",
            Field(f"{_EXPERTS}moe_router_force_load_balancing"),
        ),
    ],
)

OTHER_NAMES = in_group(
    "mixture of experts",
    [
        value(
            "--moe-intermediate-size",
            int,
            Field(_WIDTH, also=(_SHARED_WIDTH,)),
            dest="moe_ffn_hidden_size",
            help="Same as --moe-ffn-hidden-size.",
        ),
        value(
            "--n-group",
            int,
            Field(_GROUPS),
            dest="moe_router_num_groups",
            help="Same as --moe-router-num-groups.",
        ),
        value(
            "--topk-group",
            int,
            Field(f"{_EXPERTS}moe_router_group_topk", sets={_GROUPS: _of_one_group}),
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
            natural,
            Field(_SHARED_WIDTH, by_rule=True),
            help="Shared experts of --moe-ffn-hidden-size each; another way to state "
            "--moe-shared-expert-intermediate-size.",
        ),
        on(
            "--seq-aux",
            Field(f"{_EXPERTS}seq_aux"),
        ),
        on(
            "--moe-use-sinkhorn",
            Field(_TYPE, means="sinkhorn"),
            help="Same as --moe-router-load-balancing-type sinkhorn.",
        ),
        on("--norm-topk-prob", Field(f"{_EXPERTS}moe_router_norm_topk_prob")),
        on(
            "--router-gating-in-fp32",
            Field(f"{_EXPERTS}moe_router_dtype", means="fp32"),
            help="Same as --moe-router-dtype fp32.",
        ),
        value(
            "--moe-device-level-aux-loss-coeff",
            float,
            Field(f"{_EXPERTS}moe_device_level_aux_loss_coeff"),
            0.0,
        ),
        value("--moe-comm-aux-loss-coeff", float, Field(f"{_EXPERTS}moe_comm_aux_loss_coeff"), 0.0),
        value(
            "--first-k-dense-replace",
            whole,
            Field(
                f"{_EXPERTS}first_k_dense_replace",
                means=lambda first: 0 if first == -1 else first,
                back=lambda first, _: first,
            ),
            0,
            help="Layers at the beginning that have no experts; -1: none.",
        ),
    ],
)


def _yarn(latent: str, plain: str) -> Field:
    """A number of yarn: of multi-latent attention, and by a rule of plain rope."""
    return Field(f"{_LATENT}{latent}", also=(f"model_config.rope_scaling.{plain}",))


LATENT_ATTENTION = in_group(
    "multi-latent attention",
    [
        on("--multi-latent-attention", Field("model_config.multi_latent_attention")),
        value("--q-lora-rank", int, Field(f"{_LATENT}q_lora_rank")),
        value("--kv-lora-rank", int, Field(f"{_LATENT}kv_lora_rank"), 32),
        value("--qk-head-dim", int, Field(f"{_LATENT}qk_head_dim"), 128),
        value("--qk-pos-emb-head-dim", int, Field(f"{_LATENT}qk_pos_emb_head_dim"), 64),
        value("--v-head-dim", int, Field(f"{_LATENT}v_head_dim"), 128),
        value("--rope-type", str, Field(f"{_LATENT}rope_type"), choices=("rope", "yarn")),
        value("--rotary-scaling-factor", float, _yarn("rotary_scaling_factor", "factor"), 1.0),
        value(
            "--yarn-original-max-position-embeddings",
            int,
            _yarn("original_max_position_embeddings", "original_max_position_embeddings"),
        ),
        value("--yarn-beta-fast", float, _yarn("beta_fast", "beta_fast")),
        value("--yarn-beta-slow", float, _yarn("beta_slow", "beta_slow")),
        value("--mscale", float, _yarn("mscale", "attention_factor"), 1.0),
        value("--mscale-all-dim", float, _yarn("mscale_all_dim", "attention_factor"), 0.0),
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

FURTHER_TOKENS = in_group(
    "multi-token prediction",
    [
        value("--mtp-num-layers", int, Field("model_config.mtp_num_layers")),
        on("--mtp-use-repeated-layer", Field("model_config.mtp_use_repeated_layer")),
        on("--mtp-detach-heads", Field("model_config.mtp_detach_heads")),
        value(
            "--mtp-loss-scaling-factor", float, Field("model_config.mtp_loss_scaling_factor"), 0.1
        ),
    ],
)

ROWS: tuple[Flag, ...] = (
    *MOE,
    *OTHER_NAMES,
    *LATENT_ATTENTION,
    *OTHER_NAMES_OF_LAYERS,
    *FURTHER_TOKENS,
    *compact(
        "mixture of experts",
        NoEffect("no token is dropped unless --moe-expert-capacity-factor is given"),
        "--moe-no-drop",
    ),
    *in_group(
        "mixture of experts",
        [
            value(
                "--moe-model-type",
                str,
                Field(
                    f"{_EXPERTS}moe_expert_capacity_factor",
                    by_rule=True,
                    also=(f"{_EXPERTS}moe_token_drop_policy", f"{_EXPERTS}moe_router_pre_softmax"),
                ),
                "megatron_moe",
                choices=("megatron_moe", "deepspeed_moe"),
                help="deepspeed_moe: experts take a limited number of tokens, those that come "
                "first; of one choice the weight is its probability among all experts.",
            ),
            value(
                "--moe-train-capacity-factor",
                float,
                Field(f"{_EXPERTS}moe_expert_capacity_factor", by_rule=True),
                1.0,
                help="With --moe-model-type deepspeed_moe: --moe-expert-capacity-factor.",
            ),
        ],
    ),
    *in_group(
        "mixture of experts",
        [
            value(
                "--noisy-gate-policy",
                str,
                Field(f"{_EXPERTS}moe_input_jitter_eps", means={"Jitter": 1e-2}),
                choices=("Jitter", "RSample", "None"),
                help="Jitter: same as --moe-input-jitter-eps 0.01. RSample: noise on the scores "
                "where a token has one expert, which is refused; none where it has several. None: "
                "no noise.",
            ),
        ],
    ),
    *compact(
        "mixture of experts",
        NoEffect(
            "it turns off a choice at random, which is not made: a full expert keeps the first"
        ),
        "--no-use-rts off=false >use_rts",
    ),
    *compact(
        "mixture of experts",
        Refused(
            "Megatron never gave it a meaning and refuses it, too",
            "use --moe-expert-capacity-factor",
        ),
        "--moe-token-dropping",
    ),
    *compact(
        "mixture of experts",
        NoEffect(
            "it drops no token in Megatron either, where a step beyond it is done again without; "
            "buffers have the size of the rows that arrive"
        ),
        "--moe-expert-rank-capacity-factor float",
    ),
    *compact(
        "multi-token prediction",
        Refused(
            "which token's history a layer sees is drawn at random there, ranks of one sequence "
            "apart",
            "use --mtp-num-layers",
        ),
        """
--mtp-hsm
""",
    ),
    *compact(
        "multi-token prediction",
        NoEffect(
            "Megatron reads it from --pipeline-model-parallel-layout, where m is the stage of "
            "these layers"
        ),
        "--mtp-standalone",
    ),
)
