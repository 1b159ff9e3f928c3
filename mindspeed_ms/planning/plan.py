# SPDX-License-Identifier: Apache-2.0
"""The plan of a run: layout, memory, traffic, time, from the configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.dtypes import dtype_bytes
from mindspeed_ms.plan.layer_placement import LayerPlacement, layer_placement
from mindspeed_ms.plan.schedule_plan import Shape
from mindspeed_ms.planning.activations import ActivationBytes, stage_activations
from mindspeed_ms.planning.cache import cache_bytes_per_token
from mindspeed_ms.planning.communication import Traffic, stage_traffic, tensor_bytes_of_chunk
from mindspeed_ms.planning.memory import StateBytes, stage_matrices, stage_state
from mindspeed_ms.planning.operations import backward_operations, chunk_operations, step_operations
from mindspeed_ms.planning.parameters import model_spec, total_parameters
from mindspeed_ms.planning.timing import Device, PassSeconds, Timeline, play_long


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One rank of a pipeline stage."""

    stage: int
    state: StateBytes
    activations: ActivationBytes
    traffic: Traffic
    passes: tuple[PassSeconds, ...]
    """By chunk."""
    again: float
    """Seconds of a micro-batch in all chunks that go into recomputation."""
    tensor: float
    """Seconds of them that go into tensor-parallel traffic."""
    inner: float
    """Seconds of them that go into context and expert traffic."""
    matrix_operations: float = 0.0
    """Of the update rule of matrices in a step."""
    cache_bytes: int = 0
    """That a token leaves in a key/value cache when the model generates."""

    @property
    def bytes_at_peak(self) -> int:
        """State and activations together."""
        return self.state.total + self.activations.peak


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration needs on a number of ranks."""

    config: AllConfig
    world_size: int
    device: Device
    placement: LayerPlacement
    microbatches: int
    parameters: int
    operations: float
    """Of one step over all ranks, recomputation not counted."""
    stages: tuple[StagePlan, ...]
    timeline: Timeline
    """Of the passes alone."""
    exposed_seconds: float
    """Gradient reduction and weight gathering that nothing hides, and the optimizer."""

    @property
    def crowding(self) -> float:
        """Ranks for each core, where there are more ranks than cores; else 1."""
        return self.device.crowding(self.world_size)

    @property
    def step_seconds(self) -> float:
        """Estimated duration of a step.

        Ranks that wait leave their core to others, so of many ranks on few cores it is what all of
        them compute together, unless the schedule takes longer.
        """
        together = sum(self.timeline.busy) / len(self.timeline.busy) * self.crowding
        return max(self.timeline.seconds, together) + self.exposed_seconds * self.crowding

    @property
    def parts(self) -> Mapping[str, float]:
        """Seconds of a step by what they go into, of the stage that computes longest."""
        busy = max(self.timeline.busy)
        stage = self.stages[self.timeline.busy.index(busy)]
        again, tensor, inner = (
            self.microbatches * part for part in (stage.again, stage.tensor, stage.inner)
        )
        return {
            "work": busy - again - tensor - inner,
            "again": again,
            "tensor": tensor,
            "inner": inner,
            "waiting": self.step_seconds - self.exposed_seconds * self.crowding - busy,
            "exposed": self.exposed_seconds * self.crowding,
        }

    @property
    def bytes_at_peak(self) -> int:
        """Of the fullest rank."""
        return max(stage.bytes_at_peak for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether the fullest rank fits into a device."""
        return self.bytes_at_peak <= self.device.memory_bytes

    @property
    def utilization(self) -> float:
        """Share of the devices' peak that the step's own operations use."""
        peak = self.device.tflops * 1e12 * self.world_size
        return self.operations / (self.step_seconds * peak)


def schedule_of(config: AllConfig, world_size: int) -> Shape:
    """What determines the order of passes.

    Raises:
        ValueError: no schedule exists for these counts.
    """
    parallel = config.parallel_config
    placement = layer_placement(config.model_config, parallel)
    return Shape(
        placement.num_stages,
        config.num_micro_batches(world_size),
        placement.num_chunks,
        parallel.microbatch_group_size_per_vp_stage,
    )


