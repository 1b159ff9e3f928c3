# SPDX-License-Identifier: Apache-2.0
"""CPU time of a generated token, in turns with ``transformers``.

python benchmarks/generate.py FOLDER --batch 1 8 [--other PYTHON] measures the model in a folder of
Hugging Face; PYTHON is an interpreter with torch and transformers. Both sides go on greedily from
the same random prompts on one thread; a figure is the least of several turns, since others may use
the machine.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindspeed_ms.toolkit.models.auto import AutoModelForCausalLM

OTHER = """
import sys, time, numpy, torch, transformers
torch.set_num_threads(1)
folder, batch, length, steps = sys.argv[1], *map(int, sys.argv[2:5])
model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
top = model.config.vocab_size
ids = torch.tensor(numpy.random.default_rng(0).integers(8, top, (batch, length)))
def seconds(count):
    start = time.process_time()
    model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
    return time.process_time() - start
seconds(2)
print((seconds(steps + 1) - seconds(1)) / steps)
"""


def own_seconds(folder: str, batch: int, length: int, steps: int) -> float:
    """CPU seconds per step of ``batch`` tokens; in a process of its own."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    top = model.config.vocab_size
    ids = np.random.default_rng(0).integers(8, top, (batch, length))

    def seconds(count: int) -> float:
        start = time.process_time()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, pad_token_id=0)
        return time.process_time() - start

    seconds(2)
    return (seconds(steps + 1) - seconds(1)) / steps


def _turn(command: Sequence[str]) -> float:
    command = ["env", "OMP_NUM_THREADS=1", "GLOG_v=3", *command]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def processor() -> str:
    """Name of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--other", help="interpreter with torch and transformers")
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    sizes = (arguments.length, arguments.steps)
    if arguments.own:
        sys.stdout.write(f"{own_seconds(arguments.folder, arguments.batch[0], *sizes)}\n")
        return 0
    sys.stdout.write(f"{processor()}; CPU ms per step, one thread, least of {arguments.turns}\n")
    for batch in arguments.batch:
        own = [sys.executable, __file__, arguments.folder, "--own", "--batch", str(batch)]
        own += ["--length", str(sizes[0]), "--steps", str(sizes[1])]
        numbers = [arguments.folder, str(batch), *map(str, sizes)]
        other = [arguments.other, "-c", OTHER, *numbers] if arguments.other else None
        ours, theirs = [], []
        for _ in range(arguments.turns):
            ours.append(_turn(own))
            if other is not None:
                theirs.append(_turn(other))
        line = f"batch {batch}: {min(ours) * 1e3:.3f}"
        if theirs:
            line += f", transformers {min(theirs) * 1e3:.3f}, ratio {min(ours) / min(theirs):.2f}"
        sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
