"""Tokenizers give Megatron's ids; the preprocessor writes Megatron's bytes."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.core.datasets.indexed_dataset import IndexedDataset
from mindspeed_ms.training.tokenizer import (
    TOKENIZER_TYPES,
    GPTSentencePieceTokenizer,
    Llama2Tokenizer,
    NullTokenizer,
    SentencePieceTokenizer,
    build_tokenizer,
    vocab_size_with_padding,
)

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "data" / "golden"
MODEL = str(GOLDEN / "tok.model")
TINY = ROOT / "data" / "tiny"
TEXT = "Ada finds a red lamp near the harbour."


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # worker processes receive its functions by name
    spec.loader.exec_module(module)
    return module


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
    with pytest.raises(ValueError, match="no end-of-sentence token.*SentencePieceTokenizer"):
        GPTSentencePieceTokenizer(str(tmp_path / "m.model"))
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


@pytest.mark.parametrize("kind", TOKENIZER_TYPES)
def test_every_listed_type_can_be_built(kind):
    built = build_tokenizer(kind, tokenizer_model=MODEL, vocab_size=7)
    assert built.eod < built.vocab_size
    assert built.unique_identifiers["class"] == f"_{kind}"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("NullTokenizer", {}, "set --vocab-size"),
        ("Llama2Tokenizer", {}, "set --tokenizer-model"),
        ("SentencePieceTokenizer", {"tokenizer_model": "no/such"}, "no/such is not a file"),
        ("BertWordPieceCase", {}, "'BertWordPieceCase' is not available; use one of Sentence"),
        (
            "GPT2BPETokenizer",
            {"vocab_file": "v.json", "merge_file": "m.txt"},
            r"files \['v.json', 'm.txt'\].*not available",
        ),
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


# ---- preprocess_data ----

SENTENCE_PIECE = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", MODEL]


@pytest.fixture(scope="module")
def preprocess():
    return load_tool("preprocess_data").main


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("workers", [1, 2])
def test_preprocessed_documents_equal_the_reference(tmp_path, preprocess, tokenizer, workers):
    reference = IndexedDataset(str(GOLDEN / "corpus_text_document"))
    texts = [tokenizer.detokenize(reference[i][:-1].tolist()) for i in range(100)]
    source = write_lines(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    flags = ["--input", source, "--output-prefix", str(tmp_path / "out"), "--append-eod"]
    preprocess([*flags, *SENTENCE_PIECE, "--workers", str(workers), "--log-interval", "50"])
    written = IndexedDataset(str(tmp_path / "out_text_document"))
    assert written.dtype == np.uint16
    assert written.document_indices.tolist() == list(range(101))
    end = int(reference.sequence_lengths[:100].sum()) * 2
    original = (GOLDEN / "corpus_text_document.bin").read_bytes()[:end]
    assert (tmp_path / "out_text_document.bin").read_bytes() == original


def test_keys_sentences_and_empty_documents(tmp_path, preprocess):
    lines = [{"a": "1 2", "b": ["3", "4 5"]}, {"a": "6", "b": []}]
    source = write_lines(tmp_path / "in.jsonl", lines)
    flags = ["--input", source, "--output-prefix", str(tmp_path / "out"), "--json-keys", "a", "b"]
    preprocess([*flags, "--tokenizer-type", "NullTokenizer", "--vocab-size", "9", "--append-eod"])
    first = IndexedDataset(str(tmp_path / "out_a_document"))
    second = IndexedDataset(str(tmp_path / "out_b_document"))
    assert [ids.tolist() for ids in first[:]] == [[1, 2, 9], [6, 9]]
    assert [ids.tolist() for ids in second[:]] == [[3], [4, 5, 9]]
    assert second.document_indices.tolist() == [0, 2, 2]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", "line 2 is not JSON"),
        (b"\xff\xfe", "line 2 is not JSON in UTF-8"),
        (b"[1]", "line 2 is a JSON list"),
        (b'{"body": "x"}', r"line 2 has no key 'text', only \['body'\]; set --json-keys"),
        (b'{"text": 5}', "line 2 holds no text under 'text'"),
        (b'{"text": "word"}', "reads numbers"),
    ],
)
def test_bad_lines_are_named_and_leave_no_file(tmp_path, preprocess, workers, line, message):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "1"}\n' + line + b"\n")
    flags = ["--input", str(source), "--output-prefix", str(tmp_path / "out"), "--workers", workers]
    with pytest.raises(SystemExit) as caught:
        preprocess([*flags, "--tokenizer-type", "NullTokenizer", "--vocab-size", "9"])
    assert re.search(f"in.jsonl: .*{message}", str(caught.value))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "no/such.jsonl", *SENTENCE_PIECE], "No such file"),
        (["--input", MODEL, "--tokenizer-type", "Llama2Tokenizer"], "set --tokenizer-model"),
    ],
)
def test_missing_input_is_one_line(tmp_path, preprocess, flags, message):
    with pytest.raises(SystemExit, match=message):
        preprocess([*flags, "--output-prefix", str(tmp_path / "out")])


def test_an_empty_input_leaves_no_file(tmp_path, preprocess):
    (tmp_path / "in.jsonl").write_text("")
    flags = ["--input", str(tmp_path / "in.jsonl"), "--output-prefix", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="no token was added"):
        preprocess([*flags, *SENTENCE_PIECE])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "flags", [["--workers", "0"], ["--log-interval", "0"], ["--json-keys", "a", "a"]]
)
def test_bad_flags_are_refused(preprocess, flags):
    with pytest.raises(SystemExit, match="2"):
        preprocess(["--input", "x", "--output-prefix", "y", *SENTENCE_PIECE, *flags])


# ---- the corpus that ships ----


def test_shipped_corpus_is_what_its_generator_writes(tmp_path, preprocess):
    tool = load_tool("make_tiny_corpus")
    tool.write_jsonl(tmp_path / "tiny.jsonl")
    flags = ["--input", str(tmp_path / "tiny.jsonl"), "--output-prefix", str(tmp_path / "tiny")]
    kind = ["--tokenizer-type", "SentencePieceTokenizer"]
    model = ["--tokenizer-model", str(TINY / "tok.model")]
    preprocess([*flags, *kind, *model, "--append-eod"])
    for suffix in (".bin", ".idx"):
        name = f"tiny_text_document{suffix}"
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes()


def test_shipped_tokenizer_fits_a_multiple_of_128():
    shipped = build_tokenizer("SentencePieceTokenizer", tokenizer_model=str(TINY / "tok.model"))
    assert shipped.vocab_size == 512
    text = next(load_tool("make_tiny_corpus").texts())
    assert shipped.detokenize(shipped.tokenize(text)) == text


def test_generator_trains_a_tokenizer(tmp_path):
    load_tool("make_tiny_corpus").main([str(tmp_path / "new")])
    trained = SentencePieceTokenizer(str(tmp_path / "new" / "tok.model"))
    assert trained.vocab_size == 512
