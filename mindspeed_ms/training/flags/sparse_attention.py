# SPDX-License-Identifier: Apache-2.0
"""Flags of sparse attention, whose keys an indexer chooses."""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import Field, Flag, NoEffect, in_group, off, on, value

ROWS: tuple[Flag, ...] = (
    *in_group(
        "attention",
        [
            value("--dsa-indexer-n-heads", int, Field("model_config.dsa_indexer_n_heads"), small=4),
            value(
                "--dsa-indexer-head-dim", int, Field("model_config.dsa_indexer_head_dim"), small=16
            ),
            value("--dsa-indexer-topk", int, Field("model_config.dsa_indexer_topk"), small=8),
            value("--dsa-indexer-loss-coeff", float, Field("model_config.dsa_indexer_loss_coeff")),
            on("--dsa-indexer-use-sparse-loss", Field("model_config.dsa_indexer_use_sparse_loss")),
            value(
                "--dsa-indexer-k-norm-epsilon",
                float,
                Field("model_config.dsa_indexer_k_norm_epsilon"),
            ),
            off(
                "--no-dsa-indexer-scoring-relu",
                "dsa_indexer_scoring_relu",
                Field("model_config.dsa_indexer_scoring_relu"),
                aliases=("--disable-dsa-indexer-scoring-relu",),
            ),
            value(
                "--dsa-indexer-rope",
                str,
                Field("model_config.dsa_indexer_rope"),
                "last",
                choices=("last", "first", "first_interleaved"),
                help="Channels of the indexer that are rotated: the last, as in megatron-core "
                "0.16; or the first, as in later releases and published weights, halves or "
                "neighbours.",
            ),
            on(
                "--dsa-indexer-rope-interleaved",
                Field("model_config.dsa_indexer_rope", means="first_interleaved"),
                help="Same as --dsa-indexer-rope first_interleaved.",
            ),
            value(
                "--dsa-indexer-topk-freq",
                int,
                Field("model_config.dsa_indexer_topk_freq"),
                1,
                small=1,
            ),
            value(
                "--dsa-indexer-skip-topk-offset",
                int,
                Field("model_config.dsa_indexer_skip_topk_offset"),
                0,
            ),
        ],
    ),
    *compact(
        "attention",
        NoEffect("products of queries and keys that are rotated alike are those of plain ones"),
        "--dsa-indexer-rotate-activation negative",
    ),
    *compact(
        "attention",
        NoEffect("norms are computed in float32 and rounded once"),
        "--dsa-indexer-k-norm-fp32",
    ),
    *compact(
        "attention",
        NoEffect("the kernel of each operation is chosen once at start"),
        """
--dsa-kernel-backend str=none
--use-dsa-absorb
--use-fused-lightning-indexer
--use-fused-lightning-indexer-kl-loss
--use-fused-sparse-flash-attention
""",
    ),
)
