"""Flags of the layout over ranks and of mixture of experts, and the flags that are refused."""

from __future__ import annotations

from mindspeed_ms.training.flags.row import (
    Field,
    Flag,
    NoEffect,
    Refused,
    in_group,
    number_or_list,
    off,
    on,
    toggle,
    unescaped,
    value,
    values,
)

_CHUNKS = Field(
    "parallel_config.virtual_pipeline_model_parallel_size",
    also=("parallel_config.overlap_p2p_comm",),
)
_CP_ALGO = Field("parallel_config.context_parallel_algo")
_OTHER_CP_ALGOS = ("adaptive_cp_algo", "hybrid_adaptive_cp_algo")
_NO_CP_ALGO = Refused("sequences are not cut in this way", "use megatron_cp_algo")

LAYOUT = in_group(
    "distributed",
    [
        value(
            "--tensor-model-parallel-size",
            int,
            Field(
                "parallel_config.tensor_model_parallel_size",
                also=("parallel_config.sequence_parallel", "model_config.vocab_size"),
            ),
            1,
        ),
        value(
            "--pipeline-model-parallel-size",
            int,
            Field("parallel_config.pipeline_model_parallel_size"),
            1,
        ),
        value(
            "--num-layers-per-virtual-pipeline-stage",
            int,
            Field(
                "parallel_config.num_layers_per_virtual_pipeline_stage",
                also=(
                    "parallel_config.virtual_pipeline_model_parallel_size",
                    "parallel_config.overlap_p2p_comm",
                ),
            ),
        ),
        value("--virtual-pipeline-model-parallel-size", int, _CHUNKS),
        value("--num-virtual-stages-per-pipeline-rank", int, _CHUNKS),
        value(
            "--microbatch-group-size-per-virtual-pipeline-stage",
            int,
            Field("parallel_config.microbatch_group_size_per_vp_stage"),
            dest="microbatch_group_size_per_vp_stage",
        ),
        value("--num-layer-list", str, Field("parallel_config.num_layer_list")),
        value("--noop-layers", str, Field("parallel_config.noop_layers")),
        value(
            "--decoder-first-pipeline-num-layers",
            int,
            Field("parallel_config.decoder_first_pipeline_num_layers"),
        ),
        value(
            "--decoder-last-pipeline-num-layers",
            int,
            Field("parallel_config.decoder_last_pipeline_num_layers"),
        ),
        on(
            "--account-for-embedding-in-pipeline-split",
            Field("parallel_config.account_for_embedding_in_pipeline_split"),
        ),
        on(
            "--account-for-loss-in-pipeline-split",
            Field("parallel_config.account_for_loss_in_pipeline_split"),
        ),
        value(
            "--pipeline-model-parallel-layout",
            unescaped,
            Field("parallel_config.pipeline_model_parallel_layout"),
        ),
        on("--standalone-embedding-stage", Field("parallel_config.standalone_embedding_stage")),
        off(
            "--no-overlap-p2p-communication",
            "overlap_p2p_comm",
            Field("parallel_config.overlap_p2p_comm"),
        ),
        value("--context-parallel-size", int, Field("parallel_config.context_parallel_size"), 1),
        value(
            "--context-parallel-algo",
            str,
            _CP_ALGO,
            choices=(
                "ulysses_cp_algo",
                "megatron_cp_algo",
                "hybrid_cp_algo",
                "kvallgather_cp_algo",
                *_OTHER_CP_ALGOS,
            ),
            refuses=tuple((name, _NO_CP_ALGO) for name in _OTHER_CP_ALGOS),
        ),
        values(
            "--cp-comm-type",
            str,
            _CP_ALGO,
            arity="some",
            choices=("p2p", "a2a", "a2a+p2p", "allgather", "all_gather"),
            help="Megatron's way to state --context-parallel-algo: ring, all-to-all, both, gather.",
        ),
        value("--ulysses-degree-in-cp", int, Field("parallel_config.ulysses_degree_in_cp")),
        values(
            "--hierarchical-context-parallel-sizes",
            int,
            Field("parallel_config.ulysses_degree_in_cp"),
            arity="some",
            help="Ranks of the all-to-all part, then of the ring part.",
        ),
        value(
            "--attention-mask-type",
            str,
            Field("parallel_config.attention_mask_type"),
            "causal",
            choices=("causal", "full", "general"),
            aliases=("--cp-attention-mask-type",),
        ),
        value(
            "--expert-model-parallel-size",
            int,
            Field("parallel_config.expert_model_parallel_size"),
            1,
        ),
        value(
            "--expert-tensor-parallel-size",
            int,
            Field("parallel_config.expert_tensor_parallel_size"),
        ),
        on("--sequence-parallel", Field("parallel_config.sequence_parallel")),
        off(
            "--no-async-tensor-model-parallel-allreduce",
            "async_tensor_model_parallel_allreduce",
            Field("parallel_config.async_tensor_model_parallel_allreduce"),
            aliases=("--disable-async-tensor-model-parallel-allreduce",),
        ),
        on(
            "--use-tp-pp-dp-mapping",
            Field("parallel_config.order"),
            help="Order the axes tp-cp-ep-pp-dp instead of tp-cp-ep-dp-pp.",
        ),
        off(
            "--no-gradient-accumulation-fusion",
            "gradient_accumulation_fusion",
            Field("parallel_config.gradient_accumulation_fusion"),
        ),
        on("--use-distributed-optimizer", Field("training_config.use_distributed_optimizer")),
        on("--overlap-grad-reduce", Field("training_config.overlap_grad_reduce")),
        on("--overlap-param-gather", Field("optimizer_config.overlap_param_gather")),
        toggle("--delay-grad-reduce", Field("training_config.delay_grad_reduce"), False),
        value(
            "--bucket-size",
            int,
            Field("training_config.bucket_size"),
            aliases=("--ddp-bucket-size",),
        ),
        value("--ddp-num-buckets", int, Field("training_config.ddp_num_buckets")),
        on("--ddp-average-in-collective", Field("training_config.ddp_average_in_collective")),
        on(
            "--ddp-pad-buckets-for-high-nccl-busbw",
            Field("training_config.ddp_pad_buckets_for_high_nccl_busbw"),
        ),
        value(
            "--num-distributed-optimizer-instances",
            int,
            Field("parallel_config.num_distributed_optimizer_instances"),
            1,
        ),
        value("--zero-level", str, Field("parallel_config.zero_level"), choices=("z1", "z2", "z3")),
        value("--zero-shard-size", int, Field("parallel_config.zero_shard_size")),
        toggle("--wrap-with-ddp", Field("training_config.wrap_with_ddp"), True),
        toggle("--enable-mem-align", Field("training_config.enable_mem_align"), False),
        on("--deterministic-mode", Field("parallel_config.deterministic_mode")),
        value(
            "--nccl-communicator-config-path",
            str,
            Field("parallel_config.communicator_config_path"),
        ),
        value(
            "--distributed-timeout-minutes",
            int,
            Field("parallel_config.distributed_timeout_minutes"),
            10,
        ),
        value(
            "--distributed-backend",
            str,
            NoEffect("the device decides: HCCL on Ascend, MPI on CPU"),
            "nccl",
        ),
        value("--local-rank", int, NoEffect("the launcher's environment tells the rank")),
        off(
            "--no-scatter-gather-tensors-in-pipeline",
            "scatter_gather_tensors_in_pipeline",
            NoEffect("stages exchange whole shards"),
        ),
        on("--tp-comm-overlap", NoEffect("input-gradient communication overlaps always")),
    ],
)

