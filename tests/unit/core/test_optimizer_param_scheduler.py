# SPDX-License-Identifier: Apache-2.0
"""Learning-rate and weight-decay schedules against Megatron's own numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mindspeed_ms.config import OptimizerConfig, TrainingConfig
from mindspeed_ms.core.optimizer.optimizer_param_scheduler import (
    OptimizerParamScheduler,
    ParamSchedule,
    ParamValues,
    make_param_schedule,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "data/golden_config.json").read_text())
COSINE = ParamSchedule(
    max_lr=1e-3, min_lr=1e-4, lr_warmup_steps=10, lr_decay_steps=100, lr_decay_style="cosine"
)


def test_cosine_reproduces_the_golden_points():
    golden = [0, 1e-3, 9.72862e-4, 8.9472e-4, 7.75e-4, 6.28142e-4, 4.71858e-4, 3.25e-4]
    golden += [2.0528e-4, 1.27138e-4, 1e-4]
    got = [COSINE.lr_at(step) for step in range(0, 101, 10)]
    assert got == pytest.approx(golden, abs=5e-10)  # printed with six digits
    assert COSINE.lr_at(101) == 1e-4


def test_wsd_exponential_reproduces_the_golden_point():
    schedule = replace(
        COSINE,
        min_lr=0.0,
        lr_decay_style="WSD",
        wsd_decay_steps=20,
        lr_wsd_decay_style="exponential",
    )
    assert schedule.lr_at(90) == pytest.approx(4.14214e-4, abs=5e-10)
    assert schedule.lr_at(80) == 1e-3
    assert schedule.lr_at(100) == pytest.approx(0.0, abs=1e-18)


def test_wsd_without_a_last_part_stays_up():
    schedule = replace(COSINE, lr_decay_style="WSD", wsd_decay_steps=0)
    assert [schedule.lr_at(step) for step in (10, 99, 100, 101)] == [1e-3, 1e-3, 1e-3, 1e-4]


@pytest.mark.parametrize(
    ("style", "at_90"),
    [("linear", 0.5), ("cosine", 0.5), ("minus_sqrt", 1 - 0.5**0.5)],
)
def test_wsd_styles_halfway_through_the_last_part(style, at_90):
    schedule = replace(
        COSINE, min_lr=0.0, lr_decay_style="WSD", wsd_decay_steps=20, lr_wsd_decay_style=style
    )
    assert schedule.lr_at(90) == pytest.approx(1e-3 * at_90)


@pytest.mark.parametrize(
    ("style", "step", "expected"),
    [
        ("constant", 500, 1e-3),
        ("linear", 55, 1e-4 + 0.5 * 9e-4),
        ("inverse-square-root", 40, 1e-3 * 10**0.5 / 40**0.5),
        ("inverse-square-root", 100, 1e-3 * 10**0.5 / 10.0),
        ("inverse-square-root", 101, 1e-4),
        ("linear", 0, 0.0),
    ],
)
def test_other_styles(style, step, expected):
    assert replace(COSINE, lr_decay_style=style).lr_at(step) == pytest.approx(expected)


def test_inverse_square_root_never_falls_below_the_minimum():
    schedule = replace(COSINE, min_lr=9e-4, lr_decay_style="inverse-square-root")
    assert schedule.lr_at(90) == 9e-4


def test_warmup_starts_at_init_lr():
    schedule = replace(COSINE, init_lr=5e-4)
    assert schedule.lr_at(0) == 5e-4
    assert schedule.lr_at(5) == pytest.approx(7.5e-4)


def test_a_group_may_have_its_own_bounds():
    scheduler = OptimizerParamScheduler(COSINE)
    assert scheduler.get_lr(10, max_lr=5e-3, min_lr=1e-3) == 5e-3
    assert scheduler.get_lr(101, max_lr=5e-3, min_lr=1e-3) == 1e-3


@pytest.mark.parametrize("kind", ["hot", "cold"])
def test_golden_runs_to_the_last_bit(kind):
    expected = GOLDEN["learning_rate"][kind]
    iters = len(expected)
    optimizer = OptimizerConfig(
        learning_rate=5e-3 if kind == "hot" else 1e-3,
        min_lr=1e-4,
        lr_decay_style="cosine",
        lr_decay_iters=iters,
        lr_warmup_iters=5,
        weight_decay=0.1,
    )
    scheduler = OptimizerParamScheduler.from_config(
        TrainingConfig(training_iters=iters), optimizer, global_batch_size=8
    )
    assert scheduler.values() == ParamValues(0.0, 0.1)
    assert [scheduler.step(8).learning_rate for _ in range(iters)] == expected
    assert scheduler.num_steps == 8 * iters


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("linear", [0.0, 0.05, 0.1, 0.1]),
        ("cosine", [0.0, 0.05, 0.1, 0.1]),
        ("constant", [0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_weight_decay_ramp(style, expected):
    schedule = replace(
        COSINE,
        start_wd=0.1 if style == "constant" else 0.0,
        end_wd=0.1,
        wd_incr_steps=100,
        wd_incr_style=style,
    )
    scheduler = OptimizerParamScheduler(schedule)
    assert [scheduler.get_wd(step) for step in (0, 50, 100, 200)] == pytest.approx(expected)


def test_lengths_in_samples_and_fraction():
    optimizer = OptimizerConfig(
        lr_decay_style="WSD",
        lr_wsd_decay_samples=100,
        lr_decay_samples=800,
        lr_warmup_fraction=0.1,
    )
    schedule = make_param_schedule(TrainingConfig(train_samples=1000), optimizer, 8)
    assert (schedule.lr_decay_steps, schedule.lr_warmup_steps) == (800, 80.0)
    assert (schedule.wsd_decay_steps, schedule.wd_incr_steps) == (100, 1000)


def test_lengths_in_iterations_become_samples():
    optimizer = OptimizerConfig(
        lr_decay_style="WSD", lr_wsd_decay_iters=3, lr_wsd_decay_style="linear", lr_warmup_iters=2
    )
    schedule = make_param_schedule(TrainingConfig(training_iters=10), optimizer, 8)
    assert (schedule.lr_warmup_steps, schedule.lr_decay_steps) == (16, 80)
    assert (schedule.wsd_decay_steps, schedule.wd_incr_steps) == (24, 80)


def test_constant_rate_needs_no_length():
    schedule = make_param_schedule(TrainingConfig(), OptimizerConfig(lr_warmup_iters=2), 8)
    assert schedule.lr_at(10**9) == 1e-3


# --- checkpoints


def test_state_goes_round():
    scheduler = OptimizerParamScheduler(COSINE)
    scheduler.step(37)
    other = OptimizerParamScheduler(COSINE)
    assert other.load_state_dict(scheduler.state_dict()) == scheduler.values()
    assert other.num_steps == 37


def test_a_different_schedule_is_refused():
    state = {**OptimizerParamScheduler(COSINE).state_dict(), "num_steps": 20}
    own = OptimizerParamScheduler(replace(COSINE, max_lr=2e-3))
    with pytest.raises(ValueError, match="max_lr is 0.002, but the checkpoint .* 0.001"):
        own.load_state_dict(state)
    assert own.num_steps == 0


def test_use_checkpoint_takes_the_stored_schedule():
    state = {**OptimizerParamScheduler(COSINE).state_dict(), "num_steps": 20}
    own = OptimizerParamScheduler(
        replace(COSINE, max_lr=2e-3), use_checkpoint_opt_param_scheduler=True
    )
    assert own.load_state_dict(state).learning_rate == COSINE.lr_at(20)


def test_override_keeps_the_configured_schedule():
    state = {**OptimizerParamScheduler(COSINE).state_dict(), "num_steps": 20}
    mine = replace(COSINE, max_lr=2e-3)
    own = OptimizerParamScheduler(mine, override_opt_param_scheduler=True)
    assert own.load_state_dict(state).learning_rate == mine.lr_at(20)


def test_old_names_in_a_checkpoint_are_understood():
    state = {
        "start_lr": 1e-3,
        "warmup_iter": 10,
        "end_iter": 100,
        "decay_style": "cosine",
        "min_lr": 1e-4,
        "num_iters": 50,
    }
    own = OptimizerParamScheduler(COSINE)
    assert own.load_state_dict(state).learning_rate == COSINE.lr_at(50)


def test_state_without_a_position_is_refused():
    with pytest.raises(ValueError, match="has no num_steps"):
        OptimizerParamScheduler(COSINE).load_state_dict({"max_lr": 1e-3})


# --- wrong settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_lr": 2e-3}, "min_lr .* must lie between 0 and"),
        ({"init_lr": 2e-3}, "lr_warmup_init .* must not exceed"),
        ({"lr_decay_steps": 0}, "decays over 0 samples"),
        ({"lr_warmup_steps": 100}, "warm-up .* must be shorter"),
        ({"start_wd": 0.2, "end_wd": 0.1}, "weight decay must go"),
        ({"lr_decay_style": "WSD"}, "WSD needs the length"),
        ({"end_wd": 0.1}, "its style is constant"),
    ],
)
def test_wrong_schedules_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(COSINE, **change)


def test_use_and_override_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        OptimizerParamScheduler(COSINE, True, True)


def test_a_decaying_rate_needs_a_length():
    with pytest.raises(ValueError, match="decays over 0 samples"):
        make_param_schedule(TrainingConfig(), OptimizerConfig(lr_decay_style="cosine"), 8)
