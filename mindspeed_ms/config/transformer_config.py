# SPDX-License-Identifier: Apache-2.0
"""The model: sizes, positions, normalization, activations, precision, recomputation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

from mindspeed_ms.config.attention_options import EVERYTHING, FlashAttentionConfig, Window
from mindspeed_ms.config.dataset_config import DatasetConfig
from mindspeed_ms.config.dtypes import FLOAT16, FLOAT32, DType
from mindspeed_ms.config.kinds import (
    Count,
    Epsilon,
    Layers,
    Natural,
    NonNegative,
    Positive,
    PositiveShare,
    Share,
)
from mindspeed_ms.config.latent_attention_config import LatentAttentionConfig
from mindspeed_ms.config.layer_options import NAMES_OF_MINDFORMERS, LayerOptions
from mindspeed_ms.config.lora_config import LoraConfig
from mindspeed_ms.config.model_parallel_config import ModelParallelConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.config.training_config import TrainingConfig

GATED_ACTIVATIONS = frozenset({"swiglu", "fused_swiglu"})


def default_ffn_hidden_size(hidden_size: int, is_swiglu: bool) -> int:
    """The ffn width when none is given: 4·h, with swiglu 8/3·h rounded down to a multiple of 64."""
    if is_swiglu:
        return int((4 * hidden_size * 2 / 3) / 64) * 64
    return 4 * hidden_size


def padded_vocab_size(
    vocab_size: int, make_divisible_by: int, tensor_model_parallel_size: int
) -> int:
    """Return the vocabulary size rounded up to equal, aligned parts per tensor-parallel rank."""
    multiple = make_divisible_by * tensor_model_parallel_size
    return -(-vocab_size // multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(LayerOptions):
    """Section ``model_config``, the shape and the arithmetic of the model."""

    NAME: ClassVar[str] = "model_config"
    LINKS: ClassVar[frozenset[str]] = frozenset(
        {"parallel_config", "training_config", "dataset_config", "moe_config", "lora_config"}
    )
    ALIASES: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "padded_vocab_size": "vocab_size",
            "attention_dropout": "attention_dropout_rate",
            "hidden_dropout": "hidden_dropout_rate",
            "use_flash_attn": "use_flash_attention",
            "add_qkv_bias": "qkv_has_bias",
            "add_dense_bias": "out_proj_has_bias",
            "embedding_dtype": "embedding_init_dtype",
            "use_fused_swiglu": "apply_swiglu_fusion",
            "layernorm_epsilon": "norm_epsilon",
            **NAMES_OF_MINDFORMERS,
            "apply_layernorm_1p": "layernorm_zero_centered_gamma",
            "apply_residual_connection_post_layernorm": "apply_residual_connection_post_norm",
        }
    )

    # --- sizes
    vocab_size: Count = field(kw_only=False)
    """Rows of the embedding: the padded vocabulary."""

    num_layers: Layers = field(kw_only=False)
    """Transformer layers in the whole model."""

    num_attention_heads: Count = field(kw_only=False)
    """Query heads of each layer."""

    hidden_size: Count = field(kw_only=False)
    """Width of the residual stream, elements per token."""

    ffn_hidden_size: Count | None = field(default=None, kw_only=False)
    """Inner width of the feed-forward block.

    None: 4 × hidden_size; with swiglu 8/3 of it, rounded down to 64s.
    """

    # --- the other sections
    parallel_config: ModelParallelConfig = field(
        default_factory=ModelParallelConfig, repr=False, kw_only=False
    )
    """The run's parallel section."""

    training_config: TrainingConfig = field(
        default_factory=TrainingConfig, repr=False, kw_only=False
    )
    """The run's training section."""

    lora_config: LoraConfig = field(default_factory=LoraConfig, repr=False, kw_only=False)
    """The run's adapter section."""

    dataset_config: DatasetConfig = field(default_factory=DatasetConfig, repr=False, kw_only=False)
    """The run's dataset section."""

    moe_config: MoEConfig = field(default_factory=MoEConfig, repr=False, kw_only=False)
    """The run's expert section."""

    # --- further sizes
    seq_length: Count
    """Tokens in one sequence."""

    max_position_embeddings: Count | None = None
    """Rows of a learnt position table, and the longest sequence. None: seq_length."""

    kv_channels: Count | None = None
    """Width of one head. None: hidden_size / num_attention_heads."""

    group_query_attention: bool = False
    """Let several query heads share one key/value head.

    False: as many key/value heads as query heads.
    """

    num_query_groups: Count = 32
    """Key/value heads; only read with group_query_attention."""

    # --- positions
    position_embedding_type: Literal["absolute", "learned_absolute", "rope", "alibi", "none"] = (
        "absolute"
    )
    """Position information: a learnt table (``absolute`` and ``learned_absolute`` are one), rotary
    angles, scores that fall with the distance of tokens (ALiBi), or none.
    """

    rotary_base: Positive = 10000.0
    """Longest rotary period is 2π times this, tokens."""

    rotary_percent: PositiveShare = 1.0
    """Share of each head's width that is rotated, from the start of the head."""

    rotary_interleaved: bool = False
    """Rotate neighbouring elements as pairs. False: element i with element i + half."""

    apply_rope_fusion: bool = False
    """Ask for the fused rotary kernel. False: ops chooses."""

    # --- attention
    qkv_has_bias: bool = True
    """Bias on the query/key/value projection."""

    out_proj_has_bias: bool = True
    """Bias on the attention output projection."""

    attention_dropout_rate: Share = 0.0
    """Probability of dropping an attention weight."""

    attention_softmax_in_fp32: bool = True
    """Take the softmax of attention scores in float32. False: in softmax_compute_dtype; YAML that
    gives a 16-bit type there means False."""

    apply_query_key_layer_scaling: bool = False
    """With compute_dtype float16, round scores to it after a division by the layer number, which
    keeps them in range, and multiply them back in the softmax, which is float32. Not with
    use_flash_attention, whose scores are float32."""

    use_flash_attention: bool = False
    """Ask for the fused attention kernel, whose scores and softmax are float32. False: ops chooses.
    """

    fa_config: FlashAttentionConfig = field(default_factory=FlashAttentionConfig)
    """Options of the fused attention kernel."""

    mask_func_type: Literal["attn_mask_add", "attn_mask_fill"] = "attn_mask_add"
    """How masked scores are removed when not fused: add a large negative number or replace by one.
    """

    qk_layernorm: bool = False
    """Normalize queries and keys per head; with multi_latent_attention, the narrow vectors they are
    made from. False: off.
    """

    multi_latent_attention: bool = False
    """Make queries, keys and values from narrow vectors, as mla_config says; these projections have
    no biases, and rotate a part of the heads whatever position_embedding_type is. False: directly.
    """

    mla_config: LatentAttentionConfig = field(default_factory=LatentAttentionConfig)
    """Sizes and positions of multi-latent attention."""

    # --- feed-forward
    hidden_act: Literal[
        "gelu", "fast_gelu", "quick_gelu", "swiglu", "fused_swiglu", "silu", "relu", "squared_relu"
    ] = "gelu"
    """Activation: gelu is the erf form, fast_gelu the tanh form, quick_gelu x × sigmoid(1.702 x),
    swiglu gates silu(first half) × second half.
    """

    gated_linear_unit: bool | None = None
    """The first feed-forward matrix yields gate and value: hidden_act(gate) × value. None: True for
    swiglu."""

    mlp_has_bias: bool = True
    """Bias on both feed-forward matrices."""

    add_bias_linear: bool = False
    """Bias on every linear layer; with True the three has_bias keys are True.

    False: those keys decide.
    """

    apply_swiglu_fusion: bool = False
    """Ask for the fused swiglu kernel. False: ops chooses."""

    # --- normalization and residual
    normalization: Literal["LayerNorm", "RMSNorm", "FusedRMSNorm"] = "LayerNorm"
    """Kind of norm; FusedRMSNorm asks for the fused kernel of RMSNorm."""

    norm_epsilon: Epsilon = 1e-5
    """Addend to the variance."""

    layernorm_zero_centered_gamma: bool = False
    """Store norm weights minus one. False: as they are."""

    apply_residual_connection_post_norm: bool = False
    """Take the residual after the norm. False: before it."""

    use_final_norm: bool = True
    """Normalize after the last layer."""

    use_sandwich_norm: bool = False
    """Normalize also after attention and after the feed-forward block, before the residual is
    added.
    """

    attn_post_norm_scale: Share = 1.0
    """Initial weight of the norm after attention."""

    ffn_post_norm_scale: Share = 1.0
    """Initial weight of the norm after the feed-forward block."""

    hidden_dropout_rate: Share = 0.0
    """Probability of dropping an element of a block's output and of the embedding."""

    fp32_residual_connection: bool = False
    """Keep the residual stream in float32. False: in residual_connection_dtype."""

    # --- head
    untie_embeddings_and_output_weights: bool = False
    """Give the head its own matrix. False: it shares the embedding's."""

    fp16_lm_cross_entropy: bool = False
    """Compute the loss on float16 logits. False: on float32 logits."""

    use_query_layer: bool = False
    """Put a layer behind the final norm whose queries are learned for every position, beside
    num_layers. False: the final norm's output goes into the head.
    """

    mtp_num_layers: Layers | None = None
    """Layers behind the model that each predict one token further ahead. None: none."""

    mtp_loss_scaling_factor: NonNegative = 0.1
    """Weight of the mean of their losses beside the main loss."""

    # --- initial weights
    init_method_std: NonNegative = 0.01
    """Standard deviation of initial weights; matrices before a residual use it divided by sqrt(2 ×
    num_layers).
    """

    embedding_init_method_std: NonNegative | None = None
    """Standard deviation of initial embeddings. None: init_method_std."""

    init_method_xavier_uniform: bool = False
    """Draw initial matrices from Xavier's uniform distribution. False: normal."""

    # --- precision
    params_dtype: DType = FLOAT32
    """Type of the weights used in forward and backward."""

    compute_dtype: DType = FLOAT16
    """Type of matrix products and activations."""

    softmax_compute_dtype: DType = FLOAT32
    """Type to which attention scores and the result of their softmax are rounded. float32 where
    attention_softmax_in_fp32 or use_flash_attention say so."""

    embedding_init_dtype: DType = FLOAT32
    """Type of the embedding weights."""

    residual_connection_dtype: DType | None = None
    """Type of the residual stream.

    None: float32 with fp32_residual_connection, else compute_dtype. A type narrower than
    compute_dtype has no effect.
    """

    # --- recomputation
    recompute_granularity: Literal["full", "selective"] | None = None
    """Recompute whole layers, or only the attention core.

    None: nothing, or the lists of parallel_config.
    """

    recompute_method: Literal["uniform", "block"] | None = None
    """With full: groups of recompute_num_layers all over the stack, or only the first that many.
    None with selective.
    """

    recompute_num_layers: Natural | None = None
    """Layers per group (uniform) or per stage and model chunk (block)."""

    recompute_modules: tuple[str, ...] | None = None
    """Parts of every layer to recompute with selective: core_attn, mlp, mlp_act (the activation
    function), layernorm, moe, moe_act, shared_experts, mla_up_proj. None: core_attn.
    """

    # --- implementation
    transformer_impl: Literal["local", "transformer_engine"] = "local"
    """Megatron's choice of layer classes. There is one implementation here; both names mean it."""

    @property
    def init_method(self) -> str:
        """The predecessor's name of how matrices start; ``init_method_std`` says how wide."""
        return "xavier_uniform" if self.init_method_xavier_uniform else "normal"

    @property
    def output_layer_init_method(self) -> str:
        """The predecessor's name of how the last matrix of a block starts."""
        return "normal"

    @property
    def bias_init(self) -> str:
        """The predecessor's name of how biases start."""
        return "zeros"

    @property
    def attention_dropout(self) -> float:
        """Megatron's name of attention_dropout_rate."""
        return self.attention_dropout_rate

    @property
    def hidden_dropout(self) -> float:
        """Megatron's name of hidden_dropout_rate."""
        return self.hidden_dropout_rate

    @property
    def residual_dtype(self) -> DType:
        """Type of the residual stream in effect, also between pipeline stages."""
        wide = self.residual_connection_dtype == FLOAT32
        return FLOAT32 if wide else self.compute_dtype

    @property
    def batch_first(self) -> bool:
        """Whether cells that a script builds itself take and return [batch, sequence, hidden]."""
        return False

    @property
    def adds_masks(self) -> bool | None:
        """Whether a mask of numbers is added to the scores; False: what is not 0 is hidden.

        None: floating numbers are added, whole ones hide.
        """
        return None

    @property
    def data_layout(self) -> str:
        """Axis order of the user's dataset."""
        return self.dataset_config.data_layout

    @property
    def num_kv_groups(self) -> int:
        """Key/value heads in effect.

        They are num_query_groups with grouped queries, else the number of heads.
        """
        return self.num_query_groups if self.group_query_attention else self.num_attention_heads

    def has_experts(self, layer: int) -> bool:
        """Whether a layer, counted from 0, is a MoE layer; those behind the last are like it."""
        return self.moe_config.moe_layers(self.num_layers)[min(layer, self.num_layers - 1)]

    @property
    def has_learned_positions(self) -> bool:
        """Whether the model owns a position table."""
        return self.position_embedding_type in ("absolute", "learned_absolute")

    @property
    def is_rms_norm(self) -> bool:
        """Whether norms are RMSNorm, fused or not."""
        return self.normalization in ("RMSNorm", "FusedRMSNorm")

    def _resolve(self) -> None:
        is_swiglu = self.hidden_act in GATED_ACTIVATIONS
        self._fill("ffn_hidden_size", default_ffn_hidden_size(self.hidden_size, is_swiglu))
        self._fill("max_position_embeddings", self.seq_length)
        if self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            self._fill("kv_channels", self.hidden_size // self.num_attention_heads)
        if self.multi_latent_attention:
            self._fill("kv_channels", self.mla_config.query_dim)
        self._fill("gated_linear_unit", is_swiglu)
        self._fill("embedding_init_method_std", self.init_method_std)
        residual = FLOAT32 if self.fp32_residual_connection else self.compute_dtype
        self._fill("residual_connection_dtype", residual)
        dropped = round(1.0 - self.fa_config.keep_prob, 12)
        if dropped and self.attention_dropout_rate == 0.0:
            self._set("attention_dropout_rate", dropped)
        if self.apply_query_key_layer_scaling:  # scores are scaled back in float32
            self._set("attention_softmax_in_fp32", True)

    def _check(self) -> None:
        self._check_attention()
        self._check_layer_options(
            qk_layernorm=self.qk_layernorm,
            sandwich=self.use_sandwich_norm,
            latent=self.multi_latent_attention,
        )
        names = ("qk_layernorm", "multi_latent_attention", "use_query_layer", "mtp_num_layers")
        present = {name: bool(getattr(self, name)) for name in names} | {
            "use_lora": self.lora_config.use_lora,
            "a table of positions": self.has_learned_positions,
            "a head that is the table of embeddings": not self.untie_embeddings_and_output_weights,
            "num_experts": self.moe_config.is_moe,
        }
        ranks = self.parallel_config.tensor_model_parallel_size
        self._check_kinds(self.num_layers, ranks, present)
        self._check_blocks(self.num_layers, self.num_attention_heads, self.hidden_size, ranks)
        latent = self.mla_config if self.multi_latent_attention else None
        self._check_stretching(latent)
        self._check_sparse_attention(latent)
        self._check_feed_forward()
        self._check_further_tokens()
        self._check_precision()
        self._check_recompute()

    @property
    def is_band(self) -> bool:
        """Whether a band of the fused kernel takes the place of the causal mask."""
        return self.fa_config.sparse_mode == 4

    def attention_window(self, layer: int) -> Window:
        """What a layer, counted from 0, sees around a token, besides what masks say."""
        band = self.fa_config.window
        return self.layer_window(layer) if band == EVERYTHING else band

    @property
    def softmax_storage(self) -> DType | None:
        """Type to which scores and the result of the softmax are rounded; None: they are not."""
        is_wide = self.attention_softmax_in_fp32 or self.softmax_compute_dtype == FLOAT32
        return None if is_wide or self.use_flash_attention else self.softmax_compute_dtype

    @property
    def scales_by_layer(self) -> bool:
        """Whether scores are rounded to float16 after a division by the number of the layer."""
        is_half = self.compute_dtype == FLOAT16 and not self.use_flash_attention
        return self.apply_query_key_layer_scaling and is_half

    def _check_attention(self) -> None:
        is_rotated = self.position_embedding_type == "rope" and not self.multi_latent_attention
        self._check_layers(self.num_layers, is_rotated=is_rotated, band=self.fa_config.window)
        keep, dropped = self.fa_config.keep_prob, self.attention_dropout_rate
        if keep != 1.0 and abs(1.0 - keep - dropped) > 1e-9:
            raise ValueError(
                f"fa_config.keep_prob ({keep}) and attention_dropout_rate ({dropped}) both say how "
                "many attention weights are dropped, and differ; keep attention_dropout_rate"
            )
        if self.kv_channels is None:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads "
                f"({self.num_attention_heads}); change one of them or give kv_channels"
            )
        if self.num_attention_heads % self.num_kv_groups:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by "
                "num_query_groups "
                f"({self.num_query_groups}); use {_divisors(self.num_attention_heads)} groups"
            )
        if (
            self.max_position_embeddings is not None
            and self.max_position_embeddings < self.seq_length
        ):
            raise ValueError(
                f"max_position_embeddings ({self.max_position_embeddings}) must be at least "
                "seq_length "
                f"({self.seq_length}); raise it or shorten the sequence"
            )
        if self.multi_latent_attention:
            if self.group_query_attention:
                raise ValueError(
                    "multi_latent_attention makes keys and values for every head, given "
                    "group_query_attention; keep one of them"
                )
        elif self.position_embedding_type == "rope":
            rotated = int(self.kv_channels * self.rotary_percent)
            if rotated % 2 or rotated == 0:
                raise ValueError(
                    f"rope rotates {rotated} elements of each head (kv_channels "
                    f"{self.kv_channels} × rotary_percent "
                    f"{self.rotary_percent}), but needs an even number above 0; change "
                    "kv_channels or rotary_percent"
                )

    def _check_feed_forward(self) -> None:
        if self.has_linear_layers and self.hidden_act not in ("silu", *GATED_ACTIVATIONS):
            raise ValueError(
                f"linear attention has hidden_act, given {self.hidden_act}; use swiglu or silu"
            )
        options = (self.activation_func_clamp_value, self.glu_linear_offset or None)
        if any(option is not None for option in options) and not self.gated_linear_unit:
            raise ValueError(
                "activation_func_clamp_value and glu_linear_offset are about gated units, given "
                f"hidden_act {self.hidden_act} without gated_linear_unit; set it to True"
            )
        if self.gated_linear_unit and self.hidden_act == "squared_relu":
            raise ValueError(
                "gated_linear_unit has no form with hidden_act squared_relu; use gelu, fast_gelu, "
                "quick_gelu or silu"
            )
        if self.hidden_act in GATED_ACTIVATIONS and not self.gated_linear_unit:
            raise ValueError(
                f"hidden_act {self.hidden_act} is gated, but gated_linear_unit is False; "
                f"leave gated_linear_unit out or choose hidden_act silu"
            )
        if self.add_bias_linear:
            for name in ("qkv_has_bias", "out_proj_has_bias", "mlp_has_bias"):
                if not getattr(self, name):
                    raise ValueError(
                        f"add_bias_linear puts a bias on every linear layer, but {name} is False; "
                        f"set add_bias_linear: False or {name}: True"
                    )

    def _check_further_tokens(self) -> None:
        if self.use_query_layer and self.mtp_num_layers is not None:
            raise ValueError(
                "use_query_layer and mtp_num_layers both put layers behind the model; leave one out"
            )
        if self.use_query_layer and (self.multi_latent_attention or self.moe_config.is_moe):
            raise ValueError(
                "use_query_layer has heads of one width and a dense block; leave out "
                "multi_latent_attention and experts, or use_query_layer"
            )
        if self.mtp_num_layers is not None and self.has_learned_positions:
            raise ValueError(
                f"mtp_num_layers ({self.mtp_num_layers}) needs position_embedding_type rope or "
                f"none, given {self.position_embedding_type}; change it or leave the layers out"
            )

    def _check_precision(self) -> None:
        if self.attention_softmax_in_fp32 and self.softmax_compute_dtype != FLOAT32:
            raise ValueError(
                "attention_softmax_in_fp32 and softmax_compute_dtype "
                f"{self.softmax_compute_dtype} contradict each other; keep one of them"
            )
        residual = self.residual_connection_dtype
        if self.fp32_residual_connection and residual is not None and residual != FLOAT32:
            raise ValueError(
                "fp32_residual_connection contradicts residual_connection_dtype "
                f"{residual}; "
                f"keep one of them"
            )

    def _check_recompute(self) -> None:
        if self.recompute_granularity == "full" and self.recompute_method is None:
            raise ValueError(
                "recompute_granularity full needs recompute_method; choose uniform or block"
            )
        if self.recompute_method is not None:
            if self.recompute_granularity != "full":
                raise ValueError(
                    f"recompute_method {self.recompute_method} needs recompute_granularity full, "
                    "given "
                    f"{self.recompute_granularity}; set it to full or leave the method out"
                )
            if self.recompute_num_layers is None:
                raise ValueError(
                    f"recompute_method {self.recompute_method} needs recompute_num_layers; "
                    f"give 1 to {self.num_layers}"
                )
            if self.recompute_method == "uniform" and self.recompute_num_layers == 0:
                raise ValueError(
                    "recompute_method uniform recomputes groups of recompute_num_layers (0) "
                    "layers; give 1 or more, or use block, which takes 0"
                )
        if self.recompute_num_layers is not None and self.recompute_num_layers > self.num_layers:
            raise ValueError(
                f"recompute_num_layers ({self.recompute_num_layers}) must not exceed num_layers "
                f"({self.num_layers}); give 1 to {self.num_layers}"
            )


def _divisors(number: int) -> str:
    """Return the divisors of a number as text."""
    return ", ".join(str(part) for part in range(1, number + 1) if number % part == 0)
