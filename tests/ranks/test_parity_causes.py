# SPDX-License-Identifier: Apache-2.0
"""Megatron's own numbers as a log, and runs that were made to differ: the cause is named."""

from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.command import parity, parity_log

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASE = "b_llama_hot"
LINE = (
    " [2026-01-01 00:00:00] iteration {0:8d}/      40 | consumed samples: {0:12d} | "
    "lm loss: {1:.6E} | loss scale: 1.0 | grad norm: {2:.3f} |\n"
)
DEVIATIONS = {
    "none": ([], None),
    "rotary": (["--rotary-base", "20000"], "rotary"),
    "epsilon": (["--norm-epsilon", "1e-6"], "epsilon of the norms"),
    "adam": (["--adam-eps", "1e-6"], "epsilon of the optimizer"),
    "data": (["--split", "50,50,0"], "data order"),
    "weights": ([], "initial weights"),
}


def shuffled(path, target):
    """Other weights of the same distributions."""
    rng = np.random.default_rng(0)
    arrays = dict(np.load(path))
    for name, array in arrays.items():
        if array.ndim > 1:
            arrays[name] = rng.permutation(array.reshape(-1)).reshape(array.shape)
    np.savez(target, **arrays)
    return target


@pytest.mark.slow  # a cause takes up to a dozen short runs
@pytest.mark.parametrize("name", DEVIATIONS)
def test_the_cause_is_named(name, tmp_path, dist_run):
    run = parity.load_run(GOLDEN, CASE)
    log = tmp_path / "megatron.log"
    steps = zip(run["lm_loss"][:20], run["grad_norm"], strict=False)
    log.write_text("".join(LINE.format(step, *both) for step, both in enumerate(steps, 1)))
    weights = parity.initial_weights(GOLDEN, CASE)
    if name == "weights":
        weights = shuffled(weights, tmp_path / "weights.npz")
    corpus = GOLDEN / "corpus" if (GOLDEN / "corpus").is_dir() else GOLDEN
    flags = [*parity.recorded_flags(run, corpus, str(tmp_path)), *DEVIATIONS[name][0]]
    (said,) = dist_run(compared, ranks=1, timeout=600, log=log, flags=flags, weights=weights)
    cause = DEVIATIONS[name][1]
    last = said[-1]
    assert last.startswith(
        "the curves are the same" if cause is None else f"likely cause: {cause}:"
    )


def compared(log, flags, weights):
    """Lines that the comparison prints."""
    said = []
    parity_log.print_rank_0, before = said.append, parity_log.print_rank_0
    try:
        parity_log.compare(log, flags, iterations=20, tolerance=None, weights=weights)
    finally:
        parity_log.print_rank_0 = before
    return said
