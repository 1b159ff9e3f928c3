# SPDX-License-Identifier: Apache-2.0
"""PMI-1 answers, the start of MPI through them, and the memory MPI works on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from job_peers import SECRET
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import cpu_mpi, launch, memory, numpy_types
from mindspeed_ms.backend.memory import flat_view
from mindspeed_ms.backend.pmi_server import PmiSpace, ProtocolError, parse_line, process_mapping

REPOSITORY = Path(__file__).resolve().parents[3]


# ---- PMI-1 without sockets


@pytest.mark.parametrize(
    ("hosts", "mapping"),
    [
        (["a"] * 4, "(vector,(0,1,4))"),
        (["a", "a", "b", "b"], "(vector,(0,1,2),(1,1,2))"),
        (["a", "b", "a"], "(vector,(0,1,1),(1,1,1),(0,1,1))"),
    ],
)
def test_process_mapping_says_which_ranks_share_a_host(hosts, mapping):
    assert process_mapping(hosts) == mapping


def test_a_rank_learns_who_it_is():
    space = PmiSpace(4, "job", "(vector,(0,1,4))")
    [(rank, reply)] = space.handle(2, "cmd=init pmi_version=1 pmi_subversion=1")
    assert rank == 2 and "rc=0" in reply
    assert "rc=-1" in space.handle(2, "cmd=init pmi_version=2 pmi_subversion=0")[0][1]
    assert "kvsname_max=256 keylen_max=64" in space.handle(2, "cmd=get_maxes")[0][1]
    assert "appnum=0" in space.handle(2, "cmd=get_appnum")[0][1]
    assert "size=4" in space.handle(2, "cmd=get_universe_size")[0][1]
    assert "kvsname=job" in space.handle(2, "cmd=get_my_kvsname")[0][1]
    assert space.handle(2, "cmd=finalize")[0][1] == "cmd=finalize_ack rc=0\n"


def test_keys_put_by_one_rank_are_read_by_another():
    space = PmiSpace(2, "job", "(vector,(0,1,2))")
    space.handle(0, "cmd=put kvsname=job key=address value=tcp://1,2=3")
    assert "value=tcp://1,2=3" in space.handle(1, "cmd=get kvsname=job key=address")[0][1]
    assert "rc=-1" in space.handle(1, "cmd=get kvsname=job key=nothing")[0][1]
    mapping = space.handle(1, "cmd=get kvsname=job key=PMI_process_mapping")[0][1]
    assert "value=(vector,(0,1,2))" in mapping


def test_a_barrier_answers_everyone_when_the_last_rank_enters():
    space = PmiSpace(3, "job", "")
    for _ in range(2):
        assert space.handle(2, "cmd=barrier_in") == []
        assert space.handle(0, "cmd=barrier_in") == []
        released = space.handle(1, "cmd=barrier_in")
        assert released == [(rank, "cmd=barrier_out rc=0\n") for rank in range(3)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "expected a PMI-1 request"),
        ("cmd=spawn", "unknown PMI command 'spawn'"),
        ("cmd=put key=a", "PMI put without 'value'"),
        ("cmd=put key=PMI_process_mapping value=(vector,(0,9,9))", "wrong key or value"),
        (f"cmd=put key={'k' * 65} value=1", "wrong key or value"),
        (f"cmd=put key=k value={'v' * 1025}", "wrong key or value"),
    ],
)
def test_wrong_requests_are_refused(line, reason):
    with pytest.raises(ProtocolError, match=reason):
        PmiSpace(1, "job", "").handle(0, line)
    assert parse_line("cmd=get key=a=b") == {"cmd": "get", "key": "a=b"}


def test_a_rank_cannot_fill_the_memory_with_keys():
    space = PmiSpace(1, "job", "")
    with pytest.raises(ProtocolError, match="too many keys"):
        for number in range(1000):
            space.handle(0, f"cmd=put key=k{number} value=v")


# ---- MPI itself


MPI_SCRIPT = """
import os, sys
from mindspeed_ms.backend import cpu_mpi
from mindspeed_ms.backend.job_client import JobClient
os.environ.update(PMI_FD="77", PMI_RANK="5", PMI_SIZE="9", PMI_PORT="x:1", PMIX_RANK="3")
client = JobClient("127.0.0.1", int(sys.argv[1]), 20, sys.argv[2].encode())
rank = client.join(3, None, None).rank
cpu_mpi.connect_pmi(client.open_pmi(), rank, 3)
import mpi4py
mpi4py.rc.finalize = False
from mpi4py import MPI
cpu_mpi.forget_pmi()
assert not [name for name in os.environ if name.startswith("PMI")]
client.tell_running()
assert (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size) == (rank, 3)
assert MPI.COMM_WORLD.allreduce(rank) == 3
assert client.leave()
MPI.Finalize()
"""


def test_mpich_starts_and_ends_through_the_server(running):
    job = running(3)
    command = [sys.executable, "-c", MPI_SCRIPT, str(job.server.port), SECRET.decode()]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ranks = [subprocess.Popen(command, env=variables) for _ in range(3)]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0, 0]
    assert job.verdict() is None


# ---- start-up errors


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "MS_SCHED_HOST or MS_SCHED_PORT is not"),
        ({"MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": "1"}, "MS_WORKER_NUM is None"),
    ],
)
def test_an_incomplete_launcher_environment_is_reported(monkeypatch, variables, reason):
    for name in ("MS_SCHED_HOST", "MS_SCHED_PORT", "MS_WORKER_NUM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"MS_ROLE": "MS_WORKER", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=reason):
        launch.start()


def test_a_missing_mpi_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(RuntimeError, match=r'pip install "mindspeed_ms\[cpu\]"'):
        cpu_mpi.load_mpi()


def test_a_failed_mpi_start_is_reported(monkeypatch):
    class Library:
        @staticmethod
        def MPI_Init_thread(*arguments):
            return 15

    class Mpi:
        THREAD_MULTIPLE = 3

    monkeypatch.setattr(cpu_mpi, "_mapped_library", lambda: "libmpi.so")
    monkeypatch.setattr(cpu_mpi.ctypes, "CDLL", lambda path: Library)
    with pytest.raises(RuntimeError, match="failed with code 15"):
        cpu_mpi._initialize(Mpi)


# ---- the memory communication works on


def test_flat_view_aliases_views_with_an_offset():
    base = memory.from_numpy(np.arange(12, dtype=np.float32))
    view = base[6:12].view((2, 3))
    flat_view(view)[...] = -1
    assert base.asnumpy().tolist() == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1, -1]
    bits = Tensor(np.array([1.0, -2.0]), mstype.bfloat16)
    assert flat_view(bits).tolist() == [0x3F80, 0xC000]
    assert flat_view(memory.from_numpy(np.empty((0, 4), np.int64))).shape == (0,)


def test_flat_view_refuses_types_without_layout():
    with pytest.raises(ValueError, match="has no NumPy layout"):
        flat_view(Tensor(np.array([1j], np.complex64)))


def test_bfloat16_rounds_to_nearest_even():
    values = np.array([257.0, 259.0, 1.0 + 2**-9, -0.0, np.inf, 3.4e38, np.nan], np.float32)
    back = numpy_types.bfloat16_to_float32(numpy_types.float32_to_bfloat16(values))
    assert back[:6].tolist() == [256.0, 260.0, 1.0, -0.0, np.inf, np.inf]
    assert np.isnan(back[6])
