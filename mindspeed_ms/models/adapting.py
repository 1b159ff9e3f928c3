# SPDX-License-Identifier: Apache-2.0
"""A model with adapters: a rewrite of its description, by the names that layers have elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mindspeed_ms.config.lora_config import LoraConfig
from mindspeed_ms.models.adapter import AdapterSpec
from mindspeed_ms.models.attention import AttentionSpec
from mindspeed_ms.models.families.place import query_rows
from mindspeed_ms.models.feed_forward import MLPSpec, MoESpec
from mindspeed_ms.models.layer import LayerSpec
from mindspeed_ms.models.model import OWN_ROOT, ModelSpec
from mindspeed_ms.models.part import Composite, LinearSpec, Part, joined
from mindspeed_ms.models.replaced import MLPInsteadSpec
from mindspeed_ms.plan.region import Region, Run, Stack

ALL = "all-linear"
_FUSED = "llama with fused experts"
_GPT2, _MIXTRAL, _MEGATRON, _OWN = "gpt2", "mixtral", "megatron", "own"
_PHI3, _GLM4, _NEOX = "phi3", "glm4", "gpt_neox"

_ATTENTION = {
    "llama": "model.layers.{layer}.self_attn.",
    _MIXTRAL: "model.layers.{layer}.self_attn.",
    _PHI3: "model.layers.{layer}.self_attn.",
    _GLM4: "model.layers.{layer}.self_attn.",
    _NEOX: "gpt_neox.layers.{layer}.attention.",
    _GPT2: "transformer.h.{layer}.attn.",
    _OWN: "language_model.encoder.layers.{layer}.attention.",
    _MEGATRON: "decoder.layers.{layer}.self_attention.",
    "mindformers": "model.layers.{layer}.attention.",
    "mindformers gpt": "backbone.blocks.{layer}.attention.",
    _FUSED: "model.layers.{layer}.self_attn.",
}
"""Project, or kind of model there -> path of an attention block."""
_DENSE = {
    "llama": "model.layers.{layer}.mlp.",
    _MIXTRAL: "model.layers.{layer}.mlp.",
    _PHI3: "model.layers.{layer}.mlp.",
    _GLM4: "model.layers.{layer}.mlp.",
    _NEOX: "gpt_neox.layers.{layer}.mlp.",
    _GPT2: "transformer.h.{layer}.mlp.",
    _OWN: "language_model.encoder.layers.{layer}.mlp.",
    _MEGATRON: "decoder.layers.{layer}.mlp.",
    "mindformers": "model.layers.{layer}.feed_forward.",
    "mindformers gpt": "backbone.blocks.{layer}.output.",
}
_EXPERT = {
    "llama": "model.layers.{layer}.mlp.experts.{expert}.",
    _MIXTRAL: "model.layers.{layer}.block_sparse_moe.experts.{expert}.",
    _FUSED: "model.layers.{layer}.mlp.experts.",
    _OWN: "language_model.encoder.layers.{layer}.mlp.experts.local_experts.{expert}.",
    _MEGATRON: "decoder.layers.{layer}.mlp.experts.local_experts.{expert}.",
}
_SHARED = {
    "llama": "model.layers.{layer}.mlp.shared_expert.",
    _OWN: "language_model.encoder.layers.{layer}.mlp.shared_experts.mlp.",
    _MEGATRON: "decoder.layers.{layer}.mlp.shared_experts.",
}
_WORDS: dict[str, dict[str, str]] = {
    "q": {
        "llama": "q_proj",
        _GLM4: "q_proj",
        _FUSED: "q_proj",
        _MIXTRAL: "q_proj",
        "mindformers": "wq",
        "mindformers gpt": "dense1",
    },
    "k": {
        "llama": "k_proj",
        _GLM4: "k_proj",
        _FUSED: "k_proj",
        _MIXTRAL: "k_proj",
        "mindformers": "wk",
        "mindformers gpt": "dense2",
    },
    "v": {
        "llama": "v_proj",
        _GLM4: "v_proj",
        _FUSED: "v_proj",
        _MIXTRAL: "v_proj",
        "mindformers": "wv",
        "mindformers gpt": "dense3",
    },
    "qkv": {
        **{_GPT2: "c_attn", _PHI3: "qkv_proj", _NEOX: "query_key_value"},
        **{_OWN: "qkv_proj", _MEGATRON: "linear_qkv"},
    },
    "attention.out_proj": {
        **{
            "llama": "o_proj",
            _FUSED: "o_proj",
            _MIXTRAL: "o_proj",
            _PHI3: "o_proj",
            _GLM4: "o_proj",
            _NEOX: "dense",
            _GPT2: "c_proj",
            _OWN: "out_proj",
        },
        **{_MEGATRON: "linear_proj", "mindformers": "wo", "mindformers gpt": "projection"},
    },
    "attention.q_proj": {"llama": "q_proj", _OWN: "q_proj", _MEGATRON: "linear_q_proj"},
    "attention.q_down_proj": {
        **{"llama": "q_a_proj", _OWN: "q_down_proj", _MEGATRON: "linear_q_down_proj"},
    },
    "attention.q_up_proj": {
        **{"llama": "q_b_proj", _OWN: "q_up_proj", _MEGATRON: "linear_q_up_proj"},
    },
    "attention.kv_down_proj": {
        "llama": "kv_a_proj_with_mqa",
        **{_OWN: "kv_down_proj", _MEGATRON: "linear_kv_down_proj"},
    },
    "attention.kv_up_proj": {
        **{"llama": "kv_b_proj", _OWN: "kv_up_proj", _MEGATRON: "linear_kv_up_proj"},
    },
    "gate": {"llama": "gate_proj", _MIXTRAL: "w1", "mindformers": "w1"},
    "up": {"llama": "up_proj", _MIXTRAL: "w3", "mindformers": "w3"},
    "gate_up": {
        **{_FUSED: "gate_up_proj", _PHI3: "gate_up_proj", _GLM4: "gate_up_proj"},
        **{_OWN: "mapping", _MEGATRON: "linear_fc1", _NEOX: "dense_h_to_4h"},
    },
    "mapping": {
        **{"llama": "up_proj", _NEOX: "dense_h_to_4h", _GPT2: "c_fc"},
        **{_OWN: "mapping", _MEGATRON: "linear_fc1"},
        "mindformers gpt": "mapping",
    },
    "projection": {
        **{"llama": "down_proj", _MIXTRAL: "w2", _GPT2: "c_proj", _OWN: "projection"},
        **{_MEGATRON: "linear_fc2", "mindformers": "w2", "mindformers gpt": "projection"},
        **{_FUSED: "down_proj", _PHI3: "down_proj", _GLM4: "down_proj", _NEOX: "dense_4h_to_h"},
    },
}
"""Region -> project -> last word of its name there."""


_WITHOUT = (
    *("lm_head", "embed_out", "model.embed_tokens", "transformer.wte", "transformer.wpe"),
    *("gpt_neox.embed_in", "model.layers.0.mlp.gate", "model.layers.0.mlp.shared_expert_gate"),
    *("model.layers.0.block_sparse_moe.gate", "embedding.word_embeddings", "output_layer"),
    *("decoder.layers.0.mlp.router", "model.tok_embeddings"),
)
"""Embeddings, heads and routers by the names that they have elsewhere: they get no adapters."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A region of a matrix of one layer that may get an adapter."""

    layer: int
    path: str
    """Of the matrix, from the layer: ``attention.qkv_proj``, ``mlp.expert.mapping``."""
    region: str
    runs: tuple[Run, ...]
    stride: Stack
    most_parts: int | None
    """``AdapterSpec.most_parts``."""
    names: dict[str, tuple[str, ...]]
    """Project -> its names there; several where experts share a description."""


