# SPDX-License-Identifier: Apache-2.0
"""Flags of the optimizer: dropout and decay, update rules, schedules of the learning rate."""

from __future__ import annotations

from collections.abc import Mapping

from mindspeed_ms.training.flags.row import (
    Field,
    Flag,
    Refused,
    asked_means,
    in_group,
    off,
    on,
    toggle,
    value,
    values,
)

_QK_NORMS_DECAY = "apply_wd_to_qk_layernorm"
_WIDE_OR_HALF = {"fp32": "float32", "fp16": "float16"}
_MOMENT_TYPES = {**_WIDE_OR_HALF, "bf16": "bfloat16"}
_NO_FP8 = Refused("moments in 8 bits are not available", "use bf16 or fp16")


_ALGORITHMS = {
    **{
        name: name
        for name in (
            *("adam", "sgd", "lion", "muon", "dist_muon", "adaptive_muon", "adamw"),
            *("AdamWeightDecay", "AdamW", "Adam", "mint.AdamW", "SpeedAdamW", "AdamWZeRO"),
            *("SGD", "soap"),
        )
    },
    "fusedadamw": "adam",  # Megatron-DeepSpeed's name on Gaudi
    "hybridadam": "adam",  # Pai-Megatron-Patch's name of Adam whose states are on the host
}
_ELSEWHERE = ("ademamix", "dion")
"""Algorithms that forks have alone."""
_NO_UPDATE = Refused("this update is not available", "use adam or muon")


def _type_of(name: str, types: Mapping[str, str] = _MOMENT_TYPES) -> Field:
    """A field that holds the whole name of a type, which a flag may give as well."""
    whole = {one: one for one in types.values()}
    return Field(f"optimizer_config.{name}", means={**types, **whole})


REGULARIZATION = in_group(
    "regularization and optimizer",
    [
        value(
            "--attention-dropout",
            float,
            Field("model_config.attention_dropout_rate"),
            0.1,
            common=True,
        ),
        value(
            "--hidden-dropout",
            float,
            Field("model_config.hidden_dropout_rate"),
            0.1,
            common=True,
        ),
        value(
            "--weight-decay",
            float,
            Field(
                "optimizer_config.weight_decay",
                clears=("start_weight_decay", "end_weight_decay"),
            ),
            0.01,
            common=True,
        ),
        value("--start-weight-decay", float, Field("optimizer_config.start_weight_decay")),
        value("--end-weight-decay", float, Field("optimizer_config.end_weight_decay")),
        value(
            "--weight-decay-incr-style",
            str,
            Field("optimizer_config.weight_decay_incr_style"),
            "constant",
            choices=("constant", "linear", "cosine"),
        ),
        values(
            "--no-weight-decay-params",
            str,
            Field("optimizer_config.no_weight_decay_params"),
            arity="some",
        ),
        on("--apply-wd-to-qk-layernorm", Field("optimizer_config.apply_wd_to_qk_layernorm")),
        value(
            "--no-weight-decay-cond-type",
            str,
            Field(
                "optimizer_config.apply_wd_to_qk_layernorm",
                means={_QK_NORMS_DECAY: True},
            ),
            choices=(_QK_NORMS_DECAY,),
        ),
        value("--clip-grad", float, Field("optimizer_config.clip_grad"), 1.0, common=True),
        value(
            "--optimizer",
            str,
            Field("optimizer_config.optimizer_type", means=_ALGORITHMS),
            "adam",
            common=True,
            choices=(*_ALGORITHMS, *_ELSEWHERE),
            refuses=tuple((name, _NO_UPDATE) for name in _ELSEWHERE),
        ),
        value(
            "--optimizer-selection",
            str,
            Field("optimizer_config.optimizer_selection"),
            "fused_adamw",
            choices=("fused_adamw", "fused_torch_adamw", "fused_ema_adamw"),
        ),
        on(
            "--use-ema",
            Field("optimizer_config.optimizer_selection", means="fused_ema_adamw"),
            help="Same as --optimizer-selection fused_ema_adamw.",
        ),
        value("--ema-decay", float, Field("optimizer_config.ema_decay"), 0.9999),
        value("--adam-beta1", float, Field("optimizer_config.betas", item=0), 0.9, common=True),
        value("--adam-beta2", float, Field("optimizer_config.betas", item=1), 0.999, common=True),
        value("--adam-eps", float, Field("optimizer_config.eps"), 1e-8),
        off(
            "--no-decoupled-weight-decay",
            "decoupled_weight_decay",
            Field("optimizer_config.decoupled_weight_decay"),
        ),
        on(
            "--use-precision-aware-optimizer",
            Field("optimizer_config.use_precision_aware_optimizer"),
        ),
        on("--reuse-fp32-param", Field("optimizer_config.reuse_fp32_param")),
        value(
            "--main-params-dtype",
            str,
            _type_of("main_params_dtype", _WIDE_OR_HALF),
            "fp32",
            choices=tuple(_WIDE_OR_HALF),
        ),
        value(
            "--exp-avg-dtype",
            str,
            _type_of("exp_avg_dtype"),
            "fp32",
            choices=(*_MOMENT_TYPES, "fp8"),
            refuses=(("fp8", _NO_FP8),),
        ),
        value(
            "--exp-avg-sq-dtype",
            str,
            _type_of("exp_avg_sq_dtype"),
            "fp32",
            choices=(*_MOMENT_TYPES, "fp8"),
            refuses=(("fp8", _NO_FP8),),
        ),
        value("--sgd-momentum", float, Field("optimizer_config.sgd_momentum"), 0.9),
        value("--lion-beta1", float, Field("optimizer_config.lion_beta1"), 0.95),
        value("--lion-beta2", float, Field("optimizer_config.lion_beta2"), 0.98),
        value("--soap-shampoo-beta", float, Field("optimizer_config.soap_shampoo_beta"), 0.95),
        value(
            "--soap-precondition-frequency",
            int,
            Field("optimizer_config.soap_precondition_frequency"),
            1,
        ),
        off(
            "--no-soap-use-kl-shampoo",
            "soap_use_kl_shampoo",
            Field("optimizer_config.soap_use_kl_shampoo"),
        ),
        value("--soap-eps", float, Field("optimizer_config.soap_eps"), 1e-8),
        value("--muon-momentum", float, Field("optimizer_config.muon_momentum"), 0.9),
        on("--muon-nesterov", Field("optimizer_config.muon_nesterov")),
        on("--muon-use-nesterov", Field("optimizer_config.muon_nesterov")),
        off("--muon-no-split-qkv", "muon_split_qkv", Field("optimizer_config.muon_split_qkv")),
        value(
            "--muon-scale-mode",
            str,
            Field("optimizer_config.muon_scale_mode"),
            "spectral",
            choices=("spectral", "unit_rms_norm", "shape_scaling"),
        ),
        value(
            "--muon-extra-scale-factor",
            float,
            Field("optimizer_config.muon_extra_scale_factor"),
            1.0,
        ),
        value(
            "--muon-coefficient-type",
            str,
            Field("optimizer_config.muon_coefficient_type"),
            "quintic",
            choices=("simple", "quintic", "polar_express", "aol"),
        ),
        value("--muon-num-ns-steps", int, Field("optimizer_config.muon_num_ns_steps"), 5),
        value(
            "--muon-fp32-matmul-prec",
            str,
            Field("optimizer_config.muon_fp32_matmul_prec"),
            "medium",
            choices=("low", "medium", "high"),
        ),
        value(
            "--muon-tp-mode",
            str,
            Field("optimizer_config.muon_tp_mode"),
            "duplicated",
            choices=("blockwise", "duplicated", "distributed"),
        ),
        value(
            "--muon-scalar-optimizer",
            str,
            Field("optimizer_config.muon_scalar_optimizer"),
            "adam",
            choices=("adam", "lion"),
        ),
    ],
)

