# SPDX-License-Identifier: Apache-2.0
"""Texts, answers and conversations to ids, and to what is learned of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindspeed_ms.data.labelled import IGNORE_INDEX, Sample, Shape, sample_of, with_documents
from mindspeed_ms.data.tokenizers import chat_templates, tool_texts
from mindspeed_ms.toolkit.data.samples import ids_of, require_fit
from mindspeed_ms.toolkit.messages import say_once
from mindspeed_ms.training.one_line import one_line

logger = logging.getLogger(__name__)

Ids = list[int]
Learned = list[bool]
"""For each id, whether the model is to predict it."""

_NO_INPUT = ("input", None)
"""What a record of an instruction may be without."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The template for tokenizers that have none: ChatML, as OpenAI and Qwen write it."""


@dataclass(frozen=True, slots=True)
class Writer:
    """How records become ids.

    Args:
        tokenizer: of this package or of ``transformers``.
        chat_template: Jinja text or the name of one of the tokenizer's templates; None: its own.
        answers_only: learn what the assistant says. False: all.
    """

    tokenizer: Any
    chat_template: str | None = None
    answers_only: bool = True

    @property
    def end(self) -> int:
        """Id that ends a text.

        Raises:
            ValueError: the tokenizer has none.
        """
        token = self.tokenizer.eos_token_id
        if token is None:
            raise ValueError("the tokenizer has no eos_token, which ends a text; set it")
        return int(token)

    def ids(self, text: str) -> Ids:
        """Ids of a text, without special tokens around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def write_all(
        self, records: Iterable[Mapping[str, Any]], key: str
    ) -> Iterator[tuple[Ids, Learned]]:
        """Ids of all records.

        Args:
            records: of one split.
            key: what they are for, for messages.

        Raises:
            ValueError: a record that cannot be used, by its number; or nothing can be learned.
        """
        num_learned = 0
        for number, record in enumerate(records, 1):
            try:
                ids, learned = self.write(record)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{key}, record {number}: {one_line(str(error))}") from None
            num_learned += any(learned[1:])
            yield ids, learned
        if not num_learned:
            raise ValueError(
                f"{key}: no record has a token to predict, which takes two tokens of which "
                "the second is learned"
            )

    def write(self, record: Mapping[str, Any]) -> tuple[Ids, Learned]:
        """Ids of a record, and which of them are learned.

        Raises:
            ValueError: a record of no known kind.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"it is {record!r:.60}; give a mapping, such as {{'text': ...}}")
        if "input_ids" in record:
            return _of_ids(record)
        if "messages" in record or "conversations" in record:
            return self._conversation(_messages(record), tool_texts.tools_of(record.get("tools")))
        if "prompt" in record and "completion" in record:
            prompt, completion = record["prompt"], record["completion"]
            if isinstance(prompt, str) and isinstance(completion, str):
                return self._answer(prompt, completion)
            if isinstance(prompt, str) or isinstance(completion, str):
                raise ValueError("one of prompt and completion is a text; both or none must be")
            turns = [*_messages({"messages": prompt}), *_messages({"messages": completion})]
            return self._conversation(turns, tool_texts.tools_of(record.get("tools")))
        if "instruction" in record and "output" in record:
            return self._instruction(record)
        if isinstance(record.get("text"), str):
            ids = [*self.ids(record["text"]), self.end]
            return ids, [True] * len(ids)
        raise ValueError(
            f"a record has the keys {', '.join(map(str, record))}; it must have input_ids, text "
            "(a text), messages, prompt and completion, or instruction and output"
        )

    def _answer(self, prompt: str, answer: str) -> tuple[Ids, Learned]:
        asked, said = self.ids(prompt), [*self.ids(answer), self.end]
        return asked + said, [not self.answers_only] * len(asked) + [True] * len(said)

    def _instruction(self, record: Mapping[str, Any]) -> tuple[Ids, Learned]:
        for name in ("instruction", "input", "output"):
            if not isinstance(record.get(name), str) and (name, record.get(name)) != _NO_INPUT:
                raise ValueError(f"{name} is {record.get(name)!r:.60}; it must be a text")
        asked, said = record["instruction"], record["output"]
        given = record.get("input") or ""
        if self.chat_template is not None or self.tokenizer.chat_template is not None:
            question = f"{asked}\n{given}" if given else asked
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": said},
            ]
            return self._conversation(turns)
        parts = [f"### Instruction:\n{asked}\n\n"]
        parts += [f"### Input:\n{given}\n\n"] if given else []
        return self._answer("".join([*parts, "### Response:\n"]), said)

    def _template(self) -> str:
        if self.chat_template is None and self.tokenizer.chat_template is None:
            say_once(logger, "the tokenizer has no chat template: conversations are in ChatML")
            return CHATML
        template: str = self.tokenizer.get_chat_template(self.chat_template)
        return template

    def _conversation(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[tool_texts.Tool] = ()
    ) -> tuple[Ids, Learned]:
        template = self._template()
        _require_tools_are_written(template, turns, tools)
        if not self.answers_only:
            ids = self.tokenizer.apply_chat_template(
                turns, tools=tools or None, chat_template=template, return_dict=False
            )
            return list(ids), [True] * len(ids)
        if chat_templates.has_generation(template):
            found = self.tokenizer.apply_chat_template(
                turns,
                tools=tools or None,
                chat_template=template,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
            return list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]]
        return self._by_prefixes(turns, tools, template)

    def _by_prefixes(
        self,
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[tool_texts.Tool],
        template: str,
    ) -> tuple[Ids, Learned]:
        """Where a template does not mark answers: what it writes behind the prompt for each one.

        Raises:
            ValueError: the template writes earlier messages another way when later ones follow.
        """

        def text(count: int, prompt: bool = False) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    turns[:count],
                    tools=tools or None,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )

        whole, spans = text(len(turns)), []
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before, after = text(number, prompt=True), text(number + 1)
            if not (whole.startswith(after) and after.startswith(before)):
                raise ValueError(
                    "the chat template writes earlier messages another way when later ones follow, "
                    "so answers cannot be found; give a chat_template with {% generation %} blocks"
                )
            spans.append((len(before), len(after)))
        encoded = self.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        learned = [
            any(start < to and end > of for of, to in spans)
            for start, end in encoded["offset_mapping"]
        ]
        return list(encoded["input_ids"]), learned


