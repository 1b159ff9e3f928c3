# SPDX-License-Identifier: Apache-2.0
"""The command lines of torch's launchers, and what becomes of them."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from mindspeed_ms.backend import job_secret, slurm
from mindspeed_ms.backend.torchrun import msrun, run
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
        (
            "--max_restarts=3 --ft-param-x=7 --ft_y 8 train.py",
            {"script": "train.py", "max_restarts": 3},
        ),
        ("--local-ranks-filter 0,2 --max-restarts 0 train.py", {"shown": (0, 2)}),
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
        ("--max-restarts many train.py", "--max-restarts is 'many', but must be a number of at"),
        ("--local-ranks-filter 0,x train.py", "--local-ranks-filter is 'x', but must be a number"),
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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--nproc_per_node 4 --master_addr nowhere train.py --x 1",
            {
                "world_size": 4,
                "local_size": 4,
                "first_rank": 0,
                "is_master": True,
                "host": "127.0.0.1",
                "words": ("train.py", "--x", "1"),
            },
        ),
        (
            "--nnodes 2 --node_rank 1 --nproc_per_node 4 --master_addr 10.0.0.1 -m a.b",
            {
                "world_size": 8,
                "local_size": 4,
                "first_rank": 4,
                "is_master": False,
                "host": "10.0.0.1",
                "words": ("-m", "a.b"),
            },
        ),
    ],
)
def test_the_part_of_this_host(words, expected):
    part = run.part_of(request(words))
    assert {name: getattr(part, name) for name in expected} == expected


def test_the_variables_of_ranks(monkeypatch):
    monkeypatch.delenv(job_secret.VARIABLE, raising=False)
    part = run.part_of(
        request("--nnodes 2 --node_rank 1 --nproc_per_node 2 --master_addr 10.0.0.1 t.py")
    )
    common = run._common_variables(part, 29500, 3)
    assert common["MS_SCHED_HOST"] == common["MASTER_ADDR"] == "10.0.0.1"
    assert common["MS_WORKER_NUM"] == common["WORLD_SIZE"] == "4"
    assert common["LOCAL_WORLD_SIZE"] == "2"
    assert common["TORCHELASTIC_RESTART_COUNT"] == "3"
    assert job_secret.VARIABLE not in common  # the hosts have to agree on it
    own = run._rank_variables(part, 1)
    assert {name: own[name] for name in ("RANK", "MS_NODE_ID", "LOCAL_RANK", "GROUP_RANK")} == {
        "RANK": "3",
        "MS_NODE_ID": "3",
        "LOCAL_RANK": "1",
        "GROUP_RANK": "1",
    }
    alone = run.part_of(request("--nproc_per_node 2 t.py"))
    secrets = [run._common_variables(alone, 1, 0)[job_secret.VARIABLE] for _ in range(2)]
    assert secrets[0] != secrets[1] and len(secrets[0]) == 64


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--worker_num 4 --local_worker_num=4 --join True SCRIPT --lr 1",
            {"world_size": 4, "first_rank": 0, "is_master": True, "host": "127.0.0.1"},
        ),
        (
            "--worker_num 4 --local_worker_num 2 --node_rank 1 --master_addr 10.9.9.9 SCRIPT",
            {"first_rank": 2, "is_master": False, "host": "10.9.9.9", "timeout": 600},
        ),
        (
            "--worker_num 4 --local_worker_num 2 --master_addr 10.9.9.9 SCRIPT",
            {"first_rank": None, "is_master": False},
        ),
        (
            "--worker_num 4 --local_worker_num 2 --master_addr 127.0.0.1 SCRIPT",
            {"first_rank": None, "is_master": True},
        ),
        (
            "--worker_num 2 --local_worker_num 2 --tail_worker_log 0,1 --log_dir d "
            "--worker_log_name w --cluster_time_out 9 python SCRIPT",
            {"shown": (0, 1), "log_dir": Path("d"), "log_name": "w", "timeout": 9},
        ),
        (
            "--worker_num 2 --local_worker_num 2 pytest x",
            {"words": ("-m", "pytest", "x"), "log_dir": Path(".")},
        ),
    ],
)
def test_the_words_of_msrun(words, expected):
    part, _ = msrun.read(words.replace("SCRIPT", __file__).split())
    assert {name: getattr(part, name) for name in expected} == expected


def test_msrun_binds_ranks_as_mindspore_does():
    words = ["--worker_num=2", "--local_worker_num=2", '--bind_core={"device0": ["0"]}', __file__]
    part, restarts = msrun.read([*words[:2], "--max_restarts=3", *words[2:]])
    assert part.prefixes == (("taskset", "-c", "0"), ())
    assert restarts == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--worker_num x SCRIPT", "--worker_num is 'x', but must be a number of at least 1"),
        ("--worker_num 2 --local_worker_num 4 SCRIPT", "--local_worker_num 4 is more than"),
        ("nowhere.py", "there is no script nowhere.py"),
        ("python", "python needs a script"),
        ("--sim_level 1 SCRIPT", "--sim_level is MindSpore's own; plan with --dry-run"),
        ("--tail_worker_log a SCRIPT", "must be -1 or ranks like 0,1"),
        ("--bind_core 7 SCRIPT", "--bind_core or --bind_numa cannot be followed"),
        ("--worker 2 SCRIPT", "required: script|unrecognized|there is no script"),
    ],
)
def test_mistakes_in_the_words_of_msrun(words, message, capsys):
    assert msrun.main(words.replace("SCRIPT", __file__).split()) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_master_name_that_leads_another_host_to_itself_is_refused(monkeypatch):
    monkeypatch.setattr(run.addresses, "resolve", lambda name: "127.0.1.1")
    with pytest.raises(LaunchError, match="--master-addr node7 is this host's own loopback"):
        run.master_address("node7", is_master=False)
    assert run.master_address("node7", is_master=True) == "127.0.1.1"


def test_an_unknown_master_name_is_one_line(monkeypatch):
    def unknown(name):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(run.addresses, "resolve", unknown)
    with pytest.raises(LaunchError, match="--master-addr node7 is unknown on this host"):
        run.master_address("node7", is_master=False)


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
    assert output("msrun", "x") == "real -m mindspeed_ms.backend.torchrun.msrun x"
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
