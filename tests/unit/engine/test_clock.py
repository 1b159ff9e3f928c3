# SPDX-License-Identifier: Apache-2.0
"""Clocks that are set while a run lasts."""

import os
import time

import pytest

from mindspeed_ms.backend import comm
from mindspeed_ms.config import TrainingConfig
from mindspeed_ms.engine import restart, stop_conditions
from mindspeed_ms.engine.observe import progress_file
from mindspeed_ms.formats import own_format

HOUR = 3600.0


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_limit_of_minutes_counts_minutes_that_pass(monkeypatch, hours):
    training = TrainingConfig(exit_duration_in_mins=10)
    monkeypatch.setattr(stop_conditions.comm, "all_gather_object", lambda value: [value])
    now = time.time()
    fresh, late = (stop_conditions.StopConditions(training, now - age) for age in (0.0, 660.0))
    monkeypatch.setattr(stop_conditions.time, "time", lambda: now + hours * HOUR)
    assert fresh.reason(1) is None
    assert "exiting program after 11." in late.reason(1)


def test_the_throughput_of_a_job_is_of_the_seconds_that_pass(monkeypatch, tmp_path):
    progress = progress_file.ProgressFile(tmp_path, world_size=1, operations=0.0)
    clock = type(
        "Back", (progress_file.datetime,), {"now": classmethod(lambda cls: cls(2020, 1, 1))}
    )
    monkeypatch.setattr(progress_file, "datetime", clock)
    began = time.monotonic()
    monkeypatch.setattr(progress_file.time, "monotonic", lambda: began + 10.0)
    progress.saved(1, 5e13, 1, in_background=False)
    line = (tmp_path / progress_file.FILE_NAME).read_text().splitlines()[-1]
    assert "Job throughput: 5.0 TFLOP" in line
    assert "Cumulative throughput: 5.0 TFLOP" in line


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_job_knows_its_checkpoints_whatever_their_times(monkeypatch, tmp_path, hours):
    folder = tmp_path / "iter_0000003"
    folder.mkdir()
    index = own_format.build_index([], {"iteration": 3, "job": "mine"})
    own_format.write_index(folder, index)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    moment = time.time() + hours * HOUR
    os.utime(folder / "index.json", (moment, moment))
    assert restart._newest_of_job(tmp_path, {"mine", "of another host"}) == 3
    assert restart._newest_of_job(tmp_path, {"another"}) is None


def test_without_a_launcher_there_are_no_restarts(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.delenv("MINDSPEED_MS_JOB", raising=False)
    assert (comm.job_name(), comm.num_restarts()) == ("", 0)
    monkeypatch.setenv("MINDSPEED_MS_JOB", "mine")
    assert comm.num_restarts() == 2
