"""The targets of each image, and the images that share a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from xcam.errors import InputError, warn
from xcam.targets import Target, several

Aim = int | str | Target | None
"""One target, as `explain` takes it."""

T = TypeVar("T")


def aims_of_images(
    target: Any, count: int, is_list: bool, labels: Sequence[str] | None
) -> tuple[list[list[Aim]], list[bool]]:
    """Return the targets of each image, and whether they were given as a list.

    Args:
        target: The argument of `explain`.
        count: The number of images.
        is_list: Whether the images were given as a list.
        labels: The model's labels.

    Raises:
        InputError: The number of targets differs from the number of images, or a list is empty.
    """
    if isinstance(target, list | tuple):
        rows: list[Any] = list(target) if is_list else [target]
        if len(rows) != count:
            raise InputError(
                f"{len(rows)} targets for {count} images; give one target for all, or one for each image"
            )
    else:
        rows = [target] * count
    listed = [isinstance(row, list | tuple) or several(row, labels) is not None for row in rows]
    aims: list[list[Aim]] = [
        [aim for item in (row if isinstance(row, list | tuple) else [row]) for aim in several(item, labels) or [item]]
        for row in rows
    ]
    if not all(aims):
        raise InputError("an empty list of targets; give at least one, or None for the top class")
    return aims, listed


def batches(targets: list[list[Target]], size: int, shapes: Sequence[Any] = ()) -> Iterator[range]:
    """Yield runs of at most `size` consecutive images that have the same number of targets and the same shape."""
    keys = [(len(row), *shapes[k : k + 1]) for k, row in enumerate(targets)]
    start = 0
    for stop in range(1, len(targets) + 1):
        if stop == len(targets) or stop - start == size or keys[stop] != keys[start]:
            yield range(start, stop)
            start = stop


def within_memory(rows: range, work: Callable[[range], list[T]]) -> list[T]:
    """Return `work(rows)`; where memory runs out, split the rows in halves, recursively, and warn."""
    try:
        return work(rows)
    except MemoryError as error:
        if len(rows) == 1:
            raise
        reason = str(error) or "no details"
    half = len(rows) // 2
    warn(f"out of memory with {len(rows)} images in one batch ({reason}); trying {half}")
    return within_memory(rows[:half], work) + within_memory(rows[half:], work)
