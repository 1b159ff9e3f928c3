# SPDX-License-Identifier: Apache-2.0
"""The shipped corpus: its tokens are those of its texts; the tool makes it from a package."""

import io
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.data.indexed_dataset import IndexedDataset
from mindspeed_ms.data.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from tools import make_austen_corpus as tool

AUSTEN = Path(__file__).resolve().parents[3] / "data" / "austen"


def test_the_tokens_are_those_of_the_texts():
    tokenizer = SentencePieceTokenizer(str(AUSTEN / "tok.model"))
    tokens = IndexedDataset(str(AUSTEN / "austen_text_document"))
    texts = [(AUSTEN / "text" / f"{name}.txt").read_text("utf-8") for name in tool.BOOKS.values()]
    found = [chapter for text in texts for chapter in tool.chapters(text)]
    assert len(tokens) == len(found) == 135 and tokenizer.vocab_size == 2048
    assert int(np.sum(tokens.sequence_lengths)) == 490961
    for number in (0, 60, 61, 134):
        ids = tokenizer.tokenize(found[number])
        assert np.array_equal(tokens[number], [*ids, tokenizer.eod])
        assert tokenizer.detokenize(ids) == found[number]


def _r_strings(lines):
    """R's binary stream of a vector of strings, version 3."""
    stream = b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8"
    stream += struct.pack(">ii", 16, len(lines))
    for line in lines:
        stream += struct.pack(">ii", 0x40009, len(line.encode())) + line.encode()
    return stream


def _package(path, novels, inside=tool.DATABASE):
    database = b"".join(
        struct.pack(">I", len(stream)) + zlib.compress(stream) for stream in map(_r_strings, novels)
    )
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w:xz") as archive:
        member = tarfile.TarInfo(inside)
        member.size = len(database)
        archive.addfile(member, io.BytesIO(database))
    content = b"!<arch>\n"
    for name, data in (("debian-binary", b"2.0\n"), ("data.tar.xz", files.getvalue())):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(data):<10}`\n".encode()
        content += data + b"\n" * (len(data) % 2)
    path.write_bytes(content)
    return path


def test_a_package_becomes_texts_and_tokens(tmp_path):
    novels = [
        ["EMMA", "", "CHAPTER I", "", "left out"],
        *([title, "", "Chapter 1", "", "One,", "two —", "", "", "Three."] for title in tool.BOOKS),
    ]
    output = tmp_path / "out"
    output.mkdir()
    shutil.copy(AUSTEN / "tok.model", output)
    tool.main([str(_package(tmp_path / "novels.deb", novels)), str(output)])
    assert sorted(path.name for path in (output / "text").iterdir()) == [
        *("persuasion.txt", "pride_and_prejudice.txt", "sense_and_sensibility.txt")
    ]
    text = (output / "text" / "persuasion.txt").read_text("utf-8")
    assert text == "PERSUASION\nChapter 1\nOne, two —\nThree.\n"
    tokens = IndexedDataset(str(output / "austen_text_document"))
    assert len(tokens) == 3 and np.array_equal(tokens[0], tokens[2])


def test_the_tokenizer_made_anew_keeps_newlines(tmp_path):
    text = "".join(path.read_text("utf-8") for path in sorted((AUSTEN / "text").iterdir()))
    (tmp_path / "tok.model").write_bytes(tool.train_tokenizer(text[:400_000]))
    tokenizer = SentencePieceTokenizer(str(tmp_path / "tok.model"))
    assert tokenizer.detokenize(tokenizer.tokenize(text[:5000])) == text[:5000]


@pytest.mark.parametrize("case", ["no_package", "other", "absent", "numbers"])
def test_a_wrong_file_is_one_line(tmp_path, refused, case):
    path = tmp_path / "some.deb"
    if case == "no_package":
        path.write_bytes(b"PK\x03\x04")
    elif case != "absent":
        _package(path, [["EMMA"]], "./usr/share/else" if case == "other" else tool.DATABASE)
    if case == "numbers":
        with pytest.raises(ValueError, match="R's type 13"):
            tool.strings(b"X\n" + struct.pack(">iiiii", 2, 0, 0, 13, 0))
        return
    assert "error: " in refused(tool.main, [str(path), str(tmp_path / "out")])
