# SPDX-License-Identifier: Apache-2.0
"""Token files: byte-exact format, both reading modes, every kind of damage."""

import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_ms.data import token_check
from mindspeed_ms.data.indexed_dataset import (
    DType,
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from mindspeed_ms.data.token_check import check_token_ids

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
GOLDEN_PREFIX = str(GOLDEN / "corpus_text_document")
HEADER_SIZE = 34


def write(prefix, documents, dtype=np.uint16):
    """Write documents, each a list of sequences; return the prefix."""
    with IndexedDatasetBuilder(get_bin_path(str(prefix)), dtype) as builder:
        for document in documents:
            for sequence in document:
                builder.add_item(sequence)
            builder.end_document()
        builder.finalize(get_idx_path(str(prefix)))
    return str(prefix)


@pytest.fixture
def small(tmp_path):
    return write(tmp_path / "small", [[[1, 2, 3]], [[4], [5, 6]], [[7, 8]]])


# ---- format ----


def test_rewriting_the_reference_corpus_gives_the_same_bytes(tmp_path):
    reference = IndexedDataset(GOLDEN_PREFIX)
    prefix = write(tmp_path / "copy", [[sequence] for sequence in reference[:]])
    for path in (get_bin_path, get_idx_path):
        assert Path(path(prefix)).read_bytes() == Path(path(GOLDEN_PREFIX)).read_bytes()


def test_index_of_ten_documents_has_242_bytes(tmp_path):
    prefix = write(tmp_path / "ten", [[[number]] for number in range(10)])
    assert Path(get_idx_path(prefix)).stat().st_size == 242
    assert len(IndexedDataset(prefix).document_indices) == 11


def test_header_is_the_documented_one(small):
    data = Path(get_idx_path(small)).read_bytes()
    assert data[:HEADER_SIZE] == struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 8, 4, 4)
    assert np.frombuffer(data, "<i4", 4, 34).tolist() == [3, 1, 2, 2]
    assert np.frombuffer(data, "<i8", 4, 50).tolist() == [0, 6, 8, 12]
    assert np.frombuffer(data, "<i8", 4, 82).tolist() == [0, 1, 3, 4]


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.lists(st.integers(0, 120), max_size=9), max_size=3), min_size=1, max_size=8
    ),
    dtype=st.sampled_from([member.name for member in DType]),
)
def test_what_is_written_is_read(tmp_path_factory, documents, dtype):
    sequences = [sequence for document in documents for sequence in document]
    prefix = str(tmp_path_factory.mktemp("trip") / "data")
    if not any(sequences):
        with pytest.raises(ValueError, match="no token was added"):
            write(prefix, documents, dtype)
        return
    write(prefix, documents, dtype)
    for mmap in (True, False):
        dataset = IndexedDataset(prefix, mmap=mmap)
        assert len(dataset) == len(sequences)
        assert [dataset[i].tolist() for i in range(len(dataset))] == sequences
        assert dataset.dtype == np.dtype(dtype)
        assert dataset.sequence_lengths.tolist() == [len(sequence) for sequence in sequences]
        bounds = np.cumsum([0] + [len(document) for document in documents])
        assert dataset.document_indices.tolist() == bounds.tolist()


def test_add_document_equals_items_of_one_document(tmp_path):
    builder = IndexedDatasetBuilder(str(tmp_path / "b.bin"), np.uint16)
    builder.add_document([1, 2, 3], [1, 2])
    builder.add_document([], [])
    builder.finalize(str(tmp_path / "b.idx"))
    dataset = IndexedDataset(str(tmp_path / "b"))
    assert [sequence.tolist() for sequence in dataset[:]] == [[1], [2, 3]]
    assert dataset.document_indices.tolist() == [0, 2, 2]


def test_merged_datasets_equal_one_written_at_once(tmp_path):
    first, second = [[[1, 2]], [[3]]], [[[4, 5], [6]]]
    whole = write(tmp_path / "whole", first + second)
    builder = IndexedDatasetBuilder(str(tmp_path / "merged.bin"), np.uint16)
    builder.add_index(write(tmp_path / "first", first))
    builder.add_index(write(tmp_path / "second", second))
    builder.finalize(str(tmp_path / "merged.idx"))
    for path in (get_bin_path, get_idx_path):
        assert Path(path(str(tmp_path / "merged"))).read_bytes() == Path(path(whole)).read_bytes()


