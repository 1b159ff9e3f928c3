# SPDX-License-Identifier: Apache-2.0
"""Flags that other programs of Megatron and MindSpeed read, or that only add diagnostics.

Training a GPT does not look at them: accepted without effect, as Megatron's own ``pretrain_gpt``
ignores most of them.
"""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import Flag, NoEffect

_GENERATION = NoEffect("only text generation reads it, not training")
_OTHER_MODELS = NoEffect("only BERT, T5, vision and retrieval models read it, not GPT")
_STATE_SPACE = NoEffect("only read with --hybrid-layer-pattern, which is refused")
_FAULTS = NoEffect(
    "a failed job ends at once and names the rank; start it again from its newest checkpoint"
)
_DIAGNOSTICS = NoEffect("this diagnostic is not printed; the log line and --profile hold the rest")
_TRACKING = NoEffect("figures are not sent to this tracking service; the log line holds them")
_CLUSTER = NoEffect("a service of NVIDIA's own clusters")
_INJECTED = NoEffect("faults are not injected on purpose")
_TOOLS = NoEffect("read by a tool of MindSpeed, not by training")
_SEARCH = NoEffect("--dry-run and --suggest search for layouts here")
_RL = NoEffect("only read with --perform-rl-step, which is refused")
_DISTILLATION = NoEffect("only read with --logits-load-dir or --logits-save-dir, which are refused")
_ATTENTION = NoEffect(
    "only read with --experimental-attention-variant or --enable-mhc-connections, which are refused"
)

