# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of a training step as one thing grows, or as the layout changes.

    python benchmarks/scaling.py layers micro-batches ranks --json out.json --png out.png

Every row runs ``train_step.py`` in processes of its own. The reference model runs before each row,
and speed is given relative to it, so that a machine that gets slower or busier in between changes
little. ``time_per_token`` is that of the row over that of the reference; ``peak_rss_mib`` is the
largest of the ranks; ``share_of_limit`` compares the operations of a step with what the processor
can do (``limit.py``). Layouts of several ranks share the cores: with as many ranks as cores, 1.0
would mean that splitting costs nothing. ``memory_to_plan`` is what the run took after its start
over what the planner says, of the rank with most.

Where a row says how much of a thing it has, processor time of a step is laid on a straight line
through all rows of the group and the reference; ``off_the_line`` is the farthest of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ITERATIONS = 9
"""Measured from the fifth on."""


@dataclass(frozen=True)
class Row:
    """One measured configuration: flags added to those of the reference model."""

    name: str
    flags: str = ""
    ranks: int = 1
    amount: int | None = None
    """Of what grows in the group, if a step's time should grow with it."""


PIPELINE = "--pipeline-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 4"
GROUPS = {
    "layers": [
        Row(f"{count} layers", f"--num-layers {count}", amount=count) for count in (2, 4, 16)
    ],
    "micro-batches": [
        Row(f"{count} micro-batches", f"--global-batch-size {4 * count}", amount=count)
        for count in (2, 4, 8)
    ],
    "sequence": [
        Row(f"sequence {size}", f"--seq-length {size} --max-position-embeddings {size}")
        for size in (128, 512, 1024)
    ],
    "vocabulary": [
        Row(f"vocabulary {size}", f"--padded-vocab-size {size}") for size in (16384, 32768)
    ],
    "ranks": [
        Row(f"dp{count}", "--micro-batch-size 1 --global-batch-size 8", count)
        for count in (1, 2, 4, 8)
    ],
    "layouts": [
        Row("bf16", "--bf16"),
        Row("tp2", "--tensor-model-parallel-size 2", 2),
        Row("tp2 sp", "--tensor-model-parallel-size 2 --sequence-parallel", 2),
        Row("dp2", "--micro-batch-size 2", 2),
        Row("dp2 zero1", "--micro-batch-size 2 --use-distributed-optimizer", 2),
        Row("pp2, 4 micro-batches", PIPELINE, 2),
    ],
}
REFERENCE_AMOUNT = {"layers": 8, "micro-batches": 1}
PLANNED_RANKS = (100, 1000, 10000)
PLANNED = (
    "--num-layers 80 --hidden-size 8192 --ffn-hidden-size 28672 --num-attention-heads 64 "
    "--group-query-attention --num-query-groups 8 --swiglu --seq-length 8192 "
    "--max-position-embeddings 8192 --padded-vocab-size 128256 --micro-batch-size 1 --bf16 "
    "--tensor-model-parallel-size 4 --pipeline-model-parallel-size 5 --use-distributed-optimizer "
    "--tokenizer-type NullTokenizer --vocab-size 128255 --mock-data --train-iters 10 --lr 1e-4"
)
"""A model of 70 billion parameters in a layout for any number of ranks that 20 divides."""


def measure(row: Row) -> dict[str, Any]:
    """Figures of one row.

    Raises:
        SystemExit: the run failed; its last lines are shown.
    """
    command = [sys.executable, str(HERE / "train_step.py"), *row.flags.split()]
    command += ["--train-iters", str(ITERATIONS), "--taken-apart", "0"]
    if row.ranks > 1:
        command = ["mpiexec", "-n", str(row.ranks), *command]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"tokens')]
    if done.returncode or not lines:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise SystemExit(f"{row.name}: ended with status {done.returncode}\n{tail}")
    return json.loads(lines[-1])


def compared(row: Row) -> dict[str, Any]:
    """A row's figures beside those of the reference, run just before it."""
    reference, own = measure(Row("reference")), measure(row)
    return {
        "name": row.name,
        "ranks": row.ranks,
        "amount": row.amount,
        "tokens_per_second": own["tokens_per_second"],
        "reference_tokens_per_second": reference["tokens_per_second"],
        "time_per_token": round(reference["tokens_per_second"] / own["tokens_per_second"], 3),
        "processor_ms": own["processor_milliseconds_per_step"],
        "reference_processor_ms": reference["processor_milliseconds_per_step"],
        "memory_to_plan": round(max(own["run_mib"]) / max(own["planned_mib"]), 3),
        "peak_rss_mib": max(own["peak_rss_mib"]),
        "reference_peak_rss_mib": max(reference["peak_rss_mib"]),
        "share_of_limit": own["share_of_limit"],
        "startup_seconds": max(own["startup_seconds"]),
    }


def line_through(group: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Processor time of a step as ``fixed_ms + each_ms`` times what grows."""
    amounts = [REFERENCE_AMOUNT[group], *(row["amount"] for row in rows)]
    # Each row has a reference of its own minute: their median is the group's, and what a row's was
    # slower than that its own time was too.
    usual = statistics.median(row["reference_processor_ms"] for row in rows)
    times = [usual, *(row["processor_ms"] * usual / row["reference_processor_ms"] for row in rows)]
    each, fixed = np.polyfit(amounts, times, 1, w=1.0 / np.array(times))
    fitted = [fixed + each * amount for amount in amounts]
    off = max(abs(time / line - 1.0) for time, line in zip(times, fitted, strict=True))
    return {
        "group": group,
        "fixed_ms": round(fixed, 1),
        "each_ms": round(each, 1),
        "off_the_line": round(off, 4),
    }


def planning_time(ranks: int) -> dict[str, Any]:
    """Seconds of a dry run for so many ranks, from the command to its answer."""
    command = [sys.executable, str(HERE.parent / "pretrain_gpt.py"), "--dry-run", *PLANNED.split()]
    command += ["--world-size", str(ranks), "--global-batch-size", str(ranks)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"planned_ranks": ranks, "seconds": round(time.monotonic() - started, 2)}


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Bars of time per token (above) and memory (below), one column of pictures per group."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(results), figsize=(4.2 * len(results), 6.5), squeeze=False, layout="constrained"
    )
    for column, (group, rows) in enumerate(results.items()):
        names = ["reference", *(row["name"] for row in rows)]
        times = [1.0, *(row["time_per_token"] for row in rows)]
        sizes = [rows[0]["reference_peak_rss_mib"], *(row["peak_rss_mib"] for row in rows)]
        for axis, values, label in zip(
            axes[:, column],
            (times, sizes),
            ("time per token / reference", "peak resident MiB per rank"),
            strict=True,
        ):
            axis.bar(names, values)
            axis.set_ylabel(label)
            axis.tick_params(axis="x", rotation=45)
        axes[0, column].set_title(group)
    figure.savefig(path, dpi=110)


def say(figures: dict[str, Any]) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure the groups of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("groups", nargs="+", choices=[*GROUPS, "planner"], help="what grows")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--png", type=Path, help="write a picture here (needs matplotlib)")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for group in args.groups:
        if group == "planner":
            for ranks in PLANNED_RANKS:
                say(planning_time(ranks))
            continue
        results[group] = []
        for row in GROUPS[group]:
            results[group].append(compared(row))
            say(results[group][-1])
        if group in REFERENCE_AMOUNT:
            say(line_through(group, results[group]))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.png:
        draw(results, args.png)


if __name__ == "__main__":
    main()
