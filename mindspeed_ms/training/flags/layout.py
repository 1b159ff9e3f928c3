# SPDX-License-Identifier: Apache-2.0
"""Flags of the layout over ranks: parallel axes, stages, gradient buffers, sharding."""

from __future__ import annotations

import re
from typing import Any

from mindspeed_ms.training.flags.compact import compact
from mindspeed_ms.training.flags.row import (
    EntryPoint,
    Field,
    Flag,
    NoEffect,
    asked_means,
    in_group,
    off,
    on,
    toggle,
    value,
    values,
)
from mindspeed_ms.training.flags.value_types import unescaped

_OVERLAP_STAGES = "parallel_config.overlap_p2p_comm"
_CHUNKS = Field(
    "parallel_config.virtual_pipeline_model_parallel_size",
    also=(_OVERLAP_STAGES,),
    clears=("num_layers_per_virtual_pipeline_stage",),
)
_CP_ALGO = "parallel_config.context_parallel_algo"
_CP_ALGOS = {
    **{f"{name}_cp_algo": f"{name}_cp_algo" for name in ("ulysses", "megatron", "hybrid")},
    "kvallgather_cp_algo": "kvallgather_cp_algo",
    "adaptive_cp_algo": "megatron_cp_algo",
    "hybrid_adaptive_cp_algo": "hybrid_cp_algo",
}
"""MindSpeed's names -> what is run. Its adaptive ways plan which blocks of a mask are exchanged; a
ring leaves out what no rank sees, with the same result."""
_CP_ALGO_OF_COMM_TYPE = {
    "p2p": "megatron_cp_algo",
    "a2a": "ulysses_cp_algo",
    "a2a+p2p": "hybrid_cp_algo",
    "allgather": "kvallgather_cp_algo",
    "all_gather": "kvallgather_cp_algo",
}
_FLAT_BUFFERS = {"training_config.wrap_with_ddp": asked_means(True)}
"""Megatron has no such switch: there, flat gradient buffers are always used."""


def _algo_of_comm_types(given: str | list[str]) -> str:
    """Return the one way in which all layers exchange.

    Raises:
        ValueError: layers are to exchange in different ways.
    """
    kinds = (given,) if isinstance(given, str) else tuple(given)
    if len(set(kinds)) > 1:
        raise ValueError(
            f"--cp-comm-type {' '.join(kinds)} names a kind per layer; all layers exchange in one "
            f"way here: give one kind, for example --cp-comm-type {kinds[0]}"
        )
    return _CP_ALGO_OF_COMM_TYPE.get(kinds[0], kinds[0])


def _layout_of_stages(given: str) -> str:
    """Layers by stage and chunk, as MindSpeed writes them, as a layout.

    >>> _layout_of_stages("[[0,1],[1,1]*2,[3,0]]")
    'E|t|t|ttt|t|t|t|L'

    Raises:
        ValueError: it is no list of equally long lists of numbers.
    """
    text = re.sub(r"\s", "", given)
    stages: list[list[int]] = []
    if re.fullmatch(r"\[\[[\d,]+\](\*\d{1,4})?(,\[[\d,]+\](\*\d{1,4})?)*\]", text):
        for numbers, times in re.findall(r"\[([\d,]+)\](?:\*(\d+))?", text[1:-1]):
            stages += [[int(item) for item in numbers.split(",") if item]] * int(times or 1)
    if not stages or len({len(stage) for stage in stages}) != 1:
        raise ValueError(
            f"--pipeline-num-transformer-layers {given} must list the layers of every stage's "
            "chunks, as [[0,1],[1,1]*2,[3,0]]: one inner list per pipeline stage, all of one length"
        )
    chunks = range(len(stages[0]))
    return f"E{'|'.join('t' * stage[chunk] for chunk in chunks for stage in stages)}L"


def _first(sizes: list[int]) -> Any:
    return sizes[0]


