# SPDX-License-Identifier: Apache-2.0
"""Flags that ask for features which do not exist here: refused, with what to use instead.

Values after ``!`` ask for what happens anyway and pass.
"""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import Flag, Refused


def _refuse(group: str, reason: str, instead: str, text: str) -> tuple[Flag, ...]:
    return compact(group, Refused(reason, instead), text)


_LEAVE_OUT = "leave it out"

ROWS: tuple[Flag, ...] = (
    *_refuse(
        "refused: other layers",
        "layers of this kind are not available",
        "use the flags of a plain GPT layer, and leave it out",
        """
--enable-mhc-connections
--hybrid-layer-pattern str
--hybrid-override-pattern str
--hybrid-attention-ratio float=0.0 !0.0
--hybrid-mlp-ratio float=0.0 !0.0
--is-hybrid-model
--retro-add-retriever
--encoder-tensor-model-parallel-size int=0 !0
--encoder-pipeline-model-parallel-size int=0 !0
""",
    ),
    *_refuse(
        "refused: training",
        "steps of reinforcement learning, and parts of a model on clusters of their own, are "
        "programs of their own in Megatron",
        "leave it out to train on data",
        """
--perform-rl-step
--dist-train
""",
    ),
    *_refuse(
        "refused: training",
        "which experts MindSpeed fixes for its measurements is not published",
        "use --moe-router-force-load-balancing for equal loads",
        """
--fix-router
""",
    ),
    *_refuse(
        "refused: precision",
        "logits that are given out have the type of the model, and the loss computes in fp32",
        "use fp32 or leave it out",
        """
--output-logit-dtype str >logit_dtype !fp32
""",
    ),
    *_refuse(
        "refused: precision",
        "all gradients of a model are summed in one type: fp32, or 16 bits with "
        "--grad-reduce-in-bf16",
        "leave it out, and --grad-reduce-in-bf16 too for sums in fp32",
        """
--ddp-param-name-patterns-for-fp32-local-accumulation str+
""",
    ),
    *_refuse(
        "refused: layout",
        "it parts the stages of an encoder from those of a decoder, and a GPT has one stack",
        "leave it out",
        """
--pipeline-model-parallel-split-rank int
""",
    ),
    *_refuse(
        "refused: layout",
        "ranks are not laid out in this way",
        "use tensor, pipeline, context and expert parallel sizes",
        """
--hybrid-context-parallel
--max-seqlen-per-dp-cp-rank int
--tensor-parallel-num-weight-shards int !1
--expert-tensor-parallel-num-weight-shards int !1
--outer-dp-sharding-strategy str=no_shard !no_shard
--fix-sub-seq-length int=-1 !-1
""",
    ),
    *_refuse(
        "refused: checkpoints",
        "optimizer states that Megatron wrote before February 2024, in one merged buffer, are not "
        "read",
        "use --no-load-optim, or write the checkpoint anew with Megatron first",
        """
--ckpt-convert-update-legacy-dist-opt-format
""",
    ),
    *_refuse(
        "refused: tokenizer",
        "the tokenizer's own files decide this",
        _LEAVE_OUT,
        """
--use-gigatoken
""",
    ),
    *_refuse(
        "refused: old names",
        "Megatron refuses this name too",
        "use --micro-batch-size for --batch-size, --lr-warmup-fraction for --warmup, "
        "--tensor-model-parallel-size for --model-parallel-size",
        """
--batch-size int
--warmup int
--model-parallel-size int
""",
    ),
)
