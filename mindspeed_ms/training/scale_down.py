# SPDX-License-Identifier: Apache-2.0
"""``--scale-down``: the same script on a laptop.

Sizes shrink to the least that every structural flag still works with: layers, widths, heads,
experts, sequence, batch, length. What is switched on stays on: kinds of layers, parallel axes as
far as the ranks reach, schedules, sharding, recomputation, precision. Data is generated,
checkpoints are neither read nor written, two steps are trained.
"""

from __future__ import annotations

import argparse
import math

from mindspeed_ms.training.flags import ROWS
from mindspeed_ms.training.flags.forks import spell_groups
from mindspeed_ms.training.flags.layer_options import shrink_blocks
from mindspeed_ms.training.flags.row import SAME
from mindspeed_ms.training.from_args import mirror

HEAD_WIDTH = 16
STEPS = 2


def assume_sizes(args: argparse.Namespace) -> list[str]:
    """Fill what a script leaves to its caller, so that the rest of it can be planned."""
    if args.yaml:
        return []
    notes = []
    for row in ROWS:
        if row.typical is not None and getattr(args, row.dest) is None:
            setattr(args, row.dest, row.typical)
            notes.append(f"{row.names[0]} {row.typical}, which is not given")
    return notes


def sizes_of_flags(args: argparse.Namespace) -> list[str]:
    """Return a line when sizes should be a checkpoint's that is not here, as on a laptop."""
    if args.use_checkpoint_args or "--use-checkpoint-args" not in args.given_flags:
        return []
    return [f"sizes are those of flags: {args.load} holds no checkpoint yet"]


def scale_down(args: argparse.Namespace, world_size: int) -> list[str]:
    """Shrink the arguments of a script in place.

    Args:
        args: result of ``parse_args``.
        world_size: ranks that run.

    Returns:
        One line for each argument that changed.
    """
    before = dict(vars(args))
    assume_sizes(args)
    for row in ROWS:
        if row.small is not SAME:
            setattr(args, row.dest, row.small)
    spell_groups(args)
    _shrink_layout(args, world_size)
    _shrink_layers(args)
    _shrink_widths(args)
    _shrink_experts(args)
    _shrink_run(args, world_size)
    mirror(vars(args))
    return [
        f"scaled down: {name} {before[name]} -> {value}"
        for name, value in sorted(vars(args).items())
        if name in before and before[name] != value
    ]


def _size(args: argparse.Namespace, name: str) -> int:
    return getattr(args, name, None) or 1


