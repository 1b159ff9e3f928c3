# SPDX-License-Identifier: Apache-2.0
"""The layouts a search may choose from: sizes of all axes, sharding, micro-batch, recomputation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mindspeed_ms.config import AllConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.models import ModelSpec
from mindspeed_ms.models.feed_forward import MoESpec
from mindspeed_ms.plan.recompute_plan import (
    CORE_ATTENTION,
    MLA_UP_PROJECTION,
    MLP_ACTIVATION,
    MOE_ACTIVATION,
    NORMS,
)
from mindspeed_ms.planning.operations import tail_operations
from mindspeed_ms.planning.parameters import model_spec
from mindspeed_ms.planning.plan import schedule_of

MICRO_BATCHES = (1, 2, 4, 8)
_MOST_STAGES = _MOST_CONTEXT = 64
CHUNKS = (1, 2, 3, 4, 8)
ZERO_LEVELS = ("z1", "z2", "z3")
BLOCK_SHARES = (0.25, 0.5, 0.75)
"""Shares of a model chunk's layers that ``block`` recomputes; ``uniform`` takes all."""

_STATED_ELSEWHERE = (
    "num_layer_list",
    "pipeline_model_parallel_layout",
    "num_layers_per_virtual_pipeline_stage",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
    "standalone_embedding_stage",
    "microbatch_group_size_per_vp_stage",
    "recompute",
    "select_recompute",
    "select_comm_recompute",
)
"""Options of one layout that make no sense in another; candidates leave them at their defaults."""

_RECOMPUTE_FIELDS = (
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "recompute_modules",
)

Counts = tuple[tuple[int, ...], ...]
"""Layers by chunk and stage."""


@dataclass(frozen=True, slots=True)
class Recompute:
    """What backward computes again."""

    granularity: str | None = None
    method: str | None = None
    num_layers: int | None = None
    modules: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """Of the model section."""
        values = (self.granularity, self.method, self.num_layers, list(self.modules) or None)
        return {
            name: value
            for name, value in zip(_RECOMPUTE_FIELDS, values, strict=True)
            if value is not None
        }

    @property
    def flags(self) -> list[str]:
        """How a command line asks for it."""
        words = []
        for name, value in self.fields().items():
            text = " ".join(value) if isinstance(value, list) else str(value)
            words.append(f"--{name.replace('_', '-')} {text}")
        return words


NOTHING = Recompute()


@dataclass(frozen=True, slots=True)
class Layout:
    """One point of the search."""

    tensor: int
    stages: int
    context: int
    expert: int
    expert_tensor: int
    chunks: int
    micro: int
    zero: str = "z1"
    recompute: Recompute = NOTHING

    @property
    def flags(self) -> str:
        """How a command line asks for it; the layers per stage come with the configuration."""
        words = [
            f"--tensor-model-parallel-size {self.tensor}",
            f"--pipeline-model-parallel-size {self.stages}",
        ]
        if self.chunks > 1:
            words.append(f"--virtual-pipeline-model-parallel-size {self.chunks}")
        if self.context > 1:
            words.append(f"--context-parallel-size {self.context}")
        if self.expert > 1:
            words.append(f"--expert-model-parallel-size {self.expert}")
        if self.expert_tensor != self.tensor:
            words.append(f"--expert-tensor-parallel-size {self.expert_tensor}")
        words.append(f"--micro-batch-size {self.micro}")
        if self.tensor > 1:
            words.append("--sequence-parallel")
        words.append("--use-distributed-optimizer")
        if self.zero != "z1":
            words.append(f"--zero-level {self.zero}")
        return " ".join([*words, *self.recompute.flags])


def divisors(number: int, limit: int) -> list[int]:
    """Divisors of a number, up to a limit."""
    return [part for part in range(1, min(number, limit) + 1) if number % part == 0]


def recomputes(spec: ModelSpec, layers_per_chunk: int) -> list[Recompute]:
    """Choices for chunks of so many layers, from the cheapest to what leaves the least."""
    layers = [layer for layer in spec.layers if layer is not None]
    light = [NORMS]
    light += [MLP_ACTIVATION] if any(not isinstance(one.mlp, MoESpec) for one in layers) else []
    light += [MOE_ACTIVATION] if any(isinstance(one.mlp, MoESpec) for one in layers) else []
    choices = [NOTHING, Recompute("selective", modules=tuple(light))]
    if any(hasattr(one.attention, "kv_up_proj") for one in layers):
        light.append(MLA_UP_PROJECTION)
        choices.append(Recompute("selective", modules=tuple(light)))
    choices.append(Recompute("selective", modules=(CORE_ATTENTION, *light)))
    counts = {math.ceil(share * layers_per_chunk) for share in BLOCK_SHARES}
    choices += [
        Recompute("full", "block", count) for count in sorted(counts) if count < layers_per_chunk
    ]
    return [*choices, *(Recompute("full", "uniform", size) for size in (1, 2, 4))]


