# SPDX-License-Identifier: Apache-2.0
"""Words of the launch scripts of MindSpeed-LLM and ModelLink, which train published models.

Source: the flags of MindSpeed-LLM's ``examples/mcore`` and ModelLink's ``examples`` (behaviour).
"""

from __future__ import annotations

import math
from typing import Any

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.layer_options import gates_with
from mindspeed_ms.training.flags.row import (
    UNSET,
    Field,
    Flag,
    NoEffect,
    Refused,
    asked_means,
    in_group,
    off,
    on,
    value,
    values,
)

_SPECS = "mindspeed_llm.tasks.models.spec."
_FAMILIES = (
    *("bailing", "deepseek", "gemma2", "minicpm", "minimax", "phi35_moe", "plm"),
    *("qwen2_moe", "qwen3", "qwen3_next"),
)
_KERNELS = NoEffect("kernels are chosen at start, and these compute the same")
_FOLDERS = NoEffect("--load opens a Hugging Face folder too, whose config.json says its family")
_DATA = NoEffect(
    "mindspeed-ms preprocess takes it; in training --is-instruction-dataset says what is read, and "
    "rows are padded on the right, which nothing before them sees"
)
_PAIRS = Refused(
    "pairs of answers, rewards and reinforcement learning are not trained on",
    "use --stage sft with --is-instruction-dataset",
)
_OTHER_STAGES = ("dpo", "simpo", "orm", "prm", "ray_ppo", "ray_online_dpo", "ray_grpo", "trl_ppo")


def _root(asked: bool, width: int | None) -> Any:
    return math.sqrt(width) if asked and width else UNSET


def _over_root(depth: float | None, layers: int | None) -> Any:
    return depth / math.sqrt(layers) if depth and layers else UNSET


def _times_wider(base: float | None, width: int | None) -> Any:
    return width / base if base and width else UNSET


def _untold(*_: Any) -> Any:
    """Read back, the field speaks through the flag of its own name."""
    return UNSET


def _interleaved(tokens: int | None) -> tuple[int, int] | None:
    """The token itself counts."""
    return None if tokens is None else (tokens - 1, 0)


def _every_other(tokens: int | None) -> Any:
    return None if tokens is None else 2


_INSTRUCTIONS = in_group(
    "instruction data",
    [
        on(
            "--is-instruction-dataset",
            Field("dataset_config.is_instruction_dataset", clears=("mock_data",)),
            small=False,
        ),
        value(
            "--stage",
            str,
            NoEffect("--is-instruction-dataset says what is trained on: sft is what it does"),
            choices=("sft", *_OTHER_STAGES),
            refuses=tuple((stage, _PAIRS) for stage in _OTHER_STAGES),
        ),
        value("--prompt-type", str, Field("dataset_config.prompt_type"), small=None),
        value("--prompt-type-path", str, Field("dataset_config.prompt_type_path"), small=None),
        on("--neat-pack", Field("dataset_config.neat_pack")),
        on(
            "--no-pad-to-seq-lengths",
            Field("parallel_config.variable_seq_lengths", means=asked_means(True), back=_untold),
            help="Same as --variable-seq-lengths: rows of instruction data are filled up to a "
            "multiple of --pad-to-multiple-of.",
        ),
        value("--pad-to-multiple-of", int, Field("dataset_config.pad_to_multiple_of"), 8),
        on("--padded-samples", Field("dataset_config.padded_samples")),
        off("--no-shuffle", "instruction_shuffle", Field("dataset_config.instruction_shuffle")),
        on(
            "--full-shuffle-instruction-dataset",
            Field("dataset_config.full_shuffle_instruction_dataset"),
        ),
        on("--cut-max-seqlen", Field("dataset_config.cut_max_seqlen")),
    ],
)

