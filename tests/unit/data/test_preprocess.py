# SPDX-License-Identifier: Apache-2.0
"""The preprocessor writes Megatron's bytes; the corpus that ships is what its generator writes."""

import gzip
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.data.builder import build_train_valid_test_datasets
from mindspeed_ms.data.gpt_dataset import GPTDatasetConfig
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.tokenizers import SentencePieceTokenizer, build_tokenizer, corpus

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "data" / "golden"
MODEL = str(GOLDEN / "tok.model")
TINY = ROOT / "data" / "tiny"


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # worker processes receive its functions by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer(MODEL)


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


@pytest.mark.parametrize("partitions", ["1", "2"])
def test_a_key_without_any_text_costs_nothing_but_a_line(tmp_path, preprocess, caplog, partitions):
    source = write_lines(tmp_path / "in.jsonl", [{"a": "1 2", "b": []}, {"a": "6", "b": []}])
    flags = ["--input", source, "--output-prefix", str(tmp_path / "out"), "--json-keys", "a", "b"]
    null = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "9"]
    preprocess([*flags, *null, "--partitions", partitions, "--append-eod"])
    assert [ids.tolist() for ids in IndexedDataset(str(tmp_path / "out_a_document"))[:]]
    assert "key 'b' has no text in any document" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.jsonl",
        "out_a_document.bin",
        "out_a_document.idx",
    }


