# SPDX-License-Identifier: Apache-2.0
"""``pipeline("text_generation", ...)``: from texts to longer texts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from mindspeed_ms import toolkit
from mindspeed_ms.backend import memory
from mindspeed_ms.toolkit.generation.config import GenerationConfig
from mindspeed_ms.toolkit.generation.mixin import GenerationMixin

TASK = "text_generation"
RESULT = "text_generation_text"
"""Key of the texts in a result, as in MindFormers."""


class TextGenerationPipeline:
    """Goes on with texts.

    Args:
        model: what generates.
        tokenizer: its tokenizer.
        batch_size: texts that are worked on at a time; None: all.
        return_full_text: give the prompt back in front of what was generated.
        options: of every call; see ``GenerationConfig``.

    Raises:
        TypeError: an unknown option; names the nearest.
    """

    def __init__(
        self,
        model: GenerationMixin,
        tokenizer: Any,
        *,
        batch_size: int | None = None,
        return_full_text: bool = True,
        **options: Any,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.return_full_text = batch_size, return_full_text
        GenerationConfig(**{name: options[name] for name in options if name not in _ARGUMENTS})
        self.options = options

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
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"a prompt is {text!r}; give a text, or a list of texts")
        merged = {**self.options, **options}
        size = merged.pop("batch_size", self.batch_size) or max(len(texts), 1)
        full = merged.pop("return_full_text", self.return_full_text)
        return [
            {RESULT: found}
            for first in range(0, len(texts), size)
            for found in self._batch(texts[first : first + size], full, merged)
        ]

    def _batch(
        self, texts: Sequence[str], full: bool, options: Mapping[str, Any]
    ) -> Iterator[list[str]]:
        begin = getattr(self.tokenizer, "bos_token_id", None)
        empty = [] if begin is None else [begin]
        prompts = [list(self.tokenizer(text)["input_ids"]) or empty for text in texts]
        output = self.model.generate(prompts, **{**self._special_tokens(), **options})
        sequences = getattr(output, "sequences", output)
        rows = memory.as_numpy(sequences)
        copies, width = len(rows) // len(texts), max(len(prompt) for prompt in prompts)
        for number, prompt in enumerate(prompts):
            found = []
            for row in rows[number * copies : (number + 1) * copies]:
                tokens = row[width - len(prompt) :].tolist()
                whole = self.tokenizer.decode(tokens, skip_special_tokens=True)
                if not full:
                    start = self.tokenizer.decode(prompt, skip_special_tokens=True)
                    whole = whole[len(start) :] if whole.startswith(start) else whole
                found.append(whole)
            yield found

    def _special_tokens(self) -> dict[str, Any]:
        """Those of the tokenizer, where the model says nothing; and the tokenizer."""
        own = self.model.generation_config
        options: dict[str, Any] = {"tokenizer": self.tokenizer}
        for name in ("eos_token_id", "pad_token_id"):
            stated = own.get(name) if isinstance(own, Mapping) else getattr(own, name)
            if stated is None and getattr(self.tokenizer, name, None) is not None:
                options[name] = getattr(self.tokenizer, name)
        return options


_ARGUMENTS = frozenset(
    {"seed", "streamer", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"}
)
"""Arguments of ``generate`` that are no options."""

TASKS: Mapping[str, type[TextGenerationPipeline]] = MappingProxyType({TASK: TextGenerationPipeline})


def pipeline(
    task: str,
    model: GenerationMixin | str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    **options: Any,
) -> TextGenerationPipeline:
    """A task as one call.

    >>> generate = pipeline(task="text_generation", model="gpt2", max_length=10)  # doctest: +SKIP
    >>> generate("I love Beijing, because", do_sample=False)                      # doctest: +SKIP

    Args:
        task: ``text_generation``.
        model: a model, or the name or folder of one; see ``AutoModelForCausalLM``.
        tokenizer: its tokenizer, or the name or folder of one; None: that of the model's folder.
        options: see ``TextGenerationPipeline``.

    Raises:
        KeyError: there is no such task.
        ValueError: no model, or a model object without a tokenizer.
        OSError: a name or folder that holds nothing.
    """
    if task not in TASKS:
        raise KeyError(f"task {task!r} is not available; use {', '.join(TASKS)}")
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
