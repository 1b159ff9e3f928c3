# SPDX-License-Identifier: Apache-2.0
"""A file appears whole, or nothing is left of the attempt."""

import pytest

from mindspeed_ms.files.whole import appears_whole


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
