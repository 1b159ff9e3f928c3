# SPDX-License-Identifier: Apache-2.0
"""Words of further launch scripts: ROCm's Megatron-LM, FlagScale, Megatron-LLM, MindSpeed-LLM.

Source: the flags of these projects (behaviour).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import (
    UNSET,
    EntryPoint,
    Field,
    Flag,
    NoEffect,
    Refused,
    asked_means,
    given_means,
    in_group,
    on,
    value,
)

_SPECS = "mindspeed_llm.tasks.models.spec."
_HETERO = NoEffect("only read with --enable-hetero, which is refused")


def _untold(*_: Any) -> Any:
    """Read back, the field speaks through the flag of its own name."""
    return UNSET


def _is_spec(family: str, given: Any) -> bool:
    return bool(given.spec) and given.spec[0] == f"{_SPECS}{family}_spec"


def _whole_vectors(stated: Any, given: Any) -> Any:
    """MiniMax's layers normalize the queries of all heads as one vector."""
    return True if given.qk_layernorm and _is_spec("minimax", given) else stated


def _latents(stated: Any, given: Any) -> Any:
    """PLM's layers normalize the latent vector of keys and values, whatever the flag says."""
    return True if _is_spec("plm", given) else stated


def place_adapters(values: dict[str, Any]) -> None:
    """Load adapters over the weights that --load names, as MindSpeed-LLM does."""
    if values["lora_load"] and not values["scale_down"]:
        values["base_model_name_or_path"] = values["load"]
        values["load"] = values["lora_load"]


def gated_width(hidden_size: int, multiple: int, factor: float | None) -> int:
    """Return the width of a gated feed-forward block as FlagScale rounds it.

    >>> gated_width(4096, 256, None)
    11008
    """
    width = int(4 * hidden_size * 2 / 3)
    if factor:
        width = int(width * factor)
    return -(-width // multiple) * multiple


def _has_adapters(stated: Any, given: Any) -> Any:
    """MindSpeed-LLM has no switch: naming layers asks for adapters."""
    return True if given.lora_target_modules and not given.yaml else stated


def _width(stated: Any, given: Any) -> Any:
    if stated is UNSET and given.multiple_of and given.swiglu and given.hidden_size:
        return gated_width(given.hidden_size, given.multiple_of, given.hidden_dim_multiplier)
    return stated


MORE_RULES: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "model_config.qk_layernorm_full": _whole_vectors,
        "model_config.qk_layernorm": _latents,
        "model_config.ffn_hidden_size": _width,
        "lora_config.use_lora": _has_adapters,
    }
)
"""Field -> its rule, which gets what flags state about it, and all arguments."""

