# SPDX-License-Identifier: Apache-2.0
"""Looks on request: each is provoked. One rank."""

import math

import numpy as np
import pytest
from run_builder import open_run, trained
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mindspeed_ms.backend import memory
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine.observe.diagnostics import FACTOR, Sudden, straggler_lines

ALL = (
    *("--check-for-spiky-loss", "--check-for-large-grads", "--log-max-attention-logit"),
    *("--log-params-norm-per-layer", "--log-straggler"),
)


def spoil(run, factor, *parts):
    """Multiply the parameters whose names hold one of the parts, main ones included."""
    for chunk in run.model:
        for name, param in named_parameters(chunk.module):
            if any(part in name for part in parts):
                memory.flat_view(param)[...] *= factor


def after_two(*flags, factor, parts):
    """Three iterations; before the third some weights are spoilt. What the reports say."""
    reports = []
    run, _ = open_run(*flags, on_step=reports.append)
    with run:
        run.train(2)
        spoil(run, factor, *parts)
        run.train()
    return reports


def test_a_sudden_value_is_told_and_does_not_become_usual():
    sudden = Sudden()
    assert [sudden.usual(value) for value in (1.0, 2.0, 19.0, FACTOR * 2.0)] == [None] * 4
    assert sudden.usual(201.0) == 20.0 and sudden.usual(201.0) == 20.0
    assert sudden.usual(math.nan) is None and sudden.usual(200.0) is None


def test_a_spiky_loss_names_the_micro_batch(capsys):
    after_two("--check-for-spiky-loss", factor=1e4, parts=("output_layer", "word_embeddings"))
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "lm loss is" in x]
    assert line.startswith("[rank 0] WARNING: iteration 3: lm loss is ")
    assert "the largest of the iterations before was 4.2" in line
    assert "most of all in micro-batch" in line and "of rank 0" in line


def test_large_gradients_name_the_parameter(capsys):
    after_two("--check-for-large-grads", factor=1e3, parts=("output_layer",))
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "norm of the gradients" in x]
    assert line.startswith("[rank 0] WARNING: iteration 3: the norm of the gradients is ")
    assert "most of all " in line and "weight" in line


def test_a_usual_run_is_told_nothing_about(capsys):
    trained("--check-for-spiky-loss", "--check-for-large-grads")
    assert "WARNING" not in capsys.readouterr().out


def test_the_largest_attention_score_follows_the_weights(tmp_path):
    parts = ("qkv", "query_key_value", "q_proj")
    flags = ("--log-max-attention-logit", "--tensorboard-dir", str(tmp_path))
    first, second, third = (
        report.max_attention_logit for report in after_two(*flags, factor=10.0, parts=parts)
    )
    assert np.isfinite([first, second]).all() and third > 50 * max(abs(first), abs(second))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    values = [point.value for point in events.Scalars("max_attention_logit")]
    np.testing.assert_allclose(values, [first, second, third], rtol=1e-6)


def test_norms_of_layers_make_up_the_whole_norm(tmp_path, capsys):
    trained(
        *("--log-params-norm-per-layer", "--log-params-norm", "--log-interval", "3"),
        *("--tensorboard-dir", str(tmp_path)),
    )
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("params-norm/")]
    assert len([tag for tag in tags if "layers." in tag]) == 8
    total = math.sqrt(sum(events.Scalars(tag)[-1].value ** 2 for tag in tags))
    assert total == pytest.approx(events.Scalars("params-norm")[-1].value, rel=1e-5)
    assert "params norm by layer at iteration 3" in capsys.readouterr().out


def test_a_straggler_report_names_the_ends():
    lines = straggler_lines(7, [("a", 0.1, 0.3), ("b", 0.4, 0.0), ("b", 0.2, 0.2)], 1)
    assert lines[0] == "straggler report at iteration 7 (ms per iteration)"
    assert lines[2] == (
        "  rank 1 (b): computing 400.0, waiting for others and for data on its way 0.0"
    )
    assert lines[-2:] == [
        "  slowest: rank 1 (+100.0% of the median)",
        "  fastest: rank 0 (-50.0% of the median)",
    ]


def test_looks_change_no_number():
    assert trained(*ALL) == trained()


def test_one_rank_gets_a_straggler_report_too(capsys):
    trained("--log-straggler", "--log-interval", "3")
    assert "slowest: rank 0 (+0.0% of the median)" in capsys.readouterr().out