def adapted(spec: ModelSpec, lora: LoraConfig) -> ModelSpec:
    """The model with adapters beside the layers that a section names, and all else frozen.

    Raises:
        ValueError: a target names nothing, or regions that overlap.
    """
    chosen: dict[tuple[int, str], list[AdapterSpec]] = {}
    for slot, name in _chosen(spec, lora):
        adapters = chosen.setdefault((slot.layer, slot.path), [])
        adapters.append(_adapter(slot, name, lora))
        _check_disjoint(slot, adapters)
    known: dict[object, LayerSpec] = {}
    layers: list[LayerSpec | None] = []
    for index, layer in enumerate(spec.layers):
        mine = {path: tuple(found) for (at, path), found in chosen.items() if at == index}
        if layer is None or not mine:
            layers.append(layer)
            continue
        key = (layer, tuple(sorted(mine.items(), key=lambda item: item[0])))
        if key not in known:
            known[key] = _rewritten(layer, mine)
        layers.append(known[key])
    return replace(spec, layers=tuple(layers), trains_adapters_only=True)


# --- what there is --------------------------------------------------------------------------------


def slots(spec: ModelSpec) -> list[Slot]:
    """Every region of every linear layer inside the transformer layers."""
    return [
        slot
        for index, layer in enumerate(spec.layers)
        if layer is not None
        for slot in _of_layer(index, layer)
    ]


