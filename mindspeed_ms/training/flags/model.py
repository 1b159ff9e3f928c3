# SPDX-License-Identifier: Apache-2.0
"""Flags that shape the model: sizes, positions, layers, attention, initial weights, precision."""

from __future__ import annotations

from mindspeed_ms.config.transformer_config import GATED_ACTIVATIONS
from mindspeed_ms.training.flags import attention, layer_options
from mindspeed_ms.training.flags.row import (
    Field,
    Flag,
    NoEffect,
    ReadField,
    Refused,
    given_means,
    in_group,
    off,
    on,
    toggle,
    value,
)
from mindspeed_ms.training.flags.value_types import dtype

_ACTIVATION = "model_config.hidden_act"
_POSITIONS = "model_config.position_embedding_type"
_OTHER_POSITIONS = ("relative", "mrope")
_STRETCHING = "model_config.rope_scaling"
YARN = (
    *("rope_type", "factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "attention_factor"),
)
"""What ``--position-embedding-type yarn`` decides, with the flags of multi-latent attention."""
_NO_POSITIONS = Refused("positions of this kind are not available", "use rope")
_BIASES = Field(
    "model_config.add_bias_linear",
    also=(
        "model_config.qkv_has_bias",
        "model_config.out_proj_has_bias",
        "model_config.mlp_has_bias",
        _ACTIVATION,
    ),
    clears=("add_qkv_bias", "add_dense_bias"),
)
_NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
"""Megatron-DeepSpeed's names -> Megatron's."""
_KERNELS = NoEffect("the kernel of each operation is chosen once at start")
_ONE_MODEL = NoEffect("there is one model; its numbers are those of Megatron's local layers")


def _stretching_factor(own: float, read: ReadField) -> float:
    """The factor of the way that is on."""
    is_on = read(f"{_STRETCHING}.rope_type") != "default"
    return read(f"{_STRETCHING}.factor") if is_on else own


SIZE = in_group(
    "network size",
    [
        value(
            "--num-layers",
            int,
            Field("model_config.num_layers"),
            typical=12,
            attributes=("encoder_num_layers",),
            common=True,
        ),
        value(
            "--encoder-num-layers",
            int,
            Field("model_config.num_layers"),
            dest="num_layers",
            help="Same as --num-layers.",
        ),
        value("--hidden-size", int, Field("model_config.hidden_size"), typical=512, common=True),
        value("--ffn-hidden-size", int, Field("model_config.ffn_hidden_size"), common=True),
        value(
            "--num-attention-heads",
            int,
            Field("model_config.num_attention_heads"),
            typical=8,
            common=True,
        ),
        value("--kv-channels", int, Field("model_config.kv_channels")),
        on(
            "--group-query-attention",
            Field("model_config.group_query_attention"),
            common=True,
        ),
        value("--num-query-groups", int, Field("model_config.num_query_groups"), 1, common=True),
        value(
            "--max-position-embeddings",
            int,
            Field("model_config.max_position_embeddings"),
        ),
        value(
            "--seq-length",
            int,
            Field("model_config.seq_length"),
            typical=1024,
            attributes=("encoder_seq_length",),
            common=True,
        ),
        value(
            "--encoder-seq-length",
            int,
            Field("model_config.seq_length"),
            dest="seq_length",
            help="Same as --seq-length.",
        ),
        value("--padded-vocab-size", int, Field("model_config.vocab_size"), small=None),
        value(
            "--make-vocab-size-divisible-by",
            int,
            Field("dataset_config.make_vocab_size_divisible_by", also=("model_config.vocab_size",)),
            128,
            small=64,
        ),
        on(
            "--untie-embeddings-and-output-weights",
            Field("model_config.untie_embeddings_and_output_weights"),
            common=True,
        ),
    ],
)

POSITIONS = in_group(
    "positions",
    [
        on(
            "--use-rotary-position-embeddings",
            Field(_POSITIONS, means="rope", yields=True),
            help="Same as --position-embedding-type rope.",
        ),
        value(
            "--position-embedding-type",
            str,
            Field(_POSITIONS, also=tuple(f"{_STRETCHING}.{name}" for name in YARN)),
            "learned_absolute",
            choices=(
                *("learned_absolute", "absolute", "rope", "rotary"),
                *("yarn", "alibi", "none", "nope"),
                *_OTHER_POSITIONS,
            ),
            refuses=tuple((name, _NO_POSITIONS) for name in _OTHER_POSITIONS),
            common=True,
        ),
        off(
            "--no-position-embedding",
            "add_position_embedding",
            Field(_POSITIONS, by_rule=True, back=lambda kind, _: kind != "none"),
            help="Leave the learnt position table out; rope is not affected.",
        ),
        value("--rotary-base", float, Field("model_config.rotary_base"), 10000, common=True),
        value("--rotary-percent", float, Field("model_config.rotary_percent"), 1.0),
        on("--rotary-interleaved", Field("model_config.rotary_interleaved")),
        value(
            "--rotary-seq-len-interpolation-factor",
            float,
            Field("model_config.rotary_seq_len_interpolation_factor"),
        ),
        on("--use-rope-scaling", Field("model_config.use_rope_scaling")),
        value(
            "--rope-scaling-factor",
            float,
            Field(
                "model_config.rope_scaling_factor",
                sets={f"{_STRETCHING}.factor": lambda factor: factor},
                back=_stretching_factor,
            ),
            8.0,
        ),
        off("--no-rope-fusion", "apply_rope_fusion", Field("model_config.apply_rope_fusion")),
        toggle(
            "--apply-rope-fusion",
            Field("model_config.apply_rope_fusion"),
            True,
            attributes=("use_fused_rotary_pos_emb",),
        ),
        on(
            "--use-fused-rotary-pos-emb",
            Field("model_config.apply_rope_fusion"),
            dest="apply_rope_fusion",
            default=True,
            help="Same as --apply-rope-fusion.",
        ),
    ],
)

LAYERS = in_group(
    "layers",
    [
        value(
            "--normalization",
            str,
            Field(
                "model_config.normalization",
                means=lambda kind: _NORMS.get(kind, kind),
                back=lambda kind, _: kind.removeprefix("Fused"),
            ),
            "LayerNorm",
            choices=("LayerNorm", "RMSNorm", "FusedRMSNorm", *_NORMS),
            common=True,
        ),
        toggle(
            "--use-fused-rmsnorm",
            Field(
                "model_config.normalization",
                by_rule=True,
                back=lambda kind, _: kind == "FusedRMSNorm",
            ),
            False,
            help="Ask for the fused kernel of RMSNorm.",
        ),
        value(
            "--norm-epsilon",
            float,
            Field("model_config.norm_epsilon"),
            1e-5,
            aliases=("--layernorm-epsilon",),
            attributes=("layernorm_epsilon",),
        ),
        on(
            "--apply-layernorm-1p",
            Field("model_config.layernorm_zero_centered_gamma"),
            aliases=("--layernorm-zero-centered-gamma",),
            attributes=("layernorm_zero_centered_gamma",),
        ),
        on(
            "--apply-residual-connection-post-layernorm",
            Field("model_config.apply_residual_connection_post_norm"),
        ),
        on("--qk-layernorm", Field("model_config.qk_layernorm")),
        toggle("--use-sandwich-norm", Field("model_config.use_sandwich_norm"), False),
        value("--attn-post-norm-scale", float, Field("model_config.attn_post_norm_scale"), 1.0),
        value("--ffn-post-norm-scale", float, Field("model_config.ffn_post_norm_scale"), 1.0),
        value(
            "--hidden-act",
            str,
            Field(_ACTIVATION),
            choices=(
                *("gelu", "fast_gelu", "quick_gelu", "swiglu", "fused_swiglu", "silu"),
                "squared_relu",
            ),
        ),
        on(
            "--swiglu",
            Field(_ACTIVATION, means="swiglu", back=lambda kind, _: kind in GATED_ACTIVATIONS),
            help="Gated activation: silu(first half) × second half.",
            common=True,
        ),
        on(
            "--squared-relu",
            Field(_ACTIVATION, means="squared_relu"),
            help="Activation relu(x)².",
        ),
        on(
            "--openai-gelu",
            Field(_ACTIVATION, means="fast_gelu"),
            help="gelu in its tanh form.",
        ),
        off(
            "--no-bias-gelu-fusion",
            "bias_gelu_fusion",
            Field(
                _ACTIVATION,
                by_rule=True,
                back=lambda kind, _: kind == "fast_gelu",
                clears=("hidden_act",),
            ),
            help="gelu in its erf form; the fused kernel of Megatron computes the tanh form.",
        ),
        toggle(
            "--use-fused-swiglu",
            Field("model_config.apply_swiglu_fusion"),
            False,
        ),
        off("--disable-bias-linear", "add_bias_linear", _BIASES, common=True),
        toggle("--add-bias-linear", _BIASES, True),
        toggle("--add-qkv-bias", Field("model_config.qkv_has_bias"), False),
        toggle("--add-dense-bias", Field("model_config.out_proj_has_bias"), False),
        off("--no-bias-swiglu-fusion", "bias_swiglu_fusion", _KERNELS),
        off("--no-bias-dropout-fusion", "bias_dropout_fusion", _KERNELS),
        on("--no-persist-layer-norm", _KERNELS),
        value(
            "--transformer-impl",
            str,
            Field("model_config.transformer_impl"),
            "transformer_engine",
            choices=("local", "transformer_engine", "inference_optimized"),
            refuses=(
                (
                    "inference_optimized",
                    Refused("layers for generation do not train", "use transformer_engine"),
                ),
            ),
        ),
        on("--use-mcore-models", _ONE_MODEL, dest="deprecated_use_mcore_models"),
        on("--use-legacy-models", _ONE_MODEL),
    ],
)

INITIALIZATION = in_group(
    "initialization",
    [
        value("--seed", int, Field("training_config.seed"), 1234, common=True),
        on("--data-parallel-random-init", Field("training_config.data_parallel_random_init")),
        value("--init-method-std", float, Field("model_config.init_method_std"), 0.02),
        value(
            "--embedding-init-method-std", float, Field("model_config.embedding_init_method_std")
        ),
        on(
            "--init-method-xavier-uniform",
            Field("model_config.init_method_xavier_uniform"),
        ),
        on("--use-cpu-initialization", Field("parallel_config.use_cpu_initialization")),
    ],
)

_TYPES = ("model_config.params_dtype", "model_config.compute_dtype", "parallel_config.recv_dtype")
_CHECK_NAN = "training_config.check_for_nan_in_grad"
_GRADIENT_TYPE = "training_config.accumulate_allreduce_grads_in_fp32"

PRECISION = in_group(
    "precision",
    [
        on(
            "--fp16",
            Field(
                "training_config.fp16",
                also=(*_TYPES, _CHECK_NAN),
                clears=("bf16", "params_dtype", "compute_dtype"),
            ),
            excludes=("--bf16",),
            common=True,
        ),
        on(
            "--bf16",
            Field(
                "training_config.bf16",
                also=(*_TYPES, _GRADIENT_TYPE),
                clears=("fp16", "params_dtype", "compute_dtype"),
            ),
            common=True,
        ),
        value("--params-dtype", dtype, Field("model_config.params_dtype")),
        value(
            "--compute-dtype",
            dtype,
            Field("model_config.compute_dtype", also=("parallel_config.recv_dtype",)),
        ),
        value("--embedding-dtype", dtype, Field("model_config.embedding_init_dtype")),
        toggle(
            "--attention-softmax-in-fp32",
            Field("model_config.attention_softmax_in_fp32"),
            False,
        ),
        on(
            "--apply-query-key-layer-scaling",
            Field(
                "model_config.apply_query_key_layer_scaling",
                also=("model_config.attention_softmax_in_fp32",),
            ),
        ),
        off(
            "--no-query-key-layer-scaling",
            "apply_query_key_layer_scaling",
            Field("model_config.apply_query_key_layer_scaling"),
            default=False,
        ),
        toggle("--fp32-residual-connection", Field("model_config.fp32_residual_connection"), False),
        toggle("--fp16-lm-cross-entropy", Field("model_config.fp16_lm_cross_entropy"), False),
        value("--loss-scale", float, Field("training_config.loss_scale", also=(_CHECK_NAN,))),
        value("--initial-loss-scale", float, Field("training_config.loss_scale_value"), 2.0**32),
        value("--min-loss-scale", float, Field("training_config.min_loss_scale"), 1.0),
        value("--loss-scale-window", int, Field("training_config.loss_scale_window"), 1000),
        value(
            "--hysteresis",
            int,
            Field(
                "training_config.hysteresis",
                sets={
                    "training_config.loss_scale_factor": lambda count: count,
                    "training_config.loss_scale_growth_factor": given_means(2.0),
                },
            ),
            2,
        ),
        toggle("--accumulate-allreduce-grads-in-fp32", Field(_GRADIENT_TYPE), False),
        on(
            "--grad-reduce-in-bf16",
            Field(_GRADIENT_TYPE, by_rule=True),
            help="With --bf16, keep and reduce gradients in bfloat16 instead of float32.",
        ),
        value(
            "--main-grads-dtype",
            str,
            Field(_GRADIENT_TYPE, by_rule=True),
            "fp32",
            choices=("fp32", "bf16"),
            help="With --bf16, bf16 keeps and reduces gradients in bfloat16.",
        ),
        on(
            "--check-for-nan-in-loss-and-grad",
            Field("training_config.check_for_nan_in_grad"),
            default=True,
        ),
        off(
            "--no-check-for-nan-in-loss-and-grad",
            "check_for_nan_in_loss_and_grad",
            Field(_CHECK_NAN),
        ),
    ],
)

ROWS: tuple[Flag, ...] = (
    *SIZE,
    *POSITIONS,
    *LAYERS,
    *layer_options.ROWS,
    *attention.ROWS,
    *INITIALIZATION,
    *PRECISION,
)