# ---- reading ----


@pytest.mark.parametrize("mmap", [True, False])
def test_parts_of_a_sequence(small, mmap):
    dataset = IndexedDataset(small, mmap=mmap)
    assert dataset.get(0, 1).tolist() == [2, 3]
    assert dataset.get(0, 1, 1).tolist() == [2]
    assert dataset.get(0, 3).tolist() == []
    assert [part.tolist() for part in dataset[1:3]] == [[4], [5, 6]]
    assert [tokens.tolist() for _, tokens in dataset.token_blocks(5)] == [
        [1, 2, 3, 4, 5],
        [6, 7, 8],
    ]
    assert pickle.loads(pickle.dumps(dataset))[3].tolist() == [7, 8]
    dataset.close()


@pytest.mark.parametrize("part", [(0, 2, 2), (0, -1, 1), (0, 4, None), (1, 0, -1)])
def test_a_part_outside_the_sequence_is_refused(small, part):
    with pytest.raises(ValueError, match="stay inside the sequence"):
        IndexedDataset(small).get(*part)


def test_a_slice_with_gaps_is_refused(small):
    with pytest.raises(ValueError, match="use a step of 1"):
        IndexedDataset(small)[::2]


def test_exists_needs_both_files(small):
    assert IndexedDataset.exists(small)
    Path(get_bin_path(small)).unlink()
    assert not IndexedDataset.exists(small)


# ---- damage ----


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file_is_named(small, suffix):
    Path(small + suffix).unlink()
    with pytest.raises(FileNotFoundError, match=rf"small\{suffix} not found.*pair"):
        IndexedDataset(small)


def test_a_prefix_with_suffix_gets_a_hint(small):
    with pytest.raises(FileNotFoundError, match="without .bin or .idx"):
        IndexedDataset(small + ".bin")


def change(path, offset, data):
    content = bytearray(Path(path).read_bytes())
    content[offset : offset + len(data)] = data
    Path(path).write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "data", "found"),
    [
        (0, b"TNTIDX\x00\x00\x00", "it starts with b'TNTIDX"),
        (9, struct.pack("<Q", 2), "its version is 2"),
        (17, b"\x63", "code 99 is unknown"),
        (18, struct.pack("<Q", 400), "truncated"),
        (18, struct.pack("<Q", 1), "longer than it says"),
        (82 + 24, struct.pack("<q", 3), "document index ends at 3, not at 4"),
        (34, struct.pack("<i", -3), "negative length"),
        (50 + 8, struct.pack("<q", 7), "no token boundary"),
        (34, struct.pack("<4i", 0, 0, 0, 0), "zero tokens"),
    ],
)
def test_a_damaged_index_is_refused(small, offset, data, found):
    change(get_idx_path(small), offset, data)
    with pytest.raises(ValueError, match=f"small.idx is not a usable index file: .*{found}.*again"):
        IndexedDataset(small)


@pytest.mark.parametrize("size", [0, 5, 20, HEADER_SIZE, 60, 113])
def test_a_truncated_index_is_refused(small, size):
    path = Path(get_idx_path(small))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="small.idx is not a usable index file"):
        IndexedDataset(small)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_truncated_bin_is_refused(small, size, mmap):
    path = Path(get_bin_path(small))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"small.bin has {size} bytes.*up to byte 16.*copy it"):
        IndexedDataset(small, mmap=mmap)


def test_a_bin_that_is_too_long_is_reported(small, caplog):
    with open(get_bin_path(small), "ab") as stream:
        stream.write(b"more")
    IndexedDataset(small)
    assert "4 bytes after its last token" in caplog.text


def test_an_index_with_modes_is_readable(small):
    with open(get_idx_path(small), "ab") as stream:
        stream.write(bytes(4))
    assert IndexedDataset(small)[3].tolist() == [7, 8]


def test_a_file_cut_while_open_is_reported(small):
    dataset = IndexedDataset(small, mmap=False)
    Path(get_bin_path(small)).write_bytes(b"")
    with pytest.raises(ValueError, match="has 0 bytes and had 16 when it was opened"):
        dataset[0]


# ---- writing ----


