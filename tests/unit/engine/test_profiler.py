# SPDX-License-Identifier: Apache-2.0
"""Profiles: what is recorded on CPU, how ranks are merged, what MindSpore's profiler is told."""

import inspect
import json
from collections import Counter

import mindspore.profiler as ms_profiler
import pytest
from run_builder import configuration, trained

from mindspeed_ms import ops
from mindspeed_ms.backend import ascend_profiler
from mindspeed_ms.backend.comm import CommCall
from mindspeed_ms.engine.observe import profile_trace as trace
from mindspeed_ms.engine.observe.profiler import ascend_settings, notes_for_cpu
from mindspeed_ms.ops import selection
from mindspeed_ms.ops.recording import RecordingKernels
from tools import merge_profile

WINDOW = ("--profile", "--profile-step-start", "2", "--profile-step-end", "3")


def profiled(folder, *flags):
    """Events of the merged trace of a run, without the names."""
    trained(*WINDOW, "--profile-save-path", str(folder), *flags)
    content = json.loads((folder / trace.TRACE_NAME).read_text(encoding="utf-8"))
    return [event for event in content["traceEvents"] if event["ph"] != "M"]


def of_lane(events, lane):
    return [event for event in events if event.get("cat") == lane]


def test_operators_and_passes_lie_in_the_iterations_of_the_window(tmp_path):
    events = profiled(tmp_path)
    steps = of_lane(events, "iterations")
    assert [step["name"] for step in steps] == ["iteration 2", "iteration 3"]
    for lane in ("operators", "schedule"):
        for event in of_lane(events, lane):
            end = event["ts"] + event["dur"]
            assert any(s["ts"] <= event["ts"] and end <= s["ts"] + s["dur"] for s in steps), event
    counts = Counter(event["name"] for event in of_lane(events, "operators"))
    assert {"linear_forward", "linear_dgrad", "adamw_"} <= counts.keys()
    for name in ("rms_norm", "attention", "swiglu"):
        assert counts[name] == counts[f"{name} backward"] > 0, name
    assert not any(event["args"] for event in of_lane(events, "operators"))
    passes = [event for event in of_lane(events, "schedule") if event["name"].startswith("forward")]
    assert len(passes) == 2 * 8


def test_operators_and_the_rest_add_up_to_the_iterations(tmp_path, capsys):
    events = profiled(tmp_path)
    total = sum(event["dur"] for event in of_lane(events, "iterations")) / 1e3
    operators = sum(event["dur"] for event in of_lane(events, "operators")) / 1e3
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    0 |")]
    _, count, *times = [float(part) for part in row.split("|")]
    assert count == 2 and times[0] == pytest.approx(total, abs=0.2)
    assert times[1] == pytest.approx(operators, abs=0.2)
    assert sum(times[1:]) == pytest.approx(times[0], abs=0.5) and times[4] > 0


def test_further_rows_record_more(tmp_path):
    events = profiled(
        tmp_path,
        *("--profile-level", "level2", "--profile-with-stack", "--profile-with-memory"),
        *("--profile-data-process", "--profile-parallel-strategy"),
    )
    kernel = next(e for e in of_lane(events, "operators") if e["name"] == "linear_forward")
    assert kernel["args"]["inputs"][0].startswith("Float32[16, 1, 16]")
    assert "tensor_parallel/layers.py" in kernel["args"]["stack"][0]
    assert any("attention" in event["name"] for event in of_lane(events, "cells"))
    assert len(of_lane(events, "data")) == 2 * 8
    memory = [event["args"]["in use"] for event in events if event["ph"] == "C"]
    assert memory and min(memory) > 10
    content = json.loads((tmp_path / trace.TRACE_NAME).read_text(encoding="utf-8"))
    assert content["otherData"]["layout"]["0"]["tensor"] == [0]


def test_operators_can_be_left_out(tmp_path):
    events = profiled(tmp_path, "--profile-op-time", "False")
    assert not of_lane(events, "operators") and of_lane(events, "schedule")


