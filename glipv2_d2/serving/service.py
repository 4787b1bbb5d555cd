"""A model with its queue of requests, shared by all routes."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
from fastapi import HTTPException

from glipv2_d2.images import decode_image
from glipv2_d2.predictor import Predictor
from glipv2_d2.serving.limits import Limits
from glipv2_d2.serving.metrics import Metrics
from glipv2_d2.serving.model_requests import BatchRunner, ModelRequest
from glipv2_d2.serving.request_queue import QueueClosedError, QueueFullError, RequestQueue

# Images that are decoded at the same time: each takes the memory of its pixels.
MAX_DECODING = 4


class Service:
    """A model with its queue of requests."""

    def __init__(self, predictor: Predictor, *, model: str, limits: Limits) -> None:
        self.model, self.limits = model, limits
        runner = BatchRunner(predictor)

        def run(requests: Sequence[ModelRequest]) -> Any:
            self.metrics.batch_sizes.observe(len(requests))
            return runner(requests)

        self.queue: RequestQueue[ModelRequest, Any] = RequestQueue(
            run, max_batch_size=limits.max_batch_size, max_waiting=limits.max_waiting
        )
        self.metrics = Metrics(lambda: len(self.queue))
        self._decoding = anyio.CapacityLimiter(MAX_DECODING)

    async def decode(self, content: bytes) -> Any:
        """The pixels of an image.

        Raises:
            HTTPException: it is no image, or too large.
        """
        try:
            return await anyio.to_thread.run_sync(
                functools.partial(
                    decode_image,
                    io.BytesIO(content),
                    "the image",
                    max_pixels=self.limits.max_pixels,
                ),
                limiter=self._decoding,
            )
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    async def run(self, request: ModelRequest) -> Any:
        """The result of a request.

        Raises:
            HTTPException: the queue is full, the service stops, or the request is invalid.
        """
        try:
            return await asyncio.wrap_future(self.queue.submit(request))
        except QueueFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": "1"}) from error
        except QueueClosedError as error:
            raise HTTPException(503, str(error), {"Retry-After": "5"}) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    def check_number(self, names: Sequence[object], what: str) -> None:
        if len(names) > self.limits.max_names:
            raise HTTPException(
                422, f"{len(names)} {what}; at most {self.limits.max_names} per request"
            )