ROWS: tuple[Flag, ...] = (
    *in_group(
        "layers",
        [
            values(
                "--spec",
                str,
                Refused(
                    "layer specifications are Python objects of Megatron",
                    "use the model flags",
                    harmless=tuple(f"{_SPECS}{family}_spec layer_spec" for family in _FAMILIES),
                ),
                "many",
            ),
            on(
                "--gelu-tanh",
                gates_with("fast_gelu"),
                help="Gated activation: gelu(first half) in its tanh form × second half.",
            ),
            on(
                "--input-embeds-norm",
                Field(
                    "model_config.embedding_multiplier",
                    means=_root,
                    beside="hidden_size",
                    back=_untold,
                ),
                help="Multiply embeddings by the root of --hidden-size.",
            ),
            value(
                "--scale-depth",
                float,
                Field(
                    "model_config.residual_multiplier",
                    means=_over_root,
                    beside="num_layers",
                    back=_untold,
                ),
                help="Multiply what a layer adds by this over the root of --num-layers.",
            ),
            value(
                "--dim-model-base",
                float,
                Field(
                    "model_config.logits_scaling",
                    means=_times_wider,
                    beside="hidden_size",
                    back=_untold,
                ),
                help="Divide logits by --hidden-size over this.",
            ),
            value(
                "--interleave-sliding-window",
                int,
                Field(
                    "model_config.window_size",
                    means=_interleaved,
                    sets={"model_config.window_attn_skip_freq": _every_other},
                    yields=True,
                ),
                help="Tokens, its own included, that a query of the first and every second layer "
                "after it sees.",
            ),
        ],
    ),
    *in_group(
        "positions",
        [
            on(
                "--use-partial-rope",
                Field(
                    "model_config.rotary_percent",
                    means=0.5,
                    sets={"model_config.rotary_interleaved": lambda asked: True if asked else None},
                    yields=True,
                ),
                help="--rotary-percent 0.5 --rotary-interleaved, as GLM turns its heads.",
            ),
            value(
                "--partial-rotary-factor",
                float,
                Field("model_config.rotary_percent"),
                1.0,
                dest="rotary_percent",
                help="Same as --rotary-percent.",
            ),
            value(
                "--beta-fast",
                float,
                Field("model_config.rope_scaling.beta_fast"),
                32.0,
                dest="rope_scaling_beta_fast",
                help="Same as --rope-scaling-beta-fast.",
            ),
            value(
                "--beta-slow",
                float,
                Field("model_config.rope_scaling.beta_slow"),
                1.0,
                dest="rope_scaling_beta_slow",
                help="Same as --rope-scaling-beta-slow.",
            ),
        ],
    ),
    *compact(
        "kernels",
        _KERNELS,
        """
--use-mc2
--mlp-layer-fusion
--lora-fusion
--mtp-mem-efficient-logits
--output-layer-slice-num int=1
--kv-head-repeat-before-uly-alltoall switch
--release-fp32-grad
""",
    ),
    *compact(
        "kernels",
        NoEffect("it multiplies the same matrices in another order; heads are made in full"),
        "--enable-mla-absorb",
    ),
    *compact(
        "checkpoints",
        _FOLDERS,
        """
--enable-hf2mg-convert
--model-type-hf str
""",
    ),
    *compact(
        "data",
        _DATA,
        """
--handler-name str
--tokenizer-padding-side str=right
--enable-thinking str
""",
    ),
    *_INSTRUCTIONS,
    *compact("refused: data", _PAIRS, "--is-pairwise-dataset\n--dataset-additional-keys str*"),
    *compact(
        "data",
        NoEffect("documents of a batch are not printed; seed and data decide them alone"),
        "--return-document-ids",
    ),
    *compact(
        "refused: data",
        Refused(
            "the last token of a record is not predicted again at its own place",
            "leave it out",
        ),
        "--keep-last-token",
    ),
    *compact(
        "refused: checkpoints",
        Refused("folders are written by a tool", "use tools/convert_ckpt on what --save wrote"),
        """
--enable-mg2hf-convert
--hf-cfg-dir str
""",
    ),
    *compact(
        "refused: training",
        Refused("the output layer's own loss is not scaled", "leave it out"),
        "--z-loss-weight float=0.0 !0.0",
    ),
    *compact(
        "refused: other layers",
        Refused("layers of this kind are not available", "use the flags of a plain GPT layer"),
        "--lm-norm-weight",
    ),
    *compact(
        "refused: other layers",
        Refused(
            "the sizes of its indexer are stated by Megatron's flags",
            "use --experimental-attention-variant dsa with --dsa-indexer-n-heads, "
            "--dsa-indexer-head-dim and --dsa-indexer-topk",
        ),
        "--enable-dsa-indexer",
    ),
)
"""Every one of them."""
