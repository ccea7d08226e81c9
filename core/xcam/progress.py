"""Progress of long calculations, reported to a listener; without a listener nothing is reported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int], None]
"""Called with the name of the activity, the number of steps done, and the total number of steps."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Report every step within the `with` block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def steps(items: Sequence[T], activity: str) -> Iterator[T]:
    """Yield the items, and report each step."""
    return counted(items, activity, len(items))


def counted(items: Iterable[T], activity: str, count: int) -> Iterator[T]:
    """Yield the items, and report each step.

    Args:
        items: The items, which may come one at a time.
        activity: The name of the activity, for example "masked images".
        count: The number of items; fewer may come.

    Yields:
        The items.
    """
    listener = _listener.get()
    for done, item in enumerate(items):
        if listener:
            listener(activity, done, count)
        yield item
    if listener:
        listener(activity, count, count)
