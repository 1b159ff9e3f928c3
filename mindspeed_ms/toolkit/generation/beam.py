# SPDX-License-Identifier: Apache-2.0
"""Beam search. Legend: b prompts, k beams, c candidates, s tokens, t new tokens, v vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.core.inference import sampling
from mindspeed_ms.core.inference.logits_processors import Scores, log_softmax
from mindspeed_ms.toolkit.generation.output import GenerateOutput, tensor_of
from mindspeed_ms.toolkit.generation.rules import processed
from mindspeed_ms.toolkit.generation.sample import Task

WORST = -1e9
"""Added to the score of what must not be chosen."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Beams:
    """Sequences of each prompt, best first."""

    ids: NDArray[np.int64]
    """[b, k, s + t_max]; places to come hold a filler."""
    scores: Scores
    """[b, k]: sums of logarithms of probabilities, over length ** penalty for those that ended."""
    rows: NDArray[np.int64]
    """[b, k, t_max], row of the step that each new token was chosen in; -1: none yet."""
    logprobs: Scores
    """[b, k, t_max], of the model's own logits."""

    def chosen(self, columns: NDArray[np.int64]) -> Beams:
        """Some of them: columns [b, c]."""
        deep = columns[:, :, None]
        return Beams(
            np.take_along_axis(self.ids, deep, axis=1),
            np.take_along_axis(self.scores, columns, axis=1),
            np.take_along_axis(self.rows, deep, axis=1),
            np.take_along_axis(self.logprobs, deep, axis=1),
        )

    def joined(self, other: Beams) -> Beams:
        """These and others."""
        return Beams(
            np.concatenate([self.ids, other.ids], axis=1),
            np.concatenate([self.scores, other.scores], axis=1),
            np.concatenate([self.rows, other.rows], axis=1),
            np.concatenate([self.logprobs, other.logprobs], axis=1),
        )


def best_columns(values: Scores, count: int) -> NDArray[np.int64]:
    """Columns of the largest of each row, largest first, equal ones by number: [b, count]."""
    found = np.empty((len(values), count), np.int64)
    for row, own in enumerate(values):
        candidates = np.arange(len(own))
        if len(own) > 4 * count:
            candidates = np.flatnonzero(own >= np.partition(own, len(own) - count)[-count])
        order = np.argsort(-own[candidates], kind="stable")[:count]
        found[row] = candidates[order]
    return found


def _hiding(hidden: Bools) -> Scores:
    """What is added to scores, so that some are not chosen."""
    return np.where(hidden, np.float32(WORST), np.float32(0))


