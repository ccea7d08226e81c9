"""The inputs of methods.

A method requests them by the names of its positional parameters::

    activations  [N, C, *space]: the layer's activations A
    gradients    [N, C, *space]: the gradients G of the target's value with respect to A
    x            [N, channels, *space]: the images as the model takes them, channels first
    value        [N]: the target's value for the images
    forward      x, rows → [K]: the target's value for K changed images; runs the whole model
    resume       activations, rows → [K]: the same for K changed activations; runs only the tail
    trace        x, rows → (A, G): activations and gradients for K changed images
    hvp          vector → H·vector [N, C, *space], with H the Hessian of the target's value at the layer

`rows[k]`, in 0…N−1, is the image that variant k belongs to.
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
"""The capabilities that a backend needs for an input."""

GRADIENTS = frozenset(name for name, needed in CAPABILITIES.items() if "gradients" in needed)
"""The inputs that need a gradient at the layer."""

TOGETHER = 64
"""The largest number of variants in one batch."""
BYTES = 32_000_000
"""The largest size of one batch in bytes."""


class Runner(Protocol):
    """The type of `forward` and `resume`."""

    def __call__(self, variants: Array, rows: Sequence[int]) -> Array:
        """Return the target's values [K] for K variants, `rows[k]` being the image of variant k."""


class Tracer(Protocol):
    """The type of `trace`."""

    def __call__(self, x: Array, rows: Sequence[int]) -> tuple[Array, Array]:
        """Return activations and gradients [K, C, *space] for K changed images."""


Hvp = Callable[[Array], Array]
"""The type of `hvp`."""

MOST = 10_000
"""The upper limit of counts and of the width of noise: larger values are refused as mistakes."""


def scored(
    run: Runner, row: int, count: int, make: Callable[[slice], Array], size: int, activity: str, most: int = TOGETHER
) -> Array:
    """Return the target's values for variants of one image, created and run in batches.

    Where memory runs out, the batch is halved.

    Args:
        run: `forward` or `resume`.
        row: The index of the image.
        count: The number of variants.
        make: Returns the variants of a slice of 0 … count, [K, …].
        size: The size of one variant in bytes.
        activity: The name of the activity for progress reports.
        most: The largest number of variants in a batch.

    Returns:
        float64 [count].
    """
    values = np.empty(count, np.float64)
    for part in steps(list(batches(count, size, most)), activity):
        values[part] = _halved(run, row, make, part)
    return values


def _halved(run: Runner, row: int, make: Callable[[slice], Array], part: slice) -> Array:
    """Return the values of a part; where memory runs out, of its halves."""
    # Not an inner function: a recursive closure is a reference cycle, which would keep the batches in memory.
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
    """Yield slices of 0 … count with at most `most` variants of `size` bytes that fit into BYTES."""
    together = max(1, min(most, BYTES // max(size, 1)))
    for start in range(0, count, together):
        yield slice(start, min(start + together, count))


def check(**numbers: float) -> None:
    """Raise InputError for a count, or a width of noise, that is not in 0 < number ≤ MOST."""
    for name, number in numbers.items():
        if not 0 < number <= MOST:
            raise InputError(f"cannot use {name}={number}; give a number above 0, at most {MOST}")


def generator(seed: int) -> np.random.Generator:
    """Return a generator that depends on the seed only. Raises InputError for a negative seed."""
    if seed < 0:
        raise InputError(f"cannot use seed={seed}; give 0 or more")
    return np.random.default_rng(seed)