_EXPERTS = "moe_config."
_NO_ROUTER = Refused("the router does not do this", "use aux_loss, and softmax or sigmoid scores")

MOE = in_group(
    "mixture of experts",
    [
        value("--num-experts", int, Field(f"{_EXPERTS}num_experts")),
        value("--moe-router-topk", int, Field(f"{_EXPERTS}moe_router_topk"), 2),
        values(
            "--moe-router-load-balancing-type",
            str,
            Field(f"{_EXPERTS}moe_router_load_balancing_type"),
            arity="some",
            default="aux_loss",
            choices=(
                "aux_loss",
                "seq_aux_loss",
                "global_aux_loss",
                "sinkhorn",
                "none",
                "quantile_balancing",
            ),
            refuses=(("quantile_balancing", _NO_ROUTER),),
        ),
        values(
            "--moe-aux-loss-coeff",
            float,
            Field(f"{_EXPERTS}moe_aux_loss_coeff"),
            arity="some",
            default=0.0,
        ),
        value("--moe-z-loss-coeff", float, Field(f"{_EXPERTS}moe_z_loss_coeff")),
        value("--moe-input-jitter-eps", float, Field(f"{_EXPERTS}moe_input_jitter_eps")),
        value(
            "--moe-token-dispatcher-type",
            str,
            Field(f"{_EXPERTS}moe_token_dispatcher_type"),
            "allgather",
            choices=("allgather", "alltoall", "alltoall_seq", "flex"),
        ),
        on("--moe-grouped-gemm", Field(f"{_EXPERTS}moe_grouped_gemm")),
        on(
            "--moe-permute-fusion",
            Field(
                f"{_EXPERTS}moe_permute_fusion",
                without_effect="rows are sorted by one copy in every kernel set",
            ),
        ),
        value("--moe-ffn-hidden-size", int, Field(f"{_EXPERTS}moe_ffn_hidden_size")),
        value(
            "--moe-shared-expert-intermediate-size",
            int,
            Field(f"{_EXPERTS}moe_shared_expert_intermediate_size"),
        ),
        on("--moe-shared-expert-overlap", Field(f"{_EXPERTS}moe_shared_expert_overlap")),
        on("--moe-shared-expert-gate", Field(f"{_EXPERTS}moe_shared_expert_gate")),
        on("--moe-layer-recompute", Field(f"{_EXPERTS}moe_layer_recompute")),
        on("--moe-per-layer-logging", Field(f"{_EXPERTS}moe_per_layer_logging")),
        value("--moe-layer-freq", number_or_list, Field(f"{_EXPERTS}moe_layer_freq"), 1),
        value(
            "--moe-expert-capacity-factor", float, Field(f"{_EXPERTS}moe_expert_capacity_factor")
        ),
        on(
            "--moe-pad-expert-input-to-capacity",
            Field(f"{_EXPERTS}moe_pad_expert_input_to_capacity"),
        ),
        value(
            "--moe-token-drop-policy",
            str,
            Field(f"{_EXPERTS}moe_token_drop_policy"),
            "probs",
            choices=("probs", "position"),
        ),
        value(
            "--moe-router-score-function",
            str,
            Field(f"{_EXPERTS}moe_router_score_function"),
            "softmax",
            choices=("softmax", "sigmoid", "sqrtsoftplus"),
            refuses=(("sqrtsoftplus", _NO_ROUTER),),
        ),
        on("--moe-router-pre-softmax", Field(f"{_EXPERTS}moe_router_pre_softmax")),
        value(
            "--moe-router-topk-scaling-factor",
            float,
            Field(f"{_EXPERTS}moe_router_topk_scaling_factor"),
        ),
        on("--moe-router-enable-expert-bias", Field(f"{_EXPERTS}moe_router_enable_expert_bias")),
        value(
            "--moe-router-bias-update-rate",
            float,
            Field(f"{_EXPERTS}moe_router_bias_update_rate"),
            1e-3,
        ),
        value("--moe-router-num-groups", int, Field(f"{_EXPERTS}moe_router_num_groups")),
        value("--moe-router-group-topk", int, Field(f"{_EXPERTS}moe_router_group_topk")),
        value(
            "--moe-router-dtype",
            str,
            Field(f"{_EXPERTS}moe_router_dtype"),
            choices=("fp32", "fp64"),
        ),
        on(
            "--moe-router-force-load-balancing",
            Field(f"{_EXPERTS}moe_router_force_load_balancing"),
        ),
    ],
)

