# SPDX-License-Identifier: Apache-2.0
"""A job server in a thread, and ranks that do what a test says."""

from __future__ import annotations

import json
import os
import socket
import threading

import pytest

from mindspeed_ms.backend import job_secret
from mindspeed_ms.backend.job_server import JobServer

SECRET = b"what only this test knows"


class Peer:
    """A connection to a server, proved to be of its job unless ``secret`` is None."""

    def __init__(self, server, source="127.0.0.1", secret=SECRET):
        self.socket = socket.create_connection(
            ("127.0.0.1", server.port), timeout=10, source_address=(source, 0)
        )
        self.file = self.socket.makefile("rwb")
        self.source = source
        self.greeting = self.file.read(len(job_secret.MAGIC) + job_secret.NUMBER_BYTES)
        if secret is not None:
            self.prove(secret)

    def prove(self, secret):
        number = self.greeting[len(job_secret.MAGIC) :]
        own = job_secret.new_number()
        self.write(job_secret.client_proof(secret, number, own))
        self.answer = self.file.read(len(job_secret.REFUSED))
        return job_secret.check_server(secret, number, own, self.answer)

    def write(self, data):
        self.file.write(data)
        self.file.flush()

    def say(self, **message):
        self.write(json.dumps(message).encode() + b"\n")

    def join(self, size, rank=None, local_rank=None, name=""):
        wish = {"size": size, "rank": rank, "local_rank": local_rank, "name": name}
        self.say(op="join", pid=os.getpid(), **wish)
        return self

    def beat(self, call="all_gather_into_tensor", iteration=1, blocked=0.0):
        self.say(op="beat", call=call, iteration=iteration, blocked=blocked)

    def hear(self):
        """The next message; {} at the end. Waiting and heartbeats are passed over."""
        while True:
            line = self.file.readline()
            message = json.loads(line) if line else {}
            if message.get("op") not in ("wait", "beat"):
                return message

    def hear_of(self, operation):
        """The next message of that kind; others are skipped."""
        while True:
            message = self.hear()
            if not message or message["op"] == operation:
                return message

    def open_pmi(self, server, rank):
        """MPICH's connection as this rank."""
        pmi = Peer(server, self.source)
        pmi.say(op="pmi", rank=rank)
        assert pmi.hear() == {"op": "pmi"}
        return pmi

    def hang_up(self):
        self.file.close()
        self.socket.close()


class Running:
    """A server in a thread, and its verdict."""

    def __init__(self, size, check=None, **options):
        self.server = JobServer(size, secret=SECRET, **options)
        self.notes = []
        self.server.on_note = self.notes.append
        self.thread = threading.Thread(target=self.serve, args=(check,), daemon=True)
        self.thread.start()

    def serve(self, check):
        self.failure = self.server.serve(check)

    def join(self, ranks, **options):
        """Peers that have joined, and what they were told."""
        peers = [Peer(self.server).join(len(ranks), rank, **options) for rank in ranks]
        return peers, [peer.hear() for peer in peers]

    def verdict(self):
        self.thread.join(timeout=15)
        assert not self.thread.is_alive()
        return self.failure


@pytest.fixture
def running():
    """``running(size, **options)`` starts a server that ends with the test."""
    started = []

    def start(size, **options):
        started.append(Running(size, **options))
        return started[-1]

    yield start
    for job in started:
        job.server.stop()
        job.thread.join(timeout=15)
