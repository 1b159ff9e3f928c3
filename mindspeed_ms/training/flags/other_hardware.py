# SPDX-License-Identifier: Apache-2.0
"""Flags that steer kernels, memory and communication of other hardware: accepted without effect.

The numbers of a run do not depend on them, except that 8-bit and 4-bit training is done in the type
of ``--bf16``, ``--fp16`` or fp32, which is more precise.
"""

from __future__ import annotations

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import Flag, NoEffect, Refused

_LOW_BITS = NoEffect(
    "8-bit and 4-bit arithmetic needs NVIDIA's libraries; the run computes in its 16- or 32-bit "
    "type"
)
_CUDA_GRAPHS = NoEffect("CUDA only: kernels are not recorded as graphs")
_KERNELS = NoEffect("the kernel of each operation is chosen once at start")
_LIBRARY = NoEffect("CUDA only: it tunes NCCL or the registration of its buffers")
_OVERLAP = NoEffect("a matter of speed: when this work is done is decided by the schedule here")
_HOST_MEMORY = NoEffect("tensors stay on the device; use recomputation to save memory")
_NAMES_GROUPS = NoEffect("all process groups are created at start, with one library")
_SWAP = NoEffect(
    "activations are not moved to host memory: on CPU they are in it, on an NPU they stay; "
    "--recompute-granularity frees them"
)
_STATES = NoEffect(
    "states and weights are in one memory: on CPU in the host's, on an NPU in its own"
)
_SHARDING = NoEffect("--use-megatron-fsdp becomes --zero-level, which has its own buffers")
_LAYOUT = NoEffect("buffers are laid out by the rules of core/distributed")
_TE = NoEffect("a setting of Transformer Engine, which is not used")
_SAME = NoEffect("the result is the same with and without it")

