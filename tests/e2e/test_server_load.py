# SPDX-License-Identifier: Apache-2.0
"""Many clients at a time, some of which leave: every answer is the one it gets alone."""

from __future__ import annotations

import json

import pytest
from serve_cases import served_folder, server

from benchmarks import serve_load

WORDS = " ".join(f"w{number}" for number in range(8, 90))


@pytest.mark.slow
@pytest.mark.e2e
def test_answers_are_not_mixed_up_and_memory_stays(tmp_path, capsys):
    folder = served_folder(tmp_path)
    with server(folder, "--max-queue", "60") as process:
        words = ["--address", process.address, "--pid", str(process.pid), "--words", WORDS]
        status = serve_load.main([*words, "--clients", "100", "--seconds", "60"])
        found = json.loads(capsys.readouterr().out)
    assert status == 0, found["examples"]
    assert found["answers"] > 100 and found["left"] > 10
    memory = found["memory_mib"]
    assert memory[-1] < 1.05 * memory[len(memory) // 4]
