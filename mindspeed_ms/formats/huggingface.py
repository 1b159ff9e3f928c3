"""Hugging Face models as catalogs, and written: GPT-2, Llama, Qwen2, Mistral, Mixtral.

Query, key and value are separate there and one matrix here, whose rows are grouped by key/value
head; gate and up projections are stacked here. GPT-2 stores its matrices transposed. All of that is
a matter of which region of which tensor a stored one holds, so nothing is rearranged in memory.

Rotary embedding is the same here and there: element i of a head is turned with element i + half.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.formats import dtypes, names
from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers import storage
from mindspeed_ms.formats.facts import ModelFacts
from mindspeed_ms.formats.source import Source
from mindspeed_ms.plan.region import Region, Span

LLAMA_LIKE = ("llama", "qwen2", "mistral", "mixtral")
FAMILIES = ("gpt2", *LLAMA_LIKE)
MAX_FILE_BYTES = 5 << 30
_LAYERS = "language_model.encoder.layers"

Progress = Callable[[int], None]


class Link:
    """A tensor of Hugging Face's and the region of a tensor here that it holds."""

    __slots__ = ("is_transposed", "name", "region", "theirs")

    def __init__(self, theirs: str, name: str, region: Region, is_transposed: bool = False) -> None:
        self.theirs, self.name, self.region = theirs, name, region
        self.is_transposed = is_transposed

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of their tensor."""
        shape = self.region.shape
        return shape[::-1] if self.is_transposed else shape


# --- which tensor is which --------------------------------------------------------------------


def links(family: str, facts: ModelFacts, rows: int) -> Iterator[Link]:
    """Every tensor of a model.

    Args:
        family: one of ``FAMILIES``.
        facts: sizes of the model.
        rows: rows of the embedding there.
    """
    if family == "gpt2":
        yield from _gpt2(facts, rows)
    else:
        yield from _llama(family, facts, rows)


def _whole(theirs: str, name: str, *shape: int, transposed: bool = False) -> Link:
    return Link(theirs, name, Region.whole(shape), transposed)


def _query_rows(facts: ModelFacts, kind: str) -> list[tuple[int, int]]:
    """Rows of all queries, keys or values among the grouped rows here."""
    per_group = facts.num_attention_heads // facts.num_query_groups
    d = facts.kv_channels
    block = (per_group + 2) * d
    start, size = {"q": (0, per_group * d), "k": (per_group * d, d), "v": ((per_group + 1) * d, d)}[
        kind
    ]
    return [(group * block + start, size) for group in range(facts.num_query_groups)]


def _qkv_rows(facts: ModelFacts) -> int:
    return (facts.num_attention_heads + 2 * facts.num_query_groups) * facts.kv_channels


def _llama(family: str, facts: ModelFacts, rows: int) -> Iterator[Link]:
    h = facts.hidden_size
    yield _whole("model.embed_tokens.weight", names.EMBEDDING, rows, h)
    for layer in range(facts.num_layers):
        theirs, ours = f"model.layers.{layer}", f"{_LAYERS}.{layer}"
        yield _whole(f"{theirs}.input_layernorm.weight", f"{ours}.input_norm.weight", h)
        yield from _attention(theirs, ours, facts)
        norm = f"{ours}.post_attention_norm.weight"
        yield _whole(f"{theirs}.post_attention_layernorm.weight", norm, h)
        if family == "mixtral":
            yield from _experts(f"{theirs}.block_sparse_moe", f"{ours}.mlp", facts)
        else:
            words = ("gate_proj", "up_proj", "down_proj")
            yield from _gated(f"{theirs}.mlp", f"{ours}.mlp", words, h, facts.ffn_hidden_size)
    yield _whole("model.norm.weight", "language_model.encoder.final_norm.weight", h)
    if not facts.is_tied:
        yield _whole("lm_head.weight", names.HEAD, rows, h)


def _attention(theirs: str, ours: str, facts: ModelFacts) -> Iterator[Link]:
    h, total = facts.hidden_size, _qkv_rows(facts)
    for kind in "qkv":
        rows = _query_rows(facts, kind)
        stem, own = f"{theirs}.self_attn.{kind}_proj", f"{ours}.attention.qkv_proj"
        yield Link(f"{stem}.weight", f"{own}.weight", Region.whole((total, h)).with_runs(0, rows))
        if facts.add_qkv_bias:
            yield Link(f"{stem}.bias", f"{own}.bias", Region.whole((total,)).with_runs(0, rows))
    width = facts.num_attention_heads * facts.kv_channels
    output = f"{ours}.attention.out_proj"
    yield _whole(f"{theirs}.self_attn.o_proj.weight", f"{output}.weight", h, width)
    if facts.out_proj_has_bias:
        yield _whole(f"{theirs}.self_attn.o_proj.bias", f"{output}.bias", h)
    if facts.qk_layernorm:
        for kind in "qk":
            norm = f"{ours}.attention.{kind}_layernorm.weight"
            yield _whole(f"{theirs}.self_attn.{kind}_norm.weight", norm, facts.kv_channels)


def _gated(theirs: str, ours: str, words: tuple[str, str, str], h: int, f: int) -> Iterator[Link]:
    gate, up, down = words
    both = Region.whole((2 * f, h))
    yield Link(f"{theirs}.{gate}.weight", f"{ours}.mapping.weight", both.with_runs(0, [(0, f)]))
    yield Link(f"{theirs}.{up}.weight", f"{ours}.mapping.weight", both.with_runs(0, [(f, f)]))
    yield _whole(f"{theirs}.{down}.weight", f"{ours}.projection.weight", h, f)


def _experts(theirs: str, ours: str, facts: ModelFacts) -> Iterator[Link]:
    h, f = facts.hidden_size, facts.moe_ffn_hidden_size or facts.ffn_hidden_size
    router = f"{ours}.router.weight"
    yield _whole(f"{theirs}.gate.weight", router, facts.num_experts, h)
    for number in range(facts.num_experts):
        own = f"{ours}.experts.local_experts.{number}"
        yield from _gated(f"{theirs}.experts.{number}", own, ("w1", "w3", "w2"), h, f)


def _gpt2(facts: ModelFacts, rows: int) -> Iterator[Link]:
    h, f = facts.hidden_size, facts.ffn_hidden_size
    yield _whole("wte.weight", names.EMBEDDING, rows, h)
    positions = "language_model.embedding.position_embeddings.weight"
    yield _whole("wpe.weight", positions, facts.max_position_embeddings, h)
    for layer in range(facts.num_layers):
        theirs, ours = f"h.{layer}", f"{_LAYERS}.{layer}"
        for word, norm in (("ln_1", "input_norm"), ("ln_2", "post_attention_norm")):
            yield _whole(f"{theirs}.{word}.weight", f"{ours}.{norm}.gamma", h)
            yield _whole(f"{theirs}.{word}.bias", f"{ours}.{norm}.beta", h)
        yield from _gpt2_attention(theirs, ours, facts)
        for word, own, shape in (("c_fc", "mapping", (f, h)), ("c_proj", "projection", (h, f))):
            stem = f"{ours}.mlp.{own}"
            yield _whole(f"{theirs}.mlp.{word}.weight", f"{stem}.weight", *shape, transposed=True)
            yield _whole(f"{theirs}.mlp.{word}.bias", f"{stem}.bias", shape[0])
    final = "language_model.encoder.final_norm"
    yield _whole("ln_f.weight", f"{final}.gamma", h)
    yield _whole("ln_f.bias", f"{final}.beta", h)


def _gpt2_attention(theirs: str, ours: str, facts: ModelFacts) -> Iterator[Link]:
    """There all queries come first, then all keys, then all values."""
    h, total = facts.hidden_size, _qkv_rows(facts)
    rows = [run for kind in "qkv" for run in _query_rows(facts, kind)]
    own = f"{ours}.attention.qkv_proj"
    region = Region.whole((total, h)).with_runs(0, rows)
    yield Link(f"{theirs}.attn.c_attn.weight", f"{own}.weight", region, True)
    yield Link(
        f"{theirs}.attn.c_attn.bias", f"{own}.bias", Region.whole((total,)).with_runs(0, rows)
    )
    output = f"{ours}.attention.out_proj"
    yield _whole(f"{theirs}.attn.c_proj.weight", f"{output}.weight", h, h, transposed=True)
    yield _whole(f"{theirs}.attn.c_proj.bias", f"{output}.bias", h)


# --- reading ----------------------------------------------------------------------------------


def read_catalog(folder: Path) -> Catalog:
    """What a model's folder holds; tensors stay in their files.

    Raises:
        ValueError: another kind of model, or tensors are missing or left over.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json; name the folder of a Hugging Face model")
    config = json.loads(path.read_text(encoding="utf-8"))
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{path} describes a model of type {family!r}; {', '.join(FAMILIES)} are supported"
        )
    places = {
        _bare(key): (file, place)
        for file in sorted(folder.glob("*.safetensors"))
        for key, place in safetensors.read_header(file)[0].items()
    }
    facts = facts_of_config(config)
    facts.add_qkv_bias = any(re.search(r"q_proj\.bias|c_attn\.bias", key) for key in places)
    if "lm_head.weight" not in places:
        facts.untie_embeddings_and_output_weights = False
    catalog = Catalog({}, {}, f"Hugging Face model {folder}")
    rows = places["wte.weight" if family == "gpt2" else "model.embed_tokens.weight"][1].shape[0]
    facts.padded_vocab_size = rows
    known = list(links(family, facts, rows))
    _check_names(catalog, {link.theirs for link in known}, set(places))
    for link in known:
        file, place = places[link.theirs]
        _add(catalog, link, file, place)
    catalog.common.update(
        {"iteration": 0, "is_tied": facts.is_tied, "vocab_size": rows, "facts": asdict(facts)}
    )
    return catalog


