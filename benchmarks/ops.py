# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per operation of every kernel set that runs here, and of torch when installed.

Shapes are those of one layer of the reference model: batch 4, sequence 256, hidden 512, ffn 1376,
8 heads of 64, 4 groups, vocabulary 8192. The sets take turns, so that noise of the machine hits all
of them, and the best of the rounds counts. Run it as ``python benchmarks/ops.py --json out.json``;
``OMP_NUM_THREADS`` sets the threads, ``--torch`` adds torch, ``--png`` draws a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from limit import share_of_limit
from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, memory
from mindspeed_ms.backend.random import Generator
from mindspeed_ms.ops import cpu

BATCH, SEQ, HIDDEN, FFN, VOCAB = 4, 256, 512, 1376, 8192
HEADS, GROUPS, DIM = 8, 4, 64
TOKENS = BATCH * SEQ
FLAT = 8 * 1024 * 1024

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    shapes: tuple[Shape, ...]
    call: Callable[..., Any]
    differentiable: bool = True
    gigaflops: float = 0.0


def _linear(out: int, width: int) -> list[Case]:
    flops = 2e-9 * TOKENS * out * width
    x, w, dy = (TOKENS, width), (out, width), (TOKENS, out)
    label = f"{width}->{out}"
    return [
        Case(f"linear_forward {label}", (x, w), ops.linear_forward, False, flops),
        Case(f"linear_dgrad {label}", (dy, w), ops.linear_dgrad, False, flops),
        Case(
            f"linear_wgrad_accumulate {label}",
            (dy, x, w),
            ops.linear_wgrad_accumulate,
            False,
            flops,
        ),
    ]


