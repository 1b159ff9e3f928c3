# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of a training step as one thing grows, or as the layout changes.

    python benchmarks/scaling.py layers sequence vocabulary layouts --json out.json --png out.png

Every row runs ``train_step.py`` in processes of its own. The reference model runs before each row,
and speed is given relative to it, so that a machine that gets slower or busier in between changes
little. ``time_per_token`` is that of the row over that of the reference; ``peak_rss_mib`` is the
largest of the ranks; ``share_of_limit`` compares the operations of a step with what the processor
can do (``limit.py``). Layouts of several ranks share the cores: with as many ranks as cores, 1.0
would mean that splitting costs nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ITERATIONS = 9
"""Measured from the fifth on."""


@dataclass(frozen=True)
class Row:
    """One measured configuration: flags added to those of the reference model."""

    name: str
    flags: str = ""
    ranks: int = 1


PIPELINE = "--pipeline-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 4"
GROUPS = {
    "layers": [Row(f"{count} layers", f"--num-layers {count}") for count in (2, 4, 16)],
    "sequence": [
        Row(f"sequence {size}", f"--seq-length {size} --max-position-embeddings {size}")
        for size in (128, 512, 1024)
    ],
    "vocabulary": [
        Row(f"vocabulary {size}", f"--padded-vocab-size {size}") for size in (16384, 32768)
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
        "tokens_per_second": own["tokens_per_second"],
        "reference_tokens_per_second": reference["tokens_per_second"],
        "time_per_token": round(reference["tokens_per_second"] / own["tokens_per_second"], 3),
        "peak_rss_mib": max(own["peak_rss_mib"]),
        "reference_peak_rss_mib": max(reference["peak_rss_mib"]),
        "share_of_limit": own["share_of_limit"],
        "startup_seconds": max(own["startup_seconds"]),
    }


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


def main() -> None:
    """Measure the groups of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("groups", nargs="+", choices=GROUPS, help="what grows")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--png", type=Path, help="write a picture here (needs matplotlib)")
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    for group in args.groups:
        results[group] = []
        for row in GROUPS[group]:
            results[group].append(compared(row))
            sys.stdout.write(json.dumps(results[group][-1]) + "\n")
            sys.stdout.flush()
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.png:
        draw(results, args.png)


if __name__ == "__main__":
    main()
