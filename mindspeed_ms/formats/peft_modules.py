# SPDX-License-Identifier: Apache-2.0
"""Linear layers that PEFT adapts, and the adapters here that change them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mindspeed_ms.models.adapter import DOWN, FOLDER, MAGNITUDE, UP, AdapterSpec
from mindspeed_ms.models.adapting import adapters_of
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place
from mindspeed_ms.models.model import ModelSpec
from mindspeed_ms.plan.region import Run


@dataclass(frozen=True, slots=True)
class Module:
    """A linear layer of theirs, and the adapters here that change its outputs."""

    name: str
    """Of the layer, within their model."""
    place: Place
    linear: str
    """Path of the layer here."""
    adapters: tuple[AdapterSpec, ...]

    @property
    def rows(self) -> list[int]:
        """Outputs of the layer here, in the order of theirs."""
        return rows_of(self.place.region.runs[0])


def rows_of(runs: tuple[Run, ...]) -> list[int]:
    """Every row of some runs."""
    return [row for first, length in runs for row in range(first, first + length)]


def modules(spec: ModelSpec, family: Family) -> Iterator[Module]:
    """Their linear layers that have adapters."""
    here = dict(adapters_of(spec))
    for place in family.places(spec):
        path, _, kind = place.name.rpartition(".")
        linear = here.get(path) if kind == "weight" else None
        if linear is None or not place.theirs.endswith(".weight"):
            continue
        held = set(rows_of(place.region.runs[0]))
        mine = tuple(one for one in linear.adapters if held & set(rows_of(one.runs)))
        if mine:
            name = family.full_name(place.theirs.removesuffix(".weight"))
            yield Module(name, place, path, mine)


def parameter_name(linear: str, region: str, part: str) -> str:
    """Path of a part of an adapter here."""
    return f"{linear}.{FOLDER}.{region}.{part}"


def joined(
    module: Module, arrays: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, float]:
    """A, B and the factor of one adapter of a layer of theirs."""
    scale = module.adapters[0].scale
    downs, ups = [], []
    for adapter in module.adapters:
        down = arrays[parameter_name(module.linear, adapter.region, DOWN)]
        up = arrays[parameter_name(module.linear, adapter.region, UP)]
        by_row = dict(zip(rows_of(adapter.runs), up, strict=True))
        spread = np.zeros((len(module.rows), adapter.rank), np.float32)
        for number, row in enumerate(module.rows):
            if row in by_row:
                spread[number] = by_row[row]
        downs.append(down)
        ups.append(spread if adapter.scale == scale else spread * (adapter.scale / scale))
    return np.concatenate(downs), np.concatenate(ups, axis=1), scale


def magnitudes(module: Module, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Lengths of the rows of a layer of theirs.

    Raises:
        ValueError: some outputs have none.
    """
    by_row: dict[int, float] = {}
    for adapter in module.adapters:
        values = arrays[parameter_name(module.linear, adapter.region, MAGNITUDE)]
        by_row |= dict(zip(rows_of(adapter.runs), values, strict=True))
    missing = [row for row in module.rows if row not in by_row]
    if missing:
        raise ValueError(
            f"{module.name} has magnitudes for some of its outputs only, which PEFT's files cannot "
            "hold; adapt the whole layer"
        )
    return np.array([by_row[row] for row in module.rows], np.float32)