def _packed_cases(tokens: int = 2048, documents: int = 16) -> list[Case]:
    """A long row of documents: told apart by their numbers, by a dense mask, or not at all."""
    numbers = np.repeat(np.arange(documents), tokens // documents)[None].astype(np.int32)
    packed = ops.Documents(numbers, numbers)
    hidden = Tensor(packed.hidden() | np.triu(np.ones((tokens, tokens), np.bool_), 1))
    key = (tokens, 1, GROUPS, DIM)
    options = {
        "causal": {},
        "documents": {"documents": packed},
        "dense mask": {"mask": hidden, "causal": False},
    }
    return [
        Case(
            f"attention {tokens} {name}",
            ((tokens, 1, HEADS, DIM), key, key),
            lambda *a, more=more: ops.attention(*a, scale=0.125, **more),
        )
        for name, more in options.items()
    ]


def _window_cases(tokens: int = 2048) -> list[Case]:
    """A long row of which each token sees the last ones only."""
    key = (tokens, 1, GROUPS, DIM)
    return [
        Case(
            f"attention {tokens} window {left}",
            ((tokens, 1, HEADS, DIM), key, key),
            lambda *a, left=left: ops.attention(*a, scale=0.125, window=(left, None)),
        )
        for left in (64, 256, 1024)
    ]


def _decode_cases(keys: int = 4096) -> list[Case]:
    """One new token per row and a cache: in blocks made for many queries, and read once."""
    cases = []
    for rows in (1, 8):
        ranges = ops.KeyRanges.of_lengths([keys] * rows, 1)
        cache = (keys, rows, GROUPS, DIM)
        shapes = ((1, rows, HEADS, DIM), cache, cache)
        calls: dict[str, Callable[..., Tensor]] = {
            "attention": lambda *a: ops.attention(*a, scale=0.125),
            "decode_attention": lambda q, k, v, ranges=ranges: ops.decode_attention(
                q, k, v, ranges, scale=0.125
            ),
        }
        cases += [
            Case(f"{name} 1 of {keys}, {rows} rows", shapes, call, False)
            for name, call in calls.items()
        ]
    return cases


def _cases() -> list[Case]:
    rng = np.random.RandomState(0)
    target = Tensor(rng.randint(0, VOCAB, TOKENS))
    ids = Tensor(rng.randint(0, VOCAB, (SEQ, BATCH)))
    table = Tensor(rng.rand(SEQ, 1, 1, DIM).astype(np.float32))
    row = Tensor(rng.rand(TOKENS).astype(np.float32) + 5.0)
    x, flat = (SEQ, BATCH, HIDDEN), (FLAT,)
    key = (SEQ, BATCH, GROUPS, DIM)
    adam = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    cases = [
        case for out, width in ((HIDDEN, HIDDEN), (2 * FFN, HIDDEN)) for case in _linear(out, width)
    ]
    cases += [
        case for out, width in ((HIDDEN, FFN), (VOCAB, HIDDEN)) for case in _linear(out, width)
    ]
    return [
        *cases,
        Case(
            "layer_norm", (x, (HIDDEN,), (HIDDEN,)), lambda x, w, b: ops.layer_norm(x, w, b, 1e-5)
        ),
        Case("rms_norm", (x, (HIDDEN,)), lambda x, w: ops.rms_norm(x, w, 1e-5)),
        Case("gelu erf + bias", ((SEQ, BATCH, FFN), (FFN,)), ops.gelu),
        Case("gelu tanh + bias", ((SEQ, BATCH, FFN), (FFN,)), lambda x, b: ops.gelu(x, b, "tanh")),
        Case("silu", ((SEQ, BATCH, FFN),), ops.silu),
        Case("swiglu", ((SEQ, BATCH, 2 * FFN),), ops.swiglu),
        Case("rotary", ((SEQ, BATCH, HEADS, DIM),), lambda t: ops.rotary(t, table, table)),
        Case(
            "attention causal",
            ((SEQ, BATCH, HEADS, DIM), key, key),
            lambda *a: ops.attention(*a, scale=0.125),
        ),
        Case(
            "attention dropout",
            ((SEQ, BATCH, HEADS, DIM), key, key),
            lambda *a: ops.attention(*a, scale=0.125, dropout_p=0.1, generator=Generator(1)),
        ),
        Case(
            "softmax causal",
            ((BATCH, HEADS, SEQ, SEQ),),
            lambda t: ops.softmax(t, causal=True),
        ),
        Case("dropout", (x,), lambda t: ops.dropout(t, 0.1, Generator(1))),
        Case(
            "bias_dropout_add",
            (x, (HIDDEN,), x),
            lambda x, b, r: ops.bias_dropout_add(x, b, r, 0.1, Generator(1)),
        ),
        Case("embedding", ((VOCAB, HIDDEN),), lambda w: ops.embedding(w, ids)),
        Case("ce_max", ((TOKENS, VOCAB),), ops.ce_max, False),
        Case("ce_sum", ((TOKENS, VOCAB),), lambda t: ops.ce_sum(t, target, row, 0), False),
        Case(
            "ce_backward",
            ((TOKENS, VOCAB),),
            lambda t: ops.ce_backward(t, target, row, row, row, 0),
            False,
        ),
        Case("bias_grad", ((TOKENS, FFN),), ops.bias_grad, False),
        Case("adamw_ 8M", (flat,) * 4, lambda *a: ops.adamw_(*a, step=3, **adam), False),
        Case("axpy_ 8M", (flat, flat), ops.axpy_, False),
        Case("l2_norm_squared 8M", (flat,), ops.l2_norm_squared, False),
        *_packed_cases(),
        *_window_cases(),
        *_decode_cases(),
    ]


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def _milliseconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return (clock() - start) * 1e3


def _runs(case: Case) -> tuple[Callable[[], object], Callable[[], object] | None]:
    """(forward, forward and backward or None) of a case, with inputs of its own."""
    rng = np.random.RandomState(1)
    inputs = [Tensor(rng.rand(*shape).astype(np.float32)) for shape in case.shapes]
    if not case.differentiable:
        return lambda: case.call(*inputs), None
    leaves = [Tensor(memory.as_numpy(t).copy()) for t in inputs]
    for leaf in leaves:
        autograd.requires_grad_(leaf)
    with autograd.no_grad():
        dy = Tensor(rng.rand(*case.call(*leaves).shape).astype(np.float32))

    def forward() -> None:
        with autograd.no_grad():
            case.call(*inputs)

    def both() -> None:
        autograd.enable()
        autograd.backward(case.call(*leaves), dy)
        for leaf in leaves:
            autograd.set_grad(leaf, None)

    return forward, both


def measure(
    case: Case, sets: list[str], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Best milliseconds per kernel set: ``fwd`` and, for differentiable operations, ``fwd+bwd``."""
    best: dict[str, dict[str, float]] = {name: {} for name in sets}
    for _ in range(rounds):
        for name in sets:
            if name == "torch":
                from torch_ops import runs as torch_runs

                found = torch_runs(case.name, case.shapes, case.differentiable) or (None, None)
            else:
                ops.select(name)
                found = _runs(case)
            for label, run in zip(("fwd", "fwd+bwd"), found, strict=True):
                if run is not None:
                    run()
                    took = min(_milliseconds(run, clock) for _ in range(3))
                    best[name][label] = min(took, best[name].get(label, took))
    return best


def draw(results: dict[str, dict[str, dict[str, float]]], sets: list[str], path: Path) -> None:
    """Milliseconds of the longest label of each case, one bar per set, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 0.42 * len(results) + 1.5), layout="constrained")
    height = 0.8 / len(sets)
    for index, name in enumerate(sets):
        values = [
            best[name].get("fwd+bwd", best[name].get("fwd", 0.0)) for best in results.values()
        ]
        axis.barh([y + index * height for y in range(len(results))], values, height, label=name)
    axis.set_yticks([y + 0.4 - height / 2 for y in range(len(results))], list(results))
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("milliseconds (forward and backward where there is one)")
    axis.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the table; write the JSON file when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="times that the sets take turns")
    parser.add_argument(
        "--clock",
        choices=sorted(CLOCKS),
        default="wall",
        help="wall time, or CPU time of all threads (on a machine that others use too)",
    )
    parser.add_argument("--only", default="", help="operations whose name contains this text")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--png", type=Path, help="file for a picture (needs matplotlib)")
    parser.add_argument("--torch", action="store_true", help="measure torch's operations too")
    arguments = parser.parse_args()
    sets = ["portable"] if cpu.unavailable() else ["portable", "cpu"]
    native = sets[-1]
    ops.select(native)
    if arguments.torch:
        import torch

        torch.set_num_threads(cpu.library.num_threads())
        sets.append("torch")
    out = sys.stdout
    out.write(ops.report() + "\n")
    out.write(f"{'ms (fwd / fwd+bwd)':40}" + "".join(f"{name:>20}" for name in sets) + "    GF/s\n")
    results = {}
    for case in _cases():
        if arguments.only not in case.name:
            continue
        results[case.name] = best = measure(case, sets, arguments.rounds, CLOCKS[arguments.clock])
        cells = [" / ".join(f"{value:.2f}" for value in best[name].values()) for name in sets]
        speed = ""
        if case.gigaflops:
            rate = case.gigaflops / best[native]["fwd"] * 1e3
            # Processor time is that of all threads together: the limit of one is its measure.
            own = 1 if arguments.clock == "cpu" else cpu.library.num_threads()
            share = share_of_limit(rate * 1e9, own)
            speed = f"{rate:8.0f}  {share}"
        out.write(f"{case.name:40}" + "".join(f"{cell:>20}" for cell in cells) + speed + "\n")
        out.flush()
    if arguments.png:
        draw(results, sets, arguments.png)
    if arguments.json:
        arguments.json.write_text(json.dumps({"report": ops.report(), "ms": results}, indent=1))


if __name__ == "__main__":
    main()
