# SPDX-License-Identifier: Apache-2.0
"""Ranks that mean different runs find out before they begin; on several hosts, folders too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mindspeed_ms import ops
from mindspeed_ms.backend import comm
from mindspeed_ms.config.build import assemble
from mindspeed_ms.core.dist_checkpointing import shared_folders
from mindspeed_ms.engine import agreement
from mindspeed_ms.engine.start import set_up_run

SECTIONS = {
    "model_config": {
        "vocab_size": 64,
        "num_layers": 2,
        "hidden_size": 32,
        "ffn_hidden_size": 64,
        "num_attention_heads": 4,
        "seq_length": 32,
    },
    "training_config": {"seed": 1234, "training_iters": 4, "global_batch_size": 4},
    "optimizer_config": {"learning_rate": 5e-3},
    "dataset_config": {"batch_size": 1},
    "parallel_config": {},
}
CHANGES = {
    "learning_rate": (
        "optimizer_config",
        6e-3,
        "optimizer_config.learning_rate is 0.005 on rank 0",
    ),
    "seed": ("training_config", 7, "training_config.seed is 1234 on rank 0"),
    "global_batch_size": ("training_config", 8, "training_config.global_batch_size is 4"),
    "batch_size": ("dataset_config", 2, "dataset_config.batch_size is 1"),
    "seq_length": ("model_config", 16, "model_config.seq_length is 32"),
    "num_layers": ("model_config", 4, "model_config.num_layers is 2"),
    "compute_dtype": ("model_config", "bfloat16", "model_config.compute_dtype is "),
    "tensor_model_parallel_size": ("parallel_config", 2, "tensor_model_parallel_size is 1"),
}


def sections(**changes):
    own = {name: dict(values) for name, values in SECTIONS.items()}
    for name, (section, value) in changes.items():
        own[section][name] = value
    return own


def config_worker(change):
    """The error of a run whose last rank has another setting."""
    is_last = comm.get_rank() == comm.get_world_size() - 1
    name, section, value = change
    config = assemble(sections(**({name: (section, value)} if is_last else {})))
    try:
        set_up_run(config)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_named_on_all_ranks(dist_run, name):
    section, value, message = CHANGES[name]
    texts = dist_run(config_worker, ranks=2, change=(name, section, value))
    assert texts[0] == texts[1]
    assert "the ranks of this job do not agree: " in texts[0] and message in texts[0]
    assert " on rank 1 (" in texts[0]


def test_equal_settings_pass_and_paths_may_differ(dist_run):
    assert dist_run(config_worker, ranks=2, change=("seed", "training_config", 1234)) == [None] * 2
    cache = ("data_cache_path", "dataset_config", "/elsewhere")
    assert dist_run(config_worker, ranks=2, change=cache) == [None] * 2


def other_facts_worker(fact):
    """A rank with another version, or other kernels."""
    if comm.get_rank() == 1:
        if fact == "version":
            agreement.mindspeed_ms.__version__ += ".post1"
        else:
            ops.select("portable")
    try:
        agreement.require_agreement(assemble(sections()))
    except ValueError as error:
        return str(error)
    finally:
        agreement.mindspeed_ms.__version__ = agreement.mindspeed_ms.__version__.removesuffix(
            ".post1"
        )
        ops.select("auto")
    return None


@pytest.mark.parametrize(
    ("fact", "message"), [("version", "mindspeed_ms is version "), ("kernels", "kernels is ops: ")]
)
def test_another_package_and_other_kernels_are_named(dist_run, fact, message):
    texts = dist_run(other_facts_worker, ranks=2, fact=fact)
    assert texts[0] == texts[1] and message in texts[0]


def as_hosts(worker):
    """Let every rank be a host of its own."""
    comm_local_rank = comm.get_local_rank
    comm.get_local_rank = lambda: 0
    try:
        return worker()
    except ValueError as error:
        return str(error)
    finally:
        comm.get_local_rank = comm_local_rank


def data_worker(folder):
    config = assemble(sections())
    dataset = dataclasses.replace(
        config.dataset_config, data_path=(f"{folder}/rank{comm.get_rank()}",)
    )
    sizes = {**SECTIONS, "dataset_config": dataset.to_dict()}
    return as_hosts(lambda: agreement.require_agreement(assemble(sizes)))


@pytest.mark.parametrize("kind", ["equal", "content", "half"])
def test_another_corpus_on_one_host_is_named(dist_run, tmp_path, kind):
    tokens = np.arange(3000, dtype=np.uint16)
    for rank in range(2):
        if rank == 1 and kind == "content":
            tokens[1234] += 1
        if rank == 1 and kind == "half":
            tokens = tokens[:1500]
        tokens.tofile(tmp_path / f"rank{rank}.bin")
        (tmp_path / f"rank{rank}.idx").write_bytes(b"index")
    texts = dist_run(data_worker, ranks=2, folder=str(tmp_path))
    if kind == "equal":
        assert texts == [None, None]
    else:
        assert texts[0] == texts[1]
        assert "data 0.bin is 6000 bytes with checksum" in texts[0] and "idx" not in texts[0]


def folder_worker(folder, lacking):
    """Rank 1 is a host on which a file of rank 0 does not appear."""
    shared_folders._PATIENCE_SECONDS = 0.2
    sizes, exists = shared_folders._sizes, Path.exists
    if comm.get_rank() == 1 and lacking == "probe":
        Path.exists = lambda path: False
    if comm.get_rank() == 1 and lacking == "file":
        shared_folders._sizes = lambda path: {**sizes(path), "b": 0}
    if comm.get_rank() == 1 and lacking == "all":
        shared_folders._sizes = lambda path: {}
    try:
        if lacking == "probe":
            return as_hosts(lambda: shared_folders.require_shared(Path(folder) / "new"))
        return as_hosts(lambda: shared_folders.require_everywhere(Path(folder)))
    finally:
        shared_folders._sizes, Path.exists = sizes, exists


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("nothing", None),
        ("probe", "is not shared: what rank 0 writes there does not appear on "),
        ("file", "(rank 1): missing, or of another size: b; put it on a disk of all hosts"),
        ("all", "(rank 1): nothing of it is there"),
    ],
)
def test_a_host_that_does_not_see_the_folder_is_named(dist_run, tmp_path, lacking, message):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    texts = dist_run(folder_worker, ranks=2, folder=str(tmp_path), lacking=lacking)
    assert texts[0] == texts[1]
    assert texts[0] is None if message is None else message in texts[0]
    assert not list(tmp_path.rglob(".shared_*"))


def deciding_worker():
    def decide():
        assert comm.get_rank() == 0
        raise ValueError("nothing there")

    assert shared_folders.first_rank_decides(lambda: comm.get_rank()) == 0
    with pytest.raises(ValueError, match="nothing there"):
        shared_folders.first_rank_decides(decide)
    return True


def test_one_rank_decides_and_all_follow(dist_run):
    assert all(dist_run(deciding_worker, ranks=2))