def test_a_profile_changes_no_number_and_leaves_nothing(tmp_path):
    plain = trained()
    flags = (*WINDOW, "--profile-save-path", str(tmp_path), "--profile-level", "level2")
    assert trained(*flags) == plain
    assert not isinstance(selection.chosen.kernels, RecordingKernels)


def fail(step):
    if step.iteration == 2:
        raise KeyError("a user's own")


def test_a_run_that_fails_stops_recording(tmp_path):
    with pytest.raises(KeyError):
        trained(
            *("--profile", "--profile-step-start", "1", "--profile-step-end", "9"),
            *("--profile-save-path", str(tmp_path)),
            on_step=fail,
        )
    assert not isinstance(selection.chosen.kernels, RecordingKernels)
    assert ops.selected()


def test_a_window_behind_the_end_is_cut(tmp_path):
    events = profiled(tmp_path, "--profile-step-end", "900")
    assert [event["name"] for event in of_lane(events, "iterations")][-1] == "iteration 3"


def test_ranks_files_can_be_merged_later_or_left_out(tmp_path, monkeypatch, capsys, refused):
    flags = ("--profile-save-path", str(tmp_path / "a"), "--profile-offline-analyse")
    trained(*WINDOW, *flags)
    assert not (tmp_path / "a" / trace.TRACE_NAME).exists()
    monkeypatch.setattr("sys.argv", ["merge_profile", str(tmp_path / "a")])
    merge_profile.main()
    assert of_lane_file(tmp_path / "a", "iterations") == 2
    assert str(tmp_path / "a" / trace.TRACE_NAME) in capsys.readouterr().out
    profiled(tmp_path / "b", "--profile-data-simplification", "--profile-communication")
    names = sorted(path.name for path in (tmp_path / "b").iterdir())
    assert names == [trace.TABLE_NAME, trace.TRACE_NAME]
    monkeypatch.setattr("sys.argv", ["merge_profile", str(tmp_path / "c")])
    assert "holds no rank_" in refused(merge_profile.main)


def of_lane_file(folder, lane):
    content = json.loads((folder / trace.TRACE_NAME).read_text(encoding="utf-8"))
    return len(of_lane(content["traceEvents"], lane))


def test_a_file_moves_the_window(tmp_path):
    switch = tmp_path / "switch.json"
    switch.write_text('{"start_step": 1, "stop_step": 1}', encoding="utf-8")
    events = profiled(tmp_path, "--profile-dynamic-profiler-config-path", str(switch))
    assert [event["name"] for event in of_lane(events, "iterations")] == ["iteration 1"]


def test_a_damaged_file_leaves_the_window_and_is_told_once(tmp_path, capsys):
    switch = tmp_path / "switch.json"
    switch.write_text('{"start_step": "soon"}', encoding="utf-8")
    events = profiled(tmp_path, "--profile-dynamic-profiler-config-path", str(switch))
    assert len(of_lane(events, "iterations")) == 2
    assert capsys.readouterr().out.count("it must hold numbers start_step and stop_step") == 1


# --- several ranks --------------------------------------------------------------------------------


def call(name, start, end, blocked=None, **more):
    blocked = start if blocked is None else blocked
    return CommCall(name, "g", (0, 1), 400, start, blocked, end, **more)


def rank_trace(rank, *calls, host="a", clock=0.0):
    return trace.RankTrace(rank, host, 0, calls=list(calls), clock=clock)


def test_who_comes_first_waits_and_then_data_moves():
    early = rank_trace(0, call("all_reduce", 1.0, 4.0), call("all_reduce", 6.0, 7.0))
    late = rank_trace(1, call("all_reduce", 3.0, 4.0), call("all_reduce", 5.0, 7.0))
    waits = trace.waiting_times([early, late])
    assert [waited for _, waited in waits[0]] == [2.0, 0.0]
    assert [waited for _, waited in waits[1]] == [0.0, 1.0]
    rows = trace.communication_table([early, late])
    assert [row["waiting_seconds"] for row in rows] == [2.0, 1.0]
    assert [row["moving_seconds"] for row in rows] == [2.0, 2.0]
    assert rows[0]["bytes"] == 800 and rows[0]["calls"] == 2


