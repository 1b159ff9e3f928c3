"""The settings that plans read, as Protocols: the configuration's rules use the plans."""

from __future__ import annotations

from typing import Protocol, TypeAlias

LayerList: TypeAlias = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""Layers per stage, or per chunk and stage."""

RecomputeList: TypeAlias = bool | int | tuple[int, ...] | tuple[tuple[int, ...], ...]
"""On or off for all layers, one count for every stage, or counts shaped like ``num_layer_list``."""


class ExpertSettings(Protocol):
    """Of a mixture of experts."""

    @property
    def moe_layer_recompute(self) -> bool:
        """Recompute the experts of every layer."""


class ModelSettings(Protocol):
    """Of a model: its layers, and what they recompute; see ``TransformerConfig``."""

    num_layers: int
    recompute_granularity: str | None
    recompute_method: str | None
    recompute_num_layers: int | None
    recompute_modules: tuple[str, ...] | None
    moe_config: ExpertSettings


class LayoutSettings(Protocol):
    """Of pipeline stages; see ``ModelParallelConfig``."""

    pipeline_model_parallel_size: int
    virtual_pipeline_model_parallel_size: int | None
    num_layers_per_virtual_pipeline_stage: int | None
    num_layer_list: LayerList | None
    allow_uneven_stages: bool
    noop_layers: tuple[int, ...] | None
    decoder_first_pipeline_num_layers: int | None
    decoder_last_pipeline_num_layers: int | None
    account_for_embedding_in_pipeline_split: bool
    account_for_loss_in_pipeline_split: bool
    pipeline_model_parallel_layout: str | None
    standalone_embedding_stage: bool
    recompute: RecomputeList | None
    select_recompute: RecomputeList | None
    select_comm_recompute: RecomputeList | None
