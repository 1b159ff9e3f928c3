# SPDX-License-Identifier: Apache-2.0
"""Timelines: bubbles as the theory has them, and the same after writing and reading."""

import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from mindspeed_ms.core.pipeline_parallel.executor import StepRecord, TimedStep
from mindspeed_ms.core.pipeline_parallel.timeline import (
    Timeline,
    chrome_trace,
    from_chrome_trace,
    measured,
    predicted,
    shape_of,
    simulate,
    theoretical_bubble_ratio,
)
from mindspeed_ms.engine.timeline_file import timeline_recorder
from mindspeed_ms.plan.schedule_plan import Forward, Shape
from tools import pipeline_timeline as tool


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
        assert "■</tspan> forward" in text and "■</tspan> backward" in text
        moments = [float(x) for x in re.findall(r'y="202" text-anchor="middle">([^<]+)<', text)]
        length = max(bar.end for bar in timeline.bars)
        assert moments == pytest.approx([length * part / 10 for part in range(11)], rel=1e-3)
    elif ending == ".png":
        with Image.open(path) as image:
            assert image.size == (tool.WIDTH, tool.height(timeline))
            assert len(image.getcolors(maxcolors=1 << 20)) > 4
    else:
        assert from_chrome_trace(json.loads(path.read_text())).bars == timeline.bars


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .svg, .png or .json"):
        tool.write(simulate(Shape(1, 1), equal_stages), tmp_path / "step.pdf")


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["pipeline_timeline", *map(str, arguments)])
    tool.main()


def test_the_command_draws_a_configuration(tmp_path, monkeypatch, capsys):
    picture, config = tmp_path / "step.svg", tmp_path / "run.yaml"
    config.write_text(
        "training_config: {training_iters: 1, global_batch_size: 8}\n"
        "dataset_config: {batch_size: 1}\n"
        "optimizer_config: {}\n"
        "parallel_config: {pipeline_model_parallel_size: 2, num_layer_list: [1, 3]}\n"
        "model_config: {vocab_size: 64, num_layers: 4, num_attention_heads: 2, hidden_size: 16,\n"
        "  seq_length: 16}\n"
    )
    run_tool(monkeypatch, "--yaml", config, "--output", picture)
    assert "micro-batches in flight: 2, 1" in capsys.readouterr().out and picture.exists()


def test_the_command_draws_what_was_measured(tmp_path, monkeypatch, capsys):
    trace, picture = tmp_path / "step.json", tmp_path / "step.png"
    run_tool(monkeypatch, "--stages", 2, "--output", trace)
    assert "bubble ratio in theory 12.5%" in capsys.readouterr().out
    run_tool(monkeypatch, "--measured", trace, "--output", picture)
    assert "bubble ratio 12.5%" in capsys.readouterr().out and picture.exists()


def test_the_command_explains_what_cannot_be_drawn(tmp_path, monkeypatch, refused):
    arguments = ("--stages", 4, "--microbatches", 6, "--chunks", 2)
    told = refused(run_tool, monkeypatch, *arguments, "--output", tmp_path / "step.svg")
    assert "error: 6 micro-batches in groups of 4" in told


def test_a_forecast_takes_the_mean_times_of_the_measured_passes():
    exact = simulate(Shape(2, 4), lambda stage, step: 1.0 if isinstance(step, Forward) else 2.0)
    assert predicted(exact, shape_of(exact)) == exact
    bars = [
        replace(bar, start=bar.start + 5 * bar.stage, end=bar.end + 5 * bar.stage)
        for bar in exact.bars
    ]
    late = Timeline(2, tuple(bars), exact.peaks)
    forecast = predicted(late, shape_of(late))
    assert forecast.span == pytest.approx(exact.span) and late.span > exact.span


def test_the_command_draws_the_forecast_above_what_was_measured(tmp_path, monkeypatch, capsys):
    trace, picture = tmp_path / "trace.json", tmp_path / "both.svg"
    exact = simulate(Shape(2, 4), lambda stage, step: 1.0)
    trace.write_text(json.dumps(chrome_trace(exact)), encoding="utf-8")
    run_tool(monkeypatch, "--measured", trace, "--with-prediction", "--output", picture)
    drawn = picture.read_text(encoding="utf-8")
    for name in ("forecast 0", "forecast 1", "measured 0", "measured 1"):
        assert drawn.count(f">{name}<") == 1
    assert "forecast: bubble ratio 25.0%" in capsys.readouterr().out
