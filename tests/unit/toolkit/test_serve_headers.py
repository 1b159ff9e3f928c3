# SPDX-License-Identifier: Apache-2.0
"""Headers that HTTP asks of errors."""

from __future__ import annotations

import asyncio

import pytest
from serve_cases import SERVED

from mindspeed_ms.toolkit.serve.app import App, Limits
from mindspeed_ms.toolkit.serve.loop import Desk
from mindspeed_ms.toolkit.serve.metrics import Metrics


def answer(method, path, *headers):
    """Status and headers of a request to a server with a key."""
    desk = Desk(8, Metrics())
    app = App(SERVED, desk, Limits(api_keys=("key",))).starlette()
    sent = []

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    asyncio.run(app({**scope, "query_string": b"", "root_path": ""}, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("OPTIONS", "/v1/completions", {"POST"}),
        ("GET", "/v1/chat/completions", {"POST"}),
        ("POST", "/api", {"PUT"}),
        ("DELETE", "/v1/models", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_is_not_served_names_those_that_are(method, path, allowed):
    status, headers = answer(method, path)
    assert status == 405 and set(headers[b"allow"].decode().split(", ")) == allowed
    assert not any(name.startswith(b"access-control") for name in headers)


@pytest.mark.parametrize("key", [(), ((b"authorization", b"Bearer other"),)])
def test_a_missing_key_is_asked_for(key):
    status, headers = answer("GET", "/v1/models", *key)
    assert status == 401 and headers[b"www-authenticate"] == b"Bearer"
