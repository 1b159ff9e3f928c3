# SPDX-License-Identifier: Apache-2.0
"""Random streams per parallel region.

Three named streams, as in Megatron: one that is equal on all tensor parallel ranks (dropout of
replicated activations), one that differs (dropout of sharded activations), one for experts. A
stream is a counter (``backend.random.Generator``), so a region can be replayed exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mindspeed_ms import old_names
from mindspeed_ms.backend.random import Generator, normal_stream
from mindspeed_ms.core import parallel_state, run_state

logger = logging.getLogger(__name__)

DATA_PARALLEL_RNG = "data-parallel-rng"
MODEL_PARALLEL_RNG = "model-parallel-rng"
EXPERT_PARALLEL_RNG = "expert-parallel-rng"

_SKIP_AT_ONCE = 1 << 22
"""Words that are drawn and thrown away together."""


class RNGStateTracker:
    """Named random streams, one of which is current.

    Source: Megatron-LM ``CudaRNGStatesTracker`` (behaviour); a state is (seed, offset).
    """

    def __init__(self) -> None:
        self._streams: dict[str, Generator] = {}
        self._current = DATA_PARALLEL_RNG
        self.reset()

    def reset(self) -> None:
        """Only the default stream, seeded with 0."""
        self._streams = {DATA_PARALLEL_RNG: Generator(0)}
        self._current = DATA_PARALLEL_RNG

    def add(self, name: str, seed: int) -> None:
        """Create a stream.

        Raises:
            RuntimeError: the name exists already.
        """
        if name in self._streams:
            raise RuntimeError(f"random stream {name!r} exists already; reset() the tracker first")
        self._streams[name] = Generator(seed)

    def seed_default(self, seed: int) -> None:
        """Restart the default stream."""
        self._streams[DATA_PARALLEL_RNG] = Generator(seed)

    def current(self) -> Generator:
        """Stream that draws use now."""
        return self._streams[self._current]

    @contextmanager
    def fork(self, name: str = MODEL_PARALLEL_RNG) -> Iterator[Generator]:
        """Make a stream current for a block.

        Streams of which none was seeded, as in a script that never does, begin with seed 0.

        Raises:
            RuntimeError: no stream of that name; seed the streams first.
        """
        usual = (MODEL_PARALLEL_RNG, EXPERT_PARALLEL_RNG)
        if name in usual and self._streams.keys() == {DATA_PARALLEL_RNG}:
            logger.warning("the random streams are not seeded; those of seed 0 are taken")
            ranks = 0, 0, 0
            if parallel_state.model_parallel_is_initialized():
                ranks = (
                    parallel_state.get_tensor_model_parallel_rank(),
                    parallel_state.get_expert_model_parallel_rank(),
                    parallel_state.get_expert_tensor_parallel_rank(),
                )
            self.add_of_ranks(0, *ranks)
        if name not in self._streams:
            raise RuntimeError(
                f"random stream {name!r} does not exist (known: {', '.join(self._streams)}); "
                "call model_parallel_manual_seed() or set_rng_seed() first"
            )
        previous, self._current = self._current, name
        try:
            yield self._streams[name]
        finally:
            self._current = previous

    def add_of_ranks(self, seed: int, tensor: int, expert: int, expert_tensor: int) -> None:
        """The streams that differ between ranks; see ``model_parallel_manual_seed``."""
        self.add(MODEL_PARALLEL_RNG, seed + 2718 + tensor)
        self.add(EXPERT_PARALLEL_RNG, seed + 1024 + 100 * expert + expert_tensor)

    def get_states(self) -> dict[str, tuple[int, int]]:
        """(seed, offset) of every stream."""
        return {name: stream.get_state() for name, stream in self._streams.items()}

    def set_states(self, states: dict[str, tuple[int, int]]) -> None:
        """Continue from states that ``get_states`` returned."""
        self._streams = {}
        for name, (seed, offset) in states.items():
            self._streams[name] = Generator(seed, offset)


class _InitStream:
    """Host stream of initial weights, drawn in construction order."""

    def __init__(self) -> None:
        self.counter: DrawCounter | None = None
        self.restart(0)

    def restart(self, seed: int) -> None:
        """Begin the stream of a seed."""
        self.seed, self.words, self.position = seed, normal_stream(seed), 0

    def take(self, count: int) -> np.ndarray:
        """The next 32-bit words."""
        self.position += count
        return self.words.randint(0, 2**32, size=count, dtype=np.uint32)


@dataclass(slots=True)
class DrawCounter:
    """Words of the initialisation stream that a construction takes."""

    words: int = 0


def get_rng_tracker() -> RNGStateTracker:
    """The tracker of the active run."""
    return run_state.current().member(RNGStateTracker)


def _init_stream() -> _InitStream:
    return run_state.current().member(_InitStream)


get_cuda_rng_tracker = get_rng_tracker


def model_parallel_manual_seed(
    seed: int, tensor_rank: int = 0, expert_rank: int = 0, expert_tensor_rank: int = 0
) -> None:
    """Seed the three streams of this rank.

    Source: Megatron-LM ``model_parallel_cuda_manual_seed``: default = seed, model parallel = seed
    + 2718 + tensor rank, expert = seed + 1024 + 100 * expert rank + expert tensor rank.
    """
    tracker = get_rng_tracker()
    tracker.reset()
    tracker.seed_default(seed)
    tracker.add_of_ranks(seed, tensor_rank, expert_rank, expert_tensor_rank)


def seed_initialization(seed: int) -> None:
    """Restart the stream of initial weights."""
    _init_stream().restart(seed)


def initialization_seed() -> int:
    """Seed of the stream of initial weights."""
    return _init_stream().seed


def seek_initialization(position: int) -> None:
    """Continue the stream of initial weights at a number of words from its start."""
    stream = _init_stream()
    if position < stream.position:
        stream.restart(stream.seed)
    while stream.position < position:
        stream.take(min(position - stream.position, _SKIP_AT_ONCE))


@contextmanager
def counting_draws() -> Iterator[DrawCounter]:
    """Count the words that the block's draws would take; the draws return zeros meanwhile."""
    stream = _init_stream()
    previous, stream.counter = stream.counter, DrawCounter()
    try:
        yield stream.counter
    finally:
        stream.counter = previous


