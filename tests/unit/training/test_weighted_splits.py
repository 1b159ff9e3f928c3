# SPDX-License-Identifier: Apache-2.0
"""Parts of corpora, one blend for each split."""

import numpy as np
import pytest

from mindspeed_ms.data.builder import build_train_valid_test_datasets
from mindspeed_ms.data.gpt_dataset_config import GPTDatasetConfig, TokenizerInfo
from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from mindspeed_ms.data.utils import get_blend_from_list
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.dry_run import resolve

SMALL = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --seq-length 8 --lr 1e-3 "
    "--max-position-embeddings 8 --micro-batch-size 1 --global-batch-size 4 --vocab-size 99 "
    "--tokenizer-type NullTokenizer --train-iters 4 --dry-run"
).split()
TRAIN = "TRAIN: 1 0:0.5 {0}, 0.5 0:1 {1}"
VALID = "VALID1: 1 0.5:1 {0}"


def dataset_config(*words):
    return resolve(parse_args([*SMALL, *words])).config.dataset_config


def corpus(prefix, first):
    """Ten documents of nine equal tokens; nobody else has the same."""
    with IndexedDatasetBuilder(get_bin_path(prefix), np.int32) as builder:
        for number in range(10):
            builder.add_document([first + number] * 9, [9])
        builder.finalize(get_idx_path(prefix))


def test_each_split_reads_its_parts(tmp_path):
    paths = [str(tmp_path / name) for name in ("wiki", "books")]
    corpus(paths[0], 10)
    corpus(paths[1], 30)
    config = dataset_config(
        "--train-weighted-split-paths",
        TRAIN.format(*paths),
        "--valid-weighted-split-paths",
        VALID.format(*paths),
    )
    blends = [get_blend_from_list(one) for one in (config.train_data_path, config.valid_data_path)]
    options = GPTDatasetConfig(
        random_seed=3,
        sequence_length=8,
        tokenizer=TokenizerInfo(vocab_size=99, eod=0),
        blend_per_split=(*blends, None),
        path_to_cache=str(tmp_path / "cache"),
    )
    train, valid, test = build_train_valid_test_datasets(options, (60, 20, None))
    seen = [
        {int(one) for n in range(len(part)) for one in part[n]["tokens"]} for part in (train, valid)
    ]
    assert seen == [{*range(10, 15), *range(30, 40)}, {*range(15, 20)}]
    sources = [int(train[n]["dataset_id"]) for n in range(60)]
    assert sources.count(0) == 40
    assert test is None


def test_a_file_holds_them(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text('"TRAIN: 1 0:0.5 wiki, 0.5 0:1 books"\n')
    found = dataset_config("--train-weighted-split-paths-path", str(path)).train_data_path
    assert found == ("1", "wiki@0.0:0.5", "0.5", "books")


@pytest.mark.parametrize("text", ["TRAIN: 1 wiki", "TRAIN: 1 0.5:0.2 wiki", "TRAIN: 1 a:b wiki"])
def test_another_form_is_one_line(text):
    with pytest.raises((ValueError, SystemExit), match="is no part of a blend|2"):
        dataset_config("--train-weighted-split-paths", text)