def _bare(key: str) -> str:
    return key.removeprefix("transformer.")


_IGNORED = re.compile(r"\.(attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
"""Buffers that follow from the configuration."""


def _check_names(catalog: Catalog, known: set[str], present: set[str]) -> None:
    left = {key for key in present - known if not _IGNORED.search(key) and key != "lm_head.weight"}
    missing = known - present
    if left or missing:
        raise ValueError(
            f"{catalog.source} does not correspond to its config.json; missing: "
            f"{sorted(missing)[:8]}, unknown: {sorted(left)[:8]}"
        )


def _add(catalog: Catalog, link: Link, file: Path, place: safetensors.Place) -> None:
    if place.shape != link.shape:
        raise ValueError(
            f"{file}: {link.theirs} has shape {list(place.shape)}, its config.json says "
            f"{list(link.shape)}"
        )
    shape = tuple(high for _, high in link.region.bounds)
    tensor = catalog.tensors.setdefault(link.name, StoredTensor(shape, place.dtype))
    tensor.shape = tuple(max(a, b) for a, b in zip(tensor.shape, shape, strict=True))
    tensor.pieces.append(
        StoredPiece(Span.all_of(link.region), place.dtype, file, place.offset, link.is_transposed)
    )


def facts_of_config(config: dict[str, Any]) -> ModelFacts:
    """Facts of a model from its ``config.json``."""
    if config["model_type"] == "gpt2":
        hidden, heads = config["n_embd"], config["n_head"]
        tanh = config.get("activation_function", "gelu_new") in ("gelu_new", "gelu_pytorch_tanh")
        return ModelFacts(
            num_layers=config["n_layer"],
            hidden_size=hidden,
            ffn_hidden_size=config.get("n_inner") or 4 * hidden,
            num_attention_heads=heads,
            num_query_groups=heads,
            kv_channels=hidden // heads,
            padded_vocab_size=config["vocab_size"],
            vocab_size=config["vocab_size"],
            max_position_embeddings=config["n_positions"],
            seq_length=config["n_positions"],
            norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
            activation="fast_gelu" if tanh else "gelu",
        )
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return ModelFacts(
        num_layers=config["num_hidden_layers"],
        hidden_size=hidden,
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=heads,
        num_query_groups=config.get("num_key_value_heads") or heads,
        kv_channels=config.get("head_dim") or hidden // heads,
        padded_vocab_size=config["vocab_size"],
        vocab_size=config["vocab_size"],
        max_position_embeddings=config.get("max_position_embeddings", 0),
        seq_length=config.get("max_position_embeddings", 0),
        position_embedding_type="rope",
        rotary_base=float(_rope(config, "rope_theta", 10000.0)),
        rope_scaling_factor=_stretch(config),
        normalization="RMSNorm",
        norm_epsilon=config.get("rms_norm_eps", 1e-6),
        swiglu=True,
        activation="swiglu",
        add_bias_linear=False,
        add_qkv_bias=bool(config.get("attention_bias", config["model_type"] == "qwen2")),
        out_proj_has_bias=bool(config.get("attention_bias", False)),
        untie_embeddings_and_output_weights=not config.get("tie_word_embeddings", False),
        num_experts=config.get("num_local_experts", 0) or 0,
        moe_router_topk=config.get("num_experts_per_tok", 2),
        moe_ffn_hidden_size=config["intermediate_size"] if "num_local_experts" in config else None,
        window_size=config.get("sliding_window"),
    )


def _rope(config: dict[str, Any], key: str, default: float) -> float:
    nested = config.get("rope_parameters") or {}
    return config.get(key) or nested.get(key) or default


_STRETCHED = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Entries of ``rope_scaling`` in Llama 3.1, beside its factor."""


def _stretch(config: dict[str, Any]) -> float | None:
    """How far rotations are stretched.

    Raises:
        ValueError: in another way than in Llama 3.1.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if all(scaling.get(key) == value for key, value in _STRETCHED.items()):
        return float(scaling["factor"])
    raise ValueError(
        f"config.json stretches rotations by {scaling}; only Llama 3.1's form {_STRETCHED} is "
        "known: without rope_scaling in config.json the weights are converted, and positions are "
        "those of the first training"
    )


# --- writing ----------------------------------------------------------------------------------


def family_of(facts: ModelFacts) -> str:
    """The kind of model there that a model here is.

    Raises:
        ValueError: there is none; the message says what does not fit.
    """
    is_llama = (
        facts.position_embedding_type == "rope"
        and facts.normalization == "RMSNorm"
        and facts.swiglu
        and not facts.add_bias_linear
        and facts.rotary_percent == 1.0
        and not facts.rotary_interleaved
    )
    if is_llama and facts.moe_shared_expert_intermediate_size is None:
        if facts.num_experts:
            return "mixtral"
        if facts.add_qkv_bias:
            return "llama" if facts.out_proj_has_bias else "qwen2"
        return "mistral" if facts.window_size else "llama"
    if (
        facts.position_embedding_type == "learned_absolute"
        and facts.normalization == "LayerNorm"
        and facts.activation in ("gelu", "fast_gelu")
        and facts.is_tied
        and facts.add_bias_linear
        and not facts.num_experts
    ):
        return "gpt2"
    raise ValueError(
        f"no Hugging Face model of {', '.join(FAMILIES)} has positions "
        f"{facts.position_embedding_type}, {facts.normalization}, {facts.activation}, bias "
        f"{facts.add_bias_linear}, tied head {facts.is_tied} and {facts.num_experts} experts "
        "together; convert to another format"
    )


def write(
    source: Source, facts: ModelFacts, root: Path, progress: Progress, family: str | None = None
) -> Path:
    """Write a model's folder; return it.

    Raises:
        ValueError: no kind of model there corresponds.
    """
    family = family or family_of(facts)
    rows = facts.vocab_size or source.shape(names.EMBEDDING)[0]
    source.rows = rows
    root.mkdir(parents=True, exist_ok=True)
    groups: list[list[Link]] = [[]]
    size = 0
    for link in links(family, facts, rows):
        count = link.region.size * dtypes.width(source.dtype(link.name))
        if groups[-1] and size + count > MAX_FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(link)
        size += count
    weight_map, total = {}, 0
    prefix = "transformer." if family == "gpt2" else ""
    for number, group in enumerate(groups, start=1):
        name = (
            "model.safetensors"
            if len(groups) == 1
            else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        )
        entries = [
            safetensors.Entry(
                prefix + link.theirs,
                source.dtype(link.name),
                link.shape,
                _reading(source, link, progress),
            )
            for link in group
        ]
        record, _ = safetensors.write_file(
            root / (name + storage.PARTIAL), entries, {"format": "pt"}, with_crc=False
        )
        storage.put_in_place(root / (name + storage.PARTIAL), root / name)
        total += record.num_bytes
        weight_map.update(dict.fromkeys((entry.key for entry in entries), name))
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2)
        storage.write_text(root / "model.safetensors.index.json", text)
    dtype = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[source.dtype(names.EMBEDDING)]
    config = json.dumps(config_of(facts, family, rows, dtype), indent=2)
    storage.write_text(root / "config.json", config)
    return root


