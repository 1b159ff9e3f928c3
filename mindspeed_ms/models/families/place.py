# SPDX-License-Identifier: Apache-2.0
"""Where the tensors of another project's model lie within the parameters here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.feed_forward import MLPSpec, MoESpec
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.model import OWN_ROOT, ModelSpec
from mindspeed_ms.models.parameter import ParamSpec
from mindspeed_ms.plan.region import Region

Runs = Sequence[tuple[int, int]]
"""(first row, number of rows), in the order of their tensor."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of theirs, and the region of a parameter here that it holds.

    Nothing is rearranged in memory: separate queries, keys and values are rows of one matrix here,
    whose rows are grouped by key/value head; gate and up projections are stacked here.
    """

    theirs: str
    name: str
    """Of the parameter here."""
    region: Region
    is_transposed: bool = False
    """Theirs is stored [inputs, outputs]."""
    is_copy: bool = False
    """Another tensor of theirs holds the same; it is written, and not needed to read."""
    view: tuple[int, ...] | None = None
    """Its shape there, if that is another one."""
    part: tuple[int, int] | None = None
    """(index, number) where theirs stacks several such tensors along a dimension in front."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of their tensor, or of one of those that it stacks."""
        shape = self.view or self.region.shape
        return shape[::-1] if self.is_transposed else shape

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of their tensor."""
        return self.shape if self.part is None else (self.part[1], *self.shape)


@dataclass(frozen=True, slots=True)
class Places:
    """Makes places from names.

    Args:
        spec: the model; vocabularies have the rows of theirs.
        is_transposed: their matrices are stored [inputs, outputs].
    """

    spec: ModelSpec
    is_transposed: bool = False

    def parameter(self, ours: str) -> ParamSpec | None:
        """A parameter by its path below the model, None if the model has none there."""
        return self.spec.by_name.get(f"{OWN_ROOT}.{ours}")

    def whole(self, theirs: str, ours: str, *, transposed: bool | None = None) -> Iterator[Place]:
        """A tensor that is a parameter here; nothing if the model has none there."""
        yield from self._place(theirs, ours, None, transposed)

    def rows(self, theirs: str, ours: str, runs: Runs) -> Iterator[Place]:
        """A tensor that is some rows of a parameter here."""
        yield from self._place(theirs, ours, runs, None)

    def _place(
        self, theirs: str, ours: str, runs: Runs | None, transposed: bool | None
    ) -> Iterator[Place]:
        parameter = self.parameter(ours)
        if parameter is None:
            return
        region = Region.whole(parameter.shape)
        if runs is not None:
            region = region.with_runs(0, runs)
        is_matrix = len(parameter.shape) == 2
        if transposed is None:
            transposed = self.is_transposed
        yield Place(theirs, parameter.name, region, transposed and is_matrix)

    def heads(self, theirs: str, ours: str, count: int) -> Iterator[Place]:
        """A vector here whose parts, one a head, are rows of a matrix of theirs."""
        for place in self._place(theirs, ours, None, None):
            yield replace(place, view=(count, place.region.size // count))

    def copy(self, theirs: str, ours: str) -> Iterator[Place]:
        """A further tensor that holds a parameter which has a place already."""
        for place in self._place(theirs, ours, None, None):
            yield replace(place, is_copy=True)

    def stacked(
        self,
        theirs: str,
        ours: str,
        part: tuple[int, int],
        runs: Runs | None = None,
        *,
        transposed: bool = True,
    ) -> Iterator[Place]:
        """One of the tensors that theirs stacks; matrices are [inputs, outputs] unless told."""
        for place in self._place(theirs, ours, runs, transposed):
            yield replace(place, part=part)

    def linear(self, theirs: str, ours: str, runs: Runs | None = None) -> Iterator[Place]:
        """Weight and bias of a linear layer, or some rows of both."""
        for part in ("weight", "bias"):
            yield from self._place(f"{theirs}.{part}", f"{ours}.{part}", runs, None)

    def norm(self, theirs: str, ours: str) -> Iterator[Place]:
        """Factor and, in a layer norm, what is added."""
        for word, parts in (("weight", ("weight", "gamma")), ("bias", ("beta",))):
            for part in parts:
                yield from self.whole(f"{theirs}.{word}", f"{ours}.{part}")


def query_rows(attention: AttentionSpec, kind: str) -> list[tuple[int, int]]:
    """Rows of all queries, keys or values among the grouped rows of ``qkv_proj``.

    Args:
        attention: the layer.
        kind: q, k or v.
    """
    sizes = attention.row_blocks
    index = {"q": 0, "k": len(sizes) - 2, "v": len(sizes) - 1}[kind]  # gates follow the queries
    start, block = sum(sizes[:index]), sum(sizes)
    return [(group * block + start, sizes[index]) for group in range(attention.num_groups)]


def separate_attention(
    places: Places, theirs: str, ours: str, layer: LayerSpec, words: Sequence[str]
) -> Iterator[Place]:
    """Attention with a matrix for each of queries, keys and values.

    Args:
        places: of the model.
        theirs: path of their attention.
        ours: path of the attention here.
        layer: the layer.
        words: their names of queries, keys, values and output.
    """
    attention = layer.attention
    assert isinstance(attention, AttentionSpec), "heads have one width"
    *kinds, output = words
    for kind, word in zip("qkv", kinds, strict=True):
        rows = query_rows(attention, kind)
        yield from places.linear(f"{theirs}.{word}", f"{ours}.qkv_proj", rows)
    yield from places.linear(f"{theirs}.{output}", f"{ours}.out_proj")


def gated_block(
    places: Places, theirs: str, ours: str, block: MLPSpec, words: Sequence[str]
) -> Iterator[Place]:
    """A gated block with a matrix for each of gate, up and down.

    Args:
        places: of the model.
        theirs: path of their block.
        ours: path of the block here.
        block: the block.
        words: their names of gate, up and down.
    """
    gate, up, down = words
    width = block.width
    yield from places.linear(f"{theirs}.{gate}", f"{ours}.mapping", [(0, width)])
    yield from places.linear(f"{theirs}.{up}", f"{ours}.mapping", [(width, width)])
    yield from places.linear(f"{theirs}.{down}", f"{ours}.projection")


def experts(
    places: Places, theirs: str, ours: str, block: MoESpec, words: Sequence[str]
) -> Iterator[Place]:
    """A gated block for each expert, ``theirs.N``."""
    for number in range(block.num_experts):
        own = f"{ours}.experts.local_experts.{number}"
        yield from gated_block(places, f"{theirs}.{number}", own, block.expert, words)
