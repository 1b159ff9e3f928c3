"""The command lines of torch's launchers, and what becomes of them."""

import os
import subprocess
from pathlib import Path

import pytest

from mindspeed_ms.backend import slurm
from mindspeed_ms.backend.torchrun import run
from mindspeed_ms.backend.torchrun.options import LaunchError, read

BIN = Path(run.__file__).with_name("bin")


def request(words, **environment):
    return read("torchrun", words.split(), environment)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train.py", {"nodes": 1, "ranks_per_node": 1, "master_port": 29500}),
        ("--nproc_per_node 8 train.py", {"ranks_per_node": 8}),
        ("--nproc-per-node=8 train.py --lr 1", {"script_args": ("--lr", "1")}),
        (
            "--nnodes=2 --node_rank=1 --master_addr=10.0.0.1 --master_port=6000 train.py",
            {"nodes": 2, "node_rank": 1, "master_addr": "10.0.0.1", "master_port": 6000},
        ),
        ("--nnodes 2:2 --node-rank 0 train.py", {"nodes": 2}),
        (
            "--rdzv_endpoint host7:7777 --rdzv_backend c10d --rdzv_id 3 train.py",
            {
                "master_addr": "host7",
                "master_port": 7777,
                "ignored": ("--rdzv-backend", "--rdzv-id"),
            },
        ),
        ("--rdzv-endpoint host7 train.py", {"master_addr": "host7", "master_port": 29500}),
        (
            "--standalone --nproc_per_node 2 train.py",
            {"picks_port": True, "master_addr": "127.0.0.1"},
        ),
        ("-m some.module -m x", {"is_module": True, "script": "some.module"}),
        ("--use_env train.py", {"ignored": ("--use-env",)}),
        ("--log-dir logs --tee 3 -r 1 train.py", {"log_dir": "logs"}),
        ("--max_restarts=3 --ft-param-x=7 --ft_y 8 train.py", {"script": "train.py"}),
        ("--nproc-per-node 2 train.py --nproc-per-node 4", {"ranks_per_node": 2}),
    ],
)
def test_options(words, expected):
    read_request = request(words)
    for name, value in expected.items():
        assert getattr(read_request, name) == value, name


def test_defaults_come_from_the_environment_as_in_torchrun():
    found = request("train.py", PET_NNODES="2", PET_NODE_RANK="1", PET_NPROC_PER_NODE="4")
    assert (found.world_size, found.node_rank) == (8, 1)
    assert (
        request("--nproc_per_node gpu t.py", ASCEND_RT_VISIBLE_DEVICES="0,1,5").ranks_per_node == 3
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--nnodes 1:4 train.py", "--nnodes 1:4 is a range"),
        ("--nproc_per_node x train.py", "--nproc-per-node is 'x', but must be a number"),
        (
            "--nproc_per_node 0 train.py",
            "--nproc-per-node is '0', but must be a number of at least 1",
        ),
        ("--nproc_per_node gpu train.py", "counts this host's accelerators, but there are none"),
        ("--master_port 80 train.py", "--master-port 80 must lie between 1024 and 65535"),
        ("--no-python train.sh", "--no-python is refused"),
        ("", "required: script"),
        ("--nproc 2 train.py", "unrecognized|required|ambiguous"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(LaunchError, match=message):
        request(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere.py", "there is no script nowhere.py"),
        ("--nnodes 2 SCRIPT", "--nnodes 2 needs --node-rank"),
        ("--nnodes 2 --node_rank 2 SCRIPT", "--node-rank 2 must be below --nnodes 2"),
    ],
)
def test_requests_that_cannot_start(words, message, capsys):
    assert run.main("torchrun", words.replace("SCRIPT", __file__).split()) == 2
    assert message in capsys.readouterr().err


def test_the_words_of_msrun(monkeypatch):
    monkeypatch.setenv("RANK_TABLE_FILE", "/etc/table.json")
    words = run.msrun_command(
        request("--nnodes 2 --node_rank 1 --nproc_per_node 4 --master_addr h train.py --x 1"), 29500
    )
    assert words[1:8] == [
        *("--worker_num=8", "--local_worker_num=4", "--master_addr=h", "--master_port=29500"),
        *("--log_dir=msrun_log", "--join=True", "--node_rank=1"),
    ]
    assert words[8] == "--rank_table_file=/etc/table.json"
    assert words[9].endswith("worker.py") and words[10:] == ["train.py", "--x", "1"]


def test_the_directory_for_path_leaves_other_uses_of_python_alone(tmp_path, capfd):
    assert run.main("torchrun", ["--bin-dir"]) == 0
    assert capfd.readouterr().out == f"{BIN}\n"
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho real "$@"\n')
    fake.chmod(0o755)
    path = f"{BIN}:{tmp_path}:{os.environ['PATH']}"

    def output(*words):
        environment = {**os.environ, "PATH": path}
        return subprocess.run(
            words, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    module = "real -m mindspeed_ms.backend.torchrun.run"
    assert output("torchrun", "--nnodes", "1", "a b") == f"{module} --nnodes 1 a b"
    assert output("ft_launcher", "x") == f"{module} x"
    assert output("python", "-m", "torch.distributed.run", "x") == f"{module} x"
    assert output("python", "-u", "-m", "torch.distributed.launch", "x").startswith(
        "real -u -m mind"
    )
    assert output("python", "script.py", "-m", "torch.distributed.run") == (
        "real script.py -m torch.distributed.run"
    )
    assert output("python") == "real"


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("n1", "n1"), ("n[01-04]", "n01"), ("a,b[1-2]", "a"), ("rack-2-[7,9]", "rack-2-7")],
)
def test_the_first_host_of_slurms_list(nodes, host):
    assert slurm.first_host(nodes) == host


def test_a_batch_script_is_no_task_of_a_step(monkeypatch):
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "4")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert slurm.num_tasks() == 1
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert slurm.num_tasks() == 4
