# SPDX-License-Identifier: Apache-2.0
"""A model's folder: weights, configuration, and the files that stood beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import AllConfig, LoraConfig, to_yaml
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core.dist_checkpointing.live_state import LiveTensor, parameters_of
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver, SaveSettings, Snapshot
from mindspeed_ms.core.peft.merge import adapted_layers
from mindspeed_ms.files.whole import unfinished_folder
from mindspeed_ms.formats import companions, dtypes, huggingface
from mindspeed_ms.formats.catalog import Catalog, StoredTensor
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.source import Source
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.models import ModelSpec, gpt_spec
from mindspeed_ms.models.adapter import is_adapter_name
from mindspeed_ms.models.families.registry import family_of
from mindspeed_ms.plan.region import Region, Span
from mindspeed_ms.toolkit.models.configuration import EngineConfig, PretrainedConfig
from mindspeed_ms.toolkit.models.export import IDS
from mindspeed_ms.toolkit.models.file_size import file_size
from mindspeed_ms.toolkit.models.hub_upload import push_to_hub as upload
from mindspeed_ms.training.conversion import ConvertOptions, convert

FORMATS = ("huggingface", "mindspore", "megatron", "mindspeed_ms")


class SavedModel(Protocol):
    """What a folder is made of."""

    config: PretrainedConfig
    name_or_path: str
    generation_config: Any
    origin: Path | None
    """Folder with the files of the hub's model it comes from."""

    @property
    def engine_config(self) -> AllConfig:
        """The engine's configuration."""

    def build(self) -> list[GPTModel]:
        """The chunks of this rank."""

    def active(self) -> AbstractContextManager[None]:
        """Context with the model's groups."""


class LiveSource(Source):
    """The tensors of a model in memory, as a converter reads them.

    Args:
        tensors: of a model that is whole on this rank.
        spec: the model.
    """

    def __init__(self, tensors: list[LiveTensor], spec: ModelSpec) -> None:
        stored = {item.name: StoredTensor(item.shape, item.dtype) for item in tensors}
        super().__init__(Catalog(stored, {}, "the model in memory"), spec)
        self._live = {item.name: item for item in tensors}

    def read(
        self, name: str, kind: str = "", span: Span | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """A tensor, or the region of a complete span of it, flat, in fresh memory."""
        item = self._live[name]
        array = memory.flat_view(item.tensor).reshape(item.shape)
        region = Region.whole(self.shape(name)) if span is None else span.region
        part = np.ascontiguousarray(_part_of(array, region)).reshape(-1)
        return dtypes.convert(part, item.dtype, self.dtype(name))


def _part_of(array: np.ndarray, region: Region) -> np.ndarray:
    for dim, runs in enumerate(region.runs):
        before = (slice(None),) * dim
        parts = [array[(*before, slice(start, start + size))] for start, size in runs]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=dim)
    return array