def _eosless(tmp_path):
    """A Hugging Face tokenizer that names no token to end documents with."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a cat and a hat"] * 9, trainer)
    (tmp_path / "tok").mkdir()
    tokenizer.save(str(tmp_path / "tok" / "tokenizer.json"))
    return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tmp_path / "tok")]


def test_a_tokenizer_without_eos_is_refused_where_eos_is_used(tmp_path, preprocess, refused):
    source = write_lines(tmp_path / "in.jsonl", [{"text": "a cat and a hat " * 9}])
    flags = ["--input", source, "--output-prefix", str(tmp_path / "out"), *_eosless(tmp_path)]
    assert "names no eos_token, which ends documents" in refused(
        preprocess, [*flags, "--append-eod"]
    )
    preprocess(flags)
    prefix = str(tmp_path / "out_text_document")
    tokenizer = build_tokenizer("HuggingFaceTokenizer", tokenizer_model=str(tmp_path / "tok"))

    def dataset(**options):
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=4,
            tokenizer=tokenizer,
            blend=([prefix], None),
            split="1",
            **options,
        )
        return build_train_valid_test_datasets(config, (2, None, None))[0]

    assert dataset()[0]["tokens"].shape == (4,)
    for option in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss"):
        with pytest.raises(ValueError, match="names no eos_token"):
            dataset(**{option: True})


@pytest.mark.parametrize("damage", ["cut", "garbage", "endless", "pipe", "nested"])
def test_damaged_inputs_are_one_line(tmp_path, preprocess, refused, monkeypatch, damage):
    path = tmp_path / "in.jsonl.gz"
    packed = gzip.compress(b'{"text": "1"}\n' * 5000)
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "nested":
        path.write_bytes(gzip.compress(b"[" * 200_000 + b"\n"))
    elif damage == "endless":
        monkeypatch.setattr(corpus, "MAX_LINE_BYTES", 3 << 20)
        path.write_bytes(gzip.compress(b"x" * (8 << 20)))
    else:
        path.write_bytes(packed[:-20] if damage == "cut" else packed[:30] + b"\xff" * 40)
    flags = ["--input", str(path), "--output-prefix", str(tmp_path / "out")]
    null = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "9"]
    assert str(path) in refused(preprocess, [*flags, *null])
    assert [item.name for item in tmp_path.iterdir()] == ["in.jsonl.gz"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json", "line 2 of .*in.jsonl is not JSON"),
        (b"\xff\xfe", "line 2 of .*in.jsonl is not JSON in UTF-8"),
        (b"[1]", "line 2 of .*in.jsonl is a JSON list"),
        (b'{"body": "x"}', r"line 2 of .* has no key 'text', only \['body'\]; set --json-keys"),
        (b'{"text": 5}', "line 2 of .* holds no text under 'text'"),
        (b'{"text": "word"}', "reads numbers"),
    ],
)
def test_bad_lines_are_named_and_leave_no_file(
    tmp_path, preprocess, refused, workers, line, message
):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "1"}\n' + line + b"\n")
    flags = ["--input", str(source), "--output-prefix", str(tmp_path / "out"), "--workers", workers]
    null = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "9"]
    told = refused(preprocess, [*flags, *null])
    assert re.search(f"error: .*{message}", told) and "(ValueError" not in told
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "no/such.jsonl", *SENTENCE_PIECE], "no such file"),
        (["--input", MODEL, "--tokenizer-type", "Llama2Tokenizer"], "set --tokenizer-model"),
    ],
)
def test_missing_input_is_one_line(tmp_path, preprocess, refused, flags, message):
    assert message in refused(preprocess, [*flags, "--output-prefix", str(tmp_path / "out")])


def test_an_empty_input_leaves_no_file(tmp_path, preprocess, refused):
    (tmp_path / "in.jsonl").write_text("")
    flags = ["--input", str(tmp_path / "in.jsonl"), "--output-prefix", str(tmp_path / "out")]
    assert "no token was found" in refused(preprocess, [*flags, *SENTENCE_PIECE])
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    "flags",
    [["--workers", "0"], ["--log-interval", "0"], ["--json-keys", "a", "a"], ["--json-keys", ""]],
)
def test_bad_flags_are_refused(preprocess, refused, flags):
    words = ["--input", "x", "--output-prefix", "y", *SENTENCE_PIECE, *flags]
    assert flags[0] in refused(preprocess, words)


# ---- partitions, sentences, other inputs ----

NULL = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "999"]


def documents_of(prefix):
    dataset = IndexedDataset(str(prefix))
    bounds = dataset.document_indices.tolist()
    return [
        [dataset[i].tolist() for i in range(low, high)]
        for low, high in zip(bounds, bounds[1:], strict=False)
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("flags", "order"),
    [
        (["--partitions", "3"], [0, 3, 6, 1, 4, 2, 5]),
        (["--partitions", "3", "--keep-sequential-samples"], [0, 1, 2, 3, 4, 5, 6]),
        (["--partitions", "1"], [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_partitions_follow_one_another(tmp_path, preprocess, monkeypatch, workers, flags, order):
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 40)
    source = write_lines(tmp_path / "in.jsonl", [{"text": f"{i} {i}"} for i in range(7)])
    flags = [*flags, "--workers", workers]
    preprocess(["--input", source, "--output-prefix", str(tmp_path / "out"), *NULL, *flags])
    assert documents_of(tmp_path / "out_text_document") == [[[i, i]] for i in order]
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.jsonl",
        "out_text_document.bin",
        "out_text_document.idx",
    }


def test_compressed_files_and_patterns(tmp_path, preprocess):
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as stream:
        stream.write(b'{"text": "3"}\n{"text": "4"}')
    write_lines(tmp_path / "a.jsonl", [{"text": "1"}, {"text": "2"}])
    pattern = str(tmp_path / "?.jsonl*")
    preprocess(["--input", pattern, "--output-prefix", str(tmp_path / "out"), *NULL])
    assert documents_of(tmp_path / "out_text_document") == [[[i]] for i in (1, 2, 3, 4)]
    assert corpus.count_documents(str(tmp_path / "b.jsonl.gz")) == 2


def test_lines_across_blocks_are_whole(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(b"%d\n" % i for i in range(1000)) + b"end")
    chunks = list(corpus.read_chunks([str(path)], 64))
    assert b"".join(chunk.lines for chunk in chunks) == path.read_bytes()
    assert [chunk.first_line for chunk in chunks[:2]] == [1, 1 + chunks[0].lines.count(b"\n")]
    assert all(chunk.lines.endswith(b"\n") for chunk in chunks[:-1])


def test_many_short_documents_of_a_text_are_read_at_once(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("ab\n" * 50_000)
    started = time.process_time()
    chunks = list(corpus.read_chunks([str(path)], unit="line"))
    assert sum(chunk.lines.count(b"\n") for chunk in chunks) == 50_000
    assert time.process_time() - started < 3  # adding all sizes up for each takes longer


def test_a_text_that_cannot_be_encoded_is_named(tmp_path, preprocess, refused):
    (tmp_path / "in.jsonl").write_text('{"text": "\\ud800"}\n')
    flags = ["--input", str(tmp_path / "in.jsonl"), "--output-prefix", str(tmp_path / "out")]
    told = refused(preprocess, [*flags, *SENTENCE_PIECE])
    assert re.search("line 1 of .* cannot be encoded", told)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_ids_that_do_not_fit_the_vocabulary_are_refused(tmp_path, preprocess, refused):
    source = write_lines(tmp_path / "in.jsonl", [{"text": "70000"}])
    words = ["--input", source, "--output-prefix", str(tmp_path / "out"), *NULL]
    assert "70000 to 70000 do not fit the vocabulary of 1000" in refused(preprocess, words)


def test_sentences_become_sequences(tmp_path, preprocess, refused, monkeypatch):
    punkt = type("Punkt", (), {"PunktTokenizer": FakeSplitter, "PunktLanguageVars": object})
    monkeypatch.setattr(corpus.optional_libraries, "load", lambda *_: punkt)
    source = write_lines(tmp_path / "in.jsonl", [{"text": "1 2.3"}, {"text": "4"}])
    flags = ["--input", source, "--output-prefix", str(tmp_path / "out"), *NULL]
    preprocess([*flags, "--split-sentences", "--keep-newlines", "--append-eod"])
    assert documents_of(tmp_path / "out_text_sentence") == [[[1, 2], [3, 999]], [[4, 999]]]
    told = refused(preprocess, [*flags, "--split-sentences", "--lang", "klingon"])
    assert "nltk has no data to split 'klingon'" in told


class FakeSplitter:
    def __init__(self, language):
        if language != "english":
            raise LookupError(language)

    def tokenize(self, text):
        return text.split(".")


def test_progress_tells_speed_and_time_left(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * 100)
    progress = corpus.Progress([str(path)], 1, corpus.logging.getLogger("test"))
    progress.add(corpus.EncodedChunk({}, 3, 50, 50))
    assert re.fullmatch(
        r"Processed 3 documents \(.* docs/s, .* MB/s, 0 tokens/s, 0 s left\)\.", progress.line()
    )


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
