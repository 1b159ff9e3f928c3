# SPDX-License-Identifier: Apache-2.0
"""Weights of queries and keys behind a step whose scores were too large. One rank."""

import numpy as np
import pytest
from run_builder import configuration, open_run

from mindspeed_ms.backend import memory
from mindspeed_ms.core.parameter import named_parameters

CLIP = ("--qk-clip", "--qk-clip-threshold", "1e-4", "--qk-clip-alpha", "0.25")
STILL = ("--lr", "1e-30", "--min-lr", "0")
NARROW = ("--use-precision-aware-optimizer", "--exp-avg-dtype", "fp16", "--exp-avg-sq-dtype")


def weights_of(optimizer):
    """Name -> main parameter."""
    return {
        part.name: np.array(memory.as_numpy(memory.contiguous(part.main_param)), np.float32)
        for part in optimizer.state_parts()
    }


def one_step(*flags):
    """(main parameters before, behind, factors by name, report); the update itself is none."""
    reports, factors = [], {}
    run, _ = open_run(*flags, *STILL, on_step=reports.append)
    with run:
        optimizer = run._opened.optimizer
        modules = [chunk.module for chunk in run.model]
        names = {id(param): name for cell in modules for name, param in named_parameters(cell)}
        asked = optimizer.row_factors

        def noting():
            found = asked()
            factors.update({names[one]: rows for one, rows in found.items()})
            return found

        optimizer.row_factors = noting
        before = weights_of(optimizer)
        run.train(1)
        return before, weights_of(optimizer), factors, reports[0]


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ((), 1e-6),
        (("--bf16",), 1e-6),
        (("--bf16", "--use-distributed-optimizer", *NARROW, "fp16"), 1e-6),
        (
            (*("--bf16", "--use-distributed-optimizer"), *NARROW, *("fp16", "--main-params-dtype")),
            2e-3,
        ),
    ],
)
def test_rows_are_scaled_in_every_type_of_main_parameters(flags, tolerance):
    if "--main-params-dtype" in flags:
        flags = (*flags, "fp16")
    before, behind, factors, report = one_step(*CLIP, *flags)
    assert report.max_attention_logit > 1e-4
    assert len(factors) == 8 and all("qkv_proj" in name for name in factors)
    for name, values in before.items():
        rows = next((found for own, found in factors.items() if own.endswith(name)), None)
        if rows is None:
            np.testing.assert_array_equal(behind[name], values, err_msg=name)
            continue
        scaled = values.reshape((len(rows), -1)) * rows[:, None]
        assert len(set(rows)) > 2 and rows.min() < 0.5 and rows.max() == 1.0
        np.testing.assert_allclose(behind[name], scaled.reshape(-1), rtol=tolerance, atol=1e-9)


def test_small_scores_leave_the_weights_alone():
    before, behind, factors, report = one_step("--qk-clip")
    assert not factors and 0 < report.max_attention_logit < 100.0
    for name, values in before.items():
        np.testing.assert_array_equal(behind[name], values, err_msg=name)


def test_frozen_weights_are_not_clipped():
    with pytest.raises(ValueError, match="qk_clip and use_lora do not go together"):
        configuration("--qk-clip", "--use-lora", "--lora-r", "2", "--lora-alpha", "2")
