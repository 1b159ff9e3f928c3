# SPDX-License-Identifier: Apache-2.0
"""The pipeline balancer: the memory model, the integer program, its files and its command."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from mindspeed_ms.planning.balance import (
    Measured,
    MemoryModel,
    Problem,
    balance,
    bubble_parts,
    fit_memory,
    forwards_in_flight,
    timeline_of,
)
from mindspeed_ms.planning.balance_files import answer_lines, solve_file

ROOT = Path(__file__).parents[3]
TRUTH = MemoryModel(static=600.0, kept=250.0, saved={"recompute": 220.0}, constant=900.0)


def problem(**changes):
    values = {
        "num_layers": 10,
        "stages": 4,
        "chunks": 1,
        "microbatches": 8,
        "memory": 1e9,
        "head_time": 3.0,
        "body_time": 10.0,
        "tail_time": 9.0,
        "head_memory": 500.0,
        "tail_memory": 700.0,
        "repeated": {"recompute": 1.0},
    }
    return Problem(**(values | changes))


def memory_of(found_problem, model, layers, recomputed, stage):
    shape = found_problem.shape
    flight = forwards_in_flight(shape, stage)
    size = model.constant + model.static * layers[:, stage].sum()
    size += flight @ (layers[:, stage] * model.kept)
    for kind, counts in recomputed.items():
        size -= flight @ (counts[:, stage] * model.saved[kind])
    ends = found_problem.head_memory * (stage == 0)
    return size + ends + found_problem.tail_memory * (stage == found_problem.stages - 1)


def measured(layers, recomputed, model, stages, microbatches=32):
    layers, recomputed = np.array(layers), {"recompute": np.array(recomputed)}
    run = problem(num_layers=int(layers.sum()), stages=layers.shape[1], microbatches=microbatches)
    sizes = tuple(memory_of(run, model, layers, recomputed, stage) for stage in stages)
    return Measured(layers, recomputed, tuple(stages), sizes)


def test_the_parts_of_memory_are_found_again():
    run = measured([[3, 4, 4, 5, 4, 4, 4, 4]], [[0, 1, 0, 2, 3, 0, 1, 0]], TRUTH, range(1, 7))
    found = fit_memory([run], ["recompute"], 32)
    assert found.static == pytest.approx(TRUTH.static)
    assert found.kept == pytest.approx(TRUTH.kept)
    assert found.saved["recompute"] == pytest.approx(220.0)
    assert found.constant == pytest.approx(900.0)


def test_rounds_add_up_where_one_run_has_too_few_stages():
    first = measured([[2, 3, 3, 2]], [[0, 1, 2, 0]], TRUTH, [1, 2])
    second = measured([[2, 2, 4, 2]], [[0, 2, 1, 0]], TRUTH, [1, 2])
    found = fit_memory([first, second], ["recompute"], 32)
    assert found.saved["recompute"] == pytest.approx(220.0)
    with pytest.raises(ValueError, match="too few or too alike .* measure 4 middle stages"):
        fit_memory([first], ["recompute"], 32)


def test_forwards_in_flight_of_1f1b():
    for stage in range(4):
        assert forwards_in_flight(problem().shape, stage).tolist() == [4 - stage]
    flight = forwards_in_flight(problem(chunks=2, num_layers=16).shape, 0)
    assert flight.sum() == 2 * 3 + 4 + 1


def every_distribution(total, stages):
    for cuts in itertools.combinations(range(1, total), stages - 1):
        bounds = (0, *cuts, total)
        yield np.array([[high - low for low, high in itertools.pairwise(bounds)]])


def test_without_a_limit_the_step_is_the_shortest_there_is():
    case = problem()
    found = balance(case, TRUTH)
    nothing = {"recompute": np.zeros((1, 4), int)}
    best = min(timeline_of(case, layers, nothing).seconds for layers in every_distribution(10, 4))
    assert not found.recomputed["recompute"].any()
    assert found.timeline.seconds == pytest.approx(best)
    assert found.layers.sum() == 10 and found.layers[0, 3] < found.layers[0, 1]


def test_with_a_limit_no_distribution_that_fits_is_shorter():
    case = problem(num_layers=8, memory=3100.0)
    found = balance(case, TRUTH)
    assert all(size <= 3100.0 + 1e-6 for size in found.memories)
    for stage, size in enumerate(found.memories):
        assert size == pytest.approx(memory_of(case, TRUTH, found.layers, found.recomputed, stage))
    assert found.recomputed["recompute"].any()
    best = np.inf
    for layers in every_distribution(8, 4):
        options = [range(count + 1) for count in layers[0]]
        for counts in itertools.product(*options):
            again = {"recompute": np.array([counts])}
            sizes = [memory_of(case, TRUTH, layers, again, stage) for stage in range(4)]
            if max(sizes) <= 3100.0:
                best = min(best, timeline_of(case, layers, again).seconds)
    assert found.timeline.seconds <= best * 1.01


def test_chunks_and_two_kinds_of_recomputation():
    model = MemoryModel(600.0, 250.0, {"recompute": 220.0, "select_recompute": 90.0}, 900.0)
    repeated = {"recompute": 1.0, "select_recompute": 0.2}
    case = problem(num_layers=32, chunks=2, microbatches=16, memory=13000.0, repeated=repeated)
    found = balance(case, model)
    assert found.layers.shape == (2, 4) and found.layers.sum() == 32
    together = found.recomputed["recompute"] + found.recomputed["select_recompute"]
    assert (together <= found.layers).all() and found.recomputed["select_recompute"].any()
    assert max(found.memories) <= 13000.0 + 1e-6


def test_nothing_that_fits_is_one_line():
    with pytest.raises(ValueError, match="no distribution of 10 layers .* fits into 2000 MiB"):
        balance(problem(memory=2000.0), TRUTH)


def test_bubbles_add_up():
    found = balance(problem(num_layers=8, memory=3100.0), TRUTH)
    parts = bubble_parts(found)
    assert parts["real"] == pytest.approx(parts["ideal"] + parts["imbalance"] + parts["recompute"])
    assert parts["ideal"] == pytest.approx(3 / 8) and parts["recompute"] > 0


# --- files


def document(**changes):
    run = measured([[4, 4, 5, 3, 4, 4, 4, 4]], [[0, 1, 0, 2, 3, 0, 1, 0]], TRUTH, range(1, 7))
    content = {
        "pipeline_config": {
            "pipeline_num": 8,
            "num_layer": 32,
            "offset": [0, 0, 1, -1, 0, 0, 0, 0],
        },
        "time_config": {"head": 3, "body": 10, "tail": 9},
        "recompute_config": {"recompute": [0, 1, 0, 2, 3, 0, 1, 0], "select_recompute": False},
        "memory_usage": {
            "head_memory": 500,
            "tail_memory": 700,
            "body_memories": {
                "stage_id": list(run.stages),
                "memories": [float(size) for size in run.memories],
            },
        },
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        content[section] = {**content[section], key: value} if key else value
    return content


def solve(tmp_path, content, memory=7000.0, stages=None, chunks=1):
    path = tmp_path / "measured.yaml"
    path.write_text(yaml.safe_dump(content))
    return solve_file(
        path, stages=stages, chunks=chunks, microbatches=32, memory=memory, seconds=20
    )


def test_a_file_is_balanced(tmp_path):
    found = solve(tmp_path, document())
    assert found.layers.sum() == 32 and (found.offsets + 4 == found.layers).all()
    assert max(found.memories) <= 7000.0 + 1e-6
    lines = answer_lines(found)
    assert lines[0].startswith("offset: [") and lines[1].startswith("num_layer_list: [")
    assert any(re.match(r"recompute: \[\d", line) for line in lines)
    assert solve(tmp_path, document(), stages=4).layers.shape == (1, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_config": None}, "time_config is missing; give it with head, body, tail"),
        ({"time_config__boddy": 3}, "unknown key 'boddy' in .* did you mean 'body'"),
        ({"time_config__body": "fast"}, "time_config.body is 'fast', but must be a number"),
        ({"memory_usage__body_memories": [1]}, "body_memories must hold stage_id and memories"),
        (
            {"memory_usage__body_memories": {"stage_id": [1, 2], "memories": [3]}},
            "differ in length; give one memory",
        ),
        (
            {"memory_usage__body_memories": {"stage_id": [0], "memories": [3]}},
            "stage_id 0 is no middle stage of 8",
        ),
        ({"pipeline_config__offset": "x"}, "offset is 'x', but must be a number, or lists"),
        ({"pipeline_config__num_layer": None}, "pipeline_config.num_layer is None, but must"),
    ],
)
def test_mistakes_in_a_file(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        solve(tmp_path, document(**changes))


def test_the_command(tmp_path):
    path = tmp_path / "measured.yaml"
    path.write_text(yaml.safe_dump(document()))
    script = str(ROOT / "tools/pipeline_balance.py")

    def run(*words):
        command = [sys.executable, script, "--init", str(path), "-mb", "32", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    good = run("-mem", "7000", "-m", "pangu")
    assert good.returncode == 0 and good.stdout.startswith("pangu\noffset: ["), good.stderr
    bad = run("-mem", "700")
    assert bad.returncode == 2
    assert "error: no distribution" in bad.stderr and "Traceback" not in bad.stderr
