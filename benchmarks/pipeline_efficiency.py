# SPDX-License-Identifier: Apache-2.0
"""Pipeline efficiency: measured step time against ideal compute plus the bubble of the theory.

    mpiexec -n 2 python benchmarks/pipeline_efficiency.py --pipeline-model-parallel-size 2
    mpiexec -n 2 python benchmarks/pipeline_efficiency.py --pipeline-model-parallel-size 2 \
        --num-virtual-stages-per-pipeline-rank 2

Flags are added to those of a small Llama. One line of JSON is printed by the first rank, medians
over the measured iterations: ``step_ms`` of forward and backward of all micro-batches, without the
optimizer; ``work_ms`` of the passes of the busiest stage; ``expected_ms`` = work of an average
stage x (1 + (stages - 1) / (micro-batches x chunks)); ``efficiency`` = expected / measured;
``wait_ms``, the longest any stage waited for its neighbours; ``in_flight`` per stage; and
``share_of_limit`` of the operations per second of all ranks (see ``limit.py``), of fp32. Every
rank needs a core of its own: give it one thread (OMP_NUM_THREADS=1) and no other load.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

import numpy as np
from limit import share_of_limit

from mindspeed_ms.backend import comm
from mindspeed_ms.command.train import model_provider
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.num_microbatches_calculator import get_num_microbatches
from mindspeed_ms.core.pipeline_parallel import get_forward_backward_func
from mindspeed_ms.core.pipeline_parallel.executor import StepRecord
from mindspeed_ms.core.pipeline_parallel.timeline import (
    PASSES,
    Timeline,
    measured,
    theoretical_bubble_ratio,
)
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.forward_step import default_forward_step
from mindspeed_ms.engine.model_chunks import get_model
from mindspeed_ms.ops.cpu import library
from mindspeed_ms.plan.schedule_plan import Shape
from mindspeed_ms.planning.operations import step_operations
from mindspeed_ms.training import initialize_megatron

WARM_UP, MEASURED = 2, 7
"""Iterations that are thrown away, and that count."""

FLAGS = (
    "--num-layers 8 --hidden-size 256 --ffn-hidden-size 688 --num-attention-heads 4 "
    "--seq-length 128 --max-position-embeddings 128 --padded-vocab-size 512 "
    "--micro-batch-size 2 --global-batch-size 16 --train-iters 1 --swiglu --normalization RMSNorm "
    "--position-embedding-type rope --disable-bias-linear --untie-embeddings-and-output-weights "
    "--attention-dropout 0 --hidden-dropout 0 --lr 1e-4 --mock-data --logging-level 30 "
    "--tokenizer-type NullTokenizer --vocab-size 500 --eval-iters 0"
).split()


def batches(rows: int, length: int) -> Any:
    """Made-up micro-batches without end."""
    numbers = np.random.default_rng(0)
    while True:
        ids = numbers.integers(0, 500, (rows, length + 1)).astype(np.int32)
        yield {
            "tokens": np.ascontiguousarray(ids[:, :-1]),
            "labels": np.ascontiguousarray(ids[:, 1:]),
            "loss_mask": np.ones((rows, length), np.float32),
            "position_ids": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        }


def timelines() -> tuple[Shape, list[Timeline]]:
    """The schedule, and the measured timelines of this rank's pipeline."""
    config = get_all_config()

    model = get_model(model_provider, config)
    group = parallel_state.get_pipeline_model_parallel_group()
    records: list[StepRecord] = []
    data = batches(config.dataset_config.batch_size, config.model_config.seq_length)
    for _ in range(WARM_UP + MEASURED):
        for chunk in model:
            chunk.zero_grad_buffer()
        comm.barrier()
        get_forward_backward_func()(
            forward_step_func=default_forward_step(),
            data_iterator=data,
            model=model,
            num_microbatches=get_num_microbatches(),
            recorder=records.append,
        )
        for chunk in model:
            chunk.finish_grad_sync()
    shape = Shape(
        group.size,
        get_num_microbatches(),
        len(model),
        config.parallel_config.microbatch_group_size_per_vp_stage,
    )
    of_stages = comm.all_gather_object(records, group) if group.size > 1 else [records]
    return shape, [measured(list(step)) for step in zip(*of_stages, strict=True)][WARM_UP:]


def summary(shape: Shape, steps: list[Timeline]) -> dict[str, Any]:
    """Medians over the measured steps."""
    stages = range(shape.stages)
    bubble = theoretical_bubble_ratio(shape)
    span = [step.span for step in steps]
    average = [sum(step.work(stage) for stage in stages) / shape.stages for step in steps]
    busiest = [max(step.work(stage) for stage in stages) for step in steps]
    waits = [
        max(
            sum(
                bar.end - bar.start
                for bar in step.bars
                if bar.stage == s and bar.kind not in PASSES
            )
            for s in stages
        )
        for step in steps
    ]
    efficiency = [mean * (1 + bubble) / whole for mean, whole in zip(average, span, strict=True)]
    return {
        "stages": shape.stages,
        "chunks": shape.chunks,
        "microbatches": shape.microbatches,
        "step_ms": _ms(span),
        "work_ms": _ms(busiest),
        "expected_ms": _ms([mean * (1 + bubble) for mean in average]),
        "wait_ms": _ms(waits),
        "bubble_theory": round(bubble, 4),
        "bubble_measured": round(statistics.median(step.bubble_ratio for step in steps), 4),
        "efficiency": round(statistics.median(efficiency), 4),
        "in_flight": list(steps[0].peaks),
    }


def _ms(seconds: list[float]) -> float:
    return round(1e3 * statistics.median(seconds), 2)


def main() -> None:
    """Measure the layout of the command line."""
    comm.init_process_group()
    initialize_megatron(argv=[*FLAGS, *sys.argv[1:]])
    result = summary(*timelines())
    if comm.get_rank() == 0:
        config, world = get_all_config(), comm.get_world_size()
        operations = step_operations(config.model_config, config.global_batch_size(world))
        speed = operations / (result["step_ms"] / 1e3)
        result["share_of_limit"] = share_of_limit(speed, library.num_threads() * world)
        print(json.dumps(result))  # noqa: T201 - the result


if __name__ == "__main__":
    main()
