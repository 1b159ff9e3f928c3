# SPDX-License-Identifier: Apache-2.0
"""Flags of adapters of low rank; Megatron has none, MindSpeed's words are taken."""

from __future__ import annotations

from mindspeed_ms.training.flags.row import Field, Flag, in_group, on, value, values

_LORA = "lora_config."

ROWS: tuple[Flag, ...] = tuple(
    in_group(
        "low-rank adapters",
        [
            on("--use-lora", Field(f"{_LORA}use_lora")),
            value(
                "--lora-r",
                int,
                Field(f"{_LORA}lora_rank"),
                8,
                aliases=("--lora-rank", "--lora-dim"),
            ),
            value("--lora-alpha", float, Field(f"{_LORA}lora_alpha"), 32.0),
            value("--lora-dropout", float, Field(f"{_LORA}lora_dropout"), 0.0),
            values("--lora-target-modules", str, Field(f"{_LORA}target_modules"), "some"),
            values("--lora-exclude-layers", str, Field(f"{_LORA}exclude_layers"), "some"),
            on("--use-rslora", Field(f"{_LORA}use_rslora")),
            on("--use-dora", Field(f"{_LORA}use_dora")),
            value("--neftune-noise-alpha", float, Field(f"{_LORA}neftune_noise_alpha")),
            value(
                "--base-model-name-or-path",
                str,
                Field(f"{_LORA}base_model_name_or_path"),
            ),
        ],
    )
)
"""Every flag of adapters."""
