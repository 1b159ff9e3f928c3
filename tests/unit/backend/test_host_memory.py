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
