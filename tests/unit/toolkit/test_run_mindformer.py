# SPDX-License-Identifier: Apache-2.0
"""``run_mindformer.py``: its flags, its options, its paths, and what holds against what."""

import os
from pathlib import Path

import pytest

from mindspeed_ms.backend import env
from mindspeed_ms.toolkit import paths, run_mindformer
from mindspeed_ms.toolkit.launch.command import Parser
from mindspeed_ms.toolkit.run_mindformer import FLAGS, make_task, read_words
from mindspeed_ms.toolkit.yaml_config import leaves

CONFIG = "configs/gpt2/run_gpt2.yaml"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("MS_", "RANK_", "MINDSPEED_MS_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def task(*words):
    return make_task(["--config", CONFIG, *words])


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--run_mode eval", "run_mode", "eval"),
        ("--use_parallel True", "use_parallel", True),
        ("--use_parallel=false", "use_parallel", False),
        ("--dataset_dir /d", "train_dataset.data_loader.dataset_dir", "/d"),
        ("--run_mode eval --dataset_dir /d", "eval_dataset.data_loader.dataset_dir", "/d"),
        ("--train_dataset_dir /d", "train_dataset.data_loader.dataset_dir", "/d"),
        ("--eval_dataset_dir /d", "eval_dataset.data_loader.dataset_dir", "/d"),
        ("--dataset /d", "train_dataset.data_loader.dataset_dir", "/d"),
        ("--predict_data hello", "input_data", ["hello"]),
        ("--load_checkpoint /w", "load_checkpoint", "/w"),
        ("--resume_training True", "resume_training", True),
        ("--resume_training run_7", "resume_training", "run_7"),
        ("--seed 7", "seed", 7),
        ("--device_id 3", "context.device_id", 3),
        ("--device_target CPU", "context.device_target", "CPU"),
        ("--mode 1", "context.mode", 1),
        ("--profile True", "profile", True),
        ("--epochs 2", "runner_config.epochs", 2),
        ("--batch_size 4", "runner_config.batch_size", 4),
        ("--sink_mode no", "runner_config.sink_mode", False),
        ("--num_samples 9", "train_dataset.data_loader.num_samples", 9),
        ("--num_samples 9", "eval_dataset.data_loader.num_samples", 9),
        ("--gradient_accumulation_steps 2", "runner_config.gradient_accumulation_steps", 2),
        ("--output_dir /o", "output_dir", "/o"),
        ("--do_eval yes", "do_eval", True),
        ("--auto_trans_ckpt True", "auto_trans_ckpt", True),
        ("--remote_save_url obs://b", "remote_save_url", "obs://b"),
    ],
)
def test_each_flag_is_a_key_of_the_file(words, key, value):
    _, options, flags = read_words(["--config", CONFIG, *words.split()])
    assert dict(leaves(flags))[key] == value and options == {}


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (
            ["--options", "seed=5", "runner_config.epochs=2", "do_eval=True"],
            {"seed": 5, "runner_config.epochs": 2, "do_eval": True},
        ),
        (["--options", "optimizer.betas=[0.9,0.95]"], {"optimizer.betas": [0.9, 0.95]}),
        (["--optimizer.eps", "1e-6"], {"optimizer.eps": 1e-6}),
        (["--lr_schedule.type=cosine"], {"lr_schedule.type": "cosine"}),
    ],
)
def test_options_take_values_of_every_kind(words, values):
    _, options, flags = read_words(["--config", CONFIG, *words])
    assert dict(leaves(options)) == values and flags == {}


def test_the_stronger_setting_holds():
    assert task().sections["training_config"]["seed"] == 0
    assert task("--options", "seed=5").sections["training_config"]["seed"] == 5
    assert task("--options", "seed=5", "--seed=6").sections["training_config"]["seed"] == 6


def test_flags_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("MINDSPEED_MS_SEED", "8")
    monkeypatch.setenv("MINDSPEED_MS_EPOCHS", "4")
    monkeypatch.setenv("MINDSPEED_MS_DEVICE_TARGET", "CPU")  # not a flag: see script_context
    found = task("--seed", "9")
    assert found.sections["training_config"]["seed"] == 9 and found.epochs == 4
    assert found.device_target == "Ascend"
    monkeypatch.setenv("MINDSPEED_MS_DATASET", "/d")
    assert task().train_data == "/d"


