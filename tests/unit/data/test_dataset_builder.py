# SPDX-License-Identifier: Apache-2.0
"""Splits, blends, mock data and the builder of the three datasets."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_ms.data.blended_dataset import BlendedDataset
from mindspeed_ms.data.blending import build_blending_indices, build_exhaustive_blending_indices
from mindspeed_ms.data.builder import build_train_valid_test_datasets
from mindspeed_ms.data.gpt_dataset import (
    GPTDataset,
    GPTDatasetConfig,
    MockGPTLowLevelDataset,
    TokenizerInfo,
)
from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from mindspeed_ms.data.utils import (
    Split,
    convert_split_vector_to_split_matrix,
    get_blend_from_list,
    normalize,
    parse_and_normalize_split,
    split_bounds,
)

TINY = TokenizerInfo(vocab_size=1000, eod=0)


def config(**changes):
    options = {"random_seed": 1234, "sequence_length": 8, "tokenizer": TINY} | changes
    return GPTDatasetConfig(**options)


def write(prefix, lengths, first_token=1):
    """Write documents whose tokens count up through the file; return the prefix."""
    token = first_token
    with IndexedDatasetBuilder(get_bin_path(str(prefix)), np.int32) as builder:
        for length in lengths:
            builder.add_document(np.arange(token, token + length), [length])
            token += length
        builder.finalize(get_idx_path(str(prefix)))
    return str(prefix)


# ---- splits and blends ----


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.integers(0, 1000), min_size=1, max_size=3).filter(any),
    num_units=st.integers(0, 10_000),
)
def test_splits_are_disjoint_in_order_and_complete(weights, num_units):
    vector = parse_and_normalize_split(",".join(map(str, weights)))
    matrix = convert_split_vector_to_split_matrix(vector)
    assert [span is None for span in matrix] == [
        weight == 0 for weight in weights + [0] * (3 - len(weights))
    ]
    bounds = [split_bounds(span, num_units) for span in matrix if span is not None]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == num_units
    for before, after in zip(bounds, bounds[1:], strict=False):
        assert before[1] == after[0] <= after[1]


def test_split_bounds_round_halves_to_even():
    matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split("949,50,1"))
    assert [split_bounds(span, 10) for span in matrix] == [(0, 9), (9, 10), (10, 10)]
    assert split_bounds((0, 0.5), 5) == (0, 2)
    assert split_bounds((0, 0.5), 7) == (0, 4)


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "-1,2", "1e3,1", "1..2,1"])
def test_an_unreadable_split_is_refused(split):
    with pytest.raises(ValueError, match="one to three plain non-negative numbers"):
        parse_and_normalize_split(split)


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan")]])
def test_weights_without_a_sum_are_refused(weights):
    with pytest.raises(ValueError, match="not all zero"):
        normalize(weights)


def test_blend_lists():
    assert get_blend_from_list(None) is None
    assert get_blend_from_list(["a"]) == (["a"], None)
    assert get_blend_from_list(["a", "b"]) == (["a", "b"], None)
    assert get_blend_from_list(["1", "a", "3", " b"]) == (["a", "b"], [1.0, 3.0])
    assert get_blend_from_list(["1", "a", "3"]) == (["1", "a", "3"], None)
    with pytest.raises(ValueError, match="only some of its weight places"):
        get_blend_from_list(["1", "a", "b", "c"])
    with pytest.raises(ValueError, match="is empty"):
        get_blend_from_list([])


def test_reference_blend():
    datasets, samples = build_blending_indices([0.3, 0.7], 10)
    assert datasets.tolist() == [1, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    assert samples.tolist() == [0, 0, 1, 2, 1, 3, 4, 2, 5, 6]
    assert (datasets.dtype, samples.dtype) == (np.int16, np.int64)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_exhaustive_blend_reads_everything_once(sizes):
    datasets, samples = build_exhaustive_blending_indices(sizes)
    for number, size in enumerate(sizes):
        assert samples[datasets == number].tolist() == list(range(size))


@pytest.fixture
def two_corpora(tmp_path):
    first = write(tmp_path / "first", [20] * 30)
    second = write(tmp_path / "second", [20] * 50, first_token=10_000)
    return first, second


BLEND_OPTIONS = {"tokenizer": TokenizerInfo(vocab_size=20_000, eod=0)}


def test_weighted_blend(two_corpora, tmp_path):
    options = config(
        blend=(list(two_corpora), [3.0, 7.0]),
        split="80,20,0",
        path_to_cache=str(tmp_path / "cache"),
        **BLEND_OPTIONS,
    )
    train, valid, test = build_train_valid_test_datasets(options, (100, 10, 5))
    assert (len(train), len(valid), test) == (100, 10, None)
    assert [dataset.num_samples for dataset in train.datasets] == [31, 71]  # 0.5 % above 30, 70
    assert np.bincount(train.dataset_index).tolist() == [30, 70]
    for item in (train[0], train[99]):
        assert (item["tokens"][0] >= 10_000) == bool(item["dataset_id"])
    names = {path.name.split("-", 1)[1] for path in (tmp_path / "cache").iterdir()}
    assert "BlendedDataset-train-dataset_sample_index.npy" in names
    again, _, _ = build_train_valid_test_datasets(options, (100, 10, 5))
    np.testing.assert_array_equal(again.dataset_index, train.dataset_index)


def test_unweighted_blend_reads_each_corpus_in_proportion(two_corpora):
    options = config(blend=(list(two_corpora), None), split="1", **BLEND_OPTIONS)
    everything, _, _ = build_train_valid_test_datasets(options, (None, None, None))
    assert len(everything) == sum(len(dataset) for dataset in everything.datasets) == 74 + 124
    capped, _, _ = build_train_valid_test_datasets(options, (50, None, None))
    assert np.bincount(capped.dataset_index).tolist() == [19, 31]


def test_one_data_path_per_split(two_corpora):
    first, second = two_corpora
    options = config(
        blend_per_split=(([first], None), None, ([first, second], [1.0, 1.0])), **BLEND_OPTIONS
    )
    train, valid, test = build_train_valid_test_datasets(options, (10, 10, 10))
    assert isinstance(train, GPTDataset)
    assert (train.dataset_path, train.index_split, len(train.indices)) == (first, Split.train, 30)
    assert valid is None
    assert isinstance(test, BlendedDataset)
    assert (len(test), test.split) == (10, Split.test)
    assert '"split": null' in train.unique_description
    assert '"split_matrix": null' in train.unique_description


def test_single_path_with_split(two_corpora):
    options = config(blend=([two_corpora[0]], None), split="949,50,1", **BLEND_OPTIONS)
    train, valid, test = build_train_valid_test_datasets(options, (7, 3, None))
    assert [len(train.indices), len(valid.indices), test] == [28, 2, None]
    assert len(train) >= 7
    with pytest.raises(ValueError, match=r"test split of .* is empty: 30 documents .*--eval-iters"):
        build_train_valid_test_datasets(options, (7, 3, 8))


def test_blend_of_one_weighted_path(two_corpora):
    options = config(blend=([two_corpora[0]], [2.0]), split="1", **BLEND_OPTIONS)
    train, _, _ = build_train_valid_test_datasets(options, (7, 0, 0))
    assert isinstance(train, BlendedDataset)
    assert len(train) == 7


def test_a_corpus_without_documents_in_a_split_is_named(tmp_path):
    large, small = write(tmp_path / "large", [20] * 40), write(tmp_path / "small", [20] * 2)
    options = config(blend=([large, small], None), split="90,10,0")
    with pytest.raises(ValueError, match="small has no document in the valid split"):
        build_train_valid_test_datasets(options, (None, None, None))


def test_a_corpus_without_a_sample_is_named(tmp_path):
    large, small = write(tmp_path / "large", [20] * 4), write(tmp_path / "small", [2])
    options = config(blend=([large, small], None), split="1")
    with pytest.raises(ValueError, match="small has weight 0 .*at least one sample"):
        build_train_valid_test_datasets(options, (None, None, None))


def test_weights_need_a_number_of_samples(two_corpora):
    options = config(blend=(list(two_corpora), [1.0, 2.0]), split="1,1,0", **BLEND_OPTIONS)
    with pytest.raises(ValueError, match="valid blend has weights but no number of samples"):
        build_train_valid_test_datasets(options, (10, None, None))


def test_blend_parts_must_fit(two_corpora):
    options = config(blend=([two_corpora[0]], None), split="1", **BLEND_OPTIONS)
    train, _, _ = build_train_valid_test_datasets(options, (10, None, None))
    with pytest.raises(ValueError, match="1 datasets has 2 weights"):
        BlendedDataset([train], [0.5, 0.5], 4, options)
    with pytest.raises(ValueError, match="the blend reads 500 samples .*surplus"):
        BlendedDataset([train], [1.0], 500, options)


def test_ids_beyond_the_vocabulary_stop_the_build(two_corpora):
    options = config(blend=([two_corpora[1]], None), split="1")
    with pytest.raises(ValueError, match="document 0 of .*second holds token id 10000"):
        build_train_valid_test_datasets(options, (10, None, None))
    unchecked = dataclasses.replace(options, check_token_ids=False)
    assert build_train_valid_test_datasets(unchecked, (10, None, None))[0] is not None


# ---- mock ----


def test_mock_documents_follow_the_reference_rule():
    store = MockGPTLowLevelDataset(TokenizerInfo(vocab_size=10, eod=9))
    lengths = np.random.default_rng(0).integers(1, 4096, size=100_000, dtype=np.int32)
    np.testing.assert_array_equal(store.sequence_lengths, lengths)
    assert len(store) == 100_000
    document = store[0]
    assert len(document) == lengths[0]
    assert document[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert document[-1] == 9
    assert store.get(0, 2, 3).tolist() == [3, 4, 5]
    assert store.get(0, int(lengths[0]) - 1).tolist() == [9]


def test_mock_datasets_need_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = config(sequence_length=512)
    train, valid, test = build_train_valid_test_datasets(options, (40, 8, 8))
    assert [len(dataset.indices) for dataset in (train, valid, test)] == [33333, 33334, 33333]
    assert train[0]["tokens"].shape == (512,)
    assert train[0]["tokens"].max() < TINY.vocab_size
    assert list(tmp_path.iterdir()) == []


# ---- options ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 0}, "sequence_length .0. must be at least 1"),
        ({"blend": (["a"], None)}, "without a split"),
        ({"blend": ([], None), "split": "1"}, "0 prefixes"),
        ({"blend": (["a"], [1.0, 2.0]), "split": "1"}, "1 prefixes and 2 weights"),
        ({"blend": (["a"], None), "split": "x"}, "plain non-negative"),
        (
            {"blend": (["a"], None), "blend_per_split": ((["a"], None), None, None)},
            "both given",
        ),
        ({"blend_per_split": ((["a"], None), None, None), "split": "1"}, "remove --split"),
        ({"blend_per_split": (None, None, None)}, "at least one of them"),
        ({"blend_per_split": ((["a"], [1.0, 2.0]), None, None)}, "1 prefixes and 2 weights"),
    ],
)
def test_contradictory_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


# ---- options of this builder ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_dataset_builder_threads": 0}, "num_dataset_builder_threads .0. must be at least 1"),
        ({"multiple_validation_sets": True}, "give them with --valid-data-path"),
    ],
)
def test_unusable_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_wrong_number_of_sequences_is_refused(tmp_path):
    prefix = write(tmp_path / "data", [20] * 30)
    options = {"blend": ([prefix], None), "split": "1", "path_to_cache": str(tmp_path / "cache")}
    right = config(**options, sequences_per_dataset={prefix: 30})
    assert build_train_valid_test_datasets(right, (10, None, None))[0] is not None
    wrong = config(**options, sequences_per_dataset={prefix: 31})
    with pytest.raises(ValueError, match="has 30 sequences, the list .* says 31"):
        build_train_valid_test_datasets(wrong, (10, None, None))


def test_a_pad_id_that_ends_documents_counts_when_asked_for():
    tokenizer = TokenizerInfo(vocab_size=10, eod=3, pad=3)
    assert config(tokenizer=tokenizer).pad_id == -1
    assert config(tokenizer=tokenizer, allow_ambiguous_pad_tokens=True).pad_id == 3


def test_threads_build_the_same_blend(tmp_path):
    prefixes = [write(tmp_path / f"d{i}", [20 + i] * 30) for i in range(4)]
    built = []
    for threads in (1, 4):
        options = config(
            blend=(prefixes, [1.0, 2.0, 3.0, 4.0]),
            split="1",
            path_to_cache=str(tmp_path / f"cache{threads}"),
            num_dataset_builder_threads=threads,
        )
        built.append(build_train_valid_test_datasets(options, (50, None, None))[0])
    np.testing.assert_array_equal(built[0].dataset_index, built[1].dataset_index)
    assert [one.dataset_path for one in built[1].datasets] == prefixes


def test_a_class_of_the_users_own_is_built(tmp_path):
    class Mine:
        def __init__(self, *args):
            self.args = args

        @staticmethod
        def build_low_level_dataset(path, config):
            return [path] * 10

        @staticmethod
        def numel_low_level_dataset(dataset):
            return len(dataset)

    options = config(blend=(["x"], None), split="1,1")
    train, valid, test = build_train_valid_test_datasets(options, (5, 5, 0), cls=Mine)
    assert train.args[2].tolist() == [0, 1, 2, 3, 4] and valid.args[1] == "x" and test is None
