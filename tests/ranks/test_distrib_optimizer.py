# SPDX-License-Identifier: Apache-2.0
"""Whole GPT training with sharded optimizers, and with loss scales, through ``pretrain``."""

import logging

import numpy as np
import pipeline_runs
import pytest

from mindspeed_ms.training import pretrain

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
TIMEOUT = 180.0
OVERLAP = ["--overlap-grad-reduce", "--bucket-size", "700"]
BOTH = ["--use-distributed-optimizer", "--overlap-param-gather", *OVERLAP]
PP2 = ["--pipeline-model-parallel-size", "2"]
TP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


def train_worker(style, flags):
    return pipeline_runs.train(style, flags)


@pytest.fixture(scope="module")
def one_rank():
    return {}


def _expected(dist_run, one_rank, style):
    if style not in one_rank:
        (one_rank[style],) = dist_run(train_worker, ranks=1, timeout=TIMEOUT, style=style, flags=[])
    return np.array(one_rank[style])


@pytest.mark.parametrize("style", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (2, BOTH),
        (2, ["--zero-level", "z3", *OVERLAP]),
        (4, [*BOTH, *PP2]),
        (4, [*BOTH, *PP2, "--delay-grad-reduce", "true"]),
        (4, ["--zero-level", "z2", *PP2]),
        (4, ["--zero-level", "z3", *PP2]),
        (4, [*BOTH, *TP2]),
        (4, ["--zero-level", "z3", *TP2, *RECOMPUTE.split()]),
        (
            4,
            [
                "--zero-level",
                "z1",
                "--zero-shard-size",
                "2",
                "--ddp-num-buckets",
                "3",
                *OVERLAP[:1],
            ],
        ),
    ],
    ids=[
        "overlaps",
        "z3",
        "pipeline",
        "pipeline, delayed",
        "pipeline, z2",
        "pipeline, z3",
        "tensor",
        "tensor, z3, recompute",
        "two instances",
    ],
)
def test_sharded_training_equals_one_rank(dist_run, one_rank, style, ranks, flags):
    expected = _expected(dist_run, one_rank, style)
    for result in dist_run(train_worker, ranks=ranks, timeout=TIMEOUT, style=style, flags=flags):
        # Sums over micro-batches and ranks in another order, in fp32.
        np.testing.assert_allclose(np.array(result)[:, 0], expected[:, 0], rtol=1e-5)
        np.testing.assert_allclose(np.array(result)[:, 1], expected[:, 1], rtol=2e-4)


def fp16_worker(flags):
    """Reports and log lines of a run whose first loss scale is far too large."""
    lines = []

    class Collector(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    config = pipeline_runs.start(
        "llama",
        [
            *"--fp16 --initial-loss-scale 4294967296 --hysteresis 1 --train-iters 30".split(),
            *"--lr-decay-style linear --lr-warmup-iters 10 --log-interval 1".split(),
            *flags,
        ],
    )
    collector = Collector()
    logging.getLogger("mindspeed_ms.lines").addHandler(collector)
    steps = []

    class Endless:
        def __iter__(self):
            return pipeline_runs.micro_batches()

    state = pretrain(
        None,
        pipeline_runs.provider,
        all_config=config,
        train_data_loader=Endless(),
        on_step=steps.append,
    )
    logging.getLogger("mindspeed_ms.lines").removeHandler(collector)
    return {
        "skipped": [step.skipped for step in steps],
        "scale": [step.loss_scale for step in steps],
        "rate": [step.learning_rate for step in steps],
        "norm": [step.grad_norm for step in steps],
        "loss": [step.losses["lm loss"] for step in steps],
        "samples": state.consumed_train_samples,
        "iteration": state.iteration,
        "lines": [line for line in lines if "loss scale" in line],
    }


@pytest.mark.parametrize("flags", [[], BOTH, ["--zero-level", "z3"]], ids=["plain", "both", "z3"])
def test_fp16_finds_its_loss_scale(dist_run, flags):
    first, last = dist_run(fp16_worker, ranks=2, timeout=TIMEOUT, flags=flags)
    assert first["skipped"] == last["skipped"]
    skipped = first["skipped"]
    assert skipped[0] and not all(skipped[:28])
    scale, rate = 2.0**32, 0.0
    for index, is_skipped in enumerate(skipped):
        scale = scale / 2 if is_skipped else scale
        assert first["scale"][index] == scale
        # A skipped step leaves the schedule (here in warm-up, or decaying) where it was.
        assert (first["rate"][index] == rate) == is_skipped
        assert (first["norm"][index] is None) == is_skipped
        rate = first["rate"][index]
    assert first["iteration"] == 30 and first["samples"] == 30 * pipeline_runs.GLOBAL_BATCH
    assert len(set(first["loss"][: skipped.index(False)])) > 1, "the data goes on"
    assert first["loss"][-1] < first["loss"][0]
    lines = last["lines"]
    assert "number of skipped iterations:   1" in lines[0]
    good = lines[skipped.index(False)]
    assert "number of skipped iterations:   0" in good
    assert f"loss scale: {first['scale'][-1]:.1f} |" in lines[-1]
