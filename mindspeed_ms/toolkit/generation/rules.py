# SPDX-License-Identifier: Apache-2.0
"""What the options of a generation do at every step: to scores, and to when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.core.inference import logits_processors as scores_of
from mindspeed_ms.core.inference import sampling
from mindspeed_ms.core.inference.logits_processors import Ids, LogitsProcessor, Scores
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.generation.inputs import Prompts

Done = NDArray[np.bool_]
StoppingCriterion = Callable[[Ids, Scores], Any]
"""Of ids [b, s] and scores [b, v]: whether each row, or all of them, ends; a bool or [b]."""
AllowedTokens = Callable[[int, Ids], Iterable[int]]


def processors_of(
    config: GenerationConfig,
    prompts: Prompts,
    *,
    copies: int = 1,
    own: Sequence[LogitsProcessor] = (),
    allowed: AllowedTokens | None = None,
) -> list[LogitsProcessor]:
    """What is done to scores, in the order of ``transformers``.

    Args:
        config: all options.
        prompts: those of the rows.
        copies: rows that go on from each of them.
        own: processors of the caller.
        allowed: ``prefix_allowed_tokens_fn``.
    """
    found = _about_tokens(config, prompts.ids, prompts.padding.repeat(copies))
    if allowed is not None:
        group = max(config.num_beams, config.num_return_sequences)
        found.append(scores_of.prefix_constrained(allowed, group))
    found.extend(_about_places(config, prompts.ids.shape[1]))
    found.extend(own)
    if config.do_sample:
        found.extend(_narrowing(config))
    if config.renormalize_logits:
        found.append(scores_of.renormalize)
    return found


def _about_tokens(
    config: GenerationConfig, prompts: Ids, padding: NDArray[np.int64]
) -> list[LogitsProcessor]:
    """What favours, or rules out, tokens and sequences of them."""
    ends, found = config.end_tokens, list[LogitsProcessor]()
    if config.sequence_bias is not None:
        found.append(scores_of.sequence_bias(_biases(config.sequence_bias)))
    if config.encoder_repetition_penalty != 1.0:
        penalty = config.encoder_repetition_penalty
        found.append(scores_of.encoder_repetition_penalty(penalty, prompts))
    if config.repetition_penalty != 1.0:
        found.append(scores_of.repetition_penalty(config.repetition_penalty, padding))
    if config.no_repeat_ngram_size:
        found.append(scores_of.no_repeat_ngram(config.no_repeat_ngram_size))
    if config.encoder_no_repeat_ngram_size:
        size = config.encoder_no_repeat_ngram_size
        found.append(scores_of.no_repeat_ngram(size, prompts))
    if config.bad_words_ids is not None:
        found.append(scores_of.no_bad_words(config.bad_words_ids, ends))
    if ends and config.min_length:
        found.append(scores_of.min_length(config.min_length, ends))
    return found


def _about_places(config: GenerationConfig, prompt_length: int) -> list[LogitsProcessor]:
    """What holds at the beginning, or towards the end."""
    found = list[LogitsProcessor]()
    if config.forced_bos_token_id is not None:
        found.append(scores_of.forced_tokens([config.forced_bos_token_id], 1))
    if config.forced_eos_token_id is not None:
        forced = config.forced_eos_token_id
        forced = [forced] if isinstance(forced, int) else forced
        found.append(scores_of.forced_tokens(forced, config.max_length - 1))
    if config.remove_invalid_values:
        found.append(scores_of.remove_invalid_values)
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        found.append(scores_of.exponential_decay(start + prompt_length, factor, config.end_tokens))
    if config.suppress_tokens is not None:
        found.append(scores_of.suppress_tokens(config.suppress_tokens))
    if config.begin_suppress_tokens is not None:
        is_later = prompt_length == 1 and config.forced_bos_token_id is not None
        place = prompt_length + is_later
        found.append(scores_of.suppress_tokens(config.begin_suppress_tokens, place))
    return found


def _narrowing(config: GenerationConfig) -> list[LogitsProcessor]:
    """Those of sampling. Beams keep a token that goes on beside all that end."""
    least = max(len(config.end_tokens), 1) + 1 if config.num_beams > 1 else 1
    found: list[LogitsProcessor] = []
    if config.temperature != 1.0:
        found.append(scores_of.temperature(config.temperature))
    if config.top_h is not None:
        found.append(scores_of.top_h(config.top_h))
    if config.top_k:
        found.append(scores_of.top_k(config.top_k, least))
    if config.top_p < 1.0:
        found.append(scores_of.top_p(config.top_p, least))
    if config.min_p is not None:
        found.append(scores_of.min_p(config.min_p, least))
    if config.typical_p < 1.0:
        found.append(scores_of.typical_p(config.typical_p, least))
    if 0.0 < config.epsilon_cutoff < 1.0:
        found.append(scores_of.epsilon_cutoff(config.epsilon_cutoff, least))
    if 0.0 < config.eta_cutoff < 1.0:
        found.append(scores_of.eta_cutoff(config.eta_cutoff, least))
    return found


def _biases(given: Any) -> dict[tuple[int, ...], float]:
    """``sequence_bias`` as a dictionary; files hold it as a list of pairs."""
    pairs = given.items() if isinstance(given, dict) else given
    return {tuple(int(token) for token in ids): float(bias) for ids, bias in pairs}


def processed(processors: Sequence[LogitsProcessor], ids: Ids, scores: Scores) -> Scores:
    """Scores after all processors."""
    for process in processors:
        scores = process(ids, scores)
    return scores


def chosen(
    scores: Scores, config: GenerationConfig, seed: int, names: NDArray[np.uint64], step: int
) -> NDArray[np.int64]:
    """A token of each row, [b]: the best, or one drawn, as ``do_sample`` says.

    Args:
        scores: [b, v], after all processors.
        config: all options.
        seed: of the generation.
        names: [b], of the rows' random streams.
        step: new tokens that the rows have already.

    Raises:
        ValueError: a row to draw from rules every token out, or holds what is no number.
    """
    if config.do_sample:
        return sampling.draw(scores, seed, names, step)
    return scores.argmax(axis=-1)


class Stopping:
    """When rows end: at an end token, a stop string, the longest length, or the latest time.

    Args:
        config: all options.
        tokenizer: what decodes, for stop strings.
        own: criteria of the caller.

    Raises:
        ValueError: stop strings without a tokenizer.
    """

    def __init__(
        self, config: GenerationConfig, tokenizer: Any = None, own: Sequence[StoppingCriterion] = ()
    ) -> None:
        strings = config.stop_strings
        self._strings = [strings] if isinstance(strings, str) else list(strings or ())
        if self._strings and tokenizer is None:
            raise ValueError(
                f"stop_strings are {self._strings}, but there is no tokenizer to find them in the "
                "text; pass tokenizer="
            )
        self._ends = np.array(config.end_tokens, np.int64)
        self._tokenizer, self._own = tokenizer, own
        self._max_length = config.max_length
        self._latest = None if config.max_time is None else time.monotonic() + config.max_time

    def __call__(self, ids: Ids, scores: Scores) -> Done:
        """Whether each row ends with its last token, [b]."""
        late = self._latest is not None and time.monotonic() > self._latest
        done = np.full(len(ids), late or ids.shape[1] >= self._max_length)
        done |= (ids[:, -1:] == self._ends).any(axis=1)
        if self._strings:
            done |= [self._completes_a_string(row) for row in ids]
        for criterion in self._own:
            done |= np.asarray(criterion(ids, scores), bool)
        return done

    def _completes_a_string(self, row: NDArray[np.integer]) -> bool:
        """Whether the text has a stop string that was not complete without the last token."""
        longest = max(len(string.encode()) for string in self._strings)
        tail = row[-(longest + 8) :].tolist()
        text = self._tokenizer.decode(tail)
        before = self._tokenizer.decode(tail[:-1])
        shared = len(before) if text.startswith(before) else _common(text, before)
        return any(
            text.find(string, max(0, shared - len(string) + 1)) >= 0 for string in self._strings
        )


def _common(one: str, other: str) -> int:
    """Characters that two texts begin with alike."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))
