"""One conversion: any format in, any format out, tensor by tensor."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from mindspeed_ms.formats import (
    dtypes,
    huggingface,
    megatron_writer,
    mindspore_dirs,
    names,
    own_writer,
)
from mindspeed_ms.formats.catalog import Catalog, TensorReader
from mindspeed_ms.formats.facts import ModelFacts, facts_of
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.formats.padding import padded_rows
from mindspeed_ms.formats.source import Source, kind_of
from mindspeed_ms.plan.layer_placement import LayerPlacement, layer_placement

TARGETS = ("mindspeed_ms", "megatron", "huggingface", "mindspore")


@dataclass(kw_only=True, slots=True)
class ConvertOptions:
    """What is written, and how."""

    to: Literal["mindspeed_ms", "megatron", "huggingface", "mindspore"] = "mindspeed_ms"
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
    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron arguments to write beside those that follow."""


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did."""

    folder: Path
    num_tensors: int
    num_bytes: int
    notes: tuple[str, ...]


def open_source(path: Path, options: ConvertOptions) -> Catalog:
    """The checkpoint at a path.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    found = find_checkpoint(path, options.step)
    if found is None:
        raise ValueError(
            f"{path} holds no checkpoint; name the folder of a run, of one checkpoint, of a "
            "Hugging Face model, or a .ckpt file"
        )
    if found.kind == "mindspore":
        catalog = mindspore_dirs.read_catalog(found.folder, options.source_tensor)
    else:
        catalog = open_checkpoint(found)
    if options.model_config is not None:
        _describe(catalog, options.model_config)
    return catalog


def _describe(catalog: Catalog, path: Path) -> None:
    """Take the description of the model from a file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} describes no model; name a YAML configuration or a config.json")
    if "model_config" in content:
        catalog.common["config"] = content
    elif "model_type" in content:
        facts = huggingface.facts_of_config(content)
        catalog.common["facts"] = {name: getattr(facts, name) for name in facts.__slots__}
    else:
        catalog.common["megatron_args"] = content


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
        ValueError: the source cannot be read, or has no counterpart in the target.
    """
    catalog = open_source(source_path, options)
    facts = facts_of(catalog)
    facts.vocab_size = options.vocab_size or facts.vocab_size
    rows = padded_rows(
        facts.vocab_size,
        catalog.tensor(names.EMBEDDING).shape[0],
        options.make_vocab_size_divisible_by,
        options.tensor,
    )
    _check_complete(catalog, facts)
    if options.noop_layers:
        catalog = _with_noop_layers(catalog, facts, options)
    source = Source(catalog, rows, options.dtype or _common_dtype(catalog, options))
    total = _total_bytes(source, options)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    with source.reader:
        folder = _write(source, facts, target_path, options, advance)
    notes = _notes(catalog, source, facts, options)
    return ConvertReport(folder, len(source.weights), done, tuple(notes))


def _with_noop_layers(catalog: Catalog, facts: ModelFacts, options: ConvertOptions) -> Catalog:
    """The catalog with its layers moved apart to make room for identity layers."""
    total = options.num_layers or facts.num_layers + len(options.noop_layers)
    free = [layer for layer in range(total) if layer not in options.noop_layers]
    if len(free) != facts.num_layers:
        raise ValueError(
            f"{total} layers without {len(options.noop_layers)} identity layers are {len(free)}, "
            f"but the source has {facts.num_layers}; correct num_layers or the list"
        )
    facts.num_layers = total
    moved = {}
    for name, tensor in catalog.tensors.items():
        layer = names.layer_of(name)
        moved[name if layer is None else names.with_layer(name, free[layer])] = tensor
    return Catalog(moved, catalog.common, catalog.source)


