# SPDX-License-Identifier: Apache-2.0
"""Megatron-LM's ``torch`` checkpoints as catalogs: any layout, current and older names.

``mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt`` holds the part of one rank of the model, layers and
experts counted from 0 on every rank. ``distrib_optim.pt`` beside it holds what the ranks of a data
parallel group have gathered of a distributed optimizer: flat buffers, parameters in backward order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mindspeed_ms.formats import names
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.checkpoint_format import SourceHints
from mindspeed_ms.formats.containers.torch_file import TensorRef, flat_names, plain
from mindspeed_ms.formats.megatron_files import (
    OPTIMIZER_FILE,
    is_checkpoint,
    lacks_optimizer,
    missing_ranks,
    open_ranks,
)
from mindspeed_ms.formats.megatron_optimizer import add_optimizer
from mindspeed_ms.formats.megatron_parts import (
    Chunk,
    Part,
    Rank,
    RankFile,
    Sizes,
    add_piece,
    global_span,
)
from mindspeed_ms.models import ModelSpec, ParamSpec

_NOT_READ = ("_extra_state", "local_tokens_per_expert")
"""What is no parameter and starts anew with every run."""

_TOGETHER = re.compile(r"(.*\.experts)\.weight([12])$")
"""All experts of a rank in one tensor (grouped products before Transformer Engine)."""


def read_catalog(folder: Path, describe: names.Describe) -> Catalog:
    """What a checkpoint holds; tensors stay in their files.

    Args:
        folder: of the checkpoint.
        describe: its common part -> the model.

    Raises:
        ValueError: a file is damaged, ranks are missing, or tensors contradict each other.
    """
    files = open_ranks(folder)
    content = files[0].file.content
    args = content["args"]
    sizes = Sizes.of(args, files)
    catalog = Catalog({}, _common(content, args, sizes), f"Megatron checkpoint {folder}")
    if lacks_optimizer(files):
        catalog.notes.append(
            f"WARNING: {folder} has no {OPTIMIZER_FILE}, where its distributed optimizer was "
            "saved; it is read without"
        )
    spec = describe(catalog.common)
    firsts = _first_layers(files)
    for item in files:
        item.chunks = _chunks(item, firsts, sizes, catalog, spec)
    for item in files:
        for part in (part for chunk in item.chunks for part in chunk.parts):
            shape, span = global_span(part, item.rank, sizes)
            piece = item.file.piece(part.ref, span, part.first, part.is_transposed)
            add_piece(catalog, part.spec.name, shape, piece)
    if sizes.is_tied:
        catalog.tensors.pop(names.HEAD, None)
    add_optimizer(catalog, files, args, sizes)
    return catalog


def _models(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """State of each model chunk."""
    if "model" in content:
        return [content["model"]]
    chunks = [content[key] for key in sorted(content) if re.fullmatch(r"model\d+", key)]
    if not chunks:
        raise ValueError("a file holds no model")
    return chunks


def _flat(model: Mapping[str, Any]) -> list[tuple[str, TensorRef]]:
    return [
        (name.removeprefix("module."), value)
        for name, value in flat_names(model)
        if isinstance(value, TensorRef) and not name.endswith(_NOT_READ)
    ]


def _first_layers(files: list[RankFile]) -> dict[tuple[int, int], int]:
    """(stage, chunk) -> global number of its first layer, from how many layers each holds."""
    counts: dict[tuple[int, int], int] = {}
    for item in files:
        for chunk, model in enumerate(_models(item.file.content)):
            layers = [names.layer_of(f".{name}") for name, _ in _flat(model)]
            numbers = [layer for layer in layers if layer is not None]
            counts[item.rank.pipeline, chunk] = max(numbers, default=-1) + 1
    firsts, position = {}, 0
    for stage, chunk in sorted(counts, key=lambda key: (key[1], key[0])):
        firsts[stage, chunk] = position
        position += counts[stage, chunk]
    return firsts


def _chunks(
    item: RankFile,
    firsts: Mapping[tuple[int, int], int],
    sizes: Sizes,
    catalog: Catalog,
    spec: ModelSpec,
) -> list[Chunk]:
    """Parameters of each chunk of a rank, under this project's names.

    Raises:
        ValueError: a tensor that the model does not have.
    """
    chunks = []
    for chunk, model in enumerate(_models(item.file.content)):
        refs = _flat(model)
        first = firsts[item.rank.pipeline, chunk]
        parts = [part for name, ref in refs for part in _parts(name, ref, item.rank, sizes)]
        for part in parts:
            layer = names.layer_of(part.name)
            full = part.name if layer is None else names.with_layer(part.name, layer + first)
            part.spec = _parameter(full, spec, catalog, item)
        chunks.append(Chunk(parts))
    return chunks


def _parameter(name: str, spec: ModelSpec, catalog: Catalog, item: RankFile) -> ParamSpec:
    """The parameter of a name of Megatron-core, counted over the whole model."""
    if name == "output_layer.weight" and spec.is_tied:
        return spec.tied_head  # a copy on the last stage, or another model's head
    if name not in spec.by_megatron_name:
        raise ValueError(
            f"{catalog.source}: {item.file.path} holds {name}, which is not in the model that "
            "is described; correct the configuration"
        )
    return spec.by_megatron_name[name]


def _parts(name: str, ref: TensorRef, rank: Rank, sizes: Sizes) -> Iterator[Part]:
    """The parameters a tensor holds: itself, or the matrices of several experts."""
    first = rank.expert * sizes.experts_per_rank
    together = _TOGETHER.match(name)
    if together:
        yield from _experts_together(name, together, ref, first, sizes.experts_per_rank)
        return
    full = names.current_name(name)
    local = names.expert_of(full)
    if local is not None:
        full = names.with_expert(full, first + local)
    yield Part(full, name, ref, ref.shape)


def _experts_together(
    name: str, match: re.Match[str], ref: TensorRef, first: int, count: int
) -> Iterator[Part]:
    """Experts in one tensor, their matrices transposed: [E, h, f] and [E, f, h] in memory."""
    is_first = match[2] == "1"
    hidden = ref.shape[0] if is_first else ref.shape[1]
    size = ref.shape[0] * ref.shape[1] // count
    inner = size // hidden
    for local in range(count):
        yield Part(
            f"{match[1]}.local_experts.{first + local}.linear_fc{match[2]}.weight",
            name,
            ref,
            (inner, hidden) if is_first else (hidden, inner),
            first=local * size,
            is_transposed=True,
        )


def _common(content: Mapping[str, Any], args: Any, sizes: Sizes) -> dict[str, Any]:
    iteration = content.get("iteration", 0)
    scheduler = content.get("opt_param_scheduler", content.get("lr_scheduler"))
    return {
        "iteration": int(iteration) if isinstance(iteration, int) else 0,
        "consumed_train_samples": names.get(args, "consumed_train_samples"),
        "is_tied": sizes.is_tied,
        "vocab_size": names.get(args, "vocab_size"),
        "scheduler": plain(scheduler) if scheduler else None,
        "optimizer": {},
        "layout": {
            "tensor": sizes.tensor,
            "pipeline": sizes.pipeline,
            "virtual_pipeline": len(_models(content)),
            "expert": sizes.expert,
        },
        "megatron_args": plain(vars(args)),
    }


class MegatronFormat:
    """Megatron's ``torch`` checkpoints behind ``CheckpointFormat``."""

    name = "torch"

    def is_at(self, path: Path) -> bool:
        """A folder of ``mp_rank_*``."""
        return is_checkpoint(path)

    def missing(self, path: Path) -> str | None:
        """A rank's file."""
        return missing_ranks(path)

    def open(self, path: Path, hints: SourceHints) -> Catalog:
        """Read the descriptions of all ranks."""
        return read_catalog(path, hints.describe)


FORMAT = MegatronFormat()
