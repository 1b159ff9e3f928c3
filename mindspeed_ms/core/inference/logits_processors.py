# SPDX-License-Identifier: Apache-2.0
"""What options of text generation do to the scores of next tokens. NumPy only.

A processor takes the ids of all tokens so far [b, s] and scores fp32 [b, v], and returns scores. A
score of -infinity rules a token out. Names, order of application and arithmetic are those of
``transformers`` 5 (``generation/logits_process.py``); the tests hold each one against its class.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.integer]
Scores = NDArray[np.float32]
RULED_OUT = -math.inf


class LogitsProcessor(Protocol):
    """Anything that is called like this."""

    def __call__(self, ids: Ids, scores: Scores) -> Scores:
        """[b, s], [b, v] -> [b, v]."""


def log_softmax(scores: Scores) -> Scores:
    """Logarithms of the probabilities, fp32 [..., v]."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float32))


def softmax(scores: Scores) -> Scores:
    """Probabilities, fp32 [..., v]."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True, dtype=np.float32)


def _without(scores: Scores, ruled_out: NDArray[np.bool_]) -> Scores:
    return np.where(ruled_out, np.float32(RULED_OUT), scores)


def _inside(tokens: Sequence[int], scores: Scores) -> list[int]:
    """The tokens that are of the vocabulary."""
    return [token for token in tokens if 0 <= token < scores.shape[-1]]


def _best(scores: Scores, count: int) -> Scores:
    """The count-th largest of each row, [b, 1]."""
    place = scores.shape[-1] - min(count, scores.shape[-1])
    return np.partition(scores, place, axis=-1)[:, place, None]


# --- rules about tokens ---------------------------------------------------------------------------


def repetition_penalty(penalty: float, first: NDArray[np.integer] | None = None) -> LogitsProcessor:
    """Scores of tokens that were there are divided by the penalty, negative ones multiplied.

    Args:
        penalty: above 1 discourages.
        first: [b], tokens at the beginning of each row that do not count: its padding.
    """
    if not penalty > 0:
        raise ValueError(f"repetition_penalty is {penalty}; it must be above 0")

    def process(ids: Ids, scores: Scores) -> Scores:
        seen = np.zeros((len(scores), scores.shape[1] + 1), bool)
        inside = np.minimum(ids, scores.shape[1])
        if first is not None:
            inside = np.where(np.arange(ids.shape[1]) < first[:, None], scores.shape[1], inside)
        np.put_along_axis(seen, inside, True, axis=1)
        factor = np.float32(penalty)
        return np.where(
            seen[:, :-1], np.where(scores < 0, scores * factor, scores / factor), scores
        )

    return process


def encoder_repetition_penalty(penalty: float, prompts: Ids) -> LogitsProcessor:
    """Scores of the prompts' tokens are multiplied by the penalty, negative ones divided.

    Args:
        penalty: above 1 favours them.
        prompts: [b, s], padding included.
    """
    if not penalty > 0:
        raise ValueError(f"encoder_repetition_penalty is {penalty}; it must be above 0")
    process = repetition_penalty(1 / penalty)
    return lambda ids, scores: process(_of_rows(prompts, len(scores)), scores)


def _of_rows(prompts: Ids, count: int) -> Ids:
    """The prompt of each row, where as many rows go on from every one."""
    return prompts.repeat(count // len(prompts), axis=0)


def no_repeat_ngram(size: int, prompts: Ids | None = None) -> LogitsProcessor:
    """Rule out tokens that would complete a run of ``size`` tokens that was there already.

    Args:
        size: tokens of a run.
        prompts: [b, s], where the runs are looked for; None: in all tokens so far.
    """

    def process(ids: Ids, scores: Scores) -> Scores:
        sources = ids if prompts is None else _of_rows(prompts, len(ids))
        if sources.shape[1] < size:
            return scores
        scores = scores.copy()
        for row, source, own in zip(ids, sources, scores, strict=True):
            runs = np.lib.stride_tricks.sliding_window_view(source, size)
            same = (runs[:, :-1] == row[len(row) - size + 1 :]).all(axis=1)
            own[runs[same, -1]] = RULED_OUT
        return scores

    return process


def sequence_bias(biases: Mapping[tuple[int, ...], float]) -> LogitsProcessor:
    """Add to the score of a token that completes a sequence; sequences of one token always do."""
    if not biases:
        raise ValueError("sequence_bias is empty; give {(ids of a sequence): bias}")
    for sequence in biases:
        if not sequence or any(token < 0 for token in sequence):
            raise ValueError(f"sequence_bias: {sequence} is no sequence of token ids")

    def process(ids: Ids, scores: Scores) -> Scores:
        width = scores.shape[1]
        outside = [token for sequence in biases for token in sequence if token >= width]
        if outside:
            raise ValueError(f"token {outside[0]} is biased, but the vocabulary has {width} tokens")
        bias = np.zeros_like(scores)
        for sequence, value in biases.items():
            prefix = np.array(sequence[:-1])
            if len(prefix) > ids.shape[1]:
                continue
            same = (ids[:, ids.shape[1] - len(prefix) :] == prefix).all(axis=1)
            bias[same, sequence[-1]] += np.float32(value)
        return scores + bias

    return process


def no_bad_words(words: Sequence[Sequence[int]], eos: Sequence[int] = ()) -> LogitsProcessor:
    """Rule out tokens that would complete one of some sequences; an end token alone is none."""
    kept = [tuple(word) for word in words if list(word) not in [[token] for token in eos]]
    return sequence_bias(dict.fromkeys(kept, -math.inf)) if kept else lambda ids, scores: scores


def min_length(length: int, eos: Sequence[int]) -> LogitsProcessor:
    """No end before so many tokens, those of the prompt counted."""

    def process(ids: Ids, scores: Scores) -> Scores:
        return suppress_tokens(eos)(ids, scores) if ids.shape[1] < length else scores

    return process


def prefix_constrained(allowed: Callable[[int, Ids], Iterable[int]], group: int) -> LogitsProcessor:
    """Only what a function allows, which is given the prompt's number and the ids of a row.

    Args:
        allowed: the function.
        group: rows per prompt.
    """

    def process(ids: Ids, scores: Scores) -> Scores:
        result = np.full_like(scores, RULED_OUT)
        for row, own in enumerate(ids):
            tokens = list(allowed(row // group, own))
            if not tokens:
                raise ValueError(
                    f"prefix_allowed_tokens_fn allows no token for prompt {row // group}; it must "
                    "allow at least one"
                )
            result[row, tokens] = scores[row, tokens]
        return result

    return process


def forced_tokens(tokens: Sequence[int], length: int) -> LogitsProcessor:
    """Nothing but these tokens once a row has ``length`` tokens."""

    def process(ids: Ids, scores: Scores) -> Scores:
        if ids.shape[1] != length:
            return scores
        result, inside = np.full_like(scores, RULED_OUT), _inside(tokens, scores)
        if len(inside) < len(tokens):
            raise ValueError(
                f"tokens {list(tokens)} are forced, but the vocabulary has {scores.shape[1]}"
            )
        result[:, inside] = 0.0
        return result

    return process


def remove_invalid_values(ids: Ids, scores: Scores) -> Scores:
    """Numbers in place of what is none: 0, or the largest and smallest there are."""
    limits = np.finfo(np.float32)
    return np.nan_to_num(scores, nan=0.0, posinf=float(limits.max), neginf=float(limits.min))


def exponential_decay(start: int, factor: float, eos: Sequence[int]) -> LogitsProcessor:
    """Raise the score of the end ever more, from ``start`` tokens on, the prompt's counted."""

    def process(ids: Ids, scores: Scores) -> Scores:
        beyond = ids.shape[1] - start
        if beyond <= 0:
            return scores
        scores, ends = scores.copy(), _inside(eos, scores)
        raised = np.abs(scores[:, ends]) * np.float32(factor**beyond - 1)
        scores[:, ends] += np.where(np.isfinite(scores[:, ends]), raised, 0.0).astype(np.float32)
        return scores

    return process


