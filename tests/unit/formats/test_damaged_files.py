# SPDX-License-Identifier: Apache-2.0
"""A damaged checkpoint is refused in one line, or holds what it held."""

import collections
import contextlib
import os
import shutil
import signal
from pathlib import Path

import conversion_killer as conversions
import file_mutations as mutations
import hostile_files as hostile
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import reported

from mindspeed_ms.files.regular_file import is_regular, read_json, read_text
from mindspeed_ms.formats.containers import mindspore_file, sealed_json
from mindspeed_ms.formats.containers import safetensors_file as safetensors
from mindspeed_ms.formats.containers.safe_pickle import SafeUnpickler
from mindspeed_ms.formats.containers.torch_file import TorchFile
from mindspeed_ms.training.conversion import ConvertOptions, open_source

HARMLESS = {"memo at 2**31", "a frame that is only claimed", "a call"}
"""Read without harm: nothing is taken, nothing is called."""

FEW, MANY = 14, 140


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Sound checkpoints of every format, and what they hold."""
    root = tmp_path_factory.mktemp("made")
    return {kind: mutations.make(root, kind) for kind in mutations.FORMATS}


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", mutations.FORMATS)
def test_damage_is_refused_in_one_line_or_harmless(tmp_path, made, kind, count, first_seed):
    sound = mutations.view(made[kind], kind)
    found = collections.Counter()
    for seed in range(first_seed, first_seed + count):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made[kind], folder)
        mutation = mutations.damage(folder, kind, seed)
        result = mutations.outcome(folder, kind, sound, mutation)
        assert result != "other" or not mutation.is_visible, (seed, mutation)
        found[result] += 1
    assert found["refused"] > count // 4


@pytest.mark.parametrize("kind", hostile.KINDS)
def test_files_that_want_to_hurt_are_one_line(tmp_path, kind):
    """Within seconds, and half a gigabyte."""
    report = reported(hostile.__file__, tmp_path, kind, seconds=300)
    assert len(report) > 5
    for name, found in report.items():
        assert found.startswith("read" if name in HARMLESS else "refused: "), (name, found)


@contextlib.contextmanager
def at_once():
    """What blocks fails."""

    def ring(*unused):
        raise TimeoutError("a reader waits for a pipe")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


UNREAD = ("metadata.json", "README.md")


@pytest.mark.parametrize("kind", mutations.FORMATS)
@pytest.mark.parametrize("special", ["pipe", "device", "folder", "circle"])
def test_pipes_devices_and_folders_under_a_files_name(tmp_path, made, kind, special):
    shutil.copytree(made[kind], tmp_path / "c")
    for path in sorted((tmp_path / "c").rglob("*")):
        # Descriptions for people, or of the way back, are not read.
        if not path.is_file() or path.name in UNREAD or path.suffix == ".yaml":
            continue
        sound = path.read_bytes()
        path.unlink()
        if special == "pipe":
            os.mkfifo(path)
        elif special == "device":
            os.symlink("/dev/zero", path)
        elif special == "circle":
            os.symlink(path.name, path)
        else:
            path.mkdir()
        with at_once():
            if path.name in ("latest_checkpointed_iteration.txt", "description.json"):
                with contextlib.suppress(ValueError, OSError):  # others may do without
                    mutations.opened(tmp_path / "c", kind)
            else:
                with pytest.raises((ValueError, OSError)):
                    mutations.opened(tmp_path / "c", kind)
        path.rmdir() if special == "folder" else path.unlink()
        path.write_bytes(sound)
    mutations.opened(tmp_path / "c", kind)


def test_links_out_of_a_checkpoint_are_not_followed(tmp_path, made):
    outside = tmp_path / "outside"
    for kind in ("own-safetensors", "mindspore-ckpt", "huggingface-shards", "torch_dist"):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(made[kind], tmp_path / "c")
        suffixes = (".safetensors", ".ckpt", ".distcp")
        path = next(p for p in sorted((tmp_path / "c").rglob("*")) if p.suffix in suffixes)
        shutil.move(path, outside)
        path.symlink_to(outside)
        with pytest.raises(ValueError, match="is a link to"):
            open_source(tmp_path / "c", ConvertOptions())
    # Hugging Face's download cache links from each version into its store.
    hub = tmp_path / "hub"
    (hub / "blobs").mkdir(parents=True)
    shutil.copytree(made["huggingface"], hub / "snapshots" / "main")
    for path in (hub / "snapshots" / "main").iterdir():
        shutil.move(path, hub / "blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    assert open_source(hub / "snapshots" / "main", ConvertOptions())[0].tensors


@pytest.mark.parametrize("kind", ["megatron", "torch", "experts", "mindspore-ckpt"])
def test_files_of_ranks_that_changed_places_are_refused(tmp_path, made, kind):
    """Each is sound, and the sizes fit; the model would be another."""
    paths = [path for path in made[kind].rglob("*") if path.suffix in (".pt", ".ckpt")]
    for name in {path.name for path in paths}:
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(made[kind], tmp_path / "c")
        first, second = sorted((tmp_path / "c").rglob(name))
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
        with pytest.raises(ValueError, match="copy the checkpoint again|damaged|checksum|other"):
            mutations.view(tmp_path / "c", kind)


SEEDS = {
    "safetensors": (safetensors.read_header, "model.safetensors"),
    "mindspore": (mindspore_file.read_index, "network.ckpt"),
    "torch": (TorchFile, "model_optim_rng.pt"),
    "json": (read_json, "config.json"),
    "sealed": (lambda path: sealed_json.read(path, 1 << 20), "index.json"),
    "pickle": (lambda path: SafeUnpickler(path.read_bytes()).load(), ".metadata"),
}


@pytest.mark.parametrize("kind", SEEDS)
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path, made, kind):
    """Random files, and sound ones with some bytes changed."""
    read, name = SEEDS[kind]
    folders = (made[item] for item in ("huggingface", "mindspore-ckpt", "torch", "torch_dist"))
    own = made["own-safetensors"]
    seed = next(p for folder in (*folders, own) for p in sorted(folder.rglob(name))).read_bytes()
    path = tmp_path / "file"
    changes = st.lists(st.tuples(st.integers(0, len(seed) - 1), st.integers(0, 255)), max_size=8)

    def check(data):
        path.write_bytes(data)
        try:
            read(path)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(changes)
    def changed(places):
        data = bytearray(seed)
        for place, value in places:
            data[place] = value
        check(bytes(data))

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=200))
    def anything(data):
        check(data)
        check(seed[: len(data)] + data)

    changed()
    anything()


def test_texts_have_limits(tmp_path):
    path = tmp_path / "text"
    path.write_text("12345")
    assert read_text(path, 5) == "12345" and is_regular(path) and not is_regular(tmp_path / "no")
    with pytest.raises(ValueError, match="has 5 bytes, at most 4"):
        read_text(path, 4)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        read_text(path)
    with pytest.raises(ValueError, match="is a folder, not a file"):
        read_text(tmp_path)
    assert conversions.TARGETS  # the formats above are all that are written
    assert set(conversions.TARGETS) <= set(mutations.FORMATS)
