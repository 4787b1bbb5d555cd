"""Reading and writing beside a model: iterators that work ahead or behind in a thread.

Decoders, encoders and the products of a model release Python's lock, so that a thread beside them
takes no time of theirs while a core is free or the model runs on a GPU.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Interval in which a thread checks whether its results are still needed.
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _End(Generic[T]):
    """What follows the last item: the error that ended the iteration, if any."""

    error: BaseException | None = None


def read_ahead(items: Iterable[T], num_ahead: int) -> Generator[T, None, None]:
    """Yield ``items`` in order while a thread computes the next ``num_ahead``.

    The thread ends with the iterator, at the latest after its current item. What ``items`` raises
    is raised here, after the items before it.
    """
    ready: queue.Queue[T | _End[T]] = queue.Queue(maxsize=num_ahead)
    stopped = threading.Event()
    thread = threading.Thread(
        target=_put_all, args=(items, ready, stopped), name="read_ahead", daemon=True
    )
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        # What reads from a network may take longer; nothing needs it then.
        thread.join(timeout=1)


def _put_all(items: Iterable[T], ready: queue.Queue[T | _End[T]], stopped: threading.Event) -> None:
    end: _End[T] = _End()
    try:
        for item in items:
            if not _put(item, ready, stopped):
                return
    except BaseException as error:
        end = _End(error)
    _put(end, ready, stopped)


def _put(item: T, ready: queue.Queue[T], stopped: threading.Event) -> bool:
    """Whether the item was needed."""
    while not stopped.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return True
    return False


def map_behind(
    function: Callable[[T], R], items: Iterable[T], num_behind: int
) -> Generator[R, None, None]:
    """Yield ``function(item)`` in order, computed in a thread while the next items are made.

    At most ``num_behind`` items wait. If making an item fails, or Ctrl-C ends it, the results of
    the items before it are yielded first, and then the error is raised; likewise if Ctrl-C ends the
    wait for a result.
    """
    waiting: deque[Future[R]] = deque()
    failure: BaseException | None = None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="map_behind") as thread:
        source = iter(items)
        while True:
            try:
                waiting.append(thread.submit(function, next(source)))
            except StopIteration:
                break
            except BaseException as error:
                failure = error
                break
            try:
                while len(waiting) > num_behind or (waiting and waiting[0].done()):
                    waiting[0].result()
                    yield waiting.popleft().result()
            except KeyboardInterrupt as error:
                failure = error
                break
        while waiting:
            yield waiting.popleft().result()
    if failure is not None:
        raise failure
