# SPDX-License-Identifier: Apache-2.0
"""Samples equal Megatron's: index arrays, cache files, items and masks."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_ms.data import gpt_indices
from mindspeed_ms.data.gpt_dataset import GPTDataset, GPTDatasetConfig, TokenizerInfo
from mindspeed_ms.data.gpt_indices import build_gpt_indices, build_sample_index
from mindspeed_ms.data.indexed_dataset import (
    IndexedDataset,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)
from mindspeed_ms.data.masks import get_ltor_masks_and_position_ids
from mindspeed_ms.data.utils import Split

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
GOLDEN_PREFIX = str(GOLDEN / "corpus_text_document")
# Where the reference run kept its corpus; part of the description that names its cache files.
GOLDEN_ORIGIN = "/tmp/golden/corpus"
GOLDEN_HASHES = {
    160: "781ae70dcf2e2687175c23c476363055",
    320: "01d0d08dde0f4e9351805d44b98467d4",
}
INDEX_NAMES = ("document_index", "sample_index", "shuffle_index")
TINY = TokenizerInfo(vocab_size=1000, eod=0)


def tokenizer_at(path):
    identifiers = {
        "class": "_SentencePieceTokenizer",
        "tokenizer_path": [path],
        "vocab_extra_ids": "0",
    }
    return TokenizerInfo(vocab_size=505, eod=502, eos=2, pad=504, unique_identifiers=identifiers)


def config(**changes):
    options = {"random_seed": 1234, "sequence_length": 8, "tokenizer": TINY} | changes
    return GPTDatasetConfig(**options)


def write(prefix, lengths, first_token=1, is_eod_last=False):
    """Write documents whose tokens count up through the file; return the prefix."""
    token = first_token
    with IndexedDatasetBuilder(get_bin_path(str(prefix)), np.int32) as builder:
        for length in lengths:
            tokens = np.arange(token, token + length)
            if is_eod_last and length:
                tokens[-1] = 0
            builder.add_document(tokens, [length])
            token += length
        builder.finalize(get_idx_path(str(prefix)))
    return str(prefix)


# ---- against Megatron ----


@pytest.mark.parametrize("num_samples", [160, 320])
def test_indices_and_cache_names_equal_the_reference(tmp_path, num_samples):
    options = config(
        sequence_length=64,
        tokenizer=tokenizer_at(f"{GOLDEN_ORIGIN}/tok.model"),
        blend=([f"{GOLDEN_ORIGIN}/corpus_text_document"], None),
        split="100,0,0",
        path_to_cache=str(tmp_path),
    )
    store = IndexedDataset(GOLDEN_PREFIX)
    units = np.arange(len(store), dtype=np.int32)
    GPTDataset(
        store, f"{GOLDEN_ORIGIN}/corpus_text_document", units, num_samples, Split.train, options
    )
    stem = f"{GOLDEN_HASHES[num_samples]}-GPTDataset-train"
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}-description.txt",
        f"{stem}-source.json",
        *(f"{stem}-{name}.npy" for name in INDEX_NAMES),
    }
    for name in INDEX_NAMES:
        file = f"{stem}-{name}.npy"
        assert (tmp_path / file).read_bytes() == (GOLDEN / "index_cache" / file).read_bytes()
    description = (tmp_path / f"{stem}-description.txt").read_text()
    expected = (GOLDEN / "index_cache" / f"{stem}-description.txt").read_text()
    assert description.replace(f"{GOLDEN_ORIGIN}/", "") == expected


def test_a_cache_written_by_the_reference_is_read(tmp_path):
    for path in (GOLDEN / "index_cache").glob(f"{GOLDEN_HASHES[160]}*"):
        shutil.copy(path, tmp_path)
    options = config(
        sequence_length=64,
        tokenizer=tokenizer_at(f"{GOLDEN_ORIGIN}/tok.model"),
        blend=([f"{GOLDEN_ORIGIN}/corpus_text_document"], None),
        split="100,0,0",
        path_to_cache=str(tmp_path),
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    store = IndexedDataset(GOLDEN_PREFIX)
    dataset = GPTDataset(
        store, f"{GOLDEN_ORIGIN}/corpus_text_document", np.arange(2000), 160, Split.train, options
    )
    assert isinstance(dataset.sample_index, np.memmap)
    assert len(dataset) == 2062
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


SEVEN_TO_FIVE = [5, 3, 7, 2, 6, 4, 9, 1, 8, 5]
FIRST_TWO_EPOCHS = [3, 3, 2, 6, 4, 5, 4, 0, 8, 8, 7, 1, 0, 9, 7, 1, 9, 2, 6, 5]


def indices_of(num_samples):
    return build_gpt_indices(
        np.array(SEVEN_TO_FIVE, np.int32),
        np.arange(10, dtype=np.int32),
        num_samples,
        sequence_length=8,
        random_seed=1234,
    )


def test_reference_example_of_one_epoch():
    indices = indices_of(5)
    assert indices.document_index.tolist() == [7, 2, 9, 1, 0, 8, 4, 5, 6, 3]
    rows = [[0, 0], [2, 0], [4, 0], [5, 3], [6, 3], [8, 1], [9, 0]]
    assert indices.sample_index.tolist() == rows
    assert indices.shuffle_index.tolist() == [5, 0, 3, 4, 2, 1]
    assert [array.dtype for array in indices] == [np.int32, np.int32, np.uint32]


def test_reference_example_of_two_epochs_shuffled_together():
    indices = indices_of(11)
    assert indices.document_index.tolist() == FIRST_TWO_EPOCHS
    assert indices.shuffle_index.tolist() == [4, 7, 1, 10, 9, 3, 8, 6, 11, 5, 0, 2]


def test_reference_example_of_a_separate_last_epoch():
    indices = indices_of(15)
    last = [8, 1, 7, 6, 9, 5, 4, 3, 0, 2]
    assert indices.document_index.tolist() == FIRST_TWO_EPOCHS + last
    first = [8, 5, 6, 1, 4, 11, 2, 3, 10, 9, 0, 7]
    assert indices.shuffle_index.tolist() == [*first, 13, 12, 17, 14, 16, 15]


def literal_sample_index(lengths, order, sequence_length, extra, drop_last):
    """Walk over the tokens one sample at a time, as the rule is stated."""
    total = sum(lengths[document] for document in order) - extra
    count = total // sequence_length if drop_last else -(-total // sequence_length)
    rows, place, offset = [(0, 0)], 0, 0
    for _ in range(max(count, 0)):
        wanted = sequence_length + extra
        while True:
            available = lengths[order[place]] - offset
            wanted -= available
            if wanted <= 0:
                offset += wanted + available - extra
                break
            if place == len(order) - 1:
                offset = lengths[order[place]] - extra
                break
            place, offset = place + 1, 0
        rows.append((place, offset))
    return rows


@pytest.mark.parametrize("is_compiled", [True, False])
@settings(max_examples=300, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    data=st.data(),
    sequence_length=st.integers(1, 15),
    extra=st.sampled_from([0, 1]),
    drop_last=st.booleans(),
)
def test_sample_index_equals_the_literal_walk(
    is_compiled, lengths, data, sequence_length, extra, drop_last
):
    lengths.append(data.draw(st.integers(1, 20)))
    order = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=20))
    # The walk is only defined when the last document holds a token.
    order.append(len(lengths) - 1)
    with pytest.MonkeyPatch.context() as patch:
        if not is_compiled:
            patch.setattr(gpt_indices, "native_indices", lambda: None)
        rows = build_sample_index(
            np.array(lengths, np.int32),
            np.array(order, np.int32),
            sequence_length,
            extra_token=extra,
            drop_last_partial=drop_last,
        )
    expected = literal_sample_index(lengths, order, sequence_length, extra, drop_last)
    assert rows.tolist() == [list(row) for row in expected]


def test_sample_index_does_not_depend_on_the_block_size(monkeypatch):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 30, 500).astype(np.int32)
    order = rng.permutation(500).astype(np.int32)
    whole = build_sample_index(lengths, order, 7)
    monkeypatch.setattr(gpt_indices, "native_indices", lambda: None)
    monkeypatch.setattr("mindspeed_ms.data.gpt_indices._ROWS_PER_BLOCK", 13)
    np.testing.assert_array_equal(build_sample_index(lengths, order, 7), whole)


# ---- items ----


def samples_of(tmp_path, lengths, num_samples, split=Split.train, is_eod_last=False, **options):
    prefix = write(tmp_path / "data", lengths, is_eod_last=is_eod_last)
    store = IndexedDataset(prefix)
    units = np.arange(len(store), dtype=np.int32)
    options = config(blend=([prefix], None), split="1", **options)
    return GPTDataset(store, prefix, units, num_samples, split, options)


def test_samples_cover_the_token_stream_once(tmp_path):
    dataset = samples_of(tmp_path, [5, 0, 13, 2, 9, 1, 30], None)
    lengths = dataset.dataset.sequence_lengths
    starts = np.cumsum(lengths) - lengths
    stream = np.concatenate(
        [np.arange(starts[d], starts[d] + lengths[d]) + 1 for d in dataset.document_index]
    )
    order = np.argsort(dataset.shuffle_index)
    for row, number in enumerate(order):
        item = dataset[number]
        np.testing.assert_array_equal(item["tokens"], stream[row * 8 : row * 8 + 8])
        np.testing.assert_array_equal(item["labels"], stream[row * 8 + 1 : row * 8 + 9])
    assert len(dataset) == (60 - 1) // 8


def test_item_types_and_shapes(tmp_path):
    item = samples_of(tmp_path, [40], 3)[np.int64(0)]
    assert {name: (array.dtype, array.shape) for name, array in item.items()} == {
        "tokens": (np.int64, (8,)),
        "labels": (np.int64, (8,)),
        "loss_mask": (np.float32, (8,)),
        "position_ids": (np.int64, (8,)),
    }


def test_attention_mask_is_made_when_asked_for(tmp_path):
    item = samples_of(tmp_path, [40], 3, create_attention_mask=True)[0]
    expected = ~np.tril(np.ones((1, 8, 8), bool))
    np.testing.assert_array_equal(item["attention_mask"], expected)
    assert item["attention_mask"].dtype == bool


def test_arrays_that_do_not_depend_on_the_tokens_are_shared(tmp_path):
    dataset = samples_of(tmp_path, [40], 3)
    assert dataset[0]["position_ids"] is dataset[1]["position_ids"]
    with pytest.raises(ValueError, match="read-only"):
        dataset[0]["loss_mask"][0] = 0


def test_without_extra_token_the_last_label_is_left_out(tmp_path):
    dataset = samples_of(tmp_path, [17, 7], None, add_extra_token_to_sequence=False)
    assert len(dataset) == 3
    for number in range(3):
        item = dataset[number]
        np.testing.assert_array_equal(item["labels"][:-1], item["tokens"][1:])
        assert item["labels"][-1] == 0
        assert item["loss_mask"].tolist() == [1] * 7 + [0]


@pytest.mark.parametrize(("split", "expected"), [(Split.valid, 3), (Split.train, 2)])
def test_the_last_short_validation_sample_is_filled_up(tmp_path, split, expected):
    dataset = samples_of(
        tmp_path, [20], None, split=split, drop_last_partial_validation_sequence=False
    )
    assert len(dataset) == expected
    items = [dataset[i] for i in range(expected)]
    if split is Split.valid:
        short = items[int(np.argmax(dataset.shuffle_index))]
        assert short["tokens"].tolist() == [17, 18, 19, 20, 0, 0, 0, 0]
        assert short["labels"].tolist() == [18, 19, 20, 0, 0, 0, 0, 0]
        assert short["loss_mask"].tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    # Another sample of full length keeps its whole loss, whatever was read before it.
    full = int(np.argmin(dataset.shuffle_index))
    assert dataset[full]["loss_mask"].sum() == 8


def test_the_pad_token_of_the_tokenizer_is_left_out_of_the_loss(tmp_path):
    tokenizer = TokenizerInfo(vocab_size=100, eod=0, pad=5)
    item = samples_of(tmp_path, [9], None, tokenizer=tokenizer)[0]
    assert item["tokens"].tolist() == [1, 2, 3, 4, 0, 6, 7, 8]
    assert item["labels"].tolist() == [2, 3, 4, 0, 6, 7, 8, 9]
    assert item["loss_mask"].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("role", ["eod", "eos"])
def test_a_pad_token_that_ends_texts_stays_in_the_loss(tmp_path, role):
    tokenizer = TokenizerInfo(**({"vocab_size": 100, "eod": 0, "pad": 5} | {role: 5}))
    item = samples_of(tmp_path, [9], None, tokenizer=tokenizer)[0]
    assert item["loss_mask"].all()
    assert item["labels"].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]


# ---- masks and positions ----


def literal_masks(tokens, eod, reset_positions, reset_attention, eod_mask_loss):
    """The rule, end of document by end of document."""
    length = len(tokens)
    attention = np.tril(np.ones((1, length, length)))
    positions = np.arange(length)
    loss = np.array([0.0 if eod_mask_loss and token == eod else 1.0 for token in tokens])
    begin = 0
    for place in [place for place, token in enumerate(tokens) if token == eod]:
        if reset_attention:
            attention[0, place + 1 :, : place + 1] = 0
        if reset_positions:
            positions[place + 1 :] -= place + 1 - begin
            begin = place + 1
    return attention < 0.5, loss, positions


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=16),
    eod=st.integers(0, 3),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_masks_equal_the_literal_rule(tokens, eod, switches):
    positions, attention, loss = switches
    masks = get_ltor_masks_and_position_ids(
        np.array(tokens),
        eod,
        reset_position_ids=positions,
        reset_attention_mask=attention,
        eod_mask_loss=loss,
        create_attention_mask=True,
    )
    *arrays, documents = masks
    for array, expected in zip(arrays, literal_masks(tokens, eod, *switches), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert [array.dtype for array in arrays] == [bool, np.float32, np.int64]
    assert (documents is not None) == attention
    if attention:  # the numbers say the same as the dense mask
        hidden = np.triu(np.ones((len(tokens), len(tokens)), bool), 1)
        hidden |= documents[:, None] != documents
        np.testing.assert_array_equal(masks.attention_mask[0], hidden)
        assert documents.dtype == np.int32


def test_end_of_document_with_id_zero_is_honoured(tmp_path):
    dataset = samples_of(
        tmp_path,
        [3, 3, 3],
        None,
        is_eod_last=True,
        reset_position_ids=True,
        reset_attention_mask=True,
        create_attention_mask=True,
        eod_mask_loss=True,
    )
    item = dataset[0]
    assert item["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert item["loss_mask"].tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    assert (~item["attention_mask"][0]).sum(axis=1).tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    assert item["document_ids"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


# ---- cache ----


def test_indices_are_built_once_and_named_after_their_options(tmp_path):
    dataset = samples_of(tmp_path, [40, 20], 9)
    folder = tmp_path / "data" / "cache" / "GPTDataset_indices"
    names = {path.name for path in folder.iterdir()}
    stem = f"{dataset.unique_description_hash}-GPTDataset-train"
    assert names == {
        f"{stem}-{name}"
        for name in ("description.txt", "source.json", *(f"{array}.npy" for array in INDEX_NAMES))
    }
    assert (folder / f"{stem}-description.txt").read_text() == dataset.unique_description
    again = GPTDataset(
        dataset.dataset, dataset.dataset_path, dataset.indices, 9, Split.train, dataset.config
    )
    np.testing.assert_array_equal(again.sample_index, dataset.sample_index)
    assert isinstance(again.sample_index, np.memmap)
    for changes in ({"random_seed": 1}, {"sequence_length": 7}, {"split": "1,0"}):
        other = GPTDataset(
            dataset.dataset,
            dataset.dataset_path,
            dataset.indices,
            9,
            Split.train,
            dataclasses.replace(dataset.config, **changes),
        )
        assert other.unique_description_hash != dataset.unique_description_hash


def test_a_dataset_without_a_full_sample_is_empty_and_cacheable(tmp_path):
    for _ in range(2):
        assert len(samples_of(tmp_path, [5], None)) == 0


def again(dataset, num_samples=3, store=None):
    return GPTDataset(
        store or dataset.dataset,
        dataset.dataset_path,
        dataset.indices,
        num_samples,
        Split.train,
        dataset.config,
    )


def cache_file(tmp_path, name):
    (path,) = (tmp_path / "data").rglob(f"*-{name}")
    return path


@pytest.mark.parametrize("has_source", [True, False])
@pytest.mark.parametrize("name", INDEX_NAMES)
@pytest.mark.parametrize("damage", ["empty", "text", "cut", "head", "values", "shape", "type"])
def test_a_damaged_cache_is_built_again(tmp_path, caplog, has_source, name, damage):
    dataset = samples_of(tmp_path, [40, 7, 30], 9)
    path = cache_file(tmp_path, f"{name}.npy")
    array = np.load(path)
    if damage == "values":
        changed = array.copy()
        changed.reshape(-1)[-1] += 40
        np.save(path, changed)
    elif damage in ("shape", "type"):
        np.save(path, array[:-1] if damage == "shape" else array.astype(np.float64))
    else:
        whole = path.read_bytes()
        pieces = {"empty": b"", "text": b"not an array", "cut": whole[:-1], "head": whole[:8]}
        path.write_bytes(pieces[damage])
    if not has_source:  # as Megatron leaves it
        cache_file(tmp_path, "source.json").unlink()
    rebuilt = again(dataset, 9)
    assert "is built again:" in caplog.text
    for attribute in INDEX_NAMES:
        np.testing.assert_array_equal(getattr(rebuilt, attribute), getattr(dataset, attribute))
    caplog.clear()
    again(dataset, 9)
    assert not caplog.text


def test_a_cache_of_other_data_under_the_same_path_is_built_again(tmp_path, caplog):
    dataset = samples_of(tmp_path, [40, 7, 30], 9)
    for lengths in ([30, 40, 7], [40, 7, 31]):  # as many documents, and as many tokens
        store = IndexedDataset(write(tmp_path / "data", lengths))
        fresh = again(dataset, 9, store)
        assert "is built again: " in caplog.text
        assert ("made of other data under the same path" in caplog.text) == (lengths[0] == 30)
        caplog.clear()
        cache_file(tmp_path, "source.json").unlink()  # unknown, but right by its values
        assert again(dataset, 9, store).sample_index.tolist() == fresh.sample_index.tolist()
        assert not caplog.text


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written .* --data-cache-path"):
        samples_of(tmp_path, [40], 3, path_to_cache=str(tmp_path / "file" / "cache"))


def test_an_unfinished_write_leaves_no_cache_file(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr("mindspeed_ms.data.index_cache.np.save", fail)
    with pytest.raises(ValueError, match="disk full"):
        samples_of(tmp_path, [40], 3, path_to_cache=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_split_without_tokens_is_refused(tmp_path):
    prefix = write(tmp_path / "data", [0, 3])
    store = IndexedDataset(prefix)
    with pytest.raises(ValueError, match="has no token in its 1 documents"):
        GPTDataset(
            store, prefix, np.array([0]), 3, Split.train, config(blend=([prefix], None), split="1")
        )
