# SPDX-License-Identifier: Apache-2.0
"""Options of SentencePiece tokenizers give the ids that Megatron-core gives."""

import json

import pytest
from record_sentencepiece import DATA, FILE, OPTIONS, TEXTS

from mindspeed_ms.data.tokenizers import build_tokenizer

NAMES = {
    "ignore_extra_whitespaces": "tokenizer_sentencepiece_ignore_extra_whitespaces",
    "legacy": "tokenizer_sentencepiece_legacy",
    "special_tokens": "tiktoken_special_tokens",
}
MODEL = str(DATA / "golden" / "tok.model")


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_ids_are_those_of_megatron_core(number):
    options = {NAMES[name]: value for name, value in OPTIONS[number].items()}
    tokenizer = build_tokenizer("GPTSentencePieceTokenizer", tokenizer_model=MODEL, **options)
    expected = json.loads(FILE.read_text(encoding="utf-8"))[number]
    assert tokenizer.vocab_size == expected["vocab_size"]
    ids = [tokenizer.tokenize(text) for text in TEXTS]
    assert ids == expected["ids"]
    assert [tokenizer.detokenize(one) for one in ids] == expected["texts"]
    llama = build_tokenizer("Llama2Tokenizer", tokenizer_model=MODEL, **options)
    assert [llama.tokenize(text)[1:] for text in TEXTS] == ids


def test_special_tokens_need_the_option_and_a_tokenizer_that_takes_them():
    special = {"tokenizer_model": MODEL, "tiktoken_special_tokens": ["<a>"]}
    with pytest.raises(ValueError, match="add --tokenizer-sentencepiece-legacy, or leave"):
        build_tokenizer("GPTSentencePieceTokenizer", **special)
    with pytest.raises(ValueError, match="use GPTSentencePieceTokenizer with"):
        build_tokenizer(
            "SentencePieceTokenizer", tokenizer_model=MODEL, tokenizer_sentencepiece_legacy=True
        )
