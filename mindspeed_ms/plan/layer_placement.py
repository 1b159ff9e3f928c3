# SPDX-License-Identifier: Apache-2.0
"""Which pipeline stage and model chunk holds which layers: one pure function of the configuration.

Model construction, checkpoints and planning tools all ask ``layer_placement``. Layers are numbered
globally from 0. A micro-batch passes the chunks in the order of ``virtual stage = chunk * stages +
stage``, so layer numbers grow along it: chunk 0 of all stages, then chunk 1 of all stages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mindspeed_ms.plan.settings import LayoutSettings, ModelSettings


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    """Global layer numbers by stage and chunk; the embedding is on the first, the head on the last.

    ``layers[stage][chunk]`` is an ascending tuple, possibly empty.
    """

    layers: tuple[tuple[tuple[int, ...], ...], ...]
    noop_layers: frozenset[int] = frozenset()
    """Layers that pass their input through."""

    @property
    def num_stages(self) -> int:
        """Pipeline stages."""
        return len(self.layers)

    @property
    def num_chunks(self) -> int:
        """Model chunks per stage; 1 means that the schedule is not interleaved."""
        return len(self.layers[0])

    @property
    def num_layers(self) -> int:
        """Layers of the whole model."""
        return sum(len(chunk) for stage in self.layers for chunk in stage)

    def layers_of(self, stage: int, chunk: int = 0) -> tuple[int, ...]:
        """Layers of one chunk of a stage."""
        return self.layers[stage][chunk]

    def layers_of_stage(self, stage: int) -> tuple[int, ...]:
        """Layers of all chunks of a stage."""
        return tuple(layer for chunk in self.layers[stage] for layer in chunk)

    @property
    def counts(self) -> tuple[tuple[int, ...], ...]:
        """Layers per chunk (outer) and stage, as ``num_layer_list`` writes them."""
        return tuple(
            tuple(len(stage[chunk]) for stage in self.layers) for chunk in range(self.num_chunks)
        )


def layer_placement(model: ModelSettings, parallel: LayoutSettings) -> LayerPlacement:
    """Place the layers of a model.

    In this order of precedence: ``pipeline_model_parallel_layout``; ``num_layer_list``; a split
    with first or last stages set apart; a split that counts the embedding or the loss as a layer;
    an even split. With ``allow_uneven_stages`` (YAML) an even split that leaves a remainder gives
    one layer more to the last stages but one, going backwards.

    Raises:
        ValueError: the layers cannot be placed as asked; the message names what would fit.

    Source: Megatron-LM core 0.12 ``get_num_layers_to_build`` and ``get_transformer_layer_offset``,
    HEAD ``PipelineParallelLayerLayout`` (meaning of the options).
    """
    stages = parallel.pipeline_model_parallel_size
    layout = parallel.pipeline_model_parallel_layout
    if layout is not None:
        counts = _counts_of_layout(layout, model.num_layers, stages)
    elif parallel.num_layer_list is not None:
        rows = parallel.num_layer_list
        counts = [list(row) for row in rows] if isinstance(rows[0], tuple) else [list(rows)]
        _check_total(f"num_layer_list {rows}", counts, model.num_layers)
    else:
        chunks = _num_chunks(model, parallel)
        counts = _split(model.num_layers, parallel, chunks, model.use_query_layer)
    return LayerPlacement(_numbered(counts, stages), frozenset(parallel.noop_layers or ()))


def _numbered(counts: list[list[int]], stages: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Give layers their numbers: chunk by chunk, stage by stage."""
    chunks: list[list[tuple[int, ...]]] = [[] for _ in range(stages)]
    first = 0
    for row in counts:
        for stage, count in enumerate(row):
            chunks[stage].append(tuple(range(first, first + count)))
            first += count
    return tuple(tuple(stage) for stage in chunks)


def _check_total(given: str, counts: list[list[int]], num_layers: int) -> None:
    total = sum(map(sum, counts))
    if total != num_layers:
        raise ValueError(
            f"{given} holds {total} layers, but num_layers is {num_layers}; make them equal"
        )


def _num_chunks(model: ModelSettings, parallel: LayoutSettings) -> int:
    per_chunk = parallel.num_layers_per_virtual_pipeline_stage
    if per_chunk is None:
        return parallel.virtual_pipeline_model_parallel_size or 1
    stages = parallel.pipeline_model_parallel_size - parallel.standalone_embedding_stage
    if stages < 1 or model.num_layers % (stages * per_chunk):
        raise ValueError(
            f"num_layers ({model.num_layers}) must be divisible by pipeline stages with layers × "
            f"num_layers_per_virtual_pipeline_stage ({stages} × {per_chunk}); use other sizes or "
            "give num_layer_list"
        )
    return model.num_layers // stages // per_chunk


