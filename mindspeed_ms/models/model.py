# SPDX-License-Identifier: Apache-2.0
"""A whole model: tables, layers, head, and which of it a pipeline stage holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from mindspeed_ms.models.layer import FurtherSpec, LayerSpec, QueryLayerSpec
from mindspeed_ms.models.parameter import ParamSpec
from mindspeed_ms.models.part import (
    Child,
    Composite,
    Experts,
    LinearSpec,
    NormSpec,
    TableSpec,
    parameters_of,
)
from mindspeed_ms.plan.layer_placement import LayerPlacement

OWN_ROOT = "language_model"
EMBEDDING = f"{OWN_ROOT}.embedding.word_embeddings.weight"
"""Name of the table of token embeddings; a tied head uses it."""
HEAD = f"{OWN_ROOT}.output_layer.weight"
"""Name of the head's matrix."""


def predicts_further(name: str) -> bool:
    """Whether a parameter is of the layers that predict further tokens."""
    return ".mtp." in f".{name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingSpec(Composite):
    """What is looked up for a token, its place and its type."""

    word: TableSpec
    position: TableSpec | None = None
    tokentype: TableSpec | None = None
    norm: NormSpec | None = None
    """Of what is looked up for a token."""

    def children(self) -> Iterator[Child]:
        """In the order of construction."""
        yield Child("word_embeddings", "word_embeddings", self.word)
        if self.norm is not None:
            yield Child("norm", "word_embeddings.norm", self.norm)
        if self.position is not None:
            yield Child("position_embeddings", "position_embeddings", self.position)
        if self.tokentype is not None:
            yield Child("tokentype_embeddings", "tokentype_embeddings", self.tokentype)


@dataclass(frozen=True, slots=True)
class _LayerKey:
    """What the parameters of a layer depend on; layouts that are compared share many of them."""

    layer: LayerSpec
    index: int
    is_frozen: bool
    experts: Experts
    model: ModelSpec = field(compare=False)

    def parameters(self) -> Iterator[ParamSpec]:
        ours, theirs = f"encoder.layers.{self.index}", f"decoder.layers.{self.index}"
        return self.model.under(ours, theirs, self.layer, self.experts)


