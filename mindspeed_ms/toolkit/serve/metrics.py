# SPDX-License-Identifier: Apache-2.0
"""What a server counts, for Prometheus."""

from __future__ import annotations

import importlib
import time
from typing import Any

from mindspeed_ms.toolkit.serve.batch import ContinuousBatch, Event, Failed, Piece, Request

PREFIX = "mindspeed_ms_"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Counters, gauges and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        library: Any = importlib.import_module("prometheus_client")
        self._library = library
        self.registry = library.CollectorRegistry()

        def made(kind: str, name: str, text: str, **options: Any) -> Any:
            return getattr(library, kind)(PREFIX + name, text, registry=self.registry, **options)

        self.requests = made(
            "Counter", "http_requests", "Requests by path and status.", labelnames=("path", "code")
        )
        self.prompt_tokens = made("Counter", "prompt_tokens", "Tokens of prompts.")
        self.generated_tokens = made("Counter", "generated_tokens", "New tokens.")
        self.finished = made(
            "Counter", "sequences_finished", "Sequences by their end.", labelnames=("reason",)
        )
        self.cancelled = made("Counter", "requests_cancelled", "Requests whose client left.")
        self.running = made("Gauge", "sequences_running", "Sequences that have slots.")
        self.waiting = made("Gauge", "requests_waiting", "Requests without slots.")
        self.cache_bytes = made("Gauge", "cache_bytes", "Keys and values of this rank.")
        self.steps = made("Counter", "steps", "Steps of the model.")
        self.first_token = made(
            "Histogram",
            "time_to_first_token_seconds",
            "From a request to its first token.",
            buckets=_SECONDS,
        )
        self.duration = made(
            "Histogram",
            "request_seconds",
            "From a request to its sequence's end.",
            buckets=_SECONDS,
        )

    def note(self, event: Event, request: Request, since: float) -> None:
        """Count an event of a request that came at ``since``."""
        seconds = time.monotonic() - since
        if isinstance(event, Failed):
            self.finished.labels("error").inc()
        if not isinstance(event, Piece):
            return
        if event.is_first and not event.copy:
            self.first_token.observe(seconds)
            self.prompt_tokens.inc(len(request.prompt))
        if event.token is not None:
            self.generated_tokens.inc()
        if event.finish is not None:
            self.finished.labels(event.finish).inc()
            self.duration.observe(seconds)

    def note_step(self, batch: ContinuousBatch, has_run: bool) -> None:
        """Measure a batch after a step, if it had something to do."""
        self.steps.inc(int(has_run))
        self.running.set(batch.num_running)
        self.waiting.set(batch.num_waiting)
        self.cache_bytes.set(batch.engine.cache.num_bytes)

    def text(self) -> tuple[bytes, str]:
        """All figures in Prometheus' text form, and its media type."""
        return self._library.generate_latest(self.registry), self._library.CONTENT_TYPE_LATEST
