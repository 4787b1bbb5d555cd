from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from glipv2_d2.serving.request_queue import QueueClosedError, QueueFullError, RequestQueue


class Gate:
    """Doubles numbers, once it is open; it counts what it gets."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.started.release()
        assert self.open.wait(timeout=30)
        return [ValueError(f"{n} is negative") if n < 0 else 2 * n for n in numbers]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def queue(gate):
    queue = RequestQueue(gate, max_batch_size=3, max_waiting=4)
    yield queue
    gate.open.set()
    queue.close()


def start_one(queue, gate):
    """A request whose batch runs until the gate opens."""
    future = queue.submit(0)
    assert gate.started.acquire(timeout=30)
    return future


def test_what_waits_is_run_in_batches_in_order(queue, gate):
    first = start_one(queue, gate)
    futures = [queue.submit(n) for n in (1, 2, 3, 4)]
    gate.open.set()
    assert [future.result(timeout=30) for future in (first, *futures)] == [0, 2, 4, 6, 8]
    assert gate.batches == [[0], [1, 2, 3], [4]]


def test_more_requests_than_may_wait_are_refused(queue, gate):
    start_one(queue, gate)
    futures = [queue.submit(n) for n in range(4)]
    with pytest.raises(QueueFullError, match="4 requests wait already"):
        queue.submit(5)
    gate.open.set()
    wait(futures, timeout=30)
    assert queue.submit(6).result(timeout=30) == 12


def test_an_error_of_one_request_is_only_its_own(queue, gate):
    start_one(queue, gate)
    good, bad = queue.submit(1), queue.submit(-1)
    gate.open.set()
    assert good.result(timeout=30) == 2
    with pytest.raises(ValueError, match="-1 is negative"):
        bad.result(timeout=30)


def test_an_error_of_a_batch_goes_to_its_clients_and_the_queue_goes_on():
    def run(numbers):
        if 0 in numbers:
            raise MemoryError("too large")
        return numbers

    queue = RequestQueue(run, max_batch_size=1, max_waiting=4)
    with pytest.raises(MemoryError, match="too large"):
        queue.submit(0).result(timeout=30)
    assert queue.submit(1).result(timeout=30) == 1
    queue.close()


def test_a_cancelled_request_is_not_run(queue, gate):
    start_one(queue, gate)
    cancelled, other = queue.submit(1), queue.submit(2)
    assert cancelled.cancel()
    gate.open.set()
    assert other.result(timeout=30) == 4
    assert gate.batches == [[0], [2]]


def test_closing_finishes_what_waits_and_refuses_more(gate):
    queue = RequestQueue(gate, max_batch_size=3, max_waiting=4)
    first = start_one(queue, gate)
    second = queue.submit(1)
    gate.open.set()
    queue.close()
    assert (first.result(timeout=0), second.result(timeout=0)) == (0, 2)
    with pytest.raises(QueueClosedError, match="stopping"):
        queue.submit(1)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0)])
def test_numbers_must_be_positive(numbers):
    with pytest.raises(ValueError, match="must be at least 1"):
        RequestQueue(list, max_batch_size=numbers[0], max_waiting=numbers[1])
