# SPDX-License-Identifier: Apache-2.0
"""Tokenizers give Megatron's ids; the preprocessor writes Megatron's bytes."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.tokenizers import (
    GPTSentencePieceTokenizer,
    Llama2Tokenizer,
    NullTokenizer,
    SentencePieceTokenizer,
    TokenizerSettings,
    build_tokenizer,
    vocab_size_with_padding,
)

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "golden"
MODEL = str(GOLDEN / "tok.model")
TEXT = "Ada finds a red lamp near the harbour."


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer(MODEL)


# ---- tokenizers ----


def test_special_tokens_follow_the_pieces_of_the_model(tokenizer):
    assert tokenizer.vocab_size == 505
    assert (tokenizer.cls, tokenizer.sep, tokenizer.eod, tokenizer.mask) == (500, 501, 502, 503)
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (504, 1, 2)
    assert tokenizer.inv_vocab[502] == "<EOD>"
    assert vocab_size_with_padding(tokenizer.vocab_size) == 512


def test_identifiers_are_those_in_the_reference_cache(tokenizer):
    path = next((GOLDEN / "index_cache").glob("*description.txt"))
    expected = json.loads(path.read_text())["tokenizer"]
    assert tokenizer.unique_identifiers == expected | {"tokenizer_path": [MODEL]}
    assert list(tokenizer.unique_identifiers) == list(expected)


def test_reference_corpus_decodes_and_encodes_to_itself(tokenizer):
    dataset = IndexedDataset(str(GOLDEN / "corpus_text_document"))
    for number in range(0, len(dataset), 97):
        ids = dataset[number].tolist()
        text = tokenizer.detokenize(ids)
        assert text.endswith(". <EOD> ") or text.endswith('" <EOD> ')
        assert [*tokenizer.tokenize(text.removesuffix(" <EOD> ")), tokenizer.eod] == ids


def test_special_tokens_in_the_text_become_their_ids(tokenizer):
    ids = tokenizer.tokenize("a<EOD><MASK>b</s>")
    assert [number for number in ids if number in (502, 503, 2)] == [502, 503, 2]
    assert tokenizer.tokenize("<CLS>") == [500]
    assert tokenizer.tokenize("") == []
    assert tokenizer.detokenize(np.array([500])) == " <CLS> "


def test_extra_ids_follow_the_special_tokens():
    extended = SentencePieceTokenizer(MODEL, 2)
    assert extended.vocab_size == 507
    assert extended.tokenize("<extra_id_1>") == [506]
    assert extended.unique_identifiers["vocab_extra_ids"] == "2"


def test_gpt_sentencepiece_is_the_bare_model(tokenizer):
    bare = GPTSentencePieceTokenizer(MODEL)
    assert (bare.vocab_size, bare.eod, bare.eos, bare.bos, bare.pad) == (500, 2, 2, 1, None)
    assert bare.tokenize(TEXT) == tokenizer.tokenize(TEXT)
    assert bare.detokenize(np.array(bare.tokenize(TEXT))) == TEXT
    assert bare.unique_identifiers["class"] == "_GPTSentencePieceTokenizer"


def test_llama_adds_the_begin_token():
    llama = Llama2Tokenizer(MODEL)
    bare = GPTSentencePieceTokenizer(MODEL).tokenize(TEXT)
    assert llama.tokenize(TEXT) == [1, *bare]
    assert llama.tokenize(TEXT, bos=False, eos=True) == [*bare, 2]
    assert (llama.vocab_size, llama.eod) == (500, 2)
    assert llama.unique_identifiers["class"] == "_Llama2Tokenizer"


def test_a_model_without_end_token_cannot_end_documents(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    with open(tmp_path / "m.model", "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d", "b c d e"]),
            model_writer=stream,
            vocab_size=10,
            model_type="char",
            eos_id=-1,
            minloglevel=2,
        )
    without = GPTSentencePieceTokenizer(str(tmp_path / "m.model"))
    assert without.eos is None and without.tokenize("a b")
    with pytest.raises(ValueError, match="no end-of-sentence token.*SentencePieceTokenizer"):
        _ = without.eod
    assert SentencePieceTokenizer(str(tmp_path / "m.model")).eod > 0


def test_null_tokenizer_reads_numbers():
    null = NullTokenizer(100)
    assert (null.vocab_size, null.eod, null.eos, null.pad) == (101, 100, 100, None)
    assert null.tokenize("3 4 99") == [3, 4, 99]
    assert null.detokenize([3, 4]) == "3 4"
    assert null.unique_identifiers == {
        "class": "_NullTokenizer",
        "tokenizer_path": [None],
        "vocab_size": "100",
    }
    with pytest.raises(ValueError, match="separated by single spaces, not 'a b'"):
        null.tokenize("a b")
    with pytest.raises(ValueError, match="vocab_size .0."):
        NullTokenizer(0)


SENTENCE_PIECE_TYPES = ["SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"]


@pytest.mark.parametrize("kind", [*SENTENCE_PIECE_TYPES, "NullTokenizer"])
def test_every_listed_type_can_be_built(kind):
    built = build_tokenizer(kind, tokenizer_model=MODEL, vocab_size=7)
    assert built.eod < built.vocab_size
    assert built.unique_identifiers["class"] == f"_{kind}"


def test_settings_come_from_parsed_arguments_too():
    args = argparse.Namespace(tokenizer_type="NullTokenizer", vocab_size=7, merge_file=None, x=1)
    assert build_tokenizer(args).eod == 7
    assert build_tokenizer(TokenizerSettings(tokenizer_type="NullTokenizer", vocab_size=7)).eod == 7
    with pytest.raises(ValueError, match="name no tokenizer; set --tokenizer-type"):
        build_tokenizer(argparse.Namespace(tokenizer_type=None))


@pytest.mark.parametrize("kind", SENTENCE_PIECE_TYPES)
def test_entries_of_the_vocabulary_are_found(kind):
    built = build_tokenizer(kind, tokenizer_model=MODEL)
    assert built.token_to_id("</s>") == 2
    assert built.token_to_id("no such entry") is None


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("NullTokenizer", {}, "set --vocab-size"),
        ("Llama2Tokenizer", {}, "set --tokenizer-model"),
        ("SentencePieceTokenizer", {"tokenizer_model": "no/such"}, "no/such is not a file"),
        ("BertWordPieceCase", {}, "'BertWordPieceCase' is not available; use one of Sentence"),
        ("Bert", {"vocab_file": "v.json"}, r"'Bert' \(files \['v.json'\]\) is not available"),
        ("GPT2BPETokenizer", {}, "set --vocab-file"),
        ("GPT2BPETokenizer", {"vocab_file": "v.json"}, "set --merge-file"),
        (
            "GPT2BPETokenizer",
            {"vocab_file": "v.json", "merge_file": "m.txt"},
            "v.json is not a file; GPT2BPETokenizer needs --vocab-file vocab.json and --merge-file",
        ),
        ("HuggingFaceTokenizer", {}, "folder .* set --tokenizer-model"),
        (
            "HuggingFaceTokenizer",
            {"tokenizer_model": "no/such"},
            "no/such not found.*tokenizer.json",
        ),
        ("TikTokenizer", {"tokenizer_model": "x"}, "set --tiktoken-pattern"),
        ("TikTokenizer", {"tokenizer_model": "x", "tiktoken_pattern": "v1"}, "x is not a file"),
        ("TikTokenizer", {"tokenizer_model": "x", "tiktoken_pattern": "v3"}, "'v3' is unknown"),
    ],
)
def test_what_is_missing_is_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        build_tokenizer(kind, **options)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "tok.model"
    path.write_text("hello")
    with pytest.raises(ValueError, match="tok.model is not a SentencePiece model"):
        build_tokenizer("SentencePieceTokenizer", tokenizer_model=str(path))


@pytest.mark.parametrize(
    ("size", "divisor", "ranks", "expected"),
    [(500, 128, 1, 512), (512, 128, 1, 512), (513, 128, 4, 1024), (50257, 128, 8, 51200)],
)
def test_padded_vocabulary(size, divisor, ranks, expected):
    assert vocab_size_with_padding(size, divisor, ranks) == expected


def test_padded_vocabulary_needs_positive_numbers():
    with pytest.raises(ValueError, match="must each be at least 1"):
        vocab_size_with_padding(500, 0, 1)
