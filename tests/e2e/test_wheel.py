# SPDX-License-Identifier: Apache-2.0
"""A wheel that is installed into an empty environment trains from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # builds the kernels, and downloads what a wheel requires
def test_a_wheel_is_built_and_used(tmp_path):
    words = [sys.executable, str(ROOT / "tools/try_wheel.py"), "--work", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(": ok")
