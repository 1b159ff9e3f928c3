# SPDX-License-Identifier: Apache-2.0
"""One layer for every further token, and such layers that leave the model alone. One rank."""

import numpy as np
import pytest
from run_builder import open_run

from mindspeed_ms.backend import memory
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.models.gpt import gpt_spec
from mindspeed_ms.models.model import predicts_further

TWO = ("--mtp-num-layers", "2", "--mtp-loss-scaling-factor", "0.3")
PLAIN = ("--optimizer", "sgd", "--sgd-momentum", "0", "--weight-decay", "0", "--lr", "1e-2")
REPEATED, DETACHED = "--mtp-use-repeated-layer", "--mtp-detach-heads"


def values_of(run):
    return {
        name: np.array(memory.flat_view(param))
        for chunk in run.model
        for name, param in named_parameters(chunk.module)
    }


def one_step(*flags, weights=None):
    """(weights, their change in a step of plain descent, report)."""
    reports = []
    run, _ = open_run(*TWO, *PLAIN, *flags, on_step=reports.append)
    with run:
        if weights is not None:
            for chunk in run.model:
                for name, param in named_parameters(chunk.module):
                    memory.flat_view(param)[...] = weights[
                        name.replace("mtp.layers.1", "mtp.layers.0")
                    ]
        before = values_of(run)
        run.train(1)
        after = values_of(run)
    return before, {name: after[name] - before[name] for name in before}, reports[0]


def length(changes, further):
    squares = (
        float((one**2).sum()) for name, one in changes.items() if predicts_further(name) is further
    )
    return np.sqrt(sum(squares))


def test_a_repeated_layer_is_trained_by_every_further_token():
    weights, repeated, report = one_step(REPEATED, "--clip-grad", "0")
    assert not any("mtp.layers.1" in name for name in weights)
    _, apart, other = one_step("--clip-grad", "0", weights=weights)
    assert report.losses == pytest.approx(other.losses, abs=1e-6)
    for name, change in repeated.items():
        expected = apart[name]
        if "mtp.layers.0" in name:
            expected = expected + apart[name.replace("mtp.layers.0", "mtp.layers.1")]
        np.testing.assert_allclose(change, expected, rtol=1e-3, atol=1e-6, err_msg=name)


def test_a_repeated_layer_counts_once():
    found = {}
    for flags in ((), (REPEATED,)):
        run, _ = open_run(*TWO, *flags)
        with run:
            spec = gpt_spec(run.config.model_config)
            sizes = {spec.name: spec.size for spec in spec.parameters() if spec.is_trained}
            assert sum(sizes.values()) == spec.num_parameters
            found[flags] = sizes
    own = {name for name in found[()] if "mtp.layers.1" in name}
    assert own and found[()].keys() - own == found[REPEATED,].keys()


@pytest.mark.parametrize("more", [(), (REPEATED,)])
def test_detached_layers_leave_the_model_alone(more):
    weights, detached, report = one_step(DETACHED, "--clip-grad", "0.5", *more)
    still = (*more, "--clip-grad", "0.5", "--mtp-loss-scaling-factor", "0")
    reports = []
    run, _ = open_run(*TWO, *PLAIN, *still, on_step=reports.append)
    with run:
        before = values_of(run)
        run.train(1)
        alone = {name: value - before[name] for name, value in values_of(run).items()}
    assert report.grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-6)
    for name, change in detached.items():
        np.testing.assert_array_equal(weights[name], before[name])
        if predicts_further(name):
            assert np.abs(change).max() > 0 and not alone[name].any(), name
        else:
            np.testing.assert_allclose(change, alone[name], rtol=1e-4, atol=1e-8, err_msg=name)


def test_detached_layers_are_clipped_by_their_own_norm():
    _, small, _ = one_step(DETACHED, "--clip-grad", "1e-3")
    rate = 1e-2
    for further in (False, True):
        assert length(small, further) == pytest.approx(rate * 1e-3, rel=2e-2)
    _, free, report = one_step(DETACHED, "--clip-grad", "0")
    assert report.grad_norm == pytest.approx(length(free, False) / rate, rel=1e-3)
