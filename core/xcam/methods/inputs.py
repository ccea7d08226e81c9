"""What a method may ask for by the name of a parameter, beside `activations` and `gradients` [N, C, *spatial].

    x         [N, channels, *space]: the pictures as the model takes them, channels first
    value     [N]: the target's value on the clean pictures
    forward   x, rows → [K]: the target's value for changed pictures; the whole model runs
    resume    activations, rows → [K]: the same for changed values of the layer; only what follows it runs
    trace     x, rows → (A, G): activations and gradients for changed pictures
    hvp       vector → H·vector [N, C, *spatial], H the Hessian of the target's value at the layer

`rows` says which picture each variant belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from xcam.errors import InputError
from xcam.methods.maps import Array
from xcam.progress import steps

CAPABILITIES = {
    "gradients": ("gradients",),
    "trace": ("gradients",),
    "hvp": ("gradients", "resume"),
    "resume": ("resume",),
}
"""What a backend must be able to do for what a method asks."""

TOGETHER = 64
"""Variants of a layer that run at once, at most."""
BYTES = 32_000_000
"""… and how much they may take."""


class Runner(Protocol):
    """Variants and the row of each → the target's values [K]."""

    def __call__(self, variants: Array, rows: Sequence[int]) -> Array: ...


class Tracer(Protocol):
    """Changed pictures and the row of each → their activations and gradients."""

    def __call__(self, x: Array, rows: Sequence[int]) -> tuple[Array, Array]: ...


Hvp = Callable[[Array], Array]


MOST = 10_000
"""No count of noisy pictures and no width of noise means anything above this."""


def scored(
    run: Runner, row: int, count: int, make: Callable[[slice], Array], size: int, what: str, most: int = TOGETHER
) -> Array:
    """The values [count] of variants of one picture, made and run in batches: `make` gives those of a slice.

    size: the bytes of one variant. Where memory runs out, a batch is halved.
    """

    found = np.empty(count, np.float64)
    for part in steps(list(batches(count, size, most)), what):
        found[part] = _halved(run, row, make, part)
    return found


def _halved(run: Runner, row: int, make: Callable[[slice], Array], part: slice) -> Array:
    """The values of a part; where memory runs out, of its halves. (No inner function: it would hold its batches in a cycle.)"""
    try:
        variants = make(part)
        return run(variants, [row] * len(variants))
    except MemoryError:
        if part.stop - part.start == 1:
            raise
    middle = (part.start + part.stop) // 2
    halves = slice(part.start, middle), slice(middle, part.stop)
    return np.concatenate([_halved(run, row, make, half) for half in halves])


def batches(count: int, size: int, most: int) -> Iterator[slice]:
    """Slices of 0 … count, of as many variants as fit."""
    together = max(1, min(most, BYTES // max(size, 1)))
    for start in range(0, count, together):
        yield slice(start, min(start + together, count))


def check(**numbers: float) -> None:
    """Counts and widths of noise must be more than zero. Raises InputError."""
    for name, number in numbers.items():
        if not 0 < number <= MOST:
            raise InputError(f"{name} is {number}; give a number above 0, and {MOST} at most")


def generator(seed: int) -> np.random.Generator:
    """Random numbers, the same for the same seed. Raises InputError."""
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    return np.random.default_rng(seed)
