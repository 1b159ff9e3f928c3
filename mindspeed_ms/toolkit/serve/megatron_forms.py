# SPDX-License-Identifier: Apache-2.0
"""Megatron's ``PUT /api``: its fields, its bounds and what it answers.

Source: Megatron-LM's text generation server (names, defaults, texts of errors).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mindspeed_ms.core.inference import sampling
from mindspeed_ms.core.inference.logits_processors import LogitsProcessor
from mindspeed_ms.toolkit.serve.batch import Beams, Event, Failed, Piece, PromptScores, Request
from mindspeed_ms.toolkit.serve.openai_forms import MOST_COPIES, Served, config_of, drawing
from mindspeed_ms.toolkit.serve.rules import FallingTopP, LineEnds, NeverAfter

MOST_PROMPTS = 128
TOKENS_TO_GENERATE = 64
_MOST_TOP_K = 1000
_MOST_PENALTY = 10


class MegatronError(Exception):
    """A request that Megatron's server refuses, with its words.

    Args:
        message: its words.
        status: of HTTP.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a value must be, and what is said if it is not."""

    kinds: tuple[type, ...]
    text: str
    fits: Callable[[Any], bool] = lambda value: True
    otherwise: str | None = None
    """Said of a value of the right kind that does not fit."""


_TEMPERATURE = "temperature must be a positive number less than or equal to 100.0"
_TOP_K = "top_k must be an integer equal to or greater than 0 and less than or equal to 1000"
_SHARE = "{} must be less than or equal to 1.0"
_POSITIVE = "{} must be a positive float less than or equal to {}"
_RULES: Mapping[str, _Rule] = {
    "tokens_to_generate": _Rule(
        (int,),
        "tokens_to_generate must be an integer greater than 0",
        lambda value: value >= 0,
        "tokens_to_generate must be an integer greater than or equal to 0",
    ),
    "logprobs": _Rule((bool,), "logprobs must be a boolean value"),
    "temperature": _Rule((int, float), _TEMPERATURE, lambda value: 0.0 < value <= 100.0),
    "top_k": _Rule((int,), _TOP_K, lambda value: 0 <= value <= _MOST_TOP_K),
    "top_p": _Rule(
        (float,),
        _POSITIVE.format("top_p", "1.0"),
        lambda value: 0 <= value <= 1.0,
        _SHARE.format("top_p"),
    ),
    "top_p_decay": _Rule(
        (float,),
        _POSITIVE.format("top_p_decay", "1.0"),
        lambda value: 0 <= value <= 1.0,
        _SHARE.format("top_p_decay"),
    ),
    "top_p_bound": _Rule((float,), _POSITIVE.format("top_p_bound", "top_p")),
    "add_BOS": _Rule((bool,), "add_BOS must be a boolean value"),
    "stop_on_double_eol": _Rule((bool,), "stop_on_double_eol must be a boolean value"),
    "stop_on_eol": _Rule((bool,), "stop_on_eol must be a boolean value"),
    "prevent_newline_after_colon": _Rule(
        (bool,), "prevent_newline_after_colon must be a boolean value"
    ),
    "random_seed": _Rule(
        (int,),
        "random_seed must be integer",
        lambda value: value >= 0,
        "random_seed must be a positive integer",
    ),
    "no_log": _Rule((bool,), "no_log must be a boolean value"),
    "beam_width": _Rule(
        (int,),
        "beam_width must be integer",
        lambda value: value >= 1,
        "beam_width must be an integer > 1",
    ),
    "stop_token": _Rule((int,), "stop_token must be an integer"),
    "length_penalty": _Rule(
        (int, float),
        "length_penalty must be a float",
        lambda value: -_MOST_PENALTY <= value <= _MOST_PENALTY,
        f"length_penalty must be from {-_MOST_PENALTY} to {_MOST_PENALTY}",
    ),
}
"""In the order in which they are looked at."""


def _checked(body: Mapping[str, Any], name: str, default: Any) -> Any:
    if name not in body:
        return default
    value, rule = body[name], _RULES[name]
    if type(value) not in rule.kinds:
        raise MegatronError(rule.text)
    if not rule.fits(value):
        raise MegatronError(rule.otherwise or rule.text)
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class MegatronJob:
    """A request to ``/api``."""

    requests: list[Request]
    wants_logprobs: bool


def megatron_job(body: Any, served: Served) -> MegatronJob:
    """The job of a request.

    Raises:
        MegatronError: a field is missing or has a wrong value.
    """
    prompts = _prompts(body)
    num_new = _checked(body, "tokens_to_generate", TOKENS_TO_GENERATE)
    logprobs = _checked(body, "logprobs", False)
    if not num_new and not logprobs:
        raise MegatronError("tokens_to_generate=0 implies logprobs=True")
    settings = _Settings.read(body, served, len(prompts))
    ids = _ids(body, prompts, served)
    longest = max(len(row) for row in ids)
    if longest + num_new > served.max_length:
        raise MegatronError("Length of prompt + tokens_to_generate longer than allowed")
    total, limit = (longest + num_new) * len(ids), served.max_tokens_to_oom
    if limit is not None and total > limit:
        raise MegatronError(f"Too many tokens.  {total} is greater than {limit}")
    if len(ids) > served.max_open:
        raise MegatronError(f"Maximum number of prompts is {served.max_open}")
    names = sampling.stream_names(ids)
    made = [
        settings.request(row, num_new, int(name), logprobs)
        for row, name in zip(ids, names, strict=True)
    ]
    return MegatronJob(requests=made, wants_logprobs=logprobs)


def _prompts(body: Any) -> list[str]:
    if not isinstance(body, Mapping) or "prompts" not in body:
        raise MegatronError("prompts argument required")
    if "max_len" in body:
        raise MegatronError("max_len is no longer used.  Replace with tokens_to_generate")
    if "sentences" in body:
        raise MegatronError("sentences is no longer used.  Replace with prompts")
    prompts = body["prompts"]
    if not isinstance(prompts, list) or not all(isinstance(one, str) for one in prompts):
        raise MegatronError("prompts is not a list of strings")
    if not prompts:
        raise MegatronError("prompts is empty")
    if len(prompts) > MOST_PROMPTS:
        raise MegatronError(f"Maximum number of prompts is {MOST_PROMPTS}")
    return prompts


def _ids(body: Mapping[str, Any], prompts: list[str], served: Served) -> list[list[int]]:
    """Ids of the prompts; Megatron's begin token is the one that ends texts, if there is none."""
    adds = _checked(body, "add_BOS", False)
    if any(not prompt for prompt in prompts) and not adds:
        raise MegatronError("Empty prompts require add_BOS=true")
    begin = served.end_tokens[:1] if served.begin_token is None else (served.begin_token,)
    if adds and not begin:
        raise MegatronError("add_BOS is true, but the model has no token to begin with")
    found = []
    for prompt in prompts:
        ids = served.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        found.append([*(begin if adds else ()), *ids])
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Settings:
    """What holds for all prompts of a request."""

    values: dict[str, Any]
    seed: int
    top_p: float
    decay: float
    bound: float
    rules: tuple[LogitsProcessor, ...]
    line_ends: LineEnds | None
    is_beam: bool

    @classmethod
    def read(cls, body: Mapping[str, Any], served: Served, num_prompts: int) -> _Settings:
        temperature = _checked(body, "temperature", 1.0)
        top_k = _checked(body, "top_k", 0)
        top_p = _checked(body, "top_p", 0.0)
        if top_p > 0.0 and top_k > 0:
            raise MegatronError("cannot set both top-k and top-p samplings.")
        decay, bound = _falling(body, top_p)
        double = _checked(body, "stop_on_double_eol", False)
        single = _checked(body, "stop_on_eol", False)
        no_newline = _checked(body, "prevent_newline_after_colon", False)
        seed = _checked(body, "random_seed", None)
        _checked(body, "no_log", False)
        beams = _checked(body, "beam_width", None)
        if beams is not None and num_prompts > 1:
            raise MegatronError("When doing beam_search, batch size must be 1")
        if beams is not None and beams > MOST_COPIES:
            raise MegatronError(f"beam_width must be less than or equal to {MOST_COPIES}")
        stop = _checked(body, "stop_token", None)
        if stop is not None and not 0 <= stop < served.vocab_size:
            raise MegatronError(f"stop_token must be from 0 to {served.vocab_size - 1}")
        penalty = _checked(body, "length_penalty", 1)
        ends = list(served.end_tokens) if stop is None else [stop]
        values: dict[str, Any] = {
            **drawing(0.0 if beams is not None or top_k == 1 else temperature),
            "top_k": top_k,
            "top_p": top_p if top_p > 0.0 and not decay else 1.0,
            "eos_token_id": ends or None,
        }
        if beams is not None:
            values |= {"num_beams": beams, "num_return_sequences": beams}
            values |= {"length_penalty": float(penalty), "temperature": None}
        return cls(
            values=values,
            seed=secrets.randbits(63) if seed is None else seed % 2**64,
            top_p=top_p,
            decay=decay,
            bound=bound,
            rules=_no_newline(served) if no_newline else (),
            line_ends=_line_ends(served, double) if double or single else None,
            is_beam=beams is not None,
        )

    def request(self, prompt: list[int], num_new: int, name: int, logprobs: bool) -> Request:
        """A request for the batch."""
        rules = self.rules
        if self.decay and not self.is_beam:
            rules = (*rules, FallingTopP(len(prompt), self.top_p, self.decay, self.bound))
        return Request(
            number=-1,
            prompt=tuple(prompt),
            config=config_of(self.values, len(prompt) + num_new),
            seed=self.seed,
            names=(name,),
            rules=rules,
            line_ends=self.line_ends,
            num_top=0 if logprobs else None,
            scores_prompt=logprobs,
            is_beam=self.is_beam,
        )


