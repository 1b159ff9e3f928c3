# SPDX-License-Identifier: Apache-2.0
"""Questions and answers to the token files of instruction data.

Source: MindSpeed-LLM 2.1 ``preprocess_data.py``, ``tasks/preprocess/data_handler.py``
    (behaviour). Deliberate differences: records that cannot be used are left out and counted, not
    written as empty chats; a record that fills a row to its last place is too long for a pack.
"""

from __future__ import annotations

import argparse
import bisect
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from mindspeed_ms.data.instruction_dataset import KEYS, prefix_of
from mindspeed_ms.data.labelled import IGNORE_INDEX
from mindspeed_ms.data.tokenizers import Tokenizer, tool_texts
from mindspeed_ms.data.tokenizers.prompt_templates import PromptWriter, prompt_template
from mindspeed_ms.data.tokenizers.text_sources import records_of
from mindspeed_ms.toolkit.data.conversations import Writer
from mindspeed_ms.toolkit.tokenization.auto import AutoTokenizer

TEXT_HANDLERS = ("GeneralPretrainHandler",)
ALPACA, SHAREGPT = "AlpacaStyleInstructionHandler", "SharegptStyleInstructionHandler"
OPENAI = "OpenAIInstructionHandler"
INSTRUCTION_HANDLERS = (ALPACA, SHAREGPT, OPENAI, "LlamaFactoryInstructionHandler")
_COLUMNS: Mapping[str, Mapping[str, Any]] = {
    ALPACA: {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": None,
        "system": None,
    },
    SHAREGPT: {"messages": "conversations", "system": None, "tools": None},
    OPENAI: {"messages": "messages", "system": None, "tools": "tools"},
}
"""What a record holds -> the key it has it under; None: under none unless ``--map-keys`` says."""
_TAGS: Mapping[str, str] = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OF_MODELS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")
"""What chat templates read of a message."""
_THINKS: Mapping[str, bool | None] = {"true": True, "false": False, "none": None}


class Written(NamedTuple):
    """A record as ids, and their labels."""

    ids: list[int]
    labels: list[int]


class Chat(NamedTuple):
    """A record as messages in OpenAI's form, the last of which is an answer."""

    messages: list[dict[str, Any]]
    system: str
    tools: Sequence[tool_texts.Tool] = ()


class UnusableError(ValueError):
    """A record that is left out."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of instruction data; their names are MindSpeed-LLM's."""
    group = parser.add_argument_group(
        "instruction data", "token files that --is-instruction-dataset trains on"
    )
    add = group.add_argument
    add(
        "--handler-name",
        choices=(*TEXT_HANDLERS, *INSTRUCTION_HANDLERS),
        help="what the records are: texts, instruction/input/output, or conversations",
    )
    add("--prompt-type", help="template of the turns; without one, the tokenizer's chat template")
    add("--prompt-type-path", help="JSON file of templates")
    add("--seq-length", type=int, help="longer records are left out; with --pack, tokens of a row")
    add("--pack", action="store_true", help="several records in a row of --seq-length tokens")
    add("--neat-pack", action="store_true", help="packs whose attention mask numbers the records")
    add("--map-keys", type=json.loads, help='keys of a record: \'{"prompt": "question", ...}\'')
    add("--enable-thinking", choices=tuple(_THINKS), default="none", help="of templates that think")
    add("--overwrite-cache", action="store_true", help="accepted: there is no cache")
    add("--cache-dir", help="accepted: there is no cache")


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    if args.handler_name not in INSTRUCTION_HANDLERS:
        given = [
            flag
            for flag in ("prompt_type", "pack", "neat_pack", "map_keys")
            if getattr(args, flag) not in (None, False)
        ]
        if given:
            parser.error(
                f"--{given[0].replace('_', '-')} is of instruction data; name its --handler-name: "
                f"{', '.join(INSTRUCTION_HANDLERS)}"
            )
        return
    if args.neat_pack and not args.pack:
        parser.error("--neat-pack says how records are packed; add --pack")
    if args.pack and not args.seq_length:
        parser.error("--pack fills rows; say how long they are with --seq-length")
    if args.seq_length is not None and args.seq_length < 3:
        parser.error(f"--seq-length {args.seq_length} holds no question and answer; raise it")
    if args.map_keys is not None and not isinstance(args.map_keys, dict):
        parser.error("--map-keys must be a JSON object of keys; correct it")


