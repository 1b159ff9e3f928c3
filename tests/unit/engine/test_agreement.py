# SPDX-License-Identifier: Apache-2.0
"""What ranks compare before a run, and which files hosts must have; by pure functions."""

from __future__ import annotations

import dataclasses
import os

import pytest

from mindspeed_ms.config import DatasetConfig
from mindspeed_ms.config.all_config import SECTION_CLASSES
from mindspeed_ms.core.dist_checkpointing import shared_folders
from mindspeed_ms.engine import agreement


def test_differences_name_field_values_ranks_and_hosts():
    low, high = {"optimizer.lr": "0.1", "a": "1"}, {"optimizer.lr": "0.2", "a": "1"}
    views = [("hosta", low), ("hosta", low), ("hostb", high), ("hostb", high)]
    assert agreement.differences(views) == [
        "optimizer.lr is 0.1 on rank 0, 1 (hosta) and 0.2 on rank 2, 3 (hostb)"
    ]
    assert agreement.differences([views[0], ("hostb", {"a": "1"})]) == []


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "c.bin").write_bytes(os.urandom(1 << 16))
    (tmp_path / "c.idx").write_bytes(os.urandom(1 << 10))
    (tmp_path / "tok.model").write_bytes(b"pieces")
    return tmp_path


def facts(folder, **more):
    fields = {
        "data_path": (str(folder / "c"),),
        "tokenizer_model": str(folder / "tok.model"),
        **more,
    }
    return agreement.data_facts(DatasetConfig(**fields))


def test_data_is_told_by_size_and_content_and_not_by_its_path(corpus, tmp_path_factory):
    first = facts(corpus)
    assert first["data 0.bin"].startswith("65536 bytes with checksum ")
    assert {"data 0.idx", "tokenizer_model"} <= first.keys()
    other = tmp_path_factory.mktemp("elsewhere")
    for file in corpus.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert facts(other) == first
    changed = bytearray((other / "c.bin").read_bytes())
    changed[40000] ^= 1
    (other / "c.bin").write_bytes(changed)
    assert {name for name in first if facts(other)[name] != first[name]} == {"data 0.bin"}
    (other / "c.bin").write_bytes(changed[: len(changed) // 2])
    assert facts(other)["data 0.bin"].startswith("32768 bytes")


def test_other_ways_to_name_the_data_are_differences(corpus):
    prefix = str(corpus / "c")
    common, apart = facts(corpus), facts(corpus, data_path=None, train_data_path=(prefix,))
    blend = facts(corpus, data_path=("1", prefix, "2", prefix))
    for one, other in ((common, apart), (common, blend)):
        assert agreement.differences([("a", one), ("b", other)])


def test_what_is_not_on_a_host_is_not_compared(corpus):
    (corpus / "c.bin").unlink()
    assert "data 0.bin" not in facts(corpus)


def test_large_files_are_sampled_at_both_ends_and_between(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "_WHOLE", 1 << 16)
    monkeypatch.setattr(agreement, "_NUM_BLOCKS", 5)
    monkeypatch.setattr(agreement, "_BLOCK", 1000)
    file = tmp_path / "big"
    size = 1 << 20
    content = bytearray(os.urandom(size))

    def checksum(version):
        file.write_bytes(content)
        return agreement.content_of(file, size, version)

    first = checksum(0)
    for version, position in enumerate((0, 500, size - 1, (size - 1000) // 2 + 10), start=1):
        content[position] ^= 1
        assert checksum(version) != first, position
        content[position] ^= 1
    content[5000] ^= 1  # between the blocks
    assert checksum(9) == first


def test_every_field_that_may_differ_exists():
    for section, names in agreement._MAY_DIFFER.items():
        known = {field.name for field in dataclasses.fields(SECTION_CLASSES[section])}
        assert names <= known


# ---- folders


def test_sizes_of_a_folder_and_of_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"123")
    (tmp_path / "y").write_bytes(b"1")
    assert shared_folders._sizes(tmp_path) == {"a/x": 3, "y": 1}
    assert shared_folders._sizes(tmp_path / "y") == {"y": 1}
    assert shared_folders._sizes(tmp_path / "nowhere") == {}


def test_what_is_lacking_is_named_and_cut():
    names = [f"rank_{number}" for number in range(6)]
    assert shared_folders._lacking(names, {}) == "nothing of it is there"
    assert shared_folders._lacking(names, {"x": 1}) == (
        "missing, or of another size: rank_0, rank_1, rank_2, rank_3 and 2 more"
    )


def test_a_file_may_appear_a_little_later(monkeypatch):
    monkeypatch.setattr(shared_folders, "_LOOK_SECONDS", 0.0)
    answers = [False, False, True]
    assert shared_folders._appears(lambda: answers.pop(0))
    monkeypatch.setattr(shared_folders, "_PATIENCE_SECONDS", 0.05)
    assert not shared_folders._appears(lambda: False)