_LATENT = "model_config.mla_config."

LATENT_ATTENTION = in_group(
    "multi-latent attention",
    [
        on("--multi-latent-attention", Field("model_config.multi_latent_attention")),
        value("--q-lora-rank", int, Field(f"{_LATENT}q_lora_rank")),
        value("--kv-lora-rank", int, Field(f"{_LATENT}kv_lora_rank"), 32),
        value("--qk-head-dim", int, Field(f"{_LATENT}qk_head_dim"), 128),
        value("--qk-pos-emb-head-dim", int, Field(f"{_LATENT}qk_pos_emb_head_dim"), 64),
        value("--v-head-dim", int, Field(f"{_LATENT}v_head_dim"), 128),
        value("--rope-type", str, Field(f"{_LATENT}rope_type"), choices=("rope", "yarn")),
        value("--rotary-scaling-factor", float, Field(f"{_LATENT}rotary_scaling_factor"), 1.0),
        value(
            "--yarn-original-max-position-embeddings",
            int,
            Field(f"{_LATENT}original_max_position_embeddings"),
        ),
        value("--yarn-beta-fast", float, Field(f"{_LATENT}beta_fast")),
        value("--yarn-beta-slow", float, Field(f"{_LATENT}beta_slow")),
        value("--mscale", float, Field(f"{_LATENT}mscale"), 1.0),
        value("--mscale-all-dim", float, Field(f"{_LATENT}mscale_all_dim"), 0.0),
    ],
)

FURTHER_TOKENS = in_group(
    "multi-token prediction",
    [
        value("--mtp-num-layers", int, Field("model_config.mtp_num_layers")),
        value(
            "--mtp-loss-scaling-factor", float, Field("model_config.mtp_loss_scaling_factor"), 0.1
        ),
    ],
)


REFUSED = in_group(
    "refused",
    [
        values(
            "--spec",
            str,
            Refused("layer specifications are Python objects of Megatron", "use the model flags"),
            arity="many",
        ),
    ],
)

ROWS: tuple[Flag, ...] = (*LAYOUT, *MOE, *LATENT_ATTENTION, *FURTHER_TOKENS, *REFUSED)
