# SPDX-License-Identifier: Apache-2.0
"""What each layer recomputes in backward: a pure function of the configuration.

Three ways to ask, by increasing detail: ``recompute_granularity`` for the whole model (Megatron),
``recompute_modules`` for parts of every layer, and the lists ``recompute``, ``select_recompute``
and ``select_comm_recompute`` of ``parallel_config`` with numbers of layers per stage and chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mindspeed_ms.plan.layer_placement import LayerPlacement
from mindspeed_ms.plan.settings import LayoutSettings, ModelSettings, RecomputeList

CORE_ATTENTION = "core_attn"
MLP = "mlp"
MLP_ACTIVATION = "mlp_act"
NORMS = "layernorm"
MOE = "moe"
MOE_ACTIVATION = "moe_act"
SHARED_EXPERTS = "shared_experts"
MLA_UP_PROJECTION = "mla_up_proj"
MODULES = (
    CORE_ATTENTION,
    MLP,
    MLP_ACTIVATION,
    NORMS,
    MOE,
    MOE_ACTIVATION,
    SHARED_EXPERTS,
    MLA_UP_PROJECTION,
)
"""Parts of a layer that can be recomputed; all but ``mlp_act`` are Megatron's names."""

SELECTED = frozenset({CORE_ATTENTION, MLP_ACTIVATION, MOE_ACTIVATION})
"""What ``select_recompute`` stands for."""


@dataclass(frozen=True, slots=True)
class LayerRecompute:
    """What one layer does in backward again."""

    modules: frozenset[str] = frozenset()
    """Parts that are recomputed; empty in a layer that is recomputed as a whole."""

    keeps_gathered: bool = False
    """Keep the sequence-parallel gather of a linear layer's input instead of repeating it."""


NO_RECOMPUTE = LayerRecompute()
"""Of a layer that keeps all it needs."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Consecutive layers of a chunk that are recomputed together, or not at all."""

    layers: tuple[int, ...]
    is_recomputed: bool


@dataclass(frozen=True, slots=True)
class ChunkRecompute:
    """Recomputation in one model chunk."""

    groups: tuple[LayerGroup, ...]
    layers: dict[int, LayerRecompute]
    """By global layer number."""


Place: TypeAlias = tuple[int, int]
"""(stage, chunk)."""


def recompute_plan(
    model: ModelSettings,
    parallel: LayoutSettings,
    placement: LayerPlacement,
    place: Place,
) -> ChunkRecompute:
    """Recomputation in one place: a chunk of a stage.

    A layer that ``recompute`` names is recomputed as a whole, whatever else names it. Counts mean
    the first layers of the chunk; a count per stage runs through the stage's chunks in order.

    Raises:
        ValueError: a list that does not fit the stages, contradicting options, an unknown module.
    """
    check_recompute(model, parallel, placement)
    layers = placement.layers_of(*place)
    num_full = count_at(parallel.recompute, placement, place, "recompute")
    num_selected = count_at(parallel.select_recompute, placement, place, "select_recompute")
    num_regathered = len(layers)
    if parallel.select_comm_recompute is not None:
        num_regathered = count_at(
            parallel.select_comm_recompute, placement, place, "select_comm_recompute"
        )
    everywhere = frozenset(_modules_of(model))
    if model.moe_config.moe_layer_recompute:
        everywhere |= {MOE}
    details = {
        layer: LayerRecompute(
            modules=everywhere | (SELECTED if index < num_selected else frozenset()),
            keeps_gathered=index >= num_regathered,
        )
        for index, layer in enumerate(layers)
    }
    groups = _groups(model, layers, num_full)
    for group in groups:
        if group.is_recomputed:
            for layer in group.layers:
                details[layer] = LayerRecompute(keeps_gathered=details[layer].keeps_gathered)
    return ChunkRecompute(groups, details)


def _modules_of(model: ModelSettings) -> tuple[str, ...]:
    if model.recompute_granularity != "selective":
        return ()
    return model.recompute_modules or (CORE_ATTENTION,)


