# SPDX-License-Identifier: Apache-2.0
"""A run is opened, used and closed, and leaves nothing behind. One rank."""

import gc
import signal
import threading
import weakref

import numpy as np
import pytest
from run_builder import configuration, open_run, provider, traces, trained

from mindspeed_ms.backend import memory
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.num_microbatches_calculator import get_num_microbatches
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine.run import Run

DROPOUT = ("--attention-dropout", "0.1", "--hidden-dropout", "0.1")
OTHER = ("--num-layers", "2", "--global-batch-size", "4", "--seed", "5", "--seq-length", "8")
EVALUATED = ("--eval-iters", "1", "--eval-interval", "2", "--num-workers", "2")


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch, tmp_path):
    """Temporary files of this process go where nobody else makes some."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def before():
    """What is there before a run; collected garbage must not count."""
    trained(*OTHER)  # what is made once per process
    gc.collect()
    return traces()


def test_a_run_repeats_itself_whatever_came_between():
    first = trained(*DROPOUT)
    other = trained(*OTHER, style="gpt2")
    assert trained(*DROPOUT) == first
    assert trained(*OTHER, style="gpt2") == other
    assert other != first


def test_a_closed_run_leaves_nothing(before, tmp_path):
    flags = ("--save", str(tmp_path / "a"), "--save-interval", "1", "--async-save")
    more = ("--exit-signal-handler", "--pipeline-timeline", str(tmp_path / "timeline.json"))
    run, steps = open_run(*DROPOUT, *EVALUATED, *flags, *more)
    with run:
        run.train()
        run.evaluate()
        run.evaluate("test")
    assert len(steps) == 3 and (tmp_path / "timeline.json").is_file()
    assert traces() == before


class Stop(Exception):
    """Raised by a user's own function."""


def stop(step):
    if step.iteration == 2:
        raise Stop


@pytest.mark.parametrize("save", [(), ("--async-save",)], ids=["", "async"])
def test_a_run_that_fails_leaves_nothing(before, tmp_path, save):
    expected = trained(*DROPOUT)
    flags = (*EVALUATED, "--save", str(tmp_path / "a"), "--save-interval", "1", *save)
    with pytest.raises(Stop) as failure:  # its traceback keeps the frames alive, as notebooks do
        trained(*DROPOUT, *flags, "--exit-signal-handler", on_step=stop)
    assert traces() == before
    assert failure.tb is not None
    assert not list((tmp_path / "a").glob("*/*.partial"))
    assert trained(*DROPOUT) == expected


def refuse(pre_process, post_process):
    provider(pre_process, post_process)
    raise Stop


def test_a_run_that_cannot_be_opened_leaves_nothing(before, tmp_path):
    with pytest.raises(Stop):
        open_run(*DROPOUT, model_provider=refuse)
    assert traces() == before
    with pytest.raises(ValueError, match="holds no checkpoint"):
        open_run("--load", str(tmp_path / "nowhere"), "--exit-on-missing-checkpoint")
    assert traces() == before


def test_signals_do_what_they_did_before(tmp_path):
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda *_: seen.append("ours"))
    try:
        run, steps = open_run(
            "--exit-signal-handler",
            on_step=lambda step: signal.raise_signal(signal.SIGTERM) if not seen else None,
        )
        with run:
            run.train()
            assert len(steps) == 1 and "SIGTERM" in run.stop_reason
            assert not seen
        signal.raise_signal(signal.SIGTERM)
        assert seen == ["ours"]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_two_runs_alive_at_once_do_not_meet():
    one, other = trained(*DROPOUT), trained(*OTHER, *DROPOUT, style="gpt2")
    first, first_steps = open_run(*DROPOUT)
    second, second_steps = open_run(*OTHER, *DROPOUT, style="gpt2")
    for _ in range(3):
        first.train(1)
        second.train(1)
        with first.active():
            assert get_num_microbatches() == 8
        with second.active():
            assert get_num_microbatches() == 4
    first.close()
    second.close()
    assert (first_steps, second_steps) == (one, other)


def test_outside_of_its_methods_a_run_is_not_seen():
    run, _ = open_run()
    with run:
        assert not parallel_state.model_parallel_is_initialized()
        with run.active():
            assert parallel_state.get_pipeline_model_parallel_world_size() == 1
            with run.active():
                assert parallel_state.model_parallel_is_initialized()
        assert not parallel_state.model_parallel_is_initialized()


def test_training_goes_on_where_it_stopped():
    run, steps = open_run(*DROPOUT)
    with run:
        assert run.train(1).iteration == 1
        assert run.train().iteration == 3
        assert run.train().iteration == 3
    assert steps == trained(*DROPOUT)


def test_evaluation_returns_the_losses_and_saving_is_asked_for(tmp_path):
    run, _ = open_run(*EVALUATED)
    with run:
        (losses,) = run.evaluate()
        assert losses["lm loss"] > 3.0
        with pytest.raises(ValueError, match="keeps no checkpoints; set save_checkpoints"):
            run.save()
    run, _ = open_run("--save", str(tmp_path), "--save-interval", "100")
    with run:
        run.train(2)
        assert not list(tmp_path.glob("iter_*"))
        run.save()
        assert [path.name for path in tmp_path.glob("iter_*")] == ["iter_0000002"]
    run, steps = open_run("--load", str(tmp_path))
    with run:
        run.train()
    assert steps == trained()[2:]


def test_a_closed_run_says_so_and_its_model_lives_on():
    run, _ = open_run()
    with run:
        run.train(1)
    run.close()
    for use in (run.train, run.evaluate, run.save):
        with pytest.raises(RuntimeError, match="the run is closed; open a new one"):
            use()
    assert run.state.iteration == 1
    (chunk,) = run.model
    values = [memory.as_numpy(param) for _, param in named_parameters(chunk.module)]
    assert values and all(np.isfinite(value).all() for value in values)


def test_a_closed_run_is_forgotten():
    run, _ = open_run()
    with run:
        run.train(1)
    seen = [weakref.ref(run.model[0]), weakref.ref(run.model[0].module)]
    del run
    gc.collect()
    assert [one() for one in seen] == [None, None]


class Rows:
    """A user's loader with a thread of its own, for several runs."""

    def __init__(self):
        self.is_closed = False
        self.started = 0

    def __iter__(self):
        self.started += 1
        done = threading.Event()
        thread = threading.Thread(target=done.wait, name="users-thread")
        thread.start()
        try:
            for row in range(1000):
                yield {"input_ids": np.full((1, 17), row % 60)}
        finally:
            done.set()
            thread.join()

    def close(self):
        self.is_closed = True


def test_a_users_loader_serves_run_after_run(before):
    loader = Rows()
    for number in (1, 2):
        with Run(configuration(), provider, train_data_loader=loader) as run:
            run.train()
        assert loader.started == number and not loader.is_closed
        assert traces() == before
