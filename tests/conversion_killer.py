# SPDX-License-Identifier: Apache-2.0
"""Converts in child processes and kills each at another point; see the test that runs it.

Usage: python conversion_killer.py FOLDER TARGET EVERY, where TARGET is one of ``TARGETS``. Prints
one JSON line: how many points there were, and what each kill left. Every n-th point is tried, once
into an empty folder and once over an older conversion of other values.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from checkpoint_killer import KILLED, die_at

from mindspeed_ms.formats.catalog import Catalog, StoredPiece, StoredTensor, TensorReader
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.plan.region import Region, Span
from mindspeed_ms.training import conversion as engine
from mindspeed_ms.training.checkpoint_config import config_of
from mindspeed_ms.training.conversion import ConvertOptions, convert, open_source

TARGETS = {
    "own-safetensors": {"to": "mindspeed_ms"},
    "own-ckpt": {"to": "mindspeed_ms", "container": "ckpt"},
    "megatron": {"to": "megatron", "tensor": 2, "distributed_optimizer": True},
    "mindspore-ckpt": {"to": "mindspore", "tensor": 2},
    "mindspore-safetensors": {"to": "mindspore", "tensor": 2, "container": "safetensors"},
    "huggingface": {"to": "huggingface"},
}
HIDDEN, WIDTH, ROWS = 8, 12, 16
_LAYER = "language_model.encoder.layers.0"
SHAPES = {
    "language_model.embedding.word_embeddings.weight": (ROWS, HIDDEN),
    f"{_LAYER}.input_norm.weight": (HIDDEN,),
    f"{_LAYER}.attention.qkv_proj.weight": (3 * HIDDEN, HIDDEN),
    f"{_LAYER}.attention.out_proj.weight": (HIDDEN, HIDDEN),
    f"{_LAYER}.post_attention_norm.weight": (HIDDEN,),
    f"{_LAYER}.mlp.mapping.weight": (2 * WIDTH, HIDDEN),
    f"{_LAYER}.mlp.projection.weight": (HIDDEN, WIDTH),
    "language_model.encoder.final_norm.weight": (HIDDEN,),
    "language_model.output_layer.weight": (ROWS, HIDDEN),
}
MODEL = {
    "num_layers": 1,
    "hidden_size": HIDDEN,
    "ffn_hidden_size": WIDTH,
    "num_attention_heads": 2,
    "kv_channels": 4,
    "seq_length": 8,
    "max_position_embeddings": 8,
    "vocab_size": ROWS,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "hidden_act": "swiglu",
    "qkv_has_bias": False,
    "out_proj_has_bias": False,
    "mlp_has_bias": False,
    "untie_embeddings_and_output_weights": True,
}


def tiny_model(path, value, with_optimizer=True):
    """A catalog of a one-layer Llama whose numbers all follow from ``value``; its file is made."""
    kinds = ("", "exp_avg.", "exp_avg_sq.") if with_optimizer else ("",)
    arrays = {
        f"{kind}{name}": np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + value
        for kind in kinds
        for name, shape in SHAPES.items()
    }
    entries = [safetensors.Entry(key, "F32", a.shape, a) for key, a in arrays.items()]
    _, stretches = safetensors.write_file(path, entries)
    tensors = {
        entry.key: StoredTensor(
            entry.shape,
            "F32",
            [StoredPiece(Span.all_of(Region.whole(entry.shape)), "F32", path, place.offset)],
        )
        for entry, (place,) in zip(entries, stretches, strict=True)
    }
    common = {
        "iteration": 7,
        "consumed_train_samples": 56,
        "vocab_size": ROWS,
        "is_tied": False,
        "optimizer": {"num_steps": 7} if with_optimizer else {},
        "config": {"model_config": MODEL},
    }
    return Catalog(tensors, common, f"a model of {value}")


def converted(catalog, target, options):
    """Convert a catalog that is in no folder."""
    original, config = engine.open_source, config_of(catalog.common)
    engine.open_source = lambda path, options: (catalog, config)
    try:
        convert(Path("nowhere"), target, ConvertOptions(make_vocab_size_divisible_by=8, **options))
    finally:
        engine.open_source = original


def state_of(target):
    """Which value a target holds everywhere; None if it is refused."""
    try:
        catalog, _ = open_source(target, ConvertOptions())
        with TensorReader() as reader:
            found = {
                float(array.reshape(-1)[0]) if np.array_equal(array, _counted(array)) else None
                for array in (reader.read(tensor) for tensor in catalog.tensors.values())
            }
    except (ValueError, OSError) as error:
        assert "\n" not in str(error), error
        return None
    assert len(found) == 1 and None not in found, (target, found)
    return found.pop()


def _counted(array):
    first = array.reshape(-1)[0]
    return np.arange(array.size, dtype=np.float32).reshape(array.shape) + first


def tried(root, options, every, before):
    """What each kill left, and the number of points."""
    new = tiny_model(root / "new.safetensors", 2.0)
    left, point, is_over = [], 1 - every, False
    target = root / "target"
    while not is_over:
        point += every
        shutil.rmtree(target, ignore_errors=True)
        if before is not None:
            converted(before, target, options)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                die_at(point)
                converted(new, target, options)
                status = 0
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -KILLED), code
        is_over = code == 0
        left.append(state_of(target))
        converted(new, target, options)
        assert state_of(target) == 2.0
        unfinished = list(target.rglob("*.partial"))
        assert not unfinished, unfinished
    return left, point


def main():
    root, options, every = Path(sys.argv[1]), TARGETS[sys.argv[2]], int(sys.argv[3])
    before = tiny_model(root / "old.safetensors", 1.0)
    over, points = tried(root, options, every, before)
    fresh, _ = tried(root, options, every, None)
    sys.stdout.write(json.dumps({"points": points, "over": over, "fresh": fresh}) + "\n")


if __name__ == "__main__":
    main()
