# SPDX-License-Identifier: Apache-2.0
"""Ids of Megatron-core's SentencePiece tokenizer with its options, for tests.

python tests/record_sentencepiece.py    # where megatron-core 0.16 and sentencepiece are
"""

import json
from pathlib import Path

DATA = Path(__file__).parent / "data"
FILE = DATA / "megatron_core" / "sentencepiece_options.json"
TEXTS = (
    *("the cat  sat", "  two   in front and behind  ", "<a> who[INST] is <a><a> it"),
    *("[INST]the  end", "plain", "", " ", "x <a>  y [INST] z  w"),
)
OPTIONS = (
    {},
    {"ignore_extra_whitespaces": False},
    {"legacy": True, "special_tokens": ["<a>", "[INST]", "the"]},
    {"legacy": True, "special_tokens": ["<a>", "[INST]"], "ignore_extra_whitespaces": False},
)

if __name__ == "__main__":
    from megatron.core.tokenizers.text.libraries.sentencepiece_tokenizer import (
        SentencePieceTokenizer,
    )

    cases = []
    for options in OPTIONS:
        tokenizer = SentencePieceTokenizer(str(DATA / "golden" / "tok.model"), **options)
        ids = [tokenizer.text_to_ids(text) for text in TEXTS]
        cases.append(
            {
                "vocab_size": tokenizer.vocab_size,
                "ids": ids,
                "texts": [tokenizer.ids_to_text(one) for one in ids],
            }
        )
    FILE.write_text(json.dumps(cases) + "\n", encoding="utf-8")