def _require_tools_are_written(
    template: str, turns: Sequence[Mapping[str, Any]], tools: Sequence[tool_texts.Tool]
) -> None:
    has_calls = any(turn.get("tool_calls") for turn in turns)
    for word, is_there in (("tools", bool(tools)), ("tool_calls", has_calls)):
        if is_there and word not in template:
            raise ValueError(
                f"it has {word}, which the chat template does not write; give a chat_template "
                "that does, or leave such records out"
            )


def _of_ids(record: Mapping[str, Any]) -> tuple[Ids, Learned]:
    unread = sorted(map(str, record.keys() - {"input_ids", "labels", "attention_mask"}))
    if unread:
        say_once(logger, f"records of ids have {', '.join(unread)} too, which is not read")
    ids = ids_of(record["input_ids"], "input_ids").tolist()
    labels, seen = record.get("labels"), record.get("attention_mask")
    learned = [True] * len(ids)
    if labels is not None:
        labels = _as_many(labels, ids, "labels")
        learned = [one != IGNORE_INDEX for one in labels]
        if any(one != own for one, own, is_in in zip(labels, ids, learned, strict=True) if is_in):
            raise ValueError(
                "labels differ from input_ids: as transformers has them, they are the same ids at "
                f"the same places, or {IGNORE_INDEX} where nothing is learned"
            )
    if seen is not None:
        seen = _as_many(seen, ids, "attention_mask")
        if not set(seen) <= {0, 1}:
            raise ValueError("attention_mask holds other numbers than 0 and 1; correct it")
        learned = [own and bool(one) for own, one in zip(learned, seen, strict=True)]
    return ids, learned


def _as_many(values: object, ids: Ids, name: str) -> list[int]:
    found: list[int] = ids_of(values, name).tolist()
    if len(found) != len(ids):
        raise ValueError(
            f"a row has {len(ids)} input_ids and {len(found)} {name}; give as many of each"
        )
    return found


