# SPDX-License-Identifier: Apache-2.0
"""Flags of what layers, embedding and head do beyond a plain GPT, and of stretched positions."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mindspeed_ms.config.block_options import shapes_of
from mindspeed_ms.files.regular_file import read_text
from mindspeed_ms.training.flags.row import (
    UNSET,
    Field,
    Flag,
    ReadField,
    asked_means,
    in_group,
    off,
    on,
    toggle,
    value,
)
from mindspeed_ms.training.flags.value_types import floats

_ACTIVATION = "model_config.hidden_act"
_BLOCKS = "model_config.heterogeneous_layers_config_encoded_json"
_GATED = "model_config.gated_linear_unit"
_STRETCHING = "model_config.rope_scaling."


def text_of(path: str) -> str:
    """What a file of the layers' blocks holds.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--heterogeneous-layers-config-path {path} cannot be read ({error}); name a JSON file "
            "with block_configs"
        ) from None


def shrink_blocks(args: argparse.Namespace) -> None:
    """Layers keep which blocks are replaced or left out, in the order of the script."""
    text = args.heterogeneous_layers_config_encoded_json
    if text is None and args.heterogeneous_layers_config_path is not None:
        text = text_of(args.heterogeneous_layers_config_path)
    if text is None:
        return
    shapes = shapes_of(text, args.num_attention_heads or 1, args.hidden_size or 1)
    kinds = list(dict.fromkeys((shape.attention, shape.mlp) for shape in shapes))
    several = [
        {
            name: {"no_op": kind == "none", "replace_with_linear": kind == "linear"}
            for name, kind in zip(("attention", "ffn"), kinds[number % len(kinds)], strict=True)
        }
        for number in range(args.num_layers if kinds else 0)
    ]
    args.heterogeneous_layers_config_encoded_json = json.dumps({"block_configs": several})
    args.heterogeneous_layers_config_path = None


def gates_with(name: str) -> Field:
    """A switch for a gated unit of one activation."""

    def back(kind: str, read: ReadField) -> Any:
        return kind == name and bool(read(_GATED))

    return Field(_ACTIVATION, means=name, sets={_GATED: asked_means(True)}, back=back)


def rope_type(name: str) -> str:
    """Read a kind of stretching; ``plm`` is MindSpeed-LLM's name for none."""
    return "default" if name == "plm" else name


