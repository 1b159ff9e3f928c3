# SPDX-License-Identifier: Apache-2.0
"""OpenAI's answers, whole or as the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mindspeed_ms.toolkit.serve.batch import Beams, Event, Failed, Piece, PromptScores, Top
from mindspeed_ms.toolkit.serve.fields import ApiError
from mindspeed_ms.toolkit.serve.growing_text import GrowingText
from mindspeed_ms.toolkit.serve.openai_forms import Job, Served


def refusal(event: Failed) -> ApiError:
    """The answer to a request that has failed."""
    if event.is_internal:
        return ApiError(500, event.message, kind="server_error")
    return ApiError(400, event.message)


@dataclass(slots=True)
class _Sequence:
    """What is known of one sequence."""

    text: str = ""
    finish: str | None = None
    pieces: list[Piece] = field(default_factory=list)

    @property
    def mean_logprob(self) -> float:
        values = [piece.logprob or 0.0 for piece in self.pieces if piece.token is not None]
        return sum(values) / max(len(values), 1)


class Answer:
    """An answer that grows with the events of its requests.

    Args:
        job: what was asked.
        served: the model.
        numbers: of the job's requests, as the events name them.
    """

    def __init__(self, job: Job, served: Served, numbers: list[int]) -> None:
        self._job, self._served = job, served
        self._places = {number: place for place, number in enumerate(numbers)}
        kind = "chatcmpl" if job.is_chat else "cmpl"
        self.id = f"{kind}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        count = len(numbers) * job.copies
        self._sequences = [_Sequence() for _ in range(count)]
        self._prompt_scores: dict[int, PromptScores] = {}

    @property
    def is_done(self) -> bool:
        """Whether all sequences have ended."""
        return all(sequence.finish is not None for sequence in self._sequences)

    def take(self, event: Event) -> list[dict[str, Any]]:
        """Note an event; the chunks of a stream that it makes.

        Raises:
            ApiError: the model cannot answer.
        """
        if isinstance(event, Failed):
            raise refusal(event)
        if isinstance(event, Beams):
            raise ApiError(400, "beams are no answer of this form")
        place = self._places[event.number]
        if isinstance(event, PromptScores):
            self._prompt_scores[place] = event
            return []
        index = place * self._job.copies + event.copy
        sequence = self._sequences[index]
        sequence.text += event.text
        sequence.finish = event.finish
        if event.token is not None:
            sequence.pieces.append(event)
        return list(self._chunks(index, event)) if self._job.wants_stream else []

    # --- whole ------------------------------------------------------------------------------------

    def whole(self) -> dict[str, Any]:
        """The answer when all sequences have ended."""
        job = self._job
        choices: list[dict[str, Any]] = []
        for place in range(len(self._places)):
            first = place * job.copies
            own = list(range(first, first + job.copies))
            if job.num_best < job.copies:
                own.sort(key=lambda index: -self._sequences[index].mean_logprob)
            for index in own[: job.num_best]:
                choices.append(self._choice(len(choices), place, self._sequences[index]))
        kind = "chat.completion" if job.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Tokens of prompts, once each, and of everything that was generated."""
        prompt = sum(len(request.prompt) for request in self._job.requests)
        new = sum(len(sequence.pieces) for sequence in self._sequences)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self._served.name,
            "system_fingerprint": None,
        }

    def _choice(self, index: int, place: int, sequence: _Sequence) -> dict[str, Any]:
        wants = self._job.num_top is not None
        common = {"index": index, "finish_reason": sequence.finish}
        if self._job.is_chat:
            content = self._chat_logprobs(sequence.pieces) if wants else None
            message = {"role": "assistant", "content": sequence.text, "refusal": None}
            return {**common, "message": message, "logprobs": content}
        text = self._echo(place) + sequence.text
        logprobs = self._logprobs(place, sequence.pieces, True) if wants else None
        return {**common, "text": text, "logprobs": logprobs}

    def _echo(self, place: int) -> str:
        return self._job.prompts[place] if self._job.echo else ""

    # --- logarithms of probabilities --------------------------------------------------------------

    def _logprobs(self, place: int, pieces: list[Piece], with_echo: bool) -> dict[str, Any]:
        """OpenAI's ``logprobs`` of completions."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        start = len(self._echo(place))
        scores = self._prompt_scores.get(place)
        if scores is not None and with_echo:
            prompt = self._job.requests[place].prompt
            tokens = [self._served.text_of(token) for token in prompt]
            values = [None, *scores.logprobs]
            rows = zip(prompt[1:], scores.logprobs, scores.tops, strict=True)
            tops = [None, *(self._top(*row) for row in rows)]
            offsets = self._offsets(prompt)
        for piece in pieces:
            if piece.token is None or piece.logprob is None:
                continue
            tokens.append(self._served.text_of(piece.token))
            values.append(piece.logprob)
            tops.append(self._top(piece.token, piece.logprob, piece.top))
            offsets.append(start + piece.offset)
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops if self._job.num_top else None,
            "text_offset": offsets,
        }

    def _offsets(self, prompt: tuple[int, ...]) -> list[int]:
        """Where the tokens of a prompt begin in its text."""
        growing, offsets = GrowingText(self._served.tokenizer, (), ()), []
        for token in prompt:
            offsets.append(growing.num_chars)
            growing.push(token)
        return offsets

    def _top(self, token: int, logprob: float, top: Top) -> dict[str, float]:
        """Likeliest tokens, and the one that is there."""
        found: dict[str, float] = {}
        for other, value in (*top, (token, logprob)):
            found.setdefault(self._served.text_of(other), value)
        return found

    def _chat_logprobs(self, pieces: list[Piece]) -> dict[str, Any]:
        """OpenAI's ``logprobs`` of chats."""

        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self._served.text_of(token)
            data = None if text.startswith("bytes:") else list(text.encode())
            return {"token": text, "logprob": logprob, "bytes": data}

        content = [
            {
                **entry(piece.token, piece.logprob),
                "top_logprobs": [entry(token, value) for token, value in piece.top],
            }
            for piece in pieces
            if piece.token is not None and piece.logprob is not None
        ]
        return {"content": content, "refusal": None}

    # --- a stream ---------------------------------------------------------------------------------

    def _chunks(self, index: int, piece: Piece) -> Iterator[dict[str, Any]]:
        place, job = index // self._job.copies, self._job
        wants = job.num_top is not None
        if piece.is_first and job.is_chat:
            yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None)
        if piece.is_first and job.echo:
            logprobs = self._logprobs(place, [], True) if wants else None
            yield self._chunk(index, {"text": self._echo(place), "logprobs": logprobs}, None)
        says = piece.text or piece.finish is not None or (wants and piece.token is not None)
        if not says:
            return
        if job.is_chat:
            delta = {"content": piece.text} if piece.text else {}
            logprobs = self._chat_logprobs([piece]) if wants else None
            yield self._chunk(index, {"delta": delta, "logprobs": logprobs}, piece.finish)
        else:
            logprobs = self._logprobs(place, [piece], False) if wants else None
            yield self._chunk(index, {"text": piece.text, "logprobs": logprobs}, piece.finish)

    def _chunk(self, index: int, content: dict[str, Any], finish: str | None) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._job.is_chat else "text_completion"
        choice = {"index": index, "logprobs": None, **content, "finish_reason": finish}
        chunk = {**self._head(kind), "choices": [choice]}
        return {**chunk, "usage": None} if self._job.wants_usage else chunk

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream that tells its usage."""
        kind = "chat.completion.chunk" if self._job.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage()}
