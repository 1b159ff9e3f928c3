# SPDX-License-Identifier: Apache-2.0
"""Words of launch scripts of Megatron's forks: what only renames acts, the rest has its reason.

Source: the flags of Megatron-DeepSpeed (Microsoft's and BigScience's), Pai-Megatron-Patch,
    Megatron-LLM and MindSpeed-LLM (behaviour).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import (
    UNSET,
    Field,
    Flag,
    NoEffect,
    Refused,
    given_means,
    in_group,
    on,
    value,
)

_KERNELS = NoEffect("kernels are chosen at start, and these compute the same")
_ENGINE = NoEffect(
    "training has one engine, and flags alone say its batch, precision and sharding: "
    "--global-batch-size, --bf16 or --fp16, --zero-level"
)
_RECOMPUTE = NoEffect("--checkpoint-activations or --recompute-granularity says what is recomputed")
_HOST = NoEffect(
    "states and activations are not moved to host memory: on CPU they are in it, on an NPU they "
    "stay"
)
_FOLDER = NoEffect("--tokenizer-type and --tokenizer-model say which tokenizer it is")
_DATA = NoEffect("what --data-path names is read by what it is")
_NO_LAYER = Refused("layers of this kind are not available", "use the flags of a plain GPT layer")
_CHATS = Refused(
    "texts of chats are not read in this way",
    "use --sft with JSON lines of chats, or --is-instruction-dataset",
)
_CURRICULUM = Refused(
    "sequences keep their length and all their tokens", "train with --seq-length alone"
)
_STRETCHING = "model_config.rope_scaling."
_GATES = {"swiglu": "swiglu", "geglu": "gelu", "reglu": "relu"}
_EMBEDDINGS_COUNT = "type:transformer|embedding"


def _level_of_stage(stage: int | None) -> Any:
    return UNSET if not stage else f"z{stage}"


def _act_of_gate(gate: str | None) -> Any:
    return _GATES.get(gate or "", UNSET)


def _counts_embeddings(method: str | None) -> Any:
    return True if method == _EMBEDDINGS_COUNT else UNSET


def _untold(*_: Any) -> Any:
    """Read back, the field speaks through the flag of its own name."""
    return UNSET


def _sequence_parallel(stated: Any, given: Any) -> Any:
    """MindSpeed's 2-D split parts the sequence as well, which experts rely on."""
    return True if given.tp_2d and given.num_experts else stated


def _keys_of_groups(stated: Any, given: Any) -> Any:
    """Latent attention makes keys for every head, whatever scripts of other models left behind."""
    return UNSET if given.multi_latent_attention else stated


def _router_groups(stated: Any, given: Any) -> Any:
    """Megatron reads them only when a token is limited to some."""
    return UNSET if given.moe_router_group_topk is None else stated


FORK_RULES: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "model_config.group_query_attention": _keys_of_groups,
        "model_config.num_query_groups": _keys_of_groups,
        "moe_config.moe_router_num_groups": _router_groups,
        "parallel_config.sequence_parallel": _sequence_parallel,
    }
)
"""Field -> its rule, which gets what flags state about it, and all arguments."""


def spell_groups(args: Any) -> None:
    """Say --num-key-value-heads in the other spelling: one is enough to shrink."""
    if args.num_key_value_heads:
        args.group_query_attention, args.num_query_groups = True, args.num_key_value_heads
        args.num_key_value_heads = None


