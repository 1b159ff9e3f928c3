# SPDX-License-Identifier: Apache-2.0
"""Flags of the training loop by what they do to a run. One rank."""

import numpy as np
import pytest
from run_builder import configuration, open_run, trained

from mindspeed_ms.backend import memory
from mindspeed_ms.engine.batch_counts import num_samples, phase
from mindspeed_ms.engine.train_state import TrainState

SIZES = ("--train-iters", "4", "--global-batch-size", "2", "--micro-batch-size", "1")
KEPT = ("--save-interval", "2", "--no-save-rng", "--log-interval", "1")


def test_a_skipped_iteration_reads_its_samples_and_does_nothing_else(capsys):
    run, steps = open_run(*SIZES, "--iterations-to-skip", "2", "3", "--log-interval", "1")
    with run:
        state = run.train()
        assert (state.iteration, state.consumed_train_samples) == (4, 8)
        assert run._setup.optimizer.num_steps == 2
        assert run._setup.scheduler.num_steps == 4  # samples trained on
    whole = trained(*SIZES)
    assert steps[0] == whole[0] and len(steps) == 2 and steps[1] != whole[1] != whole[3]
    lines = [line for line in capsys.readouterr().out.splitlines() if " iteration " in line]
    assert [int(line.split("iteration")[1].split("/")[0]) for line in lines[:2]] == [1, 4]


def test_a_run_stops_between_phases_and_goes_on_at_the_beginning_of_other_data(tmp_path):
    flags = (*SIZES, *KEPT, "--save", str(tmp_path), "--phase-transition-iterations", "3,2")
    seen = []
    for last in (2, 3, 4):
        load = ("--load", str(tmp_path)) if last > 2 else ()
        run, steps = open_run(*flags, *load)
        with run:
            state = run.train()
            seen.append((state.iteration, state.data_began_at, len(steps)))
            reason = run.stop_reason
        assert reason == (f"exiting program at iteration {last}" if last < 4 else None)
    assert seen == [(2, 0, 2), (3, 4, 1), (4, 6, 1)]


def test_a_phase_has_as_many_samples_as_it_trains_on(capsys):
    config = configuration(*SIZES, "--phase-transition-iterations", "1,3")
    assert [num_samples(config, TrainState(at, 2 * at, 0, phase(config, TrainState(at))[0]))[0]
            for at in (0, 1, 2, 3)] == [2, 4, 4, 2]  # fmt: skip
    with pytest.raises(SystemExit):
        configuration("--phase-transition-iterations", "2;3")
    assert "'2;3' is no list of iterations; write it like 1000,2000" in capsys.readouterr().err


def test_master_weights_come_from_the_checkpoint_itself(tmp_path):
    trained(*SIZES, *KEPT, "--save", str(tmp_path))
    flags = (*SIZES, "--bf16", "--load", str(tmp_path), "--no-load-optim", "--no-load-rng")
    masters = []
    for more in ((), ("--load-main-params-from-ckpt",)):
        run, _ = open_run(*flags, *more)
        with run:
            parts = [one for one in run._setup.optimizer.state_parts()
                     if "FLOAT16" in str(one.param.dtype).upper()]  # fmt: skip
            main = np.concatenate([memory.as_numpy(part.main_param).ravel() for part in parts])
            masters.append(main.copy())
    rounded, exact = masters
    assert not np.array_equal(rounded, exact)
    assert not (rounded.view(np.uint32) & 0xFFFF).any() and (exact.view(np.uint32) & 0xFFFF).any()
    assert np.allclose(rounded, exact, rtol=2**-8)


def test_an_evaluation_has_micro_batches_of_its_own():
    flags = (*SIZES, "--eval-iters", "2", "--eval-interval", "4", "--eval-global-batch-size", "8")
    shapes, results = [], []
    for size in ("1", "4"):
        run, _ = open_run(*flags, "--eval-micro-batch-size", size)
        with run:
            (valid,) = run._data.valid
            shapes.append((valid.num_microbatches, next(valid.iterator)["tokens"].shape[0]))
            results.append(run.evaluate()[0]["lm loss"])
    assert shapes == [(16, 1), (4, 4)]
    with pytest.raises(ValueError, match=r"eval_global_batch_size \(2\) must be divisible by its"):
        configuration(*SIZES, "--eval-micro-batch-size", "4").validate(1)


def test_pretrained_weights_are_taken_until_the_run_has_its_own(tmp_path, capsys):
    first, own = tmp_path / "first", tmp_path / "own"
    base = trained(*SIZES, *KEPT, "--save", str(first))
    flags = (*SIZES, *KEPT, "--save", str(own), "--load", str(own))
    capsys.readouterr()
    tuned = trained(*flags, "--pretrained-checkpoint", str(first), "--exit-interval", "2")
    assert "holds no checkpoint; the weights of" in capsys.readouterr().out
    assert len(tuned) == 2 and tuned[0] != base[0]
    finetuned = trained(*SIZES, "--load", str(first), "--finetune", "--train-iters", "2")
    assert tuned == finetuned
    continued = trained(*flags, "--pretrained-checkpoint", str(first))
    assert len(continued) == 2 and "the weights of" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds no checkpoint to load"):
        open_run(*SIZES, "--pretrained-checkpoint", str(tmp_path / "nothing"))


def test_a_run_goes_on_at_another_iteration_of_the_same_weights(tmp_path):
    flags = (*SIZES, *KEPT, "--save", str(tmp_path))
    whole = trained(*flags)
    run, steps = open_run(*flags, "--load", str(tmp_path), "--override-ckpt-iteration", "1")
    with run:
        assert (run.state.iteration, run.state.consumed_train_samples) == (1, 2)
        run.train()
    assert len(steps) == 3 and steps[0] != whole[1]  # sample 2 again, with later weights
