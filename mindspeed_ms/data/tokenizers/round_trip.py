# SPDX-License-Identifier: Apache-2.0
"""Whether a text comes back from its tokens as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mindspeed_ms.data.tokenizers.tokenizer import Tokenizer

LENGTH = 4096
"""Characters of a document that are tried."""

_NAMES = {"\n": "newlines", "\r": "carriage returns", "\t": "tabs", " ": "spaces"}
_MOST = 4
"""Kinds of characters that are named."""


def loss_in(tokenizer: Tokenizer, texts: Iterable[str]) -> str | None:
    """Encode and decode texts; None if all come back, else a line about what is lost.

    Args:
        tokenizer: gives ids for a text and a text for ids.
        texts: the sample; of each the first ``LENGTH`` characters.
    """
    tried, changed = 0, 0
    lost: Counter[str] = Counter()
    for text in texts:
        text = text[:LENGTH]
        back = tokenizer.detokenize(list(tokenizer.tokenize(text)))
        tried += 1
        changed += back != text
        lost += Counter(text) - Counter(back)
    if not changed:
        return None
    named = ", ".join(
        f"{count} {_NAMES.get(character, repr(character))}"
        for character, count in lost.most_common(_MOST)
    )
    what = f"it loses {named}" if named else "it changes the order or adds characters"
    more = f", and {len(lost) - _MOST} further characters" if len(lost) > _MOST else ""
    return (
        f"{changed} of {tried} texts do not come back from the tokenizer as they were: {what}{more}"
        "; a model cannot learn what is lost. A tokenizer that keeps everything: mindspeed-ms "
        "tokenizer train"
    )
