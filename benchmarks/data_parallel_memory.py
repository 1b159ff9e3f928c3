# SPDX-License-Identifier: Apache-2.0
"""Memory and optimizer speed of data parallel training: measured, beside the formula.

    mpiexec -n 4 python benchmarks/data_parallel_memory.py --level z2 --output memory.json

Builds the weights of a Llama-like model on each rank, wraps them for a ZeRO level, runs one step,
and appends to a JSON list: the bytes of the tensors held as parameters, gradients and optimizer
state, what the formula says, and the growth of the process's resident memory from before the model
to after the step (the largest of the ranks), which tells whether these tensors are all there is.
Start one process per level: memory freed by an earlier level would hide that growth. On one rank
without sharding the optimizer step is timed, beside the time its bytes take to copy.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from mindspore.common import dtype as mstype
from mindspore.nn import Cell

from mindspeed_ms import ops
from mindspeed_ms.backend import comm, memory
from mindspeed_ms.config import ModelParallelConfig, OptimizerConfig
from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.distributed.distributed_data_parallel import DistributedDataParallel
from mindspeed_ms.core.distributed.distributed_data_parallel_config import (
    DistributedDataParallelConfig,
)
from mindspeed_ms.core.optimizer import get_megatron_optimizer
from mindspeed_ms.core.parameter import (
    create_parameter,
    make_ready,
    named_parameters,
    num_elements,
)
from mindspeed_ms.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)

logger = logging.getLogger("data_parallel_memory")

LEVELS: dict[str, dict[str, Any]] = {
    "none": {},
    "z1": {"zero_level": "z1"},
    "z2": {"zero_level": "z2"},
    "z3": {"zero_level": "z3"},
}
COPY_REPEATS, STEP_REPEATS = 5, 5


class Layer(Cell):
    """The weights of a transformer layer."""

    def __init__(self, hidden: int, inner: int, config: ModelParallelConfig, dtype: Any) -> None:
        super().__init__()
        common = {"config": config, "init_method": _small, "bias": False, "param_init_dtype": dtype}
        self.norm = create_parameter((hidden,), np.ones, dtype=dtype, name="norm")
        self.out = RowParallelLinear(hidden, hidden, input_is_parallel=True, **common)
        self.qkv = ColumnParallelLinear(hidden, 2 * hidden, **common)
        self.norm2 = create_parameter((hidden,), np.ones, dtype=dtype, name="norm2")
        self.up = ColumnParallelLinear(hidden, 2 * inner, **common)
        self.down = RowParallelLinear(inner, hidden, input_is_parallel=True, **common)


class Weights(Cell):
    """Embedding, layers and head: 31.6 million parameters with the default sizes."""

    def __init__(self, hidden: int, inner: int, layers: int, vocabulary: int, dtype: Any) -> None:
        super().__init__()
        config = ModelParallelConfig()
        self.embedding = VocabParallelEmbedding(
            vocabulary, hidden, init_method=_small, config=config, param_init_dtype=dtype
        )
        for index in range(layers):
            self.insert_child_to_cell(f"layer{index}", Layer(hidden, inner, config, dtype))
        self.head = ColumnParallelLinear(
            hidden,
            vocabulary,
            config=config,
            init_method=_small,
            bias=False,
            param_init_dtype=dtype,
        )


def _small(shape: Any) -> np.ndarray:
    return np.full(tuple(shape), 0.01, np.float32)


def formula(sizes: dict[str, int], level: str, ranks: int, width: int) -> dict[str, int]:
    """Bytes per rank without padding.

    P parameters of ``width`` bytes with fp32 gradients, two fp32 moments, and an fp32 copy where
    parameters are not fp32 themselves; W of them in weights, the largest of which has L.
    Z2 adds the scratch bucket in which gradients are made, z3 the two weights that are whole and
    the one that hidden weights show.
    """
    total, weights, largest = sizes["total"], sizes["weights"], sizes["largest"]
    state = (8 if width == 4 else 12) * total
    parts = {"parameters": width * total, "gradients": 4 * total, "optimizer": state}
    if level == "none":
        return parts
    parts["optimizer"] //= ranks
    if level in ("z2", "z3"):
        parts["gradients"] = 4 * (total // ranks + sizes["scratch"])
    if level == "z3":
        parts["parameters"] = width * (total - weights + weights // ranks + 3 * largest)
    return parts


def resident_bytes() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS line; run on Linux")


def backward(model: DistributedDataParallel) -> None:
    """Give every parameter a gradient, in backward order, as a backward would."""
    for _, param in reversed(named_parameters(model.module)):
        make_ready(param)
        sink = param.grad_sink
        grad = memory.from_numpy(np.full(param.shape, 1e-3, np.float32))
        ops.axpy_(sink.main_grad, grad)
        sink.mark_ready()


def copy_bandwidth(num_bytes: int) -> float:
    """Bytes read and written per second by a large copy, the best of some tries."""
    source = memory.zeros((num_bytes // 4,))
    target = memory.zeros((num_bytes // 4,))
    best = min(_timed(lambda: ops.copy_cast_(target, source)) for _ in range(COPY_REPEATS))
    return 2 * num_bytes / best


def _timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(level: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One ZeRO level on this rank."""
    dtype = mstype.bfloat16 if arguments.bf16 else mstype.float32
    gc.collect()
    before = resident_bytes()
    model = DistributedDataParallel(
        DistributedDataParallelConfig(grad_reduce_in_fp32=True, **LEVELS[level]),
        Weights(arguments.hidden, arguments.inner, arguments.layers, arguments.vocabulary, dtype),
    )
    optimizer = get_megatron_optimizer(OptimizerConfig(clip_grad=1.0), [model])
    optimizer.set_schedule(1e-4, 0.1, None)
    sizes = _sizes(model)
    seconds = []
    for _ in range(STEP_REPEATS if arguments.time_step else 1):
        model.zero_grad_buffer()
        backward(model)
        model.finish_grad_sync()
        seconds.append(_timed(optimizer.step))
    model.finish_param_sync()
    gc.collect()
    held = {**model.num_bytes(), "optimizer": optimizer.num_bytes()}
    result = {
        "level": level,
        "measured": held,
        "formula": formula(sizes, level, comm.get_world_size(), memory.numpy_dtype(dtype).itemsize),
        "resident": resident_bytes() - before,
        "step_seconds": min(seconds),
    }
    model.detach()
    return result


