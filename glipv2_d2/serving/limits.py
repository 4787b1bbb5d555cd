"""What a service accepts: sizes of requests and images."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEGA = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What a service accepts.

    Attributes:
        max_bytes: of the body of a request.
        max_pixels: of an image.
        max_names: class names, questions or choices per request.
        max_batch_size: requests per forward pass.
        max_waiting: requests that wait for one; more are refused.
    """

    max_bytes: int = 20 * MEGA
    max_pixels: int = 40 * MEGA
    max_names: int = 200
    max_batch_size: int = 8
    max_waiting: int = 64


class LimitedBodies:
    """ASGI middleware: a request with a larger body gets status 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_bytes:
                raise HTTPException(413, f"the request has more than {self.max_bytes} bytes")
            return message

        await self.app(scope, limited if scope["type"] == "http" else receive, send)
