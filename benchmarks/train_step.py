"""Tokens per second, memory and start-up time of training steps, as JSON on standard output.

    python benchmarks/train_step.py
    mpiexec -n 2 python benchmarks/train_step.py --tensor-model-parallel-size 2

The model is a Llama of 31.6 million parameters on made-up tokens; flags are added to its own, so
any size or layout can be measured. One line of JSON is printed by the first rank: tokens per
second over all ranks (median over the measured iterations), and per rank the peak resident memory
and the seconds from process start to the first step.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import psutil
from reference_model import FLAGS

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, device
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.training import initialize_megatron, pretrain
from mindspeed_ms.training.global_vars import get_all_config
from mindspeed_ms.training.train_loop import StepReport

FIRST_MEASURED, LAST_MEASURED = 5, 15


def measure(flags: list[str]) -> dict[str, Any]:
    """Train a few iterations; collective over all ranks.

    Returns:
        The figures, with one entry per rank for memory and start-up.
    """
    started = psutil.Process().create_time()
    initialize_megatron(argv=[*FLAGS, "--train-iters", str(LAST_MEASURED), *flags])
    steps: list[StepReport] = []
    first_step: list[float] = []

    def model_provider(pre_process: bool, post_process: bool) -> GPTModel:
        model = GPTModel(
            get_all_config().model_config, pre_process=pre_process, post_process=post_process
        )
        return model

    def on_step(step: StepReport) -> None:
        if not steps:
            first_step.append(time.time() - step.seconds)
        steps.append(step)

    pretrain(None, model_provider, all_config=get_all_config(), on_step=on_step)
    config, world = get_all_config(), comm.get_world_size()
    tokens = config.global_batch_size(world) * config.model_config.seq_length
    median = statistics.median(step.seconds for step in steps[FIRST_MEASURED - 1 :])
    own = {"peak_rss_mib": device.memory_stats()["peak"] / 2**20}
    own["startup_seconds"] = first_step[0] - started
    ranks = comm.all_gather_object(own)
    return {
        "tokens_per_second": round(tokens / median, 1),
        "milliseconds_per_step": round(median * 1000.0, 1),
        "peak_rss_mib": [round(rank["peak_rss_mib"], 1) for rank in ranks],
        "startup_seconds": [round(rank["startup_seconds"], 2) for rank in ranks],
        "ranks": world,
        "kernels": ops.report().splitlines()[0],
        "final_loss": steps[-1].losses["lm loss"],
    }


def main() -> None:
    """Measure with the flags of the command line and print JSON."""
    result = measure(sys.argv[1:])
    if comm.get_rank() == 0:
        sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
