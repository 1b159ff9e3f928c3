# SPDX-License-Identifier: Apache-2.0
"""Optimizers of ``mint.optim`` in a script's own step, on a device without their kernels."""

import numpy as np
import pytest
from mindspore import Tensor, mint, nn

from mindspeed_ms.core.config import DatasetConfig, OptimizerConfig, TrainingConfig
from mindspeed_ms.core.dist_checkpointing import load_checkpoint, save_checkpoint
from mindspeed_ms.core.optimizer import get_optimizer_param_scheduler
from mindspeed_ms.training import TrainOneStepCell

WEIGHT = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
ROWS = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
RATES = OptimizerConfig(
    learning_rate=0.1, lr_warmup_iters=10, lr_decay_iters=100, lr_decay_style="cosine"
)


pytestmark = pytest.mark.usefixtures("single_rank")


class Squares(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(4, 3, weight_init=Tensor(WEIGHT), has_bias=False)

    def construct(self, x):
        return self.dense(x).square().mean()


def parts():
    """A network, its optimizer, schedule and step, as a script makes them."""
    training, net = TrainingConfig(training_iters=20), Squares()
    optimizer = mint.optim.AdamW(net.trainable_params(), lr=0.5, weight_decay=0.0)
    schedule = get_optimizer_param_scheduler(optimizer, RATES, DatasetConfig(), training)
    return net, optimizer, schedule, TrainOneStepCell(net, optimizer, schedule, training)


def adamw(steps):
    """The weight after AdamW in numpy, whose rate rises by 0.01 a step from 0."""
    weight, m, v = WEIGHT.astype(np.float64), 0.0, 0.0
    for step in range(1, steps + 1):
        grad = 2 * (ROWS @ weight.T).T @ ROWS / (len(ROWS) * len(weight))
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        update = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        weight = weight - 0.01 * (step - 1) * update
    return weight


def test_the_step_is_adamw_at_the_rate_of_the_schedule():
    net, optimizer, _, step = parts()
    for index in range(4):
        assert np.isclose(step(Tensor(ROWS))[3], 0.01 * index)
    np.testing.assert_allclose(net.dense.weight.asnumpy(), adamw(4), rtol=1e-5)
    assert np.isclose(float(optimizer.param_groups[0]["lr"].asnumpy()), 0.04)


def test_its_moments_are_kept_and_read(tmp_path):
    net, optimizer, schedule, step = parts()
    for _ in range(2):
        step(Tensor(ROWS))
    save_checkpoint(None, net, optimizer, schedule, tmp_path)
    other, optimizer, schedule, step = parts()
    load_checkpoint(None, other, optimizer, schedule, tmp_path)
    for _ in range(2):
        step(Tensor(ROWS))
    np.testing.assert_allclose(other.dense.weight.asnumpy(), adamw(4), rtol=1e-5)


def test_a_schedule_by_samples_of_the_data():
    net, training = Squares(), TrainingConfig()
    optimizer = mint.optim.AdamW(net.trainable_params(), lr=0.5)
    rates = OptimizerConfig(learning_rate=0.1, lr_decay_style="linear")
    schedule = get_optimizer_param_scheduler(
        optimizer, rates, DatasetConfig(train_samples=8), training
    )
    schedule.step(2)
    assert np.isclose(schedule.get_lr(), 0.1 * 6 / 8)
