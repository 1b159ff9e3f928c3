# SPDX-License-Identifier: Apache-2.0
"""Sparse attention whose keys an indexer chooses (DeepSeek-AI, 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mindspeed_ms.config.attention_options import EVERYTHING, AttentionOptions
from mindspeed_ms.config.kinds import Count, Natural, NonNegative, Positive
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig


@dataclass(frozen=True, kw_only=True)
class SparseAttentionOptions(AttentionOptions):
    """Those fields of ``model_config``."""

    NAME: ClassVar[str] = "model_config"

    experimental_attention_variant: Literal["gated_delta_net", "dsa"] | None = None
    """Other attention: gated_delta_net is linear attention with a gated delta rule, which keeps a
    state instead of keys and values, in the layers of linear_attention_freq; dsa is sparse
    attention, whose queries see the keys that an indexer chooses, in all layers. None: neither."""

    dsa_indexer_n_heads: Count | None = None
    """Heads of the indexer; needed with experimental_attention_variant dsa, as the next two."""

    dsa_indexer_head_dim: Count | None = None
    """Channels of a head of the indexer, qk_pos_emb_head_dim or more."""

    dsa_indexer_topk: Count | None = None
    """Keys that a query sees at most."""

    dsa_indexer_loss_coeff: NonNegative | None = None
    """Factor of the loss that trains the indexer to choose what attention looks at. None: 0, the
    indexer is not trained."""

    dsa_indexer_use_sparse_loss: bool = False
    """That loss is about the chosen keys. False: about all that a query may see."""

    dsa_indexer_k_norm_epsilon: Positive | None = None
    """Added to the variance in the norm of the indexer's keys. None: norm_epsilon."""

    dsa_indexer_scoring_relu: bool = True
    """Products of the indexer's queries and keys below 0 count as 0. False: they count as they are.
    """

    dsa_indexer_rope: Literal["last", "first", "first_interleaved"] = "last"
    """Channels of the indexer's heads that are rotated: the last ones, neighbours as pairs, as in
    megatron-core 0.16; or the first ones, as halves or with neighbours as pairs, as in later
    releases. Published weights of DeepSeek-V3.2 want first."""

    dsa_indexer_topk_freq: Count = 1
    """Layers that see the same keys: the first of so many chooses them. 1: each layer chooses."""

    dsa_indexer_skip_topk_offset: Natural = 0
    """So many layers at the beginning choose by themselves, and the groups begin with the last of
    them; 0 counts as 1."""

    @property
    def is_sparse(self) -> bool:
        """Whether an indexer chooses the keys that attention sees."""
        return self.experimental_attention_variant == "dsa"

    def chooser_of(self, layer: int, num_layers: int) -> int:
        """The layer that chooses the keys of a layer, both counted from 0; often itself.

        Args:
            layer: those behind the model choose by themselves.
            num_layers: of the model.

        Source: Megatron-LM ``is_dsa_skip_topk_layer`` (rule).
        """
        if not self.is_sparse or layer >= num_layers:
            return layer
        behind = max(layer + 1 - max(self.dsa_indexer_skip_topk_offset, 1), 0)
        return layer - behind % self.dsa_indexer_topk_freq

    def _check_sparse_attention(self, latent: LatentAttentionConfig | None) -> None:
        """Raise ValueError when these fields contradict each other or the model.

        Args:
            latent: multi-latent attention, if the model has it.
        """
        if not self.is_sparse:
            return
        variant = "experimental_attention_variant dsa"
        if latent is None:
            raise ValueError(
                f"{variant} chooses keys of multi-latent attention; set multi_latent_attention: "
                "True, or leave it out"
            )
        names = ("dsa_indexer_n_heads", "dsa_indexer_head_dim", "dsa_indexer_topk")
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(f"{variant} needs {', '.join(missing)}, which are not given; set them")
        width = self.dsa_indexer_head_dim or 0
        if width < latent.qk_pos_emb_head_dim:
            raise ValueError(
                f"dsa_indexer_head_dim ({width}) must be at least qk_pos_emb_head_dim "
                f"({latent.qk_pos_emb_head_dim}), the channels that are rotated; raise it"
            )
        others = {
            "window_size": self.window_size not in (None, EVERYTHING),
            "softmax_type": self.softmax_type != "vanilla",
            "attn_logit_softcapping": self.attn_logit_softcapping is not None,
        }
        for name, is_on in others.items():
            if is_on:
                raise ValueError(
                    f"{name} and {variant} do not go together: the indexer learns from plain "
                    "scores and chooses among all keys; leave one of them out"
                )
