"""What a valid configuration may ask for that this version does not do yet.

Lines leave this file as features arrive.
"""

from __future__ import annotations

from mindspeed_ms.config.all_config import AllConfig
from mindspeed_ms.plan.layer_placement import expand_layout


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
    layout = all_config.parallel_config.pipeline_model_parallel_layout
    reasons = []
    if layout is not None and "m" in "".join(expand_layout(layout)[:-1]):
        reasons.append(
            f"pipeline_model_parallel_layout {layout}: layers for further tokens (m) are on the "
            "stage of the loss; put every m before L"
        )
    return reasons


def _unsupported_model(all_config: AllConfig) -> list[str]:
    model = all_config.model_config
    reasons = []
    if all_config.lora_config.use_lora:
        reasons.append("use_lora: low-rank adapters are not available yet; train all weights")
    if model.init_method_xavier_uniform:
        reasons.append(
            "init_method_xavier_uniform: initial weights are normal; use init_method_std"
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
    if training.loss_reduction != "mean":
        reasons.append(
            "loss_reduction sum: losses of tokens are averaged; use mean, with "
            "calculate_per_token_loss over all tokens of a step"
        )
    if training.calculate_per_token_loss:
        reasons += _unsupported_token_weights(all_config)
    return reasons


def _unsupported_token_weights(all_config: AllConfig) -> list[str]:
    """What has a loss of its own that is not counted in tokens."""
    others = {
        "context_parallel_size": all_config.parallel_config.context_parallel_size > 1,
        "mtp_num_layers": bool(all_config.model_config.mtp_num_layers),
    }
    return [
        f"calculate_per_token_loss with {name}: only the loss of whole sequences is weighed by "
        "tokens; leave one of them out"
        for name, is_on in others.items()
        if is_on
    ]
