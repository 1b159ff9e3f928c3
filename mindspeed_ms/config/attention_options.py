# SPDX-License-Identifier: Apache-2.0
"""What attention sees, layer by layer, and what is done to its scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from mindspeed_ms.config.kinds import Count, Natural, Positive, PositiveShare, Range, Share
from mindspeed_ms.config.section import Section

Window: TypeAlias = tuple[int | None, int | None]
"""(left, right): tokens before and after its own place that a query sees; None: all of them."""

EVERYTHING: Window = (None, None)

_ALL_BEFORE = 65536

Side: TypeAlias = Annotated[int, Range(low=-1)]
"""A number of tokens, -1 for all."""

Switch: TypeAlias = Annotated[int, Range(low=0, high=1)]
"""0 or 1."""


@dataclass(frozen=True, kw_only=True)
class FlashAttentionConfig(Section):
    """Block ``model_config.fa_config``: options of the fused attention kernel.

    What they hide is hidden in every kernel set.
    """

    NAME: ClassVar[str] = "model_config.fa_config"

    keep_prob: PositiveShare = 1.0
    """Probability of keeping an attention weight; 1 - attention dropout.

    1: attention_dropout_rate alone decides.
    """

    pre_tokens: Natural = _ALL_BEFORE
    """Tokens before its own place that a query sees, in the sparse modes that use it (0 and 4).
    65536: all, however many."""

    next_tokens: Natural = 0
    """Tokens after it, in the same modes. Mode 0: only among those that the mask shows; 0: as the
    mask says."""

    input_layout: Literal["BNSD", "SBH", "BSH", "BSND", "TND"] = "BNSD"
    """Axis order handed to the kernel."""

    sparse_mode: Literal[0, 1, 2, 3, 4] = 0
    """What the kernel hides: 0 what the mask hides and what is outside the band of pre_tokens and
    next_tokens, 1 what the mask hides, 2 and 3 later tokens, 4 what is outside the band."""

    @property
    def window(self) -> Window:
        """The band, without sides that hide nothing."""
        left = None if self.pre_tokens == _ALL_BEFORE else self.pre_tokens
        if self.sparse_mode == 4:
            return left, self.next_tokens
        return (left, self.next_tokens or None) if self.sparse_mode == 0 else EVERYTHING


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(Section):
    """Those fields of ``model_config``; layers are counted from 0 in its methods."""

    NAME: ClassVar[str] = "model_config"

    window_size: tuple[Side, Side] | None = None
    """(left, right) tokens before and after its own place that a query sees, -1: all. A causal
    model sees nothing later, whatever the second says. The sliding_window W of Hugging Face is
    (W - 1, 0). None: no window."""

    window_attn_skip_freq: Count | tuple[Switch, ...] | None = None
    """Layers that see everything: every N-th; or a list with 1 for each layer that has the window
    and 0 for the others. None: all layers have it."""

    softmax_type: Literal["vanilla", "off-by-one", "learnable"] = "vanilla"
    """What the weights of a query sum to: 1; less, by a further logit of each head that has no
    value: off-by-one 0, learnable a parameter."""

    attn_logit_softcapping: Positive | None = None
    """Scores become this × tanh(score / this). None: they stay."""

    softmax_scale: Positive | None = None
    """Factor of queries times keys. None: 1 / sqrt(query_pre_attn_scalar), times what
    multi_latent_attention adds for longer sequences."""

    scale_by_inverse_layer: bool = False
    """Divide the scale of scores by the number of the layer, from 1. False: do not."""

    query_pre_attn_scalar: Positive | None = None
    """See softmax_scale. None: the width of a head of queries."""

    qk_clip: bool = False
    """After every step of the optimizer, scale down the weights of queries and keys of heads whose
    largest score in the step was above qk_clip_threshold. The largest score is logged. False: do
    not."""

    qk_clip_alpha: Share = 0.5
    """Of the factor threshold / score, queries take this power and keys the rest. Channels of
    multi-latent attention that are rotated take it all in the queries, whose keys are shared."""

    qk_clip_threshold: Positive = 100.0
    """Largest score that qk_clip leaves alone."""

    no_rope_freq: Count | tuple[Switch, ...] | None = None
    """Layers that do not rotate queries and keys: every N-th; or a list with 1 for each of them.
    None: none."""

    rotary_base_local: Positive | None = None
    """rotary_base of the layers with a window, whose positions are not stretched either. None: as
    the others."""

    def has_window(self, layer: int) -> bool:
        """Whether a layer has the window of window_size; those behind the last are like it."""
        freq = self.window_attn_skip_freq
        if self.window_size is None or freq is None:
            return self.window_size is not None
        if isinstance(freq, int):
            return (layer + 1) % freq != 0
        return bool(freq[min(layer, len(freq) - 1)])

    def layer_window(self, layer: int) -> Window:
        """The window of window_size in a layer."""
        if self.window_size is None or not self.has_window(layer):
            return EVERYTHING
        left, right = (None if side == -1 else side for side in self.window_size)
        return left, right

    def rotates(self, layer: int) -> bool:
        """Whether a layer rotates queries and keys, in a model that does."""
        freq = self.no_rope_freq
        if freq is None:
            return True
        if isinstance(freq, int):
            return (layer + 1) % freq != 0
        return not freq[min(layer, len(freq) - 1)]

    def _check_layers(self, num_layers: int, *, is_rotated: bool, band: Window) -> None:
        """Raise ValueError when these fields contradict each other or the model.

        Args:
            num_layers: of the model.
            is_rotated: queries and keys are rotated, as layers are told to.
            band: of the fused kernel.
        """
        if self.window_size is None:
            for name in ("window_attn_skip_freq", "rotary_base_local"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} ({getattr(self, name)}) is about layers with a window, but "
                        "window_size is not given; give it or leave this out"
                    )
        elif band != EVERYTHING:
            raise ValueError(
                f"window_size {self.window_size} and the band of fa_config {band} are two windows; "
                "keep one of them"
            )
        for name in ("window_attn_skip_freq", "no_rope_freq"):
            freq = getattr(self, name)
            if isinstance(freq, tuple) and len(freq) != num_layers:
                raise ValueError(
                    f"{name} has {len(freq)} entries; it must be a number, or a list of 0 and 1 "
                    f"for each of the {num_layers} layers"
                )
        if self.softmax_scale is not None and self.query_pre_attn_scalar is not None:
            raise ValueError(
                f"softmax_scale ({self.softmax_scale}) and query_pre_attn_scalar "
                f"({self.query_pre_attn_scalar}) both say how scores are scaled; keep one of them"
            )
        if self.no_rope_freq is not None and not is_rotated:
            raise ValueError(
                "no_rope_freq takes the rotation from some layers, which needs "
                "position_embedding_type rope without multi_latent_attention; leave it out"
            )
