# SPDX-License-Identifier: Apache-2.0
"""Instruction data of MindSpeed-LLM: token files with labels, of which answers count."""

import random

import numpy as np
import pytest

from mindspeed_ms.data.builder import build_train_valid_test_datasets
from mindspeed_ms.data.gpt_dataset_config import TokenizerInfo
from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from mindspeed_ms.data.instruction_dataset import (
    InstructionDataset,
    InstructionDatasetConfig,
    prefix_of,
    proportional_cut,
)
from mindspeed_ms.data.loader import PretrainingDataLoader
from mindspeed_ms.data.samplers import MegatronPretrainingSampler

EOS, PAD, OUT = 9, 0, -100


def write(prefix, records, keys=("input_ids", "labels", "attention_mask")):
    """Files of records, each a tuple of (input_ids, labels, attention_mask)."""
    for key in keys:
        place = ("input_ids", "labels", "attention_mask").index(key)
        path = prefix_of(str(prefix), key)
        with IndexedDatasetBuilder(get_bin_path(path), np.int32) as builder:
            for record in records:
                builder.add_document(record[place], [len(record[place])])
            builder.finalize(get_idx_path(path))
    return str(prefix)


def record(asked, answered, first=10):
    ids = [*range(first, first + asked + answered)]
    return ids, [OUT] * asked + ids[asked:], [1] * len(ids)


def built(prefix, num_samples=4, length=8, split="1", **more):
    options = {
        "random_seed": 7,
        "sequence_length": length,
        "tokenizer": TokenizerInfo(vocab_size=99, eod=EOS, eos=EOS, pad=PAD),
        "blend": ([prefix], None),
        "split": split,
        "end": EOS,
    } | more
    config = InstructionDatasetConfig(**options)
    sizes = (num_samples, None, None)
    return build_train_valid_test_datasets(config, sizes, cls=InstructionDataset)


def test_answers_are_learned_where_they_are_predicted(tmp_path):
    prefix = write(tmp_path / "chats", [record(3, 2)])
    item = built(prefix)[0][0]
    assert item["tokens"].tolist() == [10, 11, 12, 13, 14, PAD, PAD, PAD]
    # Token 12 predicts the answer's first, 13 its second.
    assert item["loss_mask"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert item["labels"].tolist() == [0, 0, 13, 14, 0, 0, 0, 0]
    assert item["position_ids"].tolist() == list(range(8))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_is_that_of_the_original(tmp_path, shuffle, full):
    prefix = write(tmp_path / "chats", [record(1, 2, first=10 + 3 * n) for n in range(7)])
    train = built(prefix, 17, shuffle=shuffle, full_shuffle=full, pass_multiple=4)[0]
    rng, expected = np.random.RandomState(7), []
    for _ in range(3):
        one = np.append(np.arange(7), [0])
        if shuffle:
            rng.shuffle(one)
        expected += one.tolist()
    if full:
        random.Random(7).shuffle(expected)
    assert len(train) == 24
    assert [int(train[n]["tokens"][0] - 10) // 3 for n in range(24)] == expected


def test_splits_part_records(tmp_path):
    prefix = write(tmp_path / "chats", [record(1, 1, first=10 + n) for n in range(10)])
    train, valid, test = built(prefix, 8, split="8,2,0", shuffle=False)
    assert [int(train[n]["tokens"][0]) for n in range(8)] == list(range(10, 18))
    assert [int(valid[n]["tokens"][0]) for n in range(len(valid))] == [18, 19]
    assert test is None


def test_records_of_a_row_are_told_apart_by_their_end(tmp_path):
    ids = [11, 12, EOS, 13, 14, 15, EOS, PAD]
    prefix = write(tmp_path / "packs", [(ids, [OUT, 12, EOS, OUT, OUT, 15, EOS, OUT], [1] * 8)])
    item = built(prefix, documents=True)[0][0]
    assert item["document_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert item["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert item["loss_mask"].tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


def test_neat_packs_number_their_records(tmp_path):
    ids = [11, EOS, 12, 13, EOS, 14, PAD, PAD]
    prefix = write(tmp_path / "packs", [(ids, ids, [1, 1, 2, 2, 2, 2, 0, 0])])
    item = built(prefix, documents=True, neat_pack=True)[0][0]
    assert item["document_ids"].tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert item["position_ids"].tolist() == [0, 1, 0, 1, 2, 3, 0, 1]
    masked = built(prefix, documents=True, neat_pack=True, create_attention_mask=True)[0][0]
    assert masked["attention_mask"][0, 2].tolist() == [True, True, False, *[True] * 5]


def test_rows_of_unequal_length_are_filled_up_in_a_micro_batch(tmp_path):
    prefix = write(tmp_path / "chats", [record(2, 1), record(3, 3), record(1, 1)])
    dataset = built(prefix, 3, length=16, shuffle=False, length_multiple=4)[0]
    assert [len(dataset[n]["tokens"]) for n in range(3)] == [4, 8, 4]
    sampler = MegatronPretrainingSampler(3, 0, 3, 0, 1)
    batch = next(iter(PretrainingDataLoader(dataset, sampler)))
    assert {name: value.shape for name, value in batch.items()} == dict.fromkeys(batch, (3, 8))
    assert batch["tokens"][0].tolist() == [10, 11, 12, PAD, PAD, PAD, PAD, PAD]
    assert batch["loss_mask"].sum(axis=1).tolist() == [1, 3, 1]


@pytest.mark.parametrize(
    ("asked", "answered", "kept"),
    [
        (20, 3, (7, 3)),  # a short answer stays whole
        (3, 20, (3, 7)),  # a short question does
        (20, 20, (5, 5)),  # both are cut in proportion
    ],
)
def test_long_records_lose_of_both_parts(asked, answered, kept):
    targets = np.array([OUT] * asked + [1] * answered)
    places = proportional_cut(targets, 10)
    expected = [*range(kept[0]), *range(asked, asked + kept[1])]
    assert places.tolist() == expected


def test_a_second_turn_gets_what_the_first_leaves():
    targets = np.array([OUT] * 2 + [1] * 2 + [OUT] * 8 + [1] * 2)
    assert proportional_cut(targets, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 12, 13]


def test_a_plain_cut_takes_the_end(tmp_path):
    prefix = write(tmp_path / "chats", [record(3, 20)])
    item = built(prefix, plain_cut=True)[0][0]
    assert item["tokens"].tolist() == list(range(10, 18))


def test_what_does_not_belong_together_is_refused(tmp_path):
    prefix = write(tmp_path / "one", [record(3, 2)])
    write(tmp_path / "one", [record(3, 3)], keys=("labels",))
    with pytest.raises(ValueError, match="differ in their records"):
        built(prefix)
    with pytest.raises(FileNotFoundError, match="_packed_input_ids_document"):
        built(str(tmp_path / "none"))
    prefix = write(tmp_path / "large", [record(3, 2, first=97)])
    with pytest.raises(ValueError, match="holds token id 99"):
        built(prefix)
    prefix = write(tmp_path / "bare", [record(3, 2)], keys=("input_ids", "labels"))
    with pytest.raises(FileNotFoundError, match="--neat-pack reads"):
        built(prefix, documents=True, neat_pack=True)[0][0]
    with pytest.raises(ValueError, match="the tokenizer has none"):
        built(prefix, documents=True, end=None)
