# SPDX-License-Identifier: Apache-2.0
"""Adapters of experts that are one tensor in PEFT's files, as in ``transformers`` 5."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor, TensorReader
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.peft_modules import Module, joined, modules, parameter_name
from mindspeed_ms.models.adapter import DOWN, UP
from mindspeed_ms.models.adapting import adapters_of
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.place import Place
from mindspeed_ms.models.model import OWN_ROOT, ModelSpec
from mindspeed_ms.plan.region import Region, Span

OF_EXPERTS = ("gate_up_proj", "down_proj")
"""Parameters, not layers, of these names are the experts': PEFT writes its own targets so."""
EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(base_layer\.)?(lora_[AB])\.weight")


def add_fused_experts(
    catalog: Catalog, path: Path, stored: Mapping[str, safetensors.Place], spec: ModelSpec
) -> set[str]:
    """Add adapters of experts that are one tensor there; return the names that were used.

    A [E r, inputs] stacks those of the experts; B [outputs, r E] has the expert as its fastest
    index. With both matrices of the experts adapted, those of the first are within the others.
    """
    found = {key: match for key in stored if (match := EXPERTS.fullmatch(key))}
    here = dict(adapters_of(spec))
    with TensorReader() as reader:
        for key, match in found.items():
            layer, inner, part = match.groups()
            both = f"model.layers.{layer}.mlp.experts.base_layer.{part}.weight" in stored
            root = f"{OWN_ROOT}.encoder.layers.{layer}.mlp.experts.local_experts"
            is_first = bool(inner) or (not both and f"{root}.0.mapping" in here)
            word = "mapping" if is_first else "projection"
            linears = sorted(
                (name for name in here if name.startswith(root) and name.endswith(f".{word}")),
                key=lambda name: int(name.split(".")[-2]),
            )
            place = stored[key]
            along = 0 if part == DOWN else -1
            if len(place.shape) != 2 or not linears or place.shape[along] % len(linears):
                raise ValueError(
                    f"{path}: {key} has shape {list(place.shape)}, the model has {len(linears)} "
                    "such experts in the layer with adapters"
                )
            piece = StoredPiece(
                Span.all_of(Region.whole(place.shape)), place.dtype, path, place.offset
            )
            whole = reader.read(StoredTensor(place.shape, place.dtype, [piece]))
            parts = (
                np.split(whole, len(linears))
                if part == DOWN
                else np.moveaxis(whole.reshape(len(whole), -1, len(linears)), 2, 0)
            )
            for name, values_ in zip(linears, parts, strict=True):
                region = here[name].adapters[0].region
                held = np.ascontiguousarray(values_)
                span = Span.all_of(Region.whole(held.shape))
                catalog.tensors[parameter_name(name, region, part)] = StoredTensor(
                    held.shape, place.dtype, [StoredPiece(span, place.dtype, path, 0, held=held)]
                )
    return set(found)


OF_EXPERT = re.compile(
    rf"{re.escape(OWN_ROOT)}\.encoder\.layers\.(\d+)\.mlp\.experts\.local_experts\.(\d+)"
    r"\.(mapping|projection)"
)
"""Path of a matrix of one expert here."""
PARTS = (DOWN, UP)
"""Parts of an adapter of experts."""


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """Adapters of one matrix of all experts of a layer, as PEFT has them."""

    parameter: str
    key: str
    """Of its tensors: the second matrix that is adapted wraps the first."""
    lora_A: np.ndarray  # noqa: N815  (PEFT's name)
    """[E r, inputs], expert by expert."""
    lora_B: np.ndarray  # noqa: N815
    """[outputs, r E], the expert as its fastest index."""
    rank: int
    scale: float


def fused_experts(
    spec: ModelSpec, family: Family, arrays: Mapping[str, np.ndarray]
) -> Iterator[FusedExperts]:
    """Experts with adapters that are one tensor in PEFT's files, see ``add_fused_experts``."""
    if not any(OF_EXPERT.fullmatch(one.linear) for one in modules(spec, family)):
        return
    groups: dict[tuple[int, str], list[Module]] = {}
    for linear, layer in adapters_of(spec):
        found = OF_EXPERT.fullmatch(linear)
        if found is None:
            continue
        if layer.adapters[0].has_magnitude:
            return
        place = Place("", "", Region.whole((layer.outputs, layer.inputs)))
        module = Module(linear, place, linear, layer.adapters)
        groups.setdefault((int(found[1]), found[3]), []).append(module)
    theirs = {"mapping": "gate_up_proj", "projection": "down_proj"}
    for (layer_index, word), experts in groups.items():
        parts = [joined(one, arrays) for one in experts]
        name = f"model.layers.{layer_index}.mlp.experts"
        is_inner = word == "mapping" and (layer_index, "projection") in groups
        ups = np.stack([up for _, up, _ in parts], axis=2)
        yield FusedExperts(
            parameter=f"{name}.{theirs[word]}",
            key=f"{name}.base_layer" if is_inner else name,
            lora_A=np.concatenate([down for down, _, _ in parts]),
            lora_B=ups.reshape(len(ups), -1),
            rank=parts[0][0].shape[0],
            scale=parts[0][2],
        )
