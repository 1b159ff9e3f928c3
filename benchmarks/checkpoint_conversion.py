"""Bandwidth and memory of conversions, beside a plain copy of the same files.

    python benchmarks/checkpoint_conversion.py --megabytes 600

Makes a random Llama-shaped checkpoint in a temporary folder, then copies and converts it in turns.
Every conversion runs in a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mindspeed_ms.core.dist_checkpointing.catalog import Catalog, StoredPiece, StoredTensor
from mindspeed_ms.core.dist_checkpointing.formats import convert as engine
from mindspeed_ms.core.dist_checkpointing.formats import own_writer
from mindspeed_ms.core.dist_checkpointing.formats.facts import ModelFacts
from mindspeed_ms.core.dist_checkpointing.formats.huggingface import links
from mindspeed_ms.core.dist_checkpointing.formats.source import Source
from mindspeed_ms.core.dist_checkpointing.region import Region, Span

LAYERS, HEADS, GROUPS = 8, 16, 4
TARGETS = {
    "megatron tp2": ["--to", "megatron", "--tensor-model-parallel-size", "2"],
    "own format": ["--to", "mindspeed_ms"],
    "hugging face": ["--to", "huggingface"],
}


def facts_for(megabytes: int) -> ModelFacts:
    """A model of about this size in fp32."""
    hidden = max(256, int((megabytes * 1e6 / 4 / LAYERS / 12) ** 0.5) // 256 * 256)
    return ModelFacts(
        num_layers=LAYERS,
        hidden_size=hidden,
        ffn_hidden_size=3 * hidden,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        kv_channels=hidden // HEADS,
        padded_vocab_size=8192,
        vocab_size=8192,
        seq_length=1024,
        max_position_embeddings=1024,
        position_embedding_type="rope",
        normalization="RMSNorm",
        swiglu=True,
        activation="swiglu",
        add_bias_linear=False,
        add_qkv_bias=False,
        out_proj_has_bias=False,
        untie_embeddings_and_output_weights=True,
    )


def make_checkpoint(folder: Path, facts: ModelFacts) -> Path:
    """A checkpoint of random numbers in this project's format."""
    noise = folder / "noise.bin"
    rng = np.random.default_rng(0)
    with noise.open("wb") as file:  # in parts: children are charged with this process's peak
        for _ in range(64):
            rng.standard_normal(1 << 20, np.float32).tofile(file)
    catalog = Catalog({}, {"iteration": 1}, "noise")
    for link in links("llama", facts, facts.padded_vocab_size):
        shape = tuple(high for _, high in link.region.bounds)
        known = catalog.tensors.get(link.name)
        if known is None or np.prod(known.shape) < np.prod(shape):
            piece = StoredPiece(Span.all_of(Region.whole(shape)), "F32", noise, 0)
            catalog.tensors[link.name] = StoredTensor(shape, "F32", [piece])
    own_writer.write(Source(catalog), facts, folder / "source", lambda count: None)
    noise.unlink()
    return folder / "source"


def copied(source: Path, target: Path) -> float:
    """Seconds of a plain copy, brought to the disk."""
    started = time.perf_counter()
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    return time.perf_counter() - started


def converted(source: Path, target: Path, flags: list[str]) -> tuple[float, float]:
    """Seconds and peak megabytes of a conversion, the start of Python included."""
    tool = str(Path(__file__).parents[1] / "tools" / "convert_ckpt")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    started = time.perf_counter()
    command = [sys.executable, tool, "convert", str(source), str(target), *flags]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return seconds, max(before, after) / 1024


def main() -> None:
    """Measure, and print a line per conversion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    facts = facts_for(arguments.megabytes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_checkpoint(folder, facts)
        catalog = engine.open_source(source, engine.ConvertOptions())
        size = sum(tensor.num_bytes for tensor in catalog.tensors.values()) / 1e6
        largest = max(tensor.num_bytes for tensor in catalog.tensors.values()) / 1e6
        copies, best = [], {}
        for _ in range(arguments.rounds):
            copies.append(copied(source, folder / "copy"))
            shutil.rmtree(folder / "copy")
            for label, flags in TARGETS.items():
                seconds, peak = converted(source, folder / "out", flags)
                shutil.rmtree(folder / "out")
                best[label] = min(best.get(label, (seconds, peak)), (seconds, peak))
        copy = min(copies)
        sys.stdout.write(f"{size:.0f} MB, largest tensor {largest:.0f} MB\n")
        sys.stdout.write(f"copy          {size / copy:7.0f} MB/s\n")
        for label, (seconds, peak) in best.items():
            sys.stdout.write(
                f"{label:13} {size / seconds:7.0f} MB/s  "
                f"{100 * copy / seconds:5.0f} % of the copy  peak {peak:.0f} MB "
                f"(allowed {2 * largest + 300:.0f})\n"
            )


if __name__ == "__main__":
    main()