def _shrink_layout(args: argparse.Namespace, world_size: int) -> None:
    """Keep axes at 2 as long as the ranks reach: tensor, pipeline, context, then expert."""
    rest = world_size
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        rest = _shrink_axis(args, name, rest)
    rest = _shrink_axis(args, "context_parallel_size", rest)
    tensor = args.tensor_model_parallel_size
    pipelines = world_size // args.pipeline_model_parallel_size
    expert_tensor = min(args.expert_tensor_parallel_size or tensor, tensor)
    args.expert_tensor_parallel_size = expert_tensor
    _shrink_axis(args, "expert_model_parallel_size", pipelines // expert_tensor)
    if args.context_parallel_size < 4 and args.context_parallel_algo == "hybrid_cp_algo":
        args.context_parallel_algo = "megatron_cp_algo"
        args.ulysses_degree_in_cp = None
    if args.context_parallel_size < 4 and args.cp_comm_type:
        args.cp_comm_type = ["p2p" if "+" in kind else kind for kind in args.cp_comm_type]
        args.hierarchical_context_parallel_sizes = None
    copies = rest * args.context_parallel_size
    if copies % (args.num_distributed_optimizer_instances or 1):
        args.num_distributed_optimizer_instances = 1
    if args.zero_shard_size and copies % args.zero_shard_size:
        args.zero_shard_size = None


def _shrink_axis(args: argparse.Namespace, name: str, rest: int) -> int:
    wanted = _size(args, name)
    size = 2 if wanted > 1 and rest % 2 == 0 else 1
    setattr(args, name, size)
    return rest // size


def _shrink_layers(args: argparse.Namespace) -> None:
    """One layer for each model chunk, at least two; lists of layers become lists of ones."""
    stages = args.pipeline_model_parallel_size
    asked = args.virtual_pipeline_model_parallel_size or args.num_layers_per_virtual_pipeline_stage
    chunks = 2 if asked and asked != 1 and stages > 1 else 1
    layers = max(2, stages * chunks)
    args.virtual_pipeline_model_parallel_size = chunks if chunks > 1 else None
    args.num_layers_per_virtual_pipeline_stage = None
    if args.num_layer_list:
        row = [layers // (stages * chunks)] * stages
        args.num_layer_list = str([row] * chunks if chunks > 1 else row)
    if args.pipeline_model_parallel_layout:
        parts = ["t" * (layers // (stages * chunks))] * (stages * chunks)
        tail = "m" * min(1, args.pipeline_model_parallel_layout.count("m"))
        args.pipeline_model_parallel_layout = "E" + "|".join(parts) + tail + "L"
    args.noop_layers = "0" if args.noop_layers else None
    for name in ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"):
        if getattr(args, name) is not None:
            setattr(args, name, layers // stages if stages > 1 else None)
    if args.account_for_embedding_in_pipeline_split or args.account_for_loss_in_pipeline_split:
        layers = _counted_layers(args, stages, chunks)
    for name in _kinds_of_layers(args):
        setattr(args, name, [layer % 2 for layer in range(layers)])
    if args.recompute_num_layers:
        args.recompute_num_layers = 1
    for name in ("recompute", "select_recompute", "select_comm_recompute"):
        value = getattr(args, name)
        if isinstance(value, str) and "[" in value:
            row = [1] * stages
            setattr(args, name, str([row] * chunks if chunks > 1 else row))
    args.num_layers = layers
    shrink_blocks(args)


def _kinds_of_layers(args: argparse.Namespace) -> list[str]:
    """Arguments that say 0 or 1 for every layer."""
    values = [(row.dest, getattr(args, row.dest, None)) for row in ROWS]
    return [
        name
        for name, value in values
        if isinstance(value, list) and len(value) == args.num_layers and set(value) <= {0, 1}
    ]


def _counted_layers(args: argparse.Namespace, stages: int, chunks: int) -> int:
    """Layers when the embedding or the loss counts as one."""
    extra = args.account_for_embedding_in_pipeline_split + args.account_for_loss_in_pipeline_split
    return 3 * stages * chunks - int(extra)


def _shrink_widths(args: argparse.Namespace) -> None:
    tensor, context = args.tensor_model_parallel_size, args.context_parallel_size
    unit = tensor * context
    if args.group_query_attention:
        args.num_query_groups = min(args.num_query_groups or 1, 2 * tensor)
        args.num_query_groups -= args.num_query_groups % tensor
        args.num_query_groups = max(args.num_query_groups, tensor)
        args.num_attention_heads = math.lcm(unit, 2 * args.num_query_groups)
    else:
        args.num_attention_heads = math.lcm(unit, 2)
    args.hidden_size = args.num_attention_heads * HEAD_WIDTH
    args.kv_channels = HEAD_WIDTH
    args.ffn_hidden_size = 64 * tensor
    args.seq_length = max(32, 4 * unit)
    args.max_position_embeddings = args.seq_length
    if args.multi_latent_attention:
        args.kv_lora_rank = args.qk_head_dim = args.v_head_dim = HEAD_WIDTH
        args.q_lora_rank = HEAD_WIDTH if args.q_lora_rank else None
        args.qk_pos_emb_head_dim = HEAD_WIDTH // 2
    if args.mtp_num_layers:
        args.mtp_num_layers = 1


def _shrink_experts(args: argparse.Namespace) -> None:
    if not args.num_experts or args.num_experts == 1:
        return
    unit = math.lcm(args.expert_model_parallel_size, _size(args, "moe_router_num_groups"))
    topk = min(args.moe_router_topk, 2)
    if args.moe_router_group_topk and not args.moe_router_num_groups:
        args.moe_router_group_topk = 1
    if args.moe_router_num_groups:
        args.moe_router_num_groups = min(args.moe_router_num_groups, 2)
        args.moe_router_group_topk = min(args.moe_router_group_topk or 1, 1)
        unit = math.lcm(args.expert_model_parallel_size, args.moe_router_num_groups)
    args.moe_router_topk = topk
    args.num_experts = unit * max(2, math.ceil(2 * topk / unit))
    width = 32 * args.expert_tensor_parallel_size
    args.moe_ffn_hidden_size = width
    if args.moe_shared_expert_intermediate_size:
        args.moe_shared_expert_intermediate_size = 32 * args.tensor_model_parallel_size


def _shrink_run(args: argparse.Namespace, world_size: int) -> None:
    """Batch, length, warm-up and decay, in the unit the script counts in."""
    stages = args.pipeline_model_parallel_size
    model = args.tensor_model_parallel_size * stages * args.context_parallel_size
    batch = max(1, world_size // model) * max(2, stages)
    args.global_batch_size = batch
    if args.rampup_batch_size:
        args.rampup_batch_size = [batch // 2, batch // 2, batch]
    if args.train_samples:
        # While it grows the batch has half its size.
        args.train_samples = STEPS * batch // (2 if args.rampup_batch_size else 1)
    else:
        args.train_iters = STEPS
    if args.lr_wsd_decay_iters:
        args.lr_wsd_decay_iters = 1
    if args.lr_wsd_decay_samples:
        args.lr_wsd_decay_samples = batch
