# SPDX-License-Identifier: Apache-2.0
"""Python calls of one training step: how much of a step is plumbing.

    mpiexec -n 2 python benchmarks/step_calls.py
    python benchmarks/step_calls.py --tensor-model-parallel-size 1 --num-layers 8

Counts the calls of functions of the package in ``train_step`` in the fifth iteration of the small
example (``configs/tiny_gpt.yaml`` with two micro-batches and the distributed optimizer; flags are
added to its own) and prints how many there are, how many functions and files take part, and which
functions are called most. A generator counts once for each time it goes on.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import mindspeed_ms
from mindspeed_ms.backend import comm
from mindspeed_ms.command.train import model_provider
from mindspeed_ms.engine import train_loop
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.training import initialize_megatron, pretrain

PACKAGE = f"{Path(mindspeed_ms.__file__).parent}/"
COUNTED = 5
FLAGS = (
    "--yaml configs/tiny_gpt.yaml --global-batch-size 4 --use-distributed-optimizer "
    f"--train-iters {COUNTED} --lr-warmup-iters 1 --eval-iters 0"
).split()


def count_calls(flags: list[str]) -> Counter[str]:
    """Calls by file and function in iteration ``COUNTED`` of a training run; collective."""
    calls: Counter[str] = Counter()

    is_inside = False

    def note(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal is_inside
        code = frame.f_code
        if code is train_loop.train_step.__code__ and event in ("call", "return"):
            is_inside = event == "call"
        if is_inside and event == "call" and code.co_filename.startswith(PACKAGE):
            calls[f"{code.co_filename.removeprefix(PACKAGE)}:{code.co_name}"] += 1

    def on_step(step: StepReport) -> None:
        sys.setprofile(note if step.iteration == COUNTED - 1 else None)

    initialize_megatron(argv=[*FLAGS, *flags])
    try:
        pretrain(None, model_provider, all_config=get_all_config(), on_step=on_step)
    finally:
        sys.setprofile(None)
    return calls


def main() -> None:
    """Count, and print the first rank's numbers."""
    calls = count_calls(sys.argv[1:])
    if comm.get_rank() == 0:
        files = {name.partition(":")[0] for name in calls}
        lines = [f"{sum(calls.values())} calls of {len(calls)} functions in {len(files)} files"]
        lines += [f"{count:6} {name}" for name, count in calls.most_common(40)]
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
