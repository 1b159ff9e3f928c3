# SPDX-License-Identifier: Apache-2.0
"""Adapters as the source of a conversion: merged into their base, or written in PEFT's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspeed_ms.config import AllConfig, LoraConfig
from mindspeed_ms.formats import own_format, peft
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.find import Found
from mindspeed_ms.models import ModelSpec, gpt_spec
from mindspeed_ms.models.families.registry import families_of, family_of, family_of_type


@dataclass(frozen=True, slots=True)
class FoundAdapters:
    """Adapters that are to be converted."""

    found: Found
    lora: LoraConfig
    base: Path
    """Checkpoint of the model that they are for."""
    options: Mapping[str, Any]
    """``adapter_config.json`` that they came with."""


def adapters_at(found: Found, base: Path | None) -> FoundAdapters | None:
    """Adapters in a checkpoint, None if it holds a whole model.

    Args:
        found: the checkpoint.
        base: the model they are for; None for the one they name.

    Raises:
        ValueError: it holds adapters, and nothing says what they are for.
    """
    options: dict[str, Any] = {}
    if found.kind == "peft":
        options = peft.read_options(found.folder)
        section, named = peft.section_of(options), options.get(peft.BASE)
    elif found.kind == "mindspeed_ms":
        common = own_format.read_catalog(found.folder).common
        if common.get("adapters") is None:
            return None
        section, named = common["config"]["lora_config"], common["adapters"].get(peft.BASE)
    else:
        return None
    path = base or (Path(named) if named else None)
    if path is None or not path.exists():
        raise ValueError(
            f"{found.folder} holds adapters alone, of {named or 'a model that it does not name'}; "
            "give the model with --base"
        )
    return FoundAdapters(
        found, LoraConfig.from_dict({**section, peft.BASE: str(path)}), path, options
    )


def opened(adapters: FoundAdapters, base: AllConfig) -> tuple[Catalog, ModelSpec]:
    """The adapters' tensors, and the model with them."""
    spec = gpt_spec(replace(base.model_config, lora_config=adapters.lora))
    if adapters.found.kind == "peft":
        return peft.read_catalog(adapters.found.folder, spec, families_of(base)), spec
    return own_format.read_catalog(adapters.found.folder), spec


def write_peft(
    adapters: FoundAdapters, base: AllConfig, model_type: str | None, target: Path
) -> tuple[int, int]:
    """Write PEFT's files; return the numbers of tensors and bytes.

    Args:
        adapters: what is written.
        base: configuration of the model they are for.
        model_type: kind of Hugging Face model, None for the first that fits.
        target: the folder.
    """
    catalog, spec = opened(adapters, base)
    family = family_of_type(model_type) if model_type else family_of(base)
    arrays = peft.values(catalog)
    peft.write(target, arrays, spec, family, adapters.lora, adapters.options)
    return len(arrays), sum(array.nbytes for array in arrays.values())