def layouts(config: AllConfig, world_size: int, ranks_per_node: int) -> Iterator[Layout]:
    """Sizes that divide what they share out; sharding and recomputation are left open."""
    model, moe = config.model_config, config.moe_config
    experts = divisors(moe.num_experts, world_size) if moe.is_moe else [1]
    total, groups = config.global_batch_size(world_size), model.num_kv_groups
    axes = itertools.product(
        # More ranks than key/value groups: several of them hold the same group.
        [
            size
            for size in divisors(model.num_attention_heads, ranks_per_node)
            if not (groups % size and size % groups)
        ],
        divisors(world_size, min(model.num_layers, _MOST_STAGES)),
        divisors(world_size, min(model.seq_length // 2, _MOST_CONTEXT)),
        experts,
        (True, False) if moe.is_moe else (True,),
        MICRO_BATCHES,
        CHUNKS,
    )
    for tensor, stages, context, expert, splits_experts, micro, chunks in axes:
        expert_tensor = tensor if splits_experts else 1
        copies, over = divmod(world_size, tensor * stages * context)
        if over or total % (micro * copies) or world_size % (expert_tensor * expert * stages):
            continue
        if (not splits_experts and tensor == 1) or (chunks > 1 and stages == 1):
            continue
        if stages * chunks <= model.num_layers:
            yield Layout(tensor, stages, context, expert, expert_tensor, chunks, micro)


def spread(works: Sequence[float], tail: float, stages: int, chunks: int) -> Counts:
    """Layers per chunk and stage that keep the busiest stage short.

    Every place gets one layer, then each further one goes to the stage with the least to do, the
    later one of equals (its activations live shorter), there to the chunk with the fewest.

    Args:
        works: of the layers.
        tail: work of the last stage beside its layers.
        stages: pipeline stages.
        chunks: model chunks of a stage; stages × chunks is at most the number of layers.
    """
    mean = sum(works) / len(works)
    counts = [[1] * stages for _ in range(chunks)]
    loads = [mean * chunks + (tail if stage == stages - 1 else 0.0) for stage in range(stages)]
    for _ in range(len(works) - stages * chunks):
        stage = min(range(stages), key=lambda one: (round(loads[one] / mean, 6), -one))
        chunk = min(range(chunks), key=lambda one: counts[one][stage])
        counts[chunk][stage] += 1
        loads[stage] += mean
    return tuple(tuple(row) for row in counts)


def applied(
    config: AllConfig,
    sections: Mapping[str, Mapping[str, Any]],
    world_size: int,
    total: int,
    layout: Layout,
) -> AllConfig | None:
    """The configuration with another layout; None when that is not legal.

    Args:
        config: the configuration.
        sections: the same as plain data.
        world_size: ranks.
        total: sequences of a step.
        layout: what changes.
    """
    own = {name: dict(values) for name, values in sections.items()}
    parallel = own["parallel_config"]
    for name in _STATED_ELSEWHERE:
        parallel.pop(name, None)
    spec, length = model_spec(config), config.model_config.seq_length
    works = [0.0 if layer is None else layer.operations(length) for layer in spec.layers]
    counts = spread(works, tail_operations(spec, length), layout.stages, layout.chunks)
    if len({count for row in counts for count in row}) > 1:
        parallel["num_layer_list"] = [list(row) for row in counts]
        if layout.chunks == 1:
            parallel["num_layer_list"] = list(counts[0])
    parallel |= {
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.stages,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "virtual_pipeline_model_parallel_size": layout.chunks if layout.chunks > 1 else None,
        "sequence_parallel": layout.tensor > 1,
        "zero_level": None if layout.zero == "z1" else layout.zero,
    }
    own["dataset_config"] |= {"batch_size": layout.micro, "micro_batch_num": 1}
    own["training_config"] |= {
        "global_batch_size": total,
        "wrap_with_ddp": True,
        "use_distributed_optimizer": True,
    }
    model = own["model_config"]
    for name in _RECOMPUTE_FIELDS:
        model.pop(name, None)
    model |= layout.recompute.fields()
    try:
        changed = assemble(own).validate(world_size)
        schedule_of(changed, world_size)
    except ValueError:
        return None
    return changed


def left_out(config: AllConfig, chosen: AllConfig) -> list[str]:
    """Flags of the script that a candidate takes back: fields it has at their defaults."""
    names = [
        *(("parallel_config", name) for name in _STATED_ELSEWHERE),
        ("parallel_config", "virtual_pipeline_model_parallel_size"),
        ("parallel_config", "sequence_parallel"),
        ("parallel_config", "zero_level"),
        *(("model_config", name) for name in _RECOMPUTE_FIELDS),
    ]
    words = []
    for section, name in names:
        before = getattr(getattr(config, section), name)
        after = getattr(getattr(chosen, section), name)
        if before not in (None, False) and after in (None, False):
            words.append("--" + name.replace("_", "-"))
    return words
