# SPDX-License-Identifier: Apache-2.0
"""The server of a job and its clients: who joins, who died, who is silent, who may finalize."""

from __future__ import annotations

import mmap
import os
import re
import socket
import threading
import time

import pytest
from job_peers import SECRET, Peer

from mindspeed_ms.backend import job_client, job_connections, job_server
from mindspeed_ms.backend.job_client import JobClient
from mindspeed_ms.backend.job_health import Health
from mindspeed_ms.backend.job_server import JobServer
from mindspeed_ms.backend.progress import here


def until(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- who joins


def test_numbered_ranks_get_their_numbers(running):
    _, starts = running(3).join([2, 0, 1])
    assert [start["rank"] for start in starts] == [2, 0, 1]
    assert [start["local_rank"] for start in starts] == [2, 0, 1]
    assert {(start["op"], start["size"], start["local_size"]) for start in starts} == {
        ("start", 3, 3)
    }
    assert {start["address"] for start in starts} == {""}


def test_unnumbered_ranks_are_numbered_host_by_host_and_the_mapping_says_so(running):
    job = running(4)
    places = [("127.0.0.2", 1), ("127.0.0.1", 1), ("127.0.0.2", 0), ("127.0.0.1", 0)]
    peers = [Peer(job.server, host).join(4, None, local) for host, local in places]
    starts = [peer.hear() for peer in peers]
    assert [start["rank"] for start in starts] == [3, 1, 2, 0]
    assert [start["local_rank"] for start in starts] == [1, 1, 0, 0]
    assert {start["local_size"] for start in starts} == {2}
    assert [start["address"] for start in starts] == ["127.0.0.2", "127.0.0.1"] * 2
    pmi = peers[0].open_pmi(job.server, 3)
    pmi.write(b"cmd=get kvsname=x key=PMI_process_mapping\n")
    assert b"(vector,(0,1,2),(1,1,2))" in pmi.file.readline()


def test_ranks_with_another_host_name_do_not_share_memory(running):
    job = running(2)
    peers = [Peer(job.server).join(2, rank, name=f"pod{rank}") for rank in range(2)]
    assert [peer.hear()["local_size"] for peer in peers] == [1, 1]


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ((3, 1), "expects 3 ranks, the scheduler 2; start every host with the same --worker_num"),
        ((2, 2), "rank 2 on 127.0.0.1 is outside 0..1; check --node_rank"),
        ((2, 0), "rank 0 has connected twice, from 127.0.0.1 and from 127.0.0.1; give every host"),
    ],
)
def test_joins_that_cannot_be_right_end_the_job_at_once(running, wish, reason):
    job = running(2)
    first = Peer(job.server).join(2, 0)
    until(job.server.joined_pids)
    second = Peer(job.server).join(*wish)
    for peer in (first, second):
        message = peer.hear()
        assert message["op"] == "stop" and reason in message["reason"]
        peer.hang_up()
    assert reason in job.verdict()


def test_a_late_rank_is_refused_and_the_job_goes_on(running):
    job = running(1)
    [peer], _ = job.join([0])
    late = Peer(job.server).join(1, 0).hear()
    assert late["op"] == "refuse" and "already started" in late["reason"]
    peer.beat()
    peer.say(op="leave")
    assert peer.hear() == {"op": "finalize"}


def test_missing_ranks_are_named_while_waiting_and_after_the_timeout(running, monkeypatch):
    monkeypatch.setattr(job_server, "_WAITING_SECONDS", 0.1)
    job = running(3, join_timeout=1.2)
    peer = Peer(job.server).join(3, 1)
    assert peer.hear() == {"op": "note", "text": "still waiting for rank 0, 2"}
    assert "still waiting for rank 0, 2" in job.notes
    assert "rank 0, 2 did not connect in time" in peer.hear_of("stop")["reason"]
    peer.hang_up()
    assert "--cluster_time_out" in job.verdict()


def test_a_process_that_will_not_join_ends_the_job(running):
    job = running(2)
    peer = Peer(job.server).join(2, 0)
    until(job.server.joined_pids)
    gone = Peer(job.server)
    gone.say(op="gone", rank=1, name="hostb", reason="ended before it had connected: no data")
    message = peer.hear()
    assert (message["op"], message["rank"]) == ("stop", 1)
    assert message["reason"] == "rank 1 on hostb ended before it had connected: no data"
    peer.hang_up()
    assert job.verdict()


def test_the_launcher_of_the_job_is_asked_as_long_as_it_runs(running):
    reasons = [None, None, "its launcher has ended"]
    job = running(1, check=lambda server: reasons.pop(0) if server.has_started else None)
    [peer], _ = job.join([0])
    assert peer.hear() == {"op": "stop", "reason": "its launcher has ended", "rank": None}
    peer.hang_up()
    assert job.verdict() == "its launcher has ended"


