# SPDX-License-Identifier: Apache-2.0
"""Adapters in the files of the ``peft`` library: ``adapter_config.json`` and its tensors.

Source: PEFT 0.21 ``LoraConfig`` and ``save_pretrained`` (names and shapes).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.config.lora_config import LoraConfig
from mindspeed_ms.files.regular_file import read_json
from mindspeed_ms.formats import dtypes
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor, TensorReader
from mindspeed_ms.formats.checkpoint_format import SourceHints
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.peft_experts import (
    EXPERTS,
    OF_EXPERT,
    OF_EXPERTS,
    PARTS,
    add_fused_experts,
    fused_experts,
)
from mindspeed_ms.formats.peft_modules import joined, magnitudes, modules, parameter_name, rows_of
from mindspeed_ms.models.adapter import DOWN, FOLDER, MAGNITUDE, UP
from mindspeed_ms.models.adapting import adapters_of
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.model import ModelSpec
from mindspeed_ms.models.part import LinearSpec
from mindspeed_ms.plan.region import Region, Span

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "base_model_name_or_path"
"""Key of the model that adapters are for."""
ROOT = "base_model.model."
"""In front of every name: PEFT's wrapper around the model."""
_FILES = {DOWN: f"{DOWN}.weight", UP: f"{UP}.weight", MAGNITUDE: f"{MAGNITUDE}_vector"}
"""Part of an adapter -> its name there."""

_PATTERNS = ("layers", "h", "blocks")
"""Lists of transformer layers there, which ``layers_to_transform`` counts anyway."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "lora_bias": (False, None),
    "modules_to_save": (None, [], ()),
    "layer_replication": (None, []),
    "layers_pattern": (None, "", [], *_PATTERNS, *([one] for one in _PATTERNS)),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "corda_config": (None,),
    "eva_config": (None,),
    "kasa_config": (None,),
    "lora_ga_config": (None,),
    "loftq_config": ({}, None),
    "megatron_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "ensure_weight_tying": (False, None),
    "init_lora_weights": (True, False, "gaussian", None),
}
"""Option -> values with which nothing is asked for that is not done here."""

_FRESH: Mapping[str, Any] = {
    "target_parameters": None,
    **{name: values[0] for name, values in NEUTRAL.items()},
    "auto_mapping": None,
    "exclude_modules": None,
    "inference_mode": True,
    "megatron_core": "megatron.core",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "revision": None,
    "task_type": "CAUSAL_LM",
}


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds adapters in PEFT's files."""
    return (folder / CONFIG).is_file()


def read_options(folder: Path) -> dict[str, Any]:
    """``adapter_config.json``.

    Raises:
        ValueError: it cannot be read, or asks for something that is not done here.
    """
    path = folder / CONFIG
    try:
        options = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); correct the file") from error
    check_options(options, str(path))
    return options


def check_options(options: Mapping[str, Any], where: str) -> None:
    """Refuse options of PEFT that are not done here, and values of no use, by name.

    Raises:
        ValueError: there is one.
    """
    for name, (fits, rule) in _KINDS.items():
        if options.get(name) is not None and not fits(options[name]):
            shown = " ".join(f"{options[name]!r:.100}".split())
            raise ValueError(f"{where}: {name} is {shown}; it must be {rule}")
    for name, values in NEUTRAL.items():
        if name in options and not any(_is(options[name], one) for one in values):
            given = " ".join(f"{options[name]!r:.100}".split())
            raise ValueError(
                f"{where}: {name} is {given}; adapters are of the kind LORA, with "
                f"{name} {values[0]!r}: train or save them so"
            )


def _are_texts(given: object) -> bool:
    rows = list | tuple | set
    return isinstance(given, str) or (
        isinstance(given, rows) and all(isinstance(one, str) for one in given)
    )


def _are_layers(given: object) -> bool:
    numbers = given if isinstance(given, list | tuple) else [given]
    return all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in numbers)


def _is_switch(given: object) -> bool:
    return isinstance(given, bool | np.bool_)