_NAMES = in_group(
    "names of forks",
    [
        value(
            "--multiple-of",
            int,
            Field("model_config.ffn_hidden_size", by_rule=True),
            small=None,
            help="With --swiglu and without --ffn-hidden-size: 8/3 of --hidden-size, rounded up to "
            "a multiple of this.",
        ),
        value(
            "--hidden-dim-multiplier",
            float,
            Field("model_config.ffn_hidden_size", by_rule=True),
            small=None,
            help="Factor on the width that --multiple-of rounds.",
        ),
        on(
            "--o2-optimizer",
            Field(
                "optimizer_config.exp_avg_dtype",
                means=asked_means("bfloat16"),
                sets={
                    "optimizer_config.exp_avg_sq_dtype": asked_means("bfloat16"),
                    "optimizer_config.use_precision_aware_optimizer": asked_means(constant=True),
                },
                back=_untold,
            ),
            help="Same as --use-precision-aware-optimizer with --exp-avg-dtype bf16 and "
            "--exp-avg-sq-dtype bf16.",
        ),
        on(
            "--o2-gradient",
            Field("training_config.accumulate_allreduce_grads_in_fp32", by_rule=True),
            dest="grad_reduce_in_bf16",
            help="Same as --grad-reduce-in-bf16.",
        ),
        on(
            "--qk-layernorm-hidden-dim",
            Field("model_config.qk_layernorm_full"),
            help="With --qk-layernorm: normalize the queries of all heads as one vector.",
        ),
        value(
            "--peft-type",
            str,
            Field("lora_config.use_lora", means=given_means(constant=True), back=_untold),
            choices=("lora",),
            help="lora: same as --use-lora.",
        ),
        value(
            "--lora-load",
            str,
            EntryPoint("Folder of adapters that go on; --load then names the frozen weights."),
            small=None,
        ),
        value(
            "--rotary-position-embeddings-theta",
            float,
            Field("model_config.rotary_base"),
            10000,
            dest="rotary_base",
            help="Same as --rotary-base.",
        ),
        value(
            "--profile-dir",
            str,
            Field("training_config.profile_save_path"),
            dest="profile_save_path",
            help="Same as --profile-save-path.",
        ),
        value(
            "--topk",
            int,
            Field("moe_config.moe_router_topk"),
            2,
            dest="moe_router_topk",
            help="Same as --moe-router-topk.",
        ),
        on(
            "--disable-moe-token-dropping",
            Field("moe_config.moe_expert_capacity_factor", by_rule=True),
            help="With --moe-model-type deepspeed_moe: experts take every token.",
        ),
    ],
)