class BeamSearch:
    """The state of a search, step by step.

    Source: ``transformers`` 5 ``_beam_search`` (candidates per step, penalties, when it ends).
    """

    def __init__(self, task: Task) -> None:
        config = task.config
        self.task, self.beams = task, config.num_beams
        self.penalty, self.early = float(config.length_penalty), config.early_stopping
        self.length = task.prompt_length
        ends = config.end_tokens
        self.candidates = max(2, 1 + len(ends)) * self.beams
        prompts = task.prompts.ids
        self.batch, longest = len(prompts), config.max_length
        filler = (task.pad or ends[0]) if ends else -1
        ids = np.full((self.batch, self.beams, longest), filler, np.int64)
        ids[:, :, : self.length] = prompts[:, None]
        shape = (self.batch, self.beams, longest - self.length)
        scores = np.full((self.batch, self.beams), WORST, np.float32)
        scores[:, 0] = 0.0  # the beams of a prompt are equal at first: one of them counts
        rows, logprobs = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
        self.running = Beams(ids, scores, rows, logprobs)
        # A little worse than any sequence, so that the places of none are the last of equals.
        self.ended = replace(self.running, scores=np.full_like(scores, 1.001 * WORST))
        self.is_ended = np.zeros((self.batch, self.beams), bool)
        self.may_improve = np.ones((self.batch, 1), bool)
        copied = [row.tolist() for row in task.prompts.rows]
        self.names = sampling.stream_names(copied)

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompts, padding counted."""
        return self.task.prompt_length

    def flat(self) -> NDArray[np.int64]:
        """Tokens of the running beams so far, [b * k, s]."""
        return self.running.ids[:, :, : self.length].reshape(self.batch * self.beams, -1)

    def advance(self, logs: Scores, scores: Scores) -> NDArray[np.int64]:
        """Give every running beam its next token.

        Args:
            logs: logarithms of the model's probabilities, [b * k, v].
            scores: the same after all processors.

        Returns:
            [b * k]: row of this step that each beam goes on from.
        """
        candidates = self._candidates(logs, scores)
        seen = candidates.ids[:, :, : self.length + 1]
        done = self.task.stopping(seen.reshape(-1, self.length + 1), scores)
        ends = done.reshape(self.batch, self.candidates)
        open_scores = candidates.scores + _hiding(ends)
        best = best_columns(open_scores, self.beams)
        self._take_ended(candidates, ends)
        self.running = replace(candidates, scores=open_scores).chosen(best)
        self.length += 1
        self._judge()
        self.all_end = bool(ends.all())
        return self.running.rows[:, :, self.length - 1 - self.prompt_length].reshape(-1)

    def _candidates(self, logs: Scores, scores: Scores) -> Beams:
        """The best continuations of each prompt's beams, [b, c]."""
        width = scores.shape[-1]
        step = self.length - self.prompt_length
        total = scores.reshape(self.batch, self.beams, width) + self.running.scores[:, :, None]
        total = total.reshape(self.batch, -1)
        if self.task.config.do_sample:
            drawn = sampling.draw_without_replacement(
                total, self.candidates, self.task.seed, self.names, step
            )
            order = best_columns(np.take_along_axis(total, drawn, axis=1), self.candidates)
            columns = np.take_along_axis(drawn, order, axis=1)
        else:
            columns = best_columns(total, self.candidates)
        beam, token = np.divmod(columns, width)
        result = replace(
            self.running.chosen(beam), scores=np.take_along_axis(total, columns, axis=1)
        )
        row = beam + np.arange(self.batch)[:, None] * self.beams
        result.ids[:, :, self.length] = token
        result.rows[:, :, step] = row
        result.logprobs[:, :, step] = logs[row, token]
        return result

    def _take_ended(self, candidates: Beams, ends: Bools) -> None:
        """Keep the best of the sequences that have ended, earlier and now."""
        just_ended = ends & (np.arange(self.candidates) < self.beams)
        new = self.length + 1 - self.prompt_length
        scores = candidates.scores / np.float32(float(new) ** self.penalty)
        is_full = self.is_ended.all(axis=1, keepdims=True) & (self.early is True)
        for hidden in (is_full, ~self.may_improve, ~just_ended):
            scores = scores + _hiding(hidden)
        merged = self.ended.joined(replace(candidates, scores=scores))
        flags = np.concatenate([self.is_ended, just_ended], axis=1)
        best = best_columns(merged.scores, self.beams)
        self.ended = merged.chosen(best)
        self.is_ended = np.take_along_axis(flags, best, axis=1)

    def _judge(self) -> None:
        """Whether a running beam can still beat the worst of those that ended."""
        length = self.length - self.prompt_length
        if self.early == "never" and self.penalty > 0.0:
            length = self.task.config.max_length - self.prompt_length
        possible = self.running.scores[:, :1] / np.float32(float(length) ** self.penalty)
        worst = np.where(self.is_ended, self.ended.scores.min(axis=1, keepdims=True), WORST)
        self.may_improve &= (possible > worst).any(axis=1, keepdims=True)

    @property
    def goes_on(self) -> bool:
        """Whether another step can change the result."""
        is_complete = bool(self.is_ended.all()) and self.early is True
        return bool(self.may_improve.any()) and not is_complete and not self.all_end


def beam_search(task: Task) -> GenerateOutput:
    """The best sequences that a search with some beams finds; see ``BeamSearch``."""
    search, beams = BeamSearch(task), task.config.num_beams
    owners = np.repeat(np.arange(len(task.prompts.ids)), beams)
    slots, logits = task.begin(beams)
    kept_scores, kept_logits = [], []
    config = task.config
    while True:
        logs = log_softmax(logits)
        scores = processed(task.processors, search.flat(), logs)
        if config.return_dict_in_generate and config.output_scores:
            kept_scores.append(scores.copy())
        if config.return_dict_in_generate and config.output_logits:
            kept_logits.append(logits.copy())
        rows = search.advance(logs, scores)
        if not search.goes_on:
            break
        task.engine.cache.reorder(slots, rows)
        logits = task.go_on(slots, owners, search.flat())
    return _output(search, kept_scores, kept_logits)


def _output(search: BeamSearch, scores: list[Scores], logits: list[Scores]) -> GenerateOutput:
    config, count = search.task.config, search.task.config.num_return_sequences
    best = search.ended
    rows = best.rows[:, :count].reshape(search.batch * count, -1)
    new = int((rows >= 0).sum(axis=1).max())
    ids = best.ids[:, :count].reshape(search.batch * count, -1)
    output = GenerateOutput(tensor_of(ids[:, : search.prompt_length + new], np.int32))
    if not config.return_dict_in_generate:
        return output
    output.beam_indices = tensor_of(rows[:, :new], np.int32)
    output.logprobs = tensor_of(best.logprobs[:, :count].reshape(len(rows), -1)[:, :new])
    if config.output_scores:
        output.scores = tuple(map(tensor_of, scores))
        output.sequences_scores = tensor_of(best.scores[:, :count].reshape(-1))
    output.logits = tuple(map(tensor_of, logits)) if config.output_logits else None
    return output
