# SPDX-License-Identifier: Apache-2.0
"""Which iterations are saved while the batch grows."""

import pytest
from run_builder import trained

RAMP = ("--global-batch-size", "8", "--rampup-batch-size", "2", "2", "12", "--train-iters", "8")
"""Batches of 2, 2, 4, 6, 8, ... samples."""

NEVER = ("--save-interval", "100")


def saved(folder):
    return sorted(int(path.name.split("_")[-1]) for path in folder.glob("iter_*"))


@pytest.mark.parametrize(
    ("more", "iterations"),
    [
        (NEVER, [2, 3, 4, 8]),
        (("--save-interval", "7", "--rampup-save-interval", "1"), [1, 2, 3, 4, 7, 8]),
        ((*NEVER, "--iterations-to-skip", "3"), [2, 3, 4, 8]),
    ],
    ids=["ends of stages", "interval of the ramp", "skipped"],
)
def test_the_last_step_of_each_batch_size_is_saved(tmp_path, more, iterations):
    trained(*RAMP, *more, "--save", str(tmp_path))
    assert saved(tmp_path) == iterations


def test_a_resumed_run_saves_no_step_twice(tmp_path):
    whole = trained(*RAMP, *NEVER, "--save", str(tmp_path / "whole"))
    trained(*RAMP, *NEVER, "--exit-interval", "2", "--save", str(tmp_path / "parts"))
    again = ("--load", str(tmp_path / "parts"), "--save", str(tmp_path / "parts"))
    assert trained(*RAMP, *NEVER, *again) == whole[2:]
    assert saved(tmp_path / "parts") == saved(tmp_path / "whole")
