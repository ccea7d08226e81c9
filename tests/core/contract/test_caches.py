"""The bounded cache: which values stay, and that each is made once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from xcam.contract.caches import BoundedCache


def test_a_value_is_made_once():
    created = []
    cache = BoundedCache(2)
    assert [cache.get("a", lambda: created.append(0) or len(created)) for _ in range(3)] == [1, 1, 1]


def test_the_values_used_last_stay():
    cache = BoundedCache(2)
    for key in ("a", "b", "a", "c"):  # b was used longest ago
        cache.get(key, lambda key=key: key.upper())
    assert cache.latest == "C"
    assert cache.get("a", lambda: "new") == "A"
    assert cache.latest == "A"
    assert cache.get("b", lambda: "new") == "new"


def test_an_old_value_is_dropped_before_the_new_one_is_made():
    alive = set()

    class Value:
        def __init__(self, name):
            assert not alive, "the old value is still in memory"
            self.name = name
            alive.add(name)

        def __del__(self):
            alive.discard(self.name)

    cache = BoundedCache(1)
    for name in ("a", "b", "c"):
        cache.get(name, lambda name=name: Value(name))
    assert alive == {"c"}


def test_without_a_size_all_values_stay():
    cache = BoundedCache()
    for key in range(100):
        cache.get(key, lambda key=key: key)
    assert cache.get(0, lambda: "new") == 0


def test_a_value_that_is_not_valid_is_made_again():
    cache = BoundedCache()
    cache.get("a", lambda: 1)
    assert cache.get("a", lambda: 2, valid=lambda value: value == 1) == 1
    assert cache.get("a", lambda: 3, valid=lambda value: value == 2) == 3


def test_nothing_is_kept_of_a_value_that_cannot_be_made():
    cache = BoundedCache()
    with pytest.raises(ZeroDivisionError):
        cache.get("a", lambda: 1 / 0)
    assert cache.latest is None
    assert cache.get("a", lambda: 2) == 2


def test_after_clear_every_value_is_made_again():
    cache = BoundedCache()
    cache.get("a", lambda: 1)
    cache.clear()
    assert cache.latest is None
    assert cache.get("a", lambda: 2) == 2


def test_threads_share_one_value():
    created = []
    inside, go = threading.Event(), threading.Event()

    def make():
        inside.set()
        assert go.wait(30)
        created.append(object())
        return created[-1]

    cache = BoundedCache()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.get, "a", make)
        assert inside.wait(30)
        second = threads.submit(cache.get, "a", make)  # has to wait for the first
        go.set()
        assert first.result(30) is second.result(30)
    assert len(created) == 1


def test_making_a_value_may_use_the_cache():
    cache = BoundedCache()
    assert cache.get("a", lambda: cache.get("b", lambda: 1) + 1) == 2
