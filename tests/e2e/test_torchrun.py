# SPDX-License-Identifier: Apache-2.0
"""The launcher in torchrun's words, and tasks of ``srun``: how ranks start, print, fail, stop."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import free_port

from mindspeed_ms.backend.torchrun import run

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
BIN = Path(run.__file__).with_name("bin")
SCRIPT = """
import os, signal, sys, time
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
before = [os.environ[name] for name in names] if "RANK" in os.environ else None
mode = sys.argv[1]
if mode == "wait":
    def stop(number, frame):
        print("rank", before[0], "got", number, flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    print("ready", before[0], flush=True)
    time.sleep(100)
from mindspeed_ms.backend import comm, memory
import numpy as np
comm.init_process_group()
tensor = memory.from_numpy(np.full(1, comm.get_rank() + 1, np.float32))
comm.all_reduce(tensor)
print("rank", comm.get_rank(), "before", before, "sum", float(tensor.asnumpy()[0]), flush=True)
if mode == "fail" and comm.get_rank() == 1:
    print("rank one is unwell", flush=True)
    sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def environment(**more):
    path = os.pathsep.join((str(BIN), str(SCRIPTS), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **more}


def start(words, folder, **more):
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_starts_ranks_with_their_variables(script, tmp_path):
    words = ["torchrun", "--nproc_per_node", "2", "--standalone", str(script), "ok"]
    process = start(words, tmp_path)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, out + err
    assert "rank 0 before ['0', '0', '2', '2'] sum 3.0" in out
    assert "rank 1 before ['1', '1', '2', '2'] sum 3.0" in out


def test_the_failing_rank_is_shown_and_its_status_kept(script, tmp_path):
    words = ["python", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    process = start([*words, str(script), "fail"], tmp_path)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 7, out + err
    assert "torchrun: rank 1 failed with status 7; its last lines" in err
    assert "rank one is unwell" in err.partition("last lines")[2]


@pytest.mark.slow
def test_signals_reach_the_ranks(script, tmp_path):
    words = ["torchrun", "--nproc_per_node", "2", "--standalone", str(script), "wait"]
    process = start(words, tmp_path)
    logs = [tmp_path / "msrun_log" / f"worker_{rank}.log" for rank in range(2)]
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if all(log.exists() and "ready" in log.read_text() for log in logs):
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert f"rank 0 got {int(signal.SIGTERM)}" in out, out + err
    assert f"rank 1 got {int(signal.SIGTERM)}" in out, out + err


def test_one_rank_is_plain_python(script, tmp_path):
    process = start(["torchrun", str(script), "ok"], tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "rank 0 before ['0', '0', '1', '1'] sum 1.0" in out
    assert not (tmp_path / "msrun_log").exists()


@pytest.mark.slow
def test_tasks_of_srun_find_each_other(script, tmp_path):
    port = str(free_port())
    step = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2"}
    tasks = [
        start(
            [sys.executable, str(script), "ok"],
            tmp_path,
            **step,
            SLURM_PROCID=str(rank),
            SLURM_LOCALID=str(rank),
            SLURM_STEP_NODELIST="localhost",
            MASTER_PORT=port,
        )
        for rank in range(2)
    ]
    outputs = [task.communicate(timeout=90) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert all(f"rank {rank} before None sum 3.0" in outputs[rank][0] for rank in range(2))


LAUNCH_SCRIPT = """#!/bin/bash
# The shape of Megatron's own launch scripts, with sizes for a test.
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS_PER_NODE=2
NUM_NODES=1
DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE --nnodes $NUM_NODES
    --master_addr localhost --master_port PORT
)
GPT_MODEL_ARGS=(
    --num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 32
    --max-position-embeddings 32 --attention-backend auto
)
TRAINING_ARGS=(
    --micro-batch-size 1 --global-batch-size 4 --train-iters 3 --weight-decay 0.1
    --adam-beta1 0.9 --adam-beta2 0.95 --init-method-std 0.006 --clip-grad 1.0 --bf16
    --lr 6.0e-5 --lr-decay-style cosine --min-lr 6.0e-6 --lr-warmup-fraction .001
    --lr-decay-iters 430000
)
MODEL_PARALLEL_ARGS=(--tensor-model-parallel-size 2 --sequence-parallel)
DATA_ARGS=(--mock-data --tokenizer-type NullTokenizer --vocab-size 127 --split 949,50,1)
LOGGING_ARGS=(
    --log-interval 1 --eval-interval 1000 --eval-iters 1 --tensorboard-dir FOLDER/logs
    --distributed-backend nccl --manual-gc --use-mcore-models --transformer-impl local
)
torchrun ${DISTRIBUTED_ARGS[@]} SCRIPT ${GPT_MODEL_ARGS[@]} ${TRAINING_ARGS[@]} \\
    ${MODEL_PARALLEL_ARGS[@]} ${DATA_ARGS[@]} ${LOGGING_ARGS[@]}
"""


def test_a_launch_script_of_megatrons_shape_trains(tmp_path):
    text = LAUNCH_SCRIPT.replace("PORT", str(free_port())).replace("FOLDER", str(tmp_path))
    path = tmp_path / "train.sh"
    path.write_text(text.replace("SCRIPT", str(ROOT / "pretrain_gpt.py")))
    out, err = start(["bash", str(path)], tmp_path).communicate(timeout=150)
    lines = re.findall(r"iteration +(\d)/ +3 \|.* lm loss: (\S+) \|", out)
    assert [number for number, _ in lines] == ["1", "2", "3"], out[-3000:] + err[-3000:]
    assert "--manual-gc has no effect: " in out
    assert "--tensorboard-dir has no effect: " not in out