def _reading(source: Source, link: Link, progress: Progress) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        array = source.read(link.name, "", Span.all_of(link.region))
        progress(array.nbytes)
        if link.is_transposed:
            result = np.empty(link.shape, array.dtype)
            dtypes.copy(result, array.reshape(link.region.shape).T)
            return result
        return array

    return read


_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
}


def config_of(facts: ModelFacts, family: str, rows: int, dtype: str) -> dict[str, Any]:
    """``config.json`` of a model."""
    base = {
        "architectures": [_ARCHITECTURES[family]],
        "model_type": family,
        "torch_dtype": dtype,
        "vocab_size": rows,
        "tie_word_embeddings": facts.is_tied,
    }
    if family == "gpt2":
        act = "gelu_new" if facts.activation == "fast_gelu" else "gelu"
        return {
            **base,
            "n_embd": facts.hidden_size,
            "n_layer": facts.num_layers,
            "n_head": facts.num_attention_heads,
            "n_inner": facts.ffn_hidden_size,
            "n_positions": facts.max_position_embeddings,
            "activation_function": act,
            "layer_norm_epsilon": facts.norm_epsilon,
        }
    config = {
        **base,
        "hidden_size": facts.hidden_size,
        "intermediate_size": facts.ffn_hidden_size,
        "num_hidden_layers": facts.num_layers,
        "num_attention_heads": facts.num_attention_heads,
        "num_key_value_heads": facts.num_query_groups,
        "head_dim": facts.kv_channels,
        "hidden_act": "silu",
        "max_position_embeddings": facts.max_position_embeddings,
        "rms_norm_eps": facts.norm_epsilon,
        "rope_theta": facts.rotary_base,
    }
    if facts.rope_scaling_factor is not None:
        config["rope_scaling"] = {**_STRETCHED, "factor": facts.rope_scaling_factor}
    if family == "llama":
        config["attention_bias"] = facts.add_qkv_bias
    if family == "mixtral":
        config["num_local_experts"] = facts.num_experts
        config["num_experts_per_tok"] = facts.moe_router_topk
        config["intermediate_size"] = facts.moe_ffn_hidden_size or facts.ffn_hidden_size
    if facts.window_size:
        config["sliding_window"] = facts.window_size
    return config