def make_plan(config: AllConfig, world_size: int, device: Device | None = None) -> Plan:
    """Work out the plan.

    Args:
        config: the configuration.
        world_size: ranks.
        device: what each rank runs on; None: the usual one.

    Raises:
        ValueError: the configuration does not fit the ranks, or has no schedule.
    """
    device = (device or Device()).shared_by(world_size)
    config.validate(world_size)
    parallel = config.parallel_config
    placement = layer_placement(config.model_config, parallel)
    microbatches = config.num_micro_batches(world_size)
    shape = schedule_of(config, world_size)
    stages = tuple(
        _stage_plan(config, world_size, device, placement, microbatches, stage)
        for stage in range(placement.num_stages)
    )
    return Plan(
        config=config,
        world_size=world_size,
        device=device,
        placement=placement,
        microbatches=microbatches,
        parameters=total_parameters(config),
        operations=step_operations(config.model_config, config.global_batch_size(world_size)),
        stages=stages,
        timeline=play_long(
            shape, [stage.passes for stage in stages], _transfer_seconds(config, device)
        ),
        exposed_seconds=max(
            _exposed_seconds(config, world_size, device, stage) for stage in stages
        ),
    )


def _stage_plan(
    config: AllConfig,
    world_size: int,
    device: Device,
    placement: LayerPlacement,
    microbatches: int,
    stage: int,
) -> StagePlan:
    traffic = stage_traffic(config, world_size, stage, microbatches)
    others = (traffic.context + traffic.expert) / microbatches / placement.num_chunks
    passes = []
    again = tensor = 0.0
    inner = others * placement.num_chunks / device.bandwidth(_inner_span(config))
    back = backward_operations(model_spec(config))
    for chunk in range(placement.num_chunks):
        forward, backward = chunk_operations(config, stage, chunk)
        moved = tensor_bytes_of_chunk(config, stage, chunk)
        wait = moved / device.bandwidth(config.parallel_config.tensor_model_parallel_size)
        tensor += wait
        repeated = (backward - back * forward) / device.operations_per_second
        again += repeated
        launches = (1 + len(placement.layers_of(stage, chunk))) * device.pass_seconds
        wait += others / device.bandwidth(_inner_span(config))
        passes.append(
            PassSeconds(
                forward / device.operations_per_second + 0.4 * wait + launches,
                backward / device.operations_per_second + 0.6 * wait + 2 * launches,
                repeated if config.parallel_config.recomputes_early else 0.0,
            )
        )
    return StagePlan(
        stage=stage,
        state=stage_state(config, world_size, stage),
        matrix_operations=stage_matrices(config, world_size, stage)[1],
        activations=stage_activations(config, stage, microbatches),
        traffic=traffic,
        passes=tuple(passes),
        again=again,
        tensor=tensor,
        inner=inner,
        cache_bytes=cache_bytes_per_token(config, stage),
    )


def _inner_span(config: AllConfig) -> int:
    """Consecutive ranks that context and expert groups cover, in the usual order of axes."""
    parallel = config.parallel_config
    return (
        parallel.tensor_model_parallel_size
        * parallel.context_parallel_size
        * parallel.expert_model_parallel_size
    )


def _transfer_seconds(config: AllConfig, device: Device) -> float:
    """Seconds an activation travels to the next stage, which lies on another host."""
    model, parallel = config.model_config, config.parallel_config
    if parallel.pipeline_model_parallel_size == 1:
        return 0.0
    cut = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    tokens = config.dataset_config.batch_size * model.seq_length
    size = tokens // parallel.context_parallel_size // cut * model.hidden_size
    return size * dtype_bytes(parallel.recv_dtype) / device.network_bytes_per_second


def _exposed_seconds(config: AllConfig, world_size: int, device: Device, stage: StagePlan) -> float:
    """Of gradients, weights and optimizer; see ``shown_seconds`` for what the passes hide."""
    parallel = config.parallel_config
    ranks = parallel.data_parallel_size(world_size) * parallel.context_parallel_size
    span = parallel.tensor_model_parallel_size * ranks
    update = device.update_seconds(stage.state.optimizer) + device.matrix_seconds(
        stage.matrix_operations, on_host=config.optimizer_config.algorithm == "soap"
    )
    if ranks == 1:
        return update
    each = sum(one.forward + one.backward for one in stage.passes)
    every = config.num_micro_batches(world_size)
    repeated = every if parallel.shards_gradients else 1
    sent = stage.traffic.data / device.bandwidth(span)
    if not config.training_config.overlap_grad_reduce:
        return sent + update
    return shown_seconds(sent, each, repeated) + update


def shown_seconds(sent: float, each: float, repeated: int) -> float:
    """Seconds of gradients and weights that passes do not hide.

    Args:
        sent: seconds that they travel in a step.
        each: seconds of a micro-batch in a stage.
        repeated: micro-batches in which they travel; they hide behind the passes of those.
    """
    return max(sent / (2 * repeated), sent - each * repeated)
