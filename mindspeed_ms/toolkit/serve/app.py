# SPDX-License-Identifier: Apache-2.0
"""The web server's side: addresses, keys, limits, streams, and clients that leave."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mindspeed_ms.toolkit.serve.answers import Answer
from mindspeed_ms.toolkit.serve.batch import INTERNAL, Event
from mindspeed_ms.toolkit.serve.fields import ApiError
from mindspeed_ms.toolkit.serve.loop import Desk, FullError, StoppingError
from mindspeed_ms.toolkit.serve.megatron_forms import MegatronAnswer, MegatronError, megatron_job
from mindspeed_ms.toolkit.serve.openai_forms import Job, Served, chat_job, completion_job

PAGE = Path(__file__).parent / "page.html"
OPEN_PATHS = ("/", "/health")
"""They need no key."""
_LEFT = 499
"""Status of an answer that nobody reads, as nginx has it."""

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
"""Of errors by status."""

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a server does not go beyond."""

    max_body: int = 8 * 2**20
    """Bytes of a request."""
    body_seconds: float = 60.0
    """In which they arrive."""
    api_keys: tuple[str, ...] = ()
    """Any of them is right; none: all are."""


class _Events:
    """Events of a job's requests, and whether its client is still there."""

    def __init__(self, request: Request, desk: Desk) -> None:
        self._request, self._desk = request, desk
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()  # None: the client has left
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Task[None] | None = None
        self.numbers: list[int] = []

    def submit(self, requests: list[Any]) -> None:
        """Hand requests in.

        Raises:
            ApiError: there is no room, or the server ends.
        """
        try:
            self.numbers = self._desk.submit(requests, self._listen)
        except FullError:
            raise ApiError(
                503,
                f"the queue is full: {self._desk.max_open} sequences run or wait; try again later",
                code="queue_full",
                kind="server_error",
            ) from None
        except StoppingError:
            raise ApiError(
                503, "the server is shutting down", code="shutting_down", kind="server_error"
            ) from None
        self._gone = asyncio.create_task(self._watch())

    def _listen(self, event: Event) -> None:
        """Called in the steps' thread."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def _watch(self) -> None:
        """Say when the client has left."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._queue.put_nowait(None)

    async def next(self) -> Event:
        """The next event.

        Raises:
            ClientDisconnect: the client has left.
        """
        event = await self._queue.get()
        assert self._gone is not None, "requests are handed in first"
        if event is None or self._gone.done():
            raise ClientDisconnect
        return event

    def close(self) -> None:
        """Forget what is not done."""
        self._desk.cancel(self.numbers)
        if self._gone is not None:
            self._gone.cancel()


