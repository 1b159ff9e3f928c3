# SPDX-License-Identifier: Apache-2.0
"""Joining datasets and looking into them."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms.data.indexed_dataset import (
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)

TOOLS = Path(__file__).parents[3] / "tools"


def load_main(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def merge():
    return load_main("merge_datasets")


@pytest.fixture(scope="module")
def inspect():
    return load_main("inspect_dataset")


def write(prefix, documents, dtype=np.uint16):
    with IndexedDatasetBuilder(get_bin_path(str(prefix)), dtype) as builder:
        for sequences in documents:
            builder.add_document(sum(sequences, []), [len(one) for one in sequences])
        builder.finalize(get_idx_path(str(prefix)))


FIRST = [[[1, 2, 3], [4]], [], [[5]]]
SECOND = [[[6, 7]]]


def test_merged_files_equal_those_written_in_one_go(tmp_path, merge):
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "b", SECOND)
    write(parts / "a", FIRST)
    (parts / "readme.txt").write_text("no dataset")
    merge(["--input", str(parts), "--output-prefix", str(tmp_path / "whole")])
    write(tmp_path / "direct", FIRST + SECOND)
    for suffix in (".bin", ".idx"):
        merged = (tmp_path / f"whole{suffix}").read_bytes()
        assert merged == (tmp_path / f"direct{suffix}").read_bytes()


def test_bad_inputs_end_with_one_line_and_leave_nothing(tmp_path, merge, refused):
    def fails(directory, message, output="whole"):
        words = ["--input", str(directory), "--output-prefix", str(tmp_path / output)]
        assert re.search(message, refused(merge, words))
        assert not list(tmp_path.glob("whole*"))

    fails(tmp_path / "none", "is not a folder")
    parts = tmp_path / "parts"
    parts.mkdir()
    fails(parts, "holds no .bin and .idx")
    write(parts / "a", FIRST)
    write(parts / "b", SECOND, np.int32)
    fails(parts, "int32|uint16")
    (parts / "b.idx").unlink()
    fails(parts, "has no b.idx")
    (parts / "b.bin").unlink()
    fails(parts, "is one of the inputs", "parts/a")
    with open(parts / "a.bin", "ab") as stream:
        stream.write(b"xx")
    fails(parts, "do not lie one behind the other")


def test_many_documents_at_once_must_add_up(tmp_path):
    with IndexedDatasetBuilder(str(tmp_path / "x.bin"), np.uint16) as builder:
        with pytest.raises(ValueError, match="numbers that add up"):
            builder.add_documents(np.zeros(3, np.uint16), np.array([1, 1], np.int32), np.array([2]))
        with pytest.raises(ValueError, match="give uint16 tokens"):
            builder.add_documents(np.zeros(1, np.int32), np.array([1], np.int32), np.array([1]))


def test_a_dataset_is_described(tmp_path, inspect, capsys):
    write(tmp_path / "data", [*FIRST, [[]]])
    flags = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "9", "--max-tokens", "2"]
    inspect([str(tmp_path / "data"), "--samples", "2", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "documents          4"
    assert lines[1] == "sequences          4, 1 of them empty"
    assert lines[2] == "tokens             5 of type uint16"
    assert lines[3] == "token ids          1 to 5"
    assert "0 to 3, mean 1.2" in lines[5]
    assert "sequence 0: 1 2 ... (3 in all)" in lines
    assert "  '1 2'" in lines
    inspect([str(tmp_path / "data"), "--sequence", "1"])
    assert capsys.readouterr().out.splitlines()[-1] == "sequence 1: 4"


def test_what_cannot_be_inspected_is_one_line(tmp_path, inspect, refused):
    assert "not found" in refused(inspect, [str(tmp_path / "none")])
    write(tmp_path / "data", FIRST)
    told = refused(inspect, [str(tmp_path / "data"), "--sequence", "7"])
    assert "sequence 7 does not exist; there are 0 to 2" in told
    assert "--samples" in refused(inspect, [str(tmp_path / "data"), "--samples", "-1"])


def test_floats_are_described_without_ids(tmp_path, inspect, capsys):
    write(tmp_path / "data", [[[1.5, 2.5]]], np.float32)
    inspect([str(tmp_path / "data"), "--samples", "0"])
    assert "token ids" not in capsys.readouterr().out
    assert IndexedDataset(str(tmp_path / "data")).dtype == np.float32
