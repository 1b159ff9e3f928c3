"""Older and other spellings of what the rest of the table has; flags of files and checkpoints."""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import Field, Flag, NoEffect, in_group, off, on, value

_RECOMPUTE = Field(
    "model_config.recompute_granularity",
    also=(
        "model_config.recompute_method",
        "model_config.recompute_num_layers",
        "model_config.recompute_modules",
    ),
)
_ZERO = Field("parallel_config.zero_level")
_SHARDED = NoEffect("checkpoints are written per rank and re-sharded on load")
_WHEN_SAVED = NoEffect("checkpoints follow --save-interval only")
_TOKENIZED = NoEffect("text becomes tokens in tools/preprocess_data.py, before training")

OLD = in_group(
    "older spellings",
    [
        value("--encoder-num-layers", int, Field("model_config.num_layers")),
        on(
            "--checkpoint-activations",
            _RECOMPUTE,
            help="Same as --recompute-granularity full --recompute-method uniform.",
        ),
        value(
            "--activations-checkpoint-method",
            str,
            _RECOMPUTE,
            choices=("uniform", "block"),
            help="Same as --recompute-granularity full with this --recompute-method.",
        ),
        value(
            "--checkpoint-num-layers",
            int,
            _RECOMPUTE,
            1,
            aliases=("--activations-checkpoint-num-layers",),
            help="--recompute-num-layers of the two flags above.",
        ),
        on(
            "--recompute-activation-function",
            _RECOMPUTE,
            help="Recompute the activation function of every layer.",
        ),
        on("--recompute-norm", _RECOMPUTE, help="Recompute the norms of every layer."),
        off(
            "--no-query-key-layer-scaling",
            "apply_query_key_layer_scaling",
            Field("model_config.apply_query_key_layer_scaling"),
            default=False,
        ),
        on(
            "--overlap-p2p-communication",
            Field("parallel_config.overlap_p2p_comm"),
            dest="overlap_p2p_comm",
            default=True,
        ),
        off(
            "--no-delay-grad-reduce",
            "delay_grad_reduce",
            Field("training_config.delay_grad_reduce"),
            default=False,
        ),
        on(
            "--grad-reduce-in-bf16",
            Field("training_config.accumulate_allreduce_grads_in_fp32"),
            help="With --bf16, keep and reduce gradients in bfloat16 instead of float32.",
        ),
        on("--npu-deterministic", Field("parallel_config.deterministic_mode")),
        on("--variable-seq-lengths", Field("parallel_config.variable_seq_lengths")),
        value("--sparse-mode", int, Field("model_config.fa_config.sparse_mode"), 0),
        off(
            "--tokenizer-not-use-fast",
            "tokenizer_use_fast",
            Field("dataset_config.tokenizer_use_fast"),
        ),
        on(
            "--verify-integrity",
            Field("training_config.crc_check"),
            help="Same as --resume-crc-check.",
        ),
    ],
)

FULLY_SHARDED = in_group(
    "fully sharded data parallel",
    [
        on(
            "--use-megatron-fsdp",
            _ZERO,
            help="Shard what --data-parallel-sharding-strategy says over the data-parallel ranks.",
        ),
        on("--use-custom-fsdp", _ZERO, help="Same as --use-megatron-fsdp."),
        on("--use-torch-fsdp2", _ZERO, help="Same as --zero-level z3."),
        on("--enable-zero3", _ZERO, help="Same as --zero-level z3."),
        on("--layerzero", _ZERO, help="Same as --zero-level z3."),
        value(
            "--data-parallel-sharding-strategy",
            str,
            _ZERO,
            "optim_grads_params",
            choices=("no_shard", "optim", "optim_grads", "optim_grads_params"),
            help="With --use-megatron-fsdp: nothing, --zero-level z1, z2 or z3.",
        ),
    ],
)

ROWS: tuple[Flag, ...] = (
    *OLD,
    *FULLY_SHARDED,
    *compact(
        "older spellings",
        NoEffect("gradients lie in flat buffers, whichever was asked for"),
        "--DDP-impl str=local",
    ),
    *compact("data", NoEffect("files are mapped when they are first read"), "--mmap-warmup"),
    *compact(
        "training",
        NoEffect("see --manual-gc"),
        "--disable-manual-gc-eval off >manual_gc_eval",
    ),
    *compact(
        "training",
        NoEffect("--exit-signal-handler is the switch of the training process"),
        """
--exit-signal-handler-for-training
--exit-signal-handler-for-dataloader
""",
    ),
    *compact(
        "logging",
        NoEffect("no TensorBoard files are written; the log line holds the figures"),
        "--disable-log-loss-scale-to-tensorboard off >log_loss_scale_to_tensorboard",
    ),
    *compact(
        "checkpointing",
        _SHARDED,
        """
--use-dist-ckpt >use_dist_ckpt_deprecated
--dist-ckpt-format str >dist_ckpt_format_deprecated
--dist-ckpt-workers int=1
--disable-ckpt-fully-parallel-save off >ckpt_fully_parallel_save
--ckpt-fully-parallel-load-exchange-algo str=broadcast
--ckpt-fully-parallel-load-per-rank-objects
--ckpt-fully-parallel-load-process-group str=dp
--ckpt-fully-parallel-save-process-group str=dp
--ckpt-load-validate-sharding-integrity negative
--ckpt-drop-redundant-extra-state
--ckpt-pg-tensors-cache-create
--ckpt-pg-tensors-cache-path str
--distrib-optim-fully-reshardable-mem-efficient
--async-strategy str=nvrx
--async-ckpt-cpu-priority int=10
--async-ckpt-io-priority int=3
--async-ckpt-use-cpu-shm
""",
    ),
    *compact(
        "checkpointing",
        _WHEN_SAVED,
        """
--non-persistent-ckpt-type str
--non-persistent-global-ckpt-dir str
--non-persistent-local-ckpt-algo str=fully_parallel
--non-persistent-local-ckpt-dir str
--non-persistent-save-interval int
--replication
--replication-factor int=2
--replication-jump int
""",
    ),
    *compact(
        "tokenizer",
        _TOKENIZED,
        """
--legacy-tokenizer
--tokenizer-hf-use-fast
--tokenizer-hf-include-special-tokens
--tokenizer-hf-no-include-special-tokens
--tokenizer-metadata str >metadata_path
--save-tokenizer-assets negative
--use-tokenizer-model-from-checkpoint-args negative
""",
    ),
)
