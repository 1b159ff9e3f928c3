# SPDX-License-Identifier: Apache-2.0
"""Activation memory of a long sequence that context parallel ranks share, as measured.

    python benchmarks/context_parallel.py --output memory.json
    mpiexec -n 4 python benchmarks/context_parallel.py --algo megatron_cp_algo --output memory.json

Every rank of the job shares the sequence. Two things are measured, around one attention and around
a small Llama-like model: the bytes of the tensors that forward keeps for backward (counted as the
tape saves them, each piece of memory once, parameters not at all), and the growth of the process's
resident memory, after forward and at its highest until the end of backward (of the attention, the
inputs exist before). The largest of the ranks is appended to a JSON list, beside what one matrix of
all scores would take. Start one process per layout: memory that an earlier pass has freed would
hide the growth of a later one.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor

from mindspeed_ms import ops
from mindspeed_ms.backend import autograd, comm, memory
from mindspeed_ms.core.context_parallel import context_parallel, context_parallel_attention
from mindspeed_ms.core.parameter import named_parameters
from mindspeed_ms.engine.current_config import get_all_config
from mindspeed_ms.engine.datasets import get_batch_on_this_cp_rank
from mindspeed_ms.engine.model_chunks import get_model
from mindspeed_ms.legacy.model import GPTModel
from mindspeed_ms.training import initialize_megatron

logger = logging.getLogger("context_parallel")

VOCABULARY = 512
MODEL = (
    "--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear "
    "--untie-embeddings-and-output-weights --group-query-attention --micro-batch-size 1 "
    "--lr 1e-3 --train-iters 1 --attention-dropout 0 --hidden-dropout 0 --eval-iters 0 "
    f"--tokenizer-type NullTokenizer --vocab-size {VOCABULARY - 1} --logging-level 30 "
    "--make-vocab-size-divisible-by 64"
).split()


def resident(field: str = "VmRSS") -> int:
    """Resident memory of this process in bytes, or with ``VmHWM`` its highest."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field} line; run on Linux")


def forget_highest() -> int:
    """Start the highest resident memory anew; returns the present one."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident()


class KeptTensors:
    """Counts the bytes that the tape keeps for backward in a block."""

    def __init__(self, ignored: Iterable[Tensor] = ()) -> None:
        self._sizes = {memory.address(tensor): 0 for tensor in ignored}
        self.hooks = autograd.saved_tensors_hooks(self._pack, lambda saved: saved)

    def _pack(self, saved: Tensor) -> Tensor:
        where = memory.address(saved)
        if self._sizes.get(where) != 0:
            self._sizes[where] = max(memory.num_bytes(saved), self._sizes.get(where, 0))
        return saved

    @property
    def num_bytes(self) -> int:
        """Bytes kept so far."""
        return sum(self._sizes.values())


def random_tensor(*shape: int) -> Tensor:
    """Small normal numbers."""
    return memory.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))


def measure_attention(arguments: argparse.Namespace) -> dict[str, int]:
    """Bytes by which one causal attention makes the process grow, and what its tensors take."""
    context = context_parallel(get_all_config().parallel_config)
    rows = arguments.seq_length // comm.get_world_size()
    heads, groups = arguments.heads, arguments.groups
    dim = arguments.hidden // heads
    q, k, v = (
        autograd.requires_grad_(random_tensor(rows, 1, count, dim))
        for count in (heads, groups, groups)
    )
    grad = random_tensor(rows, 1, heads * dim)
    kept, before = KeptTensors(), forget_highest()
    with kept.hooks:
        if context is None:
            out = ops.attention(q, k, v, scale=dim**-0.5)
        else:
            out = context_parallel_attention(q, k, v, context, scale=dim**-0.5, causal=True)
    grown = resident() - before
    autograd.backward(out, grad)
    return {
        "kept_for_backward": kept.num_bytes,
        "resident_after_forward": grown,
        "resident_highest": resident("VmHWM") - before,
        "all_scores": 4 * heads * arguments.seq_length**2,
    }


def measure_model(arguments: argparse.Namespace) -> dict[str, int]:
    """Bytes by which forward and backward of the model make the process grow."""
    config = get_all_config()
    (model,) = get_model(lambda pre_process, post_process: GPTModel(config.model_config), config)
    ids = np.random.default_rng(1).integers(0, VOCABULARY - 1, arguments.seq_length + 1)
    whole = {
        "tokens": ids[None, :-1].astype(np.int32),
        "labels": ids[None, 1:].astype(np.int32),
        "loss_mask": np.ones((1, arguments.seq_length), np.float32),
        "position_ids": np.arange(arguments.seq_length, dtype=np.int32)[None],
    }
    batch = {
        name: memory.from_numpy(np.ascontiguousarray(value))
        for name, value in get_batch_on_this_cp_rank(whole).items()
    }
    kept = KeptTensors(param for _, param in named_parameters(model.module))
    before = forget_highest()
    with kept.hooks:
        loss = model(attention_mask=None, **batch)
    grown = resident() - before
    autograd.backward(loss)
    return {
        "kept_for_backward": kept.num_bytes,
        "resident_after_forward": grown,
        "resident_highest": resident("VmHWM") - before,
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both measurements on this rank."""
    ranks = comm.get_world_size()
    flags = {
        "--num-layers": arguments.layers,
        "--hidden-size": arguments.hidden,
        "--ffn-hidden-size": 3 * arguments.hidden,
        "--num-attention-heads": arguments.heads,
        "--num-query-groups": arguments.groups,
        "--seq-length": arguments.seq_length,
        "--max-position-embeddings": arguments.seq_length,
        "--global-batch-size": 1,
        "--context-parallel-size": ranks,
        "--context-parallel-algo": arguments.algo,
    }
    if arguments.algo == "hybrid_cp_algo":
        flags["--ulysses-degree-in-cp"] = arguments.ulysses
    initialize_megatron(argv=[*MODEL, *(str(word) for pair in flags.items() for word in pair)])
    autograd.enable()
    return {"attention": measure_attention(arguments), "model": measure_model(arguments)}


def largest(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Every figure of the rank where it is largest."""
    return {
        part: {name: max(result[part][name] for result in results) for name in results[0][part]}
        for part in results[0]
    }


def main() -> None:
    """Measure, and write a JSON file on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--algo", default="megatron_cp_algo", help="as --context-parallel-algo")
    parser.add_argument("--ulysses", type=int, default=2, help="of hybrid_cp_algo")
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    comm.init_process_group()
    figures = largest(comm.all_gather_object(run(arguments)))
    settings = {k: v for k, v in vars(arguments).items() if k not in ("output", "ulysses")}
    result = {"context_parallel_size": comm.get_world_size(), **settings, **figures}
    if comm.get_rank() == 0:
        logger.info(json.dumps(result, indent=1))
        if arguments.output is not None:
            found = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
            arguments.output.write_text(json.dumps([*found, result], indent=1) + "\n")


if __name__ == "__main__":
    main()