_NAMES = (_are_texts, "a name, or a list of names")
_BY_NAME = (lambda given: isinstance(given, Mapping), "values by name")
_SWITCH = (_is_switch, "true or false")
_KINDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "target_modules": _NAMES,
    "target_parameters": _NAMES,
    "exclude_modules": _NAMES,
    "layers_to_transform": (_are_layers, "the number of a layer, or a list of numbers"),
    "rank_pattern": _BY_NAME,
    "alpha_pattern": _BY_NAME,
    "use_rslora": _SWITCH,
    "use_dora": _SWITCH,
    "fan_in_fan_out": _SWITCH,
    "base_model_name_or_path": (lambda given: isinstance(given, str | PathLike), "a path"),
}
"""Option -> what its values can be, besides None."""


def _is(given: object, value: object) -> bool:
    """Whether they are equal; arrays compare element by element and are equal to nothing."""
    if given is None or value is None:
        return given is value
    is_plain = isinstance(given, str | int | float | list | tuple | dict | set)
    return is_plain and given == value


def section_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``lora_config`` that an ``adapter_config.json`` amounts to."""

    def words(value: Any) -> Any:
        return tuple(sorted(value)) if isinstance(value, list | tuple | set) else value

    targets = words(options.get("target_modules")) or ()
    parameters = tuple(
        f"mlp.experts.{name}" if name in OF_EXPERTS else name
        for name in words(options.get("target_parameters")) or ()
    )
    if parameters:  # experts that are one tensor there
        targets = (*((targets,) if isinstance(targets, str) else targets), *parameters)

    layers = options.get("layers_to_transform")
    return {
        "use_lora": True,
        "lora_rank": options.get("r", 8),
        "lora_alpha": options.get("lora_alpha", 8),
        "lora_dropout": options.get("lora_dropout", 0.0),
        "target_modules": targets or None,
        "exclude_layers": words(options.get("exclude_modules")) or None,
        "layers_to_transform": (layers,) if isinstance(layers, int) else layers,
        "rank_pattern": options.get("rank_pattern") or None,
        "alpha_pattern": options.get("alpha_pattern") or None,
        "use_rslora": bool(options.get("use_rslora")),
        "use_dora": bool(options.get("use_dora")),
        "base_model_name_or_path": options.get("base_model_name_or_path") or None,
    }


# --- reading --------------------------------------------------------------------------------------


def read_catalog(folder: Path, spec: ModelSpec, families: Iterable[Family]) -> Catalog:
    """The adapters of a folder under the names here; tensors stay in their file.

    Args:
        folder: with both files.
        spec: the model with the adapters that the folder's options ask for.
        families: kinds of model that it may be of; the file's names tell which.

    Raises:
        ValueError: tensors are missing, left over, or of another shape.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}; save the adapters as safetensors")
    header = safetensors.read_header(path)[0]
    family = _family_of(header, spec, families)
    stored = {_own(key, family): place for key, place in header.items()}
    catalog = Catalog({}, {"iteration": 0}, f"PEFT adapters {folder}")
    unused = set(stored)
    fused = add_fused_experts(catalog, path, stored, spec)
    unused -= fused
    for module in modules(spec, family):
        if all(
            parameter_name(module.linear, one.region, DOWN) in catalog.tensors
            for one in module.adapters
        ):
            continue
        (adapter,) = module.adapters if len(module.adapters) == 1 else (None,)
        mine = {row: number for number, row in enumerate(rows_of(adapter.runs if adapter else ()))}
        if adapter is None or mine.keys() != set(module.rows):
            raise ValueError(
                f"{folder}: adapters of {module.name} do not lie as the layer's adapters here; use "
                "the target_modules of the file"
            )
        for part, word in _FILES.items():
            name = parameter_name(module.linear, adapter.region, part)
            if name not in spec.by_name:
                continue
            key = f"{module.name}.{word}"
            found = stored.get(key) or stored.get(f"{key}.weight")
            if found is None:
                raise ValueError(f"{path} holds no {ROOT}{key}; it is incomplete")
            unused -= {key, f"{key}.weight"}
            shape = spec.by_name[name].shape
            if _without_ones(found.shape) != _without_ones(shape):
                raise ValueError(
                    f"{path}: {key} has shape {list(found.shape)}, the model and {CONFIG} say "
                    f"{list(shape)}"
                )
            region = Region.whole(shape)
            if part != DOWN:  # their order of the rows, such as that of a head's query, key, value
                region = region.with_runs(0, [(mine[row], 1) for row in module.rows])
            piece = StoredPiece(Span.all_of(region), found.dtype, path, found.offset)
            catalog.tensors[name] = StoredTensor(shape, found.dtype, [piece])
    if unused:
        raise ValueError(
            f"{path} holds {sorted(unused)[0]} and {len(unused) - 1} more that {CONFIG} does not "
            "ask for"
        )
    return catalog