_FLAGSCALE = (
    *compact(
        "forks: engine",
        NoEffect("kernels are chosen at start, and these compute the same"),
        """
--te-fl-prefer str=vendor
--te-fl-per-op str
--te-fl-allow-vendors str
--te-fl-deny-vendors str
--enable-flag-gems
--flag-gems-log-path str
--flag-gems-unused str*
--use-partial-reduce-for-shared-embedding
--use-unpad
--triangle-attn
--qknorm-impl str
--use-packed-seq-params
--ds-sequence-parallel-fpdt
--ds-sequence-parallel-fpdt-chunk-size int=65536
--ds-sequence-parallel-fpdt-offloading
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("micro-batches pass in the order of 1F1B or interleaved, with the same result"),
        "--use-dualpipev",
    ),
    *compact(
        "forks: engine",
        NoEffect("--recompute-granularity says what every stage recomputes in every micro-batch"),
        """
--recompute-granularity-per-stage-micro-batch str*
--recompute-method-per-stage-micro-batch str*
--recompute-num-layers-per-stage-micro-batch str*
--recompute-granularity-per-stage int*
--recompute-method-per-stage int*
--recompute-num-layers-per-stage int*
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("--dry-run and --suggest search for layouts here"),
        "--auto-tune",
    ),
    *compact(
        "forks: adapters",
        NoEffect(
            "adapters begin as those of peft: one factor by Kaiming's rule, the other at zero"
        ),
        """
--lora-in-init-method str=xavier
--lora-out-init-method str=zero
""",
    ),
    *compact(
        "refused: forks, adapters",
        Refused("dropout comes before an adapter", "use --lora-dropout alone"),
        "--lora-dropout-position str=pre !pre",
    ),
    *compact(
        "refused: forks, training",
        Refused("steps are named one by one", "use --iterations-to-skip"),
        """
--skip-samples-range int+
--skip-iters-range int+
--auto-skip-spiky-loss
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("only read with --auto-skip-spiky-loss, which is refused"),
        "--spiky-loss-threshold float=0.2",
    ),
    *compact(
        "forks: engine",
        NoEffect("only read with a schedule of Stable LM 2, which --lr-decay-style has not"),
        """
--lr-decay-stablelm2-cosine-samples int=0
--lr-decay-stablelm2-cosine-max-lr float
--lr-decay-stablelm2-cosine-period-samples int=0
--lr-decay-stablelm2-rsqrt-samples int=0
--lr-decay-stablelm2-decay-samples int=0
--lr-decay-stablelm2-alpha float=1.0
--lr-decay-stablelm2-beta float=0.0
""",
    ),
    *compact(
        "refused: forks, data",
        Refused(
            "further validation sets have a flag of Megatron's", "use --multiple-validation-sets"
        ),
        """
--extra-valid-data-path str*
--extra-eval-interval int
""",
    ),
    *compact(
        "refused: forks, layers",
        Refused("norms start at one", "leave it out"),
        "--norm-init-weight float=1.0 !1.0",
    ),
    *compact(
        "refused: forks, layers",
        Refused("heads are turned in halves, or interleaved", "use --rotary-interleaved"),
        "--rotary-interleaved-patch",
    ),
    *compact(
        "refused: forks, layers",
        Refused("this activation function is not available", "use --swiglu or --squared-relu"),
        "--xielu",
    ),
    *compact(
        "refused: forks, training",
        Refused("updates of Muon are scaled by --muon-scale-mode", "use it"),
        "--muon-matched-adamw-rms float",
    ),
    *compact(
        "refused: forks, data",
        Refused("every token of a text counts in the loss", "train without it"),
        "--goldfish-loss",
    ),
    *compact(
        "refused: forks, data",
        Refused("chats come from JSON lines", "use --sft"),
        """
--ap-sft
--apply-sft-dataset-separated-loss-mask-if-existed
--finetune-dataset-type str
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("only read with --goldfish-loss, --ap-sft or --xielu, which are refused"),
        """
--goldfish-k int=50
--goldfish-h int=50
--ap-sft-mask-special-tokens
--ap-sft-pack-samples
--ap-sft-packing-strategy str
--ap-sft-truncate-right
--weight-decay-on-xielu-alphas
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("only read with --optimizer ademamix, which is not available"),
        """
--ademamix-alpha float
--ademamix-beta3 float
--ademamix-beta3-warmup int
--ademamix-alpha-warmup int
""",
    ),
    *compact(
        "refused: forks, layers",
        Refused("memories of n-grams are not available", "use the flags of a plain GPT layer"),
        "--use-engram",
    ),
    *compact(
        "refused: data",
        Refused("made-up sequences all have --seq-length", "use --mock-data alone"),
        """
--use-varlen-dataset
--varlen-mock-dataset-config-json str
""",
    ),
    *compact(
        "refused: parallel layout",
        Refused("ranks are not laid out in this way", "use --context-parallel-size alone"),
        """
--dynamic-context-parallel
--min-dynamic-context-parallel-size int=1 !1
--sequence-packing-scheduler str
""",
    ),
    *compact(
        "refused: other models",
        Refused("models of images and text are not available", "train a GPT"),
        """
--vision-model-type str
--language-model-type str
--allow-missing-vision-projection-checkpoint
--freeze-LM
--freeze-ViT
--prompt-path str
--dataset-config str
""",
    ),
)
"""Those of FlagScale, of Apertus' Megatron-LM, and of newer Megatron-LM's examples."""

_DEVICES = (
    *compact(
        "forks: launching",
        NoEffect("a rank's number and its host come from the launcher's environment"),
        """
--rank int=0
--dist-url str
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("kernels are chosen at start, and these compute the same"),
        """
--use-torch-compile str
--use-fused-sdpa str
--use-fused-sdpa-with-recompute str
--cache-fp8-weight str
--cache-fp8-weight-fwd str
--enable-expert-tensor-parallelism
""",
    ),
    *compact(
        "refused: forks, experts",
        Refused(
            "experts take as many tokens as come, or a number by a factor",
            "use --moe-expert-capacity-factor",
        ),
        "--moe-num-capacity-bins int=0 !0",
    ),
    *compact(
        "forks: engine",
        NoEffect("only read with --moe-num-capacity-bins, which is refused"),
        """
--moe-capacity-bins-exp-base float=1.5
--moe-capacity-bins-alignment int=64
--moe-capacity-bins-optimize-interval int=300
--moe-capacity-bins-optimize-max-group int=4
--moe-capacity-bins-max-overhead-factor float=0.0
""",
    ),
    *compact(
        "forks: profiling",
        NoEffect("profiles are those of MindSpore: --profile writes them"),
        "--use-hip-profiler",
    ),
    *compact(
        "forks: tracking",
        NoEffect("--log-throughput logs how much a device computes; --wandb-project tracks a run"),
        """
--use-wandb
--log-mfu
--theoretical-device-tflops float
--log-ai-core-utilization
--ai-core-utilization-sampling-interval float
""",
    ),
    *compact(
        "forks: checkpoints",
        NoEffect("--verify-integrity checks a checkpoint as it is read"),
        "--verify-checkpoint",
    ),
    *compact(
        "refused: forks, checkpoints",
        Refused("steps of checkpoints have numbers", "use --ckpt-step"),
        "--load-tag str",
    ),
    *compact(
        "forks: engine",
        NoEffect("only read with --optimizer dion, which is not available"),
        """
--dion-momentum float
--dion-rank-fraction float
--dion-scalar-optimizer str
--dion-beta1 float
--dion-beta2 float
""",
    ),
    *compact(
        "refused: forks, parallel layout",
        Refused("parameters are sharded over all data-parallel ranks", "use --use-megatron-fsdp"),
        "--fully-shard-model-parallel-size int=1 !1",
    ),
    *compact(
        "refused: forks, training",
        Refused("the losses of further tokens keep their weight", "use --mtp-loss-scaling-factor"),
        """
--mtp-loss-scaling-factor-decay float
--mtp-loss-scaling-factor-decay-start int
""",
    ),
)
"""Those of Megatron for Gaudi and DCU, of ScienceLLM, and of an engram's and Dion's forks."""

