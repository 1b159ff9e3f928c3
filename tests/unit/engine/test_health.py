# SPDX-License-Identifier: Apache-2.0
"""A step that makes NaN or infinity is named, ends the run or marks its checkpoints. One rank."""

import re

import numpy as np
import pytest
from run_builder import open_run, trained

from mindspeed_ms.backend import memory
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine import health, train_loop
from mindspeed_ms.engine.errors import RunFailure
from mindspeed_ms.formats import own_format
from mindspeed_ms.formats.containers import storage

WEIGHT = "language_model.encoder.layers.3.mlp.projection.weight"
GO_ON = ("--no-check-for-nan-in-loss-and-grad", "--logging-level", "20")
LONG = ("--train-iters", "6")


def values(run, name=WEIGHT):
    (param,) = (p for n, p in named_parameters(run.model[0].module) if n == name)
    return memory.flat_view(param).reshape(-1)


NORM = "language_model.encoder.layers.3.post_attention_norm.weight"
"""3e38 is a number, but its product with a normalized activation is none."""


def spoilt(*flags, value=np.nan, after=1, name=WEIGHT):
    """A run whose weight is spoilt after an iteration; its steps, and how it ended."""
    run, steps = open_run(*LONG, *flags)
    with run:
        run.train(after)
        values(run, name)[5] = value
        run.train()
    return steps


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_weight_ends_the_run_and_is_named(value):
    with pytest.raises(RunFailure) as failure:
        spoilt(value=value)
    text = str(failure.value)
    assert text.startswith("iteration 2: ") and f"first in rank 0: weight {WEIGHT};" in text
    assert "--no-check-for-nan-in-loss-and-grad" in text


def test_an_activation_that_overflows_is_named():
    with pytest.raises(RunFailure) as failure:
        spoilt("--attention-dropout", "0.1", value=3e38, name=NORM)
    text = str(failure.value)
    assert "iteration 2: lm loss is nan, first in rank 0: output of " in text
    assert re.search(r"encoder\.layers\.3\.post_attention_norm in micro-batch 1;", text), text


@pytest.fixture
def bad_gradient(monkeypatch):
    """Let the gradients of an iteration hold a value, as a fault of the hardware would."""

    def install(value, iteration):
        original, done = train_loop.finalize_model_grads, []

        def finalize(models):
            done.append(None)
            if len(done) == iteration:
                memory.flat_view(models[0].buffers[0].grads.flat)[7] = value
            return original(models)

        monkeypatch.setattr(train_loop, "finalize_model_grads", finalize)

    return install


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf")])
def test_a_gradient_that_no_forward_shows_is_named(bad_gradient, value, shown):
    bad_gradient(value, 3)
    with pytest.raises(RunFailure, match=f"iteration 3: the norm of the gradients is {shown}, "):
        trained(*LONG)
    bad_gradient(value, 3)
    with pytest.raises(RunFailure, match="first in rank 0: gradient of language_model.output_lay"):
        trained(*LONG)


def test_the_run_stops_before_the_weights_change(bad_gradient):
    bad_gradient(np.nan, 3)
    run, _ = open_run(*LONG)
    run.train(2)
    before = values(run).copy()
    with pytest.raises(RunFailure):
        run.train()
    assert (values(run) == before).all()
    assert run.state.iteration == 2
    run.close()


def test_a_run_that_goes_on_says_so_once_and_marks_its_checkpoints(tmp_path, capsys):
    save = ("--save", str(tmp_path), "--save-interval", "1", "--keep-checkpoint-max", "2")
    losses = spoilt(*GO_ON, *save, after=3)
    assert len(losses) == 6 and np.isnan(losses[-1][0])
    text = capsys.readouterr().out
    assert text.count("the run goes on") == 1
    assert f"iteration 4: lm loss is nan, first in rank 0: weight {WEIGHT}" in text
    assert storage.complete_iterations(tmp_path) == [3, 5, 6]
    marks = {
        number: own_format.read_index(storage.iteration_folder(tmp_path, number))["unhealthy"]
        for number in (3, 5, 6)
    }
    assert marks[3] is None and marks[5].startswith("iteration 4: lm loss is nan")
    assert marks[6] == marks[5]
    assert storage.read_latest(tmp_path) == 3

    again, steps = open_run(*LONG, "--load", str(tmp_path), *save, "--logging-level", "20")
    with again:
        assert again.state.iteration == 3
        again.train()
    assert np.isfinite(steps).all() and len(steps) == 3
    assert "iterations 5, 6 are passed over" in capsys.readouterr().out
    assert storage.read_latest(tmp_path) == 6
    assert 3 in storage.complete_iterations(tmp_path)


def test_the_newest_sound_checkpoint_is_taken_without_a_marker(tmp_path, capsys):
    save = ("--save", str(tmp_path), "--save-interval", "1")
    spoilt(*GO_ON, *save, after=2)
    (tmp_path / storage.LATEST).unlink()
    run, _ = open_run(*LONG, "--load", str(tmp_path), "--logging-level", "20")
    with run:
        assert run.state.iteration == 2
    assert "iterations 3, 4, 5, 6 are passed over" in capsys.readouterr().out
    run, _ = open_run(*LONG, "--load", str(tmp_path), "--ckpt-step", "5", *GO_ON)
    with run:
        assert run.state.iteration == 5
    assert "it was named" in capsys.readouterr().out
    for number in (1, 2):
        (storage.iteration_folder(tmp_path, number) / storage.INDEX).unlink()
    with pytest.raises(ValueError, match="holds only checkpoints saved after a step with NaN"):
        open_run(*LONG, "--load", str(tmp_path))


def test_a_weight_that_nobody_noticed_is_noticed_when_it_is_saved(tmp_path):
    run, _ = open_run(*LONG, "--save", str(tmp_path), "--save-interval", "100")
    with run:
        run.train(2)
        values(run)[5] = np.inf
        run.save()
    index = own_format.read_index(storage.iteration_folder(tmp_path, 2))
    assert index["unhealthy"] == "weights are no numbers at iteration 2"


def test_an_event_that_leaves_no_trace_marks_only_its_own_checkpoint(tmp_path, bad_gradient):
    """A norm that overflows fp32: clipping takes the gradients to 0."""
    save = ("--save", str(tmp_path), "--save-interval", "1", *GO_ON)
    bad_gradient(1e200, 3)  # inf in fp32, which clipping turns into NaN
    trained(*LONG, *save)
    marks = [
        own_format.read_index(storage.iteration_folder(tmp_path, number))["unhealthy"] is None
        for number in range(1, 7)
    ]
    assert marks == [True, True, False, False, False, False]


def test_overflows_of_fp16_are_events_when_they_do_not_end(monkeypatch, capsys):
    monkeypatch.setattr(health, "ENDLESS_SKIPS", 3)
    fp16 = ("--fp16", "--initial-loss-scale", "4294967296", "--logging-level", "20")
    steps = trained(*LONG, *fp16)
    assert [norm for _, norm in steps] == [None] * 6
    text = capsys.readouterr().out
    assert "iteration 3: the last 3 steps were skipped" in text
    assert "iteration 6: the last 6 steps were skipped, and the loss scale is" in text
    assert "gradients overflow all the same, first in rank 0: gradient of language_model" in text
    with pytest.raises(RunFailure, match="iteration 3: the last 3 steps were skipped"):
        trained(*LONG, *fp16, "--loss-scale", "4294967296")


def test_a_few_overflows_are_no_event(capsys):
    trained(*LONG, "--fp16", "--initial-loss-scale", "4294967296", "--logging-level", "20")
    assert "steps were skipped" not in capsys.readouterr().out
