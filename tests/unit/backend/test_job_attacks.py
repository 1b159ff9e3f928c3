# SPDX-License-Identifier: Apache-2.0
"""Foreign clients on the port of a job, before it has started and while it runs.

Whatever somebody does who does not know the job's secret, the ranks join, run and end as without
him. Somebody who knows it is a rank, but as long as it has not joined it can break nothing either.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import struct
import threading
import time

import pytest
from job_peers import SECRET, Peer

from mindspeed_ms.backend import job_connections, job_secret
from mindspeed_ms.backend.job_client import JobClient

NUMBER = job_secret.NUMBER_BYTES


def line(**message):
    return json.dumps(message).encode() + b"\n"


def raw(server, *chunks, source="127.0.0.1"):
    """A connection without a proof that has sent something, and what came back."""
    connection = socket.create_connection(("127.0.0.1", server.port), 5, (source, 0))
    with contextlib.suppress(OSError):
        for chunk in chunks:
            connection.sendall(chunk)
    return connection


def sends(*chunks):
    return lambda server: [raw(server, *chunks)]


def resets(server):
    """Closes with a reset instead of a good-bye."""
    connection = raw(server, b"x")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_open(server):
    connection = raw(server)
    connection.shutdown(socket.SHUT_WR)
    return [connection]


def dribbles(server):
    """One byte at a time, all of them right."""
    connection = raw(server)
    greeting = connection.recv(1000)[len(job_secret.MAGIC) :]
    proof = job_secret.client_proof(SECRET, greeting, os.urandom(NUMBER))
    for byte in proof[:-1]:
        connection.sendall(bytes([byte]))
    return [connection]


def many(count, source="127.0.0.1"):
    def attack(server):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * count + 500)), hard))
        return [raw(server, source=source) for _ in range(count)]

    return attack


def crowds(server):
    return [raw(server, source=f"127.0.0.{number}") for number in range(2, 250)]


def comes_and_goes(server):
    for _ in range(500):
        raw(server, b"GET / HTTP/1.0\r\n\r\n").close()


def never_reads(server):
    connection = raw(server)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    with contextlib.suppress(OSError):
        for _ in range(200):
            connection.sendall(line(op="join", size=2, rank=7) * 100)
    return [connection]


def proves(make):
    """Sends a proof made from the server's number; it must be refused."""

    def attack(server):
        connection = raw(server)
        number = connection.recv(1000)[len(job_secret.MAGIC) :]
        connection.sendall(make(server, number))
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
        assert answer in (job_secret.REFUSED, b"")
        return [connection]

    return attack


def with_secret(secret):
    own = bytes(NUMBER)
    return proves(lambda server, number: job_secret.client_proof(secret, number, own))


def replays(server):
    """What a rank once said, said again."""
    connection = raw(server)
    number = connection.recv(1000)[len(job_secret.MAGIC) :]
    proof = job_secret.client_proof(SECRET, number, os.urandom(NUMBER))
    connection.sendall(proof)
    assert len(connection.recv(1000)) == 32
    connection.close()
    return proves(lambda server, number: proof)(server)


def reflects(server):
    """Lets the server sign, and shows it its own signature."""
    first, second = raw(server), raw(server)
    number = first.recv(1000)[len(job_secret.MAGIC) :]
    other = second.recv(1000)[len(job_secret.MAGIC) :]
    first.sendall(other + bytes(32))
    answer = first.recv(1000)
    second.sendall(number + answer)
    assert second.recv(1000) in (job_secret.REFUSED, b"")
    return [first, second]


def pmi(*commands):
    return sends(*(command.encode() + b"\n" for command in commands))


