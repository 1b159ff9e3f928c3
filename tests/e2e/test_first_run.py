# SPDX-License-Identifier: Apache-2.0
"""What a newcomer types first: train, look at the curves, let the model write."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from jobs import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _bash(command, folder):
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def _after_training():
    block = README[README.index("<!-- after-training -->") :].split("```bash\n")[1]
    return block.split("```")[0].splitlines()


def test_the_script_ends_with_the_commands_that_the_readme_shows():
    script = (ROOT / "pretrain_gpt.sh").read_text(encoding="utf-8")
    for command in _after_training():
        assert command.replace('"', "'") in script.split("wait $!")[1]


@pytest.mark.slow
@pytest.mark.e2e
def test_train_then_curves_then_text(tmp_path):
    """The whole of it, in a folder with links to what the commands use."""
    for name in ("configs", "data", "tools", "mindspeed_ms", "pretrain_gpt.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "pretrain_gpt.sh").write_text((ROOT / "pretrain_gpt.sh").read_text())
    shown = _bash(f"MASTER_PORT={free_port()} bash pretrain_gpt.sh", tmp_path)
    losses = [float(loss) for loss in re.findall(r"Step: \d+, Loss: (\S+),", shown)]
    assert len(losses) == 140
    assert losses[0] > 7.5 and np.mean(losses[-10:]) < 4.8
    report, generate = _after_training()
    assert shown.rstrip().endswith(generate.replace('"', "'"))
    _bash(report, tmp_path)
    assert (tmp_path / "output/first_run/report.html").stat().st_size > 1e6
    answer = json.loads(_bash(f"{generate} --seed 1 --json", tmp_path).splitlines()[-1])
    words = str(answer).split()
    novels = "".join(path.read_text("utf-8") for path in (ROOT / "data/austen/text").iterdir())
    known = set(re.findall(r"[a-z]+", novels.lower()))
    written = [word for word in re.findall(r"[a-z]{2,}", " ".join(words).lower())]
    assert sum(word in known for word in written) > 0.7 * len(written) > 20