def test_nothing_appears_before_finalize_and_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), IndexedDatasetBuilder(str(tmp_path / "x.bin")) as builder:
        builder.add_item([1])
        assert not (tmp_path / "x.bin").exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_old_dataset_is_replaced_as_a_whole(small):
    write(small, [[[9]]])
    assert [sequence.tolist() for sequence in IndexedDataset(small)[:]] == [[9]]


@pytest.mark.parametrize("tokens", [[65536], [-1]])
def test_ids_that_do_not_fit_the_type_are_refused(tmp_path, tokens):
    with IndexedDatasetBuilder(str(tmp_path / "x.bin"), np.uint16) as builder:
        with pytest.raises(ValueError, match="do not fit uint16"):
            builder.add_item(tokens)


def test_lengths_must_cover_the_document(tmp_path):
    with IndexedDatasetBuilder(str(tmp_path / "x.bin")) as builder:
        with pytest.raises(ValueError, match="lengths add up to 3, the document has 2"):
            builder.add_document([1, 2], [3])


def test_datasets_of_other_types_are_not_merged(small, tmp_path):
    with IndexedDatasetBuilder(str(tmp_path / "x.bin"), np.int32) as builder:
        with pytest.raises(ValueError, match="stores uint16, this dataset int32"):
            builder.add_index(small)


# ---- types ----


def test_type_codes_round_trip():
    for member in DType:
        assert DType.code_from_dtype(member.name) == member.value
        assert DType.dtype_from_code(member.value) == np.dtype(member.name)
        assert DType.size(member.value) == DType.size(member.name) == np.dtype(member.name).itemsize
    assert DType.optimal_dtype(65499) is np.uint16
    assert DType.optimal_dtype(65500) is DType.optimal_dtype(None) is np.int32


def test_unknown_types_are_refused():
    with pytest.raises(ValueError, match="float16 has no code"):
        DType.code_from_dtype(np.float16)
    with pytest.raises(ValueError, match="code 9 is unknown"):
        DType.dtype_from_code(9)


# ---- ids beyond the vocabulary ----


@pytest.mark.parametrize("mmap", [True, False])
def test_an_id_beyond_the_vocabulary_is_named_with_its_document(tmp_path, mmap):
    dataset = IndexedDataset(write(tmp_path / "x", [[[1, 2]], [[3], [4, 9]], [[5]]]), mmap=mmap)
    check_token_ids(dataset, 10)
    with pytest.raises(ValueError, match=r"document 1 of .*x holds token id 9.*has 9 ids \(0 to 8"):
        check_token_ids(dataset, 9)


def test_a_negative_id_is_named(tmp_path):
    dataset = IndexedDataset(write(tmp_path / "x", [[[1]], [[-4]]], np.int32))
    with pytest.raises(ValueError, match="document 1 .* token id -4"):
        check_token_ids(dataset, 9)


def test_tokens_that_are_no_integers_are_refused(tmp_path):
    dataset = IndexedDataset(write(tmp_path / "x", [[[1]]], np.float32))
    with pytest.raises(ValueError, match="stores float32"):
        check_token_ids(dataset, 9)


def test_a_large_file_is_checked_in_places_all_over_it(tmp_path, monkeypatch):
    tokens = np.ones(1000, np.int32)
    monkeypatch.setattr(token_check, "WHOLE_FILE_BELOW", 20)
    monkeypatch.setattr(token_check, "_BLOCK", 10)
    monkeypatch.setattr(token_check, "SAMPLE_BYTES", 10 * 10 * 4)
    found = []
    for place in range(5, 1000, 10):
        tokens[place] = 9
        dataset = IndexedDataset(write(tmp_path / "x", [[tokens.tolist()]], np.int32))
        try:
            check_token_ids(dataset, 9)
        except ValueError:
            found.append(place // 10)
        tokens[place] = 1
    assert found == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]


@pytest.mark.parametrize("mmap", [True, False])
def test_what_changes_while_it_is_read_is_one_line(tmp_path, caplog, mmap):
    prefix = write(tmp_path / "x", [[list(range(5000))], [list(range(3000))]], np.int32)
    dataset = IndexedDataset(prefix, mmap=mmap)
    assert dataset[1][-1] == 2999
    path = Path(get_bin_path(prefix))
    data = path.read_bytes()
    with open(path, "r+b") as stream:
        stream.write(b"\x01")
    os.utime(path, ns=(1, 1))
    dataset[0], dataset[1]
    assert caplog.text.count("was changed after it was opened") == 1
    os.truncate(path, 100)
    with pytest.raises(ValueError, match="has 100 bytes and had 32000 when it was opened"):
        dataset[1]
    path.write_bytes(data)
    IndexedDataset(prefix)[1]