def _without_ones(shape: Sequence[int]) -> list[int]:
    """Axes that number something; magnitudes come with one that does not."""
    return [size for size in shape if size != 1]


def _family_of(keys: Collection[str], spec: ModelSpec, families: Iterable[Family]) -> Family:
    """The family whose layers the tensors are of; the first, if they are of none."""
    first, *others = families
    for family in (first, *others):
        layers = {module.name for module in modules(spec, family)}
        names = (_own(key, family) for key in keys)
        if all(name.rpartition(".lora_")[0] in layers or EXPERTS.match(name) for name in names):
            return family
    return first


def _own(key: str, family: Family) -> str:
    """Name of a tensor with the family's prefix, whatever the file has left out."""
    name = key.removeprefix(ROOT).replace(f"{DOWN}.default.", f"{DOWN}.")
    name = name.replace(f"{UP}.default.", f"{UP}.")
    return family.full_name(name.removeprefix(family.prefix))


# --- writing --------------------------------------------------------------------------------------


def write(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    spec: ModelSpec,
    family: Family,
    lora: LoraConfig,
    original: Mapping[str, Any] | None = None,
) -> Path:
    """Write both files of PEFT; return the folder.

    Adapters of parts of a layer that is one there become one of the sum of their ranks; one of a
    layer that is several there is written to each. Experts are one tensor there, if they have no
    magnitudes, which PEFT does not know for such.

    Args:
        folder: it is made.
        arrays: fp32 values of the adapters' parameters, by their names here.
        spec: the model.
        family: the kind of model.
        lora: how it is adapted.
        original: options that the adapters came with; keys that are not known here are kept.
    """
    entries, ranks, alphas = [], {}, {}

    def note(name: str, rank: int, scale: float) -> None:
        ranks[name] = rank
        alphas[name] = _plain(scale * (math.sqrt(rank) if lora.use_rslora else rank))

    experts = list(fused_experts(spec, family, arrays))
    for module in modules(spec, family):
        if experts and OF_EXPERT.fullmatch(module.linear):
            continue
        down, up, scale = joined(module, arrays)
        note(module.name, down.shape[0], scale)
        for part, array in ((DOWN, down), (UP, up)):
            entries.append(_entry(f"{ROOT}{module.name}.{_FILES[part]}", array))
        if module.adapters[0].has_magnitude:
            magnitude = magnitudes(module, arrays)
            entries.append(_entry(f"{ROOT}{module.name}.{_FILES[MAGNITUDE]}", magnitude))
    usual = dict(ranks)
    for one in experts:
        entries += [_entry(f"{ROOT}{one.key}.{_FILES[part]}", getattr(one, part)) for part in PARTS]
        note(one.parameter, one.rank, one.scale)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (WEIGHTS + storage.PARTIAL)
    safetensors.write_file(partial, entries, {"format": "pt"})
    storage.put_in_place(partial, folder / WEIGHTS)
    every = (family.full_name(place.theirs) for place in family.places(spec))
    targets = _targets(usual, (name.removesuffix(".weight") for name in every))
    options = {**_FRESH, **(original or {}), **_options(lora, ranks, alphas, targets)}
    options["target_parameters"] = [one.parameter for one in experts] or None
    options["fan_in_fan_out"] = any(one.place.is_transposed for one in modules(spec, family))
    storage.write_text(folder / CONFIG, json.dumps(dict(sorted(options.items())), indent=2))
    return folder