@dataclass(frozen=True, slots=True)
class Reader:
    """Finds the messages of a record.

    Args:
        handler: one of ``INSTRUCTION_HANDLERS``.
        map_keys: ``--map-keys``.

    Raises:
        ValueError: map_keys names what no record has.
    """

    handler: str
    map_keys: Mapping[str, Any] | None = None
    columns: dict[str, Any] = field(init=False)
    tags: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        kind = self.handler if self.handler in _COLUMNS else ALPACA
        given = dict(self.map_keys or {})
        tags = dict(given.pop("tags", {})) if kind == SHAREGPT else {}
        for known, named in ((_COLUMNS[kind], given), (_TAGS, tags)):
            unknown = [name for name in named if name not in known]
            if unknown:
                raise ValueError(
                    f"--map-keys names {unknown[0]!r}, which {self.handler} does not read; use "
                    f"{', '.join(known)}{', tags' if kind == SHAREGPT else ''}"
                )
        object.__setattr__(self, "columns", {**_COLUMNS[kind], **given})
        object.__setattr__(self, "tags", {**_TAGS, **tags})

    def chat(self, record: Mapping[str, Any]) -> Chat:
        """The messages.

        Raises:
            UnusableError: they are no questions with answers.
        """
        read = {SHAREGPT: self._sharegpt, OPENAI: self._openai}.get(self.handler, self._alpaca)
        try:
            chat = read(record)
        except ValueError as error:
            raise UnusableError(str(error)) from None
        for message in chat.messages:
            if not isinstance(message["content"], str):
                raise UnusableError(f"its message {message['content']!r:.40} is no text")
        if not isinstance(chat.system, str):
            raise UnusableError(f"its system {chat.system!r:.40} is no text")
        if not chat.messages or chat.messages[-1]["role"] != "assistant":
            raise UnusableError(
                f"it has {len(chat.messages)} messages, the last of which is no answer"
            )
        return chat

    def unread(self, record: Mapping[str, Any]) -> list[str]:
        """Keys that say what a chat would need, and are read under no name."""
        names = {"history", "system", "tools"} - {str(one) for one in self.columns.values()}
        return sorted(name for name in names if record.get(name))

    def _get(self, record: Mapping[str, Any], name: str) -> Any:
        key = self.columns.get(name)
        return None if key is None else record.get(key)

    def _list(self, record: Mapping[str, Any], name: str) -> list[Any]:
        """The list of a column, empty if it is left out."""
        found = self._get(record, name) or []
        if not isinstance(found, list):
            raise UnusableError(f"its {self.columns[name]!r} is no list")
        return found

    def _alpaca(self, record: Mapping[str, Any]) -> Chat:
        messages = []
        for pair in self._list(record, "history"):
            if not isinstance(pair, list) or len(pair) != 2:
                raise UnusableError("its history holds no pairs of question and answer")
            messages += [_said("user", pair[0]), _said("assistant", pair[1])]
        asked = [self._get(record, name) for name in ("prompt", "query")]
        answers = self._get(record, "response")
        answers = [answers] if isinstance(answers, str) else self._list(record, "response")
        if len(answers) != 1:
            raise UnusableError(f"it has {len(answers)} answers under {self.columns['response']!r}")
        question = "\n".join(str(part) for part in asked if part)
        messages += [_said("user", question), _said("assistant", answers[0])]
        return Chat(messages, self._get(record, "system") or "")

    def _sharegpt(self, record: Mapping[str, Any]) -> Chat:
        tags = self.tags
        found, system = self._turns(record, tags["role_tag"], tags["content_tag"])
        roles = (
            {tags["user_tag"]: "user", tags["observation_tag"]: "tool"},
            {tags["assistant_tag"]: "assistant", tags["function_tag"]: "function"},
        )
        messages = []
        for place, one in enumerate(found):
            tag, content = one[tags["role_tag"]], one.get(tags["content_tag"])
            role = roles[place % 2].get(tag)
            if role is None:
                raise UnusableError(f"message {place + 1} is of {tag!r}, out of turn")
            if role == "function":
                thought, calls = tool_texts.calls_of_text(content)
                messages.append(_said("assistant", thought) | {"tool_calls": calls})
            else:
                messages.append(_said(role, content))
        return Chat(messages, system, tool_texts.tools_of(self._get(record, "tools")))

    def _openai(self, record: Mapping[str, Any]) -> Chat:
        found, system = self._turns(record, "role", "content")
        messages = []
        for place, one in enumerate(found):
            if one["role"] not in ("user", "assistant", "tool"):
                raise UnusableError(f"message {place + 1} is of {one['role']!r}, out of turn")
            message = {name: one[name] for name in _OF_MODELS if one.get(name) is not None}
            if "tool_calls" in message:
                message["tool_calls"] = tool_texts.calls_of(message["tool_calls"])
                message.setdefault("content", "")
            messages.append(message | {"content": message.get("content")})
        return Chat(messages, system, tool_texts.tools_of(self._get(record, "tools")))

    def _turns(
        self, record: Mapping[str, Any], role: str, content: str
    ) -> tuple[list[Mapping[str, Any]], Any]:
        """Messages behind the system's, and what that says."""
        found, system = self._list(record, "messages"), self._get(record, "system") or ""
        if not all(isinstance(one, Mapping) and isinstance(one.get(role), str) for one in found):
            raise UnusableError(f"its messages are no objects with a text under {role!r}")
        if found and found[0][role] == self.tags["system_tag"]:
            system, found = found[0].get(content) or "", found[1:]
        return found, system


