# SPDX-License-Identifier: Apache-2.0
"""One conversion: any format in, any format out, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindspeed_ms.config import AllConfig, ModelParallelConfig
from mindspeed_ms.config.build import assemble
from mindspeed_ms.config.yaml_reader import read_yaml
from mindspeed_ms.engine.observe import record as run_record
from mindspeed_ms.formats import (
    companions,
    dtypes,
    huggingface,
    megatron_writer,
    mindspore_dirs,
    names,
    own_writer,
    peft,
)
from mindspeed_ms.formats.catalog import Catalog
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.formats.merged_source import MergedSource
from mindspeed_ms.formats.padding import padded_rows
from mindspeed_ms.formats.source import Source, kind_of
from mindspeed_ms.models import ModelSpec, gpt_spec
from mindspeed_ms.models.families.family import Family
from mindspeed_ms.models.families.registry import BY_MODEL_TYPE, family_of, family_of_type
from mindspeed_ms.plan.layer_placement import LayerPlacement, layer_placement
from mindspeed_ms.training import adapter_conversion
from mindspeed_ms.training.checkpoint_config import config_of, is_origin, megatron_args, spec_of

TARGETS = ("mindspeed_ms", "megatron", "huggingface", "mindspore", "peft")

TOKENIZER_FIELDS = ("tokenizer_type", "tokenizer_model", "vocab_file", "merge_file")
"""Fields of ``dataset_config`` and arguments of Megatron that name a tokenizer."""


@dataclass(kw_only=True, slots=True)
class ConvertOptions:
    """What is written, and how."""

    to: Literal["mindspeed_ms", "megatron", "huggingface", "mindspore", "peft"] = "mindspeed_ms"
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int | None = None
    num_layer_list: Any = None
    expert: int = 1
    data_parallel: int = 1
    naming: megatron_writer.Naming = "local"
    distributed_optimizer: bool | None = None
    """None: as in the source."""
    with_optimizer: bool = True
    ema: bool = False
    """Take the moving average of the weights for the weights."""
    dtype: str | None = None
    """Type of weights, None for the source's."""
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int = 128
    container: Literal["safetensors", "ckpt"] | None = None
    """Kind of files; None: ckpt for MindSpore, else safetensors."""
    prefix: str = "network"
    all_copies: bool = False
    step: int | None = None
    source_tensor: int | None = None
    """Tensor parallel size of the source, where its files do not tell."""
    model_config: Path | None = None
    """Description of the model, where the source has none."""
    model_type: str | None = None
    """Kind of Hugging Face model to write."""
    noop_layers: tuple[int, ...] = ()
    """Numbers that identity layers take in the target."""
    num_layers: int | None = None
    """Layers of the target, identity layers included; None: those of the source."""
    base: Path | None = None
    """Model that the adapters of the source are for; None for the one they name."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron arguments to write beside those that follow."""
    max_shard_bytes: int | None = None
    """Of one file of a Hugging Face model; None: 5 GiB."""


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did."""

    folder: Path
    num_tensors: int
    num_bytes: int
    notes: tuple[str, ...]
    config: AllConfig
    has_origin: bool = False
    """The model comes from the hub, whose files are known."""


def open_source(path: Path, options: ConvertOptions) -> tuple[Catalog, AllConfig]:
    """The checkpoint at a path and the configuration of its model.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    found = find_checkpoint(path, options.step)
    if found is None:
        raise ValueError(
            f"{path} holds no checkpoint; name the folder of a run, of one checkpoint, of a "
            "Hugging Face model, or a .ckpt file"
        )
    given = {} if options.model_config is None else described_by(options.model_config)

    def describe(common: Mapping[str, Any]) -> ModelSpec:
        return spec_of(given or common)

    catalog = open_checkpoint(found, describe, options.source_tensor)
    catalog.notes[:0] = found.notes
    if options.ema:
        _take_average(catalog, path)
    return catalog, config_of(given or catalog.common)


