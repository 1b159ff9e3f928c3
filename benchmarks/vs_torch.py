"""Tokens per second against plain torch, side by side: one step here, one step there.

    python benchmarks/vs_torch.py
    python benchmarks/vs_torch.py --python /path/to/an/environment/with/torch/bin/python

Both sides train the model of ``train_step.py`` (31.6 million parameters, fp32, AdamW, gradient
clipping) in a process of their own, with the same number of threads. They take turns, so that a
slower or busier machine slows both. Torch runs eagerly: fused attention, fused AdamW, nothing
compiled. One line of JSON is printed; ``ratio`` above 1 means that this project is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LAYERS, HIDDEN, FFN, HEADS, KEY_HEADS = 8, 512, 1376, 8, 4
SEQUENCE, BATCH, VOCABULARY = 256, 4, 8192
WARM_UP = 3
DTYPES = ("fp32", "bf16")


class Side:
    """A process that trains one step for every line it is sent, and answers with the seconds."""

    def __init__(self, python: str, role: str, dtype: str) -> None:
        command = [python, str(Path(__file__).resolve()), "--role", role, "--dtype", dtype]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        """Train one step and note what it reports."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):
                self.steps.append(json.loads(line))
                return
        raise SystemExit(f"{self.process.args}: ended with status {self.process.wait()}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def median(self, key: str) -> float:
        """Median over the measured steps."""
        return statistics.median(step[key] for step in self.steps[WARM_UP:])


def report(seconds: float, loss: float) -> None:
    """One step's figures on standard output; then wait until the next one is asked for."""
    import psutil

    peak = psutil.Process().memory_info().rss / 2**20
    sys.stdout.write(json.dumps({"seconds": seconds, "loss": loss, "rss_mib": peak}) + "\n")
    sys.stdout.flush()
    sys.stdin.readline() or sys.exit(0)


def train_here(dtype: str) -> None:
    """This project's side."""
    from train_step import FLAGS

    from mindspeed_ms.legacy.model import GPTModel
    from mindspeed_ms.training import initialize_megatron, pretrain
    from mindspeed_ms.training.global_vars import get_all_config

    precision = ["--bf16"] if dtype == "bf16" else []
    initialize_megatron(argv=[*FLAGS, "--train-iters", "1000000", *precision])

    def provider(pre_process: bool, post_process: bool) -> GPTModel:
        config = get_all_config().model_config
        return GPTModel(config, pre_process=pre_process, post_process=post_process)

    sys.stdin.readline()
    pretrain(
        None,
        provider,
        all_config=get_all_config(),
        on_step=lambda step: report(step.seconds, step.losses["lm loss"]),
    )


def train_torch(dtype: str) -> None:
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
    sys.stdin.readline()
    while True:
        tokens = torch.randint(0, VOCABULARY, (BATCH, SEQUENCE + 1))
        started = time.perf_counter()
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
        value = loss.item()
        report(time.perf_counter() - started, value)


def main() -> None:
    """Measure, or serve as one of the sides."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--steps", type=int, default=12, help="measured steps on each side")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--role", choices=("here", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        {"here": train_here, "torch": train_torch}[args.role](args.dtype)
        return
    probe = subprocess.run([args.python, "-c", "import torch, psutil"], capture_output=True)
    if probe.returncode:
        raise SystemExit(
            f"{args.python} has no torch or psutil; install them there, or name another "
            "interpreter with --python"
        )
    sides = {
        "here": Side(sys.executable, "here", args.dtype),
        "torch": Side(args.python, "torch", args.dtype),
    }
    try:
        for _ in range(WARM_UP + args.steps):
            for side in sides.values():
                side.step()
    finally:
        for side in sides.values():
            side.close()
    tokens = BATCH * SEQUENCE
    result: dict[str, Any] = {"dtype": args.dtype}
    for name, side in sides.items():
        result[f"tokens_per_second_{name}"] = round(tokens / side.median("seconds"), 1)
        result[f"rss_mib_{name}"] = round(max(step["rss_mib"] for step in side.steps), 1)
    pairs = zip(sides["here"].steps[WARM_UP:], sides["torch"].steps[WARM_UP:], strict=True)
    ratios = [torch["seconds"] / here["seconds"] for here, torch in pairs]
    result["ratio"] = round(statistics.median(ratios), 3)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
