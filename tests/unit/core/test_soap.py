# SPDX-License-Identifier: Apache-2.0
"""SOAP's steps on one matrix, against the papers' formulas written out."""

import numpy as np
import pytest

from mindspeed_ms.config import OptimizerConfig
from mindspeed_ms.core.optimizer.soap import Soap, _SoapState, soap_step

BETAS, EPS, BETA = (0.9, 0.95), 1e-8, 0.95


def drawn(shape, steps):
    random = np.random.RandomState(3)
    return [random.randn(*shape) for _ in range(steps)]


def written_out(gradients, is_kl, every):
    """Directions of all steps. Moments are kept in the weights' own axes, and turned when used."""
    rows, columns = gradients[0].shape
    a, b = np.zeros((rows, rows)), np.zeros((columns, columns))
    p, q = np.eye(rows), np.eye(columns)
    mean, square, directions = np.zeros((rows, columns)), np.zeros((rows, columns)), []
    for step, g in enumerate(gradients, 1):
        over_b, over_a = np.eye(columns), np.eye(rows)
        if is_kl:
            over_b = q @ np.diag(1 / np.maximum(np.diag(q.T @ b @ q), EPS)) @ q.T / columns
            over_a = p @ np.diag(1 / np.maximum(np.diag(p.T @ a @ p), EPS)) @ p.T / rows
        weights = [BETA ** (step - i) for i in range(1, step + 1)]
        share = 1 / sum(weights)
        a, b = (
            (1 - share) * a + share * g @ over_b @ g.T,
            (1 - share) * b + share * g.T @ over_a @ g,
        )
        if step == 1:
            p, q = (np.linalg.svd(one)[0] for one in (a, b))
        elif (step - 1) % every == 0:
            turned = []
            for axis, (basis, factor) in enumerate(((p, a), (q, b))):
                order = np.argsort(np.diag(basis.T @ factor @ basis))[::-1]
                square = np.take(square, order, axis)
                turned.append(np.linalg.qr(factor @ basis[:, order])[0])
            p, q = turned
        mean = BETAS[0] * mean + (1 - BETAS[0]) * g
        square = BETAS[1] * square + (1 - BETAS[1]) * (p.T @ g @ q) ** 2
        inner = p.T @ mean @ q / (1 - BETAS[0] ** step)
        directions.append(p @ (inner / (np.sqrt(square / (1 - BETAS[1] ** step)) + EPS)) @ q.T)
    return directions


@pytest.mark.parametrize("is_kl", [False, True])
@pytest.mark.parametrize("every", [1, 3])
def test_steps_are_those_of_the_papers(is_kl, every):
    config = OptimizerConfig(
        optimizer_type="soap",
        betas=BETAS,
        soap_use_kl_shampoo=is_kl,
        soap_precondition_frequency=every,
    )
    gradients = drawn((6, 6), 7)
    zeros = np.zeros((6, 6))
    state = _SoapState(*[zeros] * 6)
    for step, (g, wanted) in enumerate(
        zip(gradients, written_out(gradients, is_kl, every), strict=True), 1
    ):
        found, state = soap_step(config, g, state, step)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=str(step))


def test_directions_without_a_gradient_yet_do_not_hang_on_rounding_errors():
    config = OptimizerConfig(optimizer_type="soap", betas=BETAS)
    exact, noisy = drawn((12, 3), 8), drawn((12, 3), 8)
    random = np.random.RandomState(5)
    found = []
    for gradients in (exact, [g * (1 + 1e-7 * random.randn(*g.shape)) for g in noisy]):
        shapes = ((12, 3), (12, 3), (12, 12), (3, 3), (12, 12), (3, 3))
        state, directions = _SoapState(*map(np.zeros, shapes)), []
        for step, g in enumerate(gradients, 1):
            direction, state = soap_step(config, g, state, step)
            state = _SoapState(*(one.astype(np.float32).astype(float) for one in state.arrays))
            directions.append(direction)
        found.append(directions)
    for first, second in zip(*found, strict=True):
        assert np.abs(first - second).max() < 2e-3 * np.abs(first).max()


def test_only_matrices_have_its_states():
    config = OptimizerConfig(optimizer_type="soap")
    assert config.states_of(1, False) == ("exp_avg", "exp_avg_sq")
    assert config.states_of(2, True) == ("exp_avg", "exp_avg_sq")
    assert config.states_of(2, False) == Soap(config).state_names == ()
