# SPDX-License-Identifier: Apache-2.0
"""What the record of a run tells, as plain data for the page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_ms.engine.observe.record import FILE_NAME, Entry, read_record
from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.plan.rank_generator import RankGenerator

MOST_POINTS = 4000
"""Of a curve; of longer ones the ends of every piece stay, so that no spike is lost."""
MOST_RANKS = 512
"""Ranks that the layout shows."""
_MIB = 2**20
_NO_CURVE = ("kind", "iteration", "consumed_samples", "consumed_tokens", "skipped", "seconds")

Curve = dict[str, list[float]]
Story = dict[str, Any]


def tell(folder: Path) -> Story:
    """The story of a run.

    Args:
        folder: of the run, where its record lies.

    Raises:
        ValueError: there is no record, or it holds no run.
    """
    try:
        entries = read_record(folder)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no record of a run; name the folder that a run was given with --save "
            "(YAML: output_dir)"
        ) from None
    starts = [entry for entry in entries if entry["kind"] == "start"]
    if not starts:
        raise ValueError(f"the record in {folder} has no start; it was not written by a run")
    with taken_apart(folder / FILE_NAME, "the record of a run"):
        return _told(folder, starts, entries)


def _told(folder: Path, starts: Sequence[Entry], entries: Sequence[Entry]) -> Story:
    start, by_kind = starts[-1], _by_kind(entries)
    steps = by_kind.get("step", [])
    curves = dict(_curves(steps)) | dict(_evaluations(by_kind.get("validation", [])))
    return {
        "name": folder.name or str(folder),
        "folder": str(folder),
        "curves": curves,
        "tiles": _tiles(start, steps, by_kind, len(starts)),
        "memory": _memory(start, by_kind.get("memory", [])),
        "timeline": next(iter(by_kind.get("timeline", [])[-1:]), None),
        "layout": _layout(start),
        "changed": start["changed"],
        "config": start["config"],
        "environment": {**start["environment"], "command": _words(start)},
        "checkpoints": list(_checkpoints(folder, by_kind.get("checkpoint", []))),
        "warnings": [
            {"iteration": one["iteration"], "text": one["text"]}
            for one in by_kind.get("warning", [])
        ],
    }


def differing_settings(stories: Sequence[Story]) -> dict[str, list[Any]]:
    """``section.field`` -> its value in every run, of the settings that are not the same in all."""
    flat = [
        {
            f"{section}.{name}": value
            for section, values in story["config"].items()
            for name, value in values.items()
        }
        for story in stories
    ]
    names = dict.fromkeys(name for one in flat for name in one)
    rows = {name: [one.get(name) for one in flat] for name in names}
    return {
        name: values for name, values in rows.items() if any(one != values[0] for one in values)
    }


def _by_kind(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    kinds: dict[str, list[Entry]] = {}
    for entry in entries:
        kinds.setdefault(entry["kind"], []).append(entry)
    return kinds


def _words(start: Entry) -> str:
    return " ".join(str(word) for word in start["environment"]["command"])


def _number(value: Any) -> float | None:
    """A finite number, None for anything else: JSON has no others."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _curves(steps: Sequence[Entry]) -> Iterator[tuple[str, Curve]]:
    names = dict.fromkeys(name for step in steps for name in step if name not in _NO_CURVE)
    for name in names:
        points = [
            (step["iteration"], number)
            for step in steps
            if (number := _number(step.get(name))) is not None
        ]
        if points:
            yield name, _as_curve(thinned(points))


