# SPDX-License-Identifier: Apache-2.0
"""A file appears whole, or nothing is left of the attempt."""

import errno
import os
import subprocess

import numpy as np
import pytest

from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder
from mindspeed_ms.files.alive import is_alive
from mindspeed_ms.files.whole import (
    appears_whole,
    remove_unfinished,
    unfinished_folder,
    unfinished_name,
    write_text,
)
from mindspeed_ms.formats.containers.new_file import NewFile


def test_it_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with appears_whole(path) as unfinished:
        unfinished.write_text("all of it")
        assert not path.exists() and unfinished.suffix == ".txt"
    assert [one.name for one in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "all of it"


def test_a_failure_leaves_the_older_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("older")
    with pytest.raises(OSError, match="disk"), appears_whole(path) as unfinished:
        unfinished.write_text("half")
        raise OSError("the disk is full")
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "older"


def test_the_name_that_was_asked_for_is_told(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OSError) as told, appears_whole(path) as unfinished:
        unfinished.read_text()
    assert told.value.filename == str(path)


def dead_process():
    """Number of a process that has ended."""
    return subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout.strip()


def test_what_a_killed_process_has_left_goes_with_the_next_write(tmp_path):
    path = tmp_path / "a.txt"
    living = unfinished_name(path)
    dead = living.with_name(living.name.replace(f".{os.getpid()}.", f".{dead_process()}."))
    foreign = tmp_path / f".a.txt.00000000.{dead_process()}.0123.txt"
    other = dead.with_name(dead.name.replace(".a.txt.", ".b.txt."))
    for one in (living, dead, foreign, other):
        one.write_text("half")
    write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([living, foreign, other, path])
    with unfinished_folder(tmp_path, "folder") as folder:
        left = folder.with_name(folder.name.replace(f".{os.getpid()}.", f".{dead_process()}."))
        (left / "deeper").mkdir(parents=True)
    with unfinished_folder(tmp_path, "folder") as again:
        assert again.is_dir() and not left.exists() and not folder.exists()


def test_what_is_unfinished_can_be_removed_from_anywhere(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError), appears_whole(path) as unfinished:
        unfinished.write_text("half")
        remove_unfinished()
        assert not unfinished.exists()
    with unfinished_folder(tmp_path, "folder") as folder:
        remove_unfinished()
        assert not folder.exists()


def test_a_process_that_only_waits_to_be_noticed_is_not_alive():
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(process.pid) and is_alive(os.getpid())
    process.wait()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(OSError) as told, appears_whole(path) as unfinished:
        unfinished.symlink_to("/dev/full")
        unfinished.write_text("all of it")
    assert told.value.filename == str(path) and told.value.errno == errno.ENOSPC
    with pytest.raises(OSError) as told, IndexedDatasetBuilder(path) as builder:
        builder._file.close()
        builder._file = open("/dev/full", "wb")  # noqa: SIM115  (the builder closes it)
        for _ in range(1000):
            builder.add_document(np.arange(1000), [1000])
    assert told.value.filename == str(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_names_the_file_of_a_checkpoint(tmp_path):
    file = NewFile(tmp_path / "a")
    os.dup2(os.open("/dev/full", os.O_WRONLY), file._handle)
    with pytest.raises(OSError) as told:
        file.write(b"all of it")
    file.abandon()
    assert told.value.filename == str(tmp_path / "a")
