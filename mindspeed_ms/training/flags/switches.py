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
        "--moe-router-enable-expert-bias": ("moe_config.", ("moe_router_bias_update_rate",)),
        "--moe-model-type deepspeed_moe": (
            "moe_config.",
            ("--moe-train-capacity-factor", "--disable-moe-token-dropping"),
        ),
        "--optimizer sgd": ("optimizer_config.", ("sgd_momentum",)),
        "--optimizer lion": ("optimizer_config.", ("lion_beta1", "lion_beta2")),
        "--lr-decay-style WSD": (
            "optimizer_config.",
            ("lr_wsd_decay_style", "lr_wsd_decay_iters", "lr_wsd_decay_samples"),
        ),
        "--decoupled-lr": ("optimizer_config.", ("decoupled_min_lr",)),
        "--optimizer soap": (
            "optimizer_config.",
            (
                *("soap_eps", "soap_shampoo_beta"),
                *("soap_precondition_frequency", "soap_use_kl_shampoo"),
            ),
        ),
        "--optimizer muon": (
            "optimizer_config.",
            (
                *("muon_momentum", "muon_nesterov", "muon_split_qkv", "muon_scale_mode"),
                *("muon_extra_scale_factor", "muon_coefficient_type", "muon_num_ns_steps"),
                *("muon_fp32_matmul_prec", "muon_tp_mode", "muon_scalar_optimizer"),
            ),
        ),
        "--fim-data": (
            "dataset_config.",
            (
                *("fim_rate", "fim_spm_rate", "fim_split_sample", "fim_fragment_rate"),
                *("fim_no_prefix", "fim_prefix_token", "fim_middle_token", "fim_suffix_token"),
                *("fim_pad_token", "fim_eod_token"),
            ),
        ),
        "--sft": ("dataset_config.", ("sft_tokenizer_prompt_format",)),
        "--is-instruction-dataset": (
            "dataset_config.",
            (
                *("prompt_type", "prompt_type_path", "pad_to_multiple_of"),
                *("instruction_shuffle", "full_shuffle_instruction_dataset"),
            ),
        ),
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
"""Flag, or flag and value, -> section and fields, or flags of one field that is read, which are not
read without it; none: all of the section.
"""


CLOSED_BY: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "--multi-latent-attention": (
            *("--group-query-attention", "--num-query-groups"),
            "--num-key-value-heads",
        )
    }
)
"""Flag -> flags that are not read with it: every head has keys of its own there."""


NOT_WITH: Mapping[tuple[str, str], tuple[str, ...]] = MappingProxyType(
    {
        ("--optimizer", "sgd"): ("--adam-beta1", "--adam-beta2", "--adam-eps"),
        ("--position-embedding-type", "none"): ("--rotary-base", "--rotary-percent"),
    }
)
"""(flag, its value) -> flags that are not read with that value."""


OTHER_WAYS: Mapping[str, tuple[str, Any]] = MappingProxyType(
    {
        "--use-ema": ("optimizer_selection", ("fused_ema_adamw",)),
        "--optimizer lion": ("muon_scalar_optimizer", ("lion",)),
        "--optimizer muon": ("optimizer", ("dist_muon", "adaptive_muon")),
        "--optimizer sgd": ("optimizer", ("SGD",)),
    }
)
"""Flag -> attribute and values that switch the same on."""


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
    for (choice, value), closed in NOT_WITH.items():
        idle = [name for name in dict.fromkeys(given) if name in closed]
        if idle and str(values.get(by_name[choice].dest)).lower() == value and choice in given:
            lines.append(f"{', '.join(idle)} {_have(idle)} no effect with {choice} {value}")
    ways = (values.get("position_embedding_type"), values.get("rope_scaling_type"))
    for switch, (section, fields) in SWITCH_OF_FIELD.items():
        if _is_on(switch, by_name, values):
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


def _is_on(switch: str, by_name: Mapping[str, Flag], values: Mapping[str, Any]) -> bool:
    name, _, wanted = switch.partition(" ")
    holds = values.get(by_name[name].dest)
    dest, others = OTHER_WAYS.get(switch, ("", ()))
    return (holds == wanted if wanted else bool(holds)) or values.get(dest) in others


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
    return head == section.rstrip(".") and (not fields or name in fields or row.names[0] in fields)
