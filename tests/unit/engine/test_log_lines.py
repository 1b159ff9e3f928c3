# SPDX-License-Identifier: Apache-2.0
"""The lines that other tools parse, character by character."""

import math
import re
from dataclasses import replace
from datetime import datetime

import pytest

from mindspeed_ms.engine.log_lines import (
    IntervalReport,
    guide_line,
    megatron_line,
    validation_lines,
)

REPORT = IntervalReport(
    iteration=7,
    train_iters=100,
    consumed_samples=56,
    seconds_per_iteration=0.1234567,
    learning_rate=0.000123456789,
    global_batch_size=8,
    losses={"lm loss": 6.589242935180664},
    loss_scale=1.0,
    grad_norm=4.81828546,
    num_zeros=None,
    params_norm=None,
    tflops_per_rank=None,
    skipped_iterations=0,
    nan_iterations=0,
    epoch=0,
    step_in_epoch=7,
)
NOW = datetime(2026, 1, 2, 3, 4, 5)


def test_megatron_line():
    assert megatron_line(REPORT, NOW) == (
        " [2026-01-02 03:04:05] iteration        7/     100 | consumed samples:           56 | "
        "elapsed time per iteration (ms): 123.5 | learning rate: 1.234568E-04 | "
        "global batch size:     8 | lm loss: 6.589243E+00 | loss scale: 1.0 | grad norm: 4.818 | "
        "number of skipped iterations:   0 | number of nan iterations:   0 |"
    )


def test_optional_fields_stand_where_megatron_has_them():
    optional = {"num_zeros": 12, "params_norm": 3.25, "max_attention_logit": 0.5}
    report = replace(REPORT, **optional, tflops_per_rank=1.26)
    line = megatron_line(report, NOW)
    assert " (ms): 123.5 | throughput per GPU (TFLOP/s/GPU): 1.3 | learning rate" in line
    assert "| num zeros: 12 | params norm: 3.250 | max attention logit: 0.500 | number" in line


def test_a_loss_that_is_nan_stays_visible():
    line = megatron_line(replace(REPORT, losses={"lm loss": math.nan}, nan_iterations=1), NOW)
    assert "| lm loss: NAN |" in line and line.endswith("number of nan iterations:   1 |")


def test_guide_line_has_the_shape_of_the_guide():
    line = guide_line(REPORT)
    assert line == "INFO - Epoch: 0, Step: 7, Loss: 6.5892429351806641, Time: 123.46 ms"
    shape = r"INFO - Epoch: \d+, Step: \d+, Loss: \d+\.\d{16}, .*Time: \d+\.\d{2} ms"
    assert re.fullmatch(shape, line)


def test_validation_lines():
    rule, line, closing = validation_lines("iteration 50", {"lm loss": 2.0})
    assert line == (
        " validation loss at iteration 50 | lm loss value: 2.000000E+00 | lm loss PPL: "
        "7.389056E+00 | "
    )
    assert rule == closing == "-" * (len(line) + 1)
    assert math.exp(20.0) == pytest.approx(
        float(validation_lines("x", {"lm loss": 99.0})[1].split("PPL: ")[1].split()[0])
    )
