# SPDX-License-Identifier: Apache-2.0
"""Scripts for NPUs on this machine: what of their context holds, and what is said of the rest."""

import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest
from mindspore import context

from mindspeed_ms.backend import device, env, script_context

VARIABLE = device.TARGET_VARIABLE
RANKS = (
    "RANK",
    "MS_ROLE",
    "MS_NODE_ID",
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "SLURM_PROCID",
    "RANK_ID",
)
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    for name in (VARIABLE, *RANKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(script_context, "_said", set())
    before = ms.set_context, context.set_context, ms.set_device
    yield
    ms.set_context, context.set_context, ms.set_device = before
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.mark.parametrize(
    ("asked", "lines"),
    [
        ({}, 0),
        ({"device_target": None, "mode": None}, 0),
        ({"device_target": "CPU", "mode": 1, "device_id": 0}, 0),
        ({"mode": 0}, "graph mode is not used: mindspeed_ms runs MindSpore's dynamic graph"),
        ({"mode": "GRAPH_MODE"}, "graph mode is not used: "),
        ({"max_device_memory": "31GB"}, "max_device_memory 31GB has no effect on CPU"),
    ],
)
def test_what_holds_on_a_cpu(asked, lines):
    found = script_context.apply(asked)
    assert len(found) == (lines != 0) and (lines == 0 or found[0].startswith(lines))
    assert ms.get_context("mode") == ms.PYNATIVE_MODE


@pytest.mark.parametrize("target", ["Ascend", "GPU"])
def test_a_device_that_is_not_there(monkeypatch, target):
    with pytest.raises(RuntimeError) as caught:
        script_context.apply({"device_target": target})
    assert str(caught.value) == (
        f"Unsupported device target {target}. This process only supports one of the ['CPU']; "
        'this machine has CPU only: device_target="CPU", or MINDSPEED_MS_DEVICE_TARGET=CPU to run '
        "Ascend scripts unchanged"
    )
    monkeypatch.setenv(VARIABLE, "CPU")
    lines = script_context.apply({"device_target": target, "mode": 1})
    assert lines == [f"device_target {target}: the CPU is used instead, {VARIABLE} says so"]
    assert ms.get_context("device_target") == "CPU"


def test_an_npu_is_not_left_by_a_script(monkeypatch):
    monkeypatch.setattr(device, "platform", lambda: "ascend")
    monkeypatch.setattr(device, "is_ascend", lambda: True)
    assert script_context.apply({"device_target": "Ascend"}) == []
    with pytest.raises(RuntimeError, match="computes on its NPU; leave it out, or start with"):
        script_context.apply({"device_target": "CPU"})
    sizes = []
    monkeypatch.setattr(ms.runtime, "set_memory", lambda max_size: sizes.append(max_size))
    assert script_context.apply({"max_device_memory": "31GB"}) == [] and sizes == ["31GB"]


@pytest.mark.parametrize(
    ("value", "ending"),
    [("cpu", "cpu\n"), ("CPU", "cpu\n"), ("", "cpu\n"), ("Ascend", "machine computes on cpu")],
)
def test_the_variable_decides_before_a_script_does(value, ending):
    script = (
        "from mindspeed_ms.backend import device\n"
        "try:\n    device.initialize(); print(device.platform())\n"
        "except ValueError as error:\n    print(str(error).partition(';')[0], end='')\n"
    )
    words = [sys.executable, "-c", script]
    variables = {**os.environ, VARIABLE: value}
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, timeout=120, env=variables
    )
    assert done.stdout.endswith(ending) and done.stderr == ""


def test_scripts_that_set_the_context_themselves(monkeypatch, capsys):
    with pytest.raises(RuntimeError, match="Unsupported device target Ascend"):
        ms.set_context(device_target="Ascend")  # MindSpore's own
    script_context.cover_scripts()
    script_context.cover_scripts()
    with pytest.raises(RuntimeError, match="to run Ascend scripts unchanged"):
        ms.set_context(mode=0, device_target="Ascend", device_id=0)
    monkeypatch.setenv(VARIABLE, "CPU")
    for _ in range(2):
        ms.set_context(mode=0, device_target="Ascend", device_id=0)
        context.set_context(device_target="Ascend")
        ms.set_device("Ascend", 0)
        ms.set_device("CPU")
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"device_target Ascend: the CPU is used instead, {VARIABLE} says so",
        script_context.GRAPH_MODE_LINE,
    ]
    assert ms.get_context("mode") == ms.PYNATIVE_MODE
    with pytest.raises(ValueError, match="the keyword argument foo is not recognized"):
        ms.set_context(foo=1)


def test_graph_mode_that_a_script_set_before_our_import(tmp_path):
    script = (
        "import mindspore; mindspore.set_context(mode=0, device_id=0)\n"
        "from mindspeed_ms.backend import script_context\n"
        "script_context.cover_scripts()\n"
        "print(mindspore.get_context('mode'))\n"
    )
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert (done.stdout, done.stderr) == ("1\n", f"{script_context.GRAPH_MODE_LINE}\n")


def test_only_rank_0_says_it(monkeypatch, capsys):
    monkeypatch.setenv("RANK_ID", "1")
    script_context.cover_scripts()
    ms.set_context(mode=0)
    assert capsys.readouterr().err == "" and env.stated_rank() == 1


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, 0),
        ({"RANK": "3"}, 3),
        ({"RANK_ID": "2"}, 2),
        ({"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}, -1),
        ({"PMI_RANK": "1", "RANK_ID": "5"}, 1),
        ({"RANK": "none"}, 0),
    ],
)
def test_the_rank_that_variables_state(monkeypatch, variables, rank):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert env.stated_rank() == rank


def test_ranks_keep_the_device_that_their_launcher_gives(monkeypatch):
    monkeypatch.setenv("RANK_ID", "1")
    monkeypatch.setattr(script_context.launch, "told_by_launcher", lambda: (1, 2))
    set_to = []
    monkeypatch.setattr(script_context, "_set_context", lambda **given: set_to.append(given))
    assert script_context.apply({"mode": 1, "device_id": 0}) == []
    line = "device_id 3: each rank has the device that its launcher gives it"
    assert script_context.apply({"mode": 1, "device_id": 3}) == [line]
    assert set_to == [{"mode": ms.PYNATIVE_MODE}] * 2
    monkeypatch.setattr(script_context.launch, "told_by_launcher", lambda: None)
    script_context.apply({"mode": 1, "device_id": 3})
    assert set_to[-1] == {"mode": ms.PYNATIVE_MODE, "device_id": 3}