_NAMES = in_group(
    "names of forks",
    [
        value(
            "--moe-expert-parallel-size",
            int,
            Field("parallel_config.expert_model_parallel_size"),
            1,
            dest="expert_model_parallel_size",
            help="Same as --expert-model-parallel-size.",
        ),
        value(
            "--moe-loss-coeff",
            float,
            Field("moe_config.moe_aux_loss_coeff"),
            help="Same as --moe-aux-loss-coeff.",
        ),
        value(
            "--num-key-value-heads",
            int,
            Field(
                "model_config.num_query_groups",
                sets={"model_config.group_query_attention": given_means(constant=True)},
                back=_untold,
            ),
            aliases=("--n-head-kv",),
            help="--group-query-attention with so many --num-query-groups.",
        ),
        value(
            "--pad-vocab-size-to",
            int,
            Field("model_config.vocab_size"),
            dest="padded_vocab_size",
            small=None,
            help="Same as --padded-vocab-size.",
        ),
        value(
            "--extra-vocab-size",
            int,
            Field("model_config.vocab_size", by_rule=True),
            help="Rows of the embedding beyond the tokens of the tokenizer, before padding.",
        ),
        value(
            "--zero-stage",
            int,
            Field(
                "parallel_config.zero_level",
                means=_level_of_stage,
                sets={
                    "training_config.wrap_with_ddp": lambda stage: True if stage else UNSET,
                },
                back=_untold,
            ),
            choices=(0, 1, 2, 3),
            help="--zero-level z1, z2 or z3; 0 shards nothing.",
        ),
        value(
            "--ds-sequence-parallel-size",
            int,
            Field("parallel_config.context_parallel_size"),
            1,
            dest="context_parallel_size",
            help="Same as --context-parallel-size; its Ulysses is the default of "
            "--context-parallel-algo.",
        ),
        value(
            "--pp-partition-method",
            str,
            Field(
                "parallel_config.account_for_embedding_in_pipeline_split",
                means=_counts_embeddings,
                sets={"parallel_config.account_for_loss_in_pipeline_split": _counts_embeddings},
                back=_untold,
            ),
            choices=(_EMBEDDINGS_COUNT, "type:transformer", "uniform", "parameters"),
            refuses=(
                (
                    "parameters",
                    Refused("stages are not cut by parameters", "use --num-layer-list"),
                ),
            ),
            help="type:transformer|embedding: embedding and output count as layers when stages "
            "are cut.",
        ),
        value(
            "--glu-activation",
            str,
            Field(
                "model_config.hidden_act",
                means=_act_of_gate,
                sets={
                    "model_config.gated_linear_unit": lambda kind: (
                        True if kind and kind != "swiglu" else UNSET
                    )
                },
                back=_untold,
            ),
            choices=(*_GATES, "liglu"),
            refuses=(("liglu", Refused("this gate is not available", "use --swiglu")),),
            help="Gated activation: swiglu, geglu or reglu.",
        ),
        on(
            "--use-rms-norm",
            Field("model_config.normalization", means="RMSNorm", yields=True),
            help="Same as --normalization RMSNorm.",
        ),
        on(
            "--no-tie-embed-logits",
            Field("model_config.untie_embeddings_and_output_weights"),
            dest="untie_embeddings_and_output_weights",
            help="Same as --untie-embeddings-and-output-weights.",
        ),
        on(
            "--use-llama2-rotary-position-embeddings",
            Field("model_config.position_embedding_type", means="rope", yields=True),
            help="Same as --use-rotary-position-embeddings.",
        ),
        value(
            "--num-mtp-predictor",
            int,
            Field("model_config.mtp_num_layers"),
            dest="mtp_num_layers",
            help="Same as --mtp-num-layers.",
        ),
        value(
            "--shared-moe-ffn-hidden-size",
            int,
            Field("moe_config.moe_shared_expert_intermediate_size"),
            dest="moe_shared_expert_intermediate_size",
            help="Same as --moe-shared-expert-intermediate-size.",
        ),
        value(
            "--num-shared-experts",
            int,
            Field("moe_config.moe_shared_expert_intermediate_size", by_rule=True),
            dest="n_shared_experts",
            help="Same as --n-shared-experts.",
        ),
        on(
            "--shared-expert-gate",
            Field("moe_config.moe_shared_expert_gate"),
            dest="moe_shared_expert_gate",
            help="Same as --moe-shared-expert-gate.",
        ),
        on(
            "--topk-softmax-in-fp32",
            Field("moe_config.moe_router_dtype", means="fp32", yields=True),
            help="Same as --moe-router-dtype fp32.",
        ),
        on(
            "--use-glm-rope",
            Field("model_config.rotary_interleaved"),
            dest="rotary_interleaved",
            help="Same as --rotary-interleaved, as GLM turns its heads.",
        ),
        value(
            "--full-attention-interval",
            int,
            Field(
                "model_config.linear_attention_freq",
                sets={
                    "model_config.experimental_attention_variant": given_means("gated_delta_net"),
                    "model_config.attention_output_gate": given_means(constant=True),
                },
                back=_untold,
            ),
            help="Gated delta net in all but every so-manieth layer, whose attention has an output "
            "gate, as in Qwen3-Next.",
        ),
        value(
            "--long-mscale",
            float,
            Field(f"{_STRETCHING}attention_factor", back=_untold),
            help="Same as --rope-scaling-attention-factor.",
        ),
        value(
            "--short-mscale",
            float,
            Field(f"{_STRETCHING}attention_factor", back=_untold),
            help="Same as --rope-scaling-attention-factor.",
        ),
        value(
            "--mamba-d-conv",
            int,
            Field("model_config.linear_conv_kernel_dim", back=_untold),
            help="Same as --linear-conv-kernel-dim.",
        ),
    ],
)

