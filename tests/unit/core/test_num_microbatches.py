# SPDX-License-Identifier: Apache-2.0
"""Number of micro-batches under constant, ramping and stepped global batches."""

import pytest

from mindspeed_ms.core import num_microbatches_calculator as calculator
from mindspeed_ms.core.num_microbatches_calculator import (
    ConstantBatch,
    NumMicroBatches,
    RampupBatch,
    StepBatch,
    make_batch_schedule,
)


@pytest.fixture(autouse=True)
def _fresh_calculator():
    calculator.destroy_num_microbatches_calculator()
    yield
    calculator.destroy_num_microbatches_calculator()


def test_constant():
    batches = NumMicroBatches(ConstantBatch(16), micro_batch_size=2, data_parallel_size=2)
    assert (batches.num_micro_batches, batches.running_global_batch_size) == (4, 16)
    batches.update(10**9)
    assert batches.num_micro_batches == 4
    assert batches.iterations_for(100) == 6


def test_rampup_grows_in_equal_stages():
    # 8 -> 32 by 8: three increments over 100 samples, each 33.33 samples wide
    schedule = RampupBatch(start=8, increment=8, samples=100, global_batch_size=32)
    sizes = [schedule.size_at(consumed) for consumed in (0, 33, 34, 66, 67, 99, 100, 101)]
    assert sizes == [8, 8, 16, 16, 24, 24, 32, 32]


def test_rampup_in_steps_of_training():
    schedule = RampupBatch(start=8, increment=8, samples=64, global_batch_size=24)
    batches = NumMicroBatches(schedule, micro_batch_size=4, data_parallel_size=2)
    consumed, counts = 0, []
    for _ in range(8):
        batches.update(consumed)
        counts.append(batches.num_micro_batches)
        consumed += batches.running_global_batch_size
    assert counts == [1, 1, 1, 1, 2, 2, 3, 3]
    # 4 × 8 + 2 × 16 = 64 samples in 6 steps; 136 more last 5 steps of 24
    assert batches.iterations_for(200) == 11
    assert batches.iterations_for(20) == 2


def test_rampup_without_growth_is_constant():
    assert RampupBatch(8, 8, 100, 8).size_at(0) == 8
    assert RampupBatch(8, 8, 0, 16).size_at(0) == 16


def test_step_schedule_in_tokens():
    schedule = StepBatch.from_text("0:16 1.5K:32 1M:64", seq_length=100)
    assert schedule.stages == ((0, 16), (15, 32), (10000, 64))
    assert [schedule.size_at(consumed) for consumed in (0, 14, 15, 9999, 10000)] == [
        16,
        16,
        32,
        32,
        64,
    ]
    batches = NumMicroBatches(schedule, 4, 4)
    # The last step is taken with whatever is left, as newer Megatron counts.
    assert batches.iterations_for(16 + 32) == 2
    assert batches.iterations_for(16 + 32 + 1) == 3
    assert batches.consumed_after(3) == 16 + 32 + 32


def test_decrease_rounds_down():
    batches = NumMicroBatches(ConstantBatch(17), 2, 4, decrease_batch_size_if_needed=True)
    assert (batches.num_micro_batches, batches.global_batch_size) == (2, 17)
    assert batches.running_global_batch_size == 16


def test_a_ramp_may_pass_sizes_that_do_not_divide_when_unchecked():
    batches = NumMicroBatches(RampupBatch(2, 2, 10, 8), 4, 1)
    batches.update(4, consistency_check=False)
    assert (batches.global_batch_size, batches.num_micro_batches) == (4, 1)
    batches.update(0, consistency_check=False)
    assert batches.num_micro_batches == 0
    with pytest.raises(ValueError, match="global batch size .2. is smaller than"):
        batches.update(0)


def test_megatron_functions():
    calculator.init_num_microbatches_calculator(0, None, 16, 2, 4)
    assert calculator.get_num_microbatches() == 2
    assert calculator.get_current_global_batch_size() == 16
    assert calculator.get_current_running_global_batch_size() == 16
    assert calculator.get_micro_batch_size() == 2
    with pytest.raises(RuntimeError, match="initialized already"):
        calculator.init_num_microbatches_calculator(0, None, 16, 2, 4)
    calculator.destroy_num_microbatches_calculator()
    with pytest.raises(RuntimeError, match="not known yet"):
        calculator.get_num_microbatches()
    calculator.init_num_microbatches_calculator(0, ["8", "8", "32"], 24, 2, 4)
    assert calculator.get_num_microbatches() == 1
    calculator.update_num_microbatches(33)
    assert calculator.get_num_microbatches() == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NumMicroBatches(ConstantBatch(10), 2, 2), "must be divisible .* use 8 or 12"),
        (lambda: NumMicroBatches(ConstantBatch(2), 2, 2), "is smaller than micro batch"),
        (lambda: NumMicroBatches(ConstantBatch(2), 0, 2), "micro_batch_size .0. must be"),
        (lambda: NumMicroBatches(ConstantBatch(2), 1, 0), "data_parallel_size .0. must be"),
        (lambda: RampupBatch(0, 8, 100, 32), "start .0. must be at least 1"),
        (lambda: RampupBatch(8, 8, -1, 32), "samples .-1. must not be negative"),
        (lambda: RampupBatch(64, 8, 100, 32), "the start .64. must not exceed"),
        (lambda: RampupBatch(8, 7, 100, 32), "a multiple of the increment"),
        (lambda: StepBatch(((5, 8),)), "must start at token 0"),
        (lambda: StepBatch(((0, 8), (9, 16), (9, 32))), "must ascend"),
        (lambda: StepBatch(((0, 0),)), "batch size below 1"),
        (lambda: StepBatch.from_text("0:16 x:32", 10), "'x:32' is not TOKENS:SIZE"),
        (lambda: make_batch_schedule(8, [1, 2], None), "takes 3: start"),
        (lambda: make_batch_schedule(8, [1, 1, 8], "0:8"), "exclude each other"),
        (lambda: make_batch_schedule(8, None, "0:8"), "needs seq_length"),
    ],
)
def test_wrong_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
