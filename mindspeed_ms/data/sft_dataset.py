# SPDX-License-Identifier: Apache-2.0
"""Instruction data: conversations from JSON lines, packed into samples of equal length.

Source: Megatron-LM core 0.16 ``training/datasets/sft_dataset.py`` (behaviour). Deliberate
difference: no further library reads the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig
from mindspeed_ms.data.labelled import IGNORE_INDEX, dense_mask
from mindspeed_ms.data.utils import Split
from mindspeed_ms.files.content import is_text
from mindspeed_ms.files.regular_file import open_regular

_BLOCK = 1 << 24


class ConversationTokenizer(Protocol):
    """What packing asks of a tokenizer."""

    eod: int
    pad: int

    def tokenize_conversation(
        self, conversation: Sequence[Mapping[str, str]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens, and targets with ``IGNORE_INDEX`` where nothing is learned."""
        ...


class SFTLowLevelDataset:
    """Lines of a JSON-lines file; each holds ``messages``: one conversation, or several in a row.

    Each message is ``{"role": "system" | "user" | "assistant", "content": text}``; a message of the
    system begins a new conversation.

    Args:
        dataset_path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty.
    """

    def __init__(self, dataset_path: str) -> None:
        self._path = dataset_path
        try:
            with open_regular(dataset_path) as stream:
                self._starts = _line_starts(stream)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{dataset_path} not found; --sft needs the path of a JSON-lines file"
            ) from None
        if len(self._starts) < 2:
            raise ValueError(f"{dataset_path} is empty; --sft needs a line per sample")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, idx: int) -> list[Mapping[str, str]]:
        first, last = int(self._starts[idx]), int(self._starts[idx + 1])
        with open(self._path, "rb") as stream:  # opened anew, since threads read at the same time
            stream.seek(first)
            line = stream.read(last - first)
        try:
            messages = json.loads(line.decode("utf-8"))["messages"]
            is_valid = all(is_text(message[key]) for message in messages for key in _KEYS)
        except (ValueError, TypeError, KeyError, RecursionError):
            is_valid = False
        if not is_valid or not messages:
            raise ValueError(
                f"line {idx + 1} of {self._path} is no JSON object with messages, each with role "
                "and content as text; correct it"
            )
        return messages


_KEYS = ("role", "content")


