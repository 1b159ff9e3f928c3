# SPDX-License-Identifier: Apache-2.0
"""From a task to a run: data, weights, length, and what is refused before anything long."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore.mindrecord import FileWriter
from tiny_models import TINY_GPT2

from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path
from mindspeed_ms.toolkit.data import minddata
from mindspeed_ms.toolkit.data.local import find_data
from mindspeed_ms.toolkit.mapping.parallel import World
from mindspeed_ms.toolkit.mapping.tree import Task, read_task
from mindspeed_ms.toolkit.trainer import tasks as module
from mindspeed_ms.toolkit.trainer.tasks import MicroBatches, build_config, run_task
from mindspeed_ms.toolkit.yaml_config import merge_trees

TINY = {
    "model": {"model_config": {**TINY_GPT2, "eos_token_id": 0}},
    "runner_config": {"batch_size": 4},
}


def task(**given):
    return read_task(merge_trees([TINY, given]))


def train_on(path, **more):
    return {"train_dataset": {"data_loader": {"dataset_dir": str(path), **more}}}


def rows(path, count=10, length=17):
    np.save(path, np.zeros((count, length), np.int32))
    return path


def token_file(prefix, tokens=161):
    with IndexedDatasetBuilder(get_bin_path(str(prefix)), np.int32) as builder:
        builder.add_item(np.zeros(tokens, np.int32))
        builder.end_document()
        builder.finalize(get_idx_path(str(prefix)))
    return prefix


def mindrecord(path, count=6):
    writer = FileWriter(str(path), shard_num=1)
    writer.add_schema({"input_ids": {"type": "int32", "shape": [17]}}, "rows")
    writer.write_raw_data([{"input_ids": np.zeros(17, np.int32)} for _ in range(count)])
    writer.commit()
    return path


def test_data_of_every_kind_is_found(tmp_path):
    one = rows(tmp_path / "a.npy")
    assert find_data(str(one), "data") == (str(one),)
    assert find_data(str(tmp_path), "data") == (str(one),)
    rows(tmp_path / "b.npy")
    assert find_data(str(tmp_path), "data") == (str(one), str(tmp_path / "b.npy"))
    (tmp_path / "tokens").mkdir()
    prefix = token_file(tmp_path / "tokens" / "wiki")
    assert find_data(str(prefix), "data") == find_data(str(prefix.parent), "data") == (str(prefix),)
    (tmp_path / "records").mkdir()
    record = mindrecord(tmp_path / "records" / "wiki.mindrecord")
    assert find_data(str(record.parent), "data") == (str(record),)


def test_data_that_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    rows(tmp_path / "mixed" / "a.npy")
    token_file(tmp_path / "mixed" / "b")
    record = mindrecord(tmp_path / "c.mindrecord")
    (tmp_path / "c.mindrecord.db").unlink()
    for name, message in (
        ("none", "data: .*/none is no folder, no .mindrecord or .npy file and no prefix"),
        ("none.npy", "data: there is no file .*none.npy"),
        ("empty", "data: folder .* holds no .mindrecord file, no .npy file, no .bin/.idx pair"),
        ("mixed", "data: folder .* holds .npy and .bin/.idx; it must hold files of one kind"),
        (record.name, "data: .*c.mindrecord.db is missing beside .*c.mindrecord; copy both"),
    ):
        with pytest.raises(ValueError, match=message):
            find_data(str(tmp_path / name), "data")


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 3),  # 10 rows in batches of 4
        ({"runner_config": {"epochs": 2}}, 5),
        ({"runner_config": {"epochs": 0.4}}, 1),
        ({"max_steps": 7}, 7),
    ],
)
def test_passes_over_the_data_become_steps(tmp_path, given, steps):
    rows(tmp_path / "a.npy")
    config = build_config(task(**train_on(tmp_path), **given), 1)
    assert config.training_config.training_iters == steps
    assert config.dataset_config.train_data_path == (str(tmp_path / "a.npy"),)


def test_steps_of_token_files_records_and_fewer_samples(tmp_path):
    prefix = token_file(tmp_path / "wiki")  # 160 tokens are 10 sequences
    assert build_config(task(**train_on(prefix)), 1).training_config.training_iters == 3
    record = mindrecord(tmp_path / "x.mindrecord")
    assert build_config(task(**train_on(record)), 1).training_config.training_iters == 2
    few = train_on(record, num_samples=4)
    assert build_config(task(**few), 1).training_config.training_iters == 1
    with pytest.raises(ValueError, match="num_samples 4 with 2 epochs would read other rows"):
        build_config(task(**few, runner_config={"epochs": 2}), 1)


def test_evaluation_reads_all_of_its_data_and_trains_nothing(tmp_path):
    rows(tmp_path / "a.npy")
    data = {"eval_dataset": {"data_loader": {"dataset_dir": str(tmp_path)}}}
    config = build_config(task(run_mode="eval", **data), 1)
    assert config.training_config.skip_train and config.training_config.full_validation
    assert config.dataset_config.valid_data_path == (str(tmp_path / "a.npy"),)
    while_training = task(do_eval=True, eval_step_interval=2, **data, **train_on(tmp_path))
    config = build_config(while_training, 1)
    assert config.training_config.eval_interval == 2 and config.training_config.full_validation
    config = build_config(task(**data, **train_on(tmp_path)), 1)
    assert config.training_config.eval_iters == 0
    in_passes = task(do_eval=True, eval_epoch_interval=2, **data, **train_on(tmp_path))
    assert build_config(in_passes, 1).training_config.eval_interval == 5


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "run_mode train needs data; give train_dataset.data_loader.dataset_dir"),
        ({"run_mode": "eval"}, ValueError, "run_mode eval needs data; give eval_dataset"),
        ({"load_checkpoint": "gpt9"}, OSError, "nothing found for 'gpt9'.*nothing is downloaded"),
    ],
)
def test_what_is_missing_is_said(tmp_path, monkeypatch, given, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        build_config(task(**given), 1)


def test_text_is_not_available_yet():
    with pytest.raises(ValueError, match="there is nothing to go on with; give input_data"):
        run_task(Task(run_mode="predict"))


class Dataset(list):
    """Batches with a known number, as MindSpore's datasets tell it."""

    def get_dataset_size(self):
        return len(self)

    def get_batch_size(self):
        return len(self[0])

    def create_dict_iterator(self, output_numpy, num_epochs):
        assert output_numpy and num_epochs == 1
        return iter([{"input_ids": batch} for batch in self])


