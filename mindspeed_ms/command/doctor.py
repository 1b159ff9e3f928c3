# SPDX-License-Identifier: Apache-2.0
"""Check what training needs here: compiler, kernels, MPI, launcher, memory, disk, NPU.

Every line says what was found, and what to do where something is missing. The status is 1 if a run
could not start at all.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mindspeed_ms
from mindspeed_ms.backend import env
from mindspeed_ms.backend.host_memory import free_memory
from mindspeed_ms.files.whole import temporary_folder
from mindspeed_ms.toolkit.launch.command import Parser

_GB = 1e9
_SECONDS = 120
_FEW_BYTES = 1 << 30
"""Less memory, or room on a disk, is worth a word."""
_TWO_RANKS = """
from mpi4py import MPI
import numpy as np
found = np.zeros(1)
MPI.COMM_WORLD.Allreduce(np.ones(1), found)
if MPI.COMM_WORLD.Get_rank() == 0:  # two ranks that print get between each other's words
    print("ranks", int(found[0]), MPI.Get_library_version().splitlines()[0])
"""
_LIBRARIES = {
    "tokenizers": ("tokenizers", "Hugging Face tokenizers"),
    "tensorboardX": ("tensorboard", "curves in TensorBoard"),
    "wandb": ("wandb", "curves in Weights & Biases"),
    "plotly": ("report", "the report of a run"),
    "matplotlib": ("plot", "plot"),
    "scipy": ("planner", "plan --suggest, pipeline balance"),
    "pyarrow": ("text", "preprocess of parquet files"),
}
"""Package -> the extra that brings it, and what needs it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Args:
        name: of what was looked at.
        text: what is there, and what to do.
        state: ``ok``; ``note``: something is slower or not possible; ``wrong``: no run can start.
    """

    name: str
    text: str
    state: str = "ok"


def program(words: Sequence[str]) -> tuple[int, str]:
    """Status and first line of output of a program; 127 if there is none, 124 if it hangs."""
    if shutil.which(words[0]) is None:
        return 127, ""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_SECONDS, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return 124, f"no end within {_SECONDS} seconds"
    except OSError as error:
        return 126, str(error)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return done.returncode, lines[0] if done.returncode == 0 and lines else "".join(lines[-1:])


def check_python() -> Finding:
    """The interpreter and this package."""
    place = Path(mindspeed_ms.__file__).parent
    text = f"{platform.python_version()} on {platform.machine()}; mindspeed_ms "
    text += f"{mindspeed_ms.__version__} in {place}"
    if (3, 10) <= sys.version_info < (3, 13):
        return Finding("python", text)
    return Finding("python", f"{text}; use Python 3.10, 3.11 or 3.12", "wrong")


def check_mindspore() -> Finding:
    """The library that holds tensors; a wrong one ends in its import."""
    status, line = program([sys.executable, "-c", "import mindspore; print(mindspore.__version__)"])
    if status:
        return Finding("mindspore", f"does not load ({line}); pip install mindspore", "wrong")
    if line.startswith("2.10"):
        return Finding("mindspore", line)
    return Finding("mindspore", f"{line}, but the package is made for 2.10", "note")


def check_compiler() -> Finding:
    """Only needed to build the kernels."""
    name = env.get("CXX") or "g++"
    status, line = program([name, "--version"])
    if status:
        return Finding(
            "compiler", f"no {name}; only needed to build the kernels from source", "note"
        )
    with temporary_folder("doctor") as folder:
        source = folder / "probe.cpp"
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        words = [name, "-std=c++17", "-fopenmp", str(source), "-o", str(source.with_suffix(""))]
        status, problem = program(words)
    if status:
        return Finding("compiler", f"{line}; no C++17 with OpenMP ({problem})", "note")
    return Finding("compiler", f"{line}, C++17 with OpenMP")


def check_kernels() -> Finding:
    """The compiled libraries, as a run finds them."""
    library = importlib.import_module("mindspeed_ms.ops.cpu.library")
    found = library.loading()
    if found.library is None:
        return Finding("kernels", found.reason, "note")
    folder = Path(str(library.__file__)).parent
    levels = sorted({path.name.split(".")[0] for path in folder.glob("_kernels_*.so")})
    built = ", ".join(level.removeprefix("_kernels_") for level in levels)
    missing = [
        name
        for name, is_there in (
            ("indices", importlib.import_module("mindspeed_ms.data.native").native_indices()),
            (
                "digests",
                importlib.import_module("mindspeed_ms.formats.containers.native").function(
                    "digest_sums"
                ),
            ),
        )
        if is_there is None
    ]
    text = f"{found.library.level} is used, of {built}"
    if missing:
        return Finding("kernels", f"{text}; not built: {', '.join(missing)}, build again", "note")
    return Finding("kernels", text)


def check_mpi() -> Finding:
    """Two ranks of a job on this machine, which sum a number."""
    if importlib.util.find_spec("mpi4py") is None:
        return Finding(
            "MPI", "mpi4py is not installed: one rank only; pip install 'mindspeed_ms[cpu]'", "note"
        )
    beside = Path(sys.executable).parent / "mpiexec"
    name = str(beside) if beside.exists() else "mpiexec"
    words = [name, "-n", "2", sys.executable, "-c", _TWO_RANKS]
    status, line = program(words)
    if status == 127:
        return Finding("MPI", "there is no mpiexec; pip install 'mindspeed_ms[cpu]'", "note")
    if status or not line.startswith("ranks 2 "):
        why = line or f"status {status}"
        return Finding(
            "MPI",
            f"two ranks of {name} do not meet ({why}); mpiexec and mpi4py must be of one MPI",
            "note",
        )
    return Finding("MPI", f"two ranks of {name} met: {line.removeprefix('ranks 2 ')}")


def check_launchers() -> Finding:
    """The commands that start ranks."""
    folder = Path(sys.executable).parent
    names = ("mindspeed-ms", "mindspeed-torchrun", "mindspeed-msrun", "msrun")
    missing = [name for name in names if not (folder / name).exists() and not shutil.which(name)]
    if missing:
        return Finding(
            "launchers", f"not found: {', '.join(missing)}; pip install it again", "note"
        )
    hidden = [name for name in names if shutil.which(name) is None]
    if hidden:
        return Finding(
            "launchers", f"{folder} is not on PATH: . {folder}/activate, or add it", "note"
        )
    mine = Path(mindspeed_ms.__file__).parent / "backend" / "torchrun" / "bin"
    first = Path(shutil.which("torchrun") or "/nowhere").parent
    text = ", ".join(names)
    if first == mine:
        return Finding("launchers", f"{text}; torchrun is this project's")
    return Finding(
        "launchers",
        f"{text}; for scripts that say torchrun: export "
        'PATH="$(mindspeed-torchrun --bin-dir):$PATH"',
    )


def check_memory() -> Finding:
    """What a process can still take."""
    free = free_memory()
    text = f"{free.num_bytes / _GB:.1f} GB left ({free.limit}), "
    text += f"{len(os.sched_getaffinity(0))} cores"
    return Finding("memory", text, "ok" if free.num_bytes > _FEW_BYTES else "note")


def check_disk() -> Finding:
    """Room for checkpoints here, for temporary files, and for what ranks of a host share."""
    parts, state = [], "ok"
    for folder in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir()), Path("/dev/shm"))):
        if not folder.is_dir():
            continue
        free = shutil.disk_usage(folder).free
        note = "" if os.access(folder, os.W_OK) else " (not writable)"
        parts.append(f"{folder} {free / _GB:.1f} GB{note}")
        if note or (free < _FEW_BYTES and folder != Path("/dev/shm")):
            state = "note"
    return Finding("disk", f"left in {', '.join(parts)}", state)


def check_npu() -> Finding:
    """NPUs, their driver and CANN."""
    devices = sorted(Path("/dev").glob("davinci[0-9]*"))
    cann = env.get("ASCEND_HOME_PATH") or env.get("ASCEND_TOOLKIT_HOME")
    if not devices:
        return Finding("NPU", "none: training computes on the CPU")
    status, _ = program(["npu-smi", "info"])
    problems = [] if status == 0 else ["npu-smi does not answer: check the driver"]
    if not cann:
        problems.append("CANN is not set up here: source its set_env.sh")
    text = f"{len(devices)} devices, CANN {cann or 'not found'}"
    if problems:
        return Finding("NPU", f"{text}; {'; '.join(problems)}", "note")
    target = importlib.import_module("mindspeed_ms.backend.device").platform()
    return Finding("NPU", f"{text}, MindSpore computes on {target}")


def check_libraries() -> Finding:
    """Libraries that some options need."""
    present, absent = [], []
    for name, (extra, use) in _LIBRARIES.items():
        if importlib.util.find_spec(name) is None:
            absent.append(f"{name} [{extra}] for {use}")
        else:
            present.append(f"{name} {importlib.metadata.version(name)}")
    text = ", ".join(present) or "none"
    if absent:
        text += f"; not installed, as pip install 'mindspeed_ms[EXTRA]' does: {', '.join(absent)}"
    return Finding("libraries", text)


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_python,
    check_mindspore,
    check_compiler,
    check_kernels,
    check_mpi,
    check_launchers,
    check_memory,
    check_disk,
    check_npu,
    check_libraries,
)


def _found_by(check: Callable[[], Finding]) -> Finding:
    """What a check finds; a disk that is full is no reason to leave the others out."""
    try:
        return check()
    except OSError as error:
        name = check.__name__.removeprefix("check_")
        return Finding(name, f"cannot be checked here ({error}); look at room and rights", "note")


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything; return 1 if no run could start."""
    Parser.of(__doc__).parse_args(argv)
    is_wrong = no_mindspore = False
    for check in CHECKS:
        if no_mindspore and check is check_kernels:
            continue
        found = _found_by(check)
        sys.stdout.write(f"{found.state:<5} {found.name:<10} {found.text}\n")
        sys.stdout.flush()
        is_wrong = is_wrong or found.state == "wrong"
        no_mindspore = no_mindspore or (found.name == "mindspore" and found.state == "wrong")
    sys.stdout.write("no run can start here\n" if is_wrong else "training can start here\n")
    return int(is_wrong)
