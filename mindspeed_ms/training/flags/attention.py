# SPDX-License-Identifier: Apache-2.0
"""Flags of what attention sees and of what is done to its scores."""

from __future__ import annotations

from typing import Any

from mindspeed_ms.training.flags.row import (
    Field,
    Flag,
    NoEffect,
    ReadField,
    Refused,
    in_group,
    off,
    on,
    toggle,
    value,
    values,
)
from mindspeed_ms.training.flags.value_types import number_or_list, sides

_WINDOW = "model_config.window_size"
_KERNELS = NoEffect("the kernel of each operation is chosen once at start")
_LATER_ALIBI = NoEffect("it changes only biases of later tokens, which causal attention hides")
_NO_PREFIX = Refused(
    "lengths of prefixes are not given to the kernel", "use --sparse-mode 1 with a general mask"
)
_NO_VARIANT = Refused("layers of this kind are not available", "use gated_delta_net")
_NO_SUCH_MODE = Refused("the fused kernel has no such mode either", "use 0 to 4")


def _window(words: list[list[int] | int]) -> tuple[int, ...]:
    """Both sides, in one word of the command line or in two, or as a list of a file."""
    return tuple(side for word in words for side in (word if isinstance(word, list) else [word]))


def _words(window: tuple[int, ...] | None, _: ReadField) -> Any:
    return None if window is None else [list(window)]


ROWS: tuple[Flag, ...] = in_group(
    "attention",
    [
        toggle("--use-flash-attn", Field("model_config.use_flash_attention"), False),
        values(
            "--window-size",
            sides,
            Field(_WINDOW, means=_window, back=_words),
            "some",
            help="Tokens before and after its own place that a query sees, as 128,0 or 128 0; -1: "
            "all.",
        ),
        value(
            "--window-attn-skip-freq", number_or_list, Field("model_config.window_attn_skip_freq")
        ),
        value(
            "--sliding-window",
            int,
            Field(_WINDOW, means=lambda before: (before, 0), yields=True),
            help="MindSpeed's --window-size N,0: the token itself and N before it.",
        ),
        value(
            "--softmax-type",
            str,
            Field("model_config.softmax_type"),
            "vanilla",
            choices=("vanilla", "off-by-one", "learnable"),
        ),
        value("--attn-logit-softcapping", float, Field("model_config.attn_logit_softcapping")),
        value("--query-pre-attn-scalar", float, Field("model_config.query_pre_attn_scalar")),
        value(
            "--experimental-attention-variant",
            str,
            Field("model_config.experimental_attention_variant"),
            choices=("gated_delta_net", "gdn", "gdn2", "dsa"),
            refuses=tuple((name, _NO_VARIANT) for name in ("gdn", "gdn2")),
        ),
        value(
            "--linear-attention-freq", number_or_list, Field("model_config.linear_attention_freq")
        ),
        value("--linear-conv-kernel-dim", int, Field("model_config.linear_conv_kernel_dim"), 4),
        value("--linear-key-head-dim", int, Field("model_config.linear_key_head_dim"), 128),
        value("--linear-value-head-dim", int, Field("model_config.linear_value_head_dim"), 128),
        value("--linear-num-key-heads", int, Field("model_config.linear_num_key_heads"), 16),
        value("--linear-num-value-heads", int, Field("model_config.linear_num_value_heads"), 32),
        on("--qk-l2-norm", Field("model_config.qk_l2_norm")),
        on("--qk-clip", Field("model_config.qk_clip")),
        value("--qk-clip-alpha", float, Field("model_config.qk_clip_alpha"), 0.5),
        value("--qk-clip-threshold", float, Field("model_config.qk_clip_threshold"), 100.0),
        on("--attention-output-gate", Field("model_config.attention_output_gate")),
        value("--no-rope-freq", number_or_list, Field("model_config.no_rope_freq")),
        value(
            "--pre-tockens",
            int,
            Field("model_config.fa_config.pre_tokens"),
            aliases=("--pre-tokens",),
        ),
        value(
            "--next-tockens",
            int,
            Field("model_config.fa_config.next_tokens"),
            aliases=("--next-tokens",),
        ),
        value(
            "--sparse-mode",
            int,
            Field("model_config.fa_config.sparse_mode"),
            0,
            choices=tuple(range(9)),
            refuses=((5, _NO_PREFIX), *((mode, _NO_SUCH_MODE) for mode in (6, 7, 8))),
        ),
        value(
            "--shape-order",
            str,
            Field("model_config.fa_config.input_layout"),
            choices=("BNSD", "SBH", "BSH", "BSND", "TND"),
        ),
        value(
            "--alibi-fusion-attn-type",
            int,
            _KERNELS,
            choices=(0, 1, 2, 3),
            refuses=(
                (1, _NO_SUCH_MODE),
                (3, Refused("scores fall with the distance, not with its root", "use 2")),
            ),
        ),
        on("--square-alibi-mask", _LATER_ALIBI),
        on("--fill-neg-inf", _LATER_ALIBI),
        on("--alibi-diagonal-opposite", _LATER_ALIBI),
        value(
            "--attention-backend",
            str,
            _KERNELS,
            "auto",
            choices=("flash", "fused", "unfused", "local", "auto"),
        ),
        off("--no-masked-softmax-fusion", "masked_softmax_fusion", _KERNELS),
    ],
)