def _messages(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Messages by today's names; ShareGPT's are ``from`` and ``value``."""
    found = record.get("messages") or record.get("conversations")
    if not isinstance(found, list | tuple | np.ndarray) or not len(found):
        raise ValueError(f"the messages are {found!r:.60}; give a list with at least one message")
    return [_turn(one) for one in found]


def _turn(given: object) -> Mapping[str, Any]:
    turn = given if isinstance(given, Mapping) else {}
    if turn.get("from") == "function_call" and "value" in turn:
        thought, calls = tool_texts.calls_of_text(turn["value"])
        return {"role": "assistant", "content": thought, "tool_calls": calls}
    if "from" in turn and "value" in turn:
        roles = {"human": "user", "gpt": "assistant", "observation": "tool"}
        turn = {"role": roles.get(turn["from"], turn["from"]), "content": turn["value"]}
    if turn.get("tool_calls") is not None:
        calls = tool_texts.calls_of(turn["tool_calls"])
        turn = {**turn, "content": turn.get("content") or "", "tool_calls": calls}
    if not isinstance(turn.get("role"), str) or turn.get("content") is None:
        raise ValueError(
            f"a message is {given!r:.60}; it must have role, a text, and content (or from, value)"
        )
    return turn


# --- to samples -----------------------------------------------------------------------------------


def fitted(written: Iterable[tuple[Ids, Learned]], shape: Shape) -> Iterator[tuple[Ids, Learned]]:
    """Records, of which what is beyond s + 1 tokens is cut off, with a line.

    Raises:
        ValueError: nothing that is to be learned is left of any.
    """
    length = shape.seq_length + 1
    num_records = num_cut = num_idle = 0
    for ids, learned in written:
        num_records += 1
        num_cut += len(ids) > length
        num_idle += not any(learned[1:length])
        yield ids[:length], learned[:length]
    within = f"seq_length {shape.seq_length} plus one token"
    if num_cut:
        say_once(logger, f"{num_cut} records are longer than {within}; their ends are cut off")
    if num_idle and num_idle == num_records:
        raise ValueError(
            f"no record has a token to predict within {within}, as its answers begin later; give "
            "shorter ones, or a larger max_length"
        )
    if num_idle:
        say_once(
            logger,
            f"{num_idle} of {num_records} records have no token to predict within {within}: "
            "nothing is learned of them",
        )


def one_each(
    written: Iterable[tuple[Ids, Learned]], shape: Shape, may_cut: bool = True
) -> list[Sample]:
    """A sample for each record, filled up.

    Args:
        written: records.
        shape: of the samples.
        may_cut: what is beyond s + 1 tokens is cut off, with a line. False: it is an error.

    Raises:
        ValueError: a record is too long, or nothing is left to learn.
    """
    if not may_cut:
        written = list(written)
        for ids, _ in written:
            require_fit(len(ids), shape)
    return [
        sample_of(ids[:-1], _labels(ids, learned), shape) for ids, learned in fitted(written, shape)
    ]


def _labels(ids: Ids, learned: Learned) -> list[int]:
    return [own if is_in else IGNORE_INDEX for own, is_in in zip(ids[1:], learned[1:], strict=True)]


def packed(written: Iterable[tuple[Ids, Learned]], shape: Shape) -> list[Sample]:
    """Several records in a sample, in their order; each sees itself only.

    Args:
        written: records.
        shape: of the samples, with ``documents``.
    """
    samples: list[Sample] = []
    waiting: list[tuple[Ids, list[int]]] = []
    room = shape.seq_length
    for ids, learned in fitted(written, shape):
        if len(ids) < 2:
            continue
        if len(ids) - 1 > room:
            samples.append(_joined(waiting, shape))
            waiting, room = [], shape.seq_length
        waiting.append((ids[:-1], _labels(ids, learned)))
        room -= len(ids) - 1
    return [*samples, _joined(waiting, shape)] if waiting else samples


def _joined(parts: Sequence[tuple[Ids, list[int]]], shape: Shape) -> Sample:
    tokens = [own for ids, _ in parts for own in ids]
    labels = [own for _, targets in parts for own in targets]
    lengths = [len(ids) for ids, _ in parts]
    lengths.append(shape.seq_length - len(tokens))  # what is filled up is a document of its own
    return with_documents(sample_of(tokens, labels, shape), lengths)


def stream(written: Iterable[tuple[Ids, Learned]], shape: Shape) -> list[Sample]:
    """All texts one after another, cut into samples; the last one is filled up.

    A token at a cut ends a sample as a label, and begins the next one.
    """
    return [sample_of(row[:-1], row[1:], shape) for row in rows_of_texts(written, shape)]


def rows_of_texts(written: Iterable[tuple[Ids, Learned]], shape: Shape) -> Iterator[Ids]:
    """Rows of s + 1 tokens of all texts, each of which begins with the last one's last token."""
    length, waiting = shape.seq_length, []
    for ids, _ in written:
        waiting += ids
        first = 0
        while len(waiting) - first > length:
            yield waiting[first : first + length + 1]
            first += length
        waiting = waiting[first:]
    if len(waiting) > 1:
        yield waiting