def _of_layer(index: int, layer: LayerSpec) -> Iterator[Slot]:
    attention = layer.attention

    def slot(path: str, region: str, paths: dict[str, str], word: str, found: Rows) -> Slot:
        experts = [""]
        if path.startswith("mlp.expert."):
            assert isinstance(layer.mlp, MoESpec), "there are experts"
            experts = [str(number) for number in range(layer.mlp.num_experts)]
        names = {
            project: tuple(
                paths[project].format(layer=index, expert=expert) + last for expert in experts
            )
            for project, last in _WORDS[word].items()
            if project in paths
        }
        groups = attention.num_groups if isinstance(attention, AttentionSpec) else None
        most = groups if path == "attention.qkv_proj" else None
        return Slot(index, path, region, *found, most, names)

    if isinstance(attention, AttentionSpec):
        path = "attention.qkv_proj"
        rows = {kind: _joined(query_rows(attention, kind)) for kind in "qkv"}
        for kind in "qkv":
            yield slot(path, kind, _ATTENTION, kind, (rows[kind], 1))
        every = _joined([run for kind in "qkv" for run in rows[kind]])
        sizes = tuple(sum(size for _, size in rows[kind]) for kind in "qkv")
        stride = 3 if len(set(sizes)) == 1 else sizes
        yield slot(path, "qkv", _ATTENTION, "qkv", (every, stride))
    for name, linear in _linears(attention):
        path = f"attention.{name}"
        if name != "qkv_proj":
            yield slot(path, "all", _ATTENTION, path, (((0, linear.outputs),), linear.stride))
    for path, block, paths in _blocks(layer):
        width, all_rows = block.width, ((0, block.mapping.outputs),)
        if block.is_gated:
            for word, first in (("gate", 0), ("up", width)):
                yield slot(f"{path}.mapping", word, paths, word, (((first, width),), 1))
            yield slot(f"{path}.mapping", "gate_up", paths, "gate_up", (all_rows, 2))
        else:
            yield slot(f"{path}.mapping", "all", paths, "mapping", (all_rows, 1))
        down = ((0, block.projection.outputs),)
        yield slot(f"{path}.projection", "all", paths, "projection", (down, 1))


Rows = tuple[tuple[Run, ...], Stack]
"""Runs and stride of a region."""


def _joined(runs: list[Run]) -> tuple[Run, ...]:
    """The runs as a region writes them."""
    last = max(first + size for first, size in runs)
    return Region.whole((last,)).with_runs(0, runs).runs[0]


def _linears(part: Composite) -> Iterator[tuple[str, LinearSpec]]:
    for child in part.children():
        if isinstance(child.part, LinearSpec):
            yield child.name, child.part


