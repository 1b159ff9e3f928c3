"""What a valid configuration may ask for that this version does not do yet.

Lines leave this file as features arrive.
"""

from __future__ import annotations

from mindspeed_ms.core.config.all_config import AllConfig


def unsupported_reason(all_config: AllConfig) -> list[str]:
    """Return one line per feature that is asked for and not available.

    Each says what, and what to use instead.
    """
    return [
        *_unsupported_layout(all_config),
        *_unsupported_model(all_config),
        *_unsupported_training(all_config),
    ]


def _unsupported_layout(all_config: AllConfig) -> list[str]:
    parallel = all_config.parallel_config
    reasons = []
    if "m" in (parallel.pipeline_model_parallel_layout or ""):
        reasons.append(
            f"pipeline_model_parallel_layout {parallel.pipeline_model_parallel_layout}: "
            "multi-token prediction (m) is not available yet; leave m out"
        )
    return reasons


def _unsupported_model(all_config: AllConfig) -> list[str]:
    model = all_config.model_config
    reasons = []
    if all_config.moe_config.is_moe:
        reasons.append(
            f"num_experts {all_config.moe_config.num_experts}: mixture of experts is not "
            "available yet; "
            f"use a dense model (num_experts 1)"
        )
    if all_config.lora_config.use_lora:
        reasons.append("use_lora: low-rank adapters are not available yet; train all weights")
    if model.layernorm_zero_centered_gamma:
        reasons.append(
            "layernorm_zero_centered_gamma: norm weights are stored as they are; leave it out"
        )
    if model.init_method_xavier_uniform:
        reasons.append(
            "init_method_xavier_uniform: initial weights are normal; use init_method_std"
        )
    if model.qk_layernorm:
        reasons.append(
            "qk_layernorm: norms on queries and keys are not available yet; leave it out"
        )
    if model.gated_linear_unit and model.hidden_act not in ("swiglu", "fused_swiglu"):
        reasons.append(
            f"gated_linear_unit with hidden_act {model.hidden_act}: only swiglu is gated so far; "
            "use hidden_act swiglu"
        )
    return reasons


def _unsupported_training(all_config: AllConfig) -> list[str]:
    training = all_config.training_config
    reasons = []
    if training.profile:
        reasons.append("profile: the profiler is not available yet; leave it out")
    if training.calculate_per_token_loss or training.loss_reduction != "mean":
        reasons.append(
            "calculate_per_token_loss, loss_reduction sum: only the mean of the micro-batches' "
            "means is available; leave them out"
        )
    return reasons
