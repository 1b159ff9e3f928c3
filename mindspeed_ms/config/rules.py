# SPDX-License-Identifier: Apache-2.0
"""Rules between sections of the configuration.

Each function compares two of them and names what would fix a conflict.
"""

from __future__ import annotations

from mindspeed_ms.config.attention_options import EVERYTHING
from mindspeed_ms.config.dataset_config import DatasetConfig
from mindspeed_ms.config.dtypes import BFLOAT16, FLOAT16
from mindspeed_ms.config.model_parallel_config import ModelParallelConfig
from mindspeed_ms.config.moe_config import MoEConfig
from mindspeed_ms.config.optimizer_config import OptimizerConfig
from mindspeed_ms.config.training_config import TrainingConfig
from mindspeed_ms.config.transformer_config import TransformerConfig
from mindspeed_ms.plan.layer_placement import LayerPlacement, layer_placement
from mindspeed_ms.plan.recompute_plan import check_recompute


def _require_divisible(name: str, value: int, by: str, divisor: int, fix: str) -> None:
    """Raise ValueError when ``value`` is not a multiple of ``divisor``."""
    if value % divisor:
        raise ValueError(f"{name} ({value}) must be divisible by {by} ({divisor}); {fix}")


def nearest_multiples(value: int, step: int) -> str:
    """Return the multiples of ``step`` on both sides of ``value`` as text."""
    below = value // step * step
    return f"{below} or {below + step}" if below else str(step)


def check_model_and_layout(model: TransformerConfig, parallel: ModelParallelConfig) -> None:
    """Check that the sizes cut by tensor, sequence and context parallelism divide."""
    ranks = parallel.tensor_model_parallel_size
    axis = "tensor_model_parallel_size"
    for name in ("num_attention_heads", "ffn_hidden_size", "vocab_size"):
        value = getattr(model, name)
        _require_divisible(name, value, axis, ranks, f"use {nearest_multiples(value, ranks)}")
    if model.group_query_attention:
        _check_query_groups(model, ranks)
    if parallel.sequence_parallel:
        _require_divisible(
            "seq_length",
            model.seq_length,
            f"{axis} with sequence_parallel",
            ranks,
            f"use {nearest_multiples(model.seq_length, ranks)}",
        )
    _check_context_parallel(model, parallel)
    _check_bands(model, parallel)


def _check_query_groups(model: TransformerConfig, ranks: int) -> None:
    """Check that ranks share out the key/value groups, or groups the ranks."""
    groups = model.num_query_groups
    if groups % ranks and ranks % groups:
        raise ValueError(
            f"num_query_groups ({groups}) must be a multiple or divisor of "
            f"tensor_model_parallel_size ({ranks}); change one of them"
        )
    for name in ("qk_clip", "qk_layernorm_full"):
        if groups < ranks and getattr(model, name):
            raise ValueError(
                f"{name} needs whole key/value groups on a tensor-parallel rank, but there are "
                f"{groups} (num_query_groups) for {ranks} ranks; lower tensor_model_parallel_size"
            )