def suppress_tokens(tokens: Sequence[int], length: int | None = None) -> LogitsProcessor:
    """Rule tokens out: always, or only when a row has ``length`` tokens."""

    def process(ids: Ids, scores: Scores) -> Scores:
        if length is not None and ids.shape[1] != length:
            return scores
        scores = scores.copy()
        scores[:, _inside(tokens, scores)] = RULED_OUT
        return scores

    return process


# --- what sampling narrows down -------------------------------------------------------------------


def temperature(value: float) -> LogitsProcessor:
    """Divide the scores. Above 1 evens out."""
    if not value > 0:
        raise ValueError(f"temperature is {value}; it must be above 0 (do_sample=False is greedy)")
    return lambda ids, scores: scores / np.float32(value)


def top_k(count: int, at_least: int = 1) -> LogitsProcessor:
    """The best so many tokens, and those equal to the last of them."""
    if count <= 0:
        raise ValueError(f"top_k is {count}; it must be a positive number, or 0 for all tokens")
    return lambda ids, scores: _without(scores, scores < _best(scores, max(count, at_least)))


def top_p(mass: float, at_least: int = 1) -> LogitsProcessor:
    """The fewest tokens that together have this probability (Holtzman et al., 2020)."""
    if not 0 <= mass <= 1:
        raise ValueError(f"top_p is {mass}; it must be from 0 to 1")

    def process(ids: Ids, scores: Scores) -> Scores:
        order = np.argsort(scores, axis=-1, kind="stable")
        ordered = np.take_along_axis(scores, order, axis=-1)
        ruled_out = np.cumsum(softmax(ordered), axis=-1, dtype=np.float32) <= np.float32(1 - mass)
        ruled_out[:, -at_least:] = False
        result = np.zeros_like(ruled_out)
        np.put_along_axis(result, order, ruled_out, axis=-1)
        return _without(scores, result)

    return process


