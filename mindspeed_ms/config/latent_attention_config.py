# SPDX-License-Identifier: Apache-2.0
"""Multi-latent attention: queries, keys and values from narrow vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mindspeed_ms.config.kinds import Count, Epsilon, Factor, NonNegative, Positive
from mindspeed_ms.config.section import Section


@dataclass(frozen=True, kw_only=True)
class LatentAttentionConfig(Section):
    """Block ``model_config.mla_config``; read with ``multi_latent_attention`` only."""

    NAME: ClassVar[str] = "model_config.mla_config"

    q_lora_rank: Count | None = None
    """Width of the vector that queries are made from. None: straight from the hidden state."""

    kv_lora_rank: Count = 32
    """Width of the vector that keys and values are made from."""

    qk_head_dim: Count = 128
    """Channels of a query or key head without position."""

    qk_pos_emb_head_dim: Count = 64
    """Channels of a query or key head that are rotated; those of the keys are shared by all heads.
    """

    v_head_dim: Count = 128
    """Channels of a value head."""

    rope_type: Literal["rope", "yarn"] = "yarn"
    """Rotation angles: plain, or stretched to longer sequences by rotary_scaling_factor (yarn)."""

    rotary_scaling_factor: Factor = 1.0
    """How many times longer sequences are than those of the first training. 1: not at all."""

    original_max_position_embeddings: Count | None = None
    """Tokens per sequence of the first training. None: max_position_embeddings."""

    beta_fast: Positive = 32.0
    """Channels that turn more often than this over the original length keep their angles."""

    beta_slow: Positive = 1.0
    """Channels that turn less often than this are stretched in full."""

    mscale: NonNegative = 1.0
    """Growth of the rotated channels with the logarithm of rotary_scaling_factor."""

    mscale_all_dim: NonNegative = 0.0
    """The same for all channels of the scores; it divides the growth of the rotated ones."""

    norm_epsilon: Epsilon | None = None
    """Addend to the variance in the norms of the narrow vectors. None: that of the other norms."""

    rotary_interleaved: bool = True
    """Rotated channels are pairs of neighbours. False: the first half and the second."""

    down_proj_has_bias: bool = False
    """Bias on the matrices that make the narrow vectors."""

    @property
    def query_dim(self) -> int:
        """Channels of a query or key head."""
        return self.qk_head_dim + self.qk_pos_emb_head_dim

    def _check(self) -> None:
        if self.qk_pos_emb_head_dim % 2:
            raise ValueError(
                f"qk_pos_emb_head_dim ({self.qk_pos_emb_head_dim}) must be even, because pairs of "
                f"channels are rotated; use {self.qk_pos_emb_head_dim + 1}"
            )
