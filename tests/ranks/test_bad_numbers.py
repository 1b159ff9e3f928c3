# SPDX-License-Identifier: Apache-2.0
"""Which rank made a bad number first, in which parameter or activation. Two ranks."""

import numpy as np
import pytest
from run_builder import open_run

from mindspeed_ms.backend import comm, memory
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine import train_loop
from mindspeed_ms.engine.errors import RunFailure

pytestmark = pytest.mark.ranks
NORM = "post_attention_norm.weight"
LAYOUTS = {
    "dp": (),
    "dp-distopt": ("--use-distributed-optimizer",),
    "zero3": ("--zero-level", "z3"),
    "tp": ("--tensor-model-parallel-size", "2", "--sequence-parallel"),
    "pp": ("--pipeline-model-parallel-size", "2"),
    "vpp": ("--pipeline-model-parallel-size", "2", "--num-layers-per-virtual-pipeline-stage", "2"),
}


def worker(flags, kind, bad_rank):
    """What this rank is told when one rank has made a bad number in iteration 2."""
    run, _ = open_run("--train-iters", "4", *flags)
    original = train_loop.finalize_model_grads

    def finalize(models):
        if kind == "gradient" and run.state.iteration == 1 and comm.get_rank() == bad_rank:
            memory.flat_view(models[0].buffers[0].grads.flat).reshape(-1)[7] = np.nan
        return original(models)

    train_loop.finalize_model_grads = finalize
    try:
        run.train(1)
        if kind != "gradient" and comm.get_rank() == bad_rank:
            name, param = [
                item for item in named_parameters(run.model[0].module) if item[0].endswith(NORM)
            ][1]
            memory.flat_view(param).reshape(-1)[5] = np.nan if kind == "weight" else 3e38
        with pytest.raises(RunFailure) as failure:
            run.train()
        return str(failure.value)
    finally:
        train_loop.finalize_model_grads = original
        run.close()


@pytest.mark.parametrize(
    ("layout", "kind", "bad_rank"),
    [
        ("dp", "gradient", 1),
        ("dp-distopt", "gradient", 0),
        ("dp", "weight", 1),
        ("tp", "weight", 1),
        ("pp", "weight", 1),
        ("dp", "activation", 1),
        ("tp", "activation", 0),
        ("pp", "activation", 0),
        ("pp", "activation", 1),
        ("vpp", "activation", 1),
    ],
)
def test_the_rank_and_the_place_are_named(dist_run, layout, kind, bad_rank):
    texts = dist_run(worker, ranks=2, flags=LAYOUTS[layout], kind=kind, bad_rank=bad_rank)
    assert len(set(texts)) == 1
    what = {"gradient": "gradient of ", "weight": "weight ", "activation": "output of "}[kind]
    assert texts[0].startswith("iteration 2: ")
    assert f"first in rank {bad_rank}: {what}language_model." in texts[0]
    if kind == "activation":
        assert f"{NORM.removesuffix('.weight')} in micro-batch 1" in texts[0].replace(
            " (chunk 0)", ""
        )


def healthy_worker(flags):
    run, steps = open_run("--train-iters", "3", *flags)
    with run:
        run.train()
    return steps


@pytest.mark.parametrize("layout", ["dp-distopt", "zero3"])
def test_nothing_is_found_where_nothing_is(dist_run, layout):
    for steps in dist_run(healthy_worker, ranks=2, flags=LAYOUTS[layout]):
        assert len(steps) == 3 and np.isfinite(steps).all()
