# SPDX-License-Identifier: Apache-2.0
"""A quick look at a layout: seconds and bytes from a few sums, to choose what is worth a plan.

It knows what ``make_plan`` knows, without the padding of buffers and without playing the schedule:
stages that hold the same are counted once, and what a micro-batch of one sequence needs is worked
out once for all layouts of the same tensor, context and expert tensor sizes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.models.feed_forward import MoESpec
from mindspeed_ms.models.parameter import ParamSpec
from mindspeed_ms.plan.recompute_plan import LayerRecompute
from mindspeed_ms.planning.activations import head_bytes, rank_sizes
from mindspeed_ms.planning.communication import (
    context_bytes_of_layer,
    expert_bytes_of_layer,
    share,
    tensor_units,
)
from mindspeed_ms.planning.memory import (
    WHOLE_WEIGHTS,
    StateBytes,
    element_bytes,
    scratch_buckets,
    stage_matrices,
)
from mindspeed_ms.planning.operations import backward_operations, tail_operations
from mindspeed_ms.planning.parameters import model_spec
from mindspeed_ms.planning.plan import shown_seconds
from mindspeed_ms.planning.space import NOTHING, Counts, Layout, Recompute, applied, spread
from mindspeed_ms.planning.timing import Device


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a layout takes, roughly."""

    layout: Layout
    seconds: float
    memory: float
    """Bytes of the fullest rank."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """Stages of a pipeline that hold the same kinds of layers."""

    kinds: tuple[tuple[int, int], ...]
    """(number of the kind, layers of it)."""
    first: int
    """The earliest of them."""
    is_last: bool
    many: int


@dataclass(frozen=True, slots=True)
class _Unit:
    """One layer on one rank, of a micro-batch of one sequence."""

    forward: float
    """Operations."""
    again: float
    kept: float
    """Bytes from forward to backward."""
    temporary: float
    waiting: float
    """Seconds of tensor, context and expert traffic."""
    stream: float
    """Bytes of its input."""


_COPIES = ("num_distributed_optimizer_instances", "zero_shard_size")
_NONE = StateBytes(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Parameters of one type on a rank that shares none of them out."""

    total: StateBytes = _NONE
    largest: StateBytes = _NONE
    """The largest of them."""
    frozen: int = 0
    """Bytes of weights that are not trained."""

    def and_more(self, other: _Buffer, count: int) -> _Buffer:
        """This one with another one several times."""
        return _Buffer(
            self.total + other.total.times(count),
            max(self.largest, other.largest, key=attrgetter("parameters")),
            self.frozen + count * other.frozen,
        )


_Held = Mapping[tuple[bool, str], _Buffer]
"""(is of one expert in each layer, type) -> parameters."""


def _together(parts: Iterable[tuple[_Held, int]]) -> _Held:
    """Parts, each several times."""
    found: dict[tuple[bool, str], _Buffer] = {}
    for held, count in parts:
        for key, buffer in held.items() if count else ():
            found[key] = found.get(key, _Buffer()).and_more(buffer, count)
    return found


