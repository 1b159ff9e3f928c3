# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of any layout goes on in any other: the same losses as a run that never stopped."""

import itertools
import random
import re

import pytest
from checkpoint_runs import NO_DROPOUT, run

PP2 = "--pipeline-model-parallel-size 2"
TP2 = "--tensor-model-parallel-size 2"
LAYOUTS = {
    "dp4": "",
    "dp4-zero1": "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather",
    "dp4-zero2": "--zero-level z2",
    "dp4-zero3": "--zero-level z3",
    "tp2-sp": f"{TP2} --sequence-parallel",
    "tp2-zero1": f"{TP2} --use-distributed-optimizer",
    "tp2-zero3": f"{TP2} --zero-level z3",
    "pp2-vpp2": f"{PP2} --virtual-pipeline-model-parallel-size 2",
    "pp2-uneven": f"{PP2} --num-layer-list [1,3]",
    "pp2-zero1": f"{PP2} --use-distributed-optimizer",
    "pp4": "--pipeline-model-parallel-size 4",
    "tp2-pp2": f"{TP2} {PP2}",
}
EXPERTS = {
    "ep1": "",
    "ep2": "--expert-model-parallel-size 2",
    "ep4": "--expert-model-parallel-size 4",
    "ep2-zero1": "--expert-model-parallel-size 2 --use-distributed-optimizer",
    "ep2-pp2": f"--expert-model-parallel-size 2 {PP2}",
    "ep2-grouped": "--expert-model-parallel-size 2 --moe-grouped-gemm",
    "tp2-sp-ep2": f"{TP2} --sequence-parallel --expert-model-parallel-size 2",
}
TP_DIVISOR = "--make-vocab-size-divisible-by 64"
"""Vocabulary of 512 rows with one and two tensor parallel ranks."""


def pairs_worker(model, pairs, folder):
    """Losses after a change of layout, and those of a run without one."""
    cache = f"{folder}/cache"
    more = [*NO_DROPOUT, *TP_DIVISOR.split()]
    layouts = EXPERTS if model == "moe" else LAYOUTS
    straight = run(model, more, cache)["loss"]
    found = {}
    for number, (first, second) in enumerate(pairs):
        place = f"{folder}/{number}"
        save = ["--save", place, "--save-interval", "3", "--exit-interval", "3"]
        run(model, [*more, *layouts[first].split(), *save], cache)
        result = run(model, [*more, *layouts[second].split(), "--load", place], cache)
        found[first, second] = (result["loss"], result["output"])
    return straight, found


def pairs_of(model, count):
    """Random pairs, the same in every session."""
    every = list(itertools.permutations(EXPERTS if model == "moe" else LAYOUTS, 2))
    return random.Random(f"pairs of {model}").sample(every, count)


@pytest.mark.parametrize(
    ("model", "pairs"),
    [
        ("gpt2", [("tp2-zero1", "pp2-vpp2"), ("pp2-uneven", "dp4-zero1")]),
        pytest.param("gpt2", pairs_of("gpt2", 12), marks=pytest.mark.slow),
        pytest.param("llama", pairs_of("llama", 12), marks=pytest.mark.slow),
        ("moe", [("ep2-zero1", "ep4")]),
        pytest.param("moe", pairs_of("moe", 12), marks=pytest.mark.slow),
    ],
    ids=["gpt2", "gpt2-12-pairs", "llama-12-pairs", "moe", "moe-12-pairs"],
)
def test_any_layout_becomes_any_other(dist_run, tmp_path, model, pairs):
    results = dist_run(
        pairs_worker, ranks=4, timeout=280.0, model=model, pairs=pairs, folder=str(tmp_path)
    )
    for straight, found in results:
        assert len(found) == len(pairs)
        for pair, (losses, _) in found.items():
            assert sorted(losses) == [4, 5, 6, 7, 8], pair
            for iteration, loss in losses.items():
                # Layouts add in another order; that is all that may differ.
                assert abs(loss - straight[iteration]) <= 1e-5, (pair, iteration)
    for _, output in results[0][1].values():
        assert not re.search(r"\b0 tensors verified", output)
