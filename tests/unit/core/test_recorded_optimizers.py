# SPDX-License-Identifier: Apache-2.0
"""Runs of Megatron-core's other optimizers and rates, repeated here."""

import json

import numpy as np
import pytest
from megatron_runs import DATA, replay

RECORDED = json.loads((DATA / "megatron_core" / "optimizers.json").read_text(encoding="utf-8"))
CASES = RECORDED["cases"]
FEW = 4
"""Iterations in the default suite."""

EXACT, ROUNDED = 1e-5, 1e-3
"""Largest difference of a loss: in fp32, and where products are rounded to bf16, for then the order
of their sums shows. torch sums a matrix and its transpose in different orders."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("index")


def check(cache, name, iterations):
    case = CASES[name]
    steps = replay(f"{RECORDED['common']} {case['flags']}", iterations, cache)
    limit = ROUNDED if name in ("muon", "muon_blockwise") else EXACT
    losses = [step.losses["lm loss"] for step in steps]
    np.testing.assert_allclose(losses, case["loss"][:iterations], atol=limit, rtol=0)
    norms = [step.grad_norm for step in steps]
    np.testing.assert_allclose(norms, case["grad_norm"][:iterations], rtol=10 * limit)
    assert [step.learning_rate for step in steps] == pytest.approx(
        case["learning_rate"][:iterations], rel=1e-12
    )


@pytest.mark.parametrize(
    "name",
    ["lion", "muon", "dist_muon", "adaptive_muon", "mup", "mup_gpt", "qk_decay", "tokens_mtp"],
)
def test_a_recorded_optimizer_repeats_itself(cache, name):
    check(cache, name, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_recorded_optimizer_repeats_itself_to_the_end(cache, name):
    check(cache, name, len(CASES[name]["loss"]))