ROWS: tuple[Flag, ...] = (
    *_NAMES,
    *compact(
        "forks: engine",
        _ENGINE,
        """
--deepspeed
--deepspeed-config|--deepspeed_config str
--deepspeed-mpi
--no-pipeline-parallel
--create-moe-param-group
--memory-centric-tiled-linear
--split-transformers
--scattered-embeddings
--synchronize-each-layer
""",
    ),
    *compact(
        "forks: engine",
        _RECOMPUTE,
        """
--deepspeed-activation-checkpointing
--partition-activations
--contigious-checkpointing
""",
    ),
    *compact(
        "forks: engine",
        _HOST,
        """
--checkpoint-in-cpu
--cpu-optimizer
--cpu-offloading
--optimizer-offload-policy str
""",
    ),
    *compact(
        "forks: engine",
        _KERNELS,
        """
--use-flash-attn-v1
--use-flash-attn-v2
--use-flash-attn-triton
--use-flash-attn-builder
--fused-padded-mla-attention
--enable-linear-qkv switch
--use-fused-lightning-indexer-loss
--use-sparse-flash-attn
--longrope-freqs-type str=mul
--moe-router-aux-loss-fusion switch
--abort-on-unmet-fused-kernel-constraints
""",
    ),
    *compact(
        "forks: layers",
        NoEffect(
            "scores of experts stay in fp32 from the logits to the weights of what experts give, "
            "as with this flag"
        ),
        "--moe-revert-type-after-topk",
    ),
    *compact(
        "forks: layers",
        NoEffect(
            "rows of the table are copied as they are, and their gradients summed in fp32 anyway"
        ),
        "--embedding-weights-in-fp32",
    ),
    *compact(
        "forks: layers",
        NoEffect("weights present on several ranks get the same gradients and stay equal"),
        "--sync-tp-duplicated-parameters",
    ),
    *compact(
        "forks: layers",
        NoEffect(
            "the optimizer holds weights of norms in fp32, and norms are computed in fp32; the "
            "copy that is multiplied with is rounded to the type of the model, once in a step"
        ),
        """
--rmsnorm-weight-in-fp32
--init-norm-weight-in-fp32
""",
    ),
    *compact(
        "forks: layers",
        NoEffect(
            "MindSpeed stretches positions by it for sequences beyond --max-position-embeddings, "
            "and none are that long: --seq-length is at most as large"
        ),
        "--dynamic-factor float=1.0",
    ),
    *compact(
        "forks: layers",
        NoEffect("the number of layers or experts, or their width, says it"),
        """
--use-multi-token-prediction
--enable-shared-expert
""",
    ),
    *compact(
        "forks: checkpoints",
        NoEffect("a checkpoint is loaded in every layout"),
        "--universal-checkpoint",
    ),
    *compact(
        "forks: tokenizer",
        _FOLDER,
        """
--patch-tokenizer-type str
--model-name str
""",
    ),
    *compact(
        "forks: data",
        _DATA,
        """
--dataset str
--max-padding-length int
""",
    ),
    *compact(
        "forks: tracking",
        NoEffect("the log line and --tensorboard-dir hold the figures"),
        """
--codecarbon-dir str
--wandb-logger
""",
    ),
    *compact(
        "forks: tracking",
        Field("training_config.log_optimizer_states_to_tensorboard"),
        "--log-optimizer-states-to-tensorboard",
    ),
    *compact(
        "refused: forks, training",
        _CURRICULUM,
        """
--curriculum-learning-legacy
--random-ltd
""",
    ),
    *compact(
        "refused: forks, training",
        Refused("steps are named one by one", "use --iterations-to-skip"),
        "--skip-train-iteration-range str+",
    ),
    *compact(
        "refused: forks, training",
        Refused("states of the optimizer have 16 or 32 bits", "use --exp-avg-dtype"),
        "--use-bnb-optimizer",
    ),
    *compact(
        "refused: forks, data",
        _CHATS,
        """
--train-mode str=pretrain !pretrain
--data-type str=gpt !gpt
""",
    ),
    *compact(
        "refused: forks, experts",
        Refused("the limit of tokens has no other value than in training", "leave it out"),
        """
--moe-eval-capacity-factor float=1.0 !1.0
--moe-min-capacity int=4 !0,1,4
""",
    ),
    *compact(
        "refused: forks, layers",
        _NO_LAYER,
        """
--mlp-type str=standard !standard
--cla-share-factor int=1 !1
--share-kvstates
--add-output-layer-bias
--num-zero-experts int=0 !0
--enable-mla-scale-q-lora
--enable-mla-scale-kv-lora
--mamba-expand int=1 !1
--attention-sink-k int=0 !0
--parallel-attn
--parallel-layernorm
--enable-mhc
--kv-compress
--use-g2-attention
--attention-residuals
--n-hash-layers int=0 !0
""",
    ),
    *compact(
        "refused: forks, adapters",
        Refused("adapters are not trained in two rates or on 4-bit weights", "use --use-lora"),
        """
--qlora
--lu-lora-final-layer-index int
--lu-lora-lr float
--lu-lora-lr-ratio float
""",
    ),
    *compact(
        "forks: other layers",
        NoEffect("only read with --enable-dsa-indexer, or with layers of kinds that are refused"),
        """
--index-topk int
--index-n-heads int
--index-head-dim int
--indexer-loss-coeff float
--hc-mult int
--norm-eps float
--use-triton-sinkhorn
--use-triton-mhc
--use-triton-rmsnorm-without-weight
--o-lora-rank int
--o-groups int
--g2-window-size int
--rope-head-dim int
--original-seq-len int
--rope-factor float
--compress-rope-theta float
--max-batch-size int
--compress-ratios int+
--use-g2-indexer-loss
--csa-window-size int
--csa-compress-ratio-for-c int
--csa-compress-ratio-for-h int
--csa-compress-rotary-base float
""",
    ),
)
"""Every one of them."""