ROWS: tuple[Flag, ...] = (
    *compact(
        "text generation",
        _GENERATION,
        """
--decode-only-cuda-graphs
--enable-chunked-prefill
--disable-chunked-prefill
--cache-mla-latents
--inference-batch-times-seqlen-threshold int=-1
--inference-coordinator-port int
--inference-cuda-graph-all-prefills
--inference-cuda-graph-max-tokens int=512
--inference-cuda-graph-scope str
--inference-disable-ep-consensus switch
--inference-disable-triton-nvls-kernels
--inference-dynamic-batching
--inference-dynamic-batching-async-sched-mode str=legacy
--inference-dynamic-batching-block-size int=256
--inference-dynamic-batching-buffer-guaranteed-fraction float=0.2
--inference-dynamic-batching-buffer-overflow-factor float
--inference-dynamic-batching-buffer-size-gb float=40.0
--inference-dynamic-batching-cuda-graph-max-tokens int=16384
--inference-dynamic-batching-cuda-graph-mixed-prefill-count int=16
--inference-dynamic-batching-cuda-graph-sizing-distribution str=exponential
--inference-dynamic-batching-logprobs-mode str=raw_logprobs
--inference-dynamic-batching-mamba-memory-ratio float
--inference-dynamic-batching-max-requests int
--inference-dynamic-batching-max-requests-override int
--inference-dynamic-batching-max-tokens int
--inference-dynamic-batching-max-tokens-override int
--inference-dynamic-batching-num-cuda-graphs int=16
--inference-dynamic-batching-paused-buffer-size-gb float
--inference-dynamic-batching-prefix-caching switch >inference_dynamic_batching_enable_prefix_caching
--inference-dynamic-batching-prefix-caching-coordinator-policy str=load_balanced
--inference-dynamic-batching-prefix-caching-eviction-policy str=ref_zero
--inference-dynamic-batching-prefix-caching-mamba-gb float
--inference-dynamic-batching-prefix-caching-routing-alpha float=0.5
--inference-dynamic-batching-sampling-backend str=torch
--inference-dynamic-batching-track-generated-token-events
--inference-dynamic-batching-track-paused-request-events
--inference-dynamic-batching-unified-memory-level int=0
--inference-fuse-tp-communication
--inference-grouped-gemm-backend str=vllm
--inference-logging-step-interval int=0
--inference-max-batch-size int
--inference-max-requests int=8
--inference-max-seq-length int=2560
--inference-moe-disable-fused-quant-kernels
--inference-moe-token-dispatcher-type str=nvls
--inference-shards str
--inference-text-gen-server-logging switch
--inference-use-synchronous-zmq-collectives switch
--inference-wandb-logging switch
--mamba-inference-conv-states-dtype str=bf16
--mamba-inference-ssm-states-dtype str=bf16
--max-tokens-to-oom int=12000
--num-speculative-tokens int=0
--use-legacy-static-engine
--use-same-sampling-seed-across-dp-ranks off >offset_sampling_seed_by_dp_rank
""",
    ),
    *compact(
        "other models",
        _OTHER_MODELS,
        """
--bert-embedder-type str=megatron
--bert-load str
--bert-no-binary-head off >bert_binary_head
--output-bert-embeddings
--biencoder-projection-dim int=0
--biencoder-shared-query-context-model
--block-data-path str
--embedding-path str
--evidence-data-path str
--ict-head-size int
--ict-load str
--indexer-batch-size int=128
--indexer-log-interval int=1000
--query-in-block-prob float=0.1
--retriever-report-topk-accuracies int+
--retriever-score-scaling
--retriever-seq-length int=256
--titles-data-path str
--use-one-sent-docs
--mask-prob float=0.15
--short-seq-prob float=0.1
--decoder-seq-length int
--relative-attention-max-distance int=128
--relative-attention-num-buckets int=32
--mrope-section int+
--classes-fraction float=1.0
--data-per-class-fraction float=1.0
--dino-bottleneck-size int=256
--dino-freeze-last-layer float=1
--dino-head-hidden-size int=2048
--dino-local-crops-number int=10
--dino-local-img-size int=96
--dino-norm-last-layer
--dino-teacher-temp float=0.07
--dino-warmup-teacher-temp float=0.04
--dino-warmup-teacher-temp-epochs int=30
--head-lr-mult float=1.0
--img-dim int=224
--img-h int=224
--img-w int=224
--iter-per-epoch int=1250
--mask-factor float=1.0
--mask-type str=random
--num-channels int=3
--num-classes int=1000
--patch-dim int=16
--swin-backbone-type str=tiny
--vision-backbone-type str=vit
--vision-pretraining-type str=classify
--retro-attention-gate float=1
--retro-cyclic-train-iters int
--retro-encoder-attention-dropout float=0.1
--retro-encoder-hidden-dropout float=0.1
--retro-encoder-layers int=2
--retro-no-verify-neighbor-count off >retro_verify_neighbor_count
--retro-num-neighbors int=2
--retro-num-retrieved-chunks int=2
--retro-project-dir str
--retro-return-doc-ids
--retro-workdir str
""",
    ),
    *compact(
        "other models",
        _STATE_SPACE,
        """
--mamba-head-dim int=64
--mamba-num-groups int=8
--mamba-num-heads int
--mamba-state-dim int=128
--mamba-training-ssm-states-dtype str
--disable-mamba-mem-eff-path off >use_mamba_mem_eff_path
--gdp-cutedsl-kernel
--gdp-num-chunk-states-to-recompute int=2
--gdp-num-householder int=3
--mtp-hybrid-override-pattern str
""",
    ),
    *compact(
        "other models",
        _ATTENTION,
        """
--dsa-indexer-head-dim int
--dsa-indexer-k-norm-epsilon float
--dsa-indexer-k-norm-fp32
--dsa-indexer-loss-coeff float
--dsa-indexer-n-heads int
--dsa-indexer-rope-interleaved
--dsa-indexer-skip-topk-offset int=0
--dsa-indexer-topk int
--dsa-indexer-topk-freq int=1
--dsa-indexer-use-sparse-loss
--dsa-kernel-backend str=none
--dsa-indexer-rotate-activation negative
--dsa-indexer-scoring-relu negative
--use-dsa-absorb
--use-fused-lightning-indexer
--use-fused-lightning-indexer-kl-loss
--use-fused-sparse-flash-attention
--linear-attention-freq list
--linear-conv-kernel-dim int=4
--linear-key-head-dim int=128
--linear-num-key-heads int=16
--linear-num-value-heads int=32
--linear-value-head-dim int=128
--mhc-init-gating-factor float=0.01
--mhc-num-residual-streams int=4
--mhc-recompute-layer-num int
--mhc-sinkhorn-iterations int=20
""",
    ),
    *compact(
        "other models",
        NoEffect("--hidden-size over --mup-base-hidden-size is the width"),
        "--mup-width-mult float=1.0",
    ),
    *compact(
        "reinforcement learning",
        _RL,
        """
--grpo-clamp-eps-lower float=0.01
--grpo-clamp-eps-upper float=0.01
--grpo-entropy-term-weight float=0.0
--grpo-filter-groups-with-same-reward
--grpo-group-size int=2
--grpo-iterations int=2
--grpo-kl-beta float=0.001
--grpo-prompts-per-step int=32
--langrl-env-config str
--langrl-external-server switch
--langrl-inference-server-conversation-template str
--langrl-inference-server-type str=inplace_megatron
--refit-method str=gloo
--rl-consumption-granularity str=B
--rl-default-temperature float=1.0
--rl-default-top-k int=-1
--rl-default-top-p float=0
--rl-durable-rollout-bank
--rl-generation-lag float
--rl-importance-sampling-truncation-coef float
--rl-inference-expert-model-parallel-size int
--rl-inference-expert-tensor-model-parallel-size int
--rl-inference-logprobs-is-correction switch
--rl-inference-model-unified-memory-level int=0
--rl-inference-parsers str*
--rl-inference-pipeline-model-parallel-size int
--rl-inference-tensor-model-parallel-size int
--rl-kv-cache-management-mode str=persist
--rl-max-inflight-requests int
--rl-offload-inference-model-weights-when-idle switch
--rl-offload-kv-cache-during-training switch
--rl-offload-optimizer-during-inference
--rl-parallel-generation-tasks int=512
--rl-partial-rollouts switch
--rl-persist-cuda-graphs switch
--rl-profile
--rl-profile-dir str
--rl-prompts-per-eval int=32
--rl-remove-kv-cache-during-training switch
--rl-reset-cuda-graphs switch
--rl-rollout-bank-dir str
--rl-rollout-bank-max-bytes int=0
--rl-sequence-packing-algo str=fifo
--rl-sequence-packing-max-sequences-per-bin int=50
--rl-skip-bos-token switch
--rl-submission-granularity str=B
--rl-training-cuda-graphs switch
--rl-use-sequence-packing switch
--rl-verify-model-weights-swap switch
""",
    ),
    *compact(
        "distillation",
        _DISTILLATION,
        """
--logits-load-decode-threads int=4
--logits-load-ignore-errors
--logits-load-kd-loss-alpha float=1.0
--logits-load-msc-prefetch-depth int=2
--logits-load-prefetch-factor int=3
--logits-save-dtype str=fp16
--logits-save-top-k int
--logits-save-top-p float
--logits-save-top-p-min-k int=1
--kl-loss-reduction str=mean
--kl-loss-weight float=1.0
--kl-temperature float=1.0
--no-qad-enable off=false >qad_enable
--qad-teacher-load str
""",
    ),
    *compact(
        "optimizers",
        NoEffect("products of a matrix with itself have no kernel of their own"),
        "--muon-use-syrk",
    ),
    *compact(
        "optimizers",
        NoEffect("only read with --optimizer-selection fused_ema_adamw, which is refused"),
        "--ema-decay float=0.9999",
    ),
    *compact(
        "faults",
        _FAULTS,
        """
--enable-ft-package
--calc-ft-timeouts
--ft-num-warmup-iters int=5
--inprocess-restart
--inprocess-active-world-size int=1
--inprocess-barrier-timeout float=120
--inprocess-completion-timeout float=120
--inprocess-empty-cuda-cache
--inprocess-granularity str=node
--inprocess-hard-timeout float=90
--inprocess-heartbeat-interval float=30
--inprocess-heartbeat-timeout float=60
--inprocess-last-call-wait float=1
--inprocess-max-iterations int
--inprocess-monitor-process-interval float=1.0
--inprocess-monitor-thread-interval float=1.0
--inprocess-progress-watchdog-interval float=1.0
--inprocess-soft-timeout float=60
--inprocess-termination-grace-time float=1
--enable-high-availability
--ttp-enabled
--ttp-dump-dir str=ttp_dump
--ttp-dump-timeout-seconds int=60
--ttp-heartbeat-interval-ms int=1000
--ttp-heartbeat-timeout-ms int=3000
--ttp-max-dump-ckpt-to-keep int=1
--ttp-max-missed-count int=3
--ttp-save-optimizer on=true
--ttp-save-rng on=true
--ttp-server-ip str=0.0.0.0
--ttp-server-port int=29500
--ttp-wait-dump-file-timeout int=60
""",
    ),
    *compact(
        "faults",
        _INJECTED,
        """
--error-injection-rate int=0
--error-injection-type str=transient_error
--result-rejected-tracker-filename str
--fault-injector-delay-start-iteration int
--fault-injector-fault-delay float
--fault-injector-fault-probabilities str
--fault-injector-fault-types str
--fault-injector-mtti-seconds float
--fault-injector-num-ranks int
--fault-injector-offset-seconds float
--fault-injector-ranks str
--fault-injector-seed int
""",
    ),
    *compact(
        "diagnostics",
        _DIAGNOSTICS,
        """
--config-logger-dir str
--dump-param-to-param-group-map str
--gpu-sniff-test-interval int
--train-sync-interval int
--log-device-memory-used
--log-energy
--moe-enable-routing-replay
--moe-routing-trace-capture-hidden-states
--moe-routing-trace-capture-logits
--moe-routing-trace-dump-weights
--moe-routing-trace-max-training-iters int
--moe-routing-trace-path str
--run-workload-inspector-server
--nvtx-ranges
--memory-snapshot-path str=snapshot.pickle
--record-memory-history
--record-shapes
--pytorch-profiler-collect-callstack
--pytorch-profiler-collect-chakra
--pytorch-profiler-collect-shapes
--profile-record-shapes
--profile-with-cpu
--npu-datadump
--additional-config str
""",
    ),
    *compact(
        "tracking services",
        _TRACKING,
        """
--app-tag-run-name str
--app-tag-run-version str=0.0.0
--enable-one-logger on=true
--no-one-logger off >enable_one_logger
--one-logger-async
--one-logger-entity str=hwinf_dcm
--one-logger-project str=megatron-lm
--one-logger-run-name str
--otel-enabled
--otel-service-name str
--otel-span-groups str
""",
    ),
    *compact(
        "cluster services",
        _CLUSTER,
        """
--adlr-autoresume
--adlr-autoresume-interval int=1000
""",
    ),
    *compact(
        "tools of MindSpeed",
        _TOOLS,
        """
--ai-framework|--ai-franmework str=pytorch
--ema_model
--for_release
--input_folder str
--output_folder str
--patch
--prefix str=predictor
--reverse
--target_pp int=1
--target_tp int=1
""",
    ),
    *compact(
        "tools of MindSpeed",
        _SEARCH,
        """
--auto-settings
--auto-settings-log-level str=info
--auto-settings-ranks int=8
--auto-settings-type str=white
--auto-settings-work-dir str=.
--automated-pipeline
--automated-pipeline-perf
--mbs-idx int
--optimized-mbs-list str
--optimized-mbs-mode off >optimized_mbs_mode
--pp-schedule-list str
--prof-file str
--recompute-type int=2
--save-memory-ratio float=0.2
--target-nnodes int=1
""",
    ),
)