def test_a_dataset_of_ones_own_tells_its_length():
    dataset = Dataset([np.zeros((8, 17))] * 3)
    assert build_config(task(), 1, dataset).training_config.training_iters == 6
    with pytest.raises(ValueError, match="length of the dataset is not known; give max_steps"):
        build_config(task(), 1, iter([]))
    assert build_config(task(max_steps=2), 1, iter([])).training_config.training_iters == 2
    for full_batch, steps in ((True, 3), (False, 6)):  # 24 rows of each rank, or of both
        asked = {"parallel": {"parallel_mode": 0}, "use_parallel": True}
        both = read_task(merge_trees([TINY, asked]), World(2))
        both = replace(both, full_batch=full_batch)
        assert build_config(both, 2, dataset).training_config.training_iters == steps


def rows_of_one_token():
    dataset = SimpleNamespace(
        batch_size=2, pad_token_id=None, eos_token_id=0, reset_attention_mask=False
    )
    return SimpleNamespace(
        dataset_config=dataset,
        model_config=SimpleNamespace(seq_length=0),
        training_config=SimpleNamespace(seed=1),
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_of_all_ranks_is_dealt_out(monkeypatch, rank):
    state = SimpleNamespace(
        get_data_parallel_rank=lambda: rank, get_data_parallel_world_size=lambda: 2
    )
    monkeypatch.setattr(minddata, "parallel_state", state)
    config = rows_of_one_token()
    batch = np.arange(8).reshape(8, 1)
    expected = [[2 * rank, 2 * rank + 1], [4 + 2 * rank, 5 + 2 * rank]]
    for dataset in ([batch], [{"input_ids": batch}], Dataset([batch])):
        parts = MicroBatches(dataset, config, True)
        assert [part["input_ids"].ravel().tolist() for part in parts] == expected
    with pytest.raises(ValueError, match="batches of 6 rows, .* of 2 on 2 .* use a multiple of 4"):
        list(MicroBatches([batch[:6]], config, True))


def test_a_batch_of_one_rank_is_cut(monkeypatch):
    state = SimpleNamespace(
        get_data_parallel_rank=lambda: 1, get_data_parallel_world_size=lambda: 2
    )
    monkeypatch.setattr(minddata, "parallel_state", state)
    config = rows_of_one_token()
    parts = list(MicroBatches([np.arange(4).reshape(4, 1)], config, False))
    assert [part["input_ids"].ravel().tolist() for part in parts] == [[0, 1], [2, 3]]


def test_a_model_of_ones_own_is_whole_on_every_rank():
    config = SimpleNamespace(parallel_config=SimpleNamespace(pipeline_model_parallel_size=2))
    with pytest.raises(ValueError, match="pipeline_stage is 2; set it to 1"):
        module._provider(config, lambda config: None)
