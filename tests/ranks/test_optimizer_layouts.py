# SPDX-License-Identifier: Apache-2.0
"""Recorded runs of Megatron-core's other optimizers on several ranks."""

import json
import tempfile

import numpy as np
import pytest
from megatron_runs import DATA, replay

pytestmark = pytest.mark.ranks
RECORDED = json.loads((DATA / "megatron_core" / "optimizers.json").read_text(encoding="utf-8"))
CASES = RECORDED["cases"]
ITERATIONS = 40
LAYOUTS = {
    "tp2": "--tensor-model-parallel-size 2 --sequence-parallel",
    "tp2 distributed": "--tensor-model-parallel-size 2 --muon-tp-mode distributed",
    "zero": "--use-distributed-optimizer --overlap-grad-reduce --ddp-bucket-size 9000",
    "z3": "--zero-level z3",
    "pp2": "--pipeline-model-parallel-size 2",
    "dp2": "",
    "cp2": "--context-parallel-size 2",
}


def worker(name, layout, iterations, more=""):
    """Losses and norms of a case under a layout."""
    words = f"{RECORDED['common']} {CASES[name]['flags']} {LAYOUTS[layout]} {more}"
    with tempfile.TemporaryDirectory() as cache:
        steps = replay(words, iterations, cache)
    return [(step.losses["lm loss"], step.grad_norm) for step in steps]


def follows(dist_run, name, layout, iterations):
    found = np.array(
        dist_run(worker, ranks=2, timeout=240.0, name=name, layout=layout, iterations=iterations)[
            -1
        ]
    )
    case = CASES[name]
    np.testing.assert_allclose(found[:, 0], case["loss"][:iterations], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found[:, 1], case["grad_norm"][:iterations], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("dist_muon", "tp2 distributed"), ("tokens_mtp", "cp2")],
)
def test_a_recorded_optimizer_repeats_itself_on_two_ranks(dist_run, name, layout):
    follows(dist_run, name, layout, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (name, layout)
        for name in CASES
        for layout in LAYOUTS
        if name != "muon" and not (layout == "pp2" and "learned_absolute" in CASES[name]["flags"])
    ],
)
def test_a_recorded_optimizer_repeats_itself_under_every_layout(dist_run, name, layout):
    follows(dist_run, name, layout, ITERATIONS)


@pytest.mark.parametrize(
    ("name", "first", "then", "limit"),
    [
        ("adaptive_muon", "zero", "zero", 0.0),
        pytest.param("muon_lion", "tp2", "dp2", 1e-5, marks=pytest.mark.slow),
        pytest.param("dist_muon", "zero", "pp2", 1e-5, marks=pytest.mark.slow),
    ],
)
def test_a_run_continues_with_the_states_of_its_optimizer(
    dist_run, tmp_path, name, first, then, limit
):
    def run(layout, iterations, more):
        return dist_run(
            worker,
            ranks=2,
            timeout=240.0,
            name=name,
            layout=layout,
            iterations=iterations,
            more=more,
        )[-1]

    whole = run(first, 6, "")
    run(first, 3, f"--save {tmp_path} --save-interval 3")
    rest = run(then, 6, f"--load {tmp_path}")
    np.testing.assert_allclose(np.array(rest)[:, 0], np.array(whole)[3:, 0], atol=limit, rtol=0)


NARROW = (
    "--optimizer adam --use-precision-aware-optimizer --exp-avg-dtype bf16 "
    "--exp-avg-sq-dtype fp16 --main-params-dtype fp16 --main-grads-dtype bf16 --bf16 "
    "--use-distributed-optimizer"
)


def test_a_run_continues_bit_for_bit_with_states_in_16_bits(dist_run, tmp_path):
    def run(iterations, more):
        return dist_run(
            worker,
            ranks=2,
            timeout=240.0,
            name="qk_decay",
            layout="dp2",
            iterations=iterations,
            more=f"{NARROW} {more}",
        )[-1]

    whole = run(6, "")
    run(3, f"--save {tmp_path} --save-interval 3")
    assert run(6, f"--load {tmp_path}") == whole[3:]
