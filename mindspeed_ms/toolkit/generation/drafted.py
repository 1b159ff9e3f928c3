# SPDX-License-Identifier: Apache-2.0
"""Tokens that somebody proposes (``core/inference/drafts.py``) and steps of the model verify.

A row keeps a drafted token if it is the one that it would have chosen anyway, greedily or drawn by
its counter; so drafts change the time that a text takes, and nothing in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.core.inference import sampling
from mindspeed_ms.core.inference.drafts import Drafts
from mindspeed_ms.core.inference.logits_processors import LogitsProcessor, Scores, log_softmax
from mindspeed_ms.toolkit.generation.growing_ids import GrowingIds
from mindspeed_ms.toolkit.generation.output import GenerateOutput, tensor_of
from mindspeed_ms.toolkit.generation.rules import chosen, processed
from mindspeed_ms.toolkit.generation.sample import Task


@dataclass(slots=True)
class _Row:
    """A sequence that goes on at its own pace."""

    task: Task
    processors: Sequence[LogitsProcessor]
    name: NDArray[np.uint64]
    """[1], of its random stream."""
    padded: GrowingIds
    """All tokens, and those that are drafted while a draft is made."""
    own: GrowingIds
    """Tokens without padding."""
    end: int | None = None
    """Tokens it has when it ended."""
    scores: list[Scores] = field(default_factory=list)
    logits: list[Scores] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        """Tokens, padding counted."""
        return len(self.padded)

    def choose(self, logits: Scores) -> tuple[int, Scores]:
        """Put a token behind ``padded`` by logits [v]; it, and the scores [1, v] that say so."""
        task, step = self.task, len(self) - self.task.prompt_length
        scores = processed(self.processors, self.padded.ids[None], logits[None])
        token = int(chosen(scores, task.config, task.seed, self.name, step)[0])
        self.padded.append(token)
        return token, scores

    def advance(self, logits: Scores) -> int:
        """Choose the next token from the model's logits [v]."""
        token, scores = self.choose(logits)
        self.own.append(token)
        config = self.task.config
        if config.return_dict_in_generate and self.end is None:
            self.logprobs.append(float(log_softmax(logits[None])[0, token]))
            if config.output_scores:
                self.scores.append(scores.copy())
            if config.output_logits:
                self.logits.append(logits[None].copy())
        if self.task.streamer is not None:
            self.task.streamer.put(np.array([token]))
        if self.end is None and self.task.stopping(self.padded.ids[None], scores)[0]:
            self.end = len(self)
        return token


def sample_drafted(task: Task) -> GenerateOutput:
    """What ``sample`` returns, by fewer steps of the whole model.

    Raises:
        ValueError: several rows where only one can be shown, or have its scores kept.
    """
    config = task.config
    copies = config.num_return_sequences
    count = len(task.prompts.ids) * copies
    if count > 1 and (task.streamer is not None or task.wants_scores):
        raise ValueError(
            f"{count} sequences with drafts go on at their own pace: a streamer, output_scores and "
            "output_logits are for one"
        )
    drafts = task.drafts
    assert drafts is not None, "this search is chosen where there are some"
    slots, logits = drafts.add([row.tolist() for row in task.prompts.rows])
    if copies > 1:
        slots, logits = drafts.fork(slots, copies), np.repeat(logits, copies, axis=0)
    rows = _rows(task, copies)
    if task.streamer is not None:
        task.streamer.put(task.prompts.ids)
    for row, own in zip(rows, logits, strict=True):
        row.advance(own)
    drafted = accepted = 0
    while True:
        active = np.array([index for index, row in enumerate(rows) if _goes_on(row, rows)])
        if not len(active):
            break
        counts = _advance(drafts, slots[active], [rows[index] for index in active])
        drafted, accepted = drafted + counts[0], accepted + counts[1]
    if task.streamer is not None:
        task.streamer.end()
    return _output(task, rows, drafted, accepted)


def _rows(task: Task, copies: int) -> list[_Row]:
    prompts = task.prompts
    names = sampling.stream_names([row.tolist() for row in prompts.rows], copies)
    made = []
    for index, name in enumerate(names):
        number = index // copies
        padded, own = GrowingIds(prompts.ids[number]), GrowingIds(prompts.rows[number])
        processors = task.row_processors(number)
        made.append(_Row(task, processors, np.array([name]), padded, own))
    return made


def _goes_on(row: _Row, rows: Sequence[_Row]) -> bool:
    """Whether a row needs more tokens: without an id of padding all run to the last one's end."""
    if row.end is None:
        return True
    return row.task.pad is None and len(row) < _length(rows)


def _length(rows: Sequence[_Row]) -> int:
    """Tokens of the longest sequence so far."""
    return max(len(row) if row.end is None else row.end for row in rows)


def _advance(drafts: Drafts, slots: NDArray[np.int64], rows: Sequence[_Row]) -> tuple[int, int]:
    """Draft, verify, keep: numbers of tokens drafted and accepted."""
    lengths = [len(row) for row in rows]

    def choose(logits: Scores) -> NDArray[np.int64]:
        tokens = [row.choose(own)[0] for row, own in zip(rows, logits, strict=True)]
        return np.array(tokens, np.int64)

    # A step chooses one token more than were drafted.
    rests = [max(rows[0].task.config.max_length - 1 - length, 0) for length in lengths]
    found = drafts.propose(slots, [row.own.ids for row in rows], choose, max(rests))
    proposed = [tokens[:rest] for tokens, rest in zip(found, rests, strict=True)]
    for row, length in zip(rows, lengths, strict=True):
        row.padded.truncate(length)
    fed = [[row.own.last, *ahead] for row, ahead in zip(rows, proposed, strict=True)]
    logits = drafts.verify(slots, fed)
    wanted, accepted = np.zeros(len(rows), np.int64), 0
    for index, (row, ahead) in enumerate(zip(rows, proposed, strict=True)):
        was_open = row.end is None
        for place in range(len(ahead) + 1):
            token = row.advance(logits[place, index])
            wanted[index] += 1
            is_drafted = place < len(ahead) and token == ahead[place]
            accepted += is_drafted
            if not is_drafted or (was_open and row.end is not None):
                break
    drafts.keep(slots, np.array([len(own) for own in fed]), wanted)
    return sum(map(len, proposed)), accepted


def _output(task: Task, rows: Sequence[_Row], drafted: int, accepted: int) -> GenerateOutput:
    longest, config = _length(rows), task.config
    pad = 0 if task.pad is None else task.pad
    ids = np.full((len(rows), longest), pad, np.int64)
    logprobs = np.zeros((len(rows), longest - task.prompt_length), np.float32)
    for index, row in enumerate(rows):
        end = longest if task.pad is None or row.end is None else row.end
        ids[index, :end] = row.padded.ids[:end]
        logprobs[index, : len(row.logprobs)] = row.logprobs
    output = GenerateOutput(tensor_of(ids, np.int32))
    if not config.return_dict_in_generate:
        return output
    output.num_drafted, output.num_accepted = drafted, accepted
    output.logprobs = tensor_of(logprobs)
    if config.output_scores:
        output.scores = tuple(map(tensor_of, rows[0].scores))
    if config.output_logits:
        output.logits = tuple(map(tensor_of, rows[0].logits))
    return output
