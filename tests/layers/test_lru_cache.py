from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from glipv2_d2.layers.lru_cache import LRUCache, stream_id


def test_least_recently_used_value_is_evicted_first() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.keep({"a": 1, "b": 2})
    cache.find(["a"])
    cache.keep({"c": 3})
    assert cache.find("abc") == {"a": 1, "c": 3}


def test_storing_more_values_than_the_size_keeps_the_last() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.keep({"a": 1, "b": 2, "c": 3})
    assert cache.find("abc") == {"b": 2, "c": 3}


def test_new_version_empties_the_cache() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.find([], version=0)
    cache.keep({"a": 1}, version=0)
    assert cache.find("a", version=0) == {"a": 1}
    assert cache.find("a", version=1) == {}


def test_values_of_an_outdated_version_are_not_stored() -> None:
    cache: LRUCache[str, int] = LRUCache(2)
    cache.find([], version=0)
    cache.find([], version=1)
    cache.keep({"a": 1}, version=0)
    assert len(cache) == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copy_starts_empty_and_is_independent(duplicate) -> None:
    cache: LRUCache[str, int] = LRUCache(3)
    cache.keep({"a": 1})
    copied = duplicate(cache)
    assert len(copied) == 0 and copied.size == 3
    copied.keep({"b": 2})
    assert cache.find("ab") == {"a": 1}


def test_threads_find_the_values_of_their_keys(eager_switching) -> None:
    cache: LRUCache[int, int] = LRUCache(3)

    def square(start: int) -> bool:
        for key in range(start, start + 400):
            numbers = [key % 7, (key + 1) % 7]
            found = cache.find(numbers, version=key // 100)
            missing = {n: n * n for n in numbers if n not in found}
            cache.keep(missing, version=key // 100)
            if {**found, **missing} != {n: n * n for n in numbers}:
                return False
        return len(cache) <= 3

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(square, range(8)))


def test_stream_id_of_a_cpu_is_zero() -> None:
    assert stream_id(torch.device("cpu")) == 0
