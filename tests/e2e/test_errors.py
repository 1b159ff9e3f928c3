# SPDX-License-Identifier: Apache-2.0
"""How scripts end: one line per job for a user's mistake, a traceback for anything else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
FLAGS = (
    *("--yaml", str(ROOT / "configs/tiny_gpt.yaml"), "--tensor-model-parallel-size", "1"),
    *("--train-iters", "2", "--lr-warmup-iters", "0", "--eval-iters", "0"),
    *("--data-path", str(ROOT / "data/tiny/tiny_text_document")),
    *("--tokenizer-model", str(ROOT / "data/tiny/tok.model")),
)
SCRIPT = """
from mindspeed_ms.core.config import get_args, init_configs_from_args
from mindspeed_ms.legacy.model.gpt_model import GPTModel
from mindspeed_ms.training.initialize import initialize_megatron
from mindspeed_ms.training.training import pretrain

initialize_megatron()
config = init_configs_from_args(get_args())

def provider(pre_process=True, post_process=True):
    {provider}
    return GPTModel(config.model_config, pre_process=pre_process, post_process=post_process)

pretrain(None, provider, all_config=config)
"""
"""What the guide's script does, with a place for a mistake."""


def run(folder, *flags, provider="pass", ranks=1, script=None):
    """(status, standard error) of a script."""
    path = folder / "script.py"
    path.write_text(SCRIPT.replace("{provider}", provider), encoding="utf-8")
    start = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
    result = subprocess.run(
        [*start, sys.executable, str(script or path), *FLAGS, *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    return result.returncode, result.stderr


def test_the_guides_script_ends_in_one_line(tmp_path):
    for flags, part in (
        (("--num-attention-heads", "3"), "num_attention_heads"),
        (("--load", "nowhere", "--exit-on-missing-checkpoint"), "nowhere holds no checkpoint"),
    ):
        status, text = run(tmp_path, *flags)
        assert status == 2 and "Traceback" not in text
        (line,) = [line for line in text.splitlines() if "error: " in line]
        assert part in line


def test_a_mistake_in_the_script_is_shown_where_it_is(tmp_path):
    status, text = run(tmp_path, provider="{}['missing']")
    assert status == 1 and "Traceback" in text and 'script.py", line 11, in provider' in text


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="no mpiexec")
@pytest.mark.parametrize("is_ours", [True, False], ids=["pretrain_gpt.py", "guide"])
def test_a_job_says_it_once(tmp_path, is_ours):
    script = ROOT / "pretrain_gpt.py" if is_ours else None
    status, text = run(tmp_path, "--data-path", "nowhere", ranks=2, script=script)
    assert status != 0 and "Traceback" not in text
    (line,) = [line for line in text.splitlines() if "error: " in line]
    assert "nowhere.idx and nowhere.bin not found" in line
