from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from glipv2_d2.pipelining import map_behind, read_ahead

SECONDS = 30  # of a deadlock, before a test fails


def numbers_then_error() -> Iterator[int]:
    yield from (1, 2)
    raise ValueError("no third")


def one_and_two(second: threading.Event) -> Iterator[int]:
    """1, then 2 with the event set."""
    yield 1
    second.set()
    yield 2


def num_threads(name: str) -> int:
    return sum(thread.name.startswith(name) for thread in threading.enumerate())


def test_items_that_are_read_ahead_keep_their_order() -> None:
    assert list(read_ahead(range(100), 3)) == list(range(100))


def test_the_next_items_are_read_before_they_are_needed() -> None:
    second = threading.Event()
    ahead = read_ahead(one_and_two(second), 1)
    assert next(ahead) == 1
    assert second.wait(SECONDS)
    assert list(ahead) == [2]


def test_an_error_of_reading_comes_after_the_items_before_it() -> None:
    ahead = read_ahead(numbers_then_error(), 5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="no third"):
        next(ahead)


def test_reading_ends_with_its_iterator() -> None:
    ahead = read_ahead(itertools.count(), 2)
    next(ahead)
    assert num_threads("read_ahead") == 1
    ahead.close()
    assert num_threads("read_ahead") == 0


def test_results_of_items_keep_their_order() -> None:
    assert list(map_behind(str, range(100), 3)) == [str(x) for x in range(100)]


def test_an_item_is_processed_while_the_next_is_made() -> None:
    second = threading.Event()
    assert list(map_behind(lambda x: x * second.wait(SECONDS), one_and_two(second), 1)) == [1, 2]


class Numbers:
    """0, 1, ... and a function of a number that ends after the third was made."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.third = threading.Event()

    def __iter__(self) -> Iterator[int]:
        for number in range(10):
            self.made.append(number)
            if number == 2:
                self.third.set()
            yield number

    def same(self, number: int) -> int:
        assert self.third.wait(SECONDS)
        return number


def test_results_that_wait_are_limited() -> None:
    numbers = Numbers()
    behind = map_behind(numbers.same, numbers, 2)
    assert next(behind) == 0
    assert len(numbers.made) == 3
    assert list(behind) == list(range(1, 10))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_results_before_an_error_are_not_lost(error: type[BaseException]) -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise error("no third")

    behind = map_behind(lambda x: x, items(), 5)
    assert [next(behind), next(behind)] == [1, 2]
    with pytest.raises(error, match="no third"):
        next(behind)


def test_ctrl_c_while_a_result_is_awaited_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts = [KeyboardInterrupt()]
    result = Future.result

    def interrupted_once(future: Future[int]) -> int:
        if interrupts:
            raise interrupts.pop()
        return result(future)

    numbers = Numbers()
    behind = map_behind(numbers.same, numbers, 2)
    monkeypatch.setattr(Future, "result", interrupted_once)
    assert [next(behind), next(behind), next(behind)] == [0, 1, 2]
    with pytest.raises(KeyboardInterrupt):
        next(behind)


def test_an_error_of_the_function_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_behind(lambda x: 1 // x, [1, 0], 1))
