# SPDX-License-Identifier: Apache-2.0
"""A folder of every family in layouts: the logits of one rank, and the same training."""

import family_cases
import family_runs
import numpy as np
import pytest

pytestmark = pytest.mark.ranks

FIRST = {
    family_cases.recorded(case)["config"]["model_type"]: case for case in family_cases.CASES[::-1]
}
USUAL = {case for kind, case in FIRST.items() if kind not in family_cases.ALIKE}
CASES = [
    pytest.param(case, name, marks=() if case in USUAL else pytest.mark.slow, id=f"{case}-{name}")
    for case in family_cases.CASES
    for name in family_cases.layouts_of(case)
]


@pytest.fixture(scope="module")
def alone():
    """Case -> losses and gradient norms of one rank."""
    return {}


@pytest.mark.parametrize(("case", "layout"), CASES)
def test_a_layout_computes_and_trains_as_one_rank(dist_run, tmp_path, alone, case, layout):
    told = family_cases.write_folder(case, tmp_path)
    if case not in alone:
        (alone[case],) = dist_run(family_runs.training_worker, ranks=1, folder=tmp_path, layout={})
    results = dist_run(
        family_runs.layout_worker,
        ranks=2,
        folder=tmp_path,
        layout=family_cases.LAYOUTS[layout],
        prompt=told["prompt"],
        new=len(told["greedy"]),
    )
    for logits, tokens, _ in results:
        assert np.abs(logits - np.array(told["logits"])).max() <= family_cases.BOUND
        assert tokens == told["greedy"]
    steps = next(steps for *_, steps in reversed(results) if steps)
    assert steps[-1][0] < steps[0][0], "the loss of the same samples falls"
    np.testing.assert_allclose(steps, alone[case], rtol=2e-5)
