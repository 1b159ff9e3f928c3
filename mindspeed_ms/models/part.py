# SPDX-License-Identifier: Apache-2.0
"""The parts of a model: linear layers, norms, tables, and what is made of them.

A part that has parameters yields them; a part made of parts names them, here and in Megatron-core,
in the order in which initial weights are drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from mindspeed_ms.config.dtypes import FLOAT32, DType
from mindspeed_ms.models.adapter import AdapterSpec
from mindspeed_ms.models.parameter import Init, ParamSpec, Partial
from mindspeed_ms.plan.region import Stack

Experts = Collection[int] | None
"""Numbers of the experts that are wanted, None for all."""


class Part(Protocol):
    """Something that has parameters."""

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """Its parameters under names relative to it, in the order of their draws."""


@dataclass(frozen=True, slots=True)
class Child:
    """A part within another."""

    name: str
    """Path here; empty if the part's own parameters are meant."""
    megatron_name: str
    part: Part
    expert: int | None = None


class Composite(ABC):
    """A part made of parts."""

    __slots__ = ()

    @abstractmethod
    def children(self) -> Iterator[Child]:
        """Its parts, in the order of construction."""

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """Those of the parts, under their paths."""
        return parameters_of(self.children(), experts)

    @property
    def words(self) -> int:
        """Words of the initialisation stream that its weights take."""
        return sum(spec.words for spec in self.parameters())


def parameters_of(children: Iterator[Child], experts: Experts = None) -> Iterator[ParamSpec]:
    """Parameters of several parts under their paths."""
    for child in children:
        if child.expert is not None and experts is not None and child.expert not in experts:
            continue
        for spec in child.part.parameters(experts):
            spec = replace(
                spec,
                name=joined(child.name, spec.name),
                megatron_name=joined(child.megatron_name, spec.megatron_name),
            )
            if child.expert is not None:  # the way of the tokens sums over its ranks
                spec = replace(spec, expert=child.expert, partial_gradient="never")
            yield spec


def joined(path: str, name: str) -> str:
    """Both with a dot between, or the one that is not empty."""
    return f"{path}.{name}" if path and name else path or name


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearSpec:
    """Y = X W^T + b with W [outputs, inputs]."""

    inputs: int
    outputs: int
    split: Literal["column", "row", "whole"]
    """What tensor parallel ranks split: the outputs, the inputs, or nothing."""

    init: Init
    dtype: DType
    has_bias: bool = False
    stride: Stack = 1
    """See ``ParamSpec.partition_stride``."""

    is_vocabulary: bool = False
    adapters: tuple[AdapterSpec, ...] = ()
    """Of disjoint regions of its outputs."""

    @property
    def operations(self) -> float:
        """Floating point operations of a token's forward, over all ranks."""
        narrow = sum(one.rank for one in self.adapters)
        return 2.0 * (self.inputs * self.outputs + narrow * (self.inputs + self.outputs))

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """W, b and those of the adapters."""
        yield ParamSpec(
            name="weight",
            megatron_name="weight",
            shape=(self.outputs, self.inputs),
            dtype=self.dtype,
            init=self.init,
            partition_dim={"column": 0, "row": 1, "whole": -1}[self.split],
            partition_stride=self.stride,
            partial_gradient="sequence" if self.split == "whole" else "never",
            is_vocabulary=self.is_vocabulary,
        )
        if self.has_bias:
            yield ParamSpec(
                name="bias",
                megatron_name="bias",
                shape=(self.outputs,),
                dtype=self.dtype,
                partition_dim=0 if self.split == "column" else -1,
                partition_stride=self.stride if self.split == "column" else 1,
                partial_gradient="never" if self.split == "column" else "sequence",
                is_vocabulary=self.is_vocabulary,
            )
        for adapter in self.adapters:
            yield from adapter.parameters(self.inputs, self.split, self.dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class NormSpec:
    """Normalisation over the last dimension."""

    dim: int
    kind: Literal["LayerNorm", "RMSNorm"]
    eps: float
    dtype: DType
    scale: float = 1.0
    """What the norm multiplies by at first."""

    zero_centered: bool = False
    """The parameter is the factor minus 1."""

    partial: Partial = "sequence"
    """``always`` for a norm of the heads of each rank."""

    only_multiplies: bool = False
    """A layer norm adds nothing."""

    has_factor: bool = True
    """A layer norm without one has no parameter."""

    heads: int = 1
    """Heads of ``dim`` channels that have factors of their own, one behind the other."""

    @property
    def has_bias(self) -> bool:
        """Whether something is added behind the factor."""
        return self.kind == "LayerNorm" and self.has_factor and not self.only_multiplies

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """Factor and, in a layer norm, what is added."""
        names: tuple[str, ...] = ("gamma", "beta") if self.kind == "LayerNorm" else ("weight",)
        names = names if self.has_bias else names[: int(self.has_factor)]
        values = (self.scale - self.zero_centered, 0.0)
        for name, megatron_name, value in zip(names, ("weight", "bias"), values, strict=False):
            yield ParamSpec(
                name=name,
                megatron_name=megatron_name,
                shape=(self.heads * self.dim,),
                dtype=self.dtype,
                init=Init(value=value),
                partial_gradient=self.partial,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSpec:
    """Rows that are looked up: of tokens (split), positions or token types (whole)."""

    rows: int
    width: int
    init: Init
    dtype: DType
    is_vocabulary: bool = False
    offset: int = 0
    """Rows in front of the first that is looked up."""

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """The table."""
        yield ParamSpec(
            name="weight",
            megatron_name="weight",
            shape=(self.rows, self.width),
            dtype=self.dtype,
            init=self.init,
            partition_dim=0 if self.is_vocabulary else -1,
            is_vocabulary=self.is_vocabulary,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BufferSpec:
    """State of a layer that is kept in checkpoints but not trained."""

    shape: tuple[int, ...]
    dtype: DType = FLOAT32

    def parameters(self, experts: Experts = None) -> Iterator[ParamSpec]:
        """It has no name of its own."""
        yield ParamSpec(
            name="", megatron_name="", shape=self.shape, dtype=self.dtype, is_trained=False
        )
