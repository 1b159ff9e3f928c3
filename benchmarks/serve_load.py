# SPDX-License-Identifier: Apache-2.0
"""Load on a server of text: many clients, random lengths, some of them leave; every answer checked.

Example: python benchmarks/serve_load.py --address http://127.0.0.1:8000 --clients 200 --seconds 600

First every request is answered alone; under load each whole answer must be that one. Prints a JSON
object of figures; the status is 1 if an answer is another one or is lost. ``--pid`` watches the
memory of the server. Needs the package ``httpx``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import psutil


@dataclass(slots=True)
class Found:
    """What has happened."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    left: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def requests(count: int, words: Sequence[str], longest: int) -> list[dict[str, Any]]:
    """Requests of random lengths, half of them drawn."""
    chance = random.Random(7)
    made = []
    for number in range(count):
        prompt = " ".join(chance.choices(words, k=chance.randint(1, longest // 3)))
        made.append(
            {
                "prompt": prompt,
                "max_tokens": chance.randint(1, longest // 2),
                "temperature": chance.choice((0, 0.8)),
                "top_p": chance.choice((1, 0.9)),
                "seed": number,
                "ignore_eos": True,
            }
        )
    return made


async def whole(client: httpx.AsyncClient, request: dict[str, Any]) -> dict[str, Any]:
    """An answer at once, asked for again while the queue is full."""
    while True:
        response = await client.post("/v1/completions", json=request)
        if response.status_code != 503:
            response.raise_for_status()
            return response.json()
        await asyncio.sleep(0.2)


async def streamed(
    client: httpx.AsyncClient, request: dict[str, Any], found: Found, leaves_after: int | None
) -> str | None:
    """The text of a stream; None if the client has left, or was refused."""
    text, begin, count = "", time.monotonic(), 0
    body = {**request, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code == 503:
            found.refused += 1
            return None
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            if not count:
                found.first.append(time.monotonic() - begin)
            count += 1
            if leaves_after is not None and count > leaves_after:
                found.left += 1
                return None
            text += json.loads(line[len("data: ") :])["choices"][0]["text"]
    return text


async def visit(
    client: httpx.AsyncClient,
    chance: random.Random,
    known: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    found: Found,
) -> None:
    """One request of one client."""
    request, alone = chance.choice(known)
    wanted = alone["choices"][0]["text"]
    begin = time.monotonic()
    kind = chance.random()
    if kind < 0.15:  # leaves while the answer is on its way
        with contextlib.suppress(httpx.TimeoutException):
            await client.post("/v1/completions", json=request, timeout=chance.uniform(0.01, 0.5))
            return
        found.left += 1
        return
    if kind < 0.3:
        await streamed(client, request, found, chance.randint(0, 5))
        return
    if kind < 0.65:
        text = await streamed(client, request, found, None)
        if text is None:
            await asyncio.sleep(0.2)
            return
    else:
        text = (await whole(client, request))["choices"][0]["text"]
    found.seconds.append(time.monotonic() - begin)
    found.tokens += alone["usage"]["completion_tokens"]
    if text != wanted:
        found.wrong.append(f"{request}: {text!r} instead of {wanted!r}")


async def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the load; figures."""
    found = Found()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=arguments.clients)
    async with httpx.AsyncClient(base_url=arguments.address, limits=limits, timeout=600) as client:
        words = arguments.words.split()
        made = requests(arguments.requests, words, arguments.longest)
        known = [(request, await whole(client, request)) for request in made]
        end = time.monotonic() + arguments.seconds
        begin = time.monotonic()

        async def one(number: int) -> None:
            chance = random.Random(number)
            while time.monotonic() < end:
                try:
                    await visit(client, chance, known, found)
                except httpx.HTTPError as error:
                    found.wrong.append(f"lost: {error!r}")

        async def watch() -> None:
            process = psutil.Process(arguments.pid)
            while True:
                found.memory.append(process.memory_info().rss)
                await asyncio.sleep(arguments.seconds / 20)

        watching = asyncio.create_task(watch()) if arguments.pid else None
        await asyncio.gather(*(one(number) for number in range(arguments.clients)))
        if watching is not None:
            watching.cancel()
        return figures(found, time.monotonic() - begin)


def figures(found: Found, seconds: float) -> dict[str, Any]:
    """What is printed."""

    def percentiles(values: list[float]) -> dict[str, float]:
        if not values:
            return {}
        points = np.percentile(values, (50, 90, 99))
        return {
            f"p{name}": round(float(x), 3) for name, x in zip((50, 90, 99), points, strict=True)
        }

    return {
        "seconds": round(seconds, 1),
        "answers": len(found.seconds),
        "wrong": len(found.wrong),
        "examples": found.wrong[:3],
        "left": found.left,
        "refused": found.refused,
        "tokens_per_second": round(found.tokens / seconds, 1),
        "seconds_per_answer": percentiles(found.seconds),
        "seconds_to_first_token": percentiles(found.first),
        "memory_mib": [round(one / 2**20) for one in found.memory],
    }


def main(words: Sequence[str] | None = None) -> int:
    """Run; return the status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--requests", type=int, default=100, help="different ones")
    parser.add_argument("--longest", type=int, default=60, help="tokens of prompt and answer")
    parser.add_argument("--words", default="the a of", help="what prompts are made of")
    parser.add_argument("--pid", type=int, help="the server's process, to watch its memory")
    found = asyncio.run(load(parser.parse_args(words)))
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return int(bool(found["wrong"]))


if __name__ == "__main__":
    raise SystemExit(main())
