# SPDX-License-Identifier: Apache-2.0
"""Flags that are read only while another one is on: given alone they change nothing, and say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mindspeed_ms.training.flags.row import Field, Flag

SWITCH_OF_FIELD: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "--fp16": (
            "training_config.",
            ("loss_scale_value", "min_loss_scale", "loss_scale_window", "hysteresis"),
        ),
        "--group-query-attention": ("model_config.", ("num_query_groups",)),
        "--multi-latent-attention": ("model_config.mla_config.", ()),
        "--use-rope-scaling": ("model_config.", ("rope_scaling_factor",)),
        "--qk-clip": ("model_config.", ("qk_clip_alpha", "qk_clip_threshold")),
        "--use-mup": (
            "model_config.",
            (
                *("mup_base_hidden_size", "mup_embedding_mult", "mup_output_mult"),
                *("mup_base_head_dim", "mup_attn_scale_power"),
            ),
        ),
        "--experimental-attention-variant": (
            "model_config.",
            (
                *("linear_attention_freq", "linear_conv_kernel_dim"),
                *("linear_key_head_dim", "linear_value_head_dim"),
                *("linear_num_key_heads", "linear_num_value_heads"),
                *("dsa_indexer_n_heads", "dsa_indexer_head_dim", "dsa_indexer_topk"),
                *("dsa_indexer_loss_coeff", "dsa_indexer_use_sparse_loss"),
                *("dsa_indexer_k_norm_epsilon", "dsa_indexer_scoring_relu", "dsa_indexer_rope"),
                *("dsa_indexer_topk_freq", "dsa_indexer_skip_topk_offset"),
            ),
        ),
        "--mtp-num-layers": (
            "model_config.",
            ("mtp_loss_scaling_factor", "mtp_use_repeated_layer", "mtp_detach_heads"),
        ),
        "--num-experts": ("moe_config.", ()),
        "--moe-router-group-topk": ("moe_config.", ("moe_router_num_groups",)),
        "--moe-use-upcycling": ("moe_config.", ("moe_upcycling_granularity",)),
        "--rampup-batch-size": ("training_config.", ("rampup_save_interval",)),
        "--use-ema": ("optimizer_config.", ("ema_decay",)),
        "--exit-signal-handler": ("training_config.", ("exit_signal",)),
        "--logits-save-dir": (
            "training_config.",
            (
                *("logits_save_top_k", "logits_save_top_p"),
                *("logits_save_top_p_min_k", "logits_save_dtype"),
            ),
        ),
        "--logits-load-dir": (
            "training_config.",
            ("logits_load_kd_loss_alpha", "logits_load_ignore_errors"),
        ),
        "--use-lora": (
            "lora_config.",
            (
                *("lora_rank", "lora_alpha", "lora_dropout", "target_modules"),
                *("exclude_layers", "use_rslora", "use_dora"),
            ),
        ),
        "--wandb-project": (
            "training_config.",
            ("wandb_exp_name", "wandb_save_dir", "wandb_entity"),
        ),
    }
)
"""Flag -> section and fields that are not read without it; no fields: all of the section."""


CLOSED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "--multi-latent-attention": (
            *("--group-query-attention", "--num-query-groups"),
            "--num-key-value-heads",
        )
    }
)
"""Flag -> flags that are not read with it: every head has keys of its own there."""


OTHER_WAYS: Mapping[str, tuple[str, Any]] = MappingProxyType(
    {"--use-ema": ("optimizer_selection", "fused_ema_adamw")}
)
"""Flag -> attribute and value that switch the same on."""


def switched_off(
    rows: Sequence[Flag], given: Sequence[str], values: Mapping[str, Any]
) -> list[str]:
    """One line for each switch that is off while flags behind it are given.

    Args:
        rows: the flag table.
        given: first names of the flags on the command line.
        values: all arguments.
    """
    by_name = {row.names[0]: row for row in rows}
    lines = []
    for closing, closed in CLOSED_BY.items():
        idle = [name for name in dict.fromkeys(given) if name in closed]
        if idle and values.get(by_name[closing].dest):
            lines.append(f"{', '.join(idle)} {_have(idle)} no effect with {closing}")
    ways = (values.get("position_embedding_type"), values.get("rope_scaling_type"))
    for switch, (section, fields) in SWITCH_OF_FIELD.items():
        dest, asked = OTHER_WAYS.get(switch, (by_name[switch].dest, True))
        if values.get(by_name[switch].dest) or values.get(dest) == asked:
            continue
        behind = [
            name
            for name in dict.fromkeys(given)
            if name != switch
            and _is_behind(by_name[name], section, fields)
            and not ("yarn" in ways and _is_of_yarn(by_name[name]))
        ]
        if behind:
            lines.append(f"{', '.join(behind)} {_have(behind)} no effect without {switch}")
    return lines


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _is_of_yarn(row: Flag) -> bool:
    """Whether plain rope that is stretched by yarn reads the flag, too."""
    also = row.state.also if isinstance(row.state, Field) else ()
    return any(path.startswith("model_config.rope_scaling.") for path in also)


def _is_behind(row: Flag, section: str, fields: Sequence[str]) -> bool:
    if not isinstance(row.state, Field) or row.state.without_effect is not None:
        return False
    head, _, name = row.state.path.rpartition(".")
    return head == section.rstrip(".") and (name in fields or not fields)
