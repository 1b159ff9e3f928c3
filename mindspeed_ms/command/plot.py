# SPDX-License-Identifier: Apache-2.0
"""Draw the loss of runs: of their folders, or of logs of Megatron's kind.

mindspeed-ms plot output/my_run
mindspeed-ms plot output/my_run megatron.log --y "grad norm" --output both.svg
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mindspeed_ms.command.megatron_log import read_log
from mindspeed_ms.data.tokenizers import optional_libraries
from mindspeed_ms.engine.observe.record import read_record
from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.files.whole import appears_whole
from mindspeed_ms.toolkit.launch.command import Parser, user_errors

FILE_NAME = "curve.png"
_NAMES = {"learning_rate": "learning rate", "grad_norm": "grad norm", "loss_scale": "loss scale"}
"""Names of a record as the log has them."""

Points = dict[int, float]
"""Iteration -> value."""


def curves_of(path: Path) -> dict[str, Points]:
    """Every figure of a run over its iterations.

    Args:
        path: the folder that a run saved to, or a log.

    Raises:
        ValueError: there is nothing to draw.
    """
    curves: dict[str, Points] = {}
    if path.is_dir():
        try:
            entries = read_record(path)
        except FileNotFoundError:
            raise ValueError(
                f"{path} holds no record of a run; name the folder that a run was given with "
                "--save, or a log"
            ) from None
        rows = [entry for entry in entries if entry["kind"] == "step"]
    else:
        rows = [{"iteration": line.iteration, **line.values} for line in read_log(path)]
    with taken_apart(path, "the record or log of a run"):
        for row in rows:
            for name, value in row.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    points = curves.setdefault(_NAMES.get(name, name), {})
                    points[int(row["iteration"])] = float(value)
    if not curves:
        raise ValueError(f"{path} holds no iteration; there is nothing to draw")
    return curves


def draw(runs: Sequence[Path], name: str, output: Path) -> None:
    """Write a picture; its ending says of which kind.

    Raises:
        ValueError: a run has no such figure, or the ending is unknown.
        RuntimeError: the library that draws is not installed.
    """
    curves = {run: curves_of(run) for run in runs}
    for run, found in curves.items():
        if name not in found:
            raise ValueError(f"{run} has no {name!r}; it has {', '.join(sorted(found))}")
    figures = optional_libraries.load("matplotlib.figure", "plot", "plot")
    figure = figures.Figure(figsize=(8, 4.5), layout="constrained")
    kinds = figure.canvas.get_supported_filetypes()
    if output.suffix.removeprefix(".") not in kinds:
        raise ValueError(f"{output} has no ending of a picture; give one of {', '.join(kinds)}")
    axes = figure.subplots()
    for run, found in curves.items():
        points = sorted(found[name].items())
        marker = "." if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=run.name or str(run), marker=marker)
    axes.set(xlabel="iteration", ylabel=name)
    axes.grid(alpha=0.3)
    axes.legend()
    with appears_whole(output) as unfinished:
        figure.savefig(unfinished, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw; return the status."""
    parser = Parser.of(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder or log")
    parser.add_argument("--y", default="lm loss", help="figure that is drawn (default: lm loss)")
    parser.add_argument("--output", type=Path, help=f"default {FILE_NAME} in the first folder")
    given = parser.parse_args(argv)
    first = given.runs[0]
    output = given.output or (first if first.is_dir() else first.parent) / FILE_NAME
    with user_errors():
        draw(given.runs, given.y, output)
        sys.stdout.write(f"{output}\n")
    return 0