@lru_cache(maxsize=512)
def _of_layer(key: _LayerKey) -> tuple[ParamSpec, ...]:
    return tuple(key.parameters())


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model."""

    embedding: EmbeddingSpec
    layers: tuple[LayerSpec | None, ...]
    """None: a numbered layer that passes its input through."""
    final_norm: NormSpec | None
    query: QueryLayerSpec | None = None
    """A layer with learned queries, behind the final norm."""
    further: tuple[FurtherSpec, ...] = ()
    """Layers that predict further tokens, one for each."""
    repeats_further: bool = False
    """They are one layer, that of the first."""
    head: LinearSpec | None = None
    """None: the head uses the table of token embeddings."""
    trains_adapters_only: bool = False
    """Everything but the adapters is frozen."""

    @property
    def hidden_size(self) -> int:
        """Channels of the residual stream."""
        return self.embedding.word.width

    @property
    def vocab_size(self) -> int:
        """Rows of the vocabulary, padding included."""
        return self.embedding.word.rows

    @property
    def own_further(self) -> tuple[FurtherSpec, ...]:
        """Those of them that have parameters of their own."""
        return self.further[:1] if self.repeats_further else self.further

    @property
    def is_tied(self) -> bool:
        """Whether the head uses the table of token embeddings."""
        return self.head is None

    @property
    def has_shared_embedding(self) -> bool:
        """Whether the last stage of several needs the table of token embeddings, too."""
        return self.is_tied or bool(self.further)

    # --- parameters -------------------------------------------------------------------------------

    def before_layers(self) -> Iterator[ParamSpec]:
        """Parameters of the embedding."""
        yield from self.under("embedding", "embedding", self.embedding)

    def of_layer(self, index: int, experts: Experts = None) -> Iterator[ParamSpec]:
        """Parameters of one layer, counted from 0."""
        layer = self.layers[index]
        if layer is None:
            return
        key = _LayerKey(layer, index, self.trains_adapters_only, experts, self)
        yield from _of_layer(key) if isinstance(experts, range) else key.parameters()

    def behind_layers(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """Parameters of the final norm, of the layers behind it, and of the head."""
        if self.final_norm is not None:
            yield from self.under("encoder.final_norm", "decoder.final_layernorm", self.final_norm)
        if self.query is not None:
            yield from self.under("query_layer", "query_layer", self.query)
        for depth, further in enumerate(self.own_further):
            path = f"mtp.layers.{depth}"
            yield from self.under(path, path, further, experts)
        if self.head is not None:
            yield from self.under("output_layer", "output_layer", self.head)

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """Every parameter once, in the order of construction."""
        yield from self.before_layers()
        for index in range(len(self.layers)):
            yield from self.of_layer(index, experts)
        yield from self.behind_layers(experts)

    @cached_property
    def by_name(self) -> dict[str, ParamSpec]:
        """Every parameter by its name here."""
        return {spec.name: spec for spec in self.parameters()}

    @cached_property
    def by_megatron_name(self) -> dict[str, ParamSpec]:
        """Every parameter by its name in Megatron-core."""
        return {spec.megatron_name: spec for spec in self.parameters()}

    def under(
        self,
        name: str,
        megatron_name: str,
        part: EmbeddingSpec | LayerSpec | QueryLayerSpec | FurtherSpec | NormSpec | LinearSpec,
        experts: Experts = None,
    ) -> Iterator[ParamSpec]:
        """Parameters of a part of the model."""
        child = Child(f"{OWN_ROOT}.{name}", megatron_name, part)
        for spec in parameters_of(iter([child]), experts):
            if self.trains_adapters_only and not spec.is_adapter:
                spec = replace(spec, is_trained=False, is_frozen=True)
            yield spec

    @property
    def num_parameters(self) -> int:
        """Elements of the weights of the whole model, frozen ones too, each counted once."""
        return sum(self._sizes(lambda spec: spec.is_trained))

    @property
    def num_next_token_parameters(self) -> int:
        """Those without the layers for further tokens, which answers do not need."""
        further = (spec for part in self.own_further for spec in part.parameters())
        return self.num_parameters - sum(spec.size for spec in further if spec.is_trained)

    @property
    def num_adapter_parameters(self) -> int:
        """Elements of the adapters of the whole model."""
        return sum(self._sizes(lambda spec: spec.is_adapter))

    def _sizes(self, counts: Callable[[ParamSpec], bool]) -> Iterator[int]:
        """Elements of every part, as far as they count before anything is frozen."""
        ends = (self.embedding, self.final_norm, self.query, self.head)
        parts = (*ends, *self.own_further, *self.layers)
        known = {
            part: sum(spec.size for spec in part.parameters() if counts(spec))
            for part in set(parts)
            if part is not None
        }
        yield from (known[part] for part in parts if part is not None)

    # --- a pipeline's stage -----------------------------------------------------------------------

    def of_chunk(
        self, placement: LayerPlacement, stage: int, chunk: int, experts: Experts = None
    ) -> Iterator[ParamSpec]:
        """Parameters of one model chunk of a stage.

        The last stage of several may hold a copy of the table of token embeddings; it comes last.
        """
        is_first = (stage, chunk) == (0, 0)
        is_last = (stage, chunk) == (placement.num_stages - 1, placement.num_chunks - 1)
        if is_first:
            yield from self.before_layers()
        for index in placement.layers_of(stage, chunk):
            yield from self.of_layer(index, experts)
        if is_last:
            yield from self.behind_layers(experts)
            if not is_first and self.has_shared_embedding:
                yield self.embedding_copy

    @property
    def table(self) -> ParamSpec:
        """The table of token embeddings."""
        return next(iter(self.before_layers()))

    @property
    def tied_head(self) -> ParamSpec:
        """The table under the name of a head."""
        return replace(self.table, name=HEAD, megatron_name="output_layer.weight")

    @property
    def embedding_copy(self) -> ParamSpec:
        """The last stage's copy of the table: within an embedding if it embeds, else as a head."""
        return self.table if self.further else self.tied_head

    # --- the stream of initial weights ------------------------------------------------------------

    @cached_property
    def layer_starts(self) -> tuple[int, ...]:
        """Words of the stream in front of every layer, and behind the last one."""
        words = {layer: 0 if layer is None else layer.words for layer in set(self.layers)}
        starts = [sum(spec.words for spec in self.before_layers())]
        for layer in self.layers:
            starts.append(starts[-1] + words[layer])
        return tuple(starts)

    @property
    def head_start(self) -> int:
        """Words of the stream in front of the head."""
        behind = sum(further.words for further in self.own_further)
        return self.layer_starts[-1] + behind + (0 if self.query is None else self.query.words)
