# SPDX-License-Identifier: Apache-2.0
"""A restart ends in the newest complete checkpoint of its run, or in one line that says why not."""

import os
import secrets
import shutil
import subprocess
import sys

import checkpoint_killer as killer
import conversion_killer as conversions
import pytest

from mindspeed_ms.backend import comm
from mindspeed_ms.core.dist_checkpointing import opener, run_folder
from mindspeed_ms.core.dist_checkpointing.retention import continued_run
from mindspeed_ms.core.dist_checkpointing.run_folder import RunFolder
from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver, SaveSettings, Snapshot
from mindspeed_ms.formats import own_format
from mindspeed_ms.formats.containers import folder_lock, storage
from mindspeed_ms.formats.containers.folder_lock import FolderLock
from mindspeed_ms.formats.find import OnlyTornError, find_checkpoint, format_at, open_checkpoint
from mindspeed_ms.formats.registry import FORMATS
from mindspeed_ms.training.checkpoint_config import spec_of

pytestmark = pytest.mark.usefixtures("one_rank")


def save(root, iterations, container="safetensors", unhealthy=(), loaded=None, **settings):
    """A run that saves some iterations."""
    saver = CheckpointSaver(SaveSettings(root=root, container=container, **settings))
    run = (loaded and continued_run(root, loaded)) or secrets.token_hex(8)
    for iteration in iterations:
        saver.save(
            killer.tensors(iteration),
            Snapshot(
                iteration=iteration,
                common={
                    "iteration": iteration,
                    "value": iteration,
                    own_format.RUN: run,
                    own_format.UNHEALTHY: "loss is nan" if iteration in unhealthy else None,
                },
                rank_state={},
                config="",
            ),
        )
    return saver


def tear(root, iteration):
    (storage.iteration_folder(root, iteration) / storage.INDEX).unlink()


@pytest.mark.parametrize("container", ["ckpt", "safetensors"])
def test_a_torn_first_checkpoint_is_no_checkpoint(tmp_path, container):
    save(tmp_path, [4], container)
    tear(tmp_path, 4)
    (tmp_path / storage.LATEST).unlink()
    with pytest.raises(OnlyTornError, match=r"iteration 4 lacks index.json, which is written last"):
        find_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"lacks index.json.*complete iterations in .*: none"):
        find_checkpoint(tmp_path, 4)
    folder = storage.iteration_folder(tmp_path, 4)
    with pytest.raises(ValueError, match="no complete checkpoint: it lacks index.json"):
        find_checkpoint(folder)
    with pytest.raises(ValueError, match="one file of a checkpoint; name its folder"):
        open_checkpoint(find_checkpoint(folder / f"rank_00000.{container}"), spec_of)


def test_the_newest_complete_one_wins_over_torn_ones_and_markers(tmp_path):
    save(tmp_path, [2, 4, 6])
    tear(tmp_path, 6)  # the marker names it
    found = find_checkpoint(tmp_path)
    assert found.iteration == 4
    assert found.notes == (
        "WARNING: iteration 6 is passed over, it is incomplete: it lacks index.json, which is "
        "written last",
    )
    storage.set_latest(tmp_path, 2)  # killed before the marker moved
    found = find_checkpoint(tmp_path)
    assert found.iteration == 4 and "names iteration 2, but 4 was saved after it" in found.notes[0]
    storage.set_latest(tmp_path, 9)
    found = find_checkpoint(tmp_path)
    assert found.iteration == 4 and "names iteration 9, which is not there" in found.notes[0]
    (tmp_path / storage.LATEST).write_text("soon")
    found = find_checkpoint(tmp_path)
    assert found.iteration == 4 and "holds 'soon'" in found.notes[0]
    assert find_checkpoint(tmp_path, 2).iteration == 2
    for iteration in (2, 4):
        tear(tmp_path, iteration)
    storage.set_latest(tmp_path, 4)
    with pytest.raises(ValueError, match="no complete checkpoint, though its marker names"):
        find_checkpoint(tmp_path)


