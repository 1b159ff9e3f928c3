# SPDX-License-Identifier: Apache-2.0
"""Compiles the op plugin and runs the cases under it, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mindspore
import numpy as np

SOURCES = Path(__file__).resolve().parent
HEADERS = Path(mindspore.__file__).parent / "include/mindspore/ops/kernel/cpu/op_plugin"
# MindSpore's wheels have the old string layout; strings cross the interface.
OPTIONS = ("-std=c++17", "-O1", "-fPIC", "-Wall", "-Wextra", "-D_GLIBCXX_USE_CXX11_ABI=0")


def compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def build(folder: Path) -> Path:
    """The plugin, built into ``folder``; a source that does not compile fails the test."""
    jobs, objects = [], []
    for source in sorted(SOURCES.glob("*.cpp")):
        objects.append(folder / f"{source.stem}.o")
        command = [compiler(), *OPTIONS, f"-I{HEADERS}", "-c", source, "-o", objects[-1]]
        jobs.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    for job in jobs:
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
    plugin = folder / "op_plugin.so"
    linked = subprocess.run(
        [compiler(), "-shared", *objects, "-o", plugin, "-ldl"], capture_output=True, text=True
    )
    assert linked.returncode == 0, linked.stderr
    return plugin


@dataclass(frozen=True, slots=True)
class Ran:
    """What the process with the plugin left."""

    report: dict
    """By case: ``error`` or None, ``journal`` (a line per launch), ``types`` of the results."""

    arrays: dict[str, np.ndarray]
    """``case|result`` to its values."""

    log: str
    """What MindSpore logged."""


def run(plugin: Path, kernels: Path, folder: Path) -> Ran:
    """All cases on the Ascend set, with ``kernels`` behind the plugin."""
    environment = dict(os.environ, MS_OP_PLUGIN_PATH=str(plugin), GLOG_v="1", OMP_NUM_THREADS="1")
    command = [sys.executable, SOURCES / "run_cases.py", plugin, kernels, folder]
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, timeout=300)
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, text[-4000:]
    with np.load(folder / "results.npz") as arrays:
        values = dict(arrays)
    return Ran(json.loads((folder / "report.json").read_text(encoding="utf-8")), values, text)