AXES = in_group(
    "distributed",
    [
        value(
            "--tensor-model-parallel-size",
            int,
            Field(
                "parallel_config.tensor_model_parallel_size",
                also=("model_config.vocab_size", "parallel_config.expert_tensor_parallel_size"),
            ),
            1,
            common=True,
        ),
        value(
            "--pipeline-model-parallel-size",
            int,
            Field("parallel_config.pipeline_model_parallel_size"),
            1,
            common=True,
        ),
        value(
            "--context-parallel-size",
            int,
            Field("parallel_config.context_parallel_size"),
            1,
            common=True,
        ),
        value(
            "--context-parallel-algo",
            str,
            Field(_CP_ALGO, means=_CP_ALGOS),
            choices=tuple(_CP_ALGOS),
        ),
        values(
            "--cp-comm-type",
            str,
            Field(_CP_ALGO, means=_algo_of_comm_types, yields=True),
            arity="some",
            choices=tuple(_CP_ALGO_OF_COMM_TYPE),
            help="Megatron's way to state --context-parallel-algo: ring, all-to-all, both, gather.",
        ),
        value("--ulysses-degree-in-cp", int, Field("parallel_config.ulysses_degree_in_cp")),
        values(
            "--hierarchical-context-parallel-sizes",
            int,
            Field("parallel_config.ulysses_degree_in_cp", means=_first, yields=True),
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
            common=True,
        ),
        value(
            "--expert-tensor-parallel-size",
            int,
            Field("parallel_config.expert_tensor_parallel_size"),
        ),
        on("--sequence-parallel", Field("parallel_config.sequence_parallel"), common=True),
        on(
            "--use-tp-pp-dp-mapping",
            Field("parallel_config.order", means="tp-cp-ep-pp-dp"),
            help="Order the axes tp-cp-ep-pp-dp instead of tp-cp-ep-dp-pp.",
        ),
    ],
)

STAGES = in_group(
    "distributed",
    [
        value(
            "--num-layers-per-virtual-pipeline-stage",
            int,
            Field(
                "parallel_config.num_layers_per_virtual_pipeline_stage",
                also=(_CHUNKS.path, _OVERLAP_STAGES),
                clears=("virtual_pipeline_model_parallel_size",),
            ),
            common=True,
        ),
        value(
            "--virtual-pipeline-model-parallel-size",
            int,
            _CHUNKS,
            attributes=("num_virtual_stages_per_pipeline_rank",),
        ),
        value(
            "--num-virtual-stages-per-pipeline-rank",
            int,
            _CHUNKS,
            dest="virtual_pipeline_model_parallel_size",
            help="Same as --virtual-pipeline-model-parallel-size.",
        ),
        value(
            "--microbatch-group-size-per-virtual-pipeline-stage",
            int,
            Field("parallel_config.microbatch_group_size_per_vp_stage"),
            dest="microbatch_group_size_per_vp_stage",
            small=None,
        ),
        value("--num-layer-list", str, Field("parallel_config.num_layer_list")),
        value(
            "--pipeline-num-transformer-layers",
            str,
            Field(
                "parallel_config.pipeline_model_parallel_layout",
                means=_layout_of_stages,
                yields=True,
            ),
            small=None,
            help="Layers of each stage (outer list) and chunk; [1,1]*2 repeats a stage.",
        ),
        on("--recompute-in-advance", Field("parallel_config.recompute_in_advance")),
        on("--recompute-in-bubble", Field("parallel_config.recompute_in_bubble")),
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
        off("--no-overlap-p2p-communication", "overlap_p2p_comm", Field(_OVERLAP_STAGES)),
        on(
            "--overlap-p2p-communication",
            Field(_OVERLAP_STAGES),
            dest="overlap_p2p_comm",
            default=True,
        ),
        on("--variable-seq-lengths", Field("parallel_config.variable_seq_lengths")),
        off(
            "--no-scatter-gather-tensors-in-pipeline",
            "scatter_gather_tensors_in_pipeline",
            NoEffect("stages exchange whole shards"),
        ),
    ],
)