def _entry(key: str, array: np.ndarray) -> safetensors.Entry:
    return safetensors.Entry(key, "F32", array.shape, np.ascontiguousarray(array, np.float32))


def _plain(value: float) -> int | float:
    nearest = round(value)
    return nearest if math.isclose(value, nearest, rel_tol=1e-9) else value


def _options(
    lora: LoraConfig,
    ranks: Mapping[str, int],
    alphas: Mapping[str, int | float],
    targets: list[str],
) -> dict[str, Any]:
    """What differs from the usual: sizes of most layers, then those of the others by name."""
    rank = max(ranks.values(), key=list(ranks.values()).count)
    alpha = max(alphas.values(), key=list(alphas.values()).count)
    return {
        "base_model_name_or_path": lora.base_model_name_or_path,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.lora_dropout,
        "target_modules": targets,
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": lora.use_rslora,
        "use_dora": lora.use_dora,
    }


def _targets(adapted: Collection[str], every: Iterable[str]) -> list[str]:
    """Last words of names, where all layers of that word are adapted; else whole names."""
    left = {name.rpartition(".")[2] for name in every if name not in adapted}
    words = {name: name.rpartition(".")[2] for name in adapted}
    return sorted({name if word in left else word for name, word in words.items()})


# --- merging --------------------------------------------------------------------------------------


class AdapterDeltas:
    """What adapters add to the matrices of a model, in fp32.

    Args:
        catalog: of the adapters.
        spec: the model with them.
    """

    def __init__(self, catalog: Catalog, spec: ModelSpec) -> None:
        self._catalog = catalog
        self._linears = dict(adapters_of(spec))
        self._reader = TensorReader()

    def __contains__(self, name: str) -> bool:
        path, _, kind = name.rpartition(".")
        return kind == "weight" and path in self._linears

    def merged(self, name: str, weight: np.ndarray) -> np.ndarray:
        """A matrix [outputs, inputs] with its adapters, fp32.

        Args:
            name: of the parameter.
            weight: its values in fp32.
        """
        path = name.rpartition(".")[0]
        linear: LinearSpec = self._linears[path]
        result = weight.astype(np.float32, copy=True)
        for adapter in linear.adapters:
            down, up = (
                self._read(parameter_name(path, adapter.region, part)) for part in (DOWN, UP)
            )
            rows = rows_of(adapter.runs)
            result[rows] += np.float32(adapter.scale) * (up @ down)
            if adapter.has_magnitude:
                magnitude = self._read(parameter_name(path, adapter.region, MAGNITUDE))
                lengths = np.linalg.norm(result[rows], axis=1)
                result[rows] *= (magnitude / lengths)[:, None]
        return result

    def _read(self, name: str) -> np.ndarray:
        return self._reader.read(self._catalog.tensor(name), "F32")


def values(catalog: Catalog) -> dict[str, np.ndarray]:
    """Every tensor of adapters, in fp32."""
    with TensorReader() as reader:
        found = {}
        for name, tensor in catalog.tensors.items():
            if f".{FOLDER}." in name and name.partition(".")[0] == "language_model":
                found[name] = dtypes.convert(reader.read(tensor), tensor.dtype, "F32")
        return found


class PeftFormat:
    """Adapters behind ``CheckpointFormat``: found as a checkpoint, opened with their base alone."""

    name = "peft"

    def is_at(self, path: Path) -> bool:
        """A folder with ``adapter_config.json``."""
        return path.is_dir() and is_adapter_folder(path)

    def missing(self, path: Path) -> str | None:
        """The file of tensors."""
        return None if (path / WEIGHTS).is_file() else WEIGHTS

    def open(self, path: Path, hints: SourceHints) -> Catalog:
        """Adapters are no model; see ``engine.adapters`` for how they are read.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{path} holds adapters alone; load them with use_lora (--use-lora), or merge them "
            "into their base with convert_ckpt --base"
        )


FORMAT = PeftFormat()
