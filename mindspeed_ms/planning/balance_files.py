# SPDX-License-Identifier: Apache-2.0
"""The balancer's input file and its answer as text.

.. code-block:: yaml

    pipeline_config: {pipeline_num: 8, num_layer: 32, offset: [0, 1, -1, 0, 0, 0, 0, 0]}
    time_config: {head: 20, body: 100, tail: 60}
    recompute_config: {recompute: [1, 1, 0, 0, 0, 0, 0, 0], select_recompute: False}
    memory_usage:
      head_memory: 4000
      tail_memory: 3000
      body_memories: {stage_id: [1, 2, 3, 4], memories: [30000, 28000, 26000, 24000]}

Several rounds: lists of lists in ``offset``, the recompute lists, ``stage_id`` and ``memories``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.config.section import unknown_key
from mindspeed_ms.config.yaml_reader import read_yaml
from mindspeed_ms.planning.balance import (
    KINDS,
    REPEATED,
    Balance,
    Measured,
    Problem,
    as_rows,
    balance,
    bubble_parts,
    fit_memory,
)

_KEYS: Mapping[str, tuple[str, ...]] = {
    "pipeline_config": ("pipeline_num", "num_layer", "offset"),
    "time_config": ("head", "body", "tail", "head_time", "body_time", "tail_time", *KINDS),
    "recompute_config": KINDS,
    "memory_usage": ("head_memory", "tail_memory", "body_memories"),
}


def solve_file(  # noqa: PLR0913 - the options of the command line
    path: Path,
    *,
    stages: int | None,
    chunks: int,
    microbatches: int,
    memory: float,
    seconds: float,
) -> Balance:
    """Read a file and balance what it describes.

    Args:
        path: YAML file, see the module's text.
        stages: pipeline stages to balance for; None: those of the measured run.
        chunks: model chunks per stage.
        microbatches: of a step.
        memory: limit of a stage, MiB.
        seconds: the solver's time.

    Raises:
        ValueError: a key or a value that is wrong or missing, or nothing fits.
    """
    document = _checked(path)
    pipeline, times = document["pipeline_config"], document["time_config"]
    measured_stages = int(_number(path, "pipeline_config", pipeline, "pipeline_num"))
    num_layers = int(_number(path, "pipeline_config", pipeline, "num_layer"))
    usage = document["memory_usage"]
    kinds = [kind for kind in KINDS if document["recompute_config"].get(kind) not in (None, False)]
    runs = _runs(path, document, measured_stages, num_layers, kinds)
    repeated = {kind: float(times.get(kind, REPEATED[kind])) for kind in kinds}
    model = fit_memory(runs, kinds, microbatches)

    def time_of(part: str) -> float:
        name = part if part in times else f"{part}_time"
        return _number(path, "time_config", times, name)

    problem = Problem(
        num_layers=num_layers,
        stages=stages or measured_stages,
        chunks=chunks,
        microbatches=microbatches,
        memory=memory,
        head_time=time_of("head"),
        body_time=time_of("body"),
        tail_time=time_of("tail"),
        head_memory=_number(path, "memory_usage", usage, "head_memory"),
        tail_memory=_number(path, "memory_usage", usage, "tail_memory"),
        repeated=repeated,
    )
    return balance(problem, model, seconds)


def _checked(path: Path) -> dict[str, dict[str, Any]]:
    document = read_yaml(path)
    for section, keys in _KEYS.items():
        if not isinstance(document.get(section), Mapping):
            raise ValueError(f"{path}: {section} is missing; give it with {', '.join(keys[:3])}")
        for key in document[section]:
            if key not in keys:
                raise unknown_key(f"{path}: {section}", str(key), keys)
    return document


def _number(path: Path, section: str, values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: {section}.{key} is {value!r}, but must be a number; give one")
    return float(value)


def _runs(
    path: Path, document: Mapping[str, Any], stages: int, num_layers: int, kinds: list[str]
) -> list[Measured]:
    body = document["memory_usage"].get("body_memories")
    if not isinstance(body, Mapping) or "stage_id" not in body or "memories" not in body:
        raise ValueError(
            f"{path}: memory_usage.body_memories must hold stage_id and memories, lists of equal "
            "length; give them"
        )
    numbers, memories = body["stage_id"], body["memories"]
    has_rounds = bool(numbers) and isinstance(numbers[0], list)
    rounds = len(numbers) if has_rounds else 1

    def of_round(value: Any, index: int) -> Any:
        return value[index] if has_rounds and isinstance(value, list) else value

    runs = []
    for index in range(rounds):
        layers = _counts(path, "offset", of_round(document["pipeline_config"]["offset"], index))
        even = num_layers // stages
        layers = np.broadcast_to(layers + even // max(1, len(layers)), (len(layers), stages))
        recomputed = {
            kind: _recomputed(
                path, kind, of_round(document["recompute_config"][kind], index), layers
            )
            for kind in kinds
        }
        ids, sizes = of_round(numbers, index), of_round(memories, index)
        if len(ids) != len(sizes):
            raise ValueError(
                f"{path}: stage_id {ids} and memories {sizes} differ in length; give one memory "
                "for each stage"
            )
        wrong = [number for number in ids if not 0 < number < stages - 1]
        if wrong:
            raise ValueError(
                f"{path}: stage_id {wrong[0]} is no middle stage of {stages}; give stages 1 to "
                f"{stages - 2}, whose memory holds neither head nor tail"
            )
        runs.append(Measured(layers, recomputed, tuple(ids), tuple(map(float, sizes))))
    return runs


def _counts(path: Path, name: str, value: Any) -> np.ndarray:
    """Rows of counts by chunk; a number or a flat list is one row."""
    try:
        counts = np.array(value, int)
    except (ValueError, TypeError):
        raise ValueError(
            f"{path}: {name} is {value!r}, but must be a number, or lists of equal length"
        ) from None
    return counts.reshape(1, -1) if counts.ndim < 2 else counts


def _recomputed(path: Path, kind: str, value: Any, layers: np.ndarray) -> np.ndarray:
    if value is True:
        return layers
    return np.broadcast_to(_counts(path, kind, value), layers.shape)


def answer_lines(found: Balance) -> list[str]:
    """The solution: offsets, lists as this project and the older tool write them, bubbles."""
    problem = found.problem
    stages = ", ".join(f"{size:.0f}" for size in found.memories)
    lines = [
        f"offset: {as_rows(found.offsets)}",
        f"num_layer_list: {as_rows(found.layers)}",
        *(f"{kind}: {as_rows(counts)}" for kind, counts in found.recomputed.items()),
        f"memory of the stages, MiB (limit {problem.memory:.0f}): {stages}",
        f"step: {found.timeline.seconds:.6g} (unit of time_config)",
    ]
    lines += [f"{name} bubble: {share:.2%}" for name, share in bubble_parts(found).items()]
    return lines
