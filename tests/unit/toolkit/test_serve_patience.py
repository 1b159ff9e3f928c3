# SPDX-License-Identifier: Apache-2.0
"""Clients that connect and say nothing, or say it slowly, hold up nobody."""

import asyncio
import contextlib
import http.client
import importlib
import socket
import threading
import time

import pytest

from mindspeed_ms.toolkit.serve.patience import patient, room_for_connections

uvicorn = pytest.importorskip("uvicorn")
SECONDS, MOST, WORK = 0.6, 8, 1.5


async def answers(scope, receive, send):
    """Work for a while at what is not at the root."""
    assert scope["type"] == "http"
    if scope["path"] != "/":
        await asyncio.sleep(WORK)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


@pytest.fixture(scope="module")
def port():
    base = importlib.import_module("uvicorn.protocols.http.auto").AutoHTTPProtocol
    made = patient(base, SECONDS, MOST)
    config = uvicorn.Config(answers, http=made, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(10)


def ask(port, path="/"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read(), connection


def dribble(connection, data, pause=0.05):
    """Send a byte at a time until the other side ends; what it said."""
    with contextlib.suppress(OSError):
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(pause)
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                return connection.recv(1000)
            connection.setblocking(True)
    return None


HEADERS = b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x-header: " + b"a" * 5000


@pytest.mark.parametrize("data", [HEADERS, b"\r\n" * 2000, b""])
def test_headers_that_come_slowly_are_not_waited_for(port, data):
    """A byte now and then does not prolong it; others are answered meanwhile."""
    with socket.create_connection(("127.0.0.1", port), 20) as slow:
        began = time.monotonic()
        if data:
            said = []
            thread = threading.Thread(target=lambda: said.append(dribble(slow, data)))
            thread.start()
            assert ask(port)[:2] == (200, b"done")
            thread.join(20)
            assert said[0] is None or said[0] == b"" or b" 408 " in said[0] or b" 400 " in said[0]
        else:
            assert b" 408 " in slow.recv(1000)
        assert time.monotonic() - began < 10 * SECONDS


def test_work_that_takes_longer_is_waited_for(port):
    began = time.monotonic()
    assert ask(port, "/work")[:2] == (200, b"done")
    assert time.monotonic() - began >= WORK > SECONDS


def test_the_next_request_of_a_connection_has_as_long(port):
    *_, kept = ask(port)
    with kept.sock as connection:
        said = dribble(connection, HEADERS)
    assert said is None or said == b"" or b" 408 " in said


def test_a_crowd_that_says_nothing_makes_room(port):
    """For those who ask; whose request is worked at stays."""
    found = []
    worked = threading.Thread(target=lambda: found.append(ask(port, "/work")[:2]))
    worked.start()
    time.sleep(0.2)
    with contextlib.ExitStack() as crowd:
        for _ in range(4 * MOST):
            crowd.enter_context(socket.create_connection(("127.0.0.1", port), 20))
        assert ask(port)[:2] == (200, b"done")
    worked.join(20)
    assert found == [(200, b"done")]
    assert room_for_connections() >= 16