GRADIENTS = in_group(
    "distributed",
    [
        off(
            "--no-async-tensor-model-parallel-allreduce",
            "async_tensor_model_parallel_allreduce",
            Field("parallel_config.async_tensor_model_parallel_allreduce"),
            aliases=("--disable-async-tensor-model-parallel-allreduce",),
        ),
        on("--tp-comm-overlap", NoEffect("input-gradient communication overlaps always")),
        off(
            "--no-gradient-accumulation-fusion",
            "gradient_accumulation_fusion",
            Field("parallel_config.gradient_accumulation_fusion"),
        ),
        toggle("--wrap-with-ddp", Field("training_config.wrap_with_ddp"), True),
        on(
            "--use-distributed-optimizer",
            Field("training_config.use_distributed_optimizer", sets=_FLAT_BUFFERS),
            common=True,
        ),
        on(
            "--overlap-grad-reduce",
            Field("training_config.overlap_grad_reduce", sets=_FLAT_BUFFERS),
            common=True,
        ),
        on(
            "--overlap-param-gather",
            Field("optimizer_config.overlap_param_gather"),
        ),
        toggle("--delay-grad-reduce", Field("training_config.delay_grad_reduce"), False),
        off(
            "--no-delay-grad-reduce",
            "delay_grad_reduce",
            Field("training_config.delay_grad_reduce"),
            default=False,
        ),
        value(
            "--bucket-size",
            int,
            Field("training_config.bucket_size", sets=_FLAT_BUFFERS),
            aliases=("--ddp-bucket-size",),
            small=None,
        ),
        value(
            "--ddp-num-buckets", int, Field("training_config.ddp_num_buckets", sets=_FLAT_BUFFERS)
        ),
        on("--ddp-average-in-collective", Field("training_config.ddp_average_in_collective")),
        on(
            "--ddp-pad-buckets-for-high-nccl-busbw",
            Field("training_config.ddp_pad_buckets_for_high_nccl_busbw"),
        ),
        toggle("--enable-mem-align", Field("training_config.enable_mem_align"), False),
    ],
)

ZERO_FILES = {"--layerzero-config": "zero3_size", "--fsdp2-config-path": "sharding_size"}
"""Flags that name a file about sharding -> its key with the ranks that share a copy."""

_ZERO = "parallel_config.zero_level"

SHARDING = in_group(
    "fully sharded data parallel",
    [
        value(
            "--num-distributed-optimizer-instances",
            int,
            Field("parallel_config.num_distributed_optimizer_instances"),
            1,
        ),
        value("--zero-level", str, Field(_ZERO, sets=_FLAT_BUFFERS), choices=("z1", "z2", "z3")),
        value("--zero-shard-size", int, Field("parallel_config.zero_shard_size")),
        on(
            "--use-megatron-fsdp",
            Field(_ZERO, by_rule=True),
            help="Shard what --data-parallel-sharding-strategy says over the data-parallel ranks.",
        ),
        on(
            "--use-custom-fsdp",
            Field(_ZERO, by_rule=True),
            help="Same as --use-megatron-fsdp.",
        ),
        value(
            "--data-parallel-sharding-strategy",
            str,
            Field(_ZERO, by_rule=True),
            "optim_grads_params",
            choices=("no_shard", "optim", "optim_grads", "optim_grads_params"),
            help="With --use-megatron-fsdp: nothing, --zero-level z1, z2 or z3.",
        ),
        *(
            on(name, Field(_ZERO, means="z3"), help="Same as --zero-level z3.")
            for name in ("--use-torch-fsdp2", "--enable-zero3", "--layerzero")
        ),
        *(
            value(
                name,
                str,
                EntryPoint(f"YAML file whose {key} becomes --zero-shard-size."),
                small=None,
            )
            for name, key in ZERO_FILES.items()
        ),
    ],
)

RANKS = in_group(
    "distributed",
    [
        on(
            "--deterministic-mode",
            Field("parallel_config.deterministic_mode"),
            attributes=("npu_deterministic",),
        ),
        on(
            "--npu-deterministic",
            Field("parallel_config.deterministic_mode"),
            dest="deterministic_mode",
            help="Same as --deterministic-mode.",
        ),
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
    ],
)

OTHER_WAYS = (
    *compact(
        "distributed",
        NoEffect(
            "matrices are split in one direction over all tensor parallel ranks, with the same "
            "result; --sequence-parallel splits the activations"
        ),
        """
--tp-2d
--tp-x int=1
--tp-y int=1
""",
    ),
    *compact(
        "distributed",
        NoEffect("every way of cutting sequences leaves out blocks that a mask hides"),
        """
--adaptive-cp-dynamic-attn-mask
--adaptive-cp-manually-set-mask-list
--adaptive-cp-only-reschedule
--adaptive-cp-without-coarse
""",
    ),
    *compact(
        "distributed",
        NoEffect("a ring has one level, with the same result as MindSpeed's inner windows"),
        "--cp-window-size int=1",
    ),
    *compact(
        "distributed",
        NoEffect("micro-batches pass in the order of 1F1B or interleaved, with the same result"),
        "--schedules-method str",
    ),
)

ROWS: tuple[Flag, ...] = (*AXES, *STAGES, *GRADIENTS, *SHARDING, *RANKS, *OTHER_WAYS)
