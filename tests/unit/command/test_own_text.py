# SPDX-License-Identifier: Apache-2.0
"""Own text: files of every kind become tokens, and a tokenizer that loses none of it."""

import gzip
import json
import random
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from mindspeed_ms.command import plot, preprocess, tokenizer
from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.tokenizers import text_sources
from mindspeed_ms.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

WORDS = "the sea a ship sails under heavy clouds and nobody sees its small red light".split()


def text(paragraphs, seed=0):
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=12)) + ".\n\tindented  twice" for _ in range(paragraphs)]
    return "\n\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "a.txt").write_text(text(300), encoding="utf-8")
    words = ["train", "--input", str(folder / "a.txt"), "--output", str(folder / "my.model")]
    assert tokenizer.main([*words, "--vocab-size", "400"]) == 0
    return folder / "my.model"


def made(folder, model, *sources, **flags):
    """Texts of the documents that preprocessing made of some sources."""
    words = ["--input", *map(str, sources), "--output-prefix", str(folder / "out"), "--append-eod"]
    for name, value in flags.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    of = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(model)]
    assert preprocess.main([*words, *of]) == 0
    own = SentencePieceTokenizer(str(model))
    dataset = IndexedDataset(str(folder / f"out_{flags.get('json_keys', 'text')}_document"))
    bounds = dataset.document_indices
    documents = []
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        ids = [int(one) for index in range(first, last) for one in dataset[index]]
        assert ids[-1] == own.eod and own.eod not in ids[:-1]
        documents.append(own.detokenize(ids[:-1]))
    return documents


# --- tokenizer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "original",
    [
        "one\ntwo\n\n\nthree\n",
        "  leading and   many    blanks \t\ttabs ",
        "Käse 日本語 🚢 \r\n windows",
        "",
        "x",
        "\n",
    ],
)
def test_every_text_comes_back(original, model):
    own = SentencePieceTokenizer(str(model))
    assert own.detokenize(own.tokenize(original)) == original


def test_training_says_how_to_use_it(tmp_path, capsys, refused):
    (tmp_path / "a.txt").write_text(text(200), encoding="utf-8")
    words = ["train", "--input", str(tmp_path), "--output", str(tmp_path / "m" / "my.model")]
    assert tokenizer.main([*words, "--vocab-size", "350"]) == 0
    told = capsys.readouterr().out
    assert "350 tokens" in told and "characters per token" in told and "WARNING" not in told
    assert "--tokenizer-type SentencePieceTokenizer --tokenizer-model" in told
    assert "exists" in refused(tokenizer.main, words)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(90000, "give at most "), (20, "give more than "), (400, "no text"), (-5, "give more than 5")],
)
def test_a_size_that_does_not_fit_is_one_line(size, expected, tmp_path, refused):
    (tmp_path / "a.txt").write_text(text(50) if size != 400 else " \n\n", encoding="utf-8")
    words = ["train", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "my.model")]
    error = refused(tokenizer.main, [*words, "--vocab-size", str(size)])
    assert expected in error and not list(tmp_path.glob("*my.model*"))
    if size in (20, 90000):
        bound = error.split()[-1]
        fits = int(bound) + (1 if size == 20 else 0)
        assert tokenizer.main([*words, "--vocab-size", str(fits)]) == 0


def test_a_byte_level_tokenizer(tmp_path, capsys, refused):
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": text(100)}) + "\n", encoding="utf-8")
    words = ["train", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "bpe")]
    words += ["--kind", "bpe", "--force"]
    told = refused(tokenizer.main, [*words, "--vocab-size", "400"])
    assert told.endswith("a.jsonl has no key 'text', only ['body']; set --json-keys")
    words += ["--json-keys", "body"]
    for size in ("256", "-5"):
        assert "give 257 or more" in refused(tokenizer.main, [*words, "--vocab-size", size])
    assert tokenizer.main([*words, "--vocab-size", "400"]) == 0
    told = capsys.readouterr().out
    assert "--tokenizer-type GPT2BPETokenizer --vocab-file" in told and "WARNING" not in told


# --- sources --------------------------------------------------------------------------------------


