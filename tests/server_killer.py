# SPDX-License-Identifier: Apache-2.0
"""A text server that is ended at random moments, with clients that ask, wait, leave and come late.

Every end is in time and honest: the status is that of the signal or, after the first request to
end, 0; no client waits for ever or is given a part as a whole; nothing stays behind.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from jobs import Job, abandoned_memory, launch_words
from serve_cases import MEGATRONS, MODULE, served_folder

SECONDS = 30.0
"""For the end of all after the last signal, on a busy machine."""
LAUNCHERS = ("plain", "megatron", "mpiexec", "torchrun")
WAYS = ("KILL", "TERM", "INT", "INT INT", "TERM TERM", "INT TERM", "HUP", "STOP KILL")
PLACE = re.compile(r"serving \S+ at (http://\S+)")
LENGTH = 58
"""New tokens of an answer; with the prompt as many as the model has positions."""


class Clients:
    """Requests at a time, each in a thread, until the server is gone.

    Args:
        address: of the server.
        draw: what they do.
        expected: (kind, seed) -> answer of any server before; is filled.
    """

    KINDS = ("whole", "stream", "leaves", "halves", "beams")

    def __init__(self, address, draw, expected):
        where = urlsplit(address)
        self.place = (where.hostname, where.port)
        self.draw, self.expected = draw, expected
        self.seen, self.faults = Counter(), []
        kinds = [draw.choice(self.KINDS) for _ in range(12)]
        self.threads = [threading.Thread(target=self._ask, args=(kind,)) for kind in kinds]
        for thread in self.threads:
            thread.start()

    def wait(self, seconds):
        """Until all have been told the end; whether they have."""
        deadline = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)

    def _ask(self, kind):
        while True:
            try:
                self.seen[getattr(self, f"_{kind}")()] += 1
            except (OSError, http.client.HTTPException):
                self.seen["cut"] += 1
                return
            except Exception as error:  # noqa: BLE001  (whatever a client finds is a fault)
                self.faults.append(f"{kind}: {type(error).__name__}: {error}")
                return

    def _request(self, method, path, body):
        connection = http.client.HTTPConnection(*self.place, timeout=120)
        connection.request(method, path, json.dumps(body))
        return connection, connection.getresponse()

    def _refused(self, response):
        text = response.read()
        assert response.status in (500, 503), (response.status, text)
        time.sleep(0.02)
        return str(response.status)

    def _same(self, kind, seed, answer):
        """An answer is that of every server before."""
        assert self.expected.setdefault((kind, seed), answer) == answer, (kind, seed, answer)
        return kind

    def _body(self):
        seed = self.draw.randrange(3)
        body = {"prompt": "w5 w6", "max_tokens": LENGTH, "ignore_eos": True, "n": 2, "seed": seed}
        return seed, body

    def _whole(self):
        seed, body = self._body()
        _, response = self._request("POST", "/v1/completions", body)
        if response.status != 200:
            return self._refused(response)
        found = json.loads(response.read())
        assert found["usage"]["completion_tokens"] == 2 * LENGTH, found
        return self._same("text", seed, [choice["text"] for choice in found["choices"]])

    def _beams(self):
        body = {"prompts": ["w5 w6"], "tokens_to_generate": 20, "beam_width": 3, "stop_token": 7}
        _, response = self._request("PUT", "/api", body)
        if response.status != 200:
            return self._refused(response)
        return self._same("beams", 0, json.loads(response.read())["text"])

    def _stream(self, leaves_after=None):
        seed, body = self._body()
        connection, response = self._request("POST", "/v1/completions", {**body, "stream": True})
        if response.status != 200:
            return self._refused(response)
        texts, pieces, last = ["", ""], 0, b""
        for line in response:
            if not line.startswith(b"data: "):
                continue
            last = line[6:].strip()
            if last == b"[DONE]":
                continue
            found = json.loads(last)
            if "error" in found:
                return "told in a stream"
            for choice in found["choices"]:
                texts[choice["index"]] += choice["text"]
                pieces += 1
            if leaves_after is not None and pieces > leaves_after:
                connection.close()
                return "left"
        if last != b"[DONE]":
            raise ConnectionError("ends without a word")
        return self._same("text", seed, texts)

    def _leaves(self):
        return self._stream(leaves_after=20)

    def _halves(self):
        """A client that says half of its request, and hangs up."""
        with socket.create_connection(self.place, timeout=60) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
            )
            time.sleep(0.02)
        return "half"


def maps_of(pid):
    try:
        return Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return ""


class Attack:
    """One kind of server, ended again and again."""

    def __init__(self, launcher, folder, model):
        self.launcher, self.folder, self.model = launcher, folder, model
        self.ranks = 2 if launcher in ("mpiexec", "torchrun") else 1
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.memory = abandoned_memory()
        self.seen, self.clients, self.answers = Counter(), Counter(), {}

    def start(self):
        shutil.rmtree(self.folder / "log", ignore_errors=True)
        name = "plain" if self.launcher == "megatron" else self.launcher
        words = [*launch_words(name, self.ranks, self.folder), *MODULE, "--load", self.model]
        if self.launcher == "megatron":
            words = [sys.executable, *MEGATRONS, "--load", self.model]
        words += ["--port", "0", "--tensor-model-parallel-size", str(self.ranks)]
        return Job(words, self.folder, TMPDIR=str(self.temporary))

    def wait_for_loading(self, job):
        """Until every rank has begun to load modules."""
        ranks = ["launcher"] if self.ranks == 1 else ["0", "1"]
        while not all(any("mindspore" in maps_of(pid) for pid in job.find(r)) for r in ranks):
            assert job.process.poll() is None, job.text()
            time.sleep(0.05)

    def serving(self, job):
        """The address, when the server has come so far."""
        while not (found := PLACE.search(job.console.read_text())):
            assert job.process.poll() is None, job.text()
            time.sleep(0.05)
        return found.group(1)

    def kill(self, draw, way, victim):
        """End it while it starts, or while clients are at it."""
        job, clients = self.start(), None
        moment = draw.uniform(0.0, 8.0) if draw.random() < 0.4 else None
        if moment is not None:
            self.wait_for_loading(job)  # what comes before is Python's own beginning
            time.sleep(moment)
        else:
            clients = Clients(self.serving(job), draw, self.answers)
            time.sleep(draw.uniform(0.1, 2.0))
        pause = draw.choice([0.0, 0.01, 0.3])
        names = way.split()
        for name in names:
            while not job.send(victim, signal.Signals[f"SIG{name}"]) and job.process.poll() is None:
                time.sleep(0.02)
            time.sleep(0.5 if name == "STOP" else pause)
        status = job.wait(SECONDS)
        job.seconds_until_gone(SECONDS)
        text, left = job.text(), job.end()
        when = "with clients" if clients else f"after {moment:.2f} s"
        told = f"{self.launcher} {victim} {way} (pause {pause}) {when}: status {status}\n"
        told += text[-3000:]
        job.console.unlink()
        assert status is not None and not left, f"{left} stayed: {told}"
        assert "Traceback" not in text, told
        if clients is not None:
            assert clients.wait(SECONDS), f"a client waits: {told}"
            assert not clients.faults, f"{clients.faults}: {told}"
            self.clients += clients.seen
        honest = self.honest(victim, names, is_serving=clients is not None)
        assert honest is None or status in honest, f"not of {honest}: {told}"
        assert honest is not None or status != 0 or "INT" in way or "TERM" in way, told
        assert not abandoned_memory() - self.memory, f"shared memory stays: {told}"
        assert not list(self.temporary.iterdir()), f"temporary files stay: {told}"
        self.seen[f"{victim} {way}: {status}"] += 1

    def honest(self, victim, names, is_serving):
        """Statuses that say what has happened; None: other processes of the job say it."""
        if victim != "launcher" or self.launcher == "mpiexec":
            return None
        numbers = [signal.Signals[f"SIG{name}"].value for name in names if name != "STOP"]
        of_signals = {-number for number in numbers}
        if self.launcher == "torchrun":
            of_signals |= {128 + numbers[0]}
            return of_signals if names[-1] != "KILL" else {-9}
        if names[-1] == "KILL" or names == ["HUP"]:
            return of_signals
        graceful = {0} if is_serving else {0, 128 + numbers[0]}
        return of_signals | graceful


def attack(launcher, folder, kills, seed):
    """So many ends of a kind of server; what was seen."""
    draw = random.Random(seed)
    attacked = Attack(launcher, folder, served_folder(folder / "model"))
    victims = ["launcher"]
    if attacked.ranks > 1:
        victims += ["0", "1", "proxy" if launcher == "mpiexec" else "scheduler"]
    for number in range(kills):
        way = WAYS[number % len(WAYS)] if kills >= len(WAYS) else draw.choice(WAYS)
        victim = draw.choice(victims)
        is_deaf = victim in ("1", "proxy")  # to the signals that ask
        attacked.kill(draw, "KILL" if is_deaf else way, victim)
    return attacked


def main():
    """Usage: python server_killer.py FOLDER KILLS SEED [LAUNCHER...]."""
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for name in sys.argv[4:] or LAUNCHERS:
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            done = attack(name, place, kills, seed)
            sys.stdout.write(f"{name}: {dict(done.seen)} {dict(done.clients)}\n")
        except AssertionError as error:
            sys.stdout.write(f"{name}: FAILED {error}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