def _blocks(layer: LayerSpec) -> Iterator[tuple[str, MLPSpec, dict[str, str]]]:
    """(path, block, their paths) of the dense blocks of a layer; experts share one."""
    if isinstance(layer.mlp, MLPSpec):
        yield "mlp", layer.mlp, _DENSE
        return
    if isinstance(layer.mlp, MLPInsteadSpec):
        return
    yield "mlp.expert", layer.mlp.expert, _EXPERT
    if layer.mlp.shared is not None:
        yield "mlp.shared.mlp", layer.mlp.shared.mlp, _SHARED


def adapters_of(spec: ModelSpec) -> Iterator[tuple[str, LinearSpec]]:
    """(path, layer) of every linear layer with adapters; experts one by one."""
    for index, layer in enumerate(spec.layers):
        if layer is not None:
            yield from _adapted_in(f"{OWN_ROOT}.encoder.layers.{index}", layer)


def _adapted_in(path: str, part: Part) -> Iterator[tuple[str, LinearSpec]]:
    if isinstance(part, LinearSpec):
        if part.adapters:
            yield path, part
        return
    for child in part.children() if isinstance(part, Composite) else ():
        yield from _adapted_in(joined(path, child.name), child.part)


# --- what is chosen -------------------------------------------------------------------------------

Match = Callable[[str], bool]


def _chosen(spec: ModelSpec, lora: LoraConfig) -> Iterator[tuple[Slot, str]]:
    """The slots that get an adapter, each under a name that was matched."""
    every, projects = slots(spec), _projects(spec)
    excluded = [match for _, match in _matches(lora.exclude_layers)]
    wanted = lora.layers_to_transform
    beyond = [index for index in wanted or () if not -1 < index < len(spec.layers)]
    if beyond:
        raise ValueError(
            f"layers_to_transform names layer {beyond[0]}; the model has {len(spec.layers)}, "
            "counted from 0"
        )
    taken: dict[tuple[int, str, str], tuple[Slot, str]] = {}
    asked = _by_project(every, projects, lora)
    for project, match in asked:
        for slot in every:
            names = slot.names.get(project, ())
            hits = [name for name in names if match(name) and not any(no(name) for no in excluded)]
            if not hits or (wanted is not None and slot.layer not in wanted):
                continue
            alike = [one for other, one in asked if other == project]
            left = [name for name in names if not any(one(name) for one in alike)]
            left += [name for name in names if any(no(name) for no in excluded)]
            if left:  # a target may be one expert alone, if others name the rest
                raise ValueError(
                    f"target_modules fit {hits[0]} but not {len(left)} other experts "
                    "of its layer; adapt all experts of a layer or none"
                )
            taken.setdefault((slot.layer, slot.path, slot.region), (slot, hits[0]))
    if not taken:
        raise ValueError("lora_config leaves no layer with an adapter; give other target_modules")
    yield from taken.values()


def _projects(spec: ModelSpec) -> list[str]:
    """Whose names are tried first: those of the models that this one is like."""
    like_gpt2 = spec.embedding.position is not None
    first = (_GPT2, "llama") if like_gpt2 else ("llama", _MIXTRAL, _GPT2)
    return [*first, *(project for project in _ATTENTION if project not in first)]


def _by_project(
    every: list[Slot], projects: list[str], lora: LoraConfig
) -> list[tuple[str, Match]]:
    """Each target with the project whose names it uses: one for all of them if there is one.

    Raises:
        ValueError: a target fits no name.
    """
    targets = _targets(lora)
    if not targets:
        return [(projects[0], lambda name: True)]
    _refuse_others(targets, lora)
    fits = {
        text: [p for p in projects if any(match(n) for s in every for n in s.names.get(p, ()))]
        for text, match in targets
    }
    for text, found in fits.items():
        if not found:
            words = sorted(
                {
                    name.rpartition(".")[2]
                    for slot in every
                    for name in slot.names.get(projects[0], ())
                }
            )
            raise ValueError(
                f"target_modules: {text!r} fits no linear layer of the model; its layers are "
                f"{', '.join(words)} (also by the names of MindFormers and Megatron)"
            )
    joint = [p for p in projects if all(p in found for found in fits.values())]
    return [(joint[0] if joint else fits[text][0], match) for text, match in targets]


