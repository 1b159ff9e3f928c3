# SPDX-License-Identifier: Apache-2.0
"""Choices of tokens that depend on nothing but a seed, a sequence and a step.

A draw is one Philox block whose counter is the step and the name of the sequence, so the same text
comes out on any layout, at any place in a batch, alone or with others, and after a restart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.ops.portable.dropout import philox_blocks

Scores = NDArray[np.float32]


def stream_names(prompts: Sequence[Sequence[int]], copies: int = 1) -> NDArray[np.uint64]:
    """A name for the random stream of every sequence, [len(prompts) * copies].

    It is made from the prompt itself, not from its place, and from how many equal ones came before:
    each of several equal prompts goes its own way.

    Args:
        prompts: ids.
        copies: sequences that go on from each prompt, side by side.
    """
    seen: Counter[bytes] = Counter()
    names = []
    for prompt in prompts:
        content = np.asarray(prompt, np.int64).tobytes()
        for _ in range(copies):
            number = seen[content].to_bytes(8, "little")
            seen[content] += 1
            digest = blake2b(content, digest_size=8, salt=number).digest()
            names.append(int.from_bytes(digest, "little"))
    return np.array(names, np.uint64)


def uniforms(seed: int, names: NDArray[np.uint64], step: int, count: int = 1) -> NDArray:
    """Numbers in [0, 1), fp64 [len(names), count], of 53 bits each.

    Args:
        seed: of the generation.
        names: of the streams.
        step: new tokens that the sequences have already.
        count: numbers of each stream.
    """
    blocks = (np.uint64(step) << np.uint64(32)) + np.arange(count, dtype=np.uint64)
    words = philox_blocks(seed, np.broadcast_to(blocks, (len(names), count)), names[:, None])
    words = words.astype(np.uint64)
    bits = ((words[..., 0] << np.uint64(32)) | words[..., 1]) >> np.uint64(11)
    return bits * 2.0**-53


def draw(scores: Scores, seed: int, names: NDArray[np.uint64], step: int) -> NDArray[np.int64]:
    """A token of each row, with the probabilities of its scores, [b].

    Raises:
        ValueError: a row rules every token out, or holds what is no number.
    """
    chosen = []
    for own, number in zip(scores, uniforms(seed, names, step)[:, 0], strict=True):
        tokens, sums = cumulative(own)
        place = np.searchsorted(sums, number * sums[-1], side="right")
        chosen.append(tokens[min(place, len(tokens) - 1)])
    return np.array(chosen, np.int64)


def cumulative(scores: Scores) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens of a row that are not ruled out, and sums of their weights up to each."""
    best = scores.max()
    if not np.isfinite(best):
        raise ValueError(
            f"no token can be drawn: the best score is {best}; the options rule every token out, "
            "or the model's logits are no numbers"
        )
    tokens = np.flatnonzero(scores > -np.inf)
    return tokens, np.cumsum(np.exp(scores[tokens].astype(np.float64) - best))


def draw_without_replacement(
    scores: Scores, count: int, seed: int, names: NDArray[np.uint64], step: int
) -> NDArray[np.int64]:
    """Different columns of each row, [b, count], drawn one after the other by their scores.

    The largest of scores plus Gumbel noise are such a draw (Vieira, 2014; Kool et al., 2019).
    """
    numbers = uniforms(seed, names, step, scores.shape[1])
    noisy = scores.astype(np.float64) - np.log(-np.log(np.maximum(numbers, 1e-300)))
    return np.argsort(-noisy, axis=-1, kind="stable")[:, :count]