LEARNING_RATE = in_group(
    "learning rate",
    [
        value("--lr", float, Field("optimizer_config.learning_rate"), typical=1e-4, common=True),
        value(
            "--lr-decay-style",
            str,
            Field("optimizer_config.lr_decay_style"),
            "linear",
            common=True,
            choices=("constant", "linear", "cosine", "inverse-square-root", "WSD"),
        ),
        value(
            "--lr-decay-iters",
            int,
            Field("optimizer_config.lr_decay_iters"),
            small=None,
        ),
        value("--lr-decay-samples", int, Field("optimizer_config.lr_decay_samples"), small=None),
        value(
            "--lr-warmup-iters",
            int,
            Field("optimizer_config.lr_warmup_iters"),
            0,
            small=0,
            common=True,
        ),
        value(
            "--lr-warmup-samples",
            int,
            Field("optimizer_config.lr_warmup_samples"),
            0,
            small=0,
        ),
        value(
            "--lr-warmup-fraction",
            float,
            Field("optimizer_config.lr_warmup_fraction"),
            excludes=("--lr-warmup-iters", "--lr-warmup-samples"),
        ),
        value("--lr-warmup-init", float, Field("optimizer_config.lr_warmup_init"), 0.0),
        value("--min-lr", float, Field("optimizer_config.min_lr"), 0.0, common=True),
        value(
            "--lr-wsd-decay-style",
            str,
            Field("optimizer_config.lr_wsd_decay_style"),
            "exponential",
            choices=("exponential", "linear", "cosine", "minus_sqrt"),
        ),
        value("--lr-wsd-decay-iters", int, Field("optimizer_config.lr_wsd_decay_iters")),
        value("--lr-wsd-decay-samples", int, Field("optimizer_config.lr_wsd_decay_samples")),
        value("--decoupled-lr", float, Field("optimizer_config.decoupled_lr")),
        value("--decoupled-min-lr", float, Field("optimizer_config.decoupled_min_lr")),
        toggle(
            "--use-checkpoint-opt_param-scheduler",
            Field(
                "optimizer_config.use_checkpoint_opt_param_scheduler",
                clears=("override_opt_param_scheduler",),
            ),
            False,
            aliases=("--use-checkpoint-opt-param-scheduler", "--use-checkpoint-lr-scheduler"),
        ),
        toggle(
            "--override-opt_param-scheduler",
            Field(
                "optimizer_config.override_opt_param_scheduler",
                sets={"optimizer_config.use_checkpoint_opt_param_scheduler": asked_means(False)},
                clears=("use_checkpoint_opt_param_scheduler",),
            ),
            False,
            aliases=("--override-opt-param-scheduler", "--override-lr-scheduler"),
        ),
    ],
)

ROWS: tuple[Flag, ...] = (*REGULARIZATION, *LEARNING_RATE)
