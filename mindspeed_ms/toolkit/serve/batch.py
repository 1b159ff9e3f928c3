# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: requests join and leave between the steps of one model.

Every choice depends on the request alone (its prompt, options and seed), so an answer does not
depend on which others run beside it. Each prompt passes the model by itself, as ``generate`` would
have it do; then its rows take part in the steps of all rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.core.inference import sampling
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.core.inference.logits_processors import LogitsProcessor, Scores, log_softmax
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.generation.rules import processed, processors_of
from mindspeed_ms.toolkit.serve.growing_text import Decoder, GrowingText
from mindspeed_ms.toolkit.serve.rules import LineEnds

Top = tuple[tuple[int, float], ...]
"""The likeliest tokens and the logarithms of their probabilities."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A prompt to go on with. Travels to all ranks."""

    number: int
    prompt: tuple[int, ...]
    config: GenerationConfig
    """All options; ``max_length`` is the prompt's length for no new tokens."""
    seed: int = 0
    names: tuple[int, ...] = (0,)
    """Of the random streams, one per sequence that goes on from the prompt."""
    stops: tuple[str, ...] = ()
    rules: tuple[LogitsProcessor, ...] = ()
    """Applied behind those of the options, before sampling narrows down."""
    line_ends: LineEnds | None = None
    """Ends of the text in place of the end tokens."""
    num_top: int | None = None
    """Likeliest tokens to tell of each place; None: not even the chosen one's logarithm."""
    scores_prompt: bool = False
    is_beam: bool = False
    """One search of ``num_beams`` beams, which takes the model for itself."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a sequence, with what it adds to the text."""

    number: int
    copy: int
    token: int | None
    """None: nothing was generated."""
    text: str
    finish: str | None = None
    """Why the sequence ends: ``stop`` or ``length``."""
    logprob: float | None = None
    top: Top = ()
    offset: int = 0
    """Characters of new text before the token."""
    is_first: bool = False
    """Of its sequence."""


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Logarithms of the probabilities of a prompt's tokens but the first."""

    number: int
    logprobs: tuple[float, ...]
    tops: tuple[Top, ...]


@dataclass(frozen=True, slots=True)
class Beams:
    """What a beam search found, the best first: new ids and scores."""

    number: int
    rows: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """A request that the model cannot answer."""

    number: int
    message: str


Event = Piece | PromptScores | Beams | Failed


class Searcher(Protocol):
    """What finds beams."""

    def __call__(self, request: Request) -> Beams:
        """The beams of a request."""


@dataclass(slots=True, eq=False)
class _Row:
    """A sequence that runs."""

    request: Request
    copy: int
    slot: int
    processors: Sequence[LogitsProcessor]
    ids: NDArray[np.int64]
    """[prompt + new], grown as needed."""
    length: int
    text: GrowingText
    name: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        self.name = np.array([self.request.names[self.copy]], np.uint64)

    @property
    def num_new(self) -> int:
        return self.length - len(self.request.prompt)

    def append(self, token: int) -> None:
        if self.length == len(self.ids):
            self.ids = np.concatenate([self.ids, np.zeros_like(self.ids)])
        self.ids[self.length] = token
        self.length += 1


