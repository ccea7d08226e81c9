"""A cache for objects that are expensive to make: recordings, captured graphs, compiled functions, sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """A cache of the most recently used values; each is created once for all threads.

    One thread makes a value at a time; the others wait. `make` may use the cache itself.
    """

    def __init__(self, size: int | None = None) -> None:
        """Create an empty cache.

        Args:
            size: number of values that are kept; None: all.
        """
        self._size = size
        self._values: dict[K, V] = {}
        self.lock = threading.RLock()
        """Held while a value is made."""

    def get(self, key: K, make: Callable[[], V], valid: Callable[[V], bool] | None = None) -> V:
        """Return the value of `key`; `make` it where there is none, or where `valid` rejects the one that is kept.

        The oldest value is removed before the new one is computed, so that both are never in memory at once.
        """
        with self.lock:
            if key in self._values and (valid is None or valid(self._values[key])):
                value = self._values.pop(key)
            else:
                self._values.pop(key, None)
                while self._size is not None and len(self._values) >= self._size:
                    del self._values[next(iter(self._values))]
                value = make()
            self._values[key] = value  # last in order: the latest
            return value

    @property
    def latest(self) -> V | None:
        """The value that was used last, or None."""
        with self.lock:
            return next(reversed(self._values.values()), None)

    def clear(self) -> None:
        """Drop all values."""
        with self.lock:
            self._values.clear()
