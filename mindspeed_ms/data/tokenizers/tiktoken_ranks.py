# SPDX-License-Identifier: Apache-2.0
"""Vocabularies of ``tiktoken``: lines of a token in base64 and its rank (Qwen, Llama 3).

``tiktoken`` itself would keep a copy of every file it reads, found again by the file's path, and
so read an older file than the one that lies there; the lines are read here instead.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from mindspeed_ms.data.tokenizers.byte_level import written
from mindspeed_ms.files.regular_file import read_bytes


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank, in the file's order.

    Raises:
        ValueError: a line is not a token in base64 and a number.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        try:
            token, rank = parts
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path} is neither a SentencePiece model nor tiktoken ranks: line {number} is not "
                "a token in base64 and a number; copy the file again"
            ) from None
    return ranks


def vocabulary(ranks: dict[bytes, int]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The same as a vocabulary and merges of byte-level BPE.

    A token is reached by any of its divisions in two known tokens; which one is tried first
    follows from the ranks of the halves.
    """
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [half for half in halves if half[0] in ranks and half[1] in ranks]
        merges += sorted(known, key=lambda half: (ranks[half[0]], ranks[half[1]]))
    vocab = {written(token): rank for token, rank in ranks.items()}
    return vocab, [(written(left), written(right)) for left, right in merges]