ROWS: tuple[Flag, ...] = (
    *in_group(
        "layers",
        [
            toggle("--gated-linear-unit", Field(_GATED)),
            on(
                "--geglu",
                gates_with("gelu"),
                help="Gated activation: gelu(first half) × second half.",
            ),
            on(
                "--quick-geglu",
                gates_with("quick_gelu"),
                help="Gated activation: quick_gelu(first half) × second half.",
            ),
            value(
                "--activation-func-clamp-value",
                float,
                Field("model_config.activation_func_clamp_value"),
            ),
            value("--glu-linear-offset", float, Field("model_config.glu_linear_offset"), 0.0),
            value(
                "--heterogeneous-layers-config-path",
                str,
                Field(_BLOCKS, means=text_of, yields=True),
                help="JSON file with block_configs: what attention and feed-forward block of each "
                "layer are.",
            ),
            value("--heterogeneous-layers-config-encoded-json", str, Field(_BLOCKS)),
            on("--use-parallel-residual", Field("model_config.use_parallel_residual")),
            off("--no-pre-norm", "use_pre_norm", Field("model_config.use_pre_norm")),
            on("--qk-layernorm-full", Field("model_config.qk_layernorm_full")),
            on("--embed-layernorm", Field("model_config.embed_layernorm")),
            value("--embedding-multiplier", float, Field("model_config.embedding_multiplier"), 1.0),
            value("--residual-multiplier", float, Field("model_config.residual_multiplier"), 1.0),
            value("--logits-scaling", float, Field("model_config.logits_scaling"), 1.0),
            on("--use-mup", Field("model_config.use_mup")),
            value("--mup-base-hidden-size", int, Field("model_config.mup_base_hidden_size")),
            value("--mup-embedding-mult", float, Field("model_config.mup_embedding_mult"), 1.0),
            value("--mup-output-mult", float, Field("model_config.mup_output_mult"), 1.0),
            value("--mup-base-head-dim", float, Field("model_config.mup_base_head_dim")),
            value("--mup-attn-scale-power", float, Field("model_config.mup_attn_scale_power"), 1.0),
            value(
                "--final-logit-softcapping",
                float,
                Field("model_config.final_logit_softcapping"),
                aliases=("--output-logit-softcapping",),
                attributes=("output_logit_softcapping",),
            ),
            value(
                "--scale-emb",
                float,
                Field("model_config.embedding_multiplier"),
                dest="embedding_multiplier",
                default=1.0,
                aliases=("--embedding-multiplier-scale",),
                help="Same as --embedding-multiplier.",
            ),
            value(
                "--output-multiplier-scale",
                float,
                Field(
                    "model_config.logits_scaling",
                    means=lambda factor: 1.0 / factor if factor else UNSET,
                    back=lambda *_: UNSET,  # it speaks through --logits-scaling
                ),
                help="MindSpeed: factor of the logits, 1 / --logits-scaling.",
            ),
            on(
                "--post-norm",
                Field("model_config.use_sandwich_norm"),
                dest="use_sandwich_norm",
                help="Same as --use-sandwich-norm.",
            ),
            on(
                "--add-rmsnorm-offset",
                Field("model_config.layernorm_zero_centered_gamma"),
                dest="apply_layernorm_1p",
                help="Same as --apply-layernorm-1p.",
            ),
        ],
    ),
    *in_group(
        "positions",
        [
            value(
                "--rope-scaling-type",
                rope_type,
                Field(f"{_STRETCHING}rope_type"),
                "default",
                choices=("default", "linear", "dynamic", "llama3", "yarn", "longrope"),
            ),
            value(
                "--yarn-scaling-factor",
                float,
                Field(f"{_STRETCHING}factor", by_rule=True),
                1.0,
                help="How many times longer sequences are, with --rope-scaling-type yarn or "
                "--position-embedding-type yarn.",
            ),
            value(
                "--rope-scaling-original-max-position-embeddings",
                int,
                Field(f"{_STRETCHING}original_max_position_embeddings"),
            ),
            value(
                "--rope-scaling-low-freq-factor",
                float,
                Field(f"{_STRETCHING}low_freq_factor"),
                1.0,
                aliases=("--low-freq-factor",),
            ),
            value(
                "--rope-scaling-high-freq-factor",
                float,
                Field(f"{_STRETCHING}high_freq_factor"),
                4.0,
                aliases=("--high-freq-factor",),
            ),
            value("--rope-scaling-beta-fast", float, Field(f"{_STRETCHING}beta_fast"), 32.0),
            value("--rope-scaling-beta-slow", float, Field(f"{_STRETCHING}beta_slow"), 1.0),
            value("--rope-scaling-mscale", float, Field(f"{_STRETCHING}mscale"), 0.0),
            value(
                "--rope-scaling-mscale-all-dim", float, Field(f"{_STRETCHING}mscale_all_dim"), 0.0
            ),
            value(
                "--rope-scaling-attention-factor", float, Field(f"{_STRETCHING}attention_factor")
            ),
            off(
                "--no-yarn-correction-range-round-to-int",
                "yarn_correction_range_round_to_int",
                Field(f"{_STRETCHING}truncate"),
            ),
            on(
                "--yarn-correction-range-round-to-int",
                Field(f"{_STRETCHING}truncate"),
                default=True,
            ),
            value(
                "--rope-scaling-short-factor",
                floats,
                Field(f"{_STRETCHING}short_factor"),
                aliases=("--short-factor",),
            ),
            value(
                "--rope-scaling-long-factor",
                floats,
                Field(f"{_STRETCHING}long_factor"),
                aliases=("--long-factor",),
            ),
        ],
    ),
)
