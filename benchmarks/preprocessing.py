# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of preprocessing beside Megatron's way, on the same file with as many workers.

    python benchmarks/preprocessing.py --python /path/to/python/with/megatron-core
    python benchmarks/preprocessing.py --python ... --megabytes 100 --workers 2 --rounds 3

Both sides are whole commands and take turns; the files they write must be equal byte for byte. The
best round counts. ``ratio`` above 1 means that this project is faster; ``ratio_without_start``
leaves out what a run of a single document takes, on both sides. The other side is
``megatron_preprocess.py``. Documents are paragraphs of the novels in ``data/austen``, drawn anew
for every document.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from limit import processor

ROOT = Path(__file__).resolve().parents[1]
AUSTEN = ROOT / "data" / "austen"
PARAGRAPHS = 12
"""Of a document."""

VOCABULARY = 8000
"""Of the byte-level tokenizer that is trained on the novels."""

FLAGS = {"sentencepiece": "SentencePieceTokenizer", "huggingface": "HuggingFaceTokenizer"}


def write_corpus(path: Path, megabytes: float) -> None:
    """Lines of JSON, at least so many megabytes; one line for 0."""
    novels = [file.read_text(encoding="utf-8") for file in sorted((AUSTEN / "text").iterdir())]
    paragraphs = [part for novel in novels for part in novel.split("\n\n") if part.strip()]
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as stream:
        while not stream.tell() or stream.tell() < megabytes * 2**20:
            drawn = rng.integers(0, len(paragraphs), PARAGRAPHS)
            text = "\n\n".join(paragraphs[number] for number in drawn)
            stream.write(json.dumps({"text": text}) + "\n")


def train_tokenizer(folder: Path) -> Path:
    """A folder of Hugging Face with a byte-level tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train(
        [str(file) for file in sorted((AUSTEN / "text").iterdir())],
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    target = folder / "tokenizer"
    target.mkdir()
    trained.save(str(target / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (target / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return target


def seconds_of(command: list[str]) -> float:
    """Seconds of a command.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    taken = time.perf_counter() - started
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-8:])
        raise SystemExit(f"{' '.join(command)} failed:\n{tail}")
    return taken


def compare(kind: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides with one tokenizer."""
    model = AUSTEN / "tok.model" if kind == "sentencepiece" else train_tokenizer(folder)
    workers = str(args.workers)
    best: dict[tuple[str, str], float] = {}
    for name, rounds in (("start", 1), ("corpus", args.rounds)):
        source = folder / f"{name}.jsonl"
        for _ in range(rounds + 1):  # the first one warms up
            ours = [sys.executable, str(ROOT / "tools" / "preprocess_data.py")]
            ours += ["--input", str(source), "--output-prefix", str(folder / f"here_{name}")]
            ours += ["--tokenizer-type", FLAGS[kind], "--tokenizer-model", str(model)]
            ours += ["--append-eod", "--workers", workers]
            theirs = [args.python, str(ROOT / "benchmarks" / "megatron_preprocess.py"), str(source)]
            theirs += [str(folder / f"there_{name}"), kind, str(model), workers]
            for side, command in (("here", ours), ("megatron", theirs)):
                taken = seconds_of(command)
                best[side, name] = min(taken, best.get((side, name), taken))
        for end in ("bin", "idx"):
            file = f"{name}_text_document.{end}"
            if not filecmp.cmp(folder / f"here_{file}", folder / f"there_{file}", shallow=False):
                raise SystemExit(f"{kind}: the sides wrote different files ({file})")
    tokens = (folder / "here_corpus_text_document.bin").stat().st_size // 2
    here, there = best["here", "corpus"], best["megatron", "corpus"]
    starts = best["here", "start"], best["megatron", "start"]
    return {
        "tokenizer": kind,
        "processor": processor(),
        "workers": args.workers,
        "megabytes": round((folder / "corpus.jsonl").stat().st_size / 2**20, 1),
        "tokens": tokens,
        "tokens_per_second_here": round(tokens / here),
        "tokens_per_second_megatron": round(tokens / there),
        "ratio": round(there / here, 2),
        "ratio_without_start": round((there - starts[1]) / (here - starts[0]), 2),
        "start_seconds_here": round(starts[0], 2),
        "start_seconds_megatron": round(starts[1], 2),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Print one line of JSON per tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter with megatron-core")
    parser.add_argument("--tokenizers", nargs="+", choices=FLAGS, default=list(FLAGS))
    parser.add_argument("--megabytes", type=float, default=64.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for kind in args.tokenizers:
        with tempfile.TemporaryDirectory() as name:
            write_corpus(Path(name, "start.jsonl"), 0)
            write_corpus(Path(name, "corpus.jsonl"), args.megabytes)
            sys.stdout.write(json.dumps(compare(kind, Path(name), args)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
