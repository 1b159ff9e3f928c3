"""Timelines: bubbles as the theory has them, and the same after writing and reading."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mindspeed_ms.core.pipeline_parallel.executor import StepRecord, TimedStep
from mindspeed_ms.core.pipeline_parallel.schedule_plan import Forward, Shape
from mindspeed_ms.core.pipeline_parallel.timeline import (
    chrome_trace,
    from_chrome_trace,
    measured,
    simulate,
    theoretical_bubble_ratio,
)
from mindspeed_ms.training.timeline_file import timeline_recorder
from tools import pipeline_timeline as tool

ROOT = Path(__file__).parents[2]


def equal_stages(stage, step):
    return 1.0 if isinstance(step, Forward) else 2.0


@pytest.mark.parametrize("shape", [Shape(1, 3), Shape(4, 8), Shape(4, 2), Shape(4, 8, 2)])
def test_bubbles_of_equal_stages_are_those_of_the_theory(shape):
    timeline = simulate(shape, equal_stages)
    assert timeline.bubble_ratio == pytest.approx(theoretical_bubble_ratio(shape))
    assert timeline.work(0) == 3.0 * shape.microbatches * shape.chunks


def test_an_uneven_stage_makes_the_others_wait():
    even = simulate(Shape(4, 8), equal_stages)
    uneven = simulate(
        Shape(4, 8), lambda stage, step: equal_stages(stage, step) * (1 + (stage == 1))
    )
    assert uneven.bubble_ratio > even.bubble_ratio
    assert even.peaks == (4, 3, 2, 1)


def test_a_trace_is_read_back_as_it_was():
    timeline = simulate(Shape(2, 4, 2), equal_stages)
    again = from_chrome_trace(json.loads(json.dumps(chrome_trace(timeline))))
    assert again.bars == timeline.bars and again.peaks == timeline.peaks


def test_records_of_the_stages_become_one_timeline():
    records = [
        StepRecord([TimedStep("forward", 0, 0, 5.0, 6.0), TimedStep("wait", 0, 0, 6.0, 8.0)], 2),
        StepRecord([TimedStep("backward", 0, 0, 6.0, 9.0)], 1),
    ]
    timeline = measured(records)
    assert timeline.span == 4.0 and timeline.peaks == (2, 1)
    assert timeline.bubble_ratio == pytest.approx(1.0)


def test_the_second_iteration_is_recorded():
    assert timeline_recorder(None, 2, 10) is None
    assert [timeline_recorder("x", step, 10) is not None for step in (1, 2, 3)] == [
        False,
        True,
        False,
    ]
    assert timeline_recorder("x", 1, 1) is not None


@pytest.mark.parametrize("ending", [".svg", ".png", ".json"])
def test_pictures_and_traces_are_written(tmp_path, ending):
    timeline = simulate(Shape(4, 8, 2), equal_stages)
    path = tmp_path / f"step{ending}"
    tool.write(timeline, path)
    if ending == ".svg":
        text = path.read_text()
        assert "bubble ratio 18.8%" in text and text.count("<rect") == 1 + 4 * 8 * 2 * 2
    elif ending == ".png":
        with Image.open(path) as image:
            assert image.size == (tool.WIDTH, tool.height(timeline))
            assert len(image.getcolors(maxcolors=1 << 20)) > 4
    else:
        assert from_chrome_trace(json.loads(path.read_text())).bars == timeline.bars


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .svg, .png or .json"):
        tool.write(simulate(Shape(1, 1), equal_stages), tmp_path / "step.pdf")


def run_tool(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tools.pipeline_timeline", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_draws_a_configuration(tmp_path):
    picture = tmp_path / "step.svg"
    config = tmp_path / "run.yaml"
    config.write_text(
        "training_config: {training_iters: 1, global_batch_size: 8}\n"
        "dataset_config: {batch_size: 1}\n"
        "optimizer_config: {}\n"
        "parallel_config: {pipeline_model_parallel_size: 2, num_layer_list: [1, 3]}\n"
        "model_config: {vocab_size: 64, num_layers: 4, num_attention_heads: 2, hidden_size: 16,\n"
        "  seq_length: 16}\n"
    )
    done = run_tool("--yaml", config, "--output", picture)
    assert done.returncode == 0, done.stderr
    assert "micro-batches in flight: 2, 1" in done.stdout and picture.exists()
    assert run_tool("--stages", 4, "--microbatches", 6, "--chunks", 2, "--output", picture).stderr


def test_the_command_draws_what_was_measured(tmp_path):
    trace, picture = tmp_path / "step.json", tmp_path / "step.png"
    assert run_tool("--stages", 2, "--output", trace).returncode == 0
    done = run_tool("--measured", trace, "--output", picture)
    assert done.returncode == 0 and "bubble ratio 12.5%" in done.stdout and picture.exists()