def _groups(model: ModelSettings, layers: tuple[int, ...], num_full: int) -> tuple[LayerGroup, ...]:
    size, whole = 1, num_full
    if model.recompute_granularity == "full":
        if model.recompute_method == "uniform":
            size, whole = model.recompute_num_layers or 1, len(layers)
        else:
            whole = model.recompute_num_layers or 0
    groups = [
        LayerGroup(layers[first : min(first + size, len(layers))], True)
        for first in range(0, min(whole, len(layers)), size)
    ]
    rest = layers[min(whole, len(layers)) :]
    return (*groups, LayerGroup(rest, False)) if rest else tuple(groups)


def check_recompute(
    model: ModelSettings, parallel: LayoutSettings, placement: LayerPlacement
) -> None:
    """Check the options of recomputation against each other and against the stages.

    Raises:
        ValueError: see ``recompute_plan``.
    """
    for name in ("recompute", "select_recompute", "select_comm_recompute"):
        value = getattr(parallel, name)
        for stage in range(placement.num_stages):
            for chunk in range(placement.num_chunks):
                count_at(value, placement, (stage, chunk), name)
        is_comm = name == "select_comm_recompute"
        if value not in (None, False) and model.recompute_granularity and not is_comm:
            raise ValueError(
                f"{name} {value} and recompute_granularity {model.recompute_granularity} both say "
                "what to recompute; keep one of them"
            )
    _check_modules(model)


def _check_modules(model: ModelSettings) -> None:
    modules = model.recompute_modules
    if modules is None:
        return
    if model.recompute_granularity != "selective":
        raise ValueError(
            f"recompute_modules {modules} needs recompute_granularity selective, given "
            f"{model.recompute_granularity}; set it or leave the modules out"
        )
    unknown = [name for name in modules if name not in MODULES]
    if unknown:
        raise ValueError(
            f"recompute_modules names {unknown[0]!r}; this model can recompute "
            f"{', '.join(MODULES)}: leave the others out"
        )


def count_at(
    value: RecomputeList | None, placement: LayerPlacement, place: Place, name: str
) -> int:
    """Layers of one chunk that a list names.

    Args:
        value: on or off for all, a count for every stage, counts per stage, or per chunk (outer)
            and stage.
        placement: where the layers are.
        place: the chunk in question.
        name: of the list, for messages.

    Raises:
        ValueError: the list has another shape, or names more layers than there are.
    """
    stage, chunk = place
    available = len(placement.layers_of(stage, chunk))
    if value is None or value is False:
        return 0
    if value is True:
        return available
    if isinstance(value, tuple):
        if value and isinstance(value[0], tuple):
            return _chunk_count(value, placement, place, name)
        if len(value) != placement.num_stages:
            raise ValueError(
                f"{name} {value} has {len(value)} counts, but there are {placement.num_stages} "
                "pipeline stages; give one count per stage, or rows of them per chunk"
            )
        per_stage = value[stage]
        assert isinstance(per_stage, int), "rows of counts went another way"
        _check_count(per_stage, len(placement.layers_of_stage(stage)), stage, name)
    else:
        per_stage = value
    before = sum(len(placement.layers_of(stage, earlier)) for earlier in range(chunk))
    return min(max(per_stage - before, 0), available)


def _chunk_count(
    value: tuple[tuple[int, ...], ...], placement: LayerPlacement, place: Place, name: str
) -> int:
    chunks, stages = placement.num_chunks, placement.num_stages
    if len(value) != chunks or any(len(row) != stages for row in value):
        raise ValueError(
            f"{name} {value} must have one row per model chunk ({chunks}) with one count per "
            f"pipeline stage ({stages}), like num_layer_list"
        )
    stage, chunk = place
    _check_count(value[chunk][stage], len(placement.layers_of(stage, chunk)), stage, name)
    return value[chunk][stage]


def _check_count(count: int, available: int, stage: int, name: str) -> None:
    if not 0 <= count <= available:
        raise ValueError(
            f"{name} asks for {count} layers on stage {stage}, which has {available} there; give "
            f"0 to {available}"
        )