def test_a_cloud_jobs_input(tmp_path):
    (tmp_path / "input" / "wiki").mkdir(parents=True)
    found = task("--dataset", "input", "--dataset_id", "wiki")
    assert found.train_data == "input/wiki"
    for words, message in (
        (["--dataset_id", "wiki"], "--dataset_id wiki needs --dataset"),
        (["--dataset", "input", "--dataset_id", "books"], "there is no input/books"),
        (["--dataset", "obs://bucket/wiki"], "--dataset: remote paths are not read; copy obs://"),
    ):
        with pytest.raises(ValueError, match=message):
            task(*words)


@pytest.mark.parametrize("scheme", ["obs", "s3", "S3", "https", "hdfs"])
@pytest.mark.parametrize(
    "flag",
    ["load_checkpoint", "train_dataset_dir", "eval_dataset_dir", "output_dir", "dataset_dir"],
)
def test_remote_paths_are_refused_with_the_way_out(scheme, flag):
    with pytest.raises(ValueError) as caught:
        task(f"--{flag}", f"{scheme}://bucket/x")
    text = f"remote paths are not read; copy {scheme}://bucket/x to a local folder and name that"
    assert str(caught.value).endswith(text)
    assert "nothing is uploaded" in task("--remote_save_url", "obs://bucket/x").notes[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runmode", "train"], "'--runmode' is no flag; did you mean '--run_mode'"),
        (["train"], "'train' is no flag"),
        (["--sed", "3"], "'--sed' is no flag; did you mean '--seed'"),
        (["--options", "seed"], "--options 'seed': write key=value"),
        (["--options", "sead=3"], "unknown key 'sead' in the file; did you mean 'seed'"),
        (["--optimizer.eps"], "--optimizer.eps needs a value"),
        (["--optimizer.epps=3"], "unknown key 'epps' in optimizer; did you mean 'eps'"),
        (["--run_mode", "tran"], "run_mode 'tran': use train, finetune, eval, predict"),
        (["--run_mode", "finetune"], "give load_checkpoint"),
    ],
)
def test_words_that_cannot_be_understood(words, message):
    with pytest.raises(ValueError, match=message):
        task(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "many"], "argument --seed: must be a number, not 'many'"),
        (["--sink_mode", "maybe"], "argument --sink_mode: must be true or false"),
        (["--epochs"], "argument --epochs: expected one argument"),
    ],
)
def test_values_that_cannot_be_read(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        task(*words)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and message in error and error.count("\n") == 1


def test_the_file_is_found_from_anywhere():
    assert read_words(["--config", CONFIG])[0] == ROOT / CONFIG
    with pytest.raises(ValueError, match="--config none.yaml: there is no such file"):
        read_words(["--config", "none.yaml"])
    with pytest.raises(ValueError, match="remote paths are not read"):
        read_words(["--config", "s3://bucket/run.yaml"])


def test_paths_are_relative_to_where_the_launch_script_was_called(tmp_path, monkeypatch):
    rank = tmp_path / "mf_parallel0"
    rank.mkdir()
    monkeypatch.chdir(rank)
    (tmp_path / "data").mkdir()
    assert paths.usable("data") == "data"
    monkeypatch.setenv(paths.LAUNCH_FOLDER, str(tmp_path))
    assert paths.usable("data") == str(tmp_path / "data")
    assert paths.usable("/data") == "/data" and paths.usable("") == ""
    (rank / "own").mkdir()
    assert paths.usable("own") == "own"  # it is there, and not where the script was called
    found = task("--dataset_dir", "data", "--load_checkpoint=data")
    assert found.train_data == found.checkpoint == str(tmp_path / "data")
    assert found.sections["training_config"]["output_dir"] == str(tmp_path / "output")


def test_the_help_names_every_flag(capsys):
    assert isinstance(run_mindformer.parser(), Parser)
    with pytest.raises(SystemExit) as caught:
        read_words(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for name in (*FLAGS, "config", "dataset", "dataset_id", "predict_data", "options"):
        assert f"--{name}" in text
    assert env.get("MINDSPEED_MS_SEED") is None
