# SPDX-License-Identifier: Apache-2.0
"""Does a converted checkpoint compute what its source does? Logits of both, on a few tokens.

    python -m mindspeed_ms.toolkit.verification '{"source": ..., "target": ...}'

A process of its own, because converting needs no MindSpore. Both sides are built from their own
descriptions and filled from their own files, one after the other.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mindspeed_ms.interrupts import plain_interrupts

with plain_interrupts():
    import numpy as np

    from mindspeed_ms.backend import autograd, memory
    from mindspeed_ms.config import AllConfig
    from mindspeed_ms.config.build import assemble
    from mindspeed_ms.core import run_state
    from mindspeed_ms.core.dist_checkpointing.live_state import parameters_of
    from mindspeed_ms.core.dist_checkpointing.loader import LoadOptions, load_tensors
    from mindspeed_ms.core.run_state import RunState
    from mindspeed_ms.core.tensor_parallel.random import counting_draws
    from mindspeed_ms.engine.model_chunks import build_model_chunks
    from mindspeed_ms.engine.parallel_setup import set_parallel_context
    from mindspeed_ms.formats import names
    from mindspeed_ms.formats.catalog import Catalog
    from mindspeed_ms.formats.source import kind_of
    from mindspeed_ms.legacy.model import GPTModel
    from mindspeed_ms.training.conversion import ConvertOptions, open_source

NUM_TOKENS = 12
MOST_BYTES = 1 << 30
"""Weights in fp32 of a model that is computed whole; of a larger one some layers are."""
SAMPLED_LAYERS = 3

TOLERANCES: Mapping[str, float] = {"F32": 1e-5, "F16": 1e-2, "BF16": 5e-2}
"""Type of the coarser side -> largest difference allowed, as a share of the largest logit."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two checkpoints."""

    catalog: Catalog
    config: AllConfig

    @property
    def dtype(self) -> str:
        """The coarsest type of its weights."""
        found = {item.dtype for name, item in self.catalog.tensors.items() if not kind_of(name)}
        return next((dtype for dtype in ("BF16", "F16") if dtype in found), "F32")


def open_side(path: Path, options: ConvertOptions) -> Side:
    """A checkpoint without its optimizer.

    Raises:
        ValueError: it cannot be read.
    """
    catalog, config = open_source(path, options)
    weights = {name: item for name, item in catalog.tensors.items() if not kind_of(name)}
    return Side(replace(catalog, tensors=weights), config)


def chosen_layers(side: Side) -> tuple[int, ...]:
    """Layers that are computed: all, or some of a large model."""
    size = sum(math.prod(item.shape) * 4 for item in side.catalog.tensors.values())
    count = side.config.model_config.num_layers
    if size <= MOST_BYTES or count <= SAMPLED_LAYERS:
        return tuple(range(count))
    step = (count - 1) / (SAMPLED_LAYERS - 1)
    return tuple(round(number * step) for number in range(SAMPLED_LAYERS))


def thinned(side: Side, layers: Sequence[int]) -> Side:
    """The model with only some of its layers."""
    model = side.config.model_config
    if len(layers) == model.num_layers:
        return side
    sections = side.config.to_dict()
    own = sections["model_config"]
    own["num_layers"] = len(layers)
    if model.window_size is not None:
        own["window_attn_skip_freq"] = [int(model.has_window(layer)) for layer in layers]
    own["no_rope_freq"] = None
    if not all(model.rotates(layer) for layer in range(model.num_layers)):
        own["no_rope_freq"] = [int(not model.rotates(layer)) for layer in layers]
    if side.config.moe_config.is_moe:
        sections["moe_config"]["moe_layer_freq"] = [
            int(model.has_experts(layer)) for layer in layers
        ]
    kept = {}
    for name, item in side.catalog.tensors.items():
        layer = names.layer_of(name)
        if layer is None:
            kept[name] = item
        elif layer in layers:
            kept[names.with_layer(name, layers.index(layer))] = item
    sections.pop("parallel_config", None)
    return Side(replace(side.catalog, tensors=kept), assemble(sections))


def logits_of(side: Side, tokens: np.ndarray) -> np.ndarray:
    """Logits [b, s, rows] in fp32, whatever type the weights are stored in."""
    sections = side.config.to_dict()
    sections["parallel_config"] = {}
    plain = ("params_dtype", "compute_dtype", "embedding_init_dtype", "softmax_compute_dtype")
    sections["model_config"] |= dict.fromkeys(plain, "float32")
    sections["model_config"] |= {"residual_connection_dtype": None, "recompute_granularity": None}
    sections["training_config"] = {}
    sections["optimizer_config"] = {}
    config = assemble(sections)
    with run_state.activated(RunState()), autograd.in_dynamic_graph():
        set_parallel_context(config.parallel_config)
        with counting_draws():
            (model,) = build_model_chunks(
                lambda pre_process, post_process: GPTModel(config.model_config), config
            )
        is_tied = not config.model_config.untie_embeddings_and_output_weights
        options = LoadOptions(
            aliases={names.HEAD: names.EMBEDDING},
            vocab_size=side.catalog.common.get("vocab_size"),
            ignored=(names.HEAD,) if is_tied else (),
        )
        load_tensors(side.catalog, [], None, parameters_of(model), options)
        model.set_train(False)
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        inputs = (memory.from_numpy(np.ascontiguousarray(part)) for part in (tokens, positions))
        return memory.as_numpy(model(*inputs, None).astype("float32")).copy()


def compare(source: Side, target: Side) -> str:
    """Compare logits; what was compared, in words.

    Raises:
        ValueError: they differ by more than the types explain.
    """
    layers = chosen_layers(source)
    rows = min(
        source.catalog.common.get("vocab_size") or source.config.model_config.vocab_size,
        target.catalog.common.get("vocab_size") or target.config.model_config.vocab_size,
    )
    model = source.config.model_config
    length = min(NUM_TOKENS, model.max_position_embeddings or model.seq_length)
    tokens = np.random.RandomState(0).randint(0, rows, (1, length)).astype(np.int32)
    first, second = (logits_of(thinned(side, layers), tokens) for side in (source, target))
    first, second = first[..., :rows], second[..., :rows]
    largest = float(np.abs(first).max())
    difference = float(np.abs(first - second).max())
    dtype = max((source.dtype, target.dtype), key=lambda name: TOLERANCES[name])
    allowed = TOLERANCES[dtype if source.dtype != target.dtype else "F32"] * largest
    what = "every layer" if len(layers) == model.num_layers else f"layers {list(layers)}"
    if not difference <= allowed:
        raise ValueError(
            f"the result computes otherwise than its source: logits of {length} tokens through "
            f"{what} differ by up to {difference:.3g} (the largest is {largest:.3g}); do not use it"
        )
    return (
        f"verified: logits of {length} tokens through {what} differ by {difference:.3g} at most "
        f"(the largest is {largest:.3g})"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare what the one argument, a JSON object, names; return the status."""
    (text,) = sys.argv[1:] if argv is None else argv
    given: dict[str, Any] = json.loads(text)
    model_config = given.get("model_config")
    options = ConvertOptions(
        step=given.get("step"),
        source_tensor=given.get("source_tensor"),
        model_config=None if model_config is None else Path(model_config),
    )
    try:
        source = open_side(Path(given["source"]), options)
        target = open_side(Path(given["target"]), ConvertOptions())
        sys.stdout.write(f"{compare(source, target)}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
