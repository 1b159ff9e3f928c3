# SPDX-License-Identifier: Apache-2.0
"""Records, rows and arguments that are wrong: one line that says where, before anything starts."""

import logging

import numpy as np
import pytest

from mindspeed_ms import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from mindspeed_ms.toolkit.data.conversations import Writer

IDS = np.arange(17) % 60


@pytest.fixture(scope="module")
def model():
    config = GPT2Config(num_layers=1, hidden_size=16, num_heads=2, vocab_size=64, seq_length=16)
    return GPT2LMHeadModel(config)


def trainer(model, folder, data, **more):
    arguments = TrainingArguments(str(folder), max_steps=1, batch_size=2, report_to="none")
    return Trainer(model=model, args=arguments, train_dataset=data, **more)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "train_dataset, record 1: input_ids is 1; give a list of whole numbers"),
        ([{"input_ids": IDS}, {"input_ids": None}], "record 2: input_ids is None; give a list of"),
        ([{"input_ids": IDS * 1.5}] * 2, "record 1: input_ids is array([ 0. ,"),
        ([{"input_ids": [[1, 2], [3]]}] * 2, "record 1: input_ids is [[1, 2], [3]]; give a list"),
        ([{"input_ids": []}] * 4, "no record has a token to predict, which takes two tokens"),
        ([{"input_ids": IDS, "labels": [-100] * 17}] * 2, "no record has a token to predict"),
        ([{"input_ids": IDS, "labels": [1]}] * 2, "a row has 17 input_ids and 1 labels"),
        ([{"input_ids": IDS, "attention_mask": [1]}] * 2, "has 17 input_ids and 1 attention_mask"),
        ([{"input_ids": IDS, "attention_mask": [7] * 17}] * 2, "other numbers than 0 and 1"),
        ({"input_ids": IDS}, "train_dataset is a mapping with the keys input_ids; give a list"),
        ([np.ones((2, 17))], "the column input_ids of a batch holds float64; tokens are whole"),
    ],
)
def test_wrong_rows_are_named(model, tmp_path, data, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is compared below)
        trainer(model, tmp_path, data).train()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (5, "it is 5; give a mapping"),
        ({"text": 5}, "it must have input_ids, text (a text), messages"),
        ({"messages": 5}, "the messages are 5; give a list with at least one message"),
        ({"messages": []}, "the messages are None; give a list"),
        ({"messages": ["hello"]}, "a message is 'hello'; it must have role"),
        ({"messages": [{"content": "a"}]}, "it must have role, a text, and content"),
        ({"messages": [{"role": "user"}]}, "it must have role, a text, and content"),
        ({"conversations": [{"from": "gpt"}]}, "it must have role, a text, and content"),
        ({"prompt": "a", "completion": 5}, "one of prompt and completion is a text"),
        ({"prompt": 3, "completion": 5}, "the messages are 3; give a list"),
    ],
)
def test_wrong_records_are_named(record, message):
    with pytest.raises(ValueError, match="^data, record 1: ") as caught:
        list(Writer(None).write_all([record], "data"))
    assert message in str(caught.value)


def test_keys_that_are_not_read_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        list(Writer(None).write_all([{"input_ids": IDS, "weights_of_mine": IDS}], "data"))
    assert "records of ids have weights_of_mine too, which is not read" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"save_steps": "x"}, "save_steps is 'x', but must be a number"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs is nan, but must be a number"),
        ({"num_train_epochs": -1}, "num_train_epochs is -1, but must be a number above 0"),
        ({"fp16": "x"}, "fp16 is 'x', but must be true or false"),
        ({"max_steps": True}, "max_steps is True, but must be a whole number"),
        ({"report_to": 5}, "report_to is 5, but must be text"),
        ({"metric_for_best_model": 5}, "metric_for_best_model is 5, but must be text"),
        ({"max_length": -4}, "max_length is -4, but must be a number above 0"),
        (
            {"neftune_noise_alpha": -1},
            "neftune_noise_alpha is -1, but must be a number of at least",
        ),
        ({"output_dir": ""}, "output_dir ('') is empty; give a value or leave it out"),
    ],
)
def test_arguments_of_another_kind(given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the text is compared below)
        TrainingArguments(**given)
    assert message in str(caught.value)


def test_kinds_that_mean_the_same():
    given = TrainingArguments(report_to=[], resume_from_checkpoint="", batch_size=np.int64(4))
    assert (given.report_to, given.resume_from_checkpoint, given.batch_size) == ("none", None, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda made: made.predict(input_data=5), TypeError, "input_data is 5; give a text or"),
        (lambda made: made.train(train_checkpoint=5), TypeError, "5 is neither a name nor a path"),
        (lambda made: made.plan(world_size=0), ValueError, "world_size is 0, but must be a whole"),
        (lambda made: made.plan(world_size="x"), ValueError, "world_size is 'x', but must be a"),
    ],
)
def test_calls_that_cannot_be(model, tmp_path, call, error, message):
    with pytest.raises(error) as caught:
        call(trainer(model, tmp_path, [{"input_ids": IDS}] * 2))
    assert message in str(caught.value)
