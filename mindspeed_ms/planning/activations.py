# SPDX-License-Identifier: Apache-2.0
"""Bytes of activations one rank keeps, from forward to backward: sums over the model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import dtype_bytes
from mindspeed_ms.models.sizes import STATISTICS, RankSizes
from mindspeed_ms.plan.layer_placement import layer_placement
from mindspeed_ms.plan.recompute_plan import NO_RECOMPUTE, LayerRecompute, recompute_plan
from mindspeed_ms.plan.schedule_plan import Backward, Shape, compute_order
from mindspeed_ms.planning.parameters import model_spec


@dataclass(frozen=True, slots=True)
class ActivationBytes:
    """Activations of one rank at their peak, in bytes."""

    kept: int
    """Of all forwards in flight."""
    temporary: int
    """The most that one layer's or the head's backward needs beside it."""
    in_flight: float
    """Forwards in flight at the peak, in micro-batches through the whole stage."""
    evaluation: int = 0
    """The most that a forward of an evaluation needs, which keeps nothing."""

    @property
    def is_evaluation_fuller(self) -> bool:
        """Whether an evaluation needs more than training."""
        return self.evaluation > self.kept + self.temporary

    @property
    def peak(self) -> int:
        """Of training and evaluations."""
        return max(self.kept + self.temporary, self.evaluation)


def rank_sizes(config: AllConfig) -> RankSizes:
    """Sizes of one micro-batch on one rank."""
    model, parallel = config.model_config, config.parallel_config
    tensor = parallel.tensor_model_parallel_size
    tokens = model.seq_length // parallel.context_parallel_size
    tokens *= config.dataset_config.batch_size
    return RankSizes(
        tokens=tokens,
        rows=tokens // (tensor if parallel.sequence_parallel else 1),
        width=dtype_bytes(model.compute_dtype),
        stream_width=dtype_bytes(model.residual_connection_dtype or model.compute_dtype),
        tensor=tensor,
        expert_tensor=parallel.expert_tensor_parallel_size or tensor,
    )


def layer_bytes(config: AllConfig, index: int, recompute: LayerRecompute = NO_RECOMPUTE) -> int:
    """What one layer keeps of one micro-batch."""
    layer = model_spec(config).layers[index]
    return 0 if layer is None else layer.kept_bytes(rank_sizes(config), recompute)


def head_bytes(config: AllConfig) -> int:
    """What the final norm, the heads and the losses keep of one micro-batch."""
    model, spec, sizes = config.model_config, model_spec(config), rank_sizes(config)
    norm = 0
    if spec.final_norm is not None:
        norm = sizes.stream(spec.hidden_size) + sizes.rows * STATISTICS
    width = 4 if not model.fp16_lm_cross_entropy else 2
    logits = sizes.tokens * spec.vocab_size // sizes.tensor
    head = sizes.normed(spec.hidden_size) + logits * width
    if model.final_logit_softcapping is not None:  # its slope needs what was capped
        head += logits * sizes.width
    behind = sum(head + one.kept_bytes(sizes, NO_RECOMPUTE) for one in spec.further)
    if spec.query is not None:
        behind += spec.query.kept_bytes(sizes, NO_RECOMPUTE)
    return norm + head + behind


def chunk_bytes(config: AllConfig, stage: int, chunk: int) -> int:
    """What one model chunk keeps of one micro-batch."""
    model, parallel = config.model_config, config.parallel_config
    placement = layer_placement(model, parallel)
    plan = recompute_plan(model, parallel, placement, (stage, chunk))
    stream = rank_sizes(config).stream(model.hidden_size)
    total = 0
    if (stage, chunk) == (0, 0) and model_spec(config).embedding.norm is not None:
        total += stream + rank_sizes(config).rows * STATISTICS
    for group in plan.groups:
        if group.is_recomputed:
            total += stream
        else:
            total += sum(layer_bytes(config, layer, plan.layers[layer]) for layer in group.layers)
    is_last = stage == placement.num_stages - 1 and chunk == placement.num_chunks - 1
    return total + (head_bytes(config) if is_last else stream)


def _temporary(config: AllConfig, stage: int) -> int:
    """The most memory a backward needs beside what was kept: a group, a layer, or the head."""
    model, parallel, spec = config.model_config, config.parallel_config, model_spec(config)
    placement = layer_placement(model, parallel)
    sizes = rank_sizes(config)
    most = 0
    for chunk in range(placement.num_chunks):
        plan, early = recompute_plan(model, parallel, placement, (stage, chunk)), 0
        for group in plan.groups:
            layers = [spec.layers[index] for index in group.layers]
            if group.is_recomputed:
                whole = sum(layer_bytes(config, index) for index in group.layers)
                early += whole
                most = max(most, early if parallel.recomputes_early else whole)
            else:
                widest = [layer.backward_bytes(sizes) for layer in layers if layer is not None]
                most = max(most, *widest, 0)
    if stage == placement.num_stages - 1:
        logits = sizes.tokens * spec.vocab_size // sizes.tensor
        most = max(most, logits * (4 if sizes.width == 4 else 6))
        if config.training_config.qad_enable:  # the teacher's wait for the student's
            most += logits * sizes.width
    return most


def _evaluation(config: AllConfig, stage: int) -> int:
    """The most that a forward of an evaluation needs: one layer, or the logits.

    Its micro-batch may be larger than that of training, and then is what fills the memory.
    """
    if not config.training_config.eval_iters and not config.training_config.full_validation:
        return 0
    model, spec = config.model_config, model_spec(config)
    placement = layer_placement(model, config.parallel_config)
    sizes = _evaluated(rank_sizes(config), config)
    layers = [spec.layers[index] for index in placement.layers_of_stage(stage)]
    most = [one.kept_bytes(sizes, NO_RECOMPUTE) for one in layers if one is not None]
    if stage == placement.num_stages - 1:
        most.append(sizes.tokens * spec.vocab_size // sizes.tensor * sizes.width)
    return sizes.stream(model.hidden_size) + max(most, default=0)


def _evaluated(sizes: RankSizes, config: AllConfig) -> RankSizes:
    """Sizes of one micro-batch of an evaluation."""
    trained, evaluated = config.dataset_config.batch_size, config.evaluation_micro_batch_size
    tokens, rows = (count // trained * evaluated for count in (sizes.tokens, sizes.rows))
    return replace(sizes, tokens=tokens, rows=rows)


def stage_activations(config: AllConfig, stage: int, microbatches: int) -> ActivationBytes:
    """Activations of a rank of one stage, at the fullest moment of a step."""
    placement = layer_placement(config.model_config, config.parallel_config)
    sizes = [chunk_bytes(config, stage, chunk) for chunk in range(placement.num_chunks)]
    shape = representative_shape(config, microbatches)
    kept = most_in_flight(shape, stage, sizes)
    whole = sum(sizes)
    return ActivationBytes(
        kept,
        _temporary(config, stage),
        kept / whole if whole else 0.0,
        _evaluation(config, stage),
    )


def representative_shape(config: AllConfig, microbatches: int) -> Shape:
    """The schedule of a step, shortened where more micro-batches only repeat its middle."""
    placement = layer_placement(config.model_config, config.parallel_config)
    stages, chunks = placement.num_stages, placement.num_chunks
    group = config.parallel_config.microbatch_group_size_per_vp_stage
    unit = max(group or stages, stages)
    enough = 3 * unit if chunks > 1 else 2 * stages
    if chunks > 1 and microbatches > enough:
        microbatches = enough + microbatches % unit if microbatches % unit else enough
    return Shape(stages, min(microbatches, max(enough + unit, 1)), chunks, group)


def most_in_flight(shape: Shape, stage: int, sizes: Sequence[int]) -> int:
    """Largest sum of ``sizes[chunk]`` over the forwards whose backward is still to come."""
    alive = most = 0
    for step in compute_order(shape, stage):
        if isinstance(step, Backward):
            alive -= sizes[step.chunk]
        else:
            alive += sizes[step.chunk]
            most = max(most, alive)
    return most