def _split(
    num_layers: int, parallel: LayoutSettings, chunks: int, has_query_layer: bool
) -> list[list[int]]:
    """Layers per chunk and stage when no list gives them.

    An even split counts a query layer, which lies behind the last stage's.
    """
    is_counted = (
        has_query_layer
        and parallel.decoder_first_pipeline_num_layers is None
        and parallel.decoder_last_pipeline_num_layers is None
    )
    per_stage = _layers_per_stage(num_layers + is_counted, parallel, chunks)
    uneven = [count for count in per_stage if count % chunks]
    if uneven:
        raise ValueError(
            f"a stage with {uneven[0]} layers cannot be cut into {chunks} equal model chunks; use "
            "another virtual_pipeline_model_parallel_size or give num_layer_list"
        )
    counts = [[count // chunks for count in per_stage] for _ in range(chunks)]
    counts[-1][-1] -= is_counted
    for option, chunk, stage in (
        ("account_for_embedding_in_pipeline_split", 0, 0),
        ("account_for_loss_in_pipeline_split", -1, -1),
    ):
        if getattr(parallel, option):
            counts[chunk][stage] -= 1
            if counts[chunk][stage] < 0:
                raise ValueError(
                    f"{option} takes a layer from a model chunk that has none; use fewer stages or "
                    "chunks, or leave it out"
                )
    return counts


def _layers_per_stage(num_layers: int, parallel: LayoutSettings, chunks: int) -> list[int]:
    stages = parallel.pipeline_model_parallel_size
    fixed: dict[int, int] = {}
    if parallel.standalone_embedding_stage:
        if stages < 2:
            raise ValueError(
                f"standalone_embedding_stage needs at least 2 pipeline stages, given {stages}; "
                "raise pipeline_model_parallel_size or leave it out"
            )
        fixed[0] = 0
    for stage, option in ((0, "first"), (stages - 1, "last")):
        count = getattr(parallel, f"decoder_{option}_pipeline_num_layers")
        if count is not None:
            if stage in fixed:
                raise ValueError(
                    f"decoder_{option}_pipeline_num_layers ({count}) contradicts another option "
                    f"for stage {stage}, which has {fixed[stage]} layers; keep one of them"
                )
            fixed[stage] = count
    counted = num_layers + sum(
        getattr(parallel, f"account_for_{what}_in_pipeline_split") for what in ("embedding", "loss")
    )
    if fixed and counted != num_layers:
        raise ValueError(
            "account_for_embedding_in_pipeline_split and account_for_loss_in_pipeline_split split "
            "evenly; they do not go with decoder_first_pipeline_num_layers, "
            "decoder_last_pipeline_num_layers or standalone_embedding_stage: keep one kind"
        )
    return _shared_out(counted, stages, fixed, parallel.allow_uneven_stages and chunks == 1)


def _shared_out(
    num_layers: int, stages: int, fixed: dict[int, int], allow_uneven: bool
) -> list[int]:
    """Layers per stage: the fixed ones, and equal shares of the rest."""
    free = [stage for stage in range(stages) if stage not in fixed]
    rest = num_layers - sum(fixed.values())
    if not free and rest or rest < 0:
        raise ValueError(
            f"stages {sorted(fixed)} are to hold {sum(fixed.values())} layers, but num_layers is "
            f"{num_layers}; make the counts fit"
        )
    share, over = divmod(rest, len(free)) if free else (0, 0)
    if over and not allow_uneven:
        raise ValueError(
            f"num_layers ({rest} to share out) must be divisible by the pipeline stages that share "
            f"them ({len(free)}); use {share * len(free) or len(free)} or "
            f"{(share + 1) * len(free)} layers, or give num_layer_list"
        )
    counts = [fixed.get(stage, share) for stage in range(stages)]
    # The last stage has the head to compute and the first the embedding: they are filled last.
    order = [stage for stage in reversed(free) if stage != stages - 1]
    order = [stage for stage in order if stage] + [stages - 1] * (stages - 1 in free) + [0]
    for stage in order[:over]:
        counts[stage] += 1
    return counts


_REPEATED = re.compile(r"\(([^()]*)\)\*(\d+)|([Etml|])\*(\d+)")


_LONGEST_LAYOUT = 1_000_000
"""Letters; more layers than any model has."""


def expand_layout(layout: str) -> list[str]:
    """Stages of a layout string, one word of letters each.

    ``E`` embedding, ``t`` transformer layer, ``m`` multi-token prediction, ``L`` loss; ``|`` ends a
    stage, ``x*n`` and ``(...)*n`` repeat, commas and spaces mean nothing.

    >>> expand_layout("Et*2|(tt|)*2tL")
    ['Ett', 'tt', 'tt', 'tL']

    Raises:
        ValueError: a letter or a bracket that means nothing.
    """
    text = re.sub(r"[,\s]", "", layout)
    while (match := _REPEATED.search(text)) is not None:
        part, times = (match[1], match[2]) if match[2] else (match[3], match[4])
        if len(times) > len(str(_LONGEST_LAYOUT)) or len(part) * int(times) > _LONGEST_LAYOUT:
            raise ValueError(
                f"pipeline_model_parallel_layout repeats {part[:20]!r} {times[:20]} times; no "
                "model has so many layers"
            )
        text = text[: match.start()] + part * int(times) + text[match.end() :]
    strange = set(text) - set("EtmL|")
    if strange:
        raise ValueError(
            f"pipeline_model_parallel_layout {layout!r} contains {sorted(strange)[0]!r}; write E "
            "(embedding), t (layer), m (multi-token prediction), L (loss), | between stages, and "
            "x*n or (...)*n to repeat"
        )
    return text.split("|")


def _counts_of_layout(layout: str, num_layers: int, stages: int) -> list[list[int]]:
    words = expand_layout(layout)
    if len(words) % stages:
        raise ValueError(
            f"pipeline_model_parallel_layout {layout!r} has {len(words)} parts; their number must "
            f"be a multiple of pipeline_model_parallel_size ({stages})"
        )
    whole = "".join(words)
    if (
        not re.fullmatch(f"Et{{{num_layers}}}m*L", whole)
        or not words[0].startswith("E")
        or not words[-1].endswith("L")
    ):
        raise ValueError(
            f"pipeline_model_parallel_layout {layout!r} places {whole.count('t')} layers; it must "
            f"hold E first, {num_layers} times t (num_layers), and L last"
        )
    counts = [word.count("t") for word in words]
    return [counts[first : first + stages] for first in range(0, len(counts), stages)]
