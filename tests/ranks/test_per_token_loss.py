# SPDX-License-Identifier: Apache-2.0
"""``--calculate-per-token-loss``: one mean over all tokens of a step, however they are cut."""

import numpy as np
import pipeline_runs
import pytest

from mindspeed_ms.core import parallel_state
from mindspeed_ms.training import pretrain

pytestmark = pytest.mark.ranks
ONE_BATCH = ["--micro-batch-size", "8"]
PER_TOKEN = ["--calculate-per-token-loss"]


class Loader:
    """Samples 0, 1, 2, ... dealt out as Megatron's sampler does; their masks differ in length."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        ranks = parallel_state.get_data_parallel_world_size()
        first = parallel_state.get_data_parallel_rank() * self.size
        while True:
            samples = [pipeline_runs.sample(first + index) for index in range(self.size)]
            for number, sample in enumerate(samples):
                sample["loss_mask"][: 3 * ((first + number) % 5)] = 0.0
            yield {name: np.stack([one[name] for one in samples]) for name in samples[0]}
            first += ranks * self.size


def train_worker(flags):
    config = pipeline_runs.start("llama", flags)
    steps = []
    pretrain(
        None,
        pipeline_runs.provider,
        all_config=config,
        train_data_loader=Loader(config.dataset_config.batch_size),
        on_step=steps.append,
    )
    return [(step.losses["lm loss"], step.grad_norm) for step in steps]


def run(dist_run, ranks, flags):
    return np.array(dist_run(train_worker, ranks=ranks, timeout=120.0, flags=flags)[-1])


def test_many_micro_batches_are_one_large_one(dist_run):
    whole = run(dist_run, 1, ONE_BATCH)
    assert run(dist_run, 1, PER_TOKEN) == pytest.approx(whole, rel=1e-5)
    assert not np.allclose(run(dist_run, 1, []), whole, rtol=1e-4)
    for flags in (
        [*PER_TOKEN, "--use-distributed-optimizer", "--overlap-grad-reduce"],
        [*PER_TOKEN, "--pipeline-model-parallel-size", "2"],
        [*PER_TOKEN, "--tensor-model-parallel-size", "2", "--micro-batch-size", "2"],
        [*PER_TOKEN, "--context-parallel-size", "2"],
    ):
        assert run(dist_run, 2, flags) == pytest.approx(whole, rel=1e-5), flags


def test_losses_of_experts_weigh_the_same_however_a_sequence_is_cut(dist_run):
    experts = [
        *"--num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss".split(),
        *"--moe-aux-loss-coeff 0.1 --moe-z-loss-coeff 0.1".split(),
    ]
    whole = run(dist_run, 1, [*PER_TOKEN, *experts])
    without = run(dist_run, 1, [*PER_TOKEN, *experts, "--moe-aux-loss-coeff", "0"])
    assert not np.allclose(whole, without, rtol=1e-3)
    for layout in (
        "--context-parallel-size 2",
        "--tensor-model-parallel-size 2 --sequence-parallel",
    ):
        flags = [*PER_TOKEN, *experts, *layout.split()]
        assert run(dist_run, 2, flags) == pytest.approx(whole, rel=1e-5), layout


def test_gradients_that_are_reduced_in_sixteen_bits(dist_run):
    whole = run(dist_run, 1, ONE_BATCH)
    narrow = [*PER_TOKEN, "--grad-reduce-in-bf16", "--bf16"]
    scaled = [*PER_TOKEN, "--fp16", "--initial-loss-scale", "1024"]
    for ranks, flags in ((1, narrow), (2, [*narrow, "--use-distributed-optimizer"]), (1, scaled)):
        assert run(dist_run, ranks, flags) == pytest.approx(whole, rel=2e-2), flags
