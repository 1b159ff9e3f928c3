# SPDX-License-Identifier: Apache-2.0
"""A run that is stopped and goes on computes what the uninterrupted run computes."""

import pytest
from checkpoint_runs import run


def resume_worker(model, layout, folder, more=()):
    """Losses of eight iterations without a stop, and with one after the fourth."""
    cache = f"{folder}/cache"
    straight = run(model, [*layout, *more], cache)
    first = run(
        model,
        [*layout, *more, "--save", folder, "--save-interval", "2", "--exit-interval", "4"],
        cache,
    )
    second = run(
        model,
        [*layout, *more, "--load", folder, "--save", folder, "--save-interval", "4"],
        cache,
    )
    return straight, first, second


LAYOUTS = {
    "dp1": (1, ""),
    "tp2-sp": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "zero1-overlap": (
        2,
        "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
    ),
    "zero3": (2, "--zero-level z3"),
    "pp2-vpp2-bf16": (
        2,
        "--pipeline-model-parallel-size 2 --virtual-pipeline-model-parallel-size 2 --bf16",
    ),
}


FURTHER = pytest.param("experts", 2, "--pipeline-model-parallel-size 2", id="pp2-experts")
"""Its last stage holds a copy of the embedding, for the tokens after the next."""

QUICK = [("dp1", "gpt2"), ("zero1-overlap", "llama"), ("pp2-vpp2-bf16", "gpt2")]
CASES = [
    pytest.param(
        model,
        *LAYOUTS[name],
        id=f"{name}-{model}",
        marks=() if (name, model) in QUICK else pytest.mark.slow,
    )
    for name in LAYOUTS
    for model in ("gpt2", "llama")
]


@pytest.mark.parametrize(("model", "ranks", "layout"), [*CASES, FURTHER])
def test_resume_is_bit_identical_with_dropout(dist_run, tmp_path, model, ranks, layout):
    more = "--attention-dropout 0.1 --hidden-dropout 0.1".split()
    results = dist_run(
        resume_worker,
        ranks=ranks,
        timeout=240.0,
        model=model,
        layout=layout.split(),
        folder=str(tmp_path),
        more=more,
    )
    for straight, first, second in results:
        assert sorted(straight["loss"]) == list(range(1, 9))
        assert list(first["loss"]) == [1, 2, 3, 4] and list(second["loss"]) == [5, 6, 7, 8]
        for figure in ("loss", "norm", "lr"):
            joined = {**first[figure], **second[figure]}
            assert joined == straight[figure], figure
    assert "not restored" not in results[0][2]["output"]
