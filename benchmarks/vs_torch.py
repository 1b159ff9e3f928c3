# SPDX-License-Identifier: Apache-2.0
"""Tokens per second against plain torch, side by side: one step here, one step there.

    python benchmarks/vs_torch.py
    python benchmarks/vs_torch.py --python /path/to/an/environment/with/torch/bin/python

Both sides train the model of ``reference_model.py`` (31.6 million parameters, AdamW, gradient
clipping) in a process of their own, with the same number of threads. They take turns
(``turns.py``), so that a slower or busier machine slows both. Torch runs eagerly: fused attention,
fused AdamW, nothing compiled. One line of JSON is printed; ``ratio`` above 1 means that this
project is faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from limit import share_of_limit
from turns import HERE, Side, Turn, ratio, take_turns

LAYERS, HIDDEN, FFN, HEADS, KEY_HEADS = 8, 512, 1376, 8, 4
SEQUENCE, BATCH, VOCABULARY = 256, 4, 8192
DTYPES = ("fp32", "bf16")


def train_torch(turn: Turn, dtype: str) -> None:
    """Torch's side: a plain Llama and an eager training loop."""
    import torch
    from torch_llama import Llama

    torch.manual_seed(1)
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    model = Llama(LAYERS, HIDDEN, FFN, HEADS, KEY_HEADS, VOCABULARY, SEQUENCE).to(kind)
    # bf16 weights with fp32 masters, as a mixed-precision optimizer keeps them.
    masters = [p.detach().float().requires_grad_() for p in model.parameters()]
    weights = list(model.parameters()) if dtype == "bf16" else masters
    if dtype == "fp32":
        masters = weights = list(model.parameters())
    optimizer = torch.optim.AdamW(masters, lr=1e-4, fused=True)
    while True:
        turn.wait()
        tokens = torch.randint(0, VOCABULARY, (BATCH, SEQUENCE + 1))
        loss = torch.nn.functional.cross_entropy(
            model(tokens[:, :-1]).float().view(-1, VOCABULARY), tokens[:, 1:].reshape(-1)
        )
        loss.backward()
        for weight, master in zip(weights, masters, strict=True):
            if weight is not master:
                master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        with torch.no_grad():
            for weight, master in zip(weights, masters, strict=True):
                if weight is not master:
                    weight.copy_(master)
        optimizer.zero_grad()
        turn.answer(loss=loss.item())


def main() -> None:
    """Measure, or serve as one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--steps", type=int, default=12, help="measured steps on each side")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.port:
        train_torch(Turn(args.port, 0), args.dtype)
        return
    probe = subprocess.run([args.python, "-c", "import torch"], capture_output=True)
    if probe.returncode:
        raise SystemExit(
            f"{args.python} has no torch; install it there, or name another interpreter with "
            "--python"
        )
    with tempfile.TemporaryDirectory() as folder:
        here = Side("this project", 1, Path(folder, "here.log"))
        other = Side("torch", 1, Path(folder, "torch.log"))
        try:
            here.start_here(None, ["--bf16"] if args.dtype == "bf16" else [])
            script = [args.python, str(HERE / "vs_torch.py"), "--dtype", args.dtype]
            other.start([*script, "--port", str(other.port)])
            take_turns([here, other], args.steps)
        finally:
            here.close()
            other.close()
    result: dict[str, Any] = {"dtype": args.dtype}
    for name, side in {"here": here, "torch": other}.items():
        result[f"tokens_per_second_{name}"] = round(BATCH * SEQUENCE / side.median_seconds(), 1)
        result[f"peak_mib_{name}"] = round(side.peak_mib(), 1)
    threads = int(here.answers[-1][0]["threads"])
    result["share_of_limit"] = share_of_limit(here.operations_per_second(), threads, args.dtype)
    result["ratio"] = round(ratio(here, other), 3)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
