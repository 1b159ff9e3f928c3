# SPDX-License-Identifier: Apache-2.0
"""How fast data is prepared: preprocessing, index building, random orders, reading.

Example: python benchmarks/data.py --samples 100000000 --billions 10
Prints one line per measurement; memory is the peak of the whole process so far. The share of memory
speed (``limit.py``) is that of the bytes that are made: what is built is written once, at least.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from limit import share_of_memory

from mindspeed_ms.data.blending import build_blending_indices
from mindspeed_ms.data.builder import build_train_valid_test_datasets
from mindspeed_ms.data.gpt_dataset import GPTDataset
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig, TokenizerInfo
from mindspeed_ms.data.gpt_indices import build_sample_index, build_shuffle_index
from mindspeed_ms.data.indexed_dataset import (
    DType,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from mindspeed_ms.data.loader import LoaderSettings, PretrainingDataLoader
from mindspeed_ms.data.native import native_indices
from mindspeed_ms.data.pretraining_loader import build_pretraining_data_loader
from mindspeed_ms.data.samplers import randperm
from mindspeed_ms.data.tokenizers import build_tokenizer
from mindspeed_ms.data.tokenizers.corpus import Encoder, read_chunks
from mindspeed_ms.data.tokenizers.tokenizer import Tokenizer

TINY_MODEL = Path(__file__).parents[1] / "data" / "tiny" / "tok.model"
DESCRIBED = """
import resource, sys, time
from mindspeed_ms.data.builder import build_train_valid_test_datasets
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig, TokenizerInfo
prefix, length, folder = sys.argv[1:]
config = GPTDatasetConfig(
    random_seed=1, sequence_length=int(length), tokenizer=TokenizerInfo(vocab_size=500, eod=0),
    blend=([prefix], None), split="1", path_to_cache=folder + "/cache",
)
started = time.perf_counter()
dataset = build_train_valid_test_datasets(config, (1, None, None))[0]
dataset[0]
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(seconds, len(dataset), peak)
"""
"""Seconds, samples and peak memory of opening a corpus that no run has opened."""

WORDS = "the keeper opens the dome and counts meteors before midnight in the north".split()


def report(text: str) -> None:
    """Print a line with the peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(f"{text}; peak {peak:.2f} GiB\n")
    sys.stdout.flush()


def timed(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def built_line(name: str, count: int, size: int, seconds: float) -> str:
    """Samples per second, and the share of memory speed at which their bytes are written."""
    return (
        f"{name} {count} samples in {seconds:.1f} s: {count / seconds / 1e6:.1f} M/s, "
        f"{share_of_memory(size / seconds)}"
    )


def _random() -> np.random.RandomState:
    return np.random.RandomState(1)


def measure_indices(samples: int, sequence_length: int) -> None:
    """Sample and shuffle index of one corpus with documents of 1 to 2 * sequence_length tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 2 * sequence_length, samples, dtype=np.int32)
    order = rng.permutation(samples).astype(np.int32)
    built: list[np.ndarray] = []
    num_tokens = int(lengths.sum(dtype=np.int64))
    seconds = timed(
        lambda: built.append(
            build_sample_index(lengths, order, sequence_length, num_tokens=num_tokens)
        )
    )
    count = len(built[0]) - 1
    report(built_line("sample index     ", count, built[0].nbytes, seconds))
    seconds = timed(lambda: built.append(build_shuffle_index(count, count, _random())))
    report(built_line("shuffle index    ", count, built[1].nbytes, seconds))


def write_description(prefix: str, lengths: np.ndarray) -> None:
    """Both files of a corpus of 16-bit tokens, that of the tokens without taking room."""
    ends = np.cumsum(lengths, dtype=np.int64) * 2
    with open(get_idx_path(prefix), "wb") as index:
        head = DType.code_from_dtype(np.uint16), len(lengths), len(lengths) + 1
        index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, *head))
        for numbers in (lengths, ends - 2 * lengths, np.arange(len(lengths) + 1, dtype=np.int64)):
            numbers.tofile(index)
    with open(get_bin_path(prefix), "wb") as tokens:
        tokens.truncate(int(ends[-1]))


def measure_description(folder: Path, billions: float, sequence_length: int) -> None:
    """The dataset of a corpus that is only described, to the first sample; a process of its own.

    Documents have 1 to 2 * sequence_length tokens; the file of the tokens is empty and as long as
    it must be. The memory is what the process takes beside what it takes for a tiny corpus.
    """
    peaks = []
    for tokens in (1e5, billions * 1e9):
        prefix = str(folder / f"described{tokens:.0f}")
        rng = np.random.default_rng(4)
        lengths = rng.integers(1, 2 * sequence_length, int(tokens / sequence_length), np.int32)
        write_description(prefix, lengths)
        command = [sys.executable, "-c", DESCRIBED, prefix, str(sequence_length), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, samples, peak = map(float, done.stdout.split()[-3:])
        peaks.append(peak)
    sizes = [path.stat().st_size for path in folder.rglob("*.npy")]
    size = sum(sizes) + os.path.getsize(get_idx_path(prefix))
    sys.stdout.write(
        f"described corpus  {billions:g} billion tokens in {len(lengths)} documents: "
        f"{samples:.0f} samples in {seconds:.2f} s; {peaks[1] - peaks[0]:.2f} GiB of memory beside "
        f"that of a tiny corpus, {size / 2**30:.2f} GiB of files\n"
    )
    sys.stdout.flush()


def measure_blend(samples: int, corpora: int) -> None:
    """Order of a blend."""
    weights = np.random.default_rng(1).random(corpora)
    shares = (weights / weights.sum()).tolist()
    made: list[tuple[np.ndarray, ...]] = []
    seconds = timed(lambda: made.append(tuple(build_blending_indices(shares, samples))))
    size = sum(array.nbytes for array in made[0])
    kind = "compiled" if native_indices() is not None else "numpy"
    report(built_line(f"blend of {corpora:3d} ({kind})", samples, size, seconds))


def measure_permutation(samples: int) -> None:
    """Order of a cyclic pass."""
    made: list[np.ndarray] = []
    seconds = timed(lambda: made.append(randperm(samples, 1)))
    report(built_line("cyclic order     ", samples, made[0].nbytes, seconds))


def measure_preprocessing(folder: Path, megabytes: float) -> None:
    """Text to tokens in one process, from a file to arrays."""
    rng = np.random.default_rng(2)
    path = folder / "text.jsonl"
    with open(path, "w", encoding="utf-8") as stream:
        while stream.tell() < megabytes * 2**20:
            stream.write(json.dumps({"text": " ".join(rng.choice(WORDS, 200))}) + "\n")
    tokenizers = {
        "SentencePiece": build_tokenizer("SentencePieceTokenizer", tokenizer_model=str(TINY_MODEL)),
    }
    gpt2 = _gpt2_like(folder)
    if gpt2 is not None:
        tokenizers["GPT-2 BPE"] = gpt2
    for name, tokenizer in tokenizers.items():
        encoder = Encoder(tokenizer, ["text"], is_eod_appended=True)
        seconds = timed(lambda: [encoder.encode_chunk(c) for c in read_chunks([str(path)])])  # noqa: B023
        size = path.stat().st_size / 2**20
        report(
            f"preprocessing     {name}: {size / seconds:.2f} MB/s of text on one core, "
            f"{share_of_memory(path.stat().st_size / seconds)}"
        )


def _gpt2_like(folder: Path) -> Tokenizer | None:
    """A byte-level tokenizer with the tiny corpus's words as merges, if the library is there."""
    try:
        library = __import__("tokenizers")
    except ImportError:
        return None
    trained = library.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [" ".join(WORDS)], vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False
    )
    trained.save_model(str(folder))
    return build_tokenizer(
        "GPT2BPETokenizer",
        vocab_file=str(folder / "vocab.json"),
        merge_file=str(folder / "merges.txt"),
    )