def test_a_folder_of_every_kind_keeps_its_text(tmp_path, model):
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    parts = [text(3, seed) for seed in range(7)]
    (folder / "a.txt").write_text(parts[0], encoding="utf-8")
    (folder / "b.md").write_bytes(b"\xef\xbb\xbf" + parts[1].encode())
    (folder / "c.jsonl").write_text(json.dumps({"text": parts[2]}) + "\n", encoding="utf-8")
    table = pyarrow.table({"text": parts[3:5], "id": [1, 2]})
    pyarrow.parquet.write_table(table, folder / "d.parquet")
    with gzip.open(folder / "more" / "e.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write(parts[5])
    (folder / "more" / "picture.png").write_bytes(b"\x89PNG")
    (folder / "z.txt").write_text(json.dumps({"text": parts[6]}) + "\n", encoding="utf-8")
    assert made(tmp_path, model, folder) == parts
    assert made(tmp_path, model, folder, workers=2) == parts
    assert made(tmp_path, model, folder / "a.txt", folder / "*.parquet") == [parts[0], *parts[3:5]]


def test_a_saved_dataset_is_read(tmp_path, model):
    """The files of ``datasets.Dataset.save_to_disk``, and of a ``DatasetDict``."""
    whole, parts = tmp_path / "saved", [text(2, seed) for seed in range(4)]
    for name, rows in (("train", parts[:3]), ("test", parts[3:])):
        (whole / name).mkdir(parents=True)
        table = pyarrow.table({"text": rows})
        path = whole / name / "data-00000-of-00001.arrow"
        with pyarrow.ipc.new_stream(path, table.schema) as out:
            out.write_table(table)
        state = {"_data_files": [{"filename": path.name}]}
        (whole / name / "state.json").write_text(json.dumps(state))
        (whole / name / "dataset_info.json").write_text("{}")
    (whole / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert made(tmp_path, model, whole / "train") == parts[:3]
    assert made(tmp_path, model, whole) == [parts[3], *parts[:3]]


@pytest.mark.parametrize(("unit", "mark"), [("paragraph", "\n\n"), ("line", "\n")])
def test_a_text_may_hold_many_documents(unit, mark, tmp_path, model):
    content = text(20)
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    expected = [part for part in content.strip("\n").split(mark) if part.strip()]
    assert made(tmp_path, model, tmp_path / "a.txt", documents=unit) == expected


def test_a_long_text_is_one_document_of_several_sequences(tmp_path, model, monkeypatch):
    monkeypatch.setattr(text_sources, "PIECE", 200)
    monkeypatch.setattr(text_sources, "_BLOCK", 333)
    content = text(60) + "é" * 500
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    assert made(tmp_path, model, tmp_path / "a.txt") == [content]
    dataset = IndexedDataset(str(tmp_path / "out_text_document"))
    assert len(dataset) > 10 and len(dataset.document_indices) == 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"ok \xff\xfe", "is not UTF-8 text"),
        ("a.txt", b" \n \n", "no token was found"),
        ("a.parquet", b"PAR1 no", "is damaged or no such table"),
        ("a.arrow", b"nothing", "is damaged or no such table"),
        ("a.txt.gz", gzip.compress(b"abc" * 99)[:-9], "cut off or damaged"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(name, content, expected, tmp_path, model, refused):
    (tmp_path / name).write_bytes(content)
    assert expected in refused(made, tmp_path, model, tmp_path / name)
    assert not list(tmp_path.glob("out*"))
    if expected != "no token was found":
        words = ["train", "--input", str(tmp_path / name), "--output", str(tmp_path / "my.model")]
        told = refused(tokenizer.main, words)
        assert f"{tmp_path / name} " in told and expected in told and "sentencepiece" not in told


def test_columns_are_named(tmp_path, model, refused):
    path = tmp_path / "d.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a ship"], "id": [1]}), path)
    assert "no column 'text', only ['body', 'id']" in refused(made, tmp_path, model, path)
    assert made(tmp_path, model, path, json_keys="body") == ["a ship"]
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a ship", None]}), path)
    assert f"line 2 of {path} holds no text" in refused(made, tmp_path, model, path)


