# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of a mixture of experts beside a dense model of the same active size, as JSON.

    python benchmarks/moe.py
    python benchmarks/moe.py --ranks 2 --output moe.json

Every variant is a run of ``benchmarks/train_step.py`` in processes of its own. A token passes as
many feed-forward multiplications in all of them: the dense block is as wide as the experts of a
token together. Between processes the variants take turns, and the best of ``--rounds`` counts:
in tokens per second, and apart from that in the processor's time of a step, which counts on a busy
machine (with ``OMP_NUM_THREADS=1``: threads that wait for each other take time as well).
``share_of_limit`` compares the operations of a step with what the processor can do (``limit.py``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXPERTS, CHOSEN, WIDTH = 8, 2, 512

MODEL = (
    f"--num-layers 4 --hidden-size 256 --ffn-hidden-size {CHOSEN * WIDTH} --num-attention-heads 4 "
    "--num-query-groups 2 --seq-length 256 --max-position-embeddings 256 --micro-batch-size 4"
).split()
MOE = (
    f"--num-experts {EXPERTS} --moe-router-topk {CHOSEN} --moe-ffn-hidden-size {WIDTH} "
    "--moe-router-load-balancing-type aux_loss --moe-aux-loss-coeff 1e-2 "
    "--moe-token-dispatcher-type alltoall"
).split()
GROUPED = "--moe-grouped-gemm"

VARIANTS = {
    "dense": [],
    "sequential experts": MOE,
    "grouped experts": [*MOE, GROUPED],
    "grouped experts, capacity 1.0": [*MOE, GROUPED, "--moe-expert-capacity-factor", "1.0"],
    "grouped experts, all-gather": [
        *(word if word != "alltoall" else "allgather" for word in MOE),
        GROUPED,
    ],
}
"""Name -> flags, on one rank or with the experts spread over all ranks."""


def run(flags: list[str], ranks: int) -> dict[str, Any]:
    """One measurement of ``train_step.py``.

    Raises:
        RuntimeError: the run failed; the message ends with its output.
    """
    command = [sys.executable, "benchmarks/train_step.py", "--taken-apart", "0", *MODEL, *flags]
    if ranks > 1:
        launcher = shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec"))
        command = [launcher, "-n", str(ranks), *command]
        if "--num-experts" in flags:
            command += ["--expert-model-parallel-size", str(ranks)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return json.loads(lines[-1])


def main() -> None:
    """Measure the variants and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--ranks", type=int, default=1, help="ranks that share the experts")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each variant")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all"
    )
    parser.add_argument("--output", type=Path, help="file for the JSON beside standard output")
    arguments = parser.parse_args()
    best: dict[str, dict[str, Any]] = {}
    least: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name in dict.fromkeys(["dense", *arguments.variants]):
            figures = run(VARIANTS[name], arguments.ranks)
            speed, share = figures["tokens_per_second"], figures["share_of_limit"]
            sys.stderr.write(f"{name}: {speed} tokens/s, {share}\n")
            spent = figures["processor_milliseconds_per_step"]
            least[name] = min(spent, least.get(name, spent))
            if name not in best or figures["tokens_per_second"] > best[name]["tokens_per_second"]:
                best[name] = figures
    dense = best["dense"]["tokens_per_second"]
    for name, figures in best.items():
        figures["processor_milliseconds_per_step"] = least[name]
        figures["relative_to_dense_processor"] = round(least["dense"] / least[name], 3)
        figures["relative_to_dense"] = round(figures["tokens_per_second"] / dense, 3)
    result = {
        "ranks": arguments.ranks,
        "experts": EXPERTS,
        "experts_per_token": CHOSEN,
        "expert_width": WIDTH,
        "model": " ".join(MODEL),
        "variants": best,
    }
    text = json.dumps(result)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