def _evaluations(entries: Sequence[Entry]) -> Iterator[tuple[str, Curve]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        for name, value in entry["losses"].items():
            number = _number(value)
            if number is not None:
                points.setdefault(f"{name} {entry['split']}", []).append(
                    (entry["iteration"], number)
                )
    for name, one in points.items():
        yield name, _as_curve(sorted(dict(one).items()))


def _as_curve(points: Sequence[tuple[int, float]]) -> Curve:
    return {"x": [x for x, _ in points], "y": [y for _, y in points]}


def thinned(points: list[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most so many points of a curve: of every piece the lowest and the highest, and the end."""
    if len(points) <= most:
        return points
    width = math.ceil(len(points) / ((most - 1) // 2))
    kept: list[tuple[int, float]] = []
    for first in range(0, len(points), width):
        piece = points[first : first + width]
        ends = {min(piece, key=lambda point: point[1]), max(piece, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _tiles(
    start: Entry, steps: Sequence[Entry], by_kind: Mapping[str, list[Entry]], jobs: int
) -> dict[str, str]:
    tiles = {"ranks": str(start["world_size"])}
    training = start["config"]["training_config"]
    if steps:
        last = steps[-1]
        wanted = training["training_iters"]
        tiles["iterations"] = f"{last['iteration']:,}" + (f" of {wanted:,}" if wanted else "")
        tiles["tokens"] = f"{last['consumed_tokens']:,}"
        if "lm loss" in last:
            number = _number(last["lm loss"])
            tiles["loss"] = str(last["lm loss"]) if number is None else f"{number:.4f}"
        speeds = sorted(step["tokens_per_second"] for step in steps)
        tiles["tokens per second (median)"] = f"{speeds[len(speeds) // 2]:,.0f}"
        tiles["time in steps"] = _duration(sum(step["seconds"] for step in steps))
    evaluated = [
        number
        for entry in by_kind.get("validation", [])
        if entry["split"].startswith("validation")
        and (number := _number(entry["losses"].get("lm loss"))) is not None
    ]
    if evaluated:
        tiles["best validation loss"] = f"{min(evaluated):.4f}"
    if start["plan"] is not None:
        tiles["parameters"] = f"{start['plan']['parameters']:,}"
    tiles["starts"] = str(jobs)
    tiles["warnings"] = str(len(by_kind.get("warning", [])))
    return tiles


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours:d}:{minutes:02d}:{seconds:02d}"


def _memory(start: Entry, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """MiB of every rank, planned and measured."""
    if not entries:
        return []
    stages = None if start["plan"] is None else start["plan"]["stages"]
    rows = []
    for one in entries[-1]["ranks"]:
        row = {"rank": one["rank"], "stage": one["stage"]}
        if stages is not None:
            stage = stages[one["stage"]]
            for name in ("weights", "gradients", "optimizer", "activations", "peak"):
                row[f"planned {name}"] = round(stage[name] / _MIB, 1)
        row["measured now"] = round(one["current"] / _MIB, 1)
        row["measured peak"] = round(one["peak"] / _MIB, 1)
        row["peak of the run"] = round(max(0, one["peak"] - one["base"]) / _MIB, 1)
        rows.append(row)
    return rows


def _layout(start: Entry) -> dict[str, Any]:
    """For every pipeline stage its ranks, with their place on the other axes and their layers."""
    layout, world = start["layout"], start["world_size"]
    sizes = {
        "tp": layout["tensor"],
        "cp": layout["context"],
        "dp": layout["data"],
        "pp": layout["pipeline"],
    }
    generator = RankGenerator(sizes, layout["order"])
    stages: list[dict[str, Any]] = [
        {"stage": stage, "layers": "", "ranks": []} for stage in range(layout["pipeline"])
    ]
    if start["plan"] is not None:
        for stage, plan in zip(stages, start["plan"]["stages"], strict=True):
            stage["layers"] = "; ".join(_span(chunk) for chunk in plan["layers"])
    for rank in range(min(world, MOST_RANKS)):
        place = generator.coordinates(rank)
        axes = [f"{axis}{place[axis]}" for axis in ("tp", "cp", "dp") if sizes[axis] > 1]
        stages[place.get("pp", 0)]["ranks"].append(
            {"rank": rank, "place": " ".join(axes), "tp": place.get("tp", 0)}
        )
    return {"stages": stages, "left_out": max(0, world - MOST_RANKS), "sizes": layout}


def _span(layers: Sequence[int]) -> str:
    if not layers:
        return "no layer"
    is_run = list(layers) == list(range(layers[0], layers[-1] + 1))
    if is_run and len(layers) > 1:
        return f"layers {layers[0]}–{layers[-1]}"
    return ("layer " if len(layers) == 1 else "layers ") + ", ".join(map(str, layers))


def _checkpoints(folder: Path, entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    there = {iteration: path for iteration, path in _folders(folder)}
    for iteration in sorted({entry["iteration"] for entry in entries} | set(there)):
        path = there.get(iteration)
        size = "removed" if path is None else f"{_bytes(path) / _MIB:,.1f}"
        yield {"iteration": iteration, "size": size, "folder": "" if path is None else str(path)}


def _folders(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in sorted(folder.glob("iter_*")):
        number = path.name.removeprefix("iter_")
        if path.is_dir() and number.isdecimal():
            yield int(number), path


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
