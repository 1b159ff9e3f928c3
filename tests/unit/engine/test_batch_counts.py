# SPDX-License-Identifier: Apache-2.0
"""How long a run is and what it reads, from its beginning and from where it stands. One rank."""

import pytest
from run_builder import configuration

from mindspeed_ms.engine.batch_counts import (
    evaluated_samples,
    nothing_to_train,
    num_samples,
    num_train_iters,
)
from mindspeed_ms.engine.train_state import TrainState

EVAL = ("--eval-iters", "2", "--eval-interval", "2")
RAMP = ("--train-samples", "64", "--rampup-batch-size", "2", "2", "12", "--global-batch-size", "8")
"""3 increments over 12 samples: 2 2, 4 4 after 4 samples, then 8 from sample 12 on."""


def test_a_growing_batch_is_evaluated_as_often_as_it_has_iterations():
    config = configuration(*EVAL, *RAMP)
    # 2, 2, 4, 6: 14 samples in 4 steps, then 50 more last 6 steps of 8.
    assert num_train_iters(config, TrainState()) == 4 + 6
    assert num_samples(config, TrainState()) == (64, (10 // 2 + 1) * 2 * 8, 16)


def test_iterations_count_where_they_are_given():
    config = configuration("--train-iters", "7", *EVAL)
    assert num_train_iters(config, TrainState(3, 24)) == 7
    assert num_samples(config, TrainState()) == (56, 4 * 16, 16)
    assert num_samples(config, TrainState(3, 24, 16)) == (56, 4 * 16, 16)


def test_full_validation_reads_what_there_is():
    config = configuration("--train-iters", "7", "--full-validation", *EVAL)
    assert num_samples(config, TrainState()) == (56, None, 16)


@pytest.mark.parametrize(
    ("batch", "state", "last", "samples"),
    [
        ("8", TrainState(4, 16), 6, 32),  # 4 steps of 4, then 2 of 8
        ("4", TrainState(2, 16), 6, 32),  # 2 steps of 8, then 4 of 4
        ("4", TrainState(8, 32), 8, 32),
        ("8", TrainState(7, 28), 7, 32),
    ],
)
def test_another_batch_size_uses_what_is_left(batch, state, last, samples):
    config = configuration("--train-samples", "32", "--global-batch-size", batch)
    assert num_train_iters(config, state) == last
    assert num_samples(config, state)[0] == samples


def test_a_smaller_batch_needs_the_samples_of_the_larger_one():
    config = configuration("--train-iters", "10", "--global-batch-size", "4")
    assert num_samples(config, TrainState(5, 40))[0] == 40 + 5 * 4


def test_stages_take_their_last_step_whole():
    config = configuration("--train-samples", "41", "--step-batch-size-schedule", "0:2 192:4")
    assert num_train_iters(config, TrainState()) == 6 + 8  # 12 samples by 2, 29 by 4
    assert num_samples(config, TrainState())[0] == 12 + 8 * 4
    assert num_train_iters(config, TrainState(8, 20)) == 8 + 6


def test_new_data_is_as_long_as_what_is_left():
    config = configuration("--train-iters", "7")
    assert num_samples(config, TrainState(3, 24, 0, 24))[0] == 32


def test_a_run_that_would_do_nothing_says_so():
    iterations = configuration("--train-iters", "7")
    assert nothing_to_train(iterations, TrainState(6, 48)) is None
    assert "stands at iteration 7 of 7; raise --train-iters" in nothing_to_train(
        iterations, TrainState(7, 56)
    )
    samples = configuration("--train-samples", "32", "--global-batch-size", "8")
    assert nothing_to_train(samples, TrainState(6, 24)) is None
    assert nothing_to_train(samples, TrainState(7, 28)) == (
        "nothing to train: 28 of 32 samples are consumed, and 4 make no batch of 8; raise "
        "--train-samples or lower the batch size"
    )


def test_an_evaluation_has_a_batch_of_its_own():
    config = configuration("--train-iters", "7", *EVAL, "--eval-global-batch-size", "4")
    assert num_samples(config, TrainState()) == (56, 4 * 8, 8)
    assert evaluated_samples(config, 5) == 2 * 8
    with pytest.raises(ValueError, match=r"eval_global_batch_size \(3\) must be divisible by"):
        configuration("--micro-batch-size", "2", "--eval-global-batch-size", "3").validate(1)