def _write(
    source: Source,
    facts: ModelFacts,
    path: Path,
    options: ConvertOptions,
    advance: Callable[[int], None],
) -> Path:
    if options.to == "mindspeed_ms":
        return own_writer.write(
            source,
            facts,
            path,
            advance,
            container=options.container or "safetensors",
            with_optimizer=options.with_optimizer,
        )
    if options.to == "huggingface":
        return huggingface.write(source, facts, path, advance, options.model_type)
    placement = placement_of(facts, options)
    if options.to == "mindspore":
        target = mindspore_dirs.MindSporeTarget(
            placement=placement,
            tensor=options.tensor,
            data_parallel=options.data_parallel,
            all_copies=options.all_copies,
            prefix=options.prefix,
            container=options.container or "ckpt",
            with_optimizer=options.with_optimizer,
        )
        return mindspore_dirs.write(source, facts, path, target, advance)
    arguments = source.catalog.common.get("megatron_args") or {}
    was_sharded = bool(arguments.get("use_distributed_optimizer"))
    is_sharded = options.distributed_optimizer
    megatron_target = megatron_writer.MegatronTarget(
        placement=placement,
        tensor=options.tensor,
        expert=options.expert,
        naming=options.naming,
        distributed_optimizer=was_sharded if is_sharded is None else is_sharded,
        data_parallel=options.data_parallel,
        with_optimizer=options.with_optimizer,
        arguments={**_known_arguments(source.catalog), **options.arguments},
    )
    return megatron_writer.MegatronWriter(source, facts, megatron_target, advance).write(path)


def _known_arguments(catalog: Catalog) -> dict[str, Any]:
    """Megatron's arguments as far as the source knows them."""
    arguments = dict(catalog.common.get("megatron_args") or {})
    config = catalog.common.get("config") or {}
    optimizer = config.get("optimizer_config") or {}
    if optimizer.get("betas"):
        arguments["adam_beta1"], arguments["adam_beta2"] = optimizer["betas"]
        arguments["adam_eps"] = optimizer.get("eps")
        arguments["lr"] = optimizer.get("learning_rate")
    seed = (config.get("training_config") or {}).get("seed")
    if seed is not None:
        arguments["seed"] = seed
    return arguments


def placement_of(facts: ModelFacts, options: ConvertOptions) -> LayerPlacement:
    """Which stage holds which layers.

    Raises:
        ValueError: the layers do not divide as asked.
    """
    rows = options.num_layer_list
    if rows is not None:
        rows = tuple(tuple(row) if isinstance(row, Iterable) else row for row in rows)
    parallel = Namespace(
        pipeline_model_parallel_size=options.pipeline,
        virtual_pipeline_model_parallel_size=options.virtual_pipeline,
        num_layers_per_virtual_pipeline_stage=None,
        num_layer_list=rows,
        pipeline_model_parallel_layout=None,
        noop_layers=None,
        standalone_embedding_stage=False,
        decoder_first_pipeline_num_layers=None,
        decoder_last_pipeline_num_layers=None,
        account_for_embedding_in_pipeline_split=False,
        account_for_loss_in_pipeline_split=False,
        allow_uneven_stages=False,
    )
    return layer_placement(Namespace(num_layers=facts.num_layers), parallel)  # type: ignore[arg-type]


def _common_dtype(catalog: Catalog, options: ConvertOptions) -> str | None:
    """One type for all weights where the target knows only one: embeddings may be wider here."""
    found = {
        tensor.dtype
        for name, tensor in catalog.tensors.items()
        if kind_of(name) == "" and tensor.dtype in dtypes.FLOATS
    }
    if options.to not in ("megatron", "huggingface") or len(found) < 2:
        return None
    return next((dtype for dtype in ("BF16", "F16") if dtype in found), "F32")


def _total_bytes(source: Source, options: ConvertOptions) -> int:
    total = 0
    with_optimizer = options.with_optimizer and options.to != "huggingface"
    for name, kind in source.all_tensors(with_optimizer):
        count = int(np.prod(source.shape(name), dtype=np.int64))
        total += count * dtypes.width(source.dtype(name, kind))
    return total