# ---- who died


def test_ranks_that_have_ended_are_dismissed_together(running):
    job = running(2)
    peers, _ = job.join([0, 1])
    for peer in peers:
        peer.say(op="leave")
    for peer in peers:
        assert peer.hear_of("finalize")
        peer.hang_up()
    assert job.verdict() is None


def test_ranks_that_wait_for_one_that_has_ended_are_stopped(running):
    job = running(3)
    peers, _ = job.join([0, 1, 2])
    peers[1].say(op="leave")
    for blocked in ((9.0, 0.0), (9.0, 9.0)):
        for peer, seconds in zip((peers[0], peers[2]), blocked, strict=True):
            peer.beat(blocked=seconds)
    for peer in peers:
        assert "rank 1 ended while rank 0, 2 waited" in peer.hear_of("stop")["reason"]
        peer.hang_up()
    assert job.verdict()
    assert job.server.failed_rank == 1


@pytest.mark.parametrize("how", ["hang_up", "abort", "pmi_abort", "nonsense", "long", "deaf"])
def test_the_end_of_one_rank_ends_the_job_and_names_it(running, how):
    job = running(3)
    peers, _ = job.join([0, 1, 2])
    if how == "hang_up":
        peers[1].hang_up()
        reason = "rank 1 .* died while the job was running"
    elif how == "abort":
        peers[1].say(op="abort", reason="ValueError: no", blames_peer=False)
        reason = "rank 1 failed: ValueError: no"
    elif how == "pmi_abort":
        peers[1].open_pmi(job.server, 1).write(b"cmd=abort exitcode=3\n")
        reason = "rank 1 called MPI_Abort"
    elif how == "long":
        peers[1].write(b"x" * (1 << 18))
        reason = "rank 1 .* was dropped .*: it sent a line of more than 65536 bytes"
    elif how == "deaf":
        pmi = peers[1].open_pmi(job.server, 1)
        pmi.write(b"cmd=get key=PMI_process_mapping\n" * 3000)
        peers[1].say(op="abort", reason="enough", blames_peer=False)
        reason = "rank 1 failed: enough"
    else:
        peers[1].say(op="dance")
        reason = "rank 1 broke the start-up protocol"
    for peer in (peers[0], peers[2]):
        message = peer.hear()
        assert (message["op"], message["rank"]) == ("stop", 1)
        assert re.search(reason, message["reason"])
        peer.hang_up()
    if how != "hang_up":
        peers[1].hang_up()
    assert "rank 1" in job.verdict()
    assert job.server.failed_rank == 1


def test_a_death_before_all_have_joined_ends_the_job_and_names_the_missing(running):
    job = running(3)
    waiting, dying = Peer(job.server).join(3, 0), Peer(job.server).join(3, 2)
    until(lambda: len(job.server._roll.present) == 2)
    dying.hang_up()
    message = waiting.hear()
    assert message["op"] == "stop"
    assert "rank 2" in message["reason"] and "rank 1 had not connected" not in message["reason"]
    assert "rank 1, 2 had not connected yet" in message["reason"]
    waiting.hang_up()
    assert "died before all ranks had connected" in job.verdict()


@pytest.mark.parametrize("cause", ["death", "silence", "none"])
def test_a_failed_communication_is_blamed_on_whoever_caused_it(running, monkeypatch, cause):
    monkeypatch.setattr(job_server, "_GRACE_SECONDS", 0.4)
    job = running(2)
    peers, _ = job.join([0, 1])
    if cause == "silence":
        job.server._health._ranks[1].heard -= 60
    peers[0].say(op="abort", reason="communication failed in irecv: reset", blames_peer=True)
    if cause == "death":
        peers[1].hang_up()
    reason = peers[0].hear_of("stop")["reason"]
    if cause == "death":
        assert re.search("rank 1 .* died while the job was running", reason)
    elif cause == "silence":
        assert re.match(
            r"rank 1 on 127.0.0.1 cannot be reached: nothing was heard for 6\d s", reason
        )
    else:
        assert reason == "rank 0 failed: communication failed in irecv: reset"


def test_a_cut_network_is_no_death(running):
    job = running(3)
    places = ("127.0.0.1", "127.0.0.2", "127.0.0.2")
    peers = [
        Peer(job.server, place).join(3, rank, name="hostb") for rank, place in enumerate(places)
    ]
    assert [peer.hear()["op"] for peer in peers] == ["start"] * 3
    error = TimeoutError(110, "Connection timed out")
    job.server._connections._events.append(
        job_connections.Event(job.server._control[1], error=error)
    )
    reason = peers[0].hear_of("stop")["reason"]
    assert reason == (
        "rank 1, 2 on hostb (127.0.0.2) cannot be reached any more: the network is cut"
    )


