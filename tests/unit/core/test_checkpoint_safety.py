# SPDX-License-Identifier: Apache-2.0
"""Nothing that happens while a checkpoint is written can cost the one before it."""

import os
import tempfile
import zlib
from pathlib import Path

import checkpoint_killer as killer
import conversion_killer as conversions
import numpy as np
import pytest
from jobs import reported

from mindspeed_ms.core.dist_checkpointing.saver import CheckpointSaver, SaveSettings, Snapshot
from mindspeed_ms.formats import own_format
from mindspeed_ms.formats.containers import mindspore_file, storage
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers.new_file import NewFile
from mindspeed_ms.formats.find import find_checkpoint, open_checkpoint
from mindspeed_ms.training.checkpoint_config import spec_of

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def fast_folder(tmp_path):
    """A folder in memory, where syncing costs nothing; on disk if there is none."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("container", "ranks", "every"),
    [
        ("safetensors", 1, 17),
        ("ckpt", 2, 29),
        pytest.param("safetensors", 1, 1, marks=pytest.mark.slow),
        pytest.param("safetensors", 2, 1, marks=pytest.mark.slow),
        pytest.param("ckpt", 1, 1, marks=pytest.mark.slow),
        pytest.param("ckpt", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_kill_at_every_point_leaves_the_newest_complete_one(fast_folder, container, ranks, every):
    report = reported(killer.__file__, fast_folder, container, every, ranks)
    assert report["points"] > (60 if ranks == 1 else 20)
    assert set(report["with_older"]) >= {2, 5} and set(report["with_older"]) <= {2, 3, 4, 5}
    assert set(report["first"]) >= {0, 5} and set(report["first"]) <= {0, 3, 4, 5}
    if ranks == 1:  # what is found never goes back
        for values in (report["with_older"], report["first"]):
            assert values == sorted(values)


@pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", sorted(conversions.TARGETS))
def test_kill_at_every_point_of_a_conversion_leaves_a_whole_one_or_none(fast_folder, target, every):
    report = reported(conversions.__file__, fast_folder, target, every)
    known = [value for value in report["over"] if value is not None]
    assert known == sorted(known) and known[0] == 1.0 and known[-1] == 2.0
    assert target[:3] != "own" or None not in report["over"]  # a save of the same iteration is safe
    assert report["fresh"][0] is None and report["fresh"][-1] == 2.0


def _saver(root, **more):
    return CheckpointSaver(SaveSettings(root=root, **more))


def _snapshot(iteration, **common):
    return Snapshot(
        iteration=iteration,
        common={"iteration": iteration, "value": iteration, **common},
        rank_state={},
        config="",
    )


def _fail_writes(monkeypatch, fail_after):
    real, count = os.write, 0

    def write(handle, data):
        nonlocal count
        count += 1
        if count > fail_after:
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_full_disk_fails_loudly_and_names_what_is_left(tmp_path, monkeypatch, is_async):
    saver = _saver(tmp_path, is_async=is_async)
    saver.save(killer.tensors(1), _snapshot(1))
    saver.finish()
    _fail_writes(monkeypatch, 1)
    with pytest.raises(RuntimeError, match=r"iteration 2 could not.*No space.*is iteration 1"):
        saver.save(killer.tensors(2), _snapshot(2))
        saver.finish()
    assert killer.check(tmp_path) == 1


def test_the_copy_is_taken_before_training_goes_on(tmp_path, monkeypatch):
    saver = _saver(tmp_path, is_async=True)
    state = killer.tensors(1)
    saver.save(state, _snapshot(1))
    for tensor in state:
        np.asarray(killer.memory.flat_view(tensor.tensor))[...] = 99.0
    saver.finish()
    assert killer.check(tmp_path) == 1


def test_old_checkpoints_go_only_after_a_new_one_is_complete(tmp_path, monkeypatch):
    saver = _saver(tmp_path, keep=1, retain_interval=4)
    for iteration in (2, 4, 6):
        saver.save(killer.tensors(iteration), _snapshot(iteration))
    assert storage.complete_iterations(tmp_path) == [4, 6]
    _fail_writes(monkeypatch, 0)
    with pytest.raises(RuntimeError):
        saver.save(killer.tensors(8), _snapshot(8))
    assert storage.complete_iterations(tmp_path) == [4, 6]
    assert killer.check(tmp_path) == 6


def test_foreign_checkpoints_and_files_are_never_removed(tmp_path):
    foreign = tmp_path / "iter_0000001" / "mp_rank_00"
    foreign.mkdir(parents=True)
    (foreign / "model_optim_rng.pt").write_bytes(b"")
    saver = _saver(tmp_path, keep=1)
    for iteration in (2, 3):
        saver.save(killer.tensors(iteration), _snapshot(iteration))
        (tmp_path / f"iter_{iteration:07d}" / "notes.txt").write_text("mine")
    saver.save(killer.tensors(4), _snapshot(4))
    assert (foreign / "model_optim_rng.pt").is_file()
    assert (tmp_path / "iter_0000002" / "notes.txt").read_text() == "mine"


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_damage_is_named_and_another_checkpoint_can_be_chosen(tmp_path):
    saver = _saver(tmp_path)
    for iteration in (1, 2):
        saver.save(killer.tensors(iteration), _snapshot(iteration))
    folder = tmp_path / "iter_0000002"
    file = folder / "rank_00000.safetensors"
    _flip(file, -5)
    with pytest.raises(ValueError, match=r"rank_00000.safetensors has another checksum"):
        killer.check(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"rank_00000.safetensors has \d+ bytes instead of"):
        open_checkpoint(find_checkpoint(tmp_path), spec_of)
    file.unlink()
    with pytest.raises(ValueError, match=r"rank_00000.safetensors is missing.*--ckpt-step"):
        open_checkpoint(find_checkpoint(tmp_path), spec_of)
    _flip(folder / "index.json", 40)
    with pytest.raises(ValueError, match=r"index.json is damaged.*--ckpt-step"):
        open_checkpoint(find_checkpoint(tmp_path), spec_of)
    (folder / "index.json").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint; complete iterations in .*: 1"):
        find_checkpoint(tmp_path, 2)
    assert open_checkpoint(find_checkpoint(tmp_path, 1), spec_of).common["value"] == 1


def test_a_marker_that_says_nothing_is_refused(tmp_path):
    (tmp_path / storage.LATEST).write_text("soon")
    with pytest.raises(ValueError, match="holds 'soon', but must hold an iteration"):
        find_checkpoint(tmp_path)
    assert find_checkpoint(tmp_path / "nowhere") is None


def test_indexes_of_later_versions_are_refused(tmp_path):
    index = own_format.build_index([], {"iteration": 1})
    own_format.write_index(tmp_path, {**index, "version": 99})
    with pytest.raises(ValueError, match="version 99; this version reads"):
        own_format.read_index(tmp_path)


def test_room_is_taken_at_once_and_given_back(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OSError, match=r"(space|large).*1152921504607 MB are needed for it"):
        NewFile(path, 1 << 60)
    file = NewFile(path, 64 << 20)
    data = np.random.default_rng(0).bytes(20 << 20)
    file.write(data)
    record = file.close()
    assert (record.num_bytes, record.crc32) == (len(data), zlib.crc32(data))
    assert path.read_bytes() == data and path.stat().st_blocks * 512 < 32 << 20


ENTRIES = [
    safetensors.Entry("w", "F32", (2, 3), np.arange(6, dtype=np.float32)),
    safetensors.Entry("b", "BF16", (3,), np.array([1, 2, 3], np.uint16)),
    safetensors.Entry("n", "I64", (), np.array([7], np.int64)),
]


def test_safetensors_files_are_those_of_the_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    record, _ = safetensors.write_file(tmp_path / "a.safetensors", ENTRIES[::2], {"k": "v"})
    loaded = library.load_file(tmp_path / "a.safetensors")
    assert loaded["w"].tolist() == [[0, 1, 2], [3, 4, 5]] and loaded["n"].tolist() == 7
    assert record.num_bytes == (tmp_path / "a.safetensors").stat().st_size
    library.save_file({"x": np.ones((2, 2), np.float16)}, tmp_path / "b.safetensors", {"a": "b"})
    places, metadata = safetensors.read_header(tmp_path / "b.safetensors")
    assert places["x"].dtype == "F16" and places["x"].shape == (2, 2) and metadata == {"a": "b"}


def test_damaged_safetensors_headers_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.write_file(path, ENTRIES)
    data = path.read_bytes()
    for damaged, message in (
        (data[:5], "no complete safetensors file"),
        (data[:-1], "it was cut off"),
        (b"\xff" * 8 + data[8:], "no complete safetensors file"),
        (data[:8] + b"x" + data[9:], "header that cannot be read"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            safetensors.read_header(path)


def test_mindspore_files_are_those_of_mindspore(tmp_path, monkeypatch):
    import mindspore as ms

    monkeypatch.setattr(mindspore_file, "SLICE_BYTES", 8)  # w is cut into three
    path = tmp_path / "a.ckpt"
    mindspore_file.write_file(path, ENTRIES, with_crc=True)
    mindspore_file.checksum_of(path).verify()
    loaded = ms.load_checkpoint(str(path), crc_check=True)
    assert loaded["w"].asnumpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded["b"].dtype == ms.bfloat16 and loaded["n"].asnumpy() == 7
    tensors, _ = mindspore_file.read_index(path)
    assert len(tensors["w"].stretches) == 3 and tensors["w"].shape == (2, 3)
    theirs = tmp_path / "b.ckpt"
    ms.save_checkpoint(
        [{"name": "x", "data": ms.Tensor(np.ones((2, 2), np.float16))}],
        str(theirs),
        append_dict={"epoch": 3, "note": "text"},
        crc_check=True,
    )
    tensors, texts = mindspore_file.read_index(theirs)
    assert tensors["x"].shape == (2, 2) and tensors["x"].dtype == "F16"
    assert texts["note"] == "text"
    mindspore_file.checksum_of(theirs).verify()
    os.chmod(theirs, 0o644)
    data = theirs.read_bytes()
    for size in (3, 10, len(data) // 2):
        theirs.write_bytes(data[:size])
        with pytest.raises(ValueError, match="no complete MindSpore checkpoint file"):
            mindspore_file.read_index(theirs)