def measure_reading(folder: Path, sequence_length: int, micro_batch: int, step_ms: float) -> None:
    """Time a step waits for its micro-batch, when it computes for ``step_ms``."""
    rng = np.random.default_rng(3)
    prefix = str(folder / "corpus")
    with IndexedDatasetBuilder(get_bin_path(prefix), np.uint16) as builder:
        for _ in range(2000):
            tokens = rng.integers(1, 500, int(rng.integers(10, 4000)))
            builder.add_document(tokens, [len(tokens)])
        builder.finalize(get_idx_path(prefix))
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=sequence_length,
        tokenizer=TokenizerInfo(vocab_size=500, eod=0),
        blend=([prefix], None),
        split="1",
        path_to_cache=str(folder / "cache"),
    )
    dataset = build_train_valid_test_datasets(config, (200 * micro_batch, None, None))[0]
    assert isinstance(dataset, GPTDataset), "one data path is one dataset"
    for workers in (0, 2):
        settings = LoaderSettings(micro_batch_size=micro_batch, num_workers=workers)
        loader = build_pretraining_data_loader(dataset, 0, settings=settings)
        assert isinstance(loader, PretrainingDataLoader), "a dataset gives a loader"
        batches = iter(loader)
        next(batches)
        waited = 0.0
        for _ in range(100):
            time.sleep(step_ms / 1000)
            waited += timed(lambda: next(batches))  # noqa: B023
        share = waited * 10 / (step_ms + waited * 10)
        report(
            f"reading           {micro_batch} x {sequence_length} tokens, {workers} workers: "
            f"{waited * 10:.3f} ms waited per step of {step_ms:.0f} ms ({share:.2%})"
        )
        loader.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--billions", type=float, default=10.0, help="tokens that are described")
    parser.add_argument("--only-description", action="store_true", help="measure nothing else")
    parser.add_argument("--step-ms", type=float, default=20.0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        measure_description(Path(name), args.billions, args.sequence_length)
        if args.only_description:
            return
        measure_preprocessing(Path(name), args.megabytes)
        measure_reading(Path(name), 64, 2, args.step_ms)
        measure_reading(Path(name), 4096, 4, args.step_ms)
    for corpora in (2, 8, 32):
        measure_blend(args.samples, corpora)
    measure_permutation(args.samples)
    measure_indices(args.samples, args.sequence_length)


if __name__ == "__main__":
    main()