ROWS: tuple[Flag, ...] = (
    *compact(
        "communication",
        NoEffect("gradients lie in flat buffers, whichever was asked for"),
        "--DDP-impl str=local",
    ),
    *compact(
        "low precision",
        _LOW_BITS,
        """
--fp8-format str >fp8
--fp8-hybrid
--fp8-e4m3
--fp8-recipe str=delayed
--fp8-param-gather
--fp8-amax-history-len int=1
--fp8-amax-compute-algo str=most_recent
--fp8-margin int=0
--fp8-interval int=1
--fp8-output-proj
--fp8-quantizer-factory str
--fp8-wgrad negative
--fp4-format str >fp4
--fp4-recipe str=nvfp4
--fp4-param-gather
--fp4-quantizer-factory str
--first-last-layers-bf16
--num-layers-at-start-in-bf16 int=1
--num-layers-at-end-in-bf16 int=1
--keep-fp8-transpose-cache
--keep-fp8-transpose-cache-when-using-custom-fsdp
--reuse-grad-buf-for-mxfp8-param-ag
--fp8-reuse-quantized-weight
--te-precision-config-file str
--te-comparison-with-cpu
--te-comparison-with-bf16
--te-gmm-mode str=compatible
--no-use-gmm-fp8 off >use_gmm_fp8
--moe-dispatch-fwd-dtype str=bf16
--moe-combine-bwd-dtype str=bf16
--moe-router-padding-for-fp8
--moe-router-padding-for-quantization
--quant-states str
--quant-grads
--qat-scheme str
--qat-quant-block-size int
""",
    ),
    *compact(
        "CUDA graphs",
        _CUDA_GRAPHS,
        """
--enable-cuda-graph
--external-cuda-graph
--cuda-graph-impl str=none
--cuda-graph-scope str+ >cuda_graph_scope_deprecated
--cuda-graph-modules str+
--cuda-graph-warmup-steps int=3
--optimizer-cuda-graph
--delay-offload-until-cuda-graph
--moe-pad-experts-for-cuda-graph-inference
""",
    ),
    *compact(
        "kernels",
        _KERNELS,
        """
--flash-attention-version int
--flash-decode
--batch-invariant-mode
--batch-invariant-backend str=te_native
--disable-bf16-reduced-precision-matmul
--disable-jit-fuser
--fused-residual-rmsnorm
--use-te-activation-func
--use-transformer-engine-op-fuser
--use-fused-weighted-squared-relu
--use-grouped-gemm-for-dense-mlp
--use-grouped-gemm-for-shared-expert
--use-kitchen-attention
--kitchen-attention-backend str=sdpa
--mla-down-proj-fusion
--moe-router-fusion
--moe-use-legacy-grouped-gemm
--moe-use-grouped-tensor
--moe-single-grouped-weight
--moe-single-grouped-bias
--moe-mlp-glu-interleave-size int
--moe-shared-expert-glu-interleave-size int
--jit-compile
--use-fusion-attn-v2
--use-fused-ring-attention-update
--use-fused-moe-token-permute-and-unpermute
--gemm-gradient-accumulation-fusion
--megatron-cp-in-bnsd
--attention-mask-on-cpu
--mla-mm-split
--mla-fa-without-pad
--op-cal-tflops
""",
    ),
    *compact(
        "kernels",
        _TE,
        """
--te-rng-tracker
--inference-rng-tracker
--tp-comm-overlap-cfg str
--tp-comm-bootstrap-backend str=nccl
--tp-comm-overlap-ag negative
--tp-comm-overlap-rs negative
--tp-comm-split-ag negative
--tp-comm-split-rs negative
--tp-comm-bulk-dgrad negative
--tp-comm-bulk-wgrad negative
--tp-comm-overlap-rs-dgrad
--enable-msc
--disable-msc >disable_msc_deprecated
""",
    ),
    *compact(
        "communication",
        _LIBRARY,
        """
--use-nccl-ub >nccl_ub
--use-sharp
--sharp-enabled-group str
--symmetric-ar-type str
--nccl-all-reduce-for-prefill
--disable-symmetric-registration
--high-priority-stream-groups str+
--high-priority-a2a-comm-stream
--create-all-gather-group
--use-ring-exchange-p2p
--pipeline-model-parallel-comm-backend str
--gtp-remat-nccl-ub
--gtp-expert-remat-nccl-ub
--flight-recorder-dump-path str
--flight-recorder-include-stack-trace
--flight-recorder-trace-buffer-size int=2000
--flight-recorder-dump-on-timeout negative
--flight-recorder-extra-dump-on-exec negative
--flight-recorder-include-only-active negative
--hccl-group-buffer str
--hccl-group-buffer-adaptive
--hccl-ep-group-buffer-adaptive-factor float=-1.0
--hccl-op-mode str
--hccl-slice-size int=10485760
--aiqos
--aiqos-enable-roce
--aiqos-mode str=auto
--aiqos-schedule str
""",
    ),
    *compact(
        "communication",
        _NAMES_GROUPS,
        """
--lazy-mpu-init toggle
--disable-gloo-process-groups off >use_gloo_process_groups
--disable-gloo-group
--distributed-timeout-seconds-after-init int
--master-addr str=127.0.0.1
--master-port int=29500
--nnodes int=1
--node-rank int=0
--nproc-per-node int=1
""",
    ),
    *compact(
        "overlap",
        _OVERLAP,
        """
--overlap-p2p-communication-warmup-flush >overlap_p2p_comm_warmup_flush
--overlap-moe-expert-parallel-comm
--overlap-dispatch-backward-with-experts-wgrad
--overlap-param-gather-with-optimizer-step
--delay-param-gather
--delay-wgrad-compute
--defer-embedding-wgrad-compute
--wgrad-deferral-limit int=0
--no-contiguous-buffers-in-local-ddp off >use_contiguous_buffers_in_local_ddp
--use-contiguous-buffers-in-ddp
--mlp-chunks-for-prefill int=1
--mlp-chunks-for-training int=1
--moe-alltoall-overlap-comm
--moe-allgather-overlap-comm
--moe-permutation-async-comm
--moe-fb-overlap
--moe-bmm-mc2
--moe-alltoall-mc2
--enable-token-rearrange-opt
--moe-enable-deepep
--moe-flex-dispatcher-backend str=deepep
--moe-flex-dispatcher-num-sms int
--moe-deepep-num-sms int
--moe-hybridep-num-sms int
--moe-hybridep-num-sms-preprocessing int=108
--moe-hybridep-num-blocks-permute int
--moe-hybridep-num-blocks-unpermute int
--moe-hybridep-pad-uneven-dispatch-inputs
--moe-permute-fusion-into-hybridep
--moe-ncclep-zero-copy
--use-ascend-mc2
--use-ascend-coc
--coc-mode int=-1
--coc-parallel-num int=1
--coc-fused-kernel
--use-cp-send-recv-overlap
--use-ulysses-allgather-kv
--optimize-send-recv-comm
--optimize-vpp-send-recv-comm
--async-log-allreduce
--enable-overlap-ag-with-matmul
--enable-overlap-matmul-with-rs
--enable-backward-overlap-ag-with-matmul
--use-pipe-experts
--pipe-experts-multi-data int=1
--pipe-experts-multi-stream
--ampipe-degree int=1
--ampipe-tp-sp-comm-overlap
--dualpipev-dw-detach
--use-nanopipe
--use-nanopipe-swap
--use-nd-matmul
--nd1-dim1-size int=1
--nd2-dim1-size int=1
--balanced-moe-experts
--balanced-moe-hot-expert-num int=3
--trans-hot-expert-group-num int=3
--enable-expert-placement
--enable-fine-grained-expert-placement
--expert-placement-freq int=50
--fine-grained-expert-placement-thre float=0.08
--print-expert-load
""",
    ),
    *compact(
        "memory",
        _HOST_MEMORY,
        """
--fine-grained-activation-offloading
--fine-grained-offloading-max-inflight-offloads int
--offload-modules str+
--activation-offload-fraction float=1.0
--min-offloaded-tensor-size int=1048576
--delta-offload-bytes-across-pp-ranks int=0
--cpu-offloading-num-layers int=0
--cpu-offloading-retain-pinned-cpu-buffers
--ep-overlap-early-attn-memory-release
--distribute-saved-activations
--distribute-checkpointed-activations
--moe-paged-stash
--moe-paged-stash-buffer-size-factor-cpu float=0.0
--moe-paged-stash-buffer-size-factor-cuda float=1.1
--moe-paged-stash-page-size int=64
--gtp-remat-opt-in-modules str+
--moe-zero-memory str=disable
--moe-zero-memory-num-layers int
--moe-unperm2-mem-optim-swap
--moe-adaptive-recompute-activation
--moe-adaptive-recompute-activation-scale float=2.0
--adaptive-memory-optimization
--adaptive-recompute-device-size int=-1
--adaptive-recompute-device-swap
--adaptive-recompute-profiling-step int=10
--compress-activation str
--compress-dense str=disable
--recompute-module-list str
--enable-recompute-layers-per-pp-rank
--recompute-activation-function-num-layers int
--recompute-norm-num-layers int
--recompute-mtp-layer
--recompute-mtp-norm
--context-parallel-cache-interval int=0
--context-parallel-kv-cache-policy str
""",
    ),
    *compact(
        "memory",
        _SWAP,
        """
--swap-attention
--swap-modules str=input_norm,self_attention,post_attention_norm
--swap-layer-input
--smart-swap
""",
    ),
    *compact(
        "memory",
        _STATES,
        """
--optimizer-cpu-offload
--optimizer-offload-fraction float=1.0
--overlap-cpu-optimizer-d2h-h2d
--use-torch-optimizer-for-cpu-offload
--no-pin-cpu-grads off >pin_cpu_grads
--no-pin-cpu-params off >pin_cpu_params
--swap-optimizer
--swap-optimizer-times int=16
--virtual-optimizer str+
--compress-optimizer
""",
    ),
    *compact(
        "fully sharded data parallel",
        _SHARDING,
        """
--megatron-fsdp-version int=1
--megatron-fsdp-main-params-dtype str=fp32
--megatron-fsdp-main-grads-dtype str=auto
--megatron-fsdp-grad-comm-dtype str=auto
--megatron-fsdp-max-pool-double-buffer
--megatron-fsdp-enable-fine-grained-param-gather
--fsdp-double-buffer
--fsdp-manual-registration
--fsdp-db-use-persist-buf-on-alloc-fail
--suggested-communication-unit-size int
--torch-fsdp2-no-reshard-after-forward off >torch_fsdp2_reshard_after_forward
--init-model-with-meta-device
--enable-full-sharding-in-hsdp
--strict-fsdp-dtensor-load negative
""",
    ),
    *compact(
        "fully sharded data parallel",
        _LAYOUT,
        """
--align-grad-reduce negative
--no-align-param-gather off >align_param_gather
--no-gradient-reduce-div-fusion off >gradient_reduce_div_fusion
--no-use-layer-wise-param-layout off >use_layer_wise_param_layout
--param-and-grad-buffer-pad int
--reset-bucket-group-order
--optimization-level int=2
""",
    ),
    *compact(
        "same result",
        Refused(
            "experts in every n-th layer only are stated by Megatron's flag",
            "use a list, for every second layer --moe-layer-freq ([0]+[1])*12",
            harmless=("1",),
        ),
        "--expert-interval int=1",
    ),
    *compact(
        "communication",
        NoEffect(
            "on CPU sums of 16-bit values are always made in fp32 and rounded once; HCCL sums in "
            "its own way"
        ),
        """
--ddp-reduce-scatter-with-fp32-accumulation
--gtp-remat-reduce-scatter-with-fp32-accumulation
""",
    ),
    *compact(
        "same result",
        NoEffect("heads, widths and sequences are cut evenly: a rest is refused by name"),
        "--unaligned-linear",
    ),
    *compact(
        "same result",
        _SAME,
        """
--clone-scatter-output-in-embedding negative
--no-initialization off >perform_initialization
--onnx-safe toggle
--enable-experimental
--moe-tp-extend-ep
--moe-extended-tp
--moe-dynamic-padding
--skip-bias-add off >skip_bias_add
--use-multiparameter-pipeline-model-parallel
--share-mtp-embedding-and-output-weight
--no-shared-storage off >shared_storage
""",
    ),
)