ROWS: tuple[Flag, ...] = (
    *_NAMES,
    *_FLAGSCALE,
    *_DEVICES,
    *compact(
        "forks: engine",
        NoEffect("chunks of a pipeline send while others compute, as the schedule has it"),
        """
--combined-1f1b
--combined-1f1b-recipe str
--split-bw
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("tokens travel to their experts by the collectives of the device"),
        """
--moe-enable-mori
--moe-mori-max-tokens-per-rank int
""",
    ),
    *compact(
        "forks: engine",
        NoEffect("gradients lie in one buffer per type in every run"),
        "--use-contiguous-parameters-in-local-ddp",
    ),
    *compact(
        "forks: engine",
        NoEffect("--recompute-granularity says what is recomputed"),
        """
--auto-recompute-device-size int=-1
--auto-recompute-profiling-step int=10
""",
    ),
    *compact(
        "forks: tracking",
        NoEffect("wandb reads WANDB_MODE, WANDB_API_KEY and its other variables by itself"),
        """
--wandb-id str
--wandb-mode str
--wandb-log-model
--wandb-resume
--wandb-api-key str
""",
    ),
    *compact(
        "forks: data",
        NoEffect("every host reads the data and writes the checkpoint it needs"),
        "--no-shared-fs switch",
    ),
    *compact(
        "forks: engine",
        NoEffect("runs are trainings"),
        "--training-phase str=pretrain",
    ),
    *compact(
        "refused: forks, data",
        Refused(
            "further tokens of a vocabulary have numbers, not names",
            "use --vocab-extra-ids N, or a tokenizer that has them",
        ),
        "--vocab-extra-ids-list str",
    ),
    *compact(
        "refused: forks, training",
        Refused("hosts of different kinds do not train one model", "use hosts of one kind"),
        "--enable-hetero",
    ),
    *compact(
        "forks: engine",
        _HETERO,
        """
--hetero-mode str
--hetero-device-types str+
--hetero-current-device-type str
--hetero-pipeline-layer-split int+
--hetero-process-meshes int+
--hetero-use-cpu-communication
--hetero-inter-mesh-embedding-layer-impl str
--expert-tensor-parallel-size-per-process-mesh int*
""",
    ),
)
"""Every one of them."""