def save_model(
    model: SavedModel,
    folder: Path,
    *,
    save_name: str | None,
    form: str,
    max_shard_size: int | str,
    push_to_hub: Mapping[str, Any] | None,
) -> Path:
    """See ``PreTrainedModel.save_pretrained``."""
    if form not in FORMATS:
        raise ValueError(f"format is {form!r}; there are {', '.join(FORMATS)}")
    if has_adapters_apart(model):
        raise ValueError(
            "save_pretrained writes whole weights, and the model has adapters beside them; put "
            "them in with merge_adapter(model), or write them alone with save_adapter(model, path)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with model.active():
        size = file_size(max_shard_size)
        if form == "huggingface" and comm.get_world_size() == 1:
            _write_huggingface(model, folder, size)
        else:
            options = ConvertOptions(to=form, make_vocab_size_divisible_by=1, max_shard_bytes=size)  # type: ignore[arg-type]
            _through_own_format(model, folder, options, save_name)
        if comm.get_rank() == 0:
            if form == "huggingface":
                _write_generation_config(model, folder)
            if push_to_hub is not None:
                upload(folder, **push_to_hub)
        if comm.get_world_size() > 1:
            comm.barrier()
    return folder


def has_adapters_apart(model: SavedModel) -> bool:
    """Whether adapters stand beside the model's matrices on some rank; collective."""
    layers = (layer for chunk in model.build() for layer in adapted_layers(chunk))
    is_apart = any(adapters.enabled for _, adapters in layers)
    if comm.get_world_size() == 1:
        return is_apart
    return any(comm.all_gather_object(is_apart))  # a stage may have no adapted layer


def _whole(model: SavedModel) -> tuple[AllConfig, list[LiveTensor]]:
    """Configuration and tensors on this rank, without adapters: the matrices hold them."""
    config = model.engine_config
    tensors = [tensor for chunk in model.build() for tensor in parameters_of(chunk)]
    if not config.lora_config.use_lora:
        return config, tensors
    kept = [tensor for tensor in tensors if not is_adapter_name(tensor.name)]
    return assemble({**config.to_dict(), LoraConfig.NAME: {}}), kept


def _write_generation_config(model: SavedModel, folder: Path) -> None:
    values = model.generation_config
    values = dict(values) if isinstance(values, Mapping) else values.to_dict()
    if not values:
        ids = {key: model.config.to_dict().get(key) for key in IDS}
        values = {"_from_model_config": True, **{k: v for k, v in ids.items() if v is not None}}
    path = folder / companions.GENERATION
    storage.write_text(path, json.dumps(values, indent=2) + "\n")


def _write_huggingface(model: SavedModel, folder: Path, max_file_bytes: int) -> None:
    config, tensors = _whole(model)
    is_of_family = not isinstance(model.config, EngineConfig)
    family = model.config.family if is_of_family else family_of(config)
    spec = gpt_spec(config.model_config)
    source = LiveSource(tensors, spec)
    huggingface.write(
        source,
        config,
        family,
        folder,
        lambda count: None,
        vocab_size=model.config.vocab_size,
        original=model.config.to_dict(),
        max_file_bytes=max_file_bytes,
    )
    if model.origin is not None:
        companions.carry(model.origin, folder)
    values = huggingface.read_config(folder)
    companions.complete_card(folder, companions.card(values, spec.num_parameters, "a model"))


def _through_own_format(
    model: SavedModel, folder: Path, options: ConvertOptions, save_name: str | None
) -> None:
    """Every rank writes its part, then the first rank converts.

    Raises:
        ValueError: the format cannot hold the model.
    """
    is_first = comm.get_rank() == 0
    made = unfinished_folder(folder, "save") if is_first else nullcontext(folder)
    with made as between:  # the first rank's
        if comm.get_world_size() > 1:
            between = comm.broadcast_object(between, 0)
        problem = ""
        try:
            _write_own(model, between / "own")
            if is_first:
                _convert(model, between, folder, options, save_name)
        except (ValueError, OSError) as error:
            problem = str(error)
        if comm.get_world_size() > 1:
            problem = comm.broadcast_object(problem, 0)
    if problem:
        raise ValueError(problem)


def _convert(
    model: SavedModel,
    between: Path,
    folder: Path,
    options: ConvertOptions,
    save_name: str | None,
) -> None:
    own, form = between / "own", options.to
    if not isinstance(model.config, EngineConfig):
        companions.keep(model.origin or own, own, model.config.to_dict())
    target = between / "converted" if form == "mindspore" else folder
    convert(own, target, options)
    if form == "mindspore":
        stem = save_name or Path(model.name_or_path).name or "mindspore_model"
        (written,) = target.glob("rank_0/*.ckpt")
        os.replace(written, folder / f"{stem}.ckpt")
        values = model.config.to_dict()
        kind = type(model.config).__name__
        block = {"arch": {"type": type(model).__name__}, "model_config": {"type": kind, **values}}
        storage.write_text(
            folder / f"{stem}.yaml", yaml.safe_dump({"model": block}, sort_keys=False)
        )


def _write_own(model: SavedModel, root: Path) -> None:
    config, tensors = _whole(model)
    common = {
        "iteration": 0,
        "vocab_size": model.config.vocab_size,
        "is_tied": not config.model_config.untie_embeddings_and_output_weights,
        "config": config.to_dict(),
    }
    saver = CheckpointSaver(SaveSettings(root=root))
    snapshot = Snapshot(iteration=0, common=common, rank_state={}, config=to_yaml(config))
    saver.save(tensors, snapshot)
    saver.finish()