def _check_context_parallel(model: TransformerConfig, parallel: ModelParallelConfig) -> None:
    size = parallel.context_parallel_size
    if size == 1:
        return
    pieces = 2 * size
    _require_divisible(
        "seq_length",
        model.seq_length,
        "2 × context_parallel_size",
        pieces,
        f"use {nearest_multiples(model.seq_length, pieces)}",
    )
    ranks = parallel.tensor_model_parallel_size
    if parallel.sequence_parallel:
        _require_divisible(
            "seq_length",
            model.seq_length,
            "context_parallel_size × tensor_model_parallel_size with sequence_parallel",
            size * ranks,
            f"use {nearest_multiples(model.seq_length, pieces * ranks)}",
        )
    degree, ring = parallel.hierarchical_context_parallel_sizes
    if ring > 1 and model.softmax_storage is not None:
        raise ValueError(
            f"softmax_compute_dtype {model.softmax_compute_dtype} rounds weights whose sum "
            f"{parallel.context_parallel_algo} does not know in time; use float32 or "
            "ulysses_cp_algo"
        )
    heads = model.num_attention_heads // ranks
    _require_divisible(
        "num_attention_heads per tensor-parallel rank",
        heads,
        "the all-to-all part of context parallelism",
        degree,
        "lower it, or use megatron_cp_algo, which exchanges chunks instead of heads",
    )
    groups = max(1, model.num_kv_groups // ranks)
    if groups % degree and degree % groups:
        raise ValueError(
            f"num_query_groups per tensor-parallel rank ({groups}) must divide the ranks of the "
            f"all-to-all part of context parallelism ({degree}) or be a multiple of them; change "
            "one of them, or use megatron_cp_algo"
        )


def _check_bands(model: TransformerConfig, parallel: ModelParallelConfig) -> None:
    """Check that the mode of the fused kernel fits the masks."""
    mode, masks = model.fa_config.sparse_mode, parallel.attention_mask_type
    if mode in (2, 3) and masks != "causal":
        raise ValueError(
            f"fa_config.sparse_mode {mode} hides later tokens, but attention_mask_type is {masks}; "
            "use sparse_mode 0, or attention_mask_type causal"
        )
    if mode == 4 and masks == "general":
        raise ValueError(
            "fa_config.sparse_mode 4 hides what is outside a band and takes no other mask, but "
            "attention_mask_type is general; use sparse_mode 0"
        )
    if mode == 0 and masks == "full" and model.fa_config.window != EVERYTHING:
        raise ValueError(
            "fa_config.sparse_mode 0 reads pre_tokens and next_tokens with a mask only, but "
            "attention_mask_type is full; use sparse_mode 4"
        )


def check_layers_and_stages(model: TransformerConfig, parallel: ModelParallelConfig) -> None:
    """Check that the layers spread over pipeline stages and chunks."""
    layers = model.num_layers
    if parallel.noop_layers is not None:
        beyond = [layer for layer in parallel.noop_layers if not 0 <= layer < layers]
        if beyond:
            raise ValueError(
                f"noop_layers names layer {beyond[0]}, but layers are numbered 0 to {layers - 1}; "
                "remove it"
            )
    if parallel.num_layer_list is None and parallel.pipeline_model_parallel_layout is None:
        _check_split(model, parallel)
    placement = layer_placement(model, parallel)
    check_recompute(model, parallel, placement)
    if model.is_sparse and model.dsa_indexer_topk_freq > 1:
        _check_choosers(model, placement)


def _check_split(model: TransformerConfig, parallel: ModelParallelConfig) -> None:
    """Check a split that no list states; ``layer_placement`` checks the rest."""
    layers = model.num_layers + model.use_query_layer
    stages = parallel.pipeline_model_parallel_size
    if stages > layers + parallel.standalone_embedding_stage:
        raise ValueError(
            f"pipeline_model_parallel_size ({stages}) must not exceed num_layers ({layers}); use "
            f"at most {layers} stages"
        )
    chunks = num_model_chunks(model, parallel)
    if _has_uneven_ends(parallel):
        return
    if chunks > 1:
        _require_divisible(
            "num_layers",
            layers,
            "pipeline stages × chunks per stage",
            stages * chunks,
            f"use {nearest_multiples(layers, stages * chunks)} layers or give num_layer_list",
        )
    elif not parallel.allow_uneven_stages:
        _require_divisible(
            "num_layers",
            layers,
            "pipeline_model_parallel_size",
            stages,
            f"use {nearest_multiples(layers, stages)} layers or give num_layer_list",
        )


def _has_uneven_ends(parallel: ModelParallelConfig) -> bool:
    return (
        parallel.decoder_first_pipeline_num_layers is not None
        or parallel.decoder_last_pipeline_num_layers is not None
        or parallel.account_for_embedding_in_pipeline_split
        or parallel.account_for_loss_in_pipeline_split
        or parallel.standalone_embedding_stage
    )


def num_model_chunks(model: TransformerConfig, parallel: ModelParallelConfig) -> int:
    """Return the model chunks of one pipeline stage, from either of the two ways to state it.

    Raises:
        ValueError: layers per chunk do not divide the stage, or the two ways contradict each other.

    """
    chunks = parallel.virtual_pipeline_model_parallel_size
    per_chunk = parallel.num_layers_per_virtual_pipeline_stage
    if per_chunk is None:
        return chunks or 1
    stages = parallel.pipeline_model_parallel_size - parallel.standalone_embedding_stage
    _require_divisible(
        "num_layers",
        model.num_layers,
        "pipeline stages × num_layers_per_virtual_pipeline_stage",
        stages * per_chunk,
        f"use {nearest_multiples(model.num_layers, stages * per_chunk)} layers or other sizes",
    )
    stated = model.num_layers // stages // per_chunk
    if chunks is not None and chunks != stated:
        raise ValueError(
            f"virtual_pipeline_model_parallel_size ({chunks}) contradicts "
            "num_layers_per_virtual_pipeline_stage "
            f"({per_chunk}), which makes {stated} chunks of {model.num_layers} layers on {stages} "
            "stages; keep one"
        )
    return stated


def check_model_and_training(model: TransformerConfig, training: TrainingConfig) -> None:
    """Check that the switches fp16 and bf16 agree with the types of the model."""
    for name, dtype in (("fp16", FLOAT16), ("bf16", BFLOAT16)):
        if getattr(training, name) and model.compute_dtype != dtype:
            raise ValueError(
                f"training_config.{name} is set, but model_config.compute_dtype is "
                f"{model.compute_dtype}; "
                f"set compute_dtype: {dtype} or leave it out"
            )
    if model.fp16_lm_cross_entropy and model.compute_dtype != FLOAT16:
        raise ValueError(
            "fp16_lm_cross_entropy needs compute_dtype float16, given "
            f"{model.compute_dtype}; "
            f"set fp16 or leave it out"
        )


def check_model_and_experts(
    model: TransformerConfig, moe: MoEConfig, parallel: ModelParallelConfig
) -> None:
    """Check that experts spread over expert-parallel ranks and their tensor-parallel ranks."""
    if not moe.is_moe:
        if parallel.expert_model_parallel_size > 1:
            raise ValueError(
                f"expert_model_parallel_size ({parallel.expert_model_parallel_size}) needs "
                "experts, but num_experts is 1; "
                f"give num_experts or set it to 1"
            )
        return
    _require_divisible(
        "num_experts",
        moe.num_experts,
        "expert_model_parallel_size",
        parallel.expert_model_parallel_size,
        f"use {nearest_multiples(moe.num_experts, parallel.expert_model_parallel_size)} experts",
    )
    width = moe.moe_ffn_hidden_size or model.ffn_hidden_size
    if width is None:  # filled when the model section is built; tells the type checker so
        raise AssertionError("ffn_hidden_size is filled when the section is built")
    ranks = parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size
    _require_divisible(
        "expert ffn width",
        width,
        "expert_tensor_parallel_size",
        ranks,
        f"use {nearest_multiples(width, ranks)}",
    )
    if isinstance(moe.moe_layer_freq, tuple) and len(moe.moe_layer_freq) != model.num_layers:
        raise ValueError(
            f"moe_layer_freq lists {len(moe.moe_layer_freq)} layers, but num_layers is "
            f"{model.num_layers}; "
            f"give one 0 or 1 per layer"
        )
    is_gathered = moe.moe_token_dispatcher_type == "allgather"
    if parallel.variable_seq_lengths and is_gathered and parallel.expert_model_parallel_size > 1:
        raise ValueError(
            "variable_seq_lengths (--no-pad-to-seq-lengths) lets ranks have unequal numbers of "
            "tokens, which the allgather dispatcher cannot join; use "
            "moe_token_dispatcher_type alltoall"
        )
    if parallel.tensor_model_parallel_size > 1 and not parallel.sequence_parallel:
        raise ValueError(
            f"tensor_model_parallel_size ({parallel.tensor_model_parallel_size}) with experts "
            "needs sequence_parallel, or every rank would send the same tokens; set it to True"
        )


def check_model_and_optimizer(model: TransformerConfig, optimizer: OptimizerConfig) -> None:
    """Check that copies of weights share the memory of bf16 ones, and matrices are whole."""
    groups, ranks = model.num_kv_groups, model.parallel_config.tensor_model_parallel_size
    if (
        optimizer.algorithm in ("muon", "adaptive_muon")
        and optimizer.muon_split_qkv
        and groups < ranks
    ):
        raise ValueError(
            "muon takes queries, keys and values of a group apart, but tensor-parallel ranks "
            f"({ranks}) cut the {groups} groups (num_query_groups) into pieces; use "
            "--muon-no-split-qkv or lower tensor_model_parallel_size"
        )
    if optimizer.reuse_fp32_param and model.params_dtype != BFLOAT16:
        raise ValueError(
            "reuse_fp32_param lets bf16 weights be the upper half of their fp32 copies, but "
            f"params_dtype is {model.params_dtype}; train with bf16 or leave it out"
        )


def check_training_and_optimizer(training: TrainingConfig, optimizer: OptimizerConfig) -> None:
    """Check that lengths in iterations and samples are not mixed and overlaps have their base."""
    in_samples = {
        name: value
        for name in ("lr_decay_samples", "lr_warmup_samples", "lr_wsd_decay_samples")
        if (value := getattr(optimizer, name))
    }
    in_iters = {
        name: value
        for name in ("lr_decay_iters", "lr_warmup_iters", "lr_wsd_decay_iters")
        if (value := getattr(optimizer, name))
    }
    if training.train_samples is None and in_samples:
        name, value = next(iter(in_samples.items()))
        raise ValueError(
            f"{name} ({value}) counts samples, but the length of training is in iterations; "
            f"use {name.replace('samples', 'iters')} or train_samples"
        )
    if training.train_samples is not None and in_iters:
        name, value = next(iter(in_iters.items()))
        raise ValueError(
            f"{name} ({value}) counts iterations, but the length of training is in samples; "
            f"use {name.replace('iters', 'samples')} or training_iters"
        )
    _check_sharding(training, optimizer)


def shards_optimizer(
    training: TrainingConfig, optimizer: OptimizerConfig, parallel: ModelParallelConfig | None
) -> bool:
    """Whether data parallel ranks share the optimizer's state out."""
    return (
        training.use_distributed_optimizer
        or (parallel is not None and parallel.zero_level is not None)
        or optimizer.optimizer_type == "dist_muon"
    )


def _check_sharding(training: TrainingConfig, optimizer: OptimizerConfig) -> None:
    """Check that what only a distributed optimizer can do comes with one."""
    parallel = optimizer.parallel_config
    is_sharded = shards_optimizer(training, optimizer, parallel)
    if optimizer.overlap_param_gather:
        for name, is_given in (
            ("use_distributed_optimizer", is_sharded),
            ("overlap_grad_reduce", training.overlap_grad_reduce),
        ):
            if not is_given:
                raise ValueError(
                    f"overlap_param_gather needs {name}; set {name}: True or leave "
                    "overlap_param_gather out"
                )
    if parallel is None or is_sharded:
        return
    if parallel.zero_shard_size is not None or parallel.num_distributed_optimizer_instances > 1:
        raise ValueError(
            f"zero_shard_size ({parallel.zero_shard_size}) and num_distributed_optimizer_instances "
            f"({parallel.num_distributed_optimizer_instances}) cut a sharded optimizer state; set "
            "use_distributed_optimizer: True or leave them out"
        )


def check_world(parallel: ModelParallelConfig, world_size: int) -> None:
    """Check that the ranks hold whole copies of the model, and of the experts."""
    if world_size < 1:
        raise ValueError(f"world size ({world_size}) must be at least 1; start at least one rank")
    parallel.data_parallel_size(world_size)
    parallel.optimizer_instances(world_size)
    expert_ranks = (
        (parallel.expert_tensor_parallel_size or parallel.tensor_model_parallel_size)
        * parallel.expert_model_parallel_size
        * parallel.pipeline_model_parallel_size
    )
    _require_divisible(
        "world size",
        world_size,
        "expert tensor × expert × pipeline parallel size",
        expert_ranks,
        f"start {nearest_multiples(world_size, expert_ranks)} ranks or lower one of the sizes",
    )


def check_remainder(dataset: DatasetConfig, world_size: int) -> None:
    """Check that a short micro-batch at the end of the data reaches no other rank."""
    if not dataset.drop_remainder and world_size > 1:
        raise ValueError(
            f"drop_remainder False would give the {world_size} ranks micro-batches of different "
            "sizes at the end of the data; use one rank or drop_remainder: True"
        )


def check_evaluation_batch(size: int, micro_batch: int, ranks: int) -> None:
    """Check that the data-parallel ranks can share the batch of an evaluation."""
    per_round = micro_batch * ranks
    _require_divisible(
        "eval_global_batch_size",
        size,
        "its micro-batch size × data-parallel ranks",
        per_round,
        f"use {nearest_multiples(size, per_round)}",
    )


def num_micro_batches(
    training: TrainingConfig, dataset: DatasetConfig, data_parallel_size: int
) -> int:
    """Return the micro-batches per step on one rank.

    Raises:
        ValueError: the global batch does not divide, or contradicts micro_batch_num.

    """
    if training.global_batch_size is None:
        return dataset.micro_batch_num
    per_round = dataset.batch_size * data_parallel_size
    total = training.global_batch_size
    if training.decrease_batch_size_if_needed and total >= per_round:
        total = total // per_round * per_round
    _require_divisible(
        "global_batch_size",
        total,
        f"batch_size ({dataset.batch_size}) × data-parallel size ({data_parallel_size})",
        per_round,
        f"use {nearest_multiples(total, per_round)}",
    )
    count = total // per_round
    if dataset.micro_batch_num not in (1, count):
        raise ValueError(
            f"micro_batch_num ({dataset.micro_batch_num}) contradicts global_batch_size "
            f"({training.global_batch_size}), "
            f"which is {count} micro-batches of {dataset.batch_size} on {data_parallel_size} "
            "data-parallel ranks; keep one"
        )
    return count


def _check_choosers(model: TransformerConfig, placement: LayerPlacement) -> None:
    """Check that the layer which chooses keys for others is on their stage, and not a no-op.

    Raises:
        ValueError: it is not.
    """
    for stage in range(placement.num_stages):
        for chunk in range(placement.num_chunks):
            layers = [
                layer
                for layer in placement.layers_of(stage, chunk)
                if layer not in placement.noop_layers
            ]
            for layer in layers:
                chooser = model.chooser_of(layer, model.num_layers)
                if chooser not in layers:
                    raise ValueError(
                        f"layer {layer} sees the keys that layer {chooser} chooses "
                        f"(dsa_indexer_topk_freq {model.dsa_indexer_topk_freq}), which is not "
                        f"among the layers of stage {stage}, chunk {chunk}; begin each chunk with "
                        "a layer that chooses, as num_layer_list can"
                    )