def test_a_receiver_waits_for_its_own_sender():
    sender = rank_trace(0, call("isend", 5.0, 5.1, sends=(1,)), call("isend", 6.0, 6.1, sends=(1,)))
    receiver = rank_trace(
        1,
        call("irecv", 1.0, 5.5, blocked=4.0, receives=(0,)),
        call("irecv", 5.6, 7.0, blocked=5.8, receives=(0,)),
    )
    waits = trace.waiting_times([sender, receiver])
    assert [waited for _, waited in waits[1]] == pytest.approx([1.0, 0.2])


def test_clocks_of_hosts_are_brought_together():
    here = rank_trace(0, call("all_reduce", 1.0, 4.0), clock=10.0)
    there = rank_trace(1, call("all_reduce", 103.0, 104.0), host="b", clock=110.0)
    assert trace.shifts([here, there]) == {0: 0.0, 1: -100.0}
    assert [waited for _, waited in trace.waiting_times([here, there])[0]] == [2.0]


# --- devices --------------------------------------------------------------------------------------


def test_rows_of_an_npu_say_that_they_say_nothing_on_cpu():
    training = configuration("--profile", "--profile-l2-cache", "--profile-pcie").training_config
    assert [line.split()[0] for line in notes_for_cpu(training)] == [
        *("profile_l2_cache", "profile_pcie"),
    ]


class Recorder:
    """Stands for a function of MindSpore's and binds its arguments to that one's signature."""

    def __init__(self, real):
        self.signature = inspect.signature(real)
        self.arguments = None
        self.started = False

    def __call__(self, **arguments):
        self.signature.bind(**arguments)
        self.arguments = arguments
        return self

    def start(self):
        self.started = True


def test_mindspores_profiler_is_asked_for_what_the_rows_say(monkeypatch):
    recorders = {}
    for name in ("profile", "_ExperimentalConfig", "tensorboard_trace_handler"):
        recorders[name] = Recorder(getattr(ms_profiler, name))
        monkeypatch.setattr(ascend_profiler.ms_profiler, name, recorders[name])
    training = configuration(
        *("--profile", "--profile-level", "level1", "--profile-aicore-metrics", "2"),
        *("--profile-l2-cache", "--profile-pcie", "--profile-with-memory", "--profile-with-stack"),
        *("--profile-offline-analyse", "--profile-save-path", "somewhere"),
    ).training_config
    started = ascend_profiler.start(ascend_settings(training))
    assert started.started
    asked = recorders["profile"].arguments
    assert asked["pcie"] and asked["profile_memory"] and asked["with_stack"]
    assert not asked["hbm_ddr"] and not asked["data_process"]
    more = recorders["_ExperimentalConfig"].arguments
    assert more["profiler_level"] is ms_profiler.ProfilerLevel.Level1 and more["l2_cache"]
    assert more["aic_metrics"] is ms_profiler.AicoreMetrics.Memory
    handler = recorders["tensorboard_trace_handler"].arguments
    assert handler == {"dir_name": "somewhere", "analyse_flag": False}


def test_a_window_that_no_iteration_lies_in_is_told(tmp_path, capsys):
    folder = ("--profile-save-path", str(tmp_path / "p"))
    trained("--profile", "--profile-step-start", "70", "--profile-step-end", "80", *folder)
    assert "nothing was profiled: no iteration from 70 to 80 was run" in capsys.readouterr().out
    assert not (tmp_path / "p").exists()


def test_a_rank_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="names rank 3, but the run has 1 ranks"):
        trained(*WINDOW, "--profile-ranks", "0", "3")


def test_a_place_that_cannot_be_written_costs_the_profile_only(tmp_path, capsys):
    (tmp_path / "file").touch()
    trained(*WINDOW, "--profile-save-path", str(tmp_path / "file" / "below"))
    told = capsys.readouterr().out
    assert "no profile; times of the recorded iterations" in told and "profile in" not in told