def min_p(share: float, at_least: int = 1) -> LogitsProcessor:
    """Tokens with at least this share of the best one's probability."""
    if not 0 <= share <= 1:
        raise ValueError(f"min_p is {share}; it must be from 0 to 1")

    def process(ids: Ids, scores: Scores) -> Scores:
        weights = softmax(scores)
        ruled_out = weights < np.float32(share) * weights.max(axis=-1, keepdims=True)
        return _without(scores, ruled_out & (scores < _best(scores, at_least)))

    return process


def typical_p(mass: float, at_least: int = 1) -> LogitsProcessor:
    """Tokens about as surprising as the mean, of this probability (Meister et al., 2023)."""
    if not 0 < mass < 1:
        raise ValueError(f"typical_p is {mass}; it must lie between 0 and 1")

    def process(ids: Ids, scores: Scores) -> Scores:
        logs = log_softmax(scores)
        with np.errstate(invalid="ignore"):
            expected = -np.nansum(logs * np.exp(logs), axis=-1, keepdims=True)
        distance = np.abs(-logs - expected)
        order = np.argsort(distance, axis=-1, kind="stable")
        ordered = np.take_along_axis(distance, order, axis=-1)
        weights = softmax(np.take_along_axis(scores, order, axis=-1))
        last = (np.cumsum(weights, axis=-1, dtype=np.float32) < mass).sum(axis=1)
        last = np.minimum(last, scores.shape[1] - 1)[:, None]
        ruled_out = ordered > np.take_along_axis(ordered, last, axis=1)
        ruled_out[:, :at_least] = False
        result = np.zeros_like(ruled_out)
        np.put_along_axis(result, order, ruled_out, axis=-1)
        return _without(scores, result)

    return process


def epsilon_cutoff(epsilon: float, at_least: int = 1) -> LogitsProcessor:
    """Tokens of at least this probability (Hewitt et al., 2022)."""
    return functools.partial(_cut, lambda logs: np.float32(epsilon), at_least)


def eta_cutoff(epsilon: float, at_least: int = 1) -> LogitsProcessor:
    """Tokens of a probability that falls with the entropy (Hewitt et al., 2022)."""

    def limit(logs: Scores) -> Scores:
        with np.errstate(invalid="ignore"):
            entropy = -np.nansum(logs * np.exp(logs), axis=-1, keepdims=True)
        return np.minimum(np.float32(epsilon), np.sqrt(np.float32(epsilon)) * np.exp(-entropy))

    return functools.partial(_cut, limit, at_least)


def _cut(
    limit: Callable[[Scores], Scores | np.float32], at_least: int, ids: Ids, scores: Scores
) -> Scores:
    logs = log_softmax(scores)
    return _without(scores, (np.exp(logs) < limit(logs)) & (scores < _best(scores, at_least)))


TOP_H_TOKENS = 100
"""Best tokens that ``top_h`` looks at."""


def top_h(share: float) -> LogitsProcessor:
    """The best tokens whose part of the entropy is at most this share of it."""
    if not 0 < share <= 1:
        raise ValueError(f"top_h is {share}; it must be above 0 and at most 1")

    def process(ids: Ids, scores: Scores) -> Scores:
        order = np.argsort(-scores, axis=-1, kind="stable")[:, :TOP_H_TOKENS]
        weights = softmax(np.take_along_axis(scores, order, axis=-1))
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.nan_to_num(-weights * np.log(weights))
        kept = np.cumsum(terms, axis=-1) <= terms.sum(axis=-1, keepdims=True) * np.float32(share)
        kept[:, 0] = True
        result = np.ones(scores.shape, bool)
        np.put_along_axis(result, order, ~kept, axis=-1)
        return _without(scores, result)

    return process


def renormalize(ids: Ids, scores: Scores) -> Scores:
    """Logarithms of probabilities that sum to 1."""
    return log_softmax(scores)
