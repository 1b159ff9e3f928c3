# SPDX-License-Identifier: Apache-2.0
"""A damaged file beside a checkpoint is one line, or holds what it held; none ends a process."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import input_kinds as kinds
import input_mutations as mutations
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import TINY_GPT2

from mindspeed_ms.backend import rank_table
from mindspeed_ms.backend.torchrun.deepspeed import requested
from mindspeed_ms.data.token_rows import open_rows
from mindspeed_ms.data.tokenizers.text_sources import find_inputs, json_lines
from mindspeed_ms.formats import peft
from mindspeed_ms.toolkit.models.file_size import file_size
from mindspeed_ms.toolkit.peft import LoraConfig
from mindspeed_ms.toolkit.trainer.arguments import TrainingArguments
from mindspeed_ms.toolkit.trainer.callbacks import TrainerState
from mindspeed_ms.toolkit.trainer.trainer import Trainer

ROOT = Path(__file__).parents[3]
FEW, MANY = 25, 600
LIBRARIES = {
    "gpt2": ("tokenizers", "regex"),
    "tokenizer": ("tokenizers", "jinja2"),
    "sentencepiece": ("sentencepiece",),
    "tiktoken": ("tiktoken",),
    "parquet": ("pyarrow",),
    "events": ("tensorboardX",),
}
INSIDE = [name for name in kinds.KINDS if name != "mindrecord"]


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", INSIDE)
def test_damage_is_one_line_named_or_harmless(tmp_path, name, count, first_seed):
    for library in LIBRARIES.get(name, ()):
        pytest.importorskip(library)
    kind, made = kinds.KINDS[name], tmp_path / "made"
    made.mkdir()
    kind.make(made)
    found = collections.Counter()
    for seed in range(first_seed, first_seed + count):
        done, result, said = mutations.attack(kind, made, tmp_path / "work", seed)
        assert result not in ("fault", "silent"), (seed, done, said)
        found[result] += 1
    assert found["refused"] > count // 8 or name == "events"


@pytest.mark.parametrize("count", [6, pytest.param(300, marks=pytest.mark.slow)])
def test_mindrecord_files_end_no_process(tmp_path, count, first_seed):
    """MindSpore's reader ends its process, or stays, when a file says what it does not hold."""
    words = [sys.executable, mutations.__file__, tmp_path, str(first_seed), str(count)]
    found = subprocess.run(
        [*words, "mindrecord"],
        capture_output=True,
        text=True,
        check=False,
        timeout=50 * count,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"},
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.startswith("mindrecord: {"), found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True])
def test_what_a_trainer_left_is_resumed_as_it_was_or_refused(
    tmp_path, monkeypatch, adapters, first_seed
):
    """Checkpoint, state, record and curves of its folder."""
    pytest.importorskip("tensorboardX")
    more = {"pet_method": "lora", "lora_config": LoraConfig(r=2)} if adapters else {}
    rows = np.random.default_rng(0).integers(0, 64, (24, 17), dtype=np.int32)

    def train(folder, steps, resumed):
        monkeypatch.chdir(folder)
        strategy = {"save_strategy": "steps", "save_steps": 2, "report_to": "tensorboard"}
        arguments = TrainingArguments(output_dir=f"{folder}/out", max_steps=steps, **strategy)
        made = Trainer(model=dict(TINY_GPT2), args=arguments, train_dataset=rows, **more)
        try:
            made.train(resume_from_checkpoint=resumed)
        finally:
            made.close()
        return [entry["loss"] for entry in made.state.log_history if "loss" in entry][-2:]

    (tmp_path / "made").mkdir()
    train(tmp_path / "made", 2, False)
    kind = kinds.Kind(lambda folder: None, lambda folder: train(folder, 4, True))
    for seed in range(first_seed, first_seed + 100):
        done, result, said = mutations.attack(kind, tmp_path / "made", tmp_path / "work", seed)
        assert result not in ("fault", "silent", "other"), (seed, done, said)


def test_mindrecord_files_of_other_numbers_are_refused(tmp_path):
    def written(name, kind, rows):
        writer = kinds.small_writer(tmp_path / name)
        writer.add_schema({"input_ids": {"type": kind, "shape": [-1]}}, "rows")
        writer.write_raw_data([{"input_ids": row} for row in rows])
        writer.commit()
        return open_rows(str(tmp_path / name), str(tmp_path / "cache"))

    ids = np.array([[-1, 0, 255, 256, 70_000, 2**31 - 1], [1, 2, 3, 4, 5, 6]], np.int64)
    assert np.array_equal(written("a.mindrecord", "int64", ids), ids)
    assert np.array_equal(written("b.mindrecord", "int32", ids.astype(np.int32)), ids)
    with pytest.raises(ValueError, match="it holds float32, not arrays of whole numbers"):
        written("c.mindrecord", "float32", ids.astype(np.float32))
    with pytest.raises(ValueError, match="row 1 of .* holds numbers that are no token ids"):
        written("d.mindrecord", "int64", [ids[0], ids[1] + 2**32])
    (tmp_path / "a.mindrecord.db").unlink()
    with pytest.raises(FileNotFoundError, match="a.mindrecord.db is missing beside .*; copy both"):
        open_rows(str(tmp_path / "a.mindrecord"), str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"worker-1\tslots=8\n", None),
        (b"worker-1   slots=08 # of the first rack\n\n", None),
        (b"\xff\xfe slots=8\n", "hostfile cannot be read: 'utf-8' codec can't decode"),
        (b"worker-1 slots=\xc2\xb2\n", "line 1 of .* is 'worker-1 slots=²', not of the form"),
        (b"worker-1 slots=0\n", "not of the form host slots=8 with 1 to 9999 ranks"),
        (b"worker-1 slots=" + b"9" * 5000, "line 1 of"),
        (b"a slots=8\na slots=4\n", "names host a twice"),
        (b"# none\n", "names no host"),
    ],
)
def test_host_files(tmp_path, text, line):
    file = tmp_path / "hostfile"
    file.write_bytes(text)
    words = ["--hostfile", str(file), "train.py"]
    if line is None:
        found = requested(words, {})
        assert (found.ranks_per_node, found.master_addr) == (8, "worker-1")
    else:
        with pytest.raises(ValueError, match=line):
            requested(words, {})


