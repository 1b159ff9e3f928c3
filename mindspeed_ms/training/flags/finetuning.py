# SPDX-License-Identifier: Apache-2.0
"""Further words of the fine-tuning scripts of MindSpeed-LLM: what they load, adapters, stages.

Source: MindSpeed-LLM ``training/arguments.py`` (behaviour).
"""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import Field, Flag, NoEffect, Refused, in_group, off, on

ROWS: tuple[Flag, ...] = (
    *in_group(
        "layers",
        [
            off("--no-post-layer-norm", "post_layer_norm", Field("model_config.use_final_norm")),
            on(
                "--use-deter-comp",
                Field("parallel_config.deterministic_mode"),
                dest="deterministic_mode",
                help="Same as --deterministic-mode.",
            ),
        ],
    ),
    *compact(
        "layers",
        NoEffect("norms are computed in float32 and rounded once"),
        "--input-layernorm-in-fp32",
    ),
    *compact(
        "mixture of experts",
        NoEffect("tokens get no noise unless --moe-input-jitter-eps asks for it"),
        "--input-jitter off=true",
    ),
    *compact(
        "refused: other layers",
        Refused("the gate of shared experts has one output", "leave it out"),
        "--shared-expert-gate-output-dimension int=1 !1",
    ),
    *compact(
        "kernels",
        NoEffect("kernels are chosen at start, and these compute the same"),
        """
--use-fused-mlp
--mla-fa-divide-qk
--padded-base-length int=128
--mla-up-proj-tp-overlap
""",
    ),
    *compact(
        "memory",
        NoEffect("tensors stay on the device; use recomputation to save memory"),
        """
--mla-zero-memory
--mla-swap-core-attn-out
--recompute-mla-up-proj
--moe-unperm2-mem-optim
""",
    ),
    *compact(
        "checkpoints",
        NoEffect(
            "a model with adapters is loaded from its base as that is; any other tensor that a "
            "checkpoint lacks is always an error that names it"
        ),
        "--load-checkpoint-loosely",
    ),
    *compact(
        "adapters",
        NoEffect("gradients pass frozen layers anyway"),
        "--lora-register-forward-hook str+",
    ),
    *compact(
        "adapters",
        NoEffect("checkpoints of adapters hold the adapters and their moments alone"),
        "--lora-ckpt-filter",
    ),
    *compact(
        "adapters",
        NoEffect("only read with --qlora, which is refused"),
        "--qlora-save-dequantize",
    ),
    *compact(
        "refused: adapters",
        Refused(
            "whole layers are not trained beside adapters", "name them in --lora-target-modules"
        ),
        "--lora-modules-to-save str+",
    ),
    *compact(
        "refused: data",
        Refused("rows have at most --seq-length tokens", "raise that, or leave it out"),
        "--no-cut-token",
    ),
    *compact(
        "data",
        NoEffect("text becomes tokens in tools/preprocess_data.py, before training"),
        "--tokenizer-kwargs str+",
    ),
    *compact(
        "instruction data",
        NoEffect("only read with stages of --stage that are refused"),
        """
--dpo-beta float=0.1
--dpo-loss-type str=sigmoid
--dpo-label-smoothing float=0.0
--simpo-beta float=2.5
--simpo-loss-type str=sigmoid
--simpo-label-smoothing float=0.0
--gamma-beta-ratio float=1.4
--pref-ftx float=0.0
--ref-model str
--refer-model-iter int=1
--placeholder-token str
--reward-tokens str+
--md5-validate
""",
    ),
    *compact(
        "profiling",
        NoEffect("profiles are written as one trace, which browsers show"),
        "--profile-export-type str=text",
    ),
    *compact(
        "faults",
        NoEffect(
            "a failed job ends at once and names the rank; start it again from its newest "
            "checkpoint"
        ),
        """
--enable-hbmfault-repair
--enable-worker-reboot
--enable-elastic-training
--distributed-optimizer-no-replica
""",
    ),
)
"""Every one of them."""
