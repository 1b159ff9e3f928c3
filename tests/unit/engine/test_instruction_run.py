# SPDX-License-Identifier: Apache-2.0
"""A run on instruction data: its loss is that of the answers, padded or not, and it resumes."""

import numpy as np
import pytest
from run_builder import configuration, provider

from mindspeed_ms.backend import memory
from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from mindspeed_ms.data.instruction_dataset import KEYS, prefix_of
from mindspeed_ms.engine.datasets import train_valid_test_datasets_provider
from mindspeed_ms.engine.run import Run, StepFunctions

OUT = -100
BASE = ("--is-instruction-dataset", "--stage", "sft", "--split", "100,0,0", "--eval-iters", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prefix of records of 4 to 14 tokens."""
    prefix, rng = str(tmp_path_factory.mktemp("chats") / "chats"), np.random.default_rng(0)
    records = []
    for _ in range(11):
        asked, answered = rng.integers(2, 8, 2)
        ids = rng.integers(1, 60, asked + answered)
        labels = np.where(np.arange(len(ids)) < asked, OUT, ids)
        records.append(dict(zip(KEYS, (ids, np.ones_like(ids), labels), strict=True)))
    for key in KEYS:
        path = prefix_of(prefix, key)
        with IndexedDatasetBuilder(get_bin_path(path), np.int32) as builder:
            for record in records:
                builder.add_document(record[key], [len(record[key])])
            builder.finalize(get_idx_path(path))
    return prefix


def opened(data, *flags):
    steps = []
    config = configuration(*BASE, "--data-path", data, *flags)
    run = Run(
        config,
        provider,
        train_valid_test_datasets_provider,
        functions=StepFunctions(on_step=lambda step: steps.append(step.losses["lm loss"])),
    )
    return run, steps


def trained(data, *flags):
    run, steps = opened(data, *flags)
    with run:
        run.train()
    return steps


def answers_loss(run):
    """Mean over the answers' tokens of the first batch, from the model's logits."""
    dataset = train_valid_test_datasets_provider((8, None, None))[0]
    total, count = 0.0, 0
    for number in range(8):
        ids, labels = (
            store.get(int(dataset.order[number]))
            for store in (dataset.dataset.ids, dataset.dataset.labels)
        )
        tokens = memory.from_numpy(ids[None].astype(np.int32))
        positions = memory.from_numpy(np.arange(len(ids), dtype=np.int32)[None])
        logits = memory.as_numpy(run.model[0](tokens, positions, None)).astype(np.float64)
        logits = logits.reshape(len(ids), -1)
        for place, label in enumerate(labels[1:]):
            if label != OUT:
                row = logits[place]
                total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[label]
                count += 1
    return total / count


def test_the_loss_is_that_of_the_answers(data):
    run, steps = opened(data, "--train-iters", "1")
    with run:
        with run.active():
            expected = answers_loss(run)
        run.train()
    assert steps[0] == pytest.approx(expected, rel=1e-5)


def test_rows_that_are_not_filled_up_train_the_same(data):
    whole = trained(data)
    for more in ("--no-pad-to-seq-lengths", "--variable-seq-lengths"):
        assert trained(data, more, "--pad-to-multiple-of", "2") == pytest.approx(whole, rel=1e-5)


def test_a_run_goes_on_in_its_data(data, tmp_path):
    flags = ("--train-iters", "4", "--full-shuffle-instruction-dataset", "--padded-samples")
    whole = trained(data, *flags)
    saved = ("--save", str(tmp_path), "--save-interval", "2")
    trained(data, *flags, *saved, "--exit-interval", "2")
    assert trained(data, *flags, "--load", str(tmp_path)) == whole[2:]


def test_records_of_a_row_see_themselves_only(data, tmp_path):
    """Two records in one row, told apart, have the loss of the two in rows of their own."""
    prefix = str(tmp_path / "packs")
    ids = np.array([5, 6, 7, 63, 8, 9, 10, 63])
    labels = np.array([OUT, 6, 7, 63, OUT, 9, 10, 63])
    rows = {"one": [(ids, labels)] * 8, "two": [(ids[:4], labels[:4]), (ids[4:], labels[4:])] * 4}
    losses = {}
    for name, records in rows.items():
        for place, key in enumerate(("input_ids", "labels")):
            path = prefix_of(prefix + name, key)
            with IndexedDatasetBuilder(get_bin_path(path), np.int32) as builder:
                for record in records:
                    builder.add_document(record[place], [len(record[place])])
                builder.finalize(get_idx_path(path))
        flags = ("--reset-attention-mask", "--train-iters", "1")
        losses[name] = trained(prefix + name, *flags)
    assert losses["one"] == pytest.approx(losses["two"], rel=1e-5)
