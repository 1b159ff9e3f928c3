"""The launcher in torchrun's words, and tasks of ``srun``: how ranks start, print, fail, stop."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(words, folder, **more):
    return subprocess.Popen(
        words,
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