class App:
    """The addresses of a server.

    Args:
        served: the model.
        desk: where requests are left.
        limits: see there.
    """

    def __init__(self, served: Served, desk: Desk, limits: Limits) -> None:
        self.served, self.desk, self.limits = served, desk, limits
        self._keys = [f"Bearer {key}".encode() for key in limits.api_keys]

    def starlette(self) -> Starlette:
        """The ASGI application."""
        posts = {"/v1/completions": self.completions, "/v1/chat/completions": self.chat}
        gets = {
            "/": self.page,
            "/health": self.health,
            "/metrics": self.metrics,
            "/v1/models": self.models,
            "/v1/models/{name:path}": self.model,
        }
        routes = [
            Route(path, self._guarded(call), methods=["POST"]) for path, call in posts.items()
        ]
        routes += [Route(path, self._guarded(call), methods=["GET"]) for path, call in gets.items()]
        routes.append(Route("/api", self._guarded(self.megatron), methods=["PUT"]))
        handlers: dict[Any, Any] = {404: self._not_found, 405: self._not_allowed, 500: self._broken}
        return Starlette(routes=routes, exception_handlers=handlers)

    # --- what holds for all -----------------------------------------------------------------------

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            try:
                self._check_key(request)
                response = await handler(request)
            except ApiError as error:
                response = JSONResponse(error.body, error.status, _HEADERS.get(error.status))
            except ClientDisconnect:
                response = Response(status_code=_LEFT)
            path = request.scope["route"].path
            self.desk.metrics.requests.labels(path, str(response.status_code)).inc()
            return response

        return guarded

    def _check_key(self, request: Request) -> None:
        if not self._keys or request.url.path in OPEN_PATHS:
            return
        given = request.headers.get("authorization", "").encode()
        # All keys are compared, each in a time that does not tell how much of it was right.
        if not sum(hmac.compare_digest(given, key) for key in self._keys):
            text = "Incorrect API key provided" if given else "You didn't provide an API key"
            raise ApiError(
                401, f"{text}; send it as 'Authorization: Bearer KEY'.", code="invalid_api_key"
            )

    async def _json(self, request: Request) -> Any:
        """The body of a request.

        Raises:
            ApiError: it is too long, does not arrive, or is no JSON.
        """
        try:
            body = await asyncio.wait_for(self._body(request), self.limits.body_seconds)
        except asyncio.TimeoutError:
            raise ApiError(
                408,
                f"the request's body did not arrive within {self.limits.body_seconds:g} s",
                code="request_timeout",
            ) from None
        try:
            found = json.loads(body)
            if (
                b"\\ud" in body.lower()
            ):  # half a pair, which no text has, and no answer could repeat
                json.dumps(found, ensure_ascii=False).encode()
            return found
        except (ValueError, RecursionError):
            raise ApiError(
                400,
                "We could not parse the JSON body of your request. The API expects a JSON object.",
            ) from None

    async def _body(self, request: Request) -> bytes:
        """What was sent, or refused as soon as its length is known.

        Raises:
            ApiError: it is too long.
        """
        body, declared = bytearray(), request.headers.get("content-length", "")
        length = int(declared) if declared.isdecimal() else 0
        parts = request.stream()
        while max(length, len(body)) <= self.limits.max_body:
            part = await anext(parts, None)
            if part is None:
                return bytes(body)
            body += part
        raise ApiError(
            413,
            f"the request's body is longer than {self.limits.max_body} bytes",
            code="request_too_large",
        )

    async def _not_found(self, request: Request, error: Exception) -> Response:
        text = f"Invalid URL ({request.method} {request.url.path})"
        return JSONResponse(ApiError(404, text, code="unknown_url").body, 404)

    async def _not_allowed(self, request: Request, error: Exception) -> Response:
        text = f"Not allowed to {request.method} on {request.url.path}"
        allowed = getattr(error, "headers", None)  # 405 must say what may be done
        return JSONResponse(ApiError(405, text, code="method_not_allowed").body, 405, allowed)

    async def _broken(self, request: Request, error: Exception) -> Response:
        return JSONResponse(ApiError(500, INTERNAL, kind="server_error").body, 500)

    # --- addresses --------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """A page to try the model in a browser."""
        policy = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        text = PAGE.read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    async def health(self, request: Request) -> Response:
        """200 while requests are taken in."""
        if self.desk.is_stopping:
            return JSONResponse({"status": "stopping"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        text, kind = self.desk.metrics.text()
        return Response(text, headers={"Content-Type": kind})

    def _model(self) -> dict[str, Any]:
        served = self.served
        return {
            "id": served.name,
            "object": "model",
            "created": served.created,
            "owned_by": "mindspeed_ms",
            "max_model_len": served.max_length,
        }

    async def models(self, request: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """A model by name."""
        name = request.path_params["name"]
        if name != self.served.name:
            text = f"The model '{name}' does not exist"
            raise ApiError(404, text, param="model", code="model_not_found")
        return JSONResponse(self._model())

    async def completions(self, request: Request) -> Response:
        """OpenAI's completions."""
        return await self._answer(request, completion_job(await self._json(request), self.served))

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions."""
        return await self._answer(request, chat_job(await self._json(request), self.served))

    async def _answer(self, request: Request, job: Job) -> Response:
        events = _Events(request, self.desk)
        events.submit(job.requests)
        answer = Answer(job, self.served, events.numbers)
        try:
            chunks = answer.take(await events.next())  # a refusal still gets a status of its own
            if job.wants_stream:
                stream = _stream(events, answer, job, chunks)
                headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
                events = None  # type: ignore[assignment]  # the stream closes them
                return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
            while not answer.is_done:
                answer.take(await events.next())
            return JSONResponse(answer.whole())
        finally:
            if events is not None:
                events.close()

    async def megatron(self, request: Request) -> Response:
        """Megatron's form: errors are texts."""
        events = _Events(request, self.desk)
        try:
            job = megatron_job(await self._json(request), self.served)
            events.submit(job.requests)
            answer = MegatronAnswer(job, self.served, events.numbers)
            while not answer.is_done:
                answer.take(await events.next())
            return JSONResponse(answer.whole())
        except MegatronError as error:
            return JSONResponse(str(error), error.status)
        finally:
            events.close()


async def _stream(
    events: _Events, answer: Answer, job: Job, chunks: list[dict[str, Any]]
) -> AsyncIterator[str]:
    """Server-sent events, from the chunks that are there already."""
    try:
        while True:
            for chunk in chunks:
                yield _line(chunk)
            if answer.is_done:
                break
            chunks = answer.take(await events.next())
        if job.wants_usage:
            yield _line(answer.usage_chunk())
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _line(error.body)
    except ClientDisconnect:
        return
    finally:
        events.close()


def _line(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