STRANGERS = {
    "garbage": sends(os.urandom(4096)),
    "http": sends(b"GET / HTTP/1.0\r\n\r\n"),
    "tls": sends(bytes.fromhex("16030100f1010000ed0303") + bytes(200)),
    "ssh": sends(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "zeros": sends(bytes(1000) + b"\n"),
    "one_byte": sends(b"{"),
    "newlines": sends(b"\n" * 5000),
    "half_open": half_open,
    "silent": sends(),
    "reset": resets,
    "dribble": dribbles,
    "huge_line": sends(*[b"a" * (1 << 20)] * 20),
    "nested_lists": sends(b"[" * 30000 + b"\n"),
    "nested_objects": sends(b'{"a":' * 9000 + b"\n"),
    "long_integer": sends(b'{"op":"join","size":' + b"9" * 5000 + b"}\n"),
    "null": sends(b"null\n"),
    "join": sends(line(op="join", size=2, rank=0, local_rank=0, pid=1, name="")),
    "join_unnumbered": sends(line(op="join", size=2, rank=None, local_rank=0, pid=1, name="")),
    "join_text": sends(line(op="join", size=2, rank="x")),
    "join_list": sends(line(op="join", size=2, rank=[])),
    "join_float": sends(line(op="join", size=2, rank=1.5)),
    "join_true": sends(line(op="join", size=2, rank=True)),
    "join_wrong_size": sends(line(op="join", size=3, rank=1)),
    "join_twice": sends(*[line(op="join", size=2, rank=1)] * 2),
    "leave": sends(line(op="leave")),
    "abort": sends(line(op="abort", reason="evil", blames_peer=False)),
    "gone": sends(line(op="gone", rank=1, name="", reason="evil")),
    "beat": sends(line(op="beat", call="", iteration=0, blocked=99)),
    "status": sends(line(op="status", blocked=99)),
    "limits": sends(line(op="limits", timeout=0.0)),
    "pmi": sends(line(op="pmi", rank=0), b"cmd=abort exitcode=1\n"),
    "pmi_initack": pmi("cmd=initack pmiid=0"),
    "pmi_abort": pmi("cmd=initack pmiid=0", "cmd=abort exitcode=1"),
    "pmi_other_rank": pmi("cmd=initack pmiid=9"),
    "pmi_text": pmi("cmd=initack pmiid=x"),
    "pmi_nonsense": pmi("cmd=initack pmiid=1", "cmd=nonsense"),
    "pmi_put": pmi("cmd=put kvsname=x key=PMI_process_mapping value=(vector,(0,9,9))"),
    "pmi_barrier": lambda server: [
        *pmi("cmd=initack pmiid=0", "cmd=barrier_in")(server),
        *pmi("cmd=initack pmiid=1", "cmd=barrier_in")(server),
    ],
    "pmi_finalize": pmi("cmd=initack pmiid=0", "cmd=finalize"),
    "no_secret": with_secret(b""),
    "other_secret": with_secret(b"guessed"),
    "other_port": proves(
        lambda server, number: job_secret.client_proof(
            job_secret.job_secret(server.port + 1), number, bytes(NUMBER)
        )
    ),
    "random_proof": proves(lambda server, number: os.urandom(job_secret.PROOF_BYTES)),
    "zero_proof": proves(lambda server, number: bytes(job_secret.PROOF_BYTES)),
    "echoed_number": proves(lambda server, number: number + bytes(32)),
    "short_proof": sends(bytes(job_secret.PROOF_BYTES - 1)),
    "replay": replays,
    "reflection": reflects,
    "never_reads": never_reads,
    "idle": many(300),
    "crowd": crowds,
    "come_and_go": comes_and_goes,
    "many_proofs": lambda server: [raw(server, os.urandom(200)) for _ in range(300)],
}


def guest(*chunks):
    """Somebody of the job, who has not joined."""

    def attack(server):
        peer = Peer(server)
        with contextlib.suppress(OSError):
            for chunk in chunks:
                peer.write(chunk)
        return [peer.socket]

    return attack


GUESTS = {
    "nothing": guest(),
    "garbage": guest(os.urandom(4096) + b"\n"),
    "zeros": guest(bytes(3000) + b"\n"),
    "huge_line": guest(*[b"a" * (1 << 20)] * 20),
    "nested_lists": guest(b"[" * 30000 + b"\n"),
    "nested_objects": guest(b'{"a":' * 9000 + b"\n"),
    "long_integer": guest(b'{"op":"join","size":' + b"9" * 5000 + b"}\n"),
    "not_a_number": guest(b'{"op":"limits","timeout":NaN}\n'),
    "null": guest(b"null\n"),
    "list_as_kind": guest(line(op=["join"])),
    "join_text": guest(line(op="join", size=2, rank="x", local_rank=0, pid=1, name="")),
    "join_true": guest(line(op="join", size=2, rank=True, local_rank=0, pid=1, name="")),
    "join_negative": guest(line(op="join", size=2, rank=-1, local_rank=0, pid=1, name="")),
    "join_float": guest(line(op="join", size=2.0, rank=0, local_rank=0, pid=1, name="")),
    "join_without_pid": guest(line(op="join", size=2, rank=0, local_rank=0, name="")),
    "join_long_name": guest(line(op="join", size=2, rank=0, local_rank=0, pid=1, name="n" * 5000)),
    "unknown_field": guest(
        line(op="join", size=2, rank=0, local_rank=0, pid=1, name="", evil=True)
    ),
    "leave": guest(line(op="leave")),
    "beat": guest(line(op="beat", call="", iteration=0, blocked=99)),
    "abort": guest(line(op="abort", reason="evil", blames_peer=False)),
    "pmi_of_nobody": guest(line(op="pmi", rank=9)),
    "pmi_command": guest(b"cmd=abort exitcode=1\n"),
}
ATTACKS = {
    **{f"stranger-{name}": attack for name, attack in STRANGERS.items()},
    **{f"guest-{name}": attack for name, attack in GUESTS.items()},
}


def run_job(running, attack, state):
    """A job of two ranks that is attacked; what the ranks were told, and the server's verdict."""
    job = running(2)
    opened = []
    if state == "joining":
        waiting = JobClient("127.0.0.1", job.server.port, 20, SECRET)
        results = []
        thread = threading.Thread(target=lambda: results.append(waiting.join(2, 0, None)))
        thread.start()
        opened = attack(job.server) or []
        other = JobClient("127.0.0.1", job.server.port, 20, SECRET)
        results.append(other.join(2, 1, None))
        thread.join(timeout=20)
        assert sorted(result.rank for result in results) == [0, 1]
        clients = [waiting, other]
    else:
        clients = [JobClient("127.0.0.1", job.server.port, 20, SECRET) for _ in range(2)]
        threads = [
            threading.Thread(target=client.join, args=(2, rank, None))
            for rank, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        opened = attack(job.server) or []
    leavers = [threading.Thread(target=client.leave, daemon=True) for client in clients]
    for thread in leavers:
        thread.start()
    for thread in leavers:
        thread.join(timeout=20)
    assert all(client._may_finalize for client in clients)
    for client in clients:
        client._connection.close()
    verdict = job.verdict()
    for connection in opened:
        connection.close()
    return verdict


@pytest.mark.parametrize("state", ["joining", "running"])
@pytest.mark.parametrize("name", ATTACKS)
def test_a_foreign_client_changes_nothing(running, name, state):
    assert run_job(running, ATTACKS[name], state) is None


@pytest.mark.parametrize("state", ["joining", "running"])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 200))]
)
def test_random_clients_change_nothing(running, seed, state, first_seed):
    draw = random.Random(first_seed + seed)

    def attack(server):
        opened = []
        for _ in range(30):
            opened += ATTACKS[draw.choice(list(ATTACKS))](server) or []
            kind = draw.choice((sends, guest))
            opened += kind(draw.randbytes(draw.randrange(1, 3000)))(server)
        return opened

    assert run_job(running, attack, state) is None