def test_host_files_that_are_none(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="the host file .*pipe is no regular file"):
        requested(["--hostfile", str(tmp_path / "pipe"), "train.py"], {})
    assert requested(["--hostfile", str(tmp_path / "no"), "train.py"], {}).nodes == 1
    assert "there is no host file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--include", "c"], "--include names host 'c', which is not in the host file"),
        (["--exclude", "a:9"], "--exclude names rank 9 of a, which has 2 slots"),
        (["--include", "a:x"], "--include 'a:x' is not of the form host or host:0,1"),
        (["--include", "a:"], "--include 'a:' is not of the form host or host:0,1"),
    ],
)
def test_hosts_that_are_chosen_are_there(tmp_path, words, line):
    file = tmp_path / "hostfile"
    file.write_text("a slots=2\nb slots=2\n")
    assert requested(["--hostfile", str(file), "--include", "a:0,1", "x.py"], {}).nodes == 1
    with pytest.raises(ValueError, match=line):
        requested(["--hostfile", str(file), *words, "x.py"], {})


@pytest.mark.parametrize("key", ["device_ip", "host_nic_ip"])
@pytest.mark.parametrize("value", [{}, [1], True, 5, "", "a b", None])
def test_addresses_of_a_rank_table_are_addresses(tmp_path, key, value):
    kinds._make_table(tmp_path)
    table = json.loads((tmp_path / "t.json").read_text())
    server = table["server_list"][1]
    (server["device"][0] if key == "device_ip" else server)[key] = value
    with pytest.raises(ValueError, match=f"{key} is .*; it must be an address, or reserve"):
        rank_table.parse(table)


def test_a_state_of_transformers_is_read(tmp_path):
    """Its best metric may be no number, and keys may be null or unknown."""
    state = {"epoch": None, "train_batch_size": None, "best_metric": float("nan"), "trial_name": 1}
    (tmp_path / "s.json").write_text(json.dumps({**state, "log_history": [{"step": 1, "a": 2.0}]}))
    found = TrainerState.load_from_json(tmp_path / "s.json")
    assert found.log_history == [{"step": 1, "a": 2.0}]
    for wrong in ({"log_history": [5]}, {"log_history": {}}, {"best_global_step": "x"}):
        (tmp_path / "s.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="which no trainer writes; correct it, or move"):
            TrainerState.load_from_json(tmp_path / "s.json")


def test_adapters_of_other_shapes_are_refused(tmp_path):
    """Also such as have as many elements; and experts that the model has not."""
    kind = kinds.KINDS["adapters"]
    kind.make(tmp_path)
    path = tmp_path / peft.WEIGHTS
    sound = load_file(path)
    name = next(key for key in sound if key.endswith("lora_A.weight"))
    save_file({**sound, name: np.ascontiguousarray(sound[name].T)}, path)
    with pytest.raises(ValueError, match="has shape .*, the model and adapter_config.json say"):
        kind.read(tmp_path)
    root = "base_model.model.model.layers.0.mlp.experts"
    save_file({**sound, f"{root}.lora_A.weight": np.zeros((4, 2), np.float32)}, path)
    with pytest.raises(ValueError, match="has shape .*, the model has 0 such experts"):
        kind.read(tmp_path)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_rslora", "false"),
        ("use_dora", 1),
        ("target_modules", [1, "q_proj"]),
        ("target_modules", False),
        ("layers_to_transform", True),
        ("rank_pattern", []),
    ],
)
def test_options_of_adapters_have_their_kinds(option, value):
    with pytest.raises(ValueError, match=f"LoraConfig: {option} is .*; it must be"):
        LoraConfig(**{option: value})


def test_links_between_folders_are_followed_once(tmp_path, caplog):
    """They give ways without number, of which none is a circle."""
    for number in range(30):
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}" / "t.txt").write_text("x")
        for other in range(number + 1, 30):
            (tmp_path / f"d{number}" / f"to{other}").symlink_to(f"../d{other}")
    assert len(find_inputs(str(tmp_path))) == 30
    assert "links to folders read already" in caplog.text


@pytest.mark.parametrize("listed", [5, [5], [{"filename": "../x"}], [{"filename": "/etc/passwd"}]])
def test_lists_of_saved_datasets_name_files_of_their_folder(tmp_path, listed):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": listed}))
    with pytest.raises(ValueError, match=r"state.json"):
        find_inputs(str(tmp_path))


def test_columns_without_texts_are_named(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": [b"\xff", b"a"]}), path)
    with pytest.raises(ValueError, match="a.parquet has a column that holds no texts"):
        list(json_lines(str(path), "parquet", ["text"], "file"))


@pytest.mark.parametrize("text", ["9" * 400, "9" * 20, "0", "1e9", "nan"])
def test_sizes_that_no_file_has(text):
    with pytest.raises(ValueError, match="is not the size of a file"):
        file_size(text)
