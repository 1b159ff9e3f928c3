# SPDX-License-Identifier: Apache-2.0
"""How far bfloat16 curves lie from fp32 curves, here and in Megatron core.

    python benchmarks/half_precision.py
    python benchmarks/half_precision.py --python /path/to/python/with/torch/and/megatron-core

Rounding is chaotic, and what it does to the initial weights is one draw of it: one bf16 curve says
nothing. Each side trains a recorded case in both types from the same weights, each a draw about the
recorded ones that lies further off than a bf16 number is rounded; printed are the mean over the
draws of the largest and of the mean difference of the losses, over the iterations whose data is
recorded. Draw 0 are the recorded weights: there both fp32 curves have to be Megatron-LM's own.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_ms.command import parity
from mindspeed_ms.engine.output import print_rank_0

Curves = dict[str, list[list[float]]]
"""Type -> losses of each draw."""

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "data" / "golden"
BATCHES = GOLDEN / "batches_a_gpt2_rank0.npz"
MOVED = 1e-2
"""Relative standard deviation of the draws: above the 2^-8 of a bf16 number."""

ITERATIONS = 20
"""Whose batches are recorded; the cases read the same data."""


def drawn_weights(case: str, seed: int) -> dict[str, np.ndarray]:
    """The case's initial weights, moved a little; seed 0: as they are."""
    path = parity.initial_weights(GOLDEN, case)
    assert path is not None, "the golden cases keep their weights"
    weights = dict(np.load(path))
    random = np.random.default_rng(seed)
    if seed:
        for name, values in weights.items():
            moved = values * (1 + MOVED * random.standard_normal(values.shape))
            weights[name] = moved.astype(np.float32)
    return weights


def curves_here(case: str, weights: Sequence[Path]) -> Curves:
    """Losses of runs of this project."""

    def losses(path: Path, *flags: str) -> list[float]:
        words = [*flags, "--train-iters", str(ITERATIONS)]
        return [step.losses["lm loss"] for step in parity.replay(GOLDEN, case, words, path).steps]

    return {
        "float32": [losses(path) for path in weights],
        "bfloat16": [losses(path, "--bf16") for path in weights],
    }


def curves_there(python: str, case: str, weights: Sequence[Path]) -> Curves:
    """Losses of Megatron core's runs.

    Raises:
        RuntimeError: the other interpreter fails.
    """
    script = Path(__file__).with_name("megatron_half_precision.py")
    run = GOLDEN / "runs" / f"{case}.json"
    words = [python, str(script), str(run), str(BATCHES), *map(str, weights)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Megatron's side failed: {done.stderr[-800:]}")
    curves: Curves = json.loads(done.stdout.splitlines()[-1])
    return curves


def summary(case: str, curves: Curves) -> dict[str, float]:
    """Means over the draws of the largest and the mean difference between the types.

    Raises:
        RuntimeError: the side does not replay the recorded run in fp32.
    """
    recorded = np.array(parity.load_run(GOLDEN, case)["lm_loss"][:ITERATIONS])
    exact = np.array(curves["float32"])
    if np.abs(exact[0] - recorded).max() > parity.LOSS_TOLERANCE:
        raise RuntimeError(f"the fp32 run is not the recorded one of {case}")
    errors = np.abs(np.array(curves["bfloat16"]) - exact)
    return {"largest": float(errors.max(1).mean()), "mean": float(errors.mean())}


def distances(case: str, draws: int, python: str | None = None) -> dict[str, Any]:
    """``summary`` of this project, and of Megatron core if its interpreter is given."""
    found: dict[str, Any] = {"case": case, "draws": draws}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{seed}.npz" for seed in range(draws)]
        for seed, path in enumerate(files):
            np.savez(path, **drawn_weights(case, seed))
        if python is not None:
            found["megatron"] = summary(case, curves_there(python, case, files))
        found["here"] = summary(case, curves_here(case, files))
    return found


def main() -> None:
    """Print one line of JSON for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--python", help="interpreter with torch and megatron-core")
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--cases", nargs="+", default=["a_gpt2_hot", "b_llama_hot"])
    arguments = parser.parse_args()
    logging.getLogger("mindspeed_ms").setLevel(logging.WARNING)
    lines = [distances(case, arguments.draws, arguments.python) for case in arguments.cases]
    for line in lines:
        print_rank_0(json.dumps(line))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
