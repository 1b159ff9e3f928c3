# SPDX-License-Identifier: Apache-2.0
"""Saving that fails: found at the start, one line, nothing half-written. One rank."""

import errno
import shutil
from pathlib import Path

import pytest
from run_builder import open_run, trained

from mindspeed_ms.core.dist_checkpointing import run_folder, saver
from mindspeed_ms.engine.errors import RunFailure
from mindspeed_ms.engine.observe.record import FILE_NAME
from mindspeed_ms.formats.containers import storage

LONG = ("--train-iters", "6", "--logging-level", "20")
GO_ON = "--no-exit-on-save-failure"


def saving(folder, *flags, every="2"):
    return (*LONG, "--save", str(folder), "--save-interval", every, *flags)


def files(folder):
    return sorted(
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()
    )


@pytest.fixture
def full_disk(monkeypatch):
    """From a save on, or for some saves, files end in the middle."""
    original, calls = saver.safetensors.write_file, []

    def install(*failing):
        def write_file(path, entries):
            calls.append(path)
            if len(calls) not in failing:
                return original(path, entries)
            path.write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(saver.safetensors, "write_file", write_file)
        return calls

    return install


def test_a_folder_that_cannot_be_written_is_found_at_the_start(tmp_path):
    (tmp_path / "file").write_text("x")
    seen = []
    with pytest.raises(
        ValueError, match="rank 0 on host .* cannot write to .*file/a .*give --save"
    ):
        trained(*saving(tmp_path / "file" / "a"), on_step=seen.append)
    assert not seen


def test_the_probe_leaves_nothing_and_follows_no_link(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(run_folder.secrets, "token_hex", lambda length: "0")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".probe-0").symlink_to(victim)
    run, _ = open_run(*saving(tmp_path / "a"))
    run.close()
    assert victim.read_text() == "precious"
    assert files(tmp_path / "a") == []


def test_a_disk_without_room_for_one_checkpoint_is_found_at_the_start(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(storage, "free_bytes", lambda folder: 1000)
    seen = []
    with pytest.raises(RunFailure, match=r"a checkpoint takes 0\.\d MB, but 0\.0 MB are free"):
        trained(*saving(tmp_path), on_step=seen.append)
    assert not seen
    assert len(trained(*saving(tmp_path, GO_ON))) == 6
    assert "training goes on (exit_on_save_failure is off)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [(), ("--async-save",)], ids=["", "async"])
def test_a_full_disk_ends_the_run_and_leaves_what_was_complete(tmp_path, full_disk, kind):
    full_disk(2, 3, 4)
    with pytest.raises(RunFailure) as failure:
        trained(*saving(tmp_path, *kind))
    text = str(failure.value)
    assert "iteration 4 could not be written (rank 0: OSError: [Errno 28] No space left" in text
    assert "the newest complete one is iteration 2" in text
    left = {name.partition("/")[0] for name in files(tmp_path)}
    assert left == {"iter_0000002", storage.LATEST, FILE_NAME}
    assert not (tmp_path / "iter_0000004").exists()
    run, steps = open_run(*LONG, "--load", str(tmp_path))
    with run:
        run.train()
    assert len(steps) == 4


@pytest.mark.parametrize("kind", [(), ("--async-save",)], ids=["", "async"])
def test_a_run_may_go_on_without_a_checkpoint(tmp_path, full_disk, kind, capsys):
    full_disk(2)
    expected = trained(*LONG)
    assert trained(*saving(tmp_path, GO_ON, *kind)) == expected
    assert storage.complete_iterations(tmp_path) == [2, 6]
    assert storage.read_latest(tmp_path) == 6
    assert capsys.readouterr().out.count("training goes on (exit_on_save_failure is off)") == 1


def test_the_last_checkpoint_must_be_written(tmp_path, full_disk):
    full_disk(3, 4)
    with pytest.raises(RunFailure, match="iteration 6 could not be written"):
        trained(*saving(tmp_path, GO_ON))
    assert storage.complete_iterations(tmp_path) == [2, 4]


def test_a_failed_save_of_an_iteration_leaves_the_earlier_one(tmp_path, full_disk):
    trained(*saving(tmp_path, "--exit-interval", "4"))
    before = files(tmp_path)
    full_disk(1)
    with pytest.raises(RunFailure, match="iteration 4 could not be written"):
        trained(*saving(tmp_path, "--load", str(tmp_path), "--ckpt-step", "2"))
    assert files(tmp_path) == before


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "iter_0000002").write_text("x")
    with pytest.raises(RunFailure, match="folder .*iter_0000002 cannot be made .*File exists"):
        trained(*saving(tmp_path))
    (tmp_path / "iter_0000002").unlink()
    (tmp_path / storage.LATEST).mkdir()
    with pytest.raises(RunFailure, match="iteration 2 is complete, but rank 0: .*Is a directory"):
        trained(*saving(tmp_path))
    assert storage.complete_iterations(tmp_path) == [2]


def test_a_checkpoint_that_cannot_be_removed_is_no_failure(tmp_path, monkeypatch, capsys):
    def prune(root, newest, old):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(storage, "prune", prune)
    assert len(trained(*saving(tmp_path, "--keep-checkpoint-max", "1"))) == 6
    assert "older checkpoints could not be removed" in capsys.readouterr().out


def test_other_runs_checkpoints_stay(tmp_path):
    keep = ("--keep-checkpoint-max", "1")
    trained(*saving(tmp_path, *keep, "--exit-interval", "3", every="1"))
    trained(*saving(tmp_path, *keep))  # another run from the beginning
    assert storage.complete_iterations(tmp_path) == [3, 6]
    more = ("--train-iters", "8", "--override-opt_param-scheduler")
    trained(*saving(tmp_path, *keep, "--load", str(tmp_path), *more))
    assert storage.complete_iterations(tmp_path) == [3, 8]  # the same run went on


def test_a_folder_that_something_else_replaces_is_a_failed_save(tmp_path):
    folder = tmp_path / "run"

    def replace(step):
        if step.iteration == 3:
            shutil.rmtree(folder)
            folder.write_text("x")

    with pytest.raises(RunFailure, match="folder .*iter_0000004 cannot be made .*File exists"):
        trained(*saving(folder), on_step=replace)
    assert folder.read_text() == "x"