def test_mpi_is_served_only_until_it_runs_everywhere(running):
    job = running(2)
    peers, _ = job.join([0, 1])
    pmi = peers[0].open_pmi(job.server, 0)
    for peer in peers:
        peer.say(op="running")
    peers[0].beat()
    until(lambda: len(job.server._running) == 2)
    pmi.write(b"cmd=barrier_in\ncmd=get kvsname=x key=PMI_process_mapping\n")
    assert "'get' came after the start of MPI" in peers[1].hear_of("stop")["reason"]


def test_a_second_pmi_connection_of_a_rank_is_dropped(running):
    job = running(1)
    [peer], _ = job.join([0])
    first = peer.open_pmi(job.server, 0)
    second = Peer(job.server)
    second.say(op="pmi", rank=0)
    assert second.hear() == {}
    first.write(b"cmd=get_appnum\n")
    assert b"appnum=0" in first.file.readline()


def test_a_survivor_of_this_host_is_killed(running, monkeypatch):
    killed = []
    monkeypatch.setattr(job_server, "_LINGER_SECONDS", 0.2)
    monkeypatch.setattr(job_server, "_kill_rank", lambda pid, port: killed.append(pid))
    job = running(2)
    peers, _ = job.join([0, 1])
    peers[0].say(op="abort", reason="no", blames_peer=False)
    assert job.verdict()
    assert len(killed) == 2


# ---- who is silent


@pytest.fixture
def health():
    state = Health(silence=30.0, timeout=600.0)
    state.start(range(3), 0.0)
    for rank, call in enumerate(("all_reduce", "all_gather_into_tensor", "irecv")):
        state.beat(rank, 100.0, call, 12, 0.5)
    return state


def test_a_silent_rank_is_named_once_with_its_last_place(health):
    assert health.notes({0, 1, 2}, 129.0) == []
    for rank in (0, 2):
        health.beat(rank, 130.5, "all_reduce", 13, 0.0)
    line = "rank 1 has not answered for 30 s, last seen in all_gather of iteration 12"
    assert health.notes({0, 1, 2}, 130.5) == [line]
    assert health.notes({0, 1, 2}, 140.0) == []
    assert health.beat(1, 143.0, "all_reduce", 12, 0.0) == "rank 1 answers again after 43 s"
    assert health.failure({0, 1, 2}, 143.0) is None


def test_a_rank_that_stays_silent_ends_the_job(health):
    for now in range(130, 801, 10):
        for rank in (0, 2):
            health.beat(rank, float(now), "all_reduce", 13, 0.0)
    rank, reason = health.failure({0, 1, 2}, 800.5)
    assert rank == 1
    assert reason == (
        "rank 1 has not answered for 700 s, last seen in all_gather of iteration 12; the limit is "
        "--distributed-timeout-minutes (10)"
    )


def test_ranks_that_wait_name_the_one_that_does_not_come(health):
    for rank, call, blocked in ((0, "all_reduce", 50.0), (1, "irecv", 0.0), (2, "barrier", 49.0)):
        health.beat(rank, 200.0, call, 13, blocked)
    [line] = health.notes({0, 1, 2}, 200.0)
    assert line == (
        "rank 0, 2 wait since 50 s in all_reduce of iteration 13 for rank 1, last seen after irecv "
        "of iteration 13"
    )
    assert health.notes({0, 1, 2}, 200.5) == []
    health.beat(0, 201.0, "all_reduce", 13, 601.0)
    rank, reason = health.failure({0, 1, 2}, 201.0)
    assert rank == 1 and "rank 0 waits since 601 s in all_reduce" in reason


def test_ranks_that_wait_for_each_other_are_all_told(health):
    for rank, call in enumerate(("all_reduce", "barrier", "all_reduce")):
        health.beat(rank, 200.0, call, 13, 601.0 + rank)
    rank, reason = health.failure({0, 1, 2}, 200.0)
    assert "all ranks wait for each other since 603 s" in reason
    assert "rank 0, 2 in all_reduce of iteration 13; rank 1 in barrier of iteration 13" in reason


def test_a_server_that_stood_still_blames_nobody(health):
    health.forgive(1000.0)
    assert health.notes({0, 1, 2}, 1110.0) == []
    assert health.failure({0, 1, 2}, 1110.0) is None