def _take_average(catalog: Catalog, path: Path) -> None:
    """Put the moving average of the weights in their place, and leave the optimizer out."""
    prefix = "ema_params."
    averages = {
        name.removeprefix(prefix): stored
        for name, stored in catalog.tensors.items()
        if name.startswith(prefix)
    }
    if not averages:
        raise ValueError(
            f"{path} holds no moving average of the weights; leave --ema out, or train with "
            "--optimizer-selection fused_ema_adamw"
        )
    weights = {name: one for name, one in catalog.tensors.items() if kind_of(name) == ""}
    catalog.tensors.clear()
    catalog.tensors |= weights | averages


def described_by(path: Path) -> dict[str, Any]:
    """A description of a model in a file: YAML of ours, or a ``config.json``, or arguments.

    Raises:
        ValueError: it describes no model.
    """
    content = read_yaml(path)
    if "model_type" in content:
        return {"huggingface": content}
    if "num_layers" in content:
        return {"megatron_args": content}
    return {"config": content}


def convert(
    source_path: Path,
    target_path: Path,
    options: ConvertOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ConvertReport:
    """Convert a checkpoint.

    Args:
        source_path: checkpoint of any format.
        target_path: folder of the result.
        options: what to write.
        progress: told the bytes done and the bytes in all.

    Raises:
        ValueError: the source cannot be read, or has no counterpart in the target; a run saves to
            the target's folder.
    """
    if (target_path / run_record.FILE_NAME).exists():
        raise ValueError(
            f"{target_path} is the folder that a run saves to, and what is converted would stand "
            "between its checkpoints or replace one; give a folder of its own"
        )
    adapters = _adapters(source_path, options)
    if adapters is not None:
        source_path = adapters.base
        options = replace(options, step=None, with_optimizer=False)
    catalog, config = open_source(source_path, options)
    if options.to == "peft":
        return _to_peft(source_path, adapters, config, target_path, options)
    stored = catalog.tensor(names.EMBEDDING).shape[0]
    origin = _origin(source_path, catalog, config)
    vocab_size = options.vocab_size or catalog.common.get("vocab_size")
    if origin is not None and options.vocab_size is None and origin.rows <= stored:
        vocab_size = origin.rows
    rows = padded_rows(vocab_size, stored, options.make_vocab_size_divisible_by, options.tensor)
    _check_complete(catalog, gpt_spec(config.model_config))
    if options.noop_layers:
        catalog, config = _with_noop_layers(catalog, config, options)
    spec = gpt_spec(config.model_config)
    dtype = options.dtype or _common_dtype(catalog, options)
    described = _with_types(config, catalog, options)
    target = _Target(described, vocab_size, target_path, options, origin)
    if adapters is None:
        source = Source(catalog, spec, rows, dtype)
    else:
        deltas = peft.AdapterDeltas(*adapter_conversion.opened(adapters, config))
        source = MergedSource(catalog, spec, deltas, rows, dtype)
    total = _total_bytes(source, options)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    with source.reader:
        folder = _write(source, target, advance)
    left = source.not_taken()
    if left:
        raise ValueError(f"{folder} lacks {'; '.join(left[:4])} of {catalog.source}; do not use it")
    carried = _carry(catalog, target, companions.tokenizer_of(source_path))
    notes = [*catalog.notes, *_notes(catalog, source, target), *carried]
    told = _with_tokenizer(config, catalog)
    return ConvertReport(folder, len(source.weights), done, tuple(notes), told, origin is not None)


def _adapters(path: Path, options: ConvertOptions) -> adapter_conversion.FoundAdapters | None:
    found = find_checkpoint(path, options.step)
    adapters = None if found is None else adapter_conversion.adapters_at(found, options.base)
    if adapters is None and options.base is not None:
        raise ValueError(f"{path} holds a whole model; --base is for adapters: leave it out")
    return adapters


def _to_peft(
    source: Path,
    adapters: adapter_conversion.FoundAdapters | None,
    config: AllConfig,
    target: Path,
    options: ConvertOptions,
) -> ConvertReport:
    if adapters is None:
        raise ValueError(f"{source} holds no adapters; write a whole model to another format")
    tensors, size = adapter_conversion.write_peft(adapters, config, options.model_type, target)
    return ConvertReport(target, tensors, size, (), config)


@dataclass(frozen=True, slots=True)
class _Target:
    """What is written, and where."""

    config: AllConfig
    vocab_size: int | None
    path: Path
    options: ConvertOptions
    origin: _Origin | None


@dataclass(frozen=True, slots=True)
class _Origin:
    """The hub's model that a checkpoint comes from."""

    folder: Path | None
    """With its files; None if only its ``config.json`` is known."""
    config: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """Of its vocabulary."""
        return int(self.config["vocab_size"])


def _origin(path: Path, catalog: Catalog, config: AllConfig) -> _Origin | None:
    """Where a checkpoint comes from, if that is the model it holds."""
    folder = companions.origin_of(path)
    found = catalog.common.get("huggingface") or companions.origin_config(path)
    return _Origin(folder, found) if found and is_origin(found, config) else None


def _with_tokenizer(config: AllConfig, catalog: Catalog) -> AllConfig:
    """The configuration with the tokenizer that Megatron's arguments name."""
    arguments = catalog.common.get("megatron_args") or {}
    named = {name: arguments[name] for name in TOKENIZER_FIELDS if arguments.get(name)}
    if config.dataset_config.tokenizer_type or "tokenizer_type" not in named:
        return config
    sections = config.to_dict()
    sections["dataset_config"] |= named
    try:
        return assemble(sections)
    except ValueError:  # a kind that is not known here
        return config


def _carry(catalog: Catalog, target: _Target, tokenizer: Path | None) -> list[str]:
    """Take what stands beside the weights along; what was done, in words."""
    origin, path = target.origin, target.path
    is_hub = target.options.to == "huggingface"
    folder = None if origin is None else origin.folder
    carried = []
    if folder is not None and is_hub:
        carried = companions.carry(folder, path)
    elif folder is not None and origin is not None:
        companions.keep(folder, path, origin.config)
    if tokenizer is not None and is_hub and not companions.has_tokenizer(path):
        carried += companions.carry(tokenizer, path, companions.TOKENIZER)
    elif tokenizer is not None and not is_hub:
        companions.keep_tokenizer(tokenizer, path)
    if is_hub:
        written = huggingface.read_config(path)
        count = gpt_spec(target.config.model_config).num_parameters
        kind = catalog.source.split(" /", 1)[0]
        companions.complete_card(path, companions.card(written, count, f"a {kind}"))
    return [f"carried along: {', '.join(carried)}"] if carried else []


def _with_noop_layers(
    catalog: Catalog, config: AllConfig, options: ConvertOptions
) -> tuple[Catalog, AllConfig]:
    """The catalog with its layers moved apart to make room for identity layers."""
    model, noop = config.model_config, options.noop_layers
    total = options.num_layers or model.num_layers + len(noop)
    free = [layer for layer in range(total) if layer not in noop]
    if len(free) != model.num_layers:
        raise ValueError(
            f"{total} layers without {len(noop)} identity layers are {len(free)}, but the source "
            f"has {model.num_layers}; correct num_layers or the list"
        )
    moved = {}
    for name, tensor in catalog.tensors.items():
        layer = names.layer_of(name)
        moved[name if layer is None else names.with_layer(name, free[layer])] = tensor
    sections = config.to_dict()
    sections["model_config"]["num_layers"] = total
    sections["parallel_config"]["noop_layers"] = list(noop)
    return Catalog(moved, catalog.common, catalog.source, catalog.notes), assemble(sections)


def _write(source: Source, target: _Target, advance: Callable[[int], None]) -> Path:
    config, options, path = target.config, target.options, target.path
    if options.to == "mindspeed_ms":
        return own_writer.write(
            source,
            config,
            path,
            advance,
            container=options.container or "safetensors",
            with_optimizer=options.with_optimizer,
            vocab_size=target.vocab_size,
        )
    if options.to == "huggingface":
        return huggingface.write(
            source,
            config,
            _family(target),
            path,
            advance,
            vocab_size=target.vocab_size,
            original=None if target.origin is None else target.origin.config,
            max_file_bytes=options.max_shard_bytes or huggingface.MAX_FILE_BYTES,
        )
    placement = placement_of(config, options)
    if options.to == "mindspore":
        layout = mindspore_dirs.MindSporeTarget(
            placement=placement,
            tensor=options.tensor,
            data_parallel=options.data_parallel,
            all_copies=options.all_copies,
            prefix=options.prefix,
            container=options.container or "ckpt",
            with_optimizer=options.with_optimizer,
        )
        described = {"vocab_size": target.vocab_size, "config": config.to_dict()}
        return mindspore_dirs.write(source, described, path, layout, advance)
    arguments = source.catalog.common.get("megatron_args") or {}
    was_sharded = bool(arguments.get("use_distributed_optimizer"))
    is_sharded = options.distributed_optimizer
    moe = config.moe_config
    megatron_target = megatron_writer.MegatronTarget(
        placement=placement,
        tensor=options.tensor,
        expert=options.expert,
        num_experts=moe.num_experts if moe.is_moe else 0,
        naming=options.naming,
        distributed_optimizer=was_sharded if is_sharded is None else is_sharded,
        data_parallel=options.data_parallel,
        with_optimizer=options.with_optimizer,
        arguments={
            **_known_arguments(source.catalog),
            **megatron_args(config),
            "vocab_size": target.vocab_size,
            **options.arguments,
        },
    )
    return megatron_writer.MegatronWriter(source, megatron_target, advance).write(path)


def _family(target: _Target) -> Family:
    """The kind of Hugging Face model to write: the one named, that of the origin, or the first.

    Raises:
        ValueError: it does not hold the model.
    """
    config, options = target.config, target.options
    origin = None if target.origin is None else target.origin.config.get("model_type")
    name = options.model_type or origin
    if name is None:
        return family_of(config)
    family = family_of_type(name)
    misfits = family.misfits(config)
    if misfits and options.model_type is None:
        return family_of(config)
    if misfits:
        raise ValueError(f"{name} models have another {'; '.join(misfits[:4])}; name another kind")
    return family


def _known_arguments(catalog: Catalog) -> dict[str, Any]:
    """Megatron's arguments as far as the source knows them."""
    arguments = dict(catalog.common.get("megatron_args") or {})
    config = catalog.common.get("config") or {}
    optimizer = config.get("optimizer_config") or {}
    if optimizer.get("betas"):
        arguments["adam_beta1"], arguments["adam_beta2"] = optimizer["betas"]
        arguments["adam_eps"] = optimizer.get("eps")
        arguments["lr"] = optimizer.get("learning_rate")
    data = config.get("dataset_config") or {}
    arguments |= {name: data[name] for name in TOKENIZER_FIELDS if data.get(name)}
    seed = (config.get("training_config") or {}).get("seed")
    if seed is not None:
        arguments["seed"] = seed
    return arguments


def placement_of(config: AllConfig, options: ConvertOptions) -> LayerPlacement:
    """Which stage holds which layers.

    Raises:
        ValueError: the layers do not divide as asked.
    """
    rows = options.num_layer_list
    if rows is not None:
        rows = tuple(tuple(row) if isinstance(row, Iterable) else row for row in rows)
    parallel = ModelParallelConfig(
        pipeline_model_parallel_size=options.pipeline,
        virtual_pipeline_model_parallel_size=options.virtual_pipeline,
        num_layer_list=rows,
        allow_uneven_stages=False,
    )
    return layer_placement(config.model_config, parallel)


def _with_types(config: AllConfig, catalog: Catalog, options: ConvertOptions) -> AllConfig:
    """The configuration with the type that weights are written in.

    The hub's ``config.json`` says nothing that this project's configuration takes a type from, and
    ``--dtype`` changes it: a model that is opened by the result has the type of its weights.
    """
    is_stated = "config" in catalog.common or "megatron_args" in catalog.common
    if options.to not in ("mindspeed_ms", "mindspore") or (is_stated and options.dtype is None):
        return config
    kind = dtypes.WORDS[options.dtype or _narrowest(_types_of_weights(catalog))]
    sections = config.to_dict()
    for name in ("params_dtype", "compute_dtype", "embedding_init_dtype"):
        sections["model_config"][name] = kind
    sections["model_config"]["residual_connection_dtype"] = None
    return assemble(sections)


def _types_of_weights(catalog: Catalog) -> set[str]:
    return {
        tensor.dtype
        for name, tensor in catalog.tensors.items()
        if kind_of(name) == "" and tensor.dtype in dtypes.FLOATS
    }


def _narrowest(types: set[str]) -> str:
    return next((dtype for dtype in ("BF16", "F16") if dtype in types), "F32")


def _common_dtype(catalog: Catalog, options: ConvertOptions) -> str | None:
    """One type for all weights where the target knows only one: embeddings may be wider here."""
    found = _types_of_weights(catalog)
    if options.to not in ("megatron", "huggingface") or len(found) < 2:
        return None
    return _narrowest(found)


def _total_bytes(source: Source, options: ConvertOptions) -> int:
    total = 0
    with_optimizer = options.with_optimizer and options.to != "huggingface"
    for name, kind in source.all_tensors(with_optimizer):
        count = int(np.prod(source.shape(name, kind), dtype=np.int64))
        total += count * dtypes.width(source.dtype(name, kind))
    return total


def _check_complete(catalog: Catalog, spec: ModelSpec) -> None:
    """Every parameter of the model must be there, and nothing else.

    Raises:
        ValueError: what is missing or left over, tensor by tensor.
    """
    present = {name for name in catalog.tensors if kind_of(name) == ""}
    missing = sorted(spec.by_name.keys() - present)
    left = sorted(present - spec.by_name.keys() - {names.HEAD})
    if missing or left:
        raise ValueError(
            f"{catalog.source} is no complete model; missing: {missing[:8]}, not in the model that "
            f"is described: {left[:8]}"
        )


def _unused_keys(catalog: Catalog) -> list[str]:
    """Keys of a hub's ``config.json`` that nothing here speaks for, in words."""
    theirs = catalog.common.get("huggingface")
    if not theirs:
        return []
    unknown = family_of_type(theirs.get("model_type")).unknown_keys(theirs)
    return [f"config.json: kept, not understood: {', '.join(unknown)}"] if unknown else []


def _notes(catalog: Catalog, source: Source, target: _Target) -> list[str]:
    options, notes = target.options, _unused_keys(catalog)
    stored = catalog.tensors[names.EMBEDDING].shape[0]
    rows = source.rows or stored
    if rows != stored:
        notes.append(f"vocabulary: {stored} rows became {rows}")
    if target.vocab_size is None:
        notes.append("vocabulary: the number of tokens in use is unknown (--vocab-size); all rows")
    has_state = any(kind_of(name) for name in catalog.tensors)
    if has_state and (not options.with_optimizer or options.to == "huggingface"):
        notes.append("left out: the optimizer's tensors")
    if options.with_optimizer and not has_state and options.to != "huggingface":
        notes.append("the source holds no optimizer state")
    if catalog.common.get("rng"):
        notes.append("left out: random states (each system has generators of its own)")
    theirs = catalog.common.get("huggingface") or {}
    origin = BY_MODEL_TYPE.get(theirs.get("model_type", ""))
    unknown = [] if origin is None else origin.unknown_keys(theirs)
    if unknown:
        notes.append(
            f"config.json has {', '.join(unknown)}, which {theirs['model_type']} models are not "
            "known to read: kept, without effect here"
        )
    if options.to == "huggingface" and options.model_type is None:
        family = _family(target)
        notes.append(f"written as a model of type {family.model_type}")
    return notes
