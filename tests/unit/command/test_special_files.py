# SPDX-License-Identifier: Apache-2.0
"""Pipes, devices, folders and links in a circle under the names that commands are given."""

import os
import signal

import pytest

from mindspeed_ms.backend import rank_table
from mindspeed_ms.command import generate, plot
from mindspeed_ms.command.megatron_log import read_arguments
from mindspeed_ms.command.megatron_weights import read_weights
from mindspeed_ms.engine.observe import record
from mindspeed_ms.toolkit.data.sources import read_texts
from mindspeed_ms.training.arguments import parse_args
from mindspeed_ms.training.flags.layer_options import text_of

READERS = {
    "plot": plot.curves_of,
    "arguments of a log": read_arguments,
    "prompts": generate._lines,
    "arrays": read_weights,
    "blocks": text_of,
    "texts": lambda path: list(read_texts([str(path)], "train")),
    "rank table": rank_table.read,
}


@pytest.fixture
def within_seconds():
    def ring(*unused):
        raise TimeoutError("a reader waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(special, path):
    if special == "pipe":
        os.mkfifo(path)
    elif special == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to(path.name)


@pytest.mark.parametrize("special", ["pipe", "device", "circle"])
@pytest.mark.parametrize("name", READERS)
def test_only_regular_files_are_read(name, special, tmp_path, within_seconds):
    path = tmp_path / "file.txt"
    put(special, path)
    with pytest.raises((ValueError, OSError)) as caught:
        READERS[name](path)
    assert str(path) in str(caught.value)
    assert "waits" not in str(caught.value)


@pytest.mark.parametrize("special", ["pipe", "device", "circle"])
def test_a_record_that_is_no_file(special, tmp_path, within_seconds):
    put(special, tmp_path / record.FILE_NAME)
    with pytest.raises((ValueError, OSError), match=record.FILE_NAME):
        record.read_record(tmp_path)


@pytest.mark.parametrize("flag", ["--yaml", "--yaml-cfg"])
def test_a_yaml_that_is_a_link_to_itself(flag, tmp_path, capsys):
    path = tmp_path / "a.yaml"
    put("circle", path)
    with pytest.raises(SystemExit) as ended:
        parse_args([flag, str(path)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.yaml" in line
