# SPDX-License-Identifier: Apache-2.0
"""From configured data sources to micro-batches: sources, slices, evaluation sets."""

import dataclasses
import itertools
import json

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms.engine import datasets as data
from mindspeed_ms.engine import micro_batches as batches
from mindspeed_ms.engine import run_data
from mindspeed_ms.engine.current_config import set_all_config
from mindspeed_ms.engine.train_state import TrainState
from mindspeed_ms.plan.sequence_slices import positions_on_cp_rank
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.from_args import init_configs_from_args

SIZES = "--num-layers 1 --hidden-size 8 --num-attention-heads 2 --seq-length 4".split()
BATCH = "--micro-batch-size 2 --global-batch-size 4 --train-iters 10 --lr 1e-3".split()
NULL = "--tokenizer-type NullTokenizer --vocab-size 99".split()


def configured(*flags):
    args = parse_args([*SIZES, *BATCH, *NULL, "--max-position-embeddings", "4", *flags])
    return init_configs_from_args(args)


@pytest.fixture
def run(single_rank):
    """A configuration that the functions without arguments find."""

    def start(*flags):
        config = configured(*flags)
        set_all_config(config)
        return config

    yield start
    set_all_config(None)


# ---- which tokens a rank holds ----


@pytest.mark.parametrize(
    ("algo", "size", "degree"),
    [
        ("megatron_cp_algo", 1, None),
        ("megatron_cp_algo", 4, None),
        ("ulysses_cp_algo", 4, None),
        ("kvallgather_cp_algo", 4, None),
        ("hybrid_cp_algo", 4, 2),
        ("hybrid_cp_algo", 8, 2),
        ("hybrid_cp_algo", 8, 4),
    ],
)
def test_ranks_share_a_sequence_without_gap(algo, size, degree):
    parts = [positions_on_cp_rank(64, size, rank, algo, degree).tolist() for rank in range(size)]
    assert sorted(itertools.chain(*parts)) == list(range(64))
    assert {len(part) for part in parts} == {64 // size}


def test_the_ring_balances_a_causal_mask():
    held = [positions_on_cp_rank(16, 4, rank) for rank in range(4)]
    assert held[1].tolist() == [2, 3, 12, 13]
    assert len({int(part.sum()) for part in held}) == 1
    # Of a hybrid of 2 x 2 ranks, neighbours share what one rank of the ring would hold.
    both = [positions_on_cp_rank(16, 4, rank, "hybrid_cp_algo", 2).tolist() for rank in (0, 1)]
    assert both == [[0, 1, 2, 3], [12, 13, 14, 15]]


@pytest.mark.parametrize(
    ("length", "size", "algo", "degree"),
    [
        (12, 4, "megatron_cp_algo", None),
        (6, 4, "ulysses_cp_algo", None),
        (64, 6, "hybrid_cp_algo", 4),
    ],
)
def test_a_length_that_cannot_be_shared_is_refused(length, size, algo, degree):
    with pytest.raises(ValueError, match=f"length {length} cannot be shared by {size}"):
        positions_on_cp_rank(length, size, 0, algo, degree)


# ---- sources ----


def test_a_list_in_a_file_is_read_like_the_flag(tmp_path):
    (tmp_path / "words").write_text("0.3 a\n0.7 b")
    config = configured("--data-args-path", str(tmp_path / "words"))
    assert data.get_blend_and_blend_per_split(config.dataset_config) == (
        (["a", "b"], [0.3, 0.7]),
        None,
    )
    assert data.gpt_dataset_config(config).split == "969, 30, 1"


def test_sources_per_split(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": "1 a 2 b", "valid": ["c", "d"], "test": None}))
    expected = ((["a", "b"], [1.0, 2.0]), (["c", "d"], None), None)
    options = configured("--per-split-data-args-path", str(path), "--multiple-validation-sets")
    assert data.get_blend_and_blend_per_split(options.dataset_config) == (None, expected)
    assert data.gpt_dataset_config(options).multiple_validation_sets
    flags = configured("--train-data-path", "a", "--valid-data-path", "c", "d")
    assert data.get_blend_and_blend_per_split(flags.dataset_config)[1][1] == (["c", "d"], None)


@pytest.mark.parametrize(
    ("flag", "content", "message"),
    [
        ("--data-args-path", None, "data_args_path .* cannot be read"),
        ("--per-split-data-args-path", "{", "is not JSON"),
        ("--per-split-data-args-path", "[]", "holds a JSON list"),
        ("--per-split-data-args-path", '{"train": "a"}', "has no valid, test"),
    ],
)
def test_unusable_lists_are_named(tmp_path, flag, content, message):
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        data.get_blend_and_blend_per_split(configured(flag, str(path)).dataset_config)


def test_two_sources_or_none_are_refused():
    config = configured("--data-path", "a", "--data-args-path", "b")
    with pytest.raises(ValueError, match="data_path and data_args_path are given"):
        data.get_blend_and_blend_per_split(config.dataset_config)
    with pytest.raises(ValueError, match="no training data is given"):
        data.gpt_dataset_config(configured())


def test_the_class_of_datasets_follows_the_configuration():
    def kind(*flags):
        config = configured(*flags)
        return data.dataset_class(config, data.gpt_dataset_config(config)).__name__

    assert kind("--data-path", "a") == "GPTDataset"
    assert kind("--mock-data") == "MockGPTDataset"
    assert kind("--data-path", "a.mindrecord") == "TokenRowsDataset"
    assert kind("--data-path", "a.jsonl", "--sft") == "SFTDataset"
    assert kind("--data-path", "a", "--fim-data", "--fim-rate", "0.3") == "GPTFIMDataset"
    with pytest.raises(ValueError, match="use one kind only"):
        kind("--data-path", "1", "a.npy", "1", "b")
    with pytest.raises(ValueError, match="sft and fim_data"):
        configured("--data-path", "a", "--sft", "--fim-data")


def test_fim_flags_arrive():
    config = configured("--data-path", "a", "--fim-data", "--fim-spm-rate", "0.25")
    options = data.gpt_dataset_config(config)
    assert (options.fim_rate, options.fim_spm_rate) == (0.5, 0.25)
    assert options.fim_extra_tokens["prefix"] == "<fim_prefix>"


def test_expected_numbers_of_sequences_are_read(tmp_path):
    (tmp_path / "n.json").write_text('{"a": 5}')
    flags = ["--data-path", "a", "--per-dataset-sequences-path", str(tmp_path / "n.json")]
    assert data.gpt_dataset_config(configured(*flags)).sequences_per_dataset == {"a": 5}


# ---- micro-batches ----


def test_fixed_rows_become_a_batch(run):
    run("--reset-position-ids", "--eod-mask-loss", "--eos-token-id", "9", "--pad-token-id", "7")
    rows = ms.Tensor(np.array([[1, 9, 3, 4, 7], [1, 2, 3, 4, 5]], np.int32))
    batch = batches.get_batch(iter([{"input_ids": rows}]))
    assert batch["tokens"].asnumpy().tolist() == [[1, 9, 3, 4], [1, 2, 3, 4]]
    assert batch["labels"].asnumpy().tolist() == [[9, 3, 4, 7], [2, 3, 4, 5]]
    assert batch["loss_mask"].asnumpy().tolist() == [[1, 0, 1, 0], [1, 1, 1, 1]]
    assert batch["position_ids"].asnumpy().tolist() == [[0, 1, 0, 1], [0, 1, 2, 3]]
    assert batch["attention_mask"] is None


def test_document_masks_of_fixed_rows(run):
    run("--reset-attention-mask", "--eos-token-id", "9")
    batch = batches.get_batch(iter([{"input_ids": np.array([[1, 9, 3, 4, 5]])}]))
    documents = batch["attention_mask"]
    assert documents.queries.tolist() == documents.keys.tolist() == [[0, 0, 1, 1]]
    run("--attention-mask-type", "general", "--eos-token-id", "9")
    batch = batches.get_batch(iter([{"input_ids": np.array([[1, 9, 3, 4, 5]])}]))
    assert batch["attention_mask"].shape == (1, 1, 4, 4)


def test_a_loader_of_one_rank_passes_batches_on(run):
    run()
    loader = batches.SharedLoader([{"tokens": 1}, {"tokens": 2}])
    assert [next(loader)["tokens"] for _ in range(3)] == [1, 2, 1]
    assert (loader.epoch, loader.batches_in_epoch) == (1, 1)
    loader.close()
    idle = batches.SharedLoader(None, is_needed=False)
    assert [next(idle), next(idle)] == [{}, {}]
    idle.close()


class Samples:
    def __init__(self, length):
        self._length = length

    def __len__(self):
        return self._length

    def __getitem__(self, idx):
        return {"number": np.array(idx)}


def test_evaluation_goes_on_where_it_stopped_and_sets_are_told_apart(run):
    config = run("--eval-iters", "3", "--validation-set-names", "wiki", "code")
    sets = [Samples(100), Samples(50)]
    built = run_data.build_run_data(
        config,
        lambda _: (Samples(40), sets, Samples(20)),
        state=TrainState(2, 8, 12),
    )
    assert [one.suffix for one in built.valid] == ["-wiki", "-code"]
    assert [one.num_microbatches for one in (*built.valid, *built.test)] == [6, 6, 6]
    assert next(built.train)["number"].tolist() == [8, 9]
    assert next(built.valid[1].iterator)["number"].tolist() == [12, 13]
    assert next(built.test[0].iterator)["number"].tolist() == [0, 1]
    for one in (built.train, *(one.iterator for one in built.valid), built.test[0].iterator):
        one.close()


def test_an_evaluation_reads_batches_of_its_own_size(run):
    config = run("--eval-iters", "3", "--eval-global-batch-size", "2")
    built = run_data.build_run_data(config, lambda _: (Samples(40), Samples(50), Samples(20)))
    assert [one.num_microbatches for one in (*built.valid, *built.test)] == [3, 3]
    for one in (built.train, built.valid[0].iterator, built.test[0].iterator):
        one.close()


def test_a_new_dataset_starts_at_its_beginning(run):
    config = run("--new-dataset", "--eval-iters", "0")
    built = run_data.build_run_data(
        config, lambda _: (Samples(40), Samples(4), None), state=TrainState(2, 8, 0, 8)
    )
    assert next(built.train)["number"].tolist() == [0, 1]
    assert (built.valid, built.test) == ([], [])
    built.train.close()


def test_a_full_validation_reads_every_sample_once_each_time(run):
    config = run("--full-validation", "--eval-iters", "1")
    assert data.get_train_valid_test_num_samples(config) == (40, None, 4)
    (valid,) = run_data.build_run_data(config, lambda _: (None, Samples(7), None)).valid
    assert valid.num_microbatches == 3
    for _ in range(2):
        seen = [next(valid.iterator)["number"].tolist() for _ in range(valid.num_microbatches)]
        assert seen == [[0, 1], [2, 3], [4, 5]]
    valid.iterator.close()


@pytest.mark.parametrize(
    ("flags", "valid", "message"),
    [
        (
            ["--full-validation"],
            Samples(1),
            r"at least one micro-batch per rank \(2 samples\).*has 1",
        ),
        (
            ["--full-validation", "--dataloader-type", "external"],
            iter([]),
            "has no known number",
        ),
        (["--validation-set-names", "a", "b"], Samples(9), "2 names for 1 validation sets"),
    ],
)
def test_unusable_validation_sets_are_refused(run, flags, valid, message):
    config = run(*flags)
    with pytest.raises(ValueError, match=message):
        run_data.build_run_data(config, lambda _: (None, valid, None))


def test_a_reader_without_data_is_an_error(run, monkeypatch):
    config = run()
    monkeypatch.setattr(run_data, "_agreed_lengths", lambda _: [[5], [], []])
    with pytest.raises(RuntimeError, match="the datasets provider gave it none"):
        run_data.build_run_data(config, lambda _: (None, None, None))


def test_a_users_loader_is_taken_as_it_is(run):
    built = run_data.build_run_data(run(), None, [{"tokens": 1}])
    assert next(built.train) == {"tokens": 1}
    assert built.valid == built.test == []
    assert dataclasses.fields(built)[0].name == "train"
