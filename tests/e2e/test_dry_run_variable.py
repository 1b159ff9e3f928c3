# SPDX-License-Identifier: Apache-2.0
"""MINDSPEED_MS_DRY_RUN turns a launch script that passes no flags on into a plan."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
set -e
DIST="--nproc_per_node 8 --nnodes 4 --node_rank $NODE_RANK --master_addr no-such-host.invalid"
{launcher} pretrain_gpt.py --tensor-model-parallel-size 8 --pipeline-model-parallel-size 2 \\
  --num-layers 16 --hidden-size 1024 --num-attention-heads 16 --seq-length 1024 --lr 1e-4 \\
  --max-position-embeddings 1024 --micro-batch-size 1 --global-batch-size 64 --train-iters 500 \\
  --vocab-size 32000 --data-path /nowhere/x --tokenizer-type NullTokenizer \\
  --save {out} --save-interval 100
"""
LAUNCHERS = {
    "torchrun": "torchrun $DIST",
    "python": "python -m torch.distributed.launch $DIST",
    "msrun": "msrun --worker_num 32 --local_worker_num 8 --node_rank $NODE_RANK "
    "--master_addr no-such-host.invalid",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_script_for_four_hosts_is_planned(launcher, tmp_path):
    (tmp_path / "train.sh").write_text(
        SCRIPT.format(launcher=LAUNCHERS[launcher], out=tmp_path / "out")
    )
    (tmp_path / "pretrain_gpt.py").write_text((ROOT / "pretrain_gpt.py").read_text())
    path = f"{ROOT / 'mindspeed_ms/backend/torchrun/bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "train.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PATH": path,
            "NODE_RANK": "0",
            "MINDSPEED_MS_DRY_RUN": "1",
            "PYTHONPATH": str(ROOT),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "  32 ranks = tensor 8 × context 1 × data 2 × pipeline 2;" in done.stdout
    assert done.stdout.count("32 ranks =") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "msrun_log").exists()
