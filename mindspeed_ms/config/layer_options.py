# SPDX-License-Identifier: Apache-2.0
"""What the layers, the embedding and the head of a model do beyond a plain GPT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from mindspeed_ms.config.attention_options import Switch
from mindspeed_ms.config.block_options import BlockOptions
from mindspeed_ms.config.kinds import Count, Natural, NonNegative, Positive
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.rope_scaling_config import RopeScalingConfig

NAMES_OF_MINDFORMERS: Mapping[str, str] = MappingProxyType(
    {
        "num_heads": "num_attention_heads",
        "use_gqa": "group_query_attention",
        "mlp_has_gate": "gated_linear_unit",
        "param_init_dtype": "params_dtype",
        "param_init_type": "params_dtype",
        "post_norm": "use_final_norm",
    }
)
"""Options of a model under the names that MindFormers' experimental cells gave them first."""


@dataclass(frozen=True, kw_only=True)
class LayerOptions(BlockOptions):
    """Those fields of ``model_config``."""

    NAME: ClassVar[str] = "model_config"

    qk_l2_norm: bool = False
    """Divide queries and keys of each head by the root of their mean square. False: do not."""

    attention_output_gate: bool = False
    """Multiply what each head returns by the sigmoid of a gate, which the projection of queries,
    keys and values computes, too. False: no gate."""

    linear_attention_freq: Count | tuple[Switch, ...] | None = None
    """Layers with linear attention: all but every N-th; or a list with 1 for each of them. It is
    needed with experimental_attention_variant gated_delta_net."""

    linear_conv_kernel_dim: Count = 4
    """Tokens that the convolution in front of linear attention sees."""

    linear_key_head_dim: Count = 128
    """Width of a head of its queries and keys."""

    linear_value_head_dim: Count = 128
    """Width of a head of its values."""

    linear_num_key_heads: Count = 16
    """Heads of its queries and keys."""

    linear_num_value_heads: Count = 32
    """Heads of its values, a multiple of linear_num_key_heads."""

    linear_norm_has_plain_factor: bool = False
    """The norm behind it multiplies by its parameter, also with layernorm_zero_centered_gamma, as
    in files of Qwen3-Next. False: as all norms."""

    rotary_seq_len_interpolation_factor: Positive | None = None
    """Divide positions by this to stretch the context. None: 1."""

    use_rope_scaling: bool = False
    """Stretch slow rotations to sequences longer than 8192 tokens, as Llama 3.1 does; not with
    multi_latent_attention, which has rotary_scaling_factor."""

    rope_scaling_factor: Positive = 8.0
    """How many times longer sequences are; read with use_rope_scaling only."""

    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """How rotary positions are stretched; see there."""

    embed_layernorm: bool = False
    """Normalize embeddings (LayerNorm, whatever normalization says), as Bloom does. False: do not.
    """

    embed_layernorm_epsilon: Positive = 1e-5
    """Added to the variance in embed_layernorm."""

    embedding_multiplier: Positive = 1.0
    """Factor of the embedding's output."""

    residual_multiplier: Positive = 1.0
    """Factor of what a block adds to the residual stream."""

    logits_scaling: Positive = 1.0
    """Divisor of the logits."""

    use_mup: bool = False
    """Maximal update parametrisation: initial weights, learning rates and scores depend on the
    width so that what was tuned for mup_base_hidden_size holds."""

    mup_base_hidden_size: Count | None = None
    """Hidden size that rates were tuned for. None: this model's."""

    mup_embedding_mult: Positive = 1.0
    """With use_mup, factor of the embedding's output."""

    mup_output_mult: Positive = 1.0
    """With use_mup, factor of the logits; 1 stands for mup_base_hidden_size / hidden_size."""

    mup_base_head_dim: Positive | None = None
    """With use_mup, scores are divided by head dim ** mup_attn_scale_power / sqrt(this).

    None: 1.
    """

    mup_attn_scale_power: NonNegative = 1.0
    """With use_mup, see mup_base_head_dim; 0.5 is the usual scale."""

    mtp_use_repeated_layer: bool = False
    """The layers of mtp_num_layers are one layer, used for every further token. False: one each."""

    mtp_detach_heads: bool = False
    """Losses of further tokens train the layers for them alone, whose gradients are clipped by a
    norm of their own. False: they train the whole model."""

    final_logit_softcapping: Positive | None = None
    """Logits become this × tanh(logit / this). None: they stay."""

    activation_func_clamp_value: Positive | None = None
    """In a gated unit, the gate is at most this, and the value lies between this and its negative.
    None: no limits."""

    glu_linear_offset: NonNegative = 0.0
    """In a gated unit, added to the value."""

    glu_alpha: Positive = 1.702
    """In a unit gated by quick_gelu, the factor within its sigmoid: gpt-oss' swiglu_alpha."""

    scales_alibi: bool = False
    """With position_embedding_type alibi, the scale of scores multiplies its slopes, too, as
    Falcon's does. False: it does not."""

    use_parallel_residual: bool = False
    """Attention and feed-forward block both read what enters the layer, and both are added to it.
    False: one after the other."""

    shares_input_norm: bool = False
    """With use_parallel_residual, both blocks read what one norm returned, as in Phi and Falcon.
    False: each has a norm of its own."""

    norm_has_bias: bool = True
    """A LayerNorm adds a bias. False: it only multiplies, as Cohere's."""

    norm_has_factor: bool = True
    """Norms multiply by a parameter. False: a LayerNorm has none, as in the first OLMo, and adds
    nothing either."""

    use_pre_norm: bool = True
    """Normalize before attention and before the feed-forward block. False needs use_sandwich_norm,
    which normalizes after them."""

    qk_layernorm_full: bool = False
    """With qk_layernorm, normalize the queries of all heads as one vector, and the keys. False: per
    head."""

    qk_layernorm_per_head: bool = False
    """With qk_layernorm, each head has factors of its own, and nothing is added, as in Command R+
    and StableLM 2 12B. False: all heads have the same."""

    clip_qkv: Positive | None = None
    """Queries, keys and values lie between this and its negative, as in OLMo and MPT. None: no
    limits."""

    head_has_bias: bool = False
    """A head with a matrix of its own adds a bias, as Phi's. False: it does not."""

    position_embedding_offset: Natural = 0
    """Rows in front of the table of positions that stand for none: OPT has 2."""

    @property
    def has_linear_layers(self) -> bool:
        """Whether there are layers with linear attention."""
        return self.experimental_attention_variant == "gated_delta_net"

    def is_linear(self, layer: int) -> bool:
        """Whether a layer, counted from 0, has linear attention; those behind the last have not."""
        freq = self.linear_attention_freq
        if not self.has_linear_layers or freq is None:
            return False
        if isinstance(freq, int):
            return (layer + 1) % freq != 0
        return layer < len(freq) and bool(freq[layer])

    def _check_kinds(self, num_layers: int, ranks: int, present: Mapping[str, bool]) -> None:
        """Raise ValueError when kinds of layers contradict each other.

        Args:
            num_layers: of the model.
            ranks: tensor parallel ranks.
            present: further options of the model, by name, and whether they are on.
        """
        if self.has_linear_layers:
            self._check_linear_attention(num_layers, ranks)
        pairs = {
            "qk_clip": ("use_lora",),
            "shares_input_norm": ("apply_residual_connection_post_norm",),
            "embed_layernorm": ("a table of positions", "mtp_num_layers"),
            "qk_l2_norm": ("qk_layernorm", "multi_latent_attention"),
            "scales_alibi": ("multi_latent_attention",),
            "clip_qkv": ("multi_latent_attention", "experimental_attention_variant"),
            "head_has_bias": ("a head that is the table of embeddings",),
            "attention_output_gate": ("use_query_layer", "multi_latent_attention", "use_lora"),
            "experimental_attention_variant": ("use_query_layer", "use_lora"),
            "heterogeneous_layers_config_encoded_json": (
                *("use_query_layer", "use_lora", "mtp_num_layers", "multi_latent_attention"),
                *("experimental_attention_variant", "num_experts", "use_parallel_residual"),
            ),
        }
        for name, others in pairs.items():
            for other in others:
                if getattr(self, name) and present.get(other, getattr(self, other, False)):
                    raise ValueError(
                        f"{name} and {other} do not go together: layers are made for one of them; "
                        "leave the other out"
                    )

    def _check_linear_attention(self, num_layers: int, ranks: int) -> None:
        """Raise ValueError when these fields contradict each other or the model.

        Args:
            num_layers: of the model.
            ranks: tensor parallel ranks.
        """
        freq = self.linear_attention_freq
        if freq is None:
            raise ValueError(
                "experimental_attention_variant gated_delta_net needs linear_attention_freq: a "
                "number, or a list of 0 and 1"
            )
        if isinstance(freq, tuple) and len(freq) != num_layers:
            raise ValueError(
                f"linear_attention_freq has {len(freq)} entries; it must be a number, or a list of "
                f"0 and 1 for each of the {num_layers} layers"
            )
        keys, values = self.linear_num_key_heads, self.linear_num_value_heads
        if values % keys or keys % ranks:
            raise ValueError(
                f"linear_num_value_heads ({values}) must be a multiple of linear_num_key_heads "
                f"({keys}), and these of the {ranks} tensor parallel ranks; change one of them"
            )

    def _check_layer_options(self, *, qk_layernorm: bool, sandwich: bool, latent: bool) -> None:
        """Raise ValueError when these fields contradict the model.

        Args:
            qk_layernorm: queries and keys are normalized.
            sandwich: blocks are normalized behind.
            latent: queries and keys come from narrow vectors.
        """
        if not self.norm_has_factor and (latent or qk_layernorm):
            raise ValueError(
                "norm_has_factor False is about norms of hidden states; leave qk_layernorm and "
                "multi_latent_attention, or leave it out"
            )
        if not self.use_pre_norm and not sandwich:
            raise ValueError(
                "use_pre_norm False leaves blocks without a norm; set use_sandwich_norm: True, "
                "which normalizes behind them"
            )
        if self.shares_input_norm and not (self.use_parallel_residual and self.use_pre_norm):
            raise ValueError(
                "shares_input_norm is about blocks side by side with a norm before them; set "
                "use_parallel_residual: True and leave use_pre_norm, or leave this out"
            )
        for name in ("qk_layernorm_full", "qk_layernorm_per_head"):
            if getattr(self, name) and (latent or not qk_layernorm):
                raise ValueError(
                    f"{name} says how qk_layernorm normalizes queries and keys of heads; set "
                    "qk_layernorm: True without multi_latent_attention, or leave it out"
                )
        if self.qk_layernorm_full and self.qk_layernorm_per_head:
            raise ValueError(
                "qk_layernorm_full and qk_layernorm_per_head are two ways to normalize queries and "
                "keys; leave one out"
            )

    @property
    def rope_stretching(self) -> RopeScalingConfig:
        """How positions are stretched, whichever fields say so."""
        if self.use_rope_scaling:
            return RopeScalingConfig(
                rope_type="llama3",
                factor=self.rope_scaling_factor,
                original_max_position_embeddings=8192,
            )
        factor = self.rotary_seq_len_interpolation_factor
        if factor is not None and factor != 1.0:
            return RopeScalingConfig(rope_type="linear", factor=factor)
        return self.rope_scaling

    def _check_stretching(self, latent: LatentAttentionConfig | None) -> None:
        """Raise ValueError when several fields say how positions are stretched.

        Args:
            latent: multi-latent attention, which can do so, too.
        """
        ways = {
            "use_rope_scaling": self.use_rope_scaling,
            "rotary_seq_len_interpolation_factor": self.rotary_seq_len_interpolation_factor,
            "rope_scaling": self.rope_scaling.is_on,
            "mla_config.rotary_scaling_factor": latent is not None
            and latent.rope_type == "yarn"
            and latent.rotary_scaling_factor != 1.0,
        }
        given = [name for name, value in ways.items() if value]
        if "rope_scaling" in given and len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} both say how positions are stretched; keep one of them"
            )
