# SPDX-License-Identifier: Apache-2.0
"""A run of any length needs no more host memory than a short one."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from itertools import pairwise

import pipeline_runs
import pytest

from mindspeed_ms.backend import autograd, device
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.training import initialize_megatron, pretrain

pytestmark = pytest.mark.ranks

WARM_UP, MEASURED, SPANS = 8, 6, 3
BATCH = ["--global-batch-size", "4", "--micro-batch-size", "1"]
LEAST_LEAK = 20
"""Bytes kept per call of an autograd Function that the test has to notice."""


class MallocState(ctypes.Structure):
    """``struct mallinfo2`` of the C library."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks "
        "keepcost".split()
    ]


def memory_in_use():
    """(bytes given out by malloc, blocks given out by Python); exact, unlike the resident set."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallocState
    gc.collect()
    sys._clear_type_cache()  # up to 4,096 names that were looked up lately
    state = libc.mallinfo2()
    return state.uordblks + state.hblkhd, sys.getallocatedblocks()


class FunctionCalls:
    """Counts calls of autograd Functions."""

    def __init__(self):
        self.count = 0

    def __call__(self, frame, event, argument):
        code = frame.f_code
        self.count += (
            event == "call" and code.co_name == "shared" and code.co_filename == autograd.__file__
        )


def train(flags, on_step):
    """Train with flags; configurations with data of their own keep it."""
    initialize_megatron(argv=[*flags, "--log-interval", "1", "--eval-iters", "0"])
    logging.getLogger("mindspeed_ms").setLevel(logging.WARNING)

    class Endless:
        def __iter__(self):
            return pipeline_runs.micro_batches()

    config = get_all_config()
    pretrain(
        None,
        pipeline_runs.provider,
        all_config=config,
        train_data_loader=None if config.dataset_config.data_path else Endless(),
        on_step=on_step,
    )


def growth_worker(flags):
    """What an iteration leaves behind: (bytes, blocks), and its calls of Functions.

    Of several spans the one that leaves least: a leak is in each, while a library that enlarges a
    pool of its own (MPI's requests) does so in one.
    """
    seen, calls = [], FunctionCalls()
    last = WARM_UP + SPANS * MEASURED

    def on_step(step):
        if step.iteration in range(WARM_UP, last + 1, MEASURED):
            seen.append(memory_in_use())
        if step.iteration == last:
            sys.setprofile(calls)

    try:
        train([*flags, "--train-iters", str(last + 1)], on_step)
    finally:
        sys.setprofile(None)
    num_bytes, blocks = (
        min((after - before) / MEASURED for before, after in pairwise(values))
        for values in zip(*seen, strict=True)
    )
    return num_bytes, blocks, calls.count


def check(results):
    for rank, (num_bytes, blocks, calls) in enumerate(results):
        assert calls > 50, "an iteration of several layers and micro-batches"
        assert num_bytes < calls * LEAST_LEAK / 4, f"rank {rank}, {calls} calls: {results}"
        assert blocks < calls / 8, f"rank {rank}, {calls} calls: {results}"


LLAMA = [*pipeline_runs.BASE, *pipeline_runs.LLAMA, "--num-layers", "2", *BATCH]
GPT2 = [*pipeline_runs.BASE, *pipeline_runs.GPT2, "--num-layers", "2", *BATCH]
MOE = ["--num-experts", "4", "--moe-router-topk", "2", "--moe-aux-loss-coeff", "0.01"]
RECOMPUTE = [
    *("--recompute-granularity", "full", "--recompute-method", "uniform"),
    *("--recompute-num-layers", "1"),
]
ONE_RANK = {
    "llama": LLAMA,
    "bf16": [*LLAMA, "--bf16"],
    "gpt2 with dropout": [*GPT2, "--attention-dropout", "0.1", "--hidden-dropout", "0.1"],
    "recompute": [*LLAMA, *RECOMPUTE],
    "latent attention": [*LLAMA, "--multi-latent-attention", "--mtp-num-layers", "1"],
    **{
        name: [
            *("--yaml", f"configs/{name}.yaml", "--lr-warmup-iters", "1", *BATCH),
            *("--expert-model-parallel-size", "1", "--tensor-model-parallel-size", "1"),
            *("--expert-tensor-parallel-size", "1"),
        ]
        for name in ("tiny_mixtral", "tiny_deepseek_v3", "tiny_qwen2_moe")
    },
}
TWO_RANKS = {
    "tensor": ["--tensor-model-parallel-size", "2", "--sequence-parallel"],
    "pipeline": ["--pipeline-model-parallel-size", "2"],
    "context": ["--context-parallel-size", "2"],
    "experts": [*MOE, "--expert-model-parallel-size", "2"],
    "data": ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"],
}


@pytest.mark.parametrize("name", ONE_RANK)
def test_an_iteration_of_one_rank_leaves_nothing_behind(dist_run, name):
    check(dist_run(growth_worker, ranks=1, flags=ONE_RANK[name]))


@pytest.mark.parametrize("name", TWO_RANKS)
def test_an_iteration_of_two_ranks_leaves_nothing_behind(dist_run, name):
    check(dist_run(growth_worker, ranks=2, flags=[*LLAMA, *TWO_RANKS[name]]))


def long_worker(iterations):
    """Growth of the resident set in bytes after a quarter of the iterations."""
    resident = {}

    def on_step(step):
        if step.iteration in (iterations // 4, iterations):
            gc.collect()
            resident[step.iteration] = device.memory_stats()["current"]

    train([*LLAMA, "--num-layers", "8", "--train-iters", str(iterations)], on_step)
    return resident[iterations] - resident[iterations // 4]


@pytest.mark.slow
def test_a_long_run_grows_by_less_than_a_mebibyte(dist_run):
    (grown,) = dist_run(long_worker, ranks=1, timeout=600.0, iterations=1600)
    assert grown < 2**20