def test_silence_is_told_to_a_rank_that_hears_and_ends_at_the_limit(running, monkeypatch):
    monkeypatch.setenv("MINDSPEED_MS_SILENCE_SECONDS", "1")
    job = running(2)
    peers, _ = job.join([0, 1])
    peers[0].say(op="limits", timeout=3.0)
    peers[1].beat(blocked=0.2, iteration=12)
    stop = threading.Event()

    def speak():
        while not stop.wait(0.2):
            peers[0].beat("all_reduce")

    thread = threading.Thread(target=speak)
    thread.start()
    line = "rank 1 has not answered for 1 s, last seen in all_gather of iteration 12"
    assert peers[0].hear() == {"op": "note", "text": line}
    message = peers[0].hear()
    stop.set()
    thread.join()
    assert (message["op"], message["rank"]) == ("stop", 1)
    assert "the limit is --distributed-timeout-minutes (0.05)" in message["reason"]
    assert job.notes == [line]


# ---- the rest of the server


def test_stopping_the_server_releases_the_ranks(running):
    job = running(1)
    [peer], _ = job.join([0])
    job.server.stop()
    assert peer.hear() == {"op": "detach"}
    assert job.verdict() is None


def test_a_port_in_use_is_an_error_with_a_way_out():
    server = JobServer(1, secret=SECRET)
    for port in (server.port, 70000):
        with pytest.raises(RuntimeError, match="choose another --master_port"):
            JobServer(1, port=port, secret=SECRET)
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


def test_memory_that_nobody_uses_goes_when_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(job_server, "SHARED_MEMORY", tmp_path)
    for name in ("mpich_shm_1_0", "mpich_shm_2_0", "mpich_shm_3_0", "other_1"):
        (tmp_path / name).write_bytes(bytes(4096))
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / "mpich_shm_3_0").touch()
    with (tmp_path / "mpich_shm_2_0").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=1):
        job_server.remove_abandoned_memory()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["mpich_shm_2_0", "mpich_shm_3_0", "other_1"]


# ---- the client


def client_of(job, **options):
    return JobClient("127.0.0.1", job.server.port, 5, **{"secret": SECRET, **options})


def test_an_absent_scheduler_is_reported_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(RuntimeError, match=f"no scheduler at 127.0.0.1:{port} within 0.3 s"):
        JobClient("127.0.0.1", port, timeout=0.3)


def test_a_refusal_a_foreign_server_and_another_secret_are_reported(running):
    job = running(1)
    with pytest.raises(RuntimeError, match="has another secret .* MINDSPEED_MS_JOB_SECRET differs"):
        client_of(job, secret=b"something else")
    rank, _ = job.join([0])
    with pytest.raises(RuntimeError, match="cannot join the job .* already started"):
        client_of(job).join(1, 0, None)
    with socket.create_server(("127.0.0.1", 0)) as foreign:

        def greet():
            connection, _ = foreign.accept()
            connection.sendall(b"SSH-2.0\r\n")
            connection.recv(100)

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(RuntimeError, match="no scheduler of this job answers"):
            JobClient("127.0.0.1", foreign.getsockname()[1], timeout=5)
    rank[0].hang_up()


def test_a_lone_client_joins_beats_and_leaves(running):
    job = running(1)
    client = client_of(job)
    here.call, here.iteration = "barrier", 7
    client.blocked_seconds = lambda: 2.5
    assert client.join(1, None, None) == job_client.Assignment(0, 1, 0, 1)
    until(lambda: job.server._health.place(0) == "in barrier of iteration 7")
    client.set_limit(90.0)
    until(lambda: job.server._health.timeout == 90.0)
    assert client.leave() is True


def test_a_client_that_is_kept_waiting_looks_after_its_siblings(running):
    job = running(2)
    reasons = [None, None, "rank 1 (pid 5) ended before it had connected; see its log"]
    with pytest.raises(job_client.JobEndedError, match="rank 1 .pid 5. ended before"):
        client_of(job, check=lambda: reasons.pop(0)).join(2, 0, None)
    assert job.verdict() == "rank 1 (pid 5) ended before it had connected; see its log"


def test_a_client_told_to_stop_while_it_fails_returns_the_reason(running):
    job = running(1)
    client = client_of(job)
    client.join(1, 0, None)
    assert client.abort("ValueError: no") == "rank 0 failed: ValueError: no"


def test_a_server_that_ends_during_the_handshake_is_tried_again(running):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up():
            listener.accept()[0].close()
            listener.close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(RuntimeError, match="no scheduler at .* within 1 s"):
            JobClient("127.0.0.1", port, timeout=1.0, secret=SECRET)
