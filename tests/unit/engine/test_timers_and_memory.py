# SPDX-License-Identifier: Apache-2.0
"""Timers, memory tables and progress.txt: formats, and what a run prints. One rank."""

import os
import re
import struct

import pytest
from run_builder import open_run, trained

from mindspeed_ms.engine.observe import tensorboard
from mindspeed_ms.engine.observe.memory_table import RankMemory, memory_lines
from mindspeed_ms.engine.observe.timer_lines import STEP_TIMERS, timer_lines, times_by_name

RANKS = [{"optimizer": 0.5, "forward-recv": 0.25}, {"optimizer": 0.25}]


def test_lines_of_timers_are_megatrons():
    times = times_by_name(RANKS, STEP_TIMERS, 10)
    assert timer_lines(times, "minmax") == [
        "(min, max) time across ranks (ms):",
        "    forward-recv ...................................: (25.00, 25.00)",
        "    optimizer ......................................: (25.00, 50.00)",
    ]
    assert timer_lines(times, "max")[0] == "max time across ranks (ms):"
    assert timer_lines(times, "max")[2].endswith(" ......................................: 50.00")
    assert timer_lines(times, "all") == [
        "times across ranks (ms):",
        "  forward-recv:",
        "     rank  0: 25.00",
        "  optimizer:",
        "     rank  0: 50.00",
        "     rank  1: 25.00",
    ]
    assert timer_lines({}, "minmax") == []


def printed_timers(capsys, *flags):
    trained("--log-interval", "3", *flags)
    text = capsys.readouterr().out
    tail = text[text.index("iteration        3/") :]
    return re.findall(r"^    ([a-z-]+) \.+: \(([\d.]+), ([\d.]+)\)$", tail, re.M)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_shows_its_timers(capsys, level):
    names = [name for name, *_ in printed_timers(capsys, "--timing-log-level", str(level))]
    first = {"forward-backward", "all-grads-sync", "optimizer", "optimizer-inner-step"}
    second = {"forward-compute", "backward-compute"}
    assert first <= set(names) if level else not names
    assert second <= set(names) if level == 2 else second.isdisjoint(names)


def test_parts_of_a_step_add_up(capsys):
    rows = printed_timers(capsys, "--timing-log-level", "2")
    seconds = {name: float(most) for name, _, most in rows}
    passes = seconds["forward-compute"] + seconds["backward-compute"]
    assert 0.8 * seconds["forward-backward"] < passes <= seconds["forward-backward"] * 1.01
    assert seconds["optimizer-inner-step"] < seconds["optimizer"]


def test_timers_change_no_number():
    assert trained("--timing-log-level", "2") == trained()


def test_planned_and_measured_memory_stand_in_one_table():
    stage = {"weights": 2**20, "gradients": 2**21, "optimizer": 2**22, "activations": 0, "peak": 0}
    ranks = [RankMemory(3, 0, 300 * 2**20, 400 * 2**20, 250 * 2**20)]
    _, head, row = memory_lines(7, ranks, [stage | {"peak": 7 * 2**20}])
    columns = [part.strip() for part in row.split("|")]
    assert columns == ["3", "0", "1.0", "2.0", "4.0", "0.0", "7.0", "300.0", "400.0", "150.0"]
    assert len(head.split("|")) == len(columns)


def test_a_run_prints_its_memory_at_intervals(capsys):
    trained("--log-memory-interval", "2")
    assert re.findall(r"memory \(MB\) after (\d+)", capsys.readouterr().out) == ["2"]


def test_progress_counts_jobs_tokens_and_operations(tmp_path):
    save = ("--save", str(tmp_path), "--save-interval", "2", "--log-progress")
    run, _ = open_run(*save)
    with run:
        run.train()
    again, _ = open_run(*save, "--load", str(tmp_path), "--ckpt-step", "2")
    with again:
        again.train()
    rows = [line.split("\t") for line in (tmp_path / "progress.txt").read_text().splitlines()]
    assert [row[3] for row in rows] == [
        *("Starting job", "Saved checkpoint", "Saved checkpoint"),
        *("Starting job", "Saved checkpoint"),
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row[0]) for row in rows)
    assert all(row[1].startswith("Job ID: ") and row[2] == "# GPUs: 1" for row in rows)
    assert [row[4] for row in rows if len(row) > 4] == [f"Iteration: {n}" for n in (2, 3, 3)]
    operations = [float(row[7].split(": ")[1]) for row in rows if len(row) > 4]
    assert operations[1] == pytest.approx(operations[0] * 1.5, rel=0.01)
    assert rows[1][5].endswith("TFLOP/s/GPU") and rows[1][8] == "Tokens (in billions): 0.00"


def test_damaged_lines_of_progress_end_no_run(tmp_path):
    lines = ["", "x\ty", "no time\tJob ID: \t# GPUs: 1\tStarting job", "\t\t# GPUs: 1\tz\t"]
    damaged = "\n".join([*lines, "\t\t# GPUs: 1\tSaved\tFloating-point operations: many", "é\x00"])
    (tmp_path / "progress.txt").write_bytes(damaged.encode() + b"\xff\n")
    trained("--save", str(tmp_path), "--save-interval", "3", "--log-progress")
    assert "\tSaved checkpoint\t" in (tmp_path / "progress.txt").read_text(errors="replace")


def test_damaged_event_files_end_no_run(tmp_path, caplog):
    pytest.importorskip("tensorboardX")
    record = struct.pack("<QI", 3, 0) + b"\xff\xff\xff" + bytes(4)
    (tmp_path / "events.out.tfevents.1").write_bytes(record)
    os.mkfifo(tmp_path / "events.out.tfevents.2")
    assert tensorboard.cut_events(tmp_path, 1, 1) == 0
    assert (tmp_path / "events.out.tfevents.1").read_bytes() == record
    assert caplog.text.count("stays as it is") == 2


def test_a_checkpoint_in_the_background_is_told_twice(tmp_path):
    trained("--save", str(tmp_path), "--save-interval", "3", "--log-progress", "--async-save")
    rows = [line.split("\t") for line in (tmp_path / "progress.txt").read_text().splitlines()]
    assert [row[3] for row in rows][1:] == ["Saving async checkpoint", "Saved async checkpoint"]


def test_progress_without_checkpoints_is_told(capsys):
    trained("--log-progress")
    assert "--log-progress writes beside checkpoints; give --save" in capsys.readouterr().out
