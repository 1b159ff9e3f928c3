# SPDX-License-Identifier: Apache-2.0
"""The predecessor's random streams: those of the package and of MindSpore's own operators.

Inside ``rng_fork`` both draw from the named stream: dropout of the package's layers from the run's
tracker, ``mint`` and ``ops`` from MindSpore's generator, whose state is kept per stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import mindspore as ms
from mindspore import Tensor

from mindspeed_ms.core import parallel_state, run_state
from mindspeed_ms.core.tensor_parallel.random import (
    DATA_PARALLEL_RNG,
    EXPERT_PARALLEL_RNG,
    MODEL_PARALLEL_RNG,
    get_rng_tracker,
)
from mindspeed_ms.engine.parallel_setup import set_seed

DATA_PARALLEL_GENERATOR = DATA_PARALLEL_RNG
"""Equal on all ranks of a tensor parallel group."""
TENSOR_PARALLEL_GENERATOR = MODEL_PARALLEL_RNG
"""Different on the ranks of a tensor parallel group."""
EXPERT_PARALLEL_GENERATOR = EXPERT_PARALLEL_RNG
"""Different on the ranks that hold different experts."""

_TENSOR_OFFSET, _EXPERT_OFFSET = 2718, 1024


class RNGStateTracer:
    """Named random streams, as seen by scripts; one per run."""

    def __init__(self) -> None:
        self._states: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget all streams."""
        self._states = {}
        get_rng_tracker().reset()

    def init_mode(self, mode: str, seed: int) -> None:
        """Start a stream of MindSpore's generator from a seed; the current one stays as it is."""
        before = ms.get_rng_state()
        ms.manual_seed(seed)
        self._states[mode] = ms.get_rng_state()
        ms.set_rng_state(before)

    def get_state(self) -> dict[str, Any]:
        """Where every stream stands."""
        return {"mindspore": dict(self._states), "layers": get_rng_tracker().get_states()}

    def set_state(self, states: dict[str, Any]) -> None:
        """Continue where ``get_state`` was."""
        self._states = dict(states["mindspore"])
        get_rng_tracker().set_states(states["layers"])

    @contextmanager
    def rng_fork(self, mode: str = TENSOR_PARALLEL_GENERATOR) -> Iterator[None]:
        """Draw from a stream in a block; without effect before ``set_rng_seed``.

        Layers of the package follow the streams of ``set_rng_seed``; a stream that a script starts
        itself is MindSpore's only.

        Raises:
            RuntimeError: no stream of that name.
        """
        if not self._states:
            yield
            return
        if mode not in self._states:
            raise RuntimeError(
                f"random stream {mode!r} does not exist (known: {', '.join(self._states)})"
            )
        before = ms.get_rng_state()
        ms.set_rng_state(self._states[mode])
        try:
            tracker = get_rng_tracker()
            with tracker.fork(mode) if mode in tracker.get_states() else nullcontext():
                yield
        finally:
            self._states[mode] = ms.get_rng_state()
            ms.set_rng_state(before)

    fork = rng_fork


def get_rng_tracer() -> RNGStateTracer:
    """The streams of the active run."""
    return run_state.current().member(RNGStateTracer)


def set_rng_seed(seed: int) -> None:
    """Seed initial weights, the host's generators and all streams.

    Source: Megatron-LM ``model_parallel_cuda_manual_seed`` (offsets of the streams).
    """
    set_seed(seed)
    ms.manual_seed(seed)
    tensor = expert = 0
    if parallel_state.model_parallel_is_initialized():
        tensor = parallel_state.get_tensor_model_parallel_rank()
        expert = parallel_state.get_expert_model_parallel_rank()
    tracer = get_rng_tracer()
    tracer.init_mode(DATA_PARALLEL_GENERATOR, seed)
    tracer.init_mode(TENSOR_PARALLEL_GENERATOR, seed + _TENSOR_OFFSET + tensor)
    tracer.init_mode(EXPERT_PARALLEL_GENERATOR, seed + _EXPERT_OFFSET + 100 * expert + tensor)