def test_an_empty_folder_is_told(tmp_path, model, refused):
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    (tmp_path / "empty" / ".hidden" / "a.txt").write_text("a ship")
    assert "holds no file that ends in" in refused(made, tmp_path, model, tmp_path / "empty")


def test_what_is_hidden_or_no_text_is_left_out_with_a_line(tmp_path, model, caplog):
    folder = tmp_path / "texts"
    for name in ("a.txt", "sub/.cache/b.txt", ".c.txt", "sub/d.png", "sub/deep/e.txt", "README"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"a ship {name[0]}", encoding="utf-8")
    (folder / "sub" / "again").symlink_to(folder)
    assert made(tmp_path, model, folder) == ["a ship a", "a ship s"]
    (line,) = [record.message for record in caplog.records if "left out" in record.message]
    assert line.endswith(
        f"2 hidden ({folder}/.c.txt); 1 links to folders read already ({folder}/sub/again); "
        "2 that hold no text by their ending (1 .png, 1 without)"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tokenizer_is_built_once_and_texts_are_read_once(tmp_path, model, monkeypatch, workers):
    counts = Counter()

    def counted(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, **kw: counts.update([name]) or original(*args, **kw)
        )

    counted(preprocess, "build_tokenizer")
    counted(text_sources, "_pieces")
    (tmp_path / "a.txt").write_text(text(20), encoding="utf-8")
    assert made(tmp_path, model, tmp_path / "a.txt", workers=workers) == [text(20)]
    assert counts == {"build_tokenizer": 1, "_pieces": 1}


# --- what preprocessing says ----------------------------------------------------------------------


def test_figures_and_no_warning_for_a_tokenizer_that_keeps_text(tmp_path, model, caplog):
    (tmp_path / "a.txt").write_text(text(20), encoding="utf-8")
    with caplog.at_level("INFO"):
        made(tmp_path, model, tmp_path / "a.txt")
    (line,) = [record.message for record in caplog.records if record.message.startswith("wrote")]
    tokens = int(line.split("documents, ")[1].split()[0])
    assert line.startswith("wrote 1 documents, ") and line.endswith(
        f"{len(text(20)) / tokens:.2f} characters per token"
    )
    assert "WARNING" not in caplog.text


def test_a_tokenizer_that_loses_newlines_is_told(tmp_path, caplog, golden_model):
    content = "one two\n\nthree"
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    words = ["--input", str(tmp_path / "a.txt"), "--output-prefix", str(tmp_path / "out")]
    of = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", golden_model]
    with caplog.at_level("INFO"):
        assert preprocess.main([*words, *of]) == 0
    assert "1 of 1 texts do not come back" in caplog.text and "2 newlines" in caplog.text


@pytest.fixture
def golden_model(request):
    return str(request.config.rootpath / "tests" / "data" / "golden" / "tok.model")


# --- curve ----------------------------------------------------------------------------------------

LINE = (
    " [2026-01-01 00:00:00] iteration        {0}/     100 | consumed samples:           16 | "
    "learning rate: 5.000000E-04 | lm loss: {1:E} | grad norm: 2.318 | \n"
)


def test_a_log_is_drawn(tmp_path, refused):
    log = tmp_path / "megatron.log"
    log.write_text("noise\n" + "".join(LINE.format(step, 6 - step) for step in (1, 2, 3)))
    assert plot.curves_of(log)["lm loss"] == {1: 5.0, 2: 4.0, 3: 3.0}
    assert plot.main([str(log)]) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    told = refused(plot.main, [str(log), "--output", "curve.loss"])
    assert "curve.loss has no ending of a picture; give one of" in told and "png" in told
    told = refused(plot.main, [str(log), "--y", "nothing"])
    assert "has no 'nothing'; it has consumed samples, grad norm" in told


def test_nothing_to_draw_is_one_line(tmp_path, refused):
    (tmp_path / "empty.log").write_text("nothing here\n")
    for path in (tmp_path / "empty.log", tmp_path, tmp_path / "none"):
        assert str(path) in refused(plot.main, [str(path)])
