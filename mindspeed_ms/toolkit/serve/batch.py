# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: requests join and leave between the steps of one model.

Every choice depends on the request alone (its prompt, options and seed), so an answer does not
depend on which others run beside it. Each prompt passes the model by itself, as ``generate`` would
have it do; then its rows take part in the steps of all rows.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.backend import comm
from mindspeed_ms.core.inference.engine import InferenceEngine
from mindspeed_ms.core.inference.logits_processors import LogitsProcessor, Scores, log_softmax
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.generation.growing_ids import GrowingIds
from mindspeed_ms.toolkit.generation.inputs import Prompts
from mindspeed_ms.toolkit.generation.rules import chosen, processed, processors_of
from mindspeed_ms.toolkit.serve.growing_text import Decoder, GrowingText
from mindspeed_ms.toolkit.serve.rules import LineEnds

logger = logging.getLogger(__name__)
INTERNAL = "The server had an error while processing your request"
_SAME_ON_ALL_RANKS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)
"""What a program does wrong, as opposed to what a rank meets alone: no memory, a lost peer."""

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
    is_internal: bool = False
    """The server's fault, not that of the request."""


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
    tokens: GrowingIds
    """Prompt and new ones."""
    text: GrowingText
    name: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        self.name = np.array([self.request.names[self.copy]], np.uint64)

    @property
    def num_new(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


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
        # Others wait for a rank that has failed alone, so such an error may end no request only.
        self._caught = Exception if comm.get_world_size() == 1 else _SAME_ON_ALL_RANKS

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
        """One token more for every sequence that runs, and the first ones of those that join.

        An error of one request ends that request: its event says so.
        """
        events: list[Event] = []
        if self._rows:
            events.extend(self._stepped())
        tokens = 0
        while self._waiting and self._fits(self._waiting[0], tokens):
            request = self._waiting.popleft()
            tokens += len(request.prompt)
            try:
                events.extend(self._joined(request))
            except self._caught as error:
                events.append(_failed(request, error))
        return events

    def _stepped(self) -> list[Event]:
        """The next token of all rows; a step that fails ends them."""
        rows = self._rows
        slots = np.array([row.slot for row in rows])
        last = np.array([row.tokens.last for row in rows])
        try:
            logits = self.engine.step(slots, last)
        except self._caught as error:
            self._leave(rows)
            requests = {row.request.number: row.request for row in rows}
            return [_failed(request, error) for request in requests.values()]
        return self._advanced(rows, logits)

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
        processors, copies = _processors(request), len(request.names)  # may refuse: before slots
        slots = self.engine.cache.take(1)
        try:
            logits = self.engine.extend(slots, [request.prompt], wants_all=request.scores_prompt)
            logits = logits[:, 0] if request.scores_prompt else logits
            scores = [_prompt_scores(request, logits)] if request.scores_prompt else []
            wants_more = request.config.max_length > len(request.prompt)
            if wants_more and copies > 1:
                slots = self.engine.cache.fork(slots, copies)
        except BaseException:
            self.engine.free(slots)
            raise
        yield from scores
        if not wants_more:
            self.engine.free(slots)
            yield from (_nothing(request, copy) for copy in range(copies))
            return
        rows = [
            _Row(
                request,
                copy,
                int(slot),
                processors,
                GrowingIds(request.prompt),
                GrowingText(self.tokenizer, request.prompt, request.stops),
            )
            for copy, slot in enumerate(slots)
        ]
        self._rows = self._rows + rows
        yield from self._advanced(rows, np.repeat(logits[-1:], copies, axis=0))

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
            except self._caught as error:
                failed.add(number)
                events.append(_failed(row.request, error))
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


def _failed(request: Request, error: Exception) -> Failed:
    """What the client is told; the log has all of what no request can be told off for."""
    if isinstance(error, ValueError):
        return Failed(request.number, str(error))
    logger.error("request %d has failed: %r", request.number, error, exc_info=error)
    return Failed(request.number, INTERNAL, is_internal=True)


def _processors(request: Request) -> list[LogitsProcessor]:
    ids = np.array([request.prompt])
    return processors_of(request.config, Prompts(ids, np.ones_like(ids, bool)), own=request.rules)


def _next(row: _Row, logits: Scores) -> Piece:
    """Give a row its next token.

    Raises:
        ValueError: the options rule all tokens out.
    """
    request, config = row.request, row.request.config
    scores = processed(row.processors, row.tokens.ids[None], logits[None])
    token = int(chosen(scores, config, request.seed, row.name, row.num_new)[0])
    previous, offset = row.tokens.last, row.text.num_chars
    row.tokens.append(token)
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
    elif len(row.tokens) >= config.max_length:
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
