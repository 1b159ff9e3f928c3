"""The process-management server: PMI-1 answers, who joins, who died, who may finalize."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from mindspore.common import dtype as mstype

from mindspeed_ms.backend import cpu_mpi, job_client, job_server, launch, memory
from mindspeed_ms.backend.job_client import JobClient
from mindspeed_ms.backend.job_server import JobServer
from mindspeed_ms.backend.memory import flat_view
from mindspeed_ms.backend.pmi_server import PmiSpace, ProtocolError, parse_line, process_mapping

REPOSITORY = Path(__file__).resolve().parents[2]


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
    [(rank, reply)] = space.handle(2, "cmd=initack pmiid=2")
    assert rank == 2
    assert reply == ("cmd=initack rc=0\ncmd=set size=4\ncmd=set rank=2\ncmd=set debug=0\n")
    assert "rc=0" in space.handle(2, "cmd=init pmi_version=1 pmi_subversion=1")[0][1]
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
    ],
)
def test_wrong_requests_are_refused(line, reason):
    with pytest.raises(ProtocolError, match=reason):
        PmiSpace(1, "job", "").handle(0, line)
    assert parse_line("cmd=get key=a=b") == {"cmd": "get", "key": "a=b"}


# ---- the server and its connections


class Peer:
    """A rank that does what the test says."""

    def __init__(self, server, source="127.0.0.1"):
        self.socket = socket.create_connection(
            ("127.0.0.1", server.port), timeout=10, source_address=(source, 0)
        )
        self.file = self.socket.makefile("rw")

    def say(self, **message):
        self.file.write(json.dumps(message) + "\n")
        self.file.flush()

    def join(self, size, rank=None, local_rank=None):
        self.say(op="join", size=size, rank=rank, local_rank=local_rank, pid=os.getpid())
        return self

    def hear(self):
        message = json.loads(self.file.readline() or "{}")
        return self.hear() if message.get("op") == "wait" else message

    def hear_of(self, operation):
        """The next message of that kind; others are skipped."""
        while True:
            message = self.hear()
            if not message or message["op"] == operation:
                return message

    def hang_up(self):
        self.file.close()
        self.socket.close()


class Running:
    """A server in a thread, and its verdict."""

    def __init__(self, size, **options):
        self.server = JobServer(size, **options)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        self.failure = self.server.serve()

    def verdict(self):
        self.thread.join(timeout=15)
        assert not self.thread.is_alive()
        return self.failure


@pytest.fixture
def running():
    started = []

    def start(size, **options):
        started.append(Running(size, **options))
        return started[-1]

    yield start
    for job in started:
        job.server.stop()
        job.thread.join(timeout=15)


def joined(job, ranks):
    peers = [Peer(job.server).join(len(ranks), rank) for rank in ranks]
    return peers, [peer.hear() for peer in peers]


def test_numbered_ranks_get_their_numbers(running):
    _, starts = joined(running(3), [2, 0, 1])
    assert [start["rank"] for start in starts] == [2, 0, 1]
    assert [start["local_rank"] for start in starts] == [2, 0, 1]
    assert {(start["op"], start["size"], start["local_size"]) for start in starts} == {
        ("start", 3, 3)
    }


def test_unnumbered_ranks_are_numbered_host_by_host_and_the_mapping_says_so(running):
    job = running(4)
    places = [("127.0.0.2", 1), ("127.0.0.1", 1), ("127.0.0.2", 0), ("127.0.0.1", 0)]
    peers = [Peer(job.server, host).join(4, None, local) for host, local in places]
    starts = [peer.hear() for peer in peers]
    assert [start["rank"] for start in starts] == [3, 1, 2, 0]
    assert [start["local_rank"] for start in starts] == [1, 1, 0, 0]
    assert {start["local_size"] for start in starts} == {2}
    pmi = Peer(job.server)
    pmi.file.write("cmd=initack pmiid=3\n")
    pmi.file.write("cmd=get kvsname=x key=PMI_process_mapping\n")
    pmi.file.flush()
    lines = [pmi.file.readline() for _ in range(5)]
    assert lines[2] == "cmd=set rank=3\n"
    assert "(vector,(0,1,2),(1,1,2))" in lines[4]


def test_ranks_that_have_ended_are_dismissed_together(running):
    job = running(2)
    peers, _ = joined(job, [0, 1])
    peers[0].say(op="leave")
    assert peers[1].hear() == {"op": "status"}
    peers[1].say(op="status", blocked=0.0)
    peers[1].say(op="leave")
    for peer in peers:
        assert peer.hear_of("finalize")
        peer.hang_up()
    assert job.verdict() is None


def test_ranks_that_wait_for_one_that_has_ended_are_stopped(running):
    job = running(3)
    peers, _ = joined(job, [0, 1, 2])
    peers[1].say(op="leave")
    for blocked in ((9.0, 0.0), (9.0, 9.0)):
        for peer, seconds in zip((peers[0], peers[2]), blocked, strict=True):
            assert peer.hear() == {"op": "status"}
            peer.say(op="status", blocked=seconds)
    for peer in peers:
        assert "rank 1 ended while rank 0, 2 waited" in peer.hear_of("stop")["reason"]
        peer.hang_up()
    assert job.verdict()
    assert job.server.failed_rank == 1


@pytest.mark.parametrize("how", ["hang_up", "abort", "pmi_abort", "nonsense"])
def test_the_end_of_one_rank_ends_the_job_and_names_it(running, how):
    job = running(3)
    peers, _ = joined(job, [0, 1, 2])
    if how == "hang_up":
        peers[1].hang_up()
        reason = "rank 1 .* died while the job was running"
    elif how == "abort":
        peers[1].say(op="abort", reason="ValueError: no")
        reason = "rank 1 failed: ValueError: no"
    elif how == "pmi_abort":
        pmi = Peer(job.server)
        pmi.file.write("cmd=initack pmiid=1\ncmd=abort exitcode=3\n")
        pmi.file.flush()
        reason = "rank 1 called MPI_Abort"
    else:
        peers[1].say(op="dance")
        reason = "rank 1 broke the start-up protocol"
    for peer in (peers[0], peers[2]):
        message = peer.hear()
        assert message["op"] == "stop"
        assert re.search(reason, message["reason"])
        peer.hang_up()
    if how != "hang_up":
        peers[1].hang_up()
    assert "rank 1" in job.verdict()
    assert job.server.failed_rank == 1


def test_a_death_before_all_have_joined_ends_the_job_and_names_the_missing(running):
    job = running(3)
    waiting, dying = Peer(job.server).join(3, 0), Peer(job.server).join(3, 2)
    while len(job.server.joined_pids()) < 1 or len(job.server._waiting) < 2:
        time.sleep(0.01)
    dying.hang_up()
    message = waiting.hear()
    assert message["op"] == "stop"
    assert "rank 2" in message["reason"] and "rank 1 had not connected" not in message["reason"]
    assert "rank 1, 2 had not connected yet" in message["reason"]
    waiting.hang_up()
    assert "died before all ranks had connected" in job.verdict()


def test_missing_ranks_are_named_after_the_timeout(running):
    job = running(3, join_timeout=0.1)
    peer = Peer(job.server).join(3, 1)
    assert "rank 0, 2 did not connect in time" in peer.hear()["reason"]
    peer.hang_up()
    assert "--cluster_time_out" in job.verdict()


def test_joins_that_cannot_be_right_are_refused(running):
    job = running(2)
    first = Peer(job.server).join(2, 0)
    wrong = [((3, 1), "expects 3 ranks"), ((2, 2), "outside 0..1"), ((2, 0), "connected twice")]
    while not job.server._waiting:
        time.sleep(0.01)
    for (size, rank), reason in wrong:
        answer = Peer(job.server).join(size, rank).hear()
        assert answer["op"] == "refuse" and reason in answer["reason"]
    second = Peer(job.server).join(2, 1)
    assert first.hear()["op"] == second.hear()["op"] == "start"
    assert "already started" in Peer(job.server).join(2, 1).hear()["reason"]


def test_strangers_on_the_port_are_shown_the_door(running):
    job = running(1)
    for text in ("GET / HTTP/1.1\n", "cmd=initack pmiid=0\n", '{"op": "leave"}\n', "[1]\n"):
        stranger = Peer(job.server)
        stranger.file.write(text)
        stranger.file.flush()
        assert stranger.file.readline() == ""
    assert joined(job, [0])[1][0]["op"] == "start"


def test_stopping_the_server_releases_the_ranks(running):
    job = running(1)
    [peer], _ = joined(job, [0])
    job.server.stop()
    assert peer.hear() == {"op": "detach"}
    assert job.verdict() is None


def test_a_port_in_use_is_an_error_with_a_way_out():
    server = JobServer(1)
    with pytest.raises(RuntimeError, match="choose another --master_port"):
        JobServer(1, port=server.port)
    server.stop()
    server.serve()


def test_leftover_shared_memory_is_found_by_the_job_name(tmp_path, monkeypatch):
    folder = tmp_path / "shm"
    folder.mkdir()
    for name in ("mpich_shm_3e2a7b7b_0", "mpich_shm_3e2a7b7b_12", "mpich_shm_91b68c14_0"):
        (folder / name).touch()
    monkeypatch.setattr(job_server, "SHARED_MEMORY", folder)
    job_server.remove_shared_memory("c6fdc8e54b8d4020")
    assert [path.name for path in folder.iterdir()] == ["mpich_shm_91b68c14_0"]


# ---- the client


def test_an_absent_scheduler_is_reported_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(RuntimeError, match=f"no scheduler at 127.0.0.1:{port} within 0.3 s"):
        JobClient("127.0.0.1", port, timeout=0.3)


def test_a_refusal_and_a_foreign_server_are_reported(running):
    job = running(2)
    client = JobClient("127.0.0.1", job.server.port, timeout=5)
    with pytest.raises(RuntimeError, match="cannot join the job .* expects 5 ranks"):
        client.join(5, 0, None)
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        client = JobClient("127.0.0.1", foreign.getsockname()[1], timeout=5)
        connection, _ = foreign.accept()
        connection.sendall(b"SSH-2.0\r\n")
        with pytest.raises(RuntimeError, match="no scheduler of this job answers"):
            client.join(1, 0, None)


def test_a_lone_client_joins_and_leaves(running):
    job = running(1)
    client = JobClient("127.0.0.1", job.server.port, timeout=5)
    assert client.join(1, None, None) == job_client.Assignment(0, 1, 0, 1)
    assert client.leave() is True


MPI_SCRIPT = """
import os, sys
from mindspeed_ms.backend.job_client import JobClient
client = JobClient("127.0.0.1", int(sys.argv[1]), 20)
rank = client.join(3, None, None).rank
os.environ.update(PMI_PORT="127.0.0.1:" + sys.argv[1], PMI_ID=str(rank))
import mpi4py
mpi4py.rc.finalize = False
from mpi4py import MPI
assert (MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size) == (rank, 3)
assert MPI.COMM_WORLD.allreduce(rank) == 3
assert client.leave()
MPI.Finalize()
"""


def test_mpich_starts_and_ends_through_the_server(running):
    job = running(3)
    command = [sys.executable, "-c", MPI_SCRIPT, str(job.server.port)]
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
    back = cpu_mpi.bfloat16_to_float32(cpu_mpi.float32_to_bfloat16(values))
    assert back[:6].tolist() == [256.0, 260.0, 1.0, -0.0, np.inf, np.inf]
    assert np.isnan(back[6])
