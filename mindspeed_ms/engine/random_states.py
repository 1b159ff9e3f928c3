# SPDX-License-Identifier: Apache-2.0
"""The random states of a rank, as plain data for checkpoints."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mindspeed_ms.core import parallel_state
from mindspeed_ms.core.tensor_parallel.random import get_rng_tracker


class HostGenerators:
    """The generators of Python and NumPy, which a process has once, as seen by one run."""

    def __init__(self) -> None:
        self._states: tuple[Any, Any] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let them continue where the last block left them; afterwards they are as before."""
        outside = random.getstate(), np.random.get_state()
        if self._states is not None:
            _set(self._states)
        try:
            yield
        finally:
            self._states = random.getstate(), np.random.get_state()
            _set(outside)


def _set(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])


def capture() -> dict[str, Any]:
    """The streams of dropout, and the host's generators."""
    version, words, gauss = random.getstate()
    numbers = np.random.get_state()
    assert isinstance(numbers, tuple), "the form that was asked for"
    kind, keys, position, has_gauss, cached = numbers
    return {
        "place": _place(),
        "streams": {name: list(state) for name, state in get_rng_tracker().get_states().items()},
        "python": [version, _encode(np.array(words, np.uint32)), gauss],
        "numpy": [str(kind), _encode(keys), int(position), int(has_gauss), float(cached)],
    }


def restore(states: Sequence[Mapping[str, Any]], sizes_agree: bool) -> bool:
    """Continue from states of all ranks of the run that was saved.

    A rank takes the state of a rank at the same place of the model. If the layout of the model has
    changed there is none: the streams then keep this run's seeds, and begin behind every number
    that was drawn before.

    Args:
        states: by rank.
        sizes_agree: whether the model is split as it was.

    Returns:
        Whether the states were restored as they were.
    """
    if not states:
        return False
    own = [state for state in states if state["place"] == _place()] if sizes_agree else []
    tracker = get_rng_tracker()
    seeds = [_seeds(state["streams"]) for state in own]
    if len({tuple(one.items()) for one in seeds}) > 1:  # replicas that draw apart
        mine = _seeds(tracker.get_states())
        own = [state for state, one in zip(own, seeds, strict=True) if one == mine]
    if not own:
        furthest = max(offset for state in states for _, offset in state["streams"].values())
        tracker.set_states(
            {name: (seed, furthest) for name, (seed, _) in tracker.get_states().items()}
        )
        return False
    state = own[0]
    tracker.set_states({name: (seed, offset) for name, (seed, offset) in state["streams"].items()})
    version, words, gauss = state["python"]
    random.setstate((version, tuple(int(word) for word in _decode(words)), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, _decode(keys), position, has_gauss, cached))
    return True


def _seeds(streams: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(seed) for name, (seed, _) in streams.items()}


def _place() -> list[int]:
    """What tells the ranks' streams apart, beside their seeds.

    Data parallel ranks share theirs, or have different seeds.
    """
    return [
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_context_parallel_rank(),
        parallel_state.get_expert_model_parallel_rank(),
        parallel_state.get_expert_tensor_parallel_rank(),
    ]


def _encode(words: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(words, "<u4").tobytes()).decode()


def _decode(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<u4").astype(np.uint32)
