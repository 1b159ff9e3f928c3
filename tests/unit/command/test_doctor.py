# SPDX-License-Identifier: Apache-2.0
"""``mindspeed-ms doctor``: what is here, and what is told where something is missing."""

import sys
from collections import namedtuple

import pytest

from mindspeed_ms.command import doctor


def test_this_machine_can_train(capsys):
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[1]: line.split()[0] for line in lines[:-1]}
    assert list(found) == (
        "python mindspore compiler kernels MPI launchers memory disk NPU libraries".split()
    )
    assert lines[-1] == "training can start here"
    assert {found[name] for name in ("python", "mindspore", "compiler", "kernels", "MPI")} == {"ok"}


def test_a_mindspore_that_does_not_load_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "program", lambda words: (1, "ImportError: no module"))
    assert doctor.main([]) == 1
    told = capsys.readouterr().out
    assert "wrong mindspore  does not load (ImportError: no module)" in told
    assert told.endswith("no run can start here\n") and "kernels    " not in told


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((127, ""), "there is no mpiexec"),
        ((1, "cannot bind"), "do not meet (cannot bind)"),
        ((0, "ranks 1 MPICH"), "do not meet (ranks 1 MPICH)"),  # mpiexec of another MPI
        ((124, "no end within 120 seconds"), "no end within"),
    ],
)
def test_ranks_that_do_not_meet(answer, expected, monkeypatch):
    monkeypatch.setattr(doctor, "program", lambda words: answer)
    found = doctor.check_mpi()
    assert found.state == "note" and expected in found.text


def test_missing_parts_have_a_fix(monkeypatch, tmp_path):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "python"))
    assert doctor.check_compiler().state == "note"
    assert "not found" in doctor.check_launchers().text
    assert doctor.program(["nothing"]) == (127, "")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage(1 << 20))
    assert doctor.check_disk().state == "note"


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 13, 0))
    assert doctor.check_python().state == "wrong"


def test_a_program_that_hangs_is_left(monkeypatch):
    monkeypatch.setattr(doctor, "_SECONDS", 0.2)
    assert doctor.program([sys.executable, "-c", "import time; time.sleep(9)"])[0] == 124
