# SPDX-License-Identifier: Apache-2.0
"""A run that trains adapters: what lies below them, and what of them is loaded and saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mindspore.nn import Cell

from mindspeed_ms.config import AllConfig, LoraConfig, TransformerConfig
from mindspeed_ms.core.dist_checkpointing.live_state import base_tensors
from mindspeed_ms.core.dist_checkpointing.loader import LoadOptions, load_tensors
from mindspeed_ms.core.dist_checkpointing.shared_folders import (
    first_rank_decides,
    require_everywhere,
)
from mindspeed_ms.core.distributed import DistributedDataParallel
from mindspeed_ms.core.peft.magnitude import set_magnitudes
from mindspeed_ms.core.peft.prepare import is_prepared
from mindspeed_ms.engine.output import print_rank_0
from mindspeed_ms.formats import names, own_format, peft
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.find import Found, find_checkpoint, open_checkpoint
from mindspeed_ms.models import gpt_spec
from mindspeed_ms.models.families.registry import families_of

ADAPTERS = "adapters"
"""Key in the index of a checkpoint that holds adapters alone."""


def without_adapters(model: TransformerConfig) -> TransformerConfig:
    """The configuration of the model below the adapters."""
    return replace(model, lora_config=LoraConfig())


def report_adapters(config: AllConfig, chunks: Sequence[Cell]) -> None:
    """Say what is trained, where that is adapters alone.

    Raises:
        ValueError: they are asked for, but a provider of the user's has built a model without.
    """
    if not config.lora_config.use_lora:
        return
    for chunk in chunks:
        if not is_prepared(chunk):
            raise ValueError(
                "use_lora is True, but the model of model_provider has no adapters: let it return "
                "a GPTModel of the configuration, or leave use_lora out"
            )
    spec = gpt_spec(config.model_config)
    trained, total = spec.num_adapter_parameters, spec.num_parameters
    print_rank_0(f"trainable parameters: {trained} of {total} ({100 * trained / total:.4g} %)")


def adapters_of(config: AllConfig, base: str | None) -> dict[str, Any]:
    """What the index of a checkpoint says of the adapters it holds; nothing for a whole model."""
    return {ADAPTERS: {peft.BASE: base}} if config.lora_config.use_lora else {}


def head_alias(config: AllConfig, catalog: Catalog) -> dict[str, str]:
    """A head takes the embedding's values where the checkpoint, or the model, ties them."""
    is_tied = not config.model_config.untie_embeddings_and_output_weights
    if is_tied or catalog.common.get("is_tied"):
        return {names.HEAD: names.EMBEDDING}
    return {}


def load_base(
    config: AllConfig,
    models: Sequence[DistributedDataParallel],
    found: Found | None,
    vocab_size: int | None,
) -> tuple[Found | None, str | None]:
    """Fill the frozen weights.

    They come from ``base_model_name_or_path``; else from what the adapters to be loaded name; else
    what is loaded is the base itself.

    Args:
        config: the run's configuration.
        models: the chunks of this rank.
        found: the checkpoint that the run is to load, if any.
        vocab_size: tokens in use.

    Returns:
        The checkpoint of adapters that is left to load, and where the base is.

    Raises:
        ValueError: a base is named and not there, or does not fit.

    Parallelism: collective over the world.
    """
    told, named = _told_base(found), config.lora_config.base_model_name_or_path
    base: Found | None = None
    if found is not None and told == _IS_BASE:
        if named:
            raise ValueError(
                f"{found.folder} holds a whole model, and so does base_model_name_or_path; give one"
            )
        base, found = found, None
    elif named or told:
        base = first_rank_decides(lambda: _base(str(named or told)))
    if base is None:
        print_rank_0(
            "WARNING: adapters stand beside initial weights; name the model they are for with "
            "base_model_name_or_path or --load"
        )
        return found, None
    require_everywhere(base.folder)
    print_rank_0(f" loading frozen weights from {base.folder} (format {base.kind})")
    catalog = open_checkpoint(base, lambda common: gpt_spec(without_adapters(config.model_config)))
    options = LoadOptions(
        aliases=head_alias(config, catalog),
        vocab_size=catalog.common.get("vocab_size") or vocab_size,
    )
    report = load_tensors(catalog, [], None, base_tensors(models), options)
    for note in report.notes:
        print_rank_0(f"  {note}")
    for model in models:
        set_magnitudes(model.module)
    return found, str(base.folder)


_IS_BASE = ""
"""In place of a path: what is loaded is a whole model."""


def _told_base(found: Found | None) -> str | None:
    """Where the base of a checkpoint's adapters is, None if it does not say."""
    if found is None:
        return None
    if found.kind == "peft":
        return peft.read_options(found.folder).get(peft.BASE) or None
    if found.kind != "mindspeed_ms":
        return _IS_BASE
    index = own_format.read_index(found.folder)
    stored = index.get(ADAPTERS, index.get("common", {}).get(ADAPTERS))
    return _IS_BASE if stored is None else stored.get(peft.BASE)


def _base(path: str) -> Found:
    found = find_checkpoint(Path(path)) if Path(path).exists() else None
    if found is None or found.kind == "peft":
        raise ValueError(
            f"base_model_name_or_path is {path}, where no model is; give the folder "
            "of the model that the adapters are for"
        )
    return found


def open_adapters(config: AllConfig, found: Found) -> Catalog:
    """Adapters in PEFT's files."""
    spec = gpt_spec(config.model_config)
    return peft.read_catalog(found.folder, spec, families_of(config))
