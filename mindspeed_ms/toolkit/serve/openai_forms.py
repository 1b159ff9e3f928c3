# SPDX-License-Identifier: Apache-2.0
"""OpenAI's requests: from a JSON object to what the batch takes.

Source: OpenAI's API reference of completions and chat completions (fields, bounds, defaults).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mindspeed_ms.core.inference import sampling
from mindspeed_ms.core.inference.logits_processors import LogitsProcessor
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.serve.batch import Request
from mindspeed_ms.toolkit.serve.fields import ApiError, Fields, check_tokens, wrong
from mindspeed_ms.toolkit.serve.rules import Penalties

MOST_COPIES = 128
MOST_TOP = 20
MOST_COUNT = 2**31 - 1
MOST_PENALTY = 100.0
LEAST_SHARE = 1e-6
LEAST_TEMPERATURE = 1e-5
_NO_CALLS = "the model's calls of tools are not read out of its text; set tool_choice to 'none'"
_NO_GRAMMAR = "answers are plain text, which no grammar binds"
_UNSERVED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "text is not filled in between two others"),
    "tools": (([],), _NO_CALLS),
    "tool_choice": (("none", "auto"), _NO_CALLS),
    "parallel_tool_calls": ((True, False), "there are no tools"),
    "functions": (([],), "the model's calls of functions are not read out of its text"),
    "function_call": (("none", "auto"), "there are no functions"),
    "response_format": (({"type": "text"},), "answers are plain text"),
    "modalities": ((["text"],), "answers are plain text"),
    "audio": ((), "answers are plain text"),
    "reasoning_effort": ((), "there is no such knob"),
    "prediction": ((), "drafts are not taken from the request"),
    "web_search_options": ((), "nothing is looked up"),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice"), ((), _NO_GRAMMAR)),
    **dict.fromkeys(("guided_grammar", "structured_outputs"), ((), _NO_GRAMMAR)),
    "use_beam_search": ((False,), "beams are served at PUT /api"),
    "length_penalty": ((1, 1.0), "beams are served at PUT /api"),
    "early_stopping": ((False,), "beams are served at PUT /api"),
    "skip_special_tokens": ((True,), "special tokens are no text"),
    "spaces_between_special_tokens": ((True,), "special tokens are no text"),
    "include_stop_str_in_output": ((False,), "a text ends before what stops it"),
    "bad_words": (([],), "logit_bias rules tokens out, by -100"),
    "allowed_token_ids": ((), "logit_bias rules tokens out, by -100"),
    "prompt_logprobs": ((), "echo with logprobs has those of a prompt"),
    "truncate_prompt_tokens": ((), "prompts are taken as they are"),
}
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("verbosity", "priority", "request_id", "cache_salt"),
)
"""They change no text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The model that a server has."""

    name: str
    tokenizer: Any
    vocab_size: int
    max_length: int
    """Tokens of a prompt and its answer."""
    end_tokens: tuple[int, ...]
    begin_token: int | None
    max_open: int
    """Sequences of one request."""
    created: int = 0
    max_tokens_to_oom: int | None = None
    """Megatron's limit of prompts times length."""

    def ids_of(self, text: str) -> list[int]:
        """Tokens of a text; of an empty one the begin token."""
        found = self.tokenizer(text)["input_ids"]
        begin = [] if self.begin_token is None else [self.begin_token]
        return list(found) or begin or list(self.end_tokens[:1])

    def text_of(self, token: int) -> str:
        """A token by itself."""
        text = self.tokenizer.decode([token])
        convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        if "\ufffd" in text and convert is not None:
            return f"bytes:{convert([token])[0]}"
        return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A request of a client: prompts for the batch, and how to write the answer."""

    requests: list[Request]
    is_chat: bool
    wants_stream: bool
    wants_usage: bool = False
    """In a stream."""
    echo: bool = False
    prompts: list[str] = field(default_factory=list)
    """Texts of the prompts, for ``echo``."""
    num_top: int | None = None
    num_best: int
    """Sequences of each prompt to answer with, of those that are generated."""

    @property
    def copies(self) -> int:
        """Sequences of each prompt that are generated."""
        return len(self.requests[0].names)


def completion_job(body: Any, served: Served) -> Job:
    """The job of ``/v1/completions``.

    Raises:
        ApiError: a field is missing, unknown or has a wrong value; the prompt is too long.
    """
    fields = Fields(body)
    _check_model(fields, served)
    prompts, texts = _prompts(fields.any("prompt"), served)
    echo = fields.flag("echo")
    num_new = fields.integer("max_tokens", 16, 0, MOST_COUNT)
    copies = fields.integer("n", 1, 1, MOST_COPIES) or 1
    best_of = fields.integer("best_of", copies, 1, MOST_COPIES) or 1
    stream, usage = _stream(fields)
    num_top = _num_top(fields)
    if best_of < copies:
        raise wrong("best_of", f"best_of is {best_of}, but must be at least n, which is {copies}")
    if stream and best_of > copies:
        raise wrong("best_of", "best_of cannot be above n in a stream")
    if not num_new and not echo:
        raise wrong("max_tokens", "max_tokens is 0, which gives text with echo only")
    options = _Options.read(fields, served)
    fields.finish()
    # The sum of logarithms tells which sequence is the best.
    top = 0 if num_top is None and best_of > copies else num_top
    requests = options.requests(
        served, prompts, num_new or 0, best_of, top, echo and num_top is not None
    )
    return Job(
        requests=requests,
        is_chat=False,
        wants_stream=stream,
        wants_usage=usage,
        echo=echo,
        prompts=texts if echo else [],
        num_top=num_top,
        num_best=copies,
    )


def chat_job(body: Any, served: Served) -> Job:
    """The job of ``/v1/chat/completions``.

    Raises:
        ApiError: see ``completion_job``; or the tokenizer has no template, or it refuses.
    """
    fields = Fields(body)
    _check_model(fields, served)
    prompt = _conversation(fields, served)
    older = fields.integer("max_tokens", None, 1, MOST_COUNT)
    num_new = fields.integer("max_completion_tokens", older, 1, MOST_COUNT)
    copies = fields.integer("n", 1, 1, MOST_COPIES) or 1
    stream, usage = _stream(fields)
    wants_logprobs = fields.flag("logprobs")
    num_top = fields.integer("top_logprobs", None, 0, MOST_TOP)
    if num_top is not None and not wants_logprobs:
        raise wrong("top_logprobs", "top_logprobs needs logprobs to be true")
    options = _Options.read(fields, served)
    fields.finish()
    if num_new is None:
        num_new = max(served.max_length - len(prompt), 1)
    num_top = (num_top or 0) if wants_logprobs else None
    requests = options.requests(served, [prompt], num_new, copies, num_top, False)
    return Job(
        requests=requests,
        is_chat=True,
        wants_stream=stream,
        wants_usage=usage,
        num_top=num_top,
        num_best=copies,
    )


@dataclass(frozen=True, slots=True)
class _Options:
    """Options of both forms."""

    values: dict[str, Any]
    stops: tuple[str, ...]
    seed: int | None
    presence: float
    frequency: float

    @classmethod
    def read(cls, fields: Fields, served: Served) -> _Options:
        temperature = fields.number("temperature", 1.0, 0.0, 2.0)
        top_k = fields.integer("top_k", 0, -1, MOST_COUNT)
        ends = list(fields.tokens("stop_token_ids", served.vocab_size))
        if not fields.flag("ignore_eos"):
            ends = [*served.end_tokens, *ends]
        values: dict[str, Any] = {
            **drawing(temperature or 0.0),
            "top_p": fields.number("top_p", 1.0, 0.0, 1.0),
            "top_k": min(max(top_k or 0, 0), served.vocab_size),
            "min_p": fields.number("min_p", None, 0.0, 1.0),
            "typical_p": fields.number("typical_p", None, LEAST_SHARE, 1.0),
            "repetition_penalty": fields.number(
                "repetition_penalty", None, 1 / MOST_PENALTY, MOST_PENALTY
            ),
            "no_repeat_ngram_size": fields.integer(
                "no_repeat_ngram_size", None, 0, served.max_length
            ),
            "min_new_tokens": fields.integer("min_tokens", None, 0, served.max_length),
            "eos_token_id": ends or None,
            "sequence_bias": _biases(fields.any("logit_bias"), served),
        }
        presence = fields.number("presence_penalty", 0.0, -2.0, 2.0) or 0.0
        frequency = fields.number("frequency_penalty", 0.0, -2.0, 2.0) or 0.0
        seed = fields.integer("seed", None, -(2**63), 2**64 - 1)
        stops = fields.texts("stop")
        fields.neutral(_UNSERVED)
        for name in _IGNORED:
            fields.any(name)
        return cls(values, stops, seed, presence, frequency)

    def requests(
        self,
        served: Served,
        prompts: Sequence[Sequence[int]],
        num_new: int,
        copies: int,
        num_top: int | None,
        scores_prompt: bool,
    ) -> list[Request]:
        """One request per prompt."""
        if len(prompts) * copies > served.max_open:
            raise wrong(
                "prompt",
                f"{len(prompts)} prompts with {copies} sequences each are more than the "
                f"{served.max_open} that the server takes",
            )
        for prompt in prompts:
            check_length(len(prompt), num_new, served)
        names = sampling.stream_names(prompts, copies)
        seed = secrets.randbits(63) if self.seed is None else self.seed % 2**64
        made = []
        for index, prompt in enumerate(prompts):
            made.append(
                Request(
                    number=-1,
                    prompt=tuple(prompt),
                    config=config_of(self.values, len(prompt) + num_new),
                    seed=seed,
                    names=tuple(int(name) for name in names[index * copies :][:copies]),
                    stops=self.stops,
                    rules=self._rules(len(prompt)),
                    num_top=num_top,
                    scores_prompt=scores_prompt,
                )
            )
        return made

    def _rules(self, prompt_length: int) -> tuple[LogitsProcessor, ...]:
        if not self.presence and not self.frequency:
            return ()
        return (Penalties(prompt_length, self.presence, self.frequency),)


def drawing(temperature: float) -> dict[str, Any]:
    """Options for a temperature: so low a one that scores over it are no numbers is greedy."""
    draws = temperature >= LEAST_TEMPERATURE
    return {"do_sample": draws, "temperature": float(temperature) if draws else 1.0}


def config_of(values: Mapping[str, Any], max_length: int) -> GenerationConfig:
    """All options of a generation.

    Raises:
        ApiError: a value that is none of its option.
    """
    try:
        config = GenerationConfig(**values).filled()
        config.max_length = max(max_length, 1)
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    return config


def check_length(prompt: int, num_new: int, served: Served) -> None:
    """Refuse what is longer than the model's context.

    Raises:
        ApiError: with all numbers.
    """
    if prompt + num_new > served.max_length or not prompt:
        raise wrong(
            "prompt",
            f"This model's maximum context length is {served.max_length} tokens, but "
            f"{prompt + num_new} tokens are requested ({prompt} in the prompt, {num_new} for the "
            "completion); shorten the prompt, or ask for fewer tokens.",
            "context_length_exceeded",
        )


def _check_model(fields: Fields, served: Served) -> None:
    name = fields.any("model", served.name)
    if name != served.name:
        raise ApiError(
            404,
            f"The model '{name}' does not exist; this server has '{served.name}'",
            param="model",
            code="model_not_found",
        )


def _stream(fields: Fields) -> tuple[bool, bool]:
    """Whether a stream is wanted, and its usage."""
    stream, options = fields.flag("stream"), fields.any("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise wrong("stream_options", "stream_options needs stream to be true")
    inner = Fields(options)
    usage = inner.flag("include_usage")
    inner.flag("include_obfuscation")
    inner.finish()
    return stream, usage


def _num_top(fields: Fields) -> int | None:
    """``logprobs`` of completions: a number; some clients write a boolean."""
    given = fields.any("logprobs")
    if given is None or given is False:
        return None
    return Fields({"logprobs": int(given) if given is True else given}).integer(
        "logprobs", None, 0, MOST_TOP
    )


def _prompts(given: Any, served: Served) -> tuple[list[list[int]], list[str]]:
    """Ids and texts of a prompt: a text, ids, or a list of either."""
    if given is None or given == []:
        raise wrong("prompt", "you must provide a prompt")
    many = [given] if isinstance(given, str) or _is_ids(given) else given
    if not isinstance(many, list):
        raise wrong("prompt", f"the prompt is a {type(given).__name__}; give a text or token ids")
    prompts, texts = [], []
    for one in many:
        if isinstance(one, str):
            ids, text = served.ids_of(one), one
        elif _is_ids(one) and one:
            check_tokens("prompt", one, served.vocab_size)
            ids, text = one, served.tokenizer.decode(one)
        else:
            raise wrong("prompt", f"{one!r} is no prompt; give a text or token ids")
        if not ids:
            raise wrong("prompt", "the prompt is empty, and the model has no token to begin with")
        prompts.append(ids)
        texts.append(text)
    return prompts, texts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _biases(given: Any, served: Served) -> list[list[Any]] | None:
    """``logit_bias`` as ``sequence_bias``."""
    if given is None or given == {}:
        return None
    if not isinstance(given, Mapping):
        raise wrong("logit_bias", f"{given!r} is not of type 'object' - 'logit_bias'")
    found = []
    for key, bias in given.items():
        try:
            token = int(key)
        except ValueError:
            raise wrong("logit_bias", f"logit_bias: {key!r} is no token id") from None
        check_tokens("logit_bias", [token], served.vocab_size)
        value = Fields({"logit_bias": bias}).number("logit_bias", None, -100, 100)
        found.append([[token], float(value or 0.0)])
    return found


def _conversation(fields: Fields, served: Served) -> list[int]:
    """Ids of a conversation, by the tokenizer's template."""
    messages = fields.any("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "messages must be a list of at least one message")
    variables = fields.any("chat_template_kwargs", {})
    begins = fields.flag("add_generation_prompt", True)
    tools = _tools(fields)
    if not isinstance(variables, Mapping):
        raise wrong("chat_template_kwargs", "chat_template_kwargs must be an object")
    apply = getattr(served.tokenizer, "apply_chat_template", None)
    if apply is None:
        raise wrong("messages", "the model's tokenizer has no chat template; use /v1/completions")
    if tools:
        variables = {**variables, "tools": tools}
    plain = [_message(one, index) for index, one in enumerate(messages)]
    try:
        ids = apply(plain, add_generation_prompt=begins, return_dict=False, **variables)
    except (ValueError, TypeError) as error:
        raise wrong("messages", str(error)) from None
    if not _is_ids(ids):
        raise wrong("messages", "the chat template makes no tokens of these messages")
    check_tokens("messages", ids, served.vocab_size)
    return list(ids)


def _tools(fields: Fields) -> list[Any]:
    """Tools that the template shows, though the model is not to call them."""
    if fields.peek("tool_choice") != "none":
        return []
    tools = fields.any("tools", [])
    if not isinstance(tools, list) or not all(isinstance(one, Mapping) for one in tools):
        raise wrong("tools", "tools must be a list of objects")
    return tools


def _message(given: Any, index: int) -> dict[str, Any]:
    """A message with its content as one text."""
    place = f"messages[{index}]"
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise wrong("messages", f"{place} must be an object with a role")
    content = given.get("content")
    if isinstance(content, list):
        parts = []
        for part in content:
            is_text = isinstance(part, Mapping) and part.get("type") == "text"
            if not is_text or not isinstance(part.get("text"), str):
                raise wrong("messages", f"{place}: content has a part that is no text")
            parts.append(part["text"])
        content = "".join(parts)
    if content is None and given.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise wrong("messages", f"{place} must have a text as content")
    return {**given, "content": content}
