# SPDX-License-Identifier: Apache-2.0
"""Tensors of decoders that are named like Llama's, and how their names vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from mindspeed_ms.models.attention import AttentionSpec, LatentAttentionSpec
from mindspeed_ms.models.families.place import (
    Place,
    Places,
    experts,
    gated_block,
    query_rows,
    separate_attention,
)
from mindspeed_ms.models.feed_forward import MLPSpec, MoESpec
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.model import ModelSpec

SEPARATE = ("gate_proj", "up_proj", "down_proj")
NORMS: Mapping[str, str] = {
    "input_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
}
SANDWICH: Mapping[str, str] = {
    "input_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "post_attention_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
"""Norms on both sides of each block, as Gemma names them."""
BEHIND: Mapping[str, str] = {
    "attn_post_norm": "post_attention_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
"""Norms behind each block alone, as OLMo 2 names them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """Names of tensors in ``model.layers.N``; what a model does not have is passed over.

    Calling it yields the places of a whole model.
    """

    norms: Mapping[str, str] = field(default_factory=lambda: NORMS)
    """Norm here -> theirs."""
    query_norms: tuple[str, str] = ("q_norm", "k_norm")
    has_rows_of_heads: bool = False
    """Factors of the norms of queries and keys are a matrix with a row for each head."""
    query_words: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Matrices of queries, keys, values and output."""
    mixed: str | None = None
    """Name of one matrix with all queries, then all keys, then all values."""
    is_grouped: bool = False
    """Rows of that matrix are grouped by head of keys, as here."""
    block: str = "mlp"
    dense: tuple[str, ...] = SEPARATE
    """Matrices of a dense block: gate, up and down, or both first ones in one, and down."""
    expert: tuple[str, ...] = SEPARATE
    router: str = "gate"
    choice_bias: str = "gate.e_score_correction_bias"
    """What is added to the scores for the choice of experts, within a block of them."""
    has_row_of_biases: bool = False
    """It is a matrix with one row."""
    shared: str = "shared_experts"
    shared_gate: str = "shared_expert_gate"
    root: str = "model"
    final: str = "norm"
    """The last norm."""

    def __call__(self, spec: ModelSpec) -> Iterator[Place]:
        """Every tensor of a model."""
        places = Places(spec)
        root = self.root
        yield from places.whole(f"{root}.embed_tokens.weight", "embedding.word_embeddings.weight")
        positions = "embedding.position_embeddings.weight"
        yield from places.whole(f"{root}.embed_positions.weight", positions)
        for number, layer in enumerate(spec.layers):
            if layer is not None:
                theirs, ours = f"{root}.layers.{number}", f"encoder.layers.{number}"
                yield from self.layer(places, theirs, ours, layer)
        yield from places.norm(f"{root}.{self.final}", "encoder.final_norm")
        yield from places.linear("lm_head", "output_layer")
        for number, layer in enumerate(spec.layers):
            if layer is not None:
                theirs, ours = f"{root}.layers.{number}", f"encoder.layers.{number}"
                yield from self.norms_of_heads(places, theirs, ours, layer)

    def layer(self, places: Places, theirs: str, ours: str, layer: LayerSpec) -> Iterator[Place]:
        """Every tensor of a layer."""
        first, *others = self.norms.items()
        yield from places.norm(f"{theirs}.{first[1]}", f"{ours}.{first[0]}")
        yield from self._attention(places, f"{theirs}.self_attn", f"{ours}.attention", layer)
        for own, name in others:
            yield from places.norm(f"{theirs}.{name}", f"{ours}.{own}")
        block = (places, f"{theirs}.{self.block}" if self.block else theirs, f"{ours}.mlp")
        if isinstance(layer.mlp, MoESpec):
            yield from self._experts(*block, layer.mlp)
        else:
            assert isinstance(layer.mlp, MLPSpec), "no family has other blocks"
            yield from _dense(*block, layer.mlp, self.dense)

    def norms_of_heads(
        self, places: Places, theirs: str, ours: str, layer: LayerSpec
    ) -> Iterator[Place]:
        """Norms of queries and keys of a layer, which are named behind all other tensors."""
        attention = layer.attention
        if not isinstance(attention, AttentionSpec):
            return
        counts = attention.num_heads, attention.num_groups
        owns = "q_layernorm", "k_layernorm"
        for word, own, count in zip(self.query_norms, owns, counts, strict=True):
            names = f"{theirs}.self_attn.{word}", f"{ours}.attention.{own}"
            if self.has_rows_of_heads:
                yield from places.heads(f"{names[0]}.weight", f"{names[1]}.gamma", count)
            else:
                yield from places.norm(*names)

    def _attention(
        self, places: Places, theirs: str, ours: str, layer: LayerSpec
    ) -> Iterator[Place]:
        attention = layer.attention
        if isinstance(attention, LatentAttentionSpec):
            yield from _latent(places, theirs, ours)
            return
        assert isinstance(attention, AttentionSpec), "no family has linear attention"
        yield from places.whole(f"{theirs}.sinks", f"{ours}.core_attention.softmax_offset")
        if self.mixed is None:
            yield from separate_attention(places, theirs, ours, layer, self.query_words)
            return
        rows = None if self.is_grouped else all_rows(attention)
        yield from places.linear(f"{theirs}.{self.mixed}", f"{ours}.qkv_proj", rows)
        yield from places.linear(f"{theirs}.{self.query_words[-1]}", f"{ours}.out_proj")

    def _experts(self, places: Places, theirs: str, ours: str, block: MoESpec) -> Iterator[Place]:
        router = f"{theirs}.{self.router}"
        yield from places.whole(f"{router}.weight", f"{ours}.router.weight")
        yield from places.whole(f"{router}.bias", f"{ours}.router.bias")
        for place in places.whole(f"{theirs}.{self.choice_bias}", f"{ours}.router.expert_bias"):
            yield replace(place, view=(1, block.num_experts)) if self.has_row_of_biases else place
        yield from experts(places, f"{theirs}.experts", ours, block, self.expert)
        if block.shared is not None:
            own = f"{ours}.shared_experts"
            shared = (places, f"{theirs}.{self.shared}", f"{own}.mlp", block.shared.mlp)
            yield from gated_block(*shared, self.expert)
            yield from places.whole(f"{theirs}.{self.shared_gate}.weight", f"{own}.gate.weight")


def all_rows(attention: AttentionSpec) -> list[tuple[int, int]]:
    """Rows of all queries, then of all keys, then of all values."""
    return [run for kind in "qkv" for run in query_rows(attention, kind)]


def _dense(
    places: Places, theirs: str, ours: str, block: MLPSpec, words: tuple[str, ...]
) -> Iterator[Place]:
    if len(words) > 2:
        yield from gated_block(places, theirs, ours, block, words)
        return
    both, down = words
    yield from places.linear(f"{theirs}.{both}", f"{ours}.mapping")
    yield from places.linear(f"{theirs}.{down}", f"{ours}.projection")


def _latent(places: Places, theirs: str, ours: str) -> Iterator[Place]:
    """Attention from narrow vectors, as DeepSeek names it."""
    for word, own in (
        ("q_proj", "q_proj"),
        ("q_a_proj", "q_down_proj"),
        ("q_b_proj", "q_up_proj"),
        ("kv_a_proj_with_mqa", "kv_down_proj"),
        ("kv_b_proj", "kv_up_proj"),
        ("o_proj", "out_proj"),
    ):
        yield from places.linear(f"{theirs}.{word}", f"{ours}.{own}")
    yield from places.norm(f"{theirs}.q_a_layernorm", f"{ours}.q_layernorm")
    yield from places.norm(f"{theirs}.kv_a_layernorm", f"{ours}.kv_layernorm")
    for word in ("wq_b", "wk", "weights_proj"):
        yield from places.linear(f"{theirs}.indexer.{word}", f"{ours}.indexer.{word}")
    yield from places.norm(f"{theirs}.indexer.k_norm", f"{ours}.indexer.k_norm")
