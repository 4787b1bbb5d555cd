"""Requests of many clients, run in batches on one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class QueueFullError(Exception):
    """As many requests wait as may wait."""


class QueueClosedError(Exception):
    """The service is about to stop."""


class RequestQueue(Generic[T, R]):
    """Runs what waits together, as soon as the last batch is done.

    A request never waits for others to fill a batch: batches are as large as the load makes them.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R | Exception]],
        *,
        max_batch_size: int,
        max_waiting: int,
    ) -> None:
        """Start the thread.

        Args:
            run: a batch of requests -> for each its result, or the exception that its client gets.
                An exception that it raises goes to all clients of the batch.
            max_waiting: requests that may wait; :meth:`submit` refuses more.

        Raises:
            ValueError: a number is not positive.
        """
        if max_batch_size < 1 or max_waiting < 1:
            raise ValueError(
                f"max_batch_size is {max_batch_size} and max_waiting {max_waiting}; "
                "both must be at least 1"
            )
        self._run_batch = run
        self.max_batch_size = max_batch_size
        self.max_waiting = max_waiting
        self._waiting: deque[tuple[T, Future[R]]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="requests", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """The number of requests that wait."""
        return len(self._waiting)

    def submit(self, request: T) -> Future[R]:
        """Add a request. A future that is cancelled before its batch starts is not run.

        Raises:
            QueueFullError: too many requests wait.
            QueueClosedError: the queue is closed.
        """
        future: Future[R] = Future()
        with self._changed:
            if self._is_closed:
                raise QueueClosedError("the service is stopping; try again later")
            if len(self._waiting) >= self.max_waiting:
                raise QueueFullError(f"{len(self._waiting)} requests wait already; try again later")
            self._waiting.append((request, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Refuse new requests, and return when those that wait are done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            running = [x for x in batch if x[1].set_running_or_notify_cancel()]
            if not running:
                continue
            try:
                results = self._run_batch([request for request, _ in running])
                pairs = list(zip(results, running, strict=True))
            # The thread goes on, whatever happens to a batch.
            except Exception as error:
                pairs = [(error, x) for x in running]
            for result, (_, future) in pairs:
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _next_batch(self) -> list[tuple[T, Future[R]]]:
        """What waits, up to a batch; empty when the queue is closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            size = min(len(self._waiting), self.max_batch_size)
            return [self._waiting.popleft() for _ in range(size)]