def test_checkpoints_of_another_run_are_not_newer(tmp_path):
    save(tmp_path, [50, 60])
    save(tmp_path, [2, 4])  # anew, in the same folder
    found = find_checkpoint(tmp_path)
    assert found.iteration == 4 and "iterations 50, 60 are of another run" in found.notes[0]
    save(tmp_path, [6], loaded=4)
    storage.set_latest(tmp_path, 4)
    assert find_checkpoint(tmp_path).iteration == 6
    save(tmp_path, [5], loaded=2)  # back behind 4 and 6: another run from there on
    found = find_checkpoint(tmp_path)
    assert found.iteration == 5 and "iterations 6, 50, 60 are of another run" in found.notes[0]


def test_retention_counts_the_present_run_only(tmp_path):
    save(tmp_path, [3, 13, 50])
    save(tmp_path, [10, 20, 30], keep=2)
    assert storage.complete_iterations(tmp_path) == [3, 13, 20, 30, 50]
    save(tmp_path, [40], keep=2, loaded=30)
    assert storage.complete_iterations(tmp_path) == [3, 13, 30, 40, 50]


def test_unhealthy_checkpoints_displace_no_healthy_one(tmp_path):
    save(tmp_path, [2, 4, 6, 8, 10, 12], unhealthy=(8, 10, 12), keep=2)
    assert storage.complete_iterations(tmp_path) == [6, 10, 12]
    found = find_checkpoint(tmp_path)
    assert found.iteration == 6
    assert found.notes == (
        "WARNING: iterations 10, 12 are passed over, they were saved after a step with NaN or Inf; "
        "--ckpt-step takes one",
    )
    named = find_checkpoint(tmp_path, 12)
    assert named.iteration == 12 and "numbers that are none (loss is nan)" in named.notes[0]
    tear(tmp_path, 6)
    with pytest.raises(ValueError, match="holds only checkpoints saved after a step with NaN"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("target", sorted(conversions.TARGETS))
def test_every_path_has_one_format(tmp_path, target):
    catalog = conversions.tiny_model(tmp_path / "source.safetensors", 1.0)
    conversions.converted(catalog, tmp_path / "t", conversions.TARGETS[target])
    for path in (tmp_path / "t").rglob("*"):
        claimed = [item.name for item in FORMATS if item.is_at(path)]
        assert len(claimed) <= 1, (path, claimed)
    found = find_checkpoint(tmp_path / "t")
    wanted = target.partition("-")[0]
    names = {"own": "mindspeed_ms", "megatron": "torch"}
    assert found.kind == names.get(wanted, wanted)
    assert format_at(found.folder) is found.format
    assert [item.name for item in FORMATS if item.is_at(tmp_path)] == []


# --- the folder of a run ------------------------------------------------------------------------


def test_a_second_run_is_refused_and_told_by_whom(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.acquire() is None
    with pytest.raises(ValueError, match=rf"in use by another run \(process {os.getpid()} on host"):
        second.acquire()
    first.release()
    assert list(tmp_path.iterdir()) == []
    assert second.acquire() is None
    second.release()


def test_the_lock_of_a_dead_process_is_taken_over_with_a_line(tmp_path):
    script = (
        "import os, sys; from pathlib import Path\n"
        "from mindspeed_ms.formats.containers.folder_lock import FolderLock\n"
        "FolderLock(Path(sys.argv[1])).acquire(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert (tmp_path / folder_lock.NAME).is_file()
    folder = RunFolder(tmp_path)
    (note,) = folder.open()
    assert "took over the lock" in note and "which has ended without giving it up" in note
    folder.close()
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_process_gives_the_folder_up(tmp_path):
    script = f"""
from pathlib import Path
from mindspeed_ms.core.dist_checkpointing.run_folder import RunFolder
folder = RunFolder(Path({str(tmp_path)!r}))
folder.open()
assert Path({str(tmp_path)!r}, "run.lock").exists()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_was_removed_meanwhile_is_made_again_with_a_line(tmp_path):
    root = tmp_path / "run"
    folder = RunFolder(root)
    folder.open()
    assert folder.keep() is None
    shutil.rmtree(root)
    assert "was removed or replaced while this run saved to it" in folder.keep()
    assert folder.keep() is None
    with pytest.raises(ValueError, match="in use by another run"):
        FolderLock(root).acquire()
    folder.close()


def test_a_removed_folder_that_another_run_has_taken_stays_its(tmp_path):
    root = tmp_path / "run"
    folder, other = RunFolder(root), FolderLock(root)
    folder.open()
    shutil.rmtree(root)
    root.mkdir()
    other.acquire()
    with pytest.raises(ValueError, match="in use by another run"):
        folder.keep()
    folder.close()
    assert not other.is_lost()
    other.release()


def test_a_save_into_a_removed_folder_says_so(tmp_path, caplog):
    saver = CheckpointSaver(SaveSettings(root=tmp_path / "run", container="safetensors"))
    saver.open()
    shutil.rmtree(tmp_path / "run")
    saver.save(
        killer.tensors(1), Snapshot(iteration=1, common={"iteration": 1}, rank_state={}, config="")
    )
    assert "earlier checkpoints may be gone" in caplog.text
    assert find_checkpoint(tmp_path / "run").iteration == 1
    saver.abandon()


@pytest.mark.parametrize(
    ("host", "pid", "is_refused"), [(None, None, True), (None, 0, False), ("elsewhere", 1, True)]
)
def test_without_locks_of_the_system_the_record_decides(
    tmp_path, monkeypatch, host, pid, is_refused
):
    def flock(handle, operation):
        raise OSError(folder_lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)
    lock = FolderLock(tmp_path)
    lock.acquire()
    record = folder_lock.json.loads((tmp_path / folder_lock.NAME).read_text())
    record["host"] = host or record["host"]
    record["pid"] = record["pid"] if pid is None else pid
    (tmp_path / folder_lock.NAME).write_text(folder_lock.json.dumps(record))
    second = FolderLock(tmp_path)
    if is_refused:
        with pytest.raises(ValueError, match="or remove .*run.lock if it has ended"):
            second.acquire()
    else:
        assert "process 0" in second.acquire()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"rank 0 on host \S+ cannot write to .*file/a"):
        RunFolder(tmp_path / "file" / "a").open()
    os.symlink("/etc/passwd", tmp_path / folder_lock.NAME)
    with pytest.raises(ValueError, match="cannot write to"):
        RunFolder(tmp_path).open()


class _TwoRanks:
    """What the second of two ranks hears from the first, which sees another folder."""

    def __init__(self, monkeypatch, broadcast, gathered):
        monkeypatch.setattr(comm, "get_rank", lambda: 1)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "broadcast_object", lambda mine, *unused: broadcast)
        monkeypatch.setattr(comm, "all_gather_object", lambda mine, *unused: [gathered, mine])


def test_a_save_folder_that_hosts_do_not_share_is_found_at_start(tmp_path, monkeypatch):
    def require_shared(folder):
        raise ValueError(f"the checkpoint folder {folder} is not shared")

    monkeypatch.setattr(run_folder, "require_shared", require_shared)
    with pytest.raises(ValueError, match="is not shared"):
        RunFolder(tmp_path).open()
    assert list(tmp_path.iterdir()) == [], "the lock is given up"


def test_one_rank_decides_and_the_others_say_what_they_miss(tmp_path, monkeypatch):
    save(tmp_path, [2])
    found = opener.find_together(tmp_path)
    view = opener._fingerprint(open_checkpoint(found, spec_of))
    _TwoRanks(monkeypatch, (found, None, ""), ("", view, "first"))
    assert opener.find_together(tmp_path / "nowhere").iteration == 2
    assert opener.open_together(found, spec_of).common["value"] == 2
    _TwoRanks(monkeypatch, None, ("", view + 1, "first"))
    with pytest.raises(ValueError, match=r"rank 1 on host .* another checkpoint there than on"):
        opener.open_together(found, spec_of)
    (found.folder / "rank_00000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"rank 1 on host .*rank_00000.safetensors is missing"):
        opener.open_together(found, spec_of)
    _TwoRanks(monkeypatch, (None, ValueError, "no such thing"), None)
    with pytest.raises(ValueError, match="no such thing"):
        opener.find_together(tmp_path)
