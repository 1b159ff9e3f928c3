# SPDX-License-Identifier: Apache-2.0
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

    @property
    def num_layers(self) -> int: ...
    @property
    def use_query_layer(self) -> bool: ...
    @property
    def recompute_granularity(self) -> str | None: ...
    @property
    def recompute_method(self) -> str | None: ...
    @property
    def recompute_num_layers(self) -> int | None: ...
    @property
    def recompute_modules(self) -> tuple[str, ...] | None: ...
    @property
    def moe_config(self) -> ExpertSettings: ...


class LayoutSettings(Protocol):
    """Of pipeline stages; see ``ModelParallelConfig``."""

    @property
    def pipeline_model_parallel_size(self) -> int: ...
    @property
    def virtual_pipeline_model_parallel_size(self) -> int | None: ...
    @property
    def num_layers_per_virtual_pipeline_stage(self) -> int | None: ...
    @property
    def num_layer_list(self) -> LayerList | None: ...
    @property
    def allow_uneven_stages(self) -> bool: ...
    @property
    def noop_layers(self) -> tuple[int, ...] | None: ...
    @property
    def decoder_first_pipeline_num_layers(self) -> int | None: ...
    @property
    def decoder_last_pipeline_num_layers(self) -> int | None: ...
    @property
    def account_for_embedding_in_pipeline_split(self) -> bool: ...
    @property
    def account_for_loss_in_pipeline_split(self) -> bool: ...
    @property
    def pipeline_model_parallel_layout(self) -> str | None: ...
    @property
    def standalone_embedding_stage(self) -> bool: ...
    @property
    def recompute(self) -> RecomputeList | None: ...
    @property
    def select_recompute(self) -> RecomputeList | None: ...
    @property
    def select_comm_recompute(self) -> RecomputeList | None: ...
