# SPDX-License-Identifier: Apache-2.0
"""Tokens per second and peak memory beside Megatron's own core, on CPU: one step here, one there.

    python benchmarks/vs_megatron.py --python /path/to/python/with/torch/and/megatron-core
    python benchmarks/vs_megatron.py --python ... --only tp2 tp2+sp --png layouts.png
    python benchmarks/vs_megatron.py --python ... --only gpt2 "experts, grouped" "sequence 2048"
    python benchmarks/vs_megatron.py --python ... --golden tests/data/golden

Both sides train a model of ``reference_model.py`` from the same flags, with the same number of
ranks and threads: the reference model in several layouts by default, other shapes of model and run
by name. They take turns (``turns.py``), so that a slower or busier machine slows both.
One line of JSON is printed for every layout; ``ratio`` above 1 means that this project is faster,
``memory_ratio`` below 1 that it needs less. ``share_of_limit`` is that of what the threads can do
at best (``limit.py``), ``first_seconds`` the time from start to the end of the first step. The
processor's milliseconds are those of all ranks and
threads together, waiting included. ``--golden`` does not measure: it shows that the other side is
set up rightly, for it replays a recorded run of Megatron-LM in every layout and prints the largest
differences.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from limit import processor, share_of_limit
from reference_model import MODELS
from turns import HERE, Side, ratio, take_turns


@dataclass(frozen=True, slots=True)
class Layout:
    """One comparison: ranks, and the flags both sides get."""

    ranks: int
    flags: str = ""
    sequences: int = 4
    """Of a global batch."""
    model: str = "llama"
    """One of ``reference_model.MODELS``."""
    against: str | None = None
    """Flags of this project's own run that takes Megatron's place, where that has no such layout on
    CPU."""

    @property
    def dtype(self) -> str:
        """Type of the products."""
        return "bf16" if "--bf16" in self.flags else "fp32"


LAYOUTS = {
    "1 rank": Layout(1),
    "tp2": Layout(2, "--tensor-model-parallel-size 2"),
    "tp2+sp": Layout(2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "dp2": Layout(2, "", 8),
    "dp2+distributed optimizer": Layout(2, "--use-distributed-optimizer", 8),
    "pp2": Layout(2, "--pipeline-model-parallel-size 2", 16),
    "1 rank bf16": Layout(1, "--bf16"),
}
"""With the micro-batches of four sequences of ``train_step.py``, pp2 has four of them."""

_EXPERTS = (
    "--num-layers 4 --num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 688 "
    "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2 "
    "--moe-token-dispatcher-type allgather"
)
SHAPES = {
    **LAYOUTS,
    "gpt2": Layout(1, model="gpt2"),
    "gpt2 tp2": Layout(2, "--tensor-model-parallel-size 2", model="gpt2"),
    "sequence 2048": Layout(
        1, "--seq-length 2048 --max-position-embeddings 2048 --micro-batch-size 1", 1
    ),
    "vocabulary 50k, tied": Layout(1, "--padded-vocab-size 50304", model="tied llama"),
    "hidden 2048": Layout(
        1,
        "--num-layers 4 --hidden-size 2048 --ffn-hidden-size 5504 --num-attention-heads 16 "
        "--num-query-groups 8 --micro-batch-size 1",
        1,
    ),
    "experts": Layout(1, _EXPERTS),
    "experts, grouped": Layout(1, f"{_EXPERTS} --moe-grouped-gemm"),
    "full recompute": Layout(
        1, "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    ),
    "pp2 vpp2": Layout(
        2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2", 16
    ),
    "tp2 pp2": Layout(4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2", 16),
    "accumulation of 8": Layout(1, "", 32),
    "cp2 against dp2 here": Layout(
        2, "--context-parallel-size 2 --micro-batch-size 4", 8, against="--micro-batch-size 4"
    ),
}
"""All comparisons by name. Megatron core groups experts by a CUDA library only: on CPU its side of
grouped experts is the sequential one."""

GOLDEN_FLAGS = (
    "--num-layers 4 --hidden-size 64 --ffn-hidden-size 176 --num-attention-heads 4 "
    "--num-query-groups 2 --seq-length 64 --padded-vocab-size 512 --micro-batch-size 2 "
    "--weight-decay 0.1 --adam-beta2 0.95 --swiglu --normalization RMSNorm "
    "--position-embedding-type rope --disable-bias-linear --attention-dropout 0 "
    "--hidden-dropout 0 --untie-embeddings-and-output-weights"
)
"""Of the recorded run ``b_llama_hot``, as far as Megatron's defaults differ."""


def megatron_commands(
    python: str, ranks: int, threads: int, store: Path, flags: Sequence[str]
) -> list[list[str]]:
    """One command per rank of Megatron's side."""
    return [
        ["env", f"OMP_NUM_THREADS={threads}", python, str(HERE / "megatron_side.py")]
        + ["--rank", str(rank), "--ranks", str(ranks), "--threads", str(threads)]
        + ["--store", str(store), *flags]
        for rank in range(ranks)
    ]