def _refuse_others(targets: list[tuple[str, Match]], lora: LoraConfig) -> None:
    """Refuse targets that mean an embedding, a head or a router.

    Raises:
        ValueError: there is one.
    """
    excluded = [match for _, match in _matches(lora.exclude_layers)]
    for text, match in targets:
        for name in _WITHOUT:
            if match(name) and not any(no(name) for no in excluded):
                raise ValueError(
                    f"target_modules: {text!r} means {name} too, but adapters stand beside linear "
                    "layers of attention and of blocks alone, not beside embeddings, heads and "
                    "routers; leave it out"
                )


def _targets(lora: LoraConfig) -> list[tuple[str, Match]]:
    """What is asked for; nothing for every linear layer."""
    # A flag has a list of words, PEFT the word alone.
    every = lora.target_modules in (ALL, (ALL,))
    found = [] if every else _matches(lora.target_modules)
    for item in lora.target_cells or ():
        cells = item.get("target_cells", ())
        for pattern in (cells,) if isinstance(cells, str) else cells:
            found.append((pattern, _end(pattern)))
    return found


def _matches(words: str | tuple[str, ...] | None) -> list[tuple[str, Match]]:
    """One expression of whole names, or words at their ends."""
    if words is None:
        return []
    if isinstance(words, str):
        whole = re.compile(words)
        return [
            (words, lambda name: whole.fullmatch(name) is not None or name.endswith("." + words))
        ]
    return [(word, _word(word)) for word in words]


def _word(word: str) -> Match:
    return lambda name: name == word or name.endswith(f".{word}")


def _end(pattern: str) -> Match:
    """An expression of whole names or of their ends."""
    expression = re.compile(rf"(.*\.)?({pattern})")
    return lambda name: expression.fullmatch(name) is not None


def _adapter(slot: Slot, name: str, lora: LoraConfig) -> AdapterSpec:
    rank, alpha = lora.lora_rank, lora.lora_alpha
    for item in lora.target_cells or ():
        if "cell" in item and _end(str(item["cell"]))(name):
            rank, alpha = item.get("rank", rank), item.get("alpha", alpha)
    # The first that fits, as PEFT looks it up.
    rank = next((r for p, r in (lora.rank_pattern or {}).items() if _end(p)(name)), rank)
    alpha = next((a for p, a in (lora.alpha_pattern or {}).items() if _end(p)(name)), alpha)
    return AdapterSpec(
        region=slot.region,
        runs=slot.runs,
        stride=slot.stride,
        most_parts=slot.most_parts,
        rank=rank,
        scale=alpha / (math.sqrt(rank) if lora.use_rslora else rank),
        dropout=lora.lora_dropout,
        has_magnitude=lora.use_dora,
    )


def _check_disjoint(slot: Slot, adapters: list[AdapterSpec]) -> None:
    spans = sorted(run for one in adapters for run in one.runs)
    for (first, size), (following, _) in zip(spans, spans[1:], strict=False):
        if first + size > following:
            names = " and ".join(one.region for one in adapters)
            raise ValueError(
                f"target_modules give {slot.path} of layer {slot.layer} adapters of {names}, which "
                "are the same rows; name either the whole matrix or its parts"
            )


# --- the rewrite ----------------------------------------------------------------------------------


def _rewritten(layer: LayerSpec, adapters: dict[str, tuple[AdapterSpec, ...]]) -> LayerSpec:
    """The layer with adapters at paths below it."""
    for path, found in adapters.items():
        layer = _replaced(layer, path.split("."), found)
    return layer


def _replaced(part: Any, path: list[str], adapters: tuple[AdapterSpec, ...]) -> Any:  # noqa: ANN401
    """A part whose linear layer at a path has adapters; parts are dataclasses of many kinds."""
    if not path:
        return replace(part, adapters=adapters)
    name, *rest = path
    return replace(part, **{name: _replaced(getattr(part, name), rest, adapters)})