@pytest.mark.slow
@pytest.mark.parametrize("state", ["joining", "running"])
def test_a_flood_of_idle_connections_keeps_nobody_out(running, state):
    assert run_job(running, many(4000), state) is None


def test_strangers_are_shown_the_door_in_time(running, monkeypatch):
    monkeypatch.setattr(job_connections, "STRANGER_SECONDS", 0.3)
    monkeypatch.setattr(job_connections, "GUEST_SECONDS", 0.3)
    job = running(1)
    for connection in (raw(job.server), Peer(job.server).socket):
        started = time.monotonic()
        connection.settimeout(5)
        while connection.recv(1000):
            pass
        assert time.monotonic() - started < 3


def test_a_wrong_secret_is_told_once_while_ranks_are_missing(running):
    job = running(2)
    for _ in range(3):
        with_secret(b"guessed")(job.server)
    deadline = time.monotonic() + 10
    while not job.notes and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    assert len(job.notes) == 1
    assert "a process on 127.0.0.1 does not know the secret of this job" in job.notes[0]


def test_the_servers_memory_does_not_grow(running):
    job = running(1)
    opened = [raw(job.server, b"x" * (1 << 16)) for _ in range(100)]
    time.sleep(0.5)
    connections = job.server._connections
    assert sum(len(peer.inbox) for peer in connections._strangers) == 0
    assert len(opened) == 100
