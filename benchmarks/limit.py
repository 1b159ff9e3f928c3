# SPDX-License-Identifier: Apache-2.0
"""What this processor can do at best: the measure that other benchmarks print their share of.

    python benchmarks/limit.py [--threads 1 2] [--ranks 2]

Measures multiply-adds in registers for each type that the processor multiplies (fp32, bf16, fp16),
memory read and copied, and with --ranks a message there and back between two ranks of one host. The
loops are benchmarks/limit.cpp, compiled for the machine at the first call. A figure is the best of
seven, by the threads' own time on the processor: others may use the machine.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).with_suffix(".cpp")
TYPES = ("fp32", "bf16", "fp16")
STEPS, FLOATS = 1 << 20, 1 << 26
"""Steps of a loop in registers; floats of a stream, more than any cache holds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of some threads together; 0: the processor does not multiply the type."""

    processor: str
    threads: int
    fp32: float
    """Operations per second, a multiply-add counted as two."""
    bf16: float
    fp16: float
    read: float
    """Bytes per second."""
    copied: float
    """Bytes per second that are copied; each is read and written."""

    def share(self, operations_per_second: float, dtype: str = "fp32") -> str:
        """``87 % of the fp32 limit``."""
        limit = getattr(self, dtype) or self.fp32
        kind = dtype if getattr(self, dtype) else "fp32"
        return f"{100 * operations_per_second / limit:.0f} % of the {kind} limit"

    def share_of_memory(self, bytes_per_second: float) -> str:
        """``91 % of memory speed``."""
        return f"{100 * bytes_per_second / self.read:.3g} % of memory speed"


def processor() -> str:
    """Name of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


@functools.cache
def library() -> ctypes.CDLL:
    """The loops, compiled for this machine.

    Raises:
        RuntimeError: there is no compiler, or it failed.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("benchmarks/limit.cpp needs a C++ compiler (g++) in PATH")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "limit.so"
        flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17"]
        command = [compiler, *flags, str(SOURCE), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        found = ctypes.CDLL(str(target))
    number, pointer, count = ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64
    for name, arguments in (
        ("limit_arithmetic", (number, number, count)),
        ("limit_read", (pointer, count, number)),
        ("limit_copy", (pointer, pointer, count, number)),
    ):
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, ctypes.c_double
    return found


@functools.cache
def limits(threads: int = 1) -> Limits:
    """Measure, in about a second.

    Args:
        threads: that work together.
    """
    loops = library()
    source, target = np.ones(FLOATS, np.float32), np.ones(FLOATS, np.float32)
    fp32, bf16, fp16 = (
        float(loops.limit_arithmetic(index, threads, STEPS)) for index in range(len(TYPES))
    )
    read = loops.limit_read(source.ctypes.data, FLOATS, threads)
    copied = loops.limit_copy(source.ctypes.data, target.ctypes.data, source.nbytes, threads)
    return Limits(processor(), threads, fp32, bf16, fp16, read, copied)


def share_of_limit(operations_per_second: float, threads: int, dtype: str = "fp32") -> str:
    """See ``Limits.share``; without a compiler it says so."""
    try:
        return limits(threads).share(operations_per_second, dtype)
    except RuntimeError:
        return "unknown: no C++ compiler"


def share_of_memory(bytes_per_second: float) -> str:
    """See ``Limits.share_of_memory``, of one thread; without a compiler it says so."""
    try:
        return limits().share_of_memory(bytes_per_second)
    except RuntimeError:
        return "unknown: no C++ compiler"


def _between_ranks() -> float:
    """Seconds of a message there and back, in processes of their own."""
    launcher = shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec"))
    script = str(Path(__file__).with_name("limit_messages.py"))
    command = [launcher, "-n", "2", sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(next(line for line in done.stdout.splitlines() if line.startswith("0.")))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--ranks", type=int, choices=(2,), help="measure messages between ranks")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    found = [limits(threads) for threads in arguments.threads]
    trip = _between_ranks() if arguments.ranks else None
    if arguments.json:
        content = {"limits": [asdict(one) for one in found], "round_trip": trip}
        sys.stdout.write(json.dumps(content) + "\n")
        return 0
    sys.stdout.write(f"{found[0].processor}\n")
    for one in found:
        figures = [f"{name} {getattr(one, name) / 1e9:.0f} GFLOP/s" for name in TYPES]
        streams = f"read {one.read / 1e9:.1f} GB/s, copied {one.copied / 1e9:.1f} GB/s"
        sys.stdout.write(f"{one.threads} threads: {', '.join(figures)}; memory {streams}\n")
    if trip is not None:
        sys.stdout.write(f"message there and back between ranks: {trip * 1e6:.1f} us\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