def _idx(lengths, pointers, boundaries, code=4):
    head = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(lengths), len(boundaries))
    parts = zip((lengths, pointers, boundaries), ("<i4", "<i8", "<i8"), strict=True)
    return head + b"".join(np.array(values, dtype).tobytes() for values, dtype in parts)


@pytest.mark.parametrize(
    ("lengths", "pointers", "boundaries", "message"),
    [
        ([2, 2], [0, 4], [0, 1, 2], "sequences 0 and 1 lie over each other"),
        ([2, 2], [0, 0], [0, 1, 2], "sequences 0 and 1 lie over each other"),
        ([2, 0, 2], [8, 0, 4], [0, 3], "sequences 2 and 0 lie over each other"),
        ([2, 2], [0, 8], [0, 2, 1, 2], "document index goes back"),
        ([2, 2], [0, 8], [1, 2], "begins at 1, not at 0"),
        ([2, 2], [0, 8], [-3, 2], "begins at -3, not at 0"),
        ([2, 2], [0, 8], [0, 5, 2], "document index goes back"),
        ([2, -2], [0, 8], [0, 2], "negative length"),
        ([2, 2], [0, 6], [0, 2], "no token boundary"),
        ([2, 2], [0, 1 << 62], [0, 2], "places tokens up to byte"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(
    tmp_path, lengths, pointers, boundaries, message
):
    (tmp_path / "x.bin").write_bytes(bytes(16))
    (tmp_path / "x.idx").write_bytes(_idx(lengths, pointers, boundaries))
    with pytest.raises(ValueError, match=message):
        IndexedDataset(str(tmp_path / "x"))


def test_sequences_may_lie_in_any_order(tmp_path):
    (tmp_path / "x.bin").write_bytes(np.arange(6, dtype=np.int32).tobytes())
    (tmp_path / "x.idx").write_bytes(_idx([2, 0, 3], [16, 0, 0], [0, 2, 3]))
    dataset = IndexedDataset(str(tmp_path / "x"))
    assert not dataset.is_dense
    assert dataset.tokens(1, 3).tolist() == [5, 0, 1]
    with pytest.raises(ValueError, match="document 0 of .* token id 5"):
        check_token_ids(dataset, 5)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=6), st.booleans())
def test_any_index_is_read_or_refused_in_one_line(tmp_path, changes, mmap):
    data = bytearray(_idx([2, 1, 1], [0, 8, 12], [0, 1, 3]))
    for place, value in changes:
        data[place % len(data)] = value
    (tmp_path / "x.bin").write_bytes(bytes(16))
    (tmp_path / "x.idx").write_bytes(data)
    try:
        dataset = IndexedDataset(str(tmp_path / "x"), mmap=mmap)
        for number in range(len(dataset)):
            assert len(dataset[number]) == dataset.sequence_lengths[number]
        dataset.close()
    except (ValueError, OSError) as error:
        assert "\n" not in str(error)


def test_pipes_are_no_datasets(tmp_path):
    write(tmp_path / "x", [[[1]]])
    for name in ("x.bin", "x.idx"):
        (tmp_path / name).rename(tmp_path / "aside")
        os.mkfifo(tmp_path / name)
        with pytest.raises((ValueError, FileNotFoundError)):
            IndexedDataset(str(tmp_path / "x"))
        (tmp_path / name).unlink()
        (tmp_path / "aside").rename(tmp_path / name)


def test_reference_corpus_lies_in_its_vocabulary(tmp_path):
    shutil.copy(GOLDEN_PREFIX + ".bin", tmp_path)
    shutil.copy(GOLDEN_PREFIX + ".idx", tmp_path)
    dataset = IndexedDataset(str(tmp_path / "corpus_text_document"))
    check_token_ids(dataset, 503)
    with pytest.raises(ValueError, match="token id 502"):
        check_token_ids(dataset, 502)
