# SPDX-License-Identifier: Apache-2.0
"""What writing a run down costs: processor time of steps with all logging and without, in turns.

    OMP_NUM_THREADS=1 python benchmarks/logging_overhead.py
    OMP_NUM_THREADS=1 python benchmarks/logging_overhead.py --turns 40 --num-layers 8

One run of the first example on one rank, with TensorBoard, a log file, the record of the run and a
log line per iteration. In every second turn of 10 iterations none of it is written. Processor time
of the whole process counts, so that of the thread which writes event files as well; processor time
does not depend on what else the machine does, or hardly. Other flags are added to those of the run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mindspeed_ms.command.train import model_provider
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.log_lines import IntervalReport
from mindspeed_ms.engine.observe.observer import Observer
from mindspeed_ms.engine.step_report import StepReport
from mindspeed_ms.engine.train_loop import IntervalLog
from mindspeed_ms.training import initialize_megatron, pretrain

LENGTH = 10
FLAGS = (
    "--yaml configs/austen_gpt.yaml --tensor-model-parallel-size 1 --lr-warmup-iters 1 "
    "--eval-iters 0 --log-interval 1 --log-timers-to-tensorboard --log-memory-to-tensorboard"
).split()


class Turns:
    """Switches logging on and off, and keeps the processor time of every turn.

    Args:
        count: turns of either kind, after one of each that does not count.
    """

    def __init__(self, count: int) -> None:
        self.iterations = 2 * LENGTH * (count + 1)
        self.is_on = True
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._begin = 0.0
        self._write, self._line = Observer.after_step, Observer.after_line
        self._add = IntervalLog.add

    def install(self) -> None:
        """Put the switch before what is called for every iteration."""
        turns = self

        def after_step(self: Observer, report: StepReport) -> None:
            if turns.is_on:
                turns._write(self, report)

        def after_line(self: Observer, line: IntervalReport) -> None:
            if turns.is_on:
                turns._line(self, line)

        def add(log: IntervalLog, *arguments: object) -> IntervalReport | None:
            return turns._add(log, *arguments) if turns.is_on else None  # type: ignore[arg-type]

        Observer.after_step = after_step  # type: ignore[method-assign]
        Observer.after_line = after_line  # type: ignore[method-assign]
        IntervalLog.add = add  # type: ignore[method-assign, assignment]

    def on_step(self, step: StepReport) -> None:
        """An iteration is over, logging included."""
        if step.iteration % LENGTH:
            return
        now = time.process_time()
        if step.iteration > 2 * LENGTH:
            self.seconds[self.is_on].append((now - self._begin) / LENGTH)
        self.is_on = not self.is_on
        self._begin = time.process_time()


def main() -> None:
    """Train, and print the two medians and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    arguments, flags = parser.parse_known_args()
    turns = Turns(arguments.turns)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *FLAGS,
            *("--train-iters", str(turns.iterations), "--save", f"{folder}/run"),
            *("--save-interval", str(turns.iterations), "--data-cache-path", f"{folder}/cache"),
            *("--tensorboard-dir", f"{folder}/curves", "--log-file", f"{folder}/log.csv"),
        ]
        initialize_megatron(argv=[*words, *flags])
        turns.install()
        pretrain(None, model_provider, all_config=get_all_config(), on_step=turns.on_step)
        written = sum(path.stat().st_size for path in Path(folder, "curves").glob("events*"))
    with_all, without = (statistics.median(turns.seconds[kind]) for kind in (True, False))
    ratios = [a / b - 1 for a, b in zip(turns.seconds[True], turns.seconds[False], strict=True)]
    sys.stdout.write(
        f"processor time of a step: {1e3 * with_all:.2f} ms with all logging, "
        f"{1e3 * without:.2f} ms without: {100 * (with_all / without - 1):+.2f} %; "
        f"median of {len(ratios)} pairs of turns {100 * statistics.median(ratios):+.2f} %, "
        f"{written} bytes of events\n"
    )


if __name__ == "__main__":
    main()