class QuickLook:
    """Estimates for layouts of one model, batch and number of ranks.

    Args:
        config: the model and its batch.
        world_size: ranks.
        device: what a rank runs on.
        sections: the configuration as plain data.
    """

    def __init__(
        self,
        config: AllConfig,
        world_size: int,
        device: Device,
        sections: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.config, self.world_size = config, world_size
        self.device = device.shared_by(world_size)
        # Copies of the optimizer need all data-parallel ranks, of which the base has one.
        parallel = {k: v for k, v in sections["parallel_config"].items() if k not in _COPIES}
        self.sections = {**sections, "parallel_config": parallel}
        self.spec = model_spec(config)
        self.total = config.global_batch_size(world_size)
        self.kinds = list(dict.fromkeys(self.spec.layers))
        self.kind_of = [self.kinds.index(layer) for layer in self.spec.layers]
        self.back = backward_operations(self.spec)
        self.unit = lru_cache(maxsize=None)(self._unit)
        self.base = lru_cache(maxsize=None)(self._base)
        self.weights = lru_cache(maxsize=None)(self._weights)
        self.stages = lru_cache(maxsize=None)(self._stages)
        self.ends = lru_cache(maxsize=None)(self._ends)
        self.holds = lru_cache(maxsize=None)(self._holds)
        self.counts = lru_cache(maxsize=None)(self._counts)
        self.head = lru_cache(maxsize=None)(self._head)
        self.passes = lru_cache(maxsize=None)(self._passes)
        self.matrices = lru_cache(maxsize=None)(self._matrices)
        length = config.model_config.seq_length
        self.tail = tail_operations(self.spec, length)
        works = [0.0 if one is None else one.operations(length) for one in self.kinds]
        self.works = tuple(works[kind] for kind in self.kind_of)

    def _counts(self, stages: int, chunks: int) -> Counts:
        return spread(self.works, self.tail, stages, chunks)

    def longest_chunk(self, layout: Layout) -> int:
        """Layers of the fullest model chunk."""
        return max(count for row in self.counts(layout.stages, layout.chunks) for count in row)

    # --- parts, each worked out once --------------------------------------------------------------

    def _base(self, tensor: int, context: int, expert_tensor: int) -> AllConfig | None:
        """The configuration of one stage and one sequence, for the sizes that cut tensors."""
        plain = Layout(tensor, 1, context, 1, expert_tensor, 1, 1)
        return applied(self.config, self.sections, tensor * context, 1, plain)

    def _weights(self, kind: int, tensor: int, expert_tensor: int) -> _Held:
        """What a layer of a kind holds."""
        layer = self.spec.of_layer(self.kind_of.index(kind), range(1))
        return self._held(layer, tensor, expert_tensor)

    def _ends(self, tensor: int, expert_tensor: int, is_apart: bool) -> tuple[_Held, _Held]:
        """What comes before the layers, and behind them; ``is_apart``: on another stage."""
        before = self._held(self.spec.before_layers(), tensor, expert_tensor)
        behind = list(self.spec.behind_layers(range(1)))
        if is_apart and self.spec.has_shared_embedding:
            behind.append(self.spec.embedding_copy)
        return before, self._held(behind, tensor, expert_tensor)

    def _holds(self, stage: _Stage, tensor: int, expert_tensor: int, is_apart: bool) -> _Held:
        """What a stage holds; ``is_apart``: it is one of several."""
        before, behind = self.ends(tensor, expert_tensor, is_apart)
        parts = [(self.weights(kind, tensor, expert_tensor), count) for kind, count in stage.kinds]
        return _together([*parts, (before, stage.first == 0), (behind, stage.is_last)])

    def _held(self, parameters: Iterable[ParamSpec], tensor: int, expert_tensor: int) -> _Held:
        parts: list[tuple[_Held, int]] = []
        for one in parameters:
            size = math.prod(one.local_shape(tensor, expert_tensor))
            each = element_bytes(one, self.config)
            own = _Buffer()
            if one.is_frozen:
                own = _Buffer(frozen=size * each.weight)
            elif one.is_trained:
                bytes_of = StateBytes(1, each.weight, each.gradient, each.optimizer).times(size)
                own = _Buffer(bytes_of, bytes_of)
            parts.append(({(one.expert is not None, str(one.dtype)): own}, 1))
        return _together(parts)

    @cached_property
    def experts(self) -> int:
        """Of a layer."""
        return self.config.moe_config.num_experts if self.config.moe_config.is_moe else 0

    def _unit(
        self,
        kind: int,
        recompute: Recompute,
        tensor: int,
        context: int,
        expert_tensor: int,
        expert: int,
    ) -> _Unit:
        layer, base = self.kinds[kind], self.base(tensor, context, expert_tensor)
        assert base is not None, "a layout whose sizes do not fit was left out"
        if layer is None:
            return _Unit(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        length = self.config.model_config.seq_length
        part = length / (tensor * context)
        modules = LayerRecompute(frozenset(recompute.modules))
        sizes = rank_sizes(base)
        is_whole = recompute.granularity == "full"
        again = layer.operations(length) if is_whole else layer.repeated_operations(length, modules)
        kept = layer.kept_bytes(sizes, LayerRecompute() if is_whole else modules)
        return _Unit(
            layer.operations(length) * part,
            again * part,
            kept,
            layer.backward_bytes(sizes),
            self._waiting(kind, base, expert, is_whole),
            sizes.stream(self.spec.hidden_size),
        )

    def _waiting(self, kind: int, base: AllConfig, expert: int, is_whole: bool) -> float:
        model, parallel = base.model_config, base.parallel_config
        tensor, sizes = parallel.tensor_model_parallel_size, rank_sizes(base)
        stream = sizes.tokens * model.hidden_size * sizes.width
        seconds = 0.0
        layer = self.kinds[kind]
        if tensor > 1 and layer is not None:
            units = tensor_units(layer, parallel, parallel.sequence_parallel, is_whole)
            seconds += units * stream * share(tensor) / self.device.bandwidth(tensor)
        inner = 0.0
        if parallel.context_parallel_size > 1:
            inner += context_bytes_of_layer(base, self.kind_of.index(kind))
        if expert > 1 and layer is not None and isinstance(layer.mlp, MoESpec):
            inner += expert_bytes_of_layer(base, sizes.rows, sizes.width, expert)
        span = tensor * parallel.context_parallel_size * expert
        return seconds + inner / self.device.bandwidth(span)

    def _stages(self, stages: int, chunks: int) -> tuple[_Stage, ...]:
        held: list[Counter[int]] = [Counter() for _ in range(stages)]
        first = 0
        for row in self.counts(stages, chunks):
            for stage, count in enumerate(row):
                held[stage].update(self.kind_of[first : first + count])
                first += count
        groups: dict[object, list[int]] = {}
        for stage, kinds in enumerate(held):
            key = (stage == 0, stage == stages - 1, tuple(sorted(kinds.items())))
            groups.setdefault(key, []).append(stage)
        return tuple(
            _Stage(tuple(sorted(held[same[0]].items())), same[0], same[0] == stages - 1, len(same))
            for same in groups.values()
        )

    # --- a layout ---------------------------------------------------------------------------------

    def look(self, layout: Layout) -> Estimate | None:
        """Estimate a layout; None where its sizes do not fit the model."""
        data = self.world_size // (layout.tensor * layout.stages * layout.context)
        rounds = self.total // (layout.micro * data)
        if layout.chunks > 1 and rounds < layout.stages:
            return None
        base = self.base(layout.tensor, layout.context, layout.expert_tensor)
        if base is None or not self._is_cut(data * layout.context):
            return None
        passes, most, exposed = [], 0.0, 0.0
        for stage in self.stages(layout.stages, layout.chunks):
            seconds, kept, temporary = self.passes(
                stage,
                layout.recompute,
                self._whole_share(layout),
                (layout.tensor, layout.context, layout.expert_tensor, layout.expert),
            )
            seconds, temporary = seconds * layout.micro, temporary * layout.micro
            stream = rank_sizes(base).stream(self.spec.hidden_size)
            kept = (kept + stream * (layout.chunks - stage.is_last)) * layout.micro
            passes.append((seconds, stage.many))
            state, late = self._state(layout, stage, rounds, seconds)
            flight = _in_flight(layout, stage.first, rounds)
            most = max(most, state + kept * flight + temporary)
            exposed = max(exposed, late)
        longest = max(seconds for seconds, _ in passes)
        around = sum(seconds * many for seconds, many in passes)
        step = rounds * longest + (around - longest) / layout.chunks
        if layout.stages > 1:
            sizes = rank_sizes(base)
            moved = sizes.stream(self.spec.hidden_size) * layout.micro
            step += 2 * (layout.stages - 1) * moved / self.device.network_bytes_per_second
        crowding = self.device.crowding(self.world_size)
        step = max(step, rounds * around / layout.stages * crowding) + exposed * crowding
        return Estimate(layout, step, most)

    def _is_cut(self, ranks: int) -> bool:
        """Whether copies of the optimizer share data × context parallel ranks out evenly."""
        try:
            self.config.parallel_config.optimizer_instances_of(ranks)
        except ValueError:
            return False
        return True

    def _head(self, tensor: int, context: int, expert_tensor: int) -> tuple[int, int]:
        """(bytes kept, bytes beside) of the head and the losses."""
        base = self.base(tensor, context, expert_tensor)
        assert base is not None, "its layers came first"
        sizes = rank_sizes(base)
        logits = sizes.tokens * self.spec.vocab_size // sizes.tensor
        return head_bytes(base), logits * (4 if sizes.width == 4 else 6)

    def _passes(
        self, stage: _Stage, again: Recompute, whole: float, place: tuple[int, int, int, int]
    ) -> tuple[float, float, float]:
        """(seconds, bytes kept, bytes beside) of one sequence in all chunks of a stage.

        Args:
            stage: what it holds.
            again: what is recomputed.
            whole: share of the layers that are recomputed whole.
            place: tensor, context, expert tensor and expert sizes.
        """
        operations = waiting = kept = temporary = 0.0
        for kind, count in stage.kinds:
            plain, used = self.unit(kind, NOTHING, *place), self.unit(kind, again, *place)
            operations += count * (1 + self.back) * plain.forward
            waiting += count * (whole * used.waiting + (1 - whole) * plain.waiting)
            temporary = max(temporary, plain.temporary)
            if again.granularity == "full":
                size = (again.num_layers or 1) if again.method == "uniform" else 1
                operations += count * whole * used.again
                kept += count * (whole * plain.stream / size + (1 - whole) * plain.kept)
                temporary = max(temporary, size * plain.kept)
            else:
                operations += count * used.again
                kept += count * used.kept
        if stage.is_last:
            length = self.config.model_config.seq_length
            operations += (1 + self.back) * self.tail * length / (place[0] * place[1])
            held, beside = self.head(*place[:3])
            kept, temporary = kept + held, max(temporary, beside)
        layers = sum(count for _, count in stage.kinds)
        waiting += 3 * (layers + 1) * self.device.pass_seconds
        return operations / self.device.operations_per_second + waiting, kept, temporary

    def _whole_share(self, layout: Layout) -> float:
        """Share of the layers that are recomputed whole."""
        again = layout.recompute
        if again.granularity != "full":
            return 0.0
        if again.method == "uniform":
            return 1.0
        return min(1.0, (again.num_layers or 0) / self.longest_chunk(layout))

    def _state(
        self, layout: Layout, stage: _Stage, rounds: int, seconds: float
    ) -> tuple[float, float]:
        """(bytes of weights, gradients and optimizer; seconds of traffic that nothing hides)."""
        ranks = self.world_size // (layout.tensor * layout.stages)
        instances = self.config.parallel_config.optimizer_instances_of(ranks)
        expert_ranks = self.world_size // (layout.expert_tensor * layout.expert * layout.stages)
        overlaps = self.config.training_config.overlap_grad_reduce
        sizes = (layout.tensor, layout.expert_tensor)
        total = state = moved = 0.0
        for (is_expert, _), buffer in self.holds(stage, *sizes, layout.stages > 1).items():
            many = self.experts // layout.expert if is_expert else 1
            own, largest = buffer.total.times(many), buffer.largest
            group = max(expert_ranks, 1) if is_expert else ranks
            shards = group if is_expert else group // instances
            weights, gradients = float(own.weights), float(own.gradients)
            if layout.zero == "z3" and not is_expert:
                weights = weights / shards + WHOLE_WEIGHTS * largest.weights
            if layout.zero != "z1":
                several = own.parameters > largest.parameters
                scratch = scratch_buckets(overlaps and several)
                gradients = gradients / shards + scratch * largest.gradients
            state += own.optimizer / shards
            total += weights + gradients + buffer.frozen * many
            moved += (own.weights + own.gradients) * share(group)
        repeated = 1 if layout.zero == "z1" else rounds
        sent = moved * repeated / self.device.bandwidth(layout.tensor * ranks)
        if overlaps:
            sent = shown_seconds(sent, seconds, repeated)
        whole, products = self._of_matrices(layout, stage)
        state += whole
        late = (sent if ranks > 1 else 0.0) + self.device.update_seconds(state)
        on_host = self.config.optimizer_config.algorithm == "soap"
        late += self.device.matrix_seconds(products, on_host=on_host)
        return total + state, late

    def _of_matrices(self, layout: Layout, stage: _Stage) -> tuple[float, float]:
        """(bytes, operations) of matrices that each of their owners has all of.

        Matrices are few and large: who owns parts of how many is not a matter of shares.
        """
        if not self.config.optimizer_config.updates_matrices:
            return 0.0, 0.0
        return self.matrices(replace(layout, micro=1, recompute=NOTHING), stage.first)

    def _matrices(self, layout: Layout, stage: int) -> tuple[float, float]:
        changed = applied(self.config, self.sections, self.world_size, self.total, layout)
        assert changed is not None, "a layout whose sizes do not fit was left out"
        return stage_matrices(changed, self.world_size, stage)


def _in_flight(layout: Layout, stage: int, rounds: int) -> float:
    """Micro-batches whose activations a stage keeps at a time."""
    if layout.chunks == 1:
        return min(rounds, layout.stages - stage)
    passes = 2 * (layout.stages - stage - 1) + (layout.chunks - 1) * layout.stages + 1
    return min(rounds * layout.chunks, passes) / layout.chunks
