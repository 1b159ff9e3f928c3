# SPDX-License-Identifier: Apache-2.0
"""``pipeline("text_generation", ...)``: from texts to longer texts, and from chats to answers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from mindspeed_ms import toolkit
from mindspeed_ms.backend import memory
from mindspeed_ms.toolkit import given
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.generation.mixin import GenerationMixin

TASK = "text_generation"
RESULT = "text_generation_text"
"""Key of the texts in a result, as in MindFormers."""


class _Pipeline:
    """A model, its tokenizer, and options of every call."""

    def __init__(
        self,
        model: GenerationMixin,
        tokenizer: Any,
        *,
        batch_size: int | None = None,
        return_full_text: bool = True,
        **options: Any,
    ) -> None:
        self.model = model
        self.tokenizer = given.with_methods("tokenizer", tokenizer, "__call__", "decode")
        self.batch_size, self.return_full_text = batch_size, return_full_text
        GenerationConfig(**{name: options[name] for name in options if name not in _ARGUMENTS})
        self.options = options

    def _answers(
        self, prompts: Sequence[Any], options: Mapping[str, Any]
    ) -> Iterator[tuple[list[int], list[list[int]]]]:
        """Tokens of each prompt, and its rows: the prompt and what follows it."""
        merged = {**self.options, **options}
        size = merged.pop("batch_size", self.batch_size)
        size = max(len(prompts), 1) if size is None else given.whole("batch_size", size, 1)
        merged.pop("return_full_text", None)
        for first in range(0, len(prompts), size):
            tokens = [self._tokens(one) for one in prompts[first : first + size]]
            output = self.model.generate(tokens, **{**self._special_tokens(), **merged})
            rows = memory.as_numpy(getattr(output, "sequences", output))
            copies, width = len(rows) // len(tokens), max(len(one) for one in tokens)
            for number, prompt in enumerate(tokens):
                mine = rows[number * copies : (number + 1) * copies]
                yield prompt, [row[width - len(prompt) :].tolist() for row in mine]

    def _tokens(self, prompt: Any) -> list[int]:
        begin = getattr(self.tokenizer, "bos_token_id", None)
        return list(self.tokenizer(prompt)["input_ids"]) or ([] if begin is None else [begin])

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _is_full(self, options: Mapping[str, Any]) -> bool:
        return bool({"return_full_text": self.return_full_text, **options}["return_full_text"])

    def _special_tokens(self) -> dict[str, Any]:
        """Those of the tokenizer, where the model says nothing; and the tokenizer."""
        own = self.model.generation_config
        options: dict[str, Any] = {"tokenizer": self.tokenizer}
        for name in ("eos_token_id", "pad_token_id"):
            stated = own.get(name) if isinstance(own, Mapping) else getattr(own, name)
            if stated is None and getattr(self.tokenizer, name, None) is not None:
                options[name] = getattr(self.tokenizer, name)
        return options


class TextGenerationPipeline(_Pipeline):
    """Goes on with texts; results are those of MindFormers.

    Args:
        model: what generates.
        tokenizer: its tokenizer.
        batch_size: texts that are worked on at a time; None: all.
        return_full_text: give the prompt back in front of what was generated.
        options: of every call; see ``GenerationConfig``.

    Raises:
        TypeError: an unknown option; names the nearest.
    """

    def __call__(self, inputs: str | Iterable[str], **options: Any) -> list[dict[str, list[str]]]:
        """Texts to go on with -> ``[{"text_generation_text": [text, ...]}]``, one per text.

        Args:
            inputs: a text, or several.
            options: see ``generate``; they come before those of the pipeline. ``max_length`` counts
                the tokens of the prompt.

        Raises:
            TypeError: an input is no text, or an option is unknown.
            ValueError: options that cannot be served.

        Parallelism: all ranks of the model call it with the same texts, and get the same.
        """
        texts: list[Any]
        try:
            texts = [inputs] if isinstance(inputs, str) else list(inputs)
        except TypeError:
            texts = [inputs]
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"a prompt is {given.shown(text)}; give a text, or a list of texts")
        full = self._is_full(options)
        return [
            {RESULT: [self._written(prompt, row, full) for row in rows]}
            for prompt, rows in self._answers(texts, options)
        ]

    def _written(self, prompt: list[int], row: list[int], full: bool) -> str:
        whole = self._text(row)
        return whole if full else whole.removeprefix(self._text(prompt))


class TextOrChatPipeline(_Pipeline):
    """Goes on with texts and chats; results are those of ``transformers``.

    Args:
        model: what generates.
        tokenizer: its tokenizer; chats need its template.
        batch_size: inputs that are worked on at a time; None: all.
        return_full_text: give the prompt back in front of what was generated.
        options: of every call; see ``GenerationConfig``.

    Raises:
        TypeError: an unknown option; names the nearest.
    """

    def __call__(self, inputs: Any, **options: Any) -> list[Any]:
        """A text or chat -> ``[{"generated_text": text or chat}, ...]``; a list of them -> a list.

        Args:
            inputs: a text, a chat (messages with ``role`` and ``content``), or a list of either.
            options: as of ``TextGenerationPipeline``.

        Raises:
            TypeError: an input is neither, or an option is unknown.
            ValueError: options that cannot be served, or a tokenizer without a template.

        Parallelism: all ranks of the model call it with the same inputs, and get the same.
        """
        is_one = isinstance(inputs, str) or _is_chat(inputs)
        prompts = [inputs] if is_one else list(inputs)
        for prompt in prompts:
            if not isinstance(prompt, str) and not _is_chat(prompt):
                raise TypeError(f"a prompt is {prompt!r}; give a text, or messages of a chat")
        full = self._is_full(options)
        found = [
            [{"generated_text": self._written(given, tokens, row, full)} for row in rows]
            for given, (tokens, rows) in zip(prompts, self._answers(prompts, options), strict=True)
        ]
        return found[0] if is_one else found

    def _tokens(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return super()._tokens(prompt)
        is_begun = prompt[-1]["role"] == "assistant"
        return list(
            self.tokenizer.apply_chat_template(
                prompt,
                add_generation_prompt=not is_begun,
                continue_final_message=is_begun,
                return_dict=False,
            )
        )

    def _written(self, given: Any, tokens: list[int], row: list[int], full: bool) -> Any:
        new = self._text(row)[len(self._text(tokens)) :]
        if not full:
            return new
        if isinstance(given, str):
            return given + new
        *before, last = map(dict, given)
        if last["role"] == "assistant":
            return [*before, {**last, "content": last["content"] + new}]
        return [*before, last, {"role": "assistant", "content": new}]


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(isinstance(one, Mapping) and {"role", "content"} <= one.keys() for one in value)
    )


_ARGUMENTS = frozenset(
    {"seed", "streamer", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
)
"""Arguments of ``generate`` that are no options."""

TASKS: Mapping[str, type[TextGenerationPipeline] | type[TextOrChatPipeline]] = MappingProxyType(
    {TASK: TextGenerationPipeline, "text-generation": TextOrChatPipeline}
)


def pipeline(
    task: str,
    model: GenerationMixin | str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> TextGenerationPipeline | TextOrChatPipeline:
    """A task as one call.

    >>> generate = pipeline(task="text_generation", model="gpt2", max_length=10)  # doctest: +SKIP
    >>> generate("I love Beijing, because", do_sample=False)                      # doctest: +SKIP

    Args:
        task: ``text_generation`` of MindFormers, or ``text-generation`` of ``transformers``: their
            results have another form, and the second takes chats, too.
        model: a model, or the name or folder of one; see ``AutoModelForCausalLM``.
        tokenizer: its tokenizer, or the name or folder of one; None: that of the model's folder.
        options: see ``TextGenerationPipeline``.

    Raises:
        KeyError: there is no such task.
        ValueError: no model, or a model object without a tokenizer.
        OSError: a name or folder that holds nothing.
    """
    if not isinstance(task, str) or task not in TASKS:
        raise KeyError(f"task {given.shown(task)} is not available; use {', '.join(TASKS)}")
    if model is None:
        raise ValueError(f"pipeline({task!r}) needs a model: an object, a name or a folder")
    if tokenizer is None:
        tokenizer = model if _is_name(model) else getattr(model, "name_or_path", None)
        if not tokenizer:
            raise ValueError(
                f"pipeline({task!r}) got a model that was read from no folder, and no tokenizer; "
                "pass tokenizer="
            )
    if _is_name(tokenizer):
        tokenizer = cast("Any", toolkit.AutoTokenizer).from_pretrained(tokenizer)
    if _is_name(model):
        model = cast("Any", toolkit.AutoModelForCausalLM).from_pretrained(model)
    return TASKS[task](cast("GenerationMixin", model), tokenizer, **options)


def _is_name(value: object) -> bool:
    return isinstance(value, str | os.PathLike)