class ContinuousBatch:
    """Requests over the slots of an engine.

    Args:
        engine: the model.
        tokenizer: what decodes.
        max_rows: sequences that run at a time; others wait, in the order they came.
        max_tokens: tokens of prompts that join in one step, before others get their next token;
            one prompt joins whatever its length.
        search: what finds beams.

    Parallelism: all ranks of the model add, cancel and step alike.
    """

    def __init__(
        self,
        engine: InferenceEngine,
        tokenizer: Decoder,
        *,
        max_rows: int = 16,
        max_tokens: int = 2048,
        search: Searcher | None = None,
    ) -> None:
        self.engine, self.tokenizer, self.search = engine, tokenizer, search
        self.max_rows, self.max_tokens = max_rows, max_tokens
        self._waiting: deque[Request] = deque()
        self._rows: list[_Row] = []

    @property
    def num_running(self) -> int:
        """Sequences that have slots."""
        return len(self._rows)

    @property
    def num_waiting(self) -> int:
        """Requests that have none yet."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._rows or self._waiting)

    def add(self, request: Request) -> None:
        """Let a request join when there is room."""
        self._waiting.append(request)

    def cancel(self, number: int) -> None:
        """Forget a request, wherever it is; its slots are free at once."""
        self._waiting = deque(one for one in self._waiting if one.number != number)
        self._leave([row for row in self._rows if row.request.number == number])

    def step(self) -> list[Event]:
        """One token more for every sequence that runs, and the first ones of those that join."""
        events: list[Event] = []
        if self._rows:
            rows = self._rows
            slots = np.array([row.slot for row in rows])
            last = np.array([row.ids[row.length - 1] for row in rows])
            logits = self.engine.step(slots, last)
            events.extend(self._advanced(rows, logits))
        tokens = 0
        while self._waiting and self._fits(self._waiting[0], tokens):
            request = self._waiting.popleft()
            tokens += len(request.prompt)
            try:
                events.extend(self._joined(request))
            except ValueError as error:
                events.append(Failed(request.number, str(error)))
        return events

    def _fits(self, request: Request, tokens: int) -> bool:
        copies = 0 if request.is_beam else len(request.names)
        if self._rows and len(self._rows) + copies > self.max_rows:
            return False
        return not tokens or tokens + len(request.prompt) <= self.max_tokens

    def _joined(self, request: Request) -> Iterator[Event]:
        """Take a request in: events of its prompt and of its first tokens."""
        if request.is_beam:
            if self.search is None:
                raise ValueError("there is no beam search here")
            yield self.search(request)
            return
        slots, logits = self._prompt(request)
        if request.scores_prompt:
            yield _prompt_scores(request, logits)
        logits = logits[-1:]
        prompt, copies = np.array(request.prompt, np.int64), len(request.names)
        if request.config.max_length <= len(prompt):
            self.engine.free(slots)
            yield from (_nothing(request, copy) for copy in range(copies))
            return
        slots = self.engine.cache.fork(slots, copies) if copies > 1 else slots
        processors = _processors(request)
        rows = [
            _Row(
                request,
                copy,
                int(slot),
                processors,
                np.concatenate([prompt, np.zeros(16, np.int64)]),
                len(prompt),
                GrowingText(self.tokenizer, request.prompt, request.stops),
            )
            for copy, slot in enumerate(slots)
        ]
        self._rows = self._rows + rows
        yield from self._advanced(rows, np.repeat(logits, copies, axis=0))

    def _prompt(self, request: Request) -> tuple[NDArray[np.int64], Scores]:
        """The slot [1] of a prompt, and logits behind its last token, or behind all [n, v]."""
        if not request.scores_prompt:
            return self.engine.add([request.prompt])
        slots = self.engine.cache.take(1)
        try:
            return slots, self.engine.extend(slots, [request.prompt], wants_all=True)[:, 0]
        except ValueError:
            self.engine.free(slots)
            raise

    def _advanced(self, rows: Sequence[_Row], logits: Scores) -> list[Event]:
        """Choose a token of each row; rows that end leave."""
        events: list[Event] = []
        ended: dict[int, _Row] = {}
        failed: set[int] = set()
        for row, own in zip(rows, logits, strict=True):
            number = row.request.number
            if number in failed:
                continue
            try:
                piece = _next(row, own)
            except ValueError as error:
                failed.add(number)
                events.append(Failed(number, str(error)))
                continue
            events.append(piece)
            if piece.finish is not None:
                ended[id(row)] = row
        ended |= {id(row): row for row in self._rows if row.request.number in failed}
        self._leave(list(ended.values()))
        return events

    def _leave(self, rows: Sequence[_Row]) -> None:
        if rows:
            self.engine.free([row.slot for row in rows])
            gone = {id(row) for row in rows}
            self._rows = [row for row in self._rows if id(row) not in gone]


def _processors(request: Request) -> list[LogitsProcessor]:
    return processors_of(
        request.config,
        prompt_length=len(request.prompt),
        padding=np.zeros(1, np.int64),
        own=request.rules,
    )


def _next(row: _Row, logits: Scores) -> Piece:
    """Give a row its next token.

    Raises:
        ValueError: the options rule all tokens out.
    """
    request, config = row.request, row.request.config
    scores = processed(row.processors, row.ids[None, : row.length], logits[None])
    if config.do_sample:
        token = int(sampling.draw(scores, request.seed, row.name, row.num_new)[0])
    else:
        token = int(scores[0].argmax())
    previous, offset = int(row.ids[row.length - 1]), row.text.num_chars
    row.append(token)
    logprob: float | None = None
    top: Top = ()
    if request.num_top is not None:
        logs = log_softmax(logits)
        logprob, top = float(logs[token]), _top(logs, request.num_top)
    if request.line_ends is not None:
        is_end = request.line_ends(token, previous)
        text = row.text.push(token)
    else:
        is_end = token in config.end_tokens
        text = "" if is_end else row.text.push(token)
    finish = None
    if is_end or row.text.is_stopped:
        finish = "stop"
    elif row.length >= config.max_length:
        finish = "length"
    if finish is not None:
        text += row.text.end()
        finish = "stop" if row.text.is_stopped else finish
    is_first = row.num_new == 1
    return Piece(request.number, row.copy, token, text, finish, logprob, top, offset, is_first)


def _nothing(request: Request, copy: int) -> Piece:
    return Piece(request.number, copy, None, "", "length", is_first=True)


def _top(logs: Scores, count: int) -> Top:
    """The likeliest tokens of [v], the best first; of equal ones the lower ids."""
    if not count:
        return ()
    count = min(count, len(logs))
    least = np.partition(logs, len(logs) - count)[len(logs) - count]
    found = np.flatnonzero(logs >= least)
    found = found[np.argsort(-logs[found], kind="stable")][:count]
    return tuple((int(token), float(logs[token])) for token in found)


def _prompt_scores(request: Request, logits: Scores) -> PromptScores:
    logs = log_softmax(logits[:-1]) if len(logits) > 1 else logits[:0]
    chosen = [float(own[token]) for own, token in zip(logs, request.prompt[1:], strict=True)]
    tops = tuple(_top(own, request.num_top or 0) for own in logs)
    return PromptScores(request.number, tuple(chosen), tops)