def _line_starts(stream: Any) -> NDArray[np.int64]:
    """Byte offset of each line, and of the end."""
    ends: list[NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
    position = 0
    while block := stream.read(_BLOCK):
        found = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
        ends.append(found + position + 1)
        position += len(block)
    starts = np.concatenate(ends)
    return starts if starts[-1] == position else np.append(starts, position)


class SFTDataset:
    """Packed conversations.

    Each item holds ``tokens``, ``labels`` and ``position_ids`` (int64 [s], positions from 0 in each
    conversation), ``loss_mask`` (float32 [s], 1 where the assistant is to learn the label),
    ``document_ids`` (int32 [s], the number of each token's conversation, which sees itself only),
    ``cu_seqlens`` (int32 [s + 1], where conversations begin and the last one ends, filled up with
    s) and, when asked for, ``attention_mask`` (bool [1, s, s], True = masked).

    Args:
        dataset: the lines.
        dataset_path: their file.
        indices: lines of this split.
        num_samples: samples needed, each one line; None for one pass.
        index_split: which split this is.
        config: options; its tokenizer must write conversations.

    Raises:
        ValueError: the tokenizer cannot, the split has no line, or positions are to be reset by
            document.
    """

    def __init__(
        self,
        dataset: SFTLowLevelDataset,
        dataset_path: str | None,
        indices: NDArray[np.int32],
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        if not hasattr(config.tokenizer, "tokenize_conversation"):
            raise ValueError(
                f"--sft needs a tokenizer that writes conversations, not "
                f"{type(config.tokenizer).__name__}; set --tokenizer-type SFTTokenizer"
            )
        if not len(indices):
            raise ValueError(
                f"the {index_split.name} split of {dataset_path} has no line; give it a larger "
                "share with --split"
            )
        if config.reset_position_ids or config.reset_attention_mask:
            raise ValueError(
                "--reset-position-ids and --reset-attention-mask are given with --sft, which keeps "
                "conversations apart by itself; leave them out"
            )
        self.dataset = dataset
        self.dataset_path = dataset_path
        self.indices = indices
        self.index_split = index_split
        self.config = config
        self._tokenizer: ConversationTokenizer = config.tokenizer  # type: ignore[assignment]
        self._length = len(indices) if num_samples is None else num_samples
        self.unique_identifiers: Mapping[str, object] = {
            "class": type(self).__name__,
            "dataset_path": dataset_path,
            "num_samples": num_samples,
            "index_split": index_split.name,
            "sequence_length": config.sequence_length,
            "tokenizer": config.tokenizer.unique_identifiers,
        }

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: SFTLowLevelDataset) -> int:
        """Lines."""
        return len(low_level_dataset)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> SFTLowLevelDataset:
        """Find the lines of a file."""
        del config
        return SFTLowLevelDataset(dataset_path)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, idx: int | np.integer) -> dict[str, NDArray]:
        line = int(self.indices[int(idx) % len(self.indices)])
        tokens, targets, positions, starts = self._pack(self.dataset[line])
        length, pad = self.config.sequence_length, self._tokenizer.pad
        labels = targets[1:]
        loss_mask = ((labels != pad) & (labels != IGNORE_INDEX)).astype(np.float32)
        cu_seqlens = np.full(length + 1, length, dtype=np.int32)
        cu_seqlens[: len(starts)] = starts
        conversation = np.searchsorted(np.array(starts[1:]), np.arange(length), side="right")
        item = {
            "tokens": tokens[:-1].copy(),
            # The embedding and the loss read these ids, though nothing is learned from them.
            "labels": np.where(labels == IGNORE_INDEX, 0, labels),
            "loss_mask": loss_mask,
            "position_ids": positions[:-1].copy(),
            "document_ids": conversation.astype(np.int32),
            "cu_seqlens": cu_seqlens,
        }
        if self.config.create_attention_mask:
            item["attention_mask"] = dense_mask(length, conversation)
        return item

    def _pack(
        self, messages: Sequence[Mapping[str, str]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[int]]:
        """Tokens, targets, positions [s + 1] and the starts of the conversations."""
        length, pad, eod = self.config.sequence_length, self._tokenizer.pad, self._tokenizer.eod
        multiple = (
            2 * self.config.context_parallel_size if self.config.context_parallel_size > 1 else 1
        )
        tokens: list[int] = []
        targets: list[int] = []
        positions: list[int] = []
        starts = [0]
        for conversation in split_conversations(messages):
            ids, learned = (
                array.tolist() for array in self._tokenizer.tokenize_conversation(conversation)
            )
            if not ids or ids[-1] != eod:
                ids, learned = [*ids, eod], [*learned, eod]
            missing = -(len(tokens) + len(ids)) % multiple
            tokens += [*ids, *[pad] * missing]
            targets += [*learned, *[pad] * missing]
            positions += range(len(ids) + missing)
            starts.append(len(tokens))
            if len(tokens) > length:
                # What is cut off has no label for the last place.
                tokens, targets = [*tokens[:length], pad], [*targets[:length], pad]
                positions = positions[: length + 1]
                break
        missing = length + 1 - len(tokens)
        if missing > 0:
            tokens += [pad] * missing
            targets += [pad] * missing
            positions += range(positions[-1] + 1, positions[-1] + 1 + missing)
        starts[-1] = length
        return np.array(tokens), np.array(targets), np.array(positions), starts


def split_conversations(
    messages: Sequence[Mapping[str, str]],
) -> list[list[Mapping[str, str]]]:
    """Cut a list of messages before each message of the system."""
    conversations: list[list[Mapping[str, str]]] = []
    for message in messages:
        if message["role"] == "system" or not conversations:
            conversations.append([])
        conversations[-1].append(message)
    return conversations
