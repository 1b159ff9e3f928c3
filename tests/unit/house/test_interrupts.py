# SPDX-License-Identifier: Apache-2.0
"""An interrupt from the keyboard while programs still load their modules."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from jobs import REPOSITORY, environment

COMMANDS = ("train", "serve", "preprocess", "convert")
MODULES = (
    *("toolkit.serve", "toolkit.run", "toolkit.run_mindformer", "toolkit.verification"),
    *("toolkit.convert_weight", "toolkit.data.create_lm_data", "backend.torchrun.scheduler"),
)
SCRIPTS = (
    *("pretrain_gpt.py", "run_mindformer.py", "tools/convert_ckpt", "tools/parity.py"),
    *("tools/generate.py", "tools/compare_layouts.py", "tools/preprocess_data.py"),
    "tools/run_text_generation_server.py",
)
PROGRAMS = (
    *(("-m", "mindspeed_ms.command", name) for name in COMMANDS),
    *(("-m", f"mindspeed_ms.{name}") for name in MODULES),
    *((str(REPOSITORY / name),) for name in SCRIPTS),
)
LIBRARY = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
for _ in range(1000):  # the signal's handler runs between two instructions
    pass
raise RuntimeError("the interrupt did not end the program")
"""


@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_an_interrupt_while_libraries_load_ends_a_program_without_a_word(words, tmp_path):
    for name in ("numpy", "mindspore"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(LIBRARY)
    paths = f"{tmp_path}:{REPOSITORY}"
    process = subprocess.run(
        [sys.executable, *words],
        env=environment(PYTHONPATH=paths),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        # Whoever started the tests in the background may ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (process.returncode, process.stderr) == (-signal.SIGINT, "")
