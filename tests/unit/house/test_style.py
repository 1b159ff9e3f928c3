# SPDX-License-Identifier: Apache-2.0
"""The style and the types of the whole source tree; part of the test command."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "command",
    ["ruff check", "ruff format --check", "mypy"],
    ids=lambda command: command.replace(" ", "_"),
)
def test_the_tree_is_clean(command):
    """What each looks at, and how, is in pyproject.toml; mypy keeps a cache beside it."""
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