def _said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


class InstructionEncoder:
    """Records to ids and labels.

    Args:
        args: parsed flags.
        tokenizer: of the same flags.

    Raises:
        ValueError: an unknown template, or a tokenizer that lacks what it needs.
    """

    def __init__(self, args: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.reader = Reader(args.handler_name, args.map_keys)
        self._end = tokenizer.eod if args.append_eod else None
        self._prompts: PromptWriter | None = None
        self._chats: Writer | None = None
        if args.prompt_type is not None:
            template = prompt_template(args.prompt_type.strip(), args.prompt_type_path)
            self._prompts = PromptWriter(template, tokenizer, _THINKS[args.enable_thinking])
            if args.append_eod:
                self._end = self._prompts.end
        elif args.tokenizer_type in ("HuggingFaceTokenizer", "PretrainedFromHF"):
            self._chats = Writer(AutoTokenizer.from_pretrained(args.tokenizer_model))
        else:
            raise ValueError(
                f"{args.tokenizer_type} has no chat template; name one with --prompt-type"
            )

    @property
    def end(self) -> int | None:
        """Id that ends a text by the template, if there is one."""
        return None if self._prompts is None else self._prompts.end

    def __call__(self, placed: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Written | str]:
        """Each record written, or why it is left out.

        Args:
            placed: (where it is, for messages; the record).

        Raises:
            ValueError: one that must not be left out.
        """
        results: list[Written | str] = []
        for where, record in placed:
            try:
                results.append(self.write(record))
            except UnusableError as error:
                results.append(f"{where}: {error}")
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        return results

    def write(self, record: Mapping[str, Any]) -> Written:
        """Ids, and labels that leave the questions out."""
        chat = self.reader.chat(record)
        ids, labels = self._by_template(chat) if self._prompts else self._by_chat(chat)
        if self._end is not None:
            ids, labels = [*ids, self._end], [*labels, self._end]
        return Written(ids, labels)

    def _by_template(self, chat: Chat) -> Written:
        assert self._prompts is not None, "asked for by who has one"
        template, end = self._prompts.template, self._prompts.end
        ids: list[int] = []
        labels: list[int] = []
        for place, message in enumerate(chat.messages):
            if (message["role"] == "assistant") != bool(place % 2):
                raise UnusableError(
                    f"message {place + 1} is of {message['role']!r}, out of turn; only the "
                    "tokenizer's own chat template writes such turns (leave --prompt-type out)"
                )
        for asked, answered in self._prompts.turns(chat.messages, chat.system, chat.tools):
            hidden = [IGNORE_INDEX] * len(asked)
            if ids and template.efficient_eos and asked and end is not None:
                hidden[0] = end
            ids += [*asked, *answered]
            labels += [*hidden, *answered]
        if template.efficient_eos and end is not None:
            ids, labels = [*ids, end], [*labels, end]
        return Written(ids, labels)

    def _by_chat(self, chat: Chat) -> Written:
        assert self._chats is not None, "one of the two writes"
        system = [_said("system", chat.system)] if chat.system else []
        ids, learned = self._chats.write(
            {"messages": [*system, *chat.messages], "tools": chat.tools or None}
        )
        pairs = zip(ids, learned, strict=True)
        return Written(ids, [one if is_in else IGNORE_INDEX for one, is_in in pairs])


@dataclass(slots=True)
class Outcome:
    """What became of the records."""

    records: int = 0
    rows: int = 0
    tokens: int = 0
    unusable: list[str] = field(default_factory=list)
    too_long: int = 0
    cut: int = 0
    unread: Counter[str] = field(default_factory=Counter)

    def tell(self, logger: logging.Logger, args: argparse.Namespace) -> None:
        """Say it."""
        name = prefix_of(args.output_prefix, "*")
        logger.info(
            "wrote %d records, %d rows, %d tokens to %s", self.records, self.rows, self.tokens, name
        )
        if self.unusable:
            logger.warning(
                "WARNING: %d records are left out; the first: %s",
                len(self.unusable),
                self.unusable[0],
            )
        if self.too_long:
            logger.warning(
                "WARNING: %d records are left out, as they are longer than --seq-length %d allows",
                self.too_long,
                args.seq_length,
            )
        if self.cut:
            logger.warning("WARNING: %d records lost their ends to fit a row", self.cut)
        for key, count in self.unread.items():
            logger.warning(
                "WARNING: %r of %d records is not read; name it with --map-keys", key, count
            )


def write_instructions(
    args: argparse.Namespace,
    encoder: InstructionEncoder,
    tokenizer: Tokenizer,
    written: Iterable[Written | str],
) -> Outcome:
    """Write the files.

    Args:
        args: parsed flags.
        encoder: of the records.
        tokenizer: whose pad fills rows.
        written: records in their order, or why one is left out.

    Raises:
        ValueError: no record is left.
    """
    outcome = Outcome()
    records = _kept(written, args, outcome)
    rows = _packs(records, args, encoder, tokenizer) if args.pack else _singles(records)
    with ExitStack() as stack:
        prefixes = [prefix_of(args.output_prefix, key) for key in KEYS]
        # The labels' -100 decides the type of all.
        builders = [
            stack.enter_context(IndexedDatasetBuilder(get_bin_path(prefix), np.int32))
            for prefix in prefixes
        ]
        for ids, mask, labels in rows:
            for builder, values in zip(builders, (ids, mask, labels), strict=True):
                builder.add_document(values, [len(values)])
            outcome.rows += 1
            outcome.tokens += len(ids)
        if not outcome.rows:
            why = outcome.unusable[0] if outcome.unusable else "all are too long, or there is none"
            raise ValueError(f"no record of {' '.join(args.input)} can be used ({why})")
        for builder, prefix in zip(builders, prefixes, strict=True):
            builder.finalize(get_idx_path(prefix))
    return outcome


Row = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Ids, attention mask and labels."""


def _kept(
    written: Iterable[Written | str], args: argparse.Namespace, outcome: Outcome
) -> Iterator[Written]:
    """Records that fit, each counted."""
    limit = args.seq_length
    for one in written:
        if isinstance(one, str):
            outcome.unusable.append(one)
            continue
        if limit is not None and len(one.ids) >= limit:
            if not args.neat_pack:
                outcome.too_long += 1
                continue
            outcome.cut += 1
            one = Written(one.ids[: limit - 1], one.labels[: limit - 1])
        outcome.records += 1
        yield one


def _singles(records: Iterable[Written]) -> Iterator[Row]:
    for ids, labels in records:
        yield ids, [1] * len(ids), labels


def _packs(
    records: Iterable[Written],
    args: argparse.Namespace,
    encoder: InstructionEncoder,
    tokenizer: Tokenizer,
) -> Iterator[Row]:
    """Rows of ``--seq-length`` tokens, the last of which is always free."""
    size, pad = args.seq_length, tokenizer.pad
    if pad is None or pad < 0:
        pad = tokenizer.eos if encoder.end is None else encoder.end
    if pad is None:
        raise ValueError("the tokenizer has no pad_token and no eos_token, which fill rows; set it")
    by_length: dict[int, list[Written]] = defaultdict(list)
    for one in records:
        by_length[len(one.ids)].append(one)
    for lengths in knapsacks({length: len(ones) for length, ones in by_length.items()}, size - 1):
        ids: list[int] = []
        labels: list[int] = []
        mask: list[int] = []
        for number, length in enumerate(lengths, 1):
            one = by_length[length].pop()
            ids += one.ids
            labels += one.labels
            mask += [number if args.neat_pack else 1] * length
        missing = size - len(ids)
        yield (
            ids + [pad] * missing,
            mask + [0 if args.neat_pack else 1] * missing,
            labels + [IGNORE_INDEX] * missing,
        )


def knapsacks(counts: Mapping[int, int], capacity: int) -> Iterator[list[int]]:
    """Lengths that go together: the longest that still fits, until none does.

    Args:
        counts: length, at most the capacity -> how many there are.
        capacity: of a row.
    """
    left = dict(counts)
    lengths = sorted(left)
    while lengths:
        row, room = [], capacity
        while (place := bisect.bisect_right(lengths, room) - 1) >= 0:
            length = lengths[place]
            row.append(length)
            room -= length
            left[length] -= 1
            if not left[length]:
                del lengths[place]
        yield row


def placed_records(
    paths: Iterable[str], reader: Reader, unread: Counter[str], size: int = 64
) -> Iterator[list[tuple[str, Mapping[str, Any]]]]:
    """Records of files with their places, in groups.

    Args:
        paths: files.
        reader: of them, which knows what it does not read.
        unread: counts of such keys, which are added to.
        size: of a group.
    """
    group: list[tuple[str, Mapping[str, Any]]] = []
    for path in paths:
        for number, record in enumerate(records_of(path), 1):
            unread.update(reader.unread(record))
            group.append((f"{path}, record {number}", record))
            if len(group) == size:
                yield group
                group = []
    if group:
        yield group
