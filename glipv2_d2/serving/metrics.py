"""Figures of a service for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one service, in a registry of its own."""

    def __init__(self, num_waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "glipv2_requests", "Requests.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "glipv2_request_seconds",
            "Time from request to response.",
            ("path",),
            registry=self.registry,
        )
        self.batch_sizes = Histogram(
            "glipv2_batch_size",
            "Requests per batch.",
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        waiting = Gauge("glipv2_waiting_requests", "Requests that wait.", registry=self.registry)
        waiting.set_function(num_waiting)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class MeasuredRequests:
    """ASGI middleware that counts and times requests, by the path of their route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.perf_counter()
        try:
            await self.app(scope, receive, observed)
        finally:
            # Paths without a route are one: else anybody could fill the registry.
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