def _falling(body: Mapping[str, Any], top_p: float) -> tuple[float, float]:
    """``top_p_decay`` and ``top_p_bound``."""
    decay = bound = 0.0
    if "top_p_decay" in body:
        if type(body["top_p_decay"]) is float and top_p == 0.0:
            raise MegatronError("top_p_decay cannot be set without top_p")
        decay = _checked(body, "top_p_decay", 0.0)
    if "top_p_bound" in body:
        if type(body["top_p_bound"]) is float and top_p == 0.0:
            raise MegatronError("top_p_bound cannot be set without top_p")
        bound = _checked(body, "top_p_bound", 0.0)
        if not 0.0 < bound <= top_p:
            raise MegatronError("top_p_bound must be greater than 0 and less than top_p")
    return decay, bound


def _tokens(served: Served, text: str) -> frozenset[int]:
    """Tokens that are a text: the one that it is made into."""
    ids = served.tokenizer(text, add_special_tokens=False)["input_ids"]
    return frozenset(ids) if len(ids) == 1 else frozenset()


def _line_ends(served: Served, wants_double: bool) -> LineEnds:
    return LineEnds(_tokens(served, "\n"), _tokens(served, "\n\n"), wants_double)


def _no_newline(served: Served) -> tuple[LogitsProcessor, ...]:
    colon, line = _tokens(served, ":"), _tokens(served, "\n")
    if not colon or not line:
        return ()
    return (NeverAfter(next(iter(colon)), next(iter(line))),)