def _check_complete(catalog: Catalog, facts: ModelFacts) -> None:
    """Every layer must have the tensors that the first of its kind has.

    Raises:
        ValueError: what is missing, tensor by tensor.
    """
    by_layer: dict[int, set[str]] = {}
    for name in catalog.tensors:
        layer = names.layer_of(name)
        if layer is not None and kind_of(name) == "":
            by_layer.setdefault(layer, set()).add(names.with_layer(name, 0))
    absent = set(range(facts.num_layers)) - by_layer.keys()
    extra = by_layer.keys() - set(range(facts.num_layers))
    parts = []
    if absent:
        parts.append(f"layers {sorted(absent)} are missing")
    if extra:
        parts.append(f"layers {sorted(extra)} are more than num_layers ({facts.num_layers})")
    kinds: dict[bool, set[str]] = {}
    for layer, members in sorted(by_layer.items()):
        first = kinds.setdefault(any(".experts." in name for name in members), members)
        if members != first:
            differing = sorted(members ^ first)[:8]
            parts.append(f"layer {layer} differs from the first of its kind in {differing}")
    if parts:
        raise ValueError(f"{catalog.source} is no complete model: {'; '.join(parts)}")


def _notes(
    catalog: Catalog, source: Source, facts: ModelFacts, options: ConvertOptions
) -> list[str]:
    notes = []
    stored = catalog.tensors[names.EMBEDDING].shape[0]
    rows = source.rows or stored
    if rows != stored:
        notes.append(f"vocabulary: {stored} rows became {rows}")
    if facts.vocab_size is None:
        notes.append("vocabulary: the number of tokens in use is unknown (--vocab-size); all rows")
    has_state = any(kind_of(name) for name in catalog.tensors)
    if has_state and (not options.with_optimizer or options.to == "huggingface"):
        notes.append("left out: the optimizer's tensors")
    if options.with_optimizer and not has_state and options.to != "huggingface":
        notes.append("the source holds no optimizer state")
    if catalog.common.get("rng"):
        notes.append("left out: random states (each system has generators of its own)")
    if options.to == "huggingface" and options.model_type is None:
        notes.append(f"written as a model of type {huggingface.family_of(facts)}")
    return notes


# --- comparing --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two checkpoints differ."""

    name: str
    what: str


def diff(first: Catalog, second: Catalog, with_values: bool = True) -> list[Difference]:
    """Compare two checkpoints of any formats, tensor by tensor.

    Rows behind the smaller of two padded vocabularies are not compared.
    """
    found = [
        *(Difference(name, "only in the first") for name in first.tensors.keys() - second.tensors),
        *(Difference(name, "only in the second") for name in second.tensors.keys() - first.tensors),
    ]
    with TensorReader() as reader:
        for name in sorted(first.tensors.keys() & second.tensors.keys()):
            found += _diff_tensor(name, first, second, reader if with_values else None)
    return sorted(found, key=lambda item: item.name)


def _diff_tensor(
    name: str, first: Catalog, second: Catalog, reader: TensorReader | None
) -> list[Difference]:
    a, b = first.tensors[name], second.tensors[name]
    bare = name.removeprefix(f"{kind_of(name)}.")
    rows = None
    if a.shape != b.shape:
        if bare not in names.VOCABULARY or a.shape[1:] != b.shape[1:]:
            return [Difference(name, f"shape {list(a.shape)} and {list(b.shape)}")]
        rows = min(a.shape[0], b.shape[0])
    found = []
    if a.dtype != b.dtype:
        found.append(Difference(name, f"type {a.dtype} and {b.dtype}"))
    if (
        reader is None
        or a.digest is not None
        and (a.digest, a.shape, a.dtype)
        == (
            b.digest,
            b.shape,
            b.dtype,
        )
    ):
        return found
    left, right = reader.read(a)[:rows], reader.read(b)[:rows]
    if a.dtype == b.dtype and left.tobytes() == right.tobytes():
        return found
    left = dtypes.convert(left, a.dtype, "F32") if a.dtype in dtypes.FLOATS else left
    right = dtypes.convert(right, b.dtype, "F32") if b.dtype in dtypes.FLOATS else right
    error = np.abs(left.astype(np.float64) - right.astype(np.float64))
    changed = int((left != right).sum())
    if changed:
        found.append(
            Difference(name, f"{changed} of {left.size} numbers, at most by {error.max():.3e}")
        )
    return found


def describe(catalog: Catalog) -> dict[str, Any]:
    """What a checkpoint says of itself beside its tensors, as plain data."""
    kept = {
        key: value
        for key, value in catalog.common.items()
        if key not in ("rng", "files", "config", "megatron_args", "facts", "seal")
    }
    return json.loads(json.dumps(kept, default=str))