def is_counting_draws() -> bool:
    """Whether parameters get no initial values, as something else will fill them."""
    return _init_stream().counter is not None


def skip_initialization(words: int) -> None:
    """Leave out as many words of the stream of initial weights as parts elsewhere take."""
    stream = _init_stream()
    if stream.counter is not None:
        stream.counter.words += words
    else:
        seek_initialization(stream.position + words)


def words_of_normal(shape: tuple[int, ...]) -> int:
    """Words that ``draw_normal`` takes for a shape."""
    padded = max(int(np.prod(shape, dtype=np.int64)), 16)
    return padded + (16 if padded % 16 else 0)


def draw_normal(shape: tuple[int, ...], std: float, mean: float = 0.0) -> np.ndarray:
    """Normal fp32 values from the initialisation stream.

    The values are those of torch's CPU ``normal_`` after ``torch.manual_seed`` (to one unit in the
    last place): 24-bit uniforms in blocks of 16, Box-Muller between the halves of each block, and
    for a size that is no multiple of 16 the last 16 values drawn again.
    """
    counter = _init_stream().counter
    if counter is not None:
        counter.words += words_of_normal(shape)
        return np.broadcast_to(np.float32(0.0), shape)
    size = int(np.prod(shape, dtype=np.int64))
    padded = max(size, 16)
    uniforms = _uniforms(padded)
    values = np.empty(padded, np.float32)
    whole = padded // 16 * 16
    values[:whole] = _box_muller(uniforms[:whole])
    if padded % 16:
        values[-16:] = _box_muller(_uniforms(16))
    return (values[:size] * np.float32(std) + np.float32(mean)).reshape(shape)


def draw_uniform(shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Uniform fp32 values in [-bound, bound) from the initialisation stream.

    The values are those of torch's CPU ``uniform_`` after ``torch.manual_seed``.
    """
    size = int(np.prod(shape, dtype=np.int64))
    counter = _init_stream().counter
    if counter is not None:
        counter.words += size
        return np.broadcast_to(np.float32(0.0), shape)
    values = _uniforms(size) * np.float32(2.0 * bound) - np.float32(bound)
    return values.reshape(shape)


def _uniforms(count: int) -> np.ndarray:
    words = _init_stream().take(count)
    return (words & np.uint32((1 << 24) - 1)).astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    blocks = uniforms.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - blocks[:, 0]))
    angle = np.float32(2.0 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


__getattr__ = old_names.of(__name__)