@dataclass(slots=True)
class MegatronAnswer:
    """An answer that grows with the events of its requests."""

    job: MegatronJob
    served: Served
    numbers: list[int]
    _tokens: dict[int, list[int]] = field(default_factory=dict)
    _logprobs: dict[int, list[float]] = field(default_factory=dict)
    _beams: Beams | None = None
    _ended: set[int] = field(default_factory=set)

    @property
    def is_done(self) -> bool:
        """Whether all prompts are answered."""
        return len(self._ended) == len(self.numbers)

    def take(self, event: Event) -> None:
        """Note an event.

        Raises:
            MegatronError: the model cannot answer.
        """
        if isinstance(event, Failed):
            raise MegatronError(event.message, 500 if event.is_internal else 400)
        if isinstance(event, Beams):
            self._beams = event
            self._ended.add(event.number)
        elif isinstance(event, PromptScores):
            self._logprobs.setdefault(event.number, []).extend(event.logprobs)
        elif isinstance(event, Piece):
            if event.token is not None:
                self._tokens.setdefault(event.number, []).append(event.token)
            if event.logprob is not None:
                self._logprobs.setdefault(event.number, []).append(event.logprob)
            if event.finish is not None:
                self._ended.add(event.number)

    def whole(self) -> dict[str, Any]:
        """``text`` with its prompt, ``segments`` and ``logprobs``, or ``scores`` of beams."""
        if self._beams is not None:
            rows = [list(self.job.requests[0].prompt) + list(row) for row in self._beams.rows]
            scores = list(self._beams.scores)
            return {"text": self._texts(rows), "segments": self._segments(rows), "scores": scores}
        rows = [
            list(request.prompt) + self._tokens.get(number, [])
            for number, request in zip(self.numbers, self.job.requests, strict=True)
        ]
        logprobs = [self._logprobs.get(number, []) for number in self.numbers]
        return {
            "text": self._texts(rows),
            "segments": self._segments(rows),
            "logprobs": logprobs if self.job.wants_logprobs else None,
        }

    def _texts(self, rows: list[list[int]]) -> list[str]:
        return [self.served.tokenizer.decode(row) for row in rows]

    def _segments(self, rows: list[list[int]]) -> list[list[str]]:
        return [[self.served.tokenizer.decode([token]) for token in row] for row in rows]
