# SPDX-License-Identifier: Apache-2.0
"""Whatever the small commands are given: an answer, one line and status 2, and nothing harmed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import command_attacks as attacks
import pytest

from mindspeed_ms.command import plot
from mindspeed_ms.data.indexed_dataset import IndexedDatasetBuilder
from mindspeed_ms.engine.observe import profile_trace, record
from mindspeed_ms.engine.report.story import tell
from mindspeed_ms.files.content import taken_apart
from mindspeed_ms.training.dry_run import measured_run

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("count", "tools"), [(40, attacks.QUICK), pytest.param(3000, [], marks=pytest.mark.slow)]
)
def test_no_command_line_ends_badly(tmp_path, count, tools, first_seed):
    """In a process without threads, which can be forked."""
    found = subprocess.run(
        [sys.executable, attacks.__file__, tmp_path / "b", str(first_seed), str(count), *tools],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3", "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout == f"{count} tried\n", found.stdout


ENTRIES = [
    {"kind": "start", "iteration": 0, "world_size": 1, "config": {"training_config": {}}},
    {"kind": "step", "iteration": 1, "seconds": 0.5, "lm loss": 3.0},
]
WRONG = [None, 5, "x", [], {}, [[1]], {"a": None}]


@pytest.mark.parametrize("seed", range(20))
def test_a_record_that_holds_anything_is_one_line(tmp_path, seed):
    rng = random.Random(seed)
    entries = json.loads(json.dumps(ENTRIES))
    entry = rng.choice(entries)
    name = rng.choice(list(entry))
    if rng.random() < 0.3:
        del entry[name]
    else:
        entry[name] = rng.choice(WRONG)
    text = "".join(json.dumps(one) + "\n" for one in entries)
    (tmp_path / record.FILE_NAME).write_text(rng.choice([text, f"{text}5\n", f"{text}[]\n"]))
    for read in (tell, plot.curves_of, lambda folder: measured_run(str(folder))):
        try:
            read(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("text", ["5", "{}", '{"spans": 3}', '{"spans": [], "calls": [5]}', "["])
def test_a_profile_that_holds_anything_is_one_line(tmp_path, text):
    (tmp_path / "rank_0.json").write_text(text)
    with pytest.raises(ValueError, match=r"rank_0.json is damaged, or not what a rank recorded"):
        profile_trace.read_ranks(tmp_path)


def test_what_already_names_the_file_is_kept():
    with pytest.raises(ValueError, match="^f is wrong$"), taken_apart("f", "a thing"):
        raise ValueError("f is wrong")
    with pytest.raises(ValueError, match=r"^f is damaged, or not a thing \(KeyError: 'k'\); "):
        with taken_apart("f", "a thing"):
            {}["k"]


def test_a_dataset_that_found_no_room_leaves_nothing(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="no room"):
        with IndexedDatasetBuilder(str(tmp_path / "a.bin")) as builder:
            handle, builder._file = builder._file, FullFile()
            builder.add_item([1])
    handle.close()
    assert not list(tmp_path.iterdir())


class FullFile:
    """Takes nothing, not even when it is closed."""

    def write(self, data):
        raise OSError(27, "no room")

    def close(self):
        raise OSError(27, "no room")
