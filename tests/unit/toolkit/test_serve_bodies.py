# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests that are too long, or never come."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request

from mindspeed_ms.toolkit.serve.app import App, Limits
from mindspeed_ms.toolkit.serve.fields import ApiError

LIMITS = Limits(max_body=20, body_seconds=0.2)


def read(parts, length=None, ends=True):
    """What a server makes of a body that arrives in these parts."""
    server = object.__new__(App)
    server.limits = LIMITS
    waiting = list(parts)

    async def receive():
        if not waiting and not ends:
            await asyncio.sleep(60)
        part = waiting.pop(0) if waiting else b""
        return {"type": "http.request", "body": part, "more_body": bool(waiting) or not ends}

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    return asyncio.run(server._json(Request(scope, receive)))


@pytest.mark.parametrize("length", [None, 8])
def test_a_body_in_parts_is_read(length):
    assert read([b'{"a"', b": 1}"], length) == {"a": 1}


@pytest.mark.parametrize(
    ("parts", "length", "ends"),
    [
        ([b"1" * 21], None, True),
        ([b"1" * 12] * 2, None, False),
        ([], 21, False),
        ([], 10**30, False),
    ],
)
def test_a_long_body_is_refused_as_soon_as_it_is_known(parts, length, ends):
    with pytest.raises(ApiError, match="longer than 20 bytes") as caught:
        read(parts, length, ends)
    assert caught.value.status == 413


@pytest.mark.parametrize("parts", [[], [b'{"a"']])
def test_a_body_that_does_not_come_is_not_waited_for(parts):
    with pytest.raises(ApiError, match="did not arrive within 0.2 s") as caught:
        read(parts, 20, ends=False)
    assert caught.value.status == 408
