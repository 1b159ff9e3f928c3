# SPDX-License-Identifier: Apache-2.0
"""What a host has left: its own memory, or what a container allows."""

from types import SimpleNamespace

import pytest

from mindspeed_ms.backend import host_memory
from mindspeed_ms.backend.host_memory import FreeMemory, free_memory

GB = 1 << 30


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A root folder with /proc and /sys to be filled, on a host with 8 GB free."""
    monkeypatch.setattr(
        host_memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=8 * GB)
    )

    def group(path, **files):
        folder = tmp_path / "sys" / "fs" / "cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(str(text))

    def process(text):
        (tmp_path / "proc" / "self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(text)

    return SimpleNamespace(root=tmp_path, group=group, process=process)


def test_a_host_without_groups_gives_what_is_available(machine):
    assert free_memory(machine.root) == FreeMemory(8 * GB, "this host")


def test_the_tightest_group_around_a_process_counts(machine):
    machine.process("0::/a/b\n")
    machine.group("a/b", memory__max="max", memory__current=GB, memory__stat="inactive_file 5\n")
    machine.group("a", memory__max=4 * GB, memory__current=3 * GB, memory__stat="anon 1\n")
    found = free_memory(machine.root)
    assert found.num_bytes == GB and found.limit.endswith("cgroup/a")
    stat = f"anon 1\ninactive_file {GB}\n"
    machine.group("a", memory__stat=stat)  # caches of files are given back
    assert free_memory(machine.root).num_bytes == 2 * GB


def test_older_groups_and_paths_of_the_host_outside(machine):
    machine.process("5:cpu:/x\n4:memory:/docker/123\n0::/\n")
    machine.group(
        "memory",
        memory__limit_in_bytes=2 * GB,
        memory__usage_in_bytes=GB // 2,
        memory__stat="total_inactive_file 0\n",
    )
    assert free_memory(machine.root).num_bytes == 3 * GB // 2
    machine.group("memory", memory__limit_in_bytes=9223372036854771712)
    assert free_memory(machine.root).limit == "this host"


@pytest.mark.parametrize(
    ("size", "free", "is_read_only", "is_first", "outcome"),
    [
        (64, 64, False, True, "enough"),
        (64, 64, True, False, "refused"),
        (64, 16, False, True, "warned"),
        (64, 16, False, False, "enough"),
        (64, 4, False, True, "refused"),
        (64, 4, False, False, "enough"),  # the first may have taken its part
        (4, 4, False, False, "refused"),
    ],
)
def test_shared_memory_without_room_for_mpi_is_told(
    monkeypatch, caplog, tmp_path, size, free, is_read_only, is_first, outcome
):
    flag = host_memory.os.ST_RDONLY if is_read_only else 0
    found = SimpleNamespace(f_blocks=size << 8, f_bavail=free << 8, f_frsize=4096, f_flag=flag)
    monkeypatch.setattr(host_memory.os, "statvfs", lambda folder: found)
    if outcome == "refused":
        with pytest.raises(RuntimeError, match=r"MB of shared memory, .* 24 MB for 4 ranks"):
            host_memory.require_shared_memory(4, is_first, tmp_path)
        return
    host_memory.require_shared_memory(4, is_first, tmp_path)
    assert ("24 MB for 4 ranks" in caplog.text) == (outcome == "warned")


def test_nothing_is_known_of_shared_memory_elsewhere(tmp_path):
    host_memory.require_shared_memory(4, True, tmp_path / "missing")