def _sizes(model: DistributedDataParallel) -> dict[str, int]:
    params = [param for _, param in named_parameters(model.module)]
    weights = [num_elements(param) for param in params if param.ndim >= 2]
    return {
        "total": sum(num_elements(param) for param in params),
        "weights": sum(weights),
        "largest": max(weights),
        "scratch": max(
            (span.size for buffer in model.buffers for span in buffer.layout.buckets), default=0
        ),
    }


def step_speed(result: dict[str, Any]) -> dict[str, float]:
    """The optimizer step beside the time a copy needs for the bytes the step must move.

    AdamW reads parameter, gradient and both moments and writes all but the gradient; the norm
    reads the gradient once more.
    """
    elements = result["formula"]["gradients"] // 4
    moved = elements * 4 * (4 + 3 + 1)
    bandwidth = copy_bandwidth(elements * 4)
    floor = moved / bandwidth
    return {
        "elements": elements,
        "step_seconds": result["step_seconds"],
        "copy_bytes_per_second": bandwidth,
        "floor_seconds": floor,
        "times_floor": result["step_seconds"] / floor,
    }


def main() -> None:
    """Measure every level and write a JSON file on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--inner", type=int, default=1376)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--level", choices=tuple(LEVELS), default="none")
    parser.add_argument("--time-step", action="store_true", help="time the optimizer step")
    parser.add_argument("--bf16", action="store_true", help="parameters in bfloat16")
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    comm.init_process_group()
    parallel_state.initialize_model_parallel()
    result = measure(arguments.level, arguments)
    result["resident"] = max(comm.all_gather_object(result["resident"]))
    result = {"ranks": comm.get_world_size(), "bf16": arguments.bf16, **result}
    if arguments.time_step:
        result["optimizer_step"] = step_speed(result)
        result["kernels"] = ops.report()
    if comm.get_rank() == 0:
        logger.info(json.dumps(result, indent=1))
        if arguments.output is not None:
            found = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
            arguments.output.write_text(json.dumps([*found, result], indent=1) + "\n")


if __name__ == "__main__":
    main()
