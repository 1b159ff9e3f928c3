# SPDX-License-Identifier: Apache-2.0
"""Tokens per second, memory and start-up time of training steps, as JSON on standard output.

    python benchmarks/train_step.py
    mpiexec -n 2 python benchmarks/train_step.py --tensor-model-parallel-size 2
    python benchmarks/train_step.py --png step.png

The model is a Llama of 31.6 million parameters on made-up tokens; flags are added to its own, so
any size or layout can be measured. One line of JSON is printed by the first rank: tokens per
second over all ranks (median over the measured iterations), and per rank the peak resident memory,
what of it came after the start (``run_mib``) beside what the planner says of that, and the seconds
from process start to the first step. Then a few more iterations run with a clock in front of every
call of the native library; ``parts`` says where their time went on the first rank (see
``step_parts.py``): ``gemm_share`` is that of the linear products, ``rest_share`` what is neither
those nor the products of attention. ``--png`` draws them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import step_parts
from limit import share_of_limit
from reference_model import FLAGS

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, device
from mindspeed_ms.command.train import model_provider
from mindspeed_ms.core import parallel_state
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.train_loop import StepReport
from mindspeed_ms.ops.cpu import library, timing
from mindspeed_ms.planning.operations import step_operations
from mindspeed_ms.planning.plan import make_plan
from mindspeed_ms.training import initialize_megatron, pretrain

FIRST_MEASURED, LAST_MEASURED, TAKEN_APART = 5, 15, 5


class Meter:
    """Collects the reports of the steps; those after ``iterations`` are measured call by call."""

    def __init__(self, iterations: int) -> None:
        self.steps: list[StepReport] = []
        self.processor: list[float] = []
        """Processor time of the process at the end of each step, in seconds."""
        self.first_step = 0.0
        self.iterations = iterations
        self.times: timing.CallTimes | None = None
        self.active = ExitStack()

    def on_step(self, step: StepReport) -> None:
        """Note a step; called after each."""
        if not self.steps:
            self.first_step = time.time() - step.seconds
        self.steps.append(step)
        self.processor.append(time.process_time())
        if len(self.steps) == self.iterations and ops.selected() == "cpu":
            self.times = self.active.enter_context(timing.measured())

    def parts(self, head_rows: int) -> dict[str, Any]:
        """Where the time of the steps after ``iterations`` went."""
        self.active.close()
        last = self.steps[self.iterations :]
        if self.times is None or not last:
            return {}
        return step_parts.parts(
            self.times, sum(step.seconds for step in last), len(last), head_rows
        )


def measure(flags: list[str], iterations: int, taken_apart: int) -> dict[str, Any]:
    """Train a few iterations, and a few more taken apart; collective over all ranks.

    Returns:
        The figures, with one entry per rank for memory and start-up; of the first rank only.
    """
    started = psutil.Process().create_time()
    train_iters = ["--train-iters", str(iterations + taken_apart)]
    initialize_megatron(argv=[*FLAGS, *train_iters, *flags])
    meter, before = Meter(iterations), device.memory_stats()["current"]

    pretrain(None, model_provider, all_config=get_all_config(), on_step=meter.on_step)
    config, world = get_all_config(), comm.get_world_size()
    model, steps = config.model_config, meter.steps
    tokens = config.global_batch_size(world) * model.seq_length
    median = statistics.median(
        step.seconds for step in steps[FIRST_MEASURED - 1 : iterations] or steps
    )
    ends = meter.processor[FIRST_MEASURED - 2 : iterations]
    peak, plan = device.memory_stats()["peak"], make_plan(config, world)
    stage = plan.stages[parallel_state.get_pipeline_model_parallel_rank()]
    own = {"peak_rss_mib": peak / 2**20, "run_mib": (peak - before) / 2**20}
    own["planned_mib"] = stage.bytes_at_peak / 2**20
    own["processor_seconds"] = statistics.median(b - a for a, b in pairwise(ends))
    own["startup_seconds"] = meter.first_step - started
    speed = step_operations(model, config.global_batch_size(world)) / median
    dtype = {"bfloat16": "bf16", "float16": "fp16"}.get(model.compute_dtype, "fp32")
    ranks = comm.all_gather_object(own)
    if comm.get_rank() != 0:  # what the machine can do is measured on one
        return {}
    head_rows = model.vocab_size // config.parallel_config.tensor_model_parallel_size
    return {
        "tokens_per_second": round(tokens / median, 1),
        "milliseconds_per_step": round(median * 1000.0, 1),
        "processor_milliseconds_per_step": round(
            sum(rank["processor_seconds"] for rank in ranks) * 1e3, 1
        ),
        "share_of_limit": share_of_limit(speed, library.num_threads() * world, dtype),
        **{
            name: [round(rank[name], 1) for rank in ranks]
            for name in ("peak_rss_mib", "run_mib", "planned_mib")
        },
        "startup_seconds": [round(rank["startup_seconds"], 2) for rank in ranks],
        "ranks": world,
        "kernels": ops.report().splitlines()[0],
        "final_loss": steps[-1].losses["lm loss"],
        "parts": meter.parts(head_rows),
    }


def main() -> None:
    """Measure with the flags of the command line and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0], allow_abbrev=False
    )
    parser.add_argument(
        "--train-iters", type=int, default=LAST_MEASURED, help="the last measured iteration"
    )
    parser.add_argument(
        "--taken-apart", type=int, default=TAKEN_APART, help="further iterations, for the parts"
    )
    parser.add_argument("--png", type=Path, help="draw the parts of a step (needs matplotlib)")
    args, flags = parser.parse_known_args()
    result = measure(flags, args.train_iters, args.taken_apart)
    if result:
        sys.stdout.write(json.dumps(result) + "\n")
        if args.png and result["parts"]:
            step_parts.draw(result, args.png)


if __name__ == "__main__":
    main()
