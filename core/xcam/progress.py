"""How far a long calculation has come: told to whoever listens, and to nobody by default."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int], None]
"""What is being done, how many steps are done, and of how many."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of every step taken within."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def steps(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one by one; each that is done is told."""
    return counted(items, what, len(items))


def counted(items: Iterable[T], what: str, count: int) -> Iterator[T]:
    """The same for items that come one after the other, `count` of them, or fewer where some fail."""
    listener = _listener.get()
    for done, item in enumerate(items):
        if listener:
            listener(what, done, count)
        yield item
    if listener:
        listener(what, count, count)
