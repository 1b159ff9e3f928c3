# SPDX-License-Identifier: Apache-2.0
"""40 iterations that Megatron-core computed with layers of newer kinds, repeated here."""

import json

import numpy as np
import pytest
from megatron_runs import DATA, replay

RECORDED = json.loads((DATA / "megatron_core" / "layers.json").read_text(encoding="utf-8"))
CASES = RECORDED["cases"]
FEW = 4
"""Iterations in the default suite; the slow one runs all 40."""


def check(case, steps):
    """Losses to 1e-5; norms and losses of layers to a little more, relatively."""
    for number, step in enumerate(steps):
        assert abs(step.losses["lm loss"] - case["loss"][number]) <= 1e-5, number
        assert step.grad_norm == pytest.approx(case["grad_norm"][number], rel=1e-4), number
        if "max_logit" in case:
            assert step.max_attention_logit == pytest.approx(case["max_logit"][number], rel=1e-4)
        for kind, layers in case.get("layer_losses", {}).items():
            np.testing.assert_allclose(step.layer_losses[kind], layers[number], rtol=1e-4)


@pytest.mark.parametrize("iterations", [FEW, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_of_megatron_core_trains_alike(tmp_path, name, iterations):
    case = CASES[name]
    steps = replay(f"{RECORDED['common']} {case['flags']}", iterations, tmp_path)
    assert len(steps) == iterations
    check(case, steps)