def compare(name: str, args: argparse.Namespace, extra: Sequence[str]) -> dict[str, Any]:
    """Both sides of one layout, in turns.

    Raises:
        SystemExit: a side failed; its last lines are shown.
    """
    layout = SHAPES[name]
    threads = max(1, args.threads // layout.ranks)
    common = ["--global-batch-size", str(layout.sequences)]
    flags, model = [*common, *layout.flags.split(), *extra], MODELS[layout.model]
    with tempfile.TemporaryDirectory() as folder:
        here = Side("this project", layout.ranks, Path(folder, "here.log"))
        other = Side("the other side", layout.ranks, Path(folder, "other.log"))
        commands = megatron_commands(
            args.python, layout.ranks, threads, Path(folder, "store"), [*model, *flags]
        )
        try:
            here.start_here(threads, ["--model", layout.model, *flags])
            if layout.against is None:
                other.start(*([*command, "--port", str(other.port)] for command in commands))
            else:
                rest = [*common, *layout.against.split(), *extra]
                other.start_here(threads, ["--model", layout.model, *rest])
            take_turns([here, other], args.steps)
        finally:
            here.close()
            other.close()
    every, total = [*model, *flags], threads * layout.ranks
    length = [value for flag, value in pairwise(every) if flag == "--seq-length"][-1]
    tokens = layout.sequences * int(length)
    return {
        "layout": name,
        "processor": processor(),
        "ranks": layout.ranks,
        "threads": threads,
        "tokens_per_second_here": round(tokens / here.median_seconds(), 1),
        "tokens_per_second_megatron": round(tokens / other.median_seconds(), 1),
        "ratio": round(ratio(here, other), 3),
        "share_of_limit": share_of_limit(here.operations_per_second(), total, layout.dtype),
        "first_seconds_here": round(here.first_seconds(), 1),
        "first_seconds_megatron": round(other.first_seconds(), 1),
        "peak_mib_here": round(here.peak_mib(), 1),
        "peak_mib_megatron": round(other.peak_mib(), 1),
        "memory_ratio": round(here.peak_mib() / other.peak_mib(), 3),
        "private_memory_ratio": round(here.private_mib() / other.private_mib(), 3),
        "fastest_ms_here": round(min(here.seconds) * 1e3, 1),
        "fastest_ms_megatron": round(min(other.seconds) * 1e3, 1),
        "cpu_ms_here": round(here.cpu_seconds() * 1e3, 1),
        "cpu_ms_megatron": round(other.cpu_seconds() * 1e3, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def replay(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Megatron's side of a layout against the recorded run.

    Raises:
        SystemExit: it failed.
    """
    layout = SHAPES[name]
    flags = f"{GOLDEN_FLAGS} --global-batch-size 8 {layout.flags}".split()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        ranks = [
            subprocess.Popen(
                [*command, "--golden", str(args.golden)], stdout=subprocess.PIPE, text=True
            )
            for command in megatron_commands(args.python, layout.ranks, 1, store, flags)
        ]
        answers = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"{name}: Megatron's side failed, see above")
    worst = [json.loads(answer.splitlines()[-1]) for answer in answers]
    return {"layout": name, **{key: max(w[key] for w in worst) for key in worst[0]}}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of both ratios per layout."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [row["layout"] for row in rows]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 0.5 * len(rows) + 1.8), layout="constrained")
    for axis, key, label in zip(
        axes,
        ("ratio", "memory_ratio"),
        ("tokens/s here / Megatron core (more is better)", "peak memory here / Megatron core"),
        strict=True,
    ):
        bars = axis.barh(names, [row[key] for row in rows])
        axis.bar_label(bars, fmt="%.2f", padding=3)
        axis.axvline(1.0, color="black", linewidth=1)
        axis.margins(x=0.15)
        axis.set_xlabel(label)
        axis.invert_yaxis()
    axes[1].set_yticklabels([])
    figure.savefig(path, dpi=110)


def main() -> None:
    """Compare the layouts of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter with megatron-core")
    parser.add_argument("--only", nargs="+", choices=SHAPES, default=list(LAYOUTS))
    parser.add_argument("--steps", type=int, default=10, help="measured steps on each side")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of all ranks of a side together"
    )
    parser.add_argument("--golden", type=Path, help="folder of recorded runs: only check")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--png", type=Path, help="write a picture here (needs matplotlib)")
    args, extra = parser.parse_known_args()
    probe = subprocess.run(
        [args.python, "-c", "import torch, megatron.core"], capture_output=True, text=True
    )
    if probe.returncode:
        raise SystemExit(
            f"{args.python} has no torch or no megatron-core (pip install torch "
            "megatron-core==0.12.3); name another interpreter with --python"
        )
    rows = []
    for name in args.only:
        if args.golden and ("--bf16" in SHAPES[name].flags or name not in LAYOUTS):
            continue  # the recorded run is a Llama in fp32
        rows.append(replay(name, args) if args.golden else compare(name, args, extra))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if args.png and not args.golden:
        draw(rows, args.png)


if __name__ == "__main__":
    main()
