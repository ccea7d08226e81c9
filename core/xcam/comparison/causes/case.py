"""The evidence for a cause: the same stretch of two models on several images, and a mistake undone on each of them.

A suspicion is fitted on some images and judged on these and on one more, which was not used for fitting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.similarity import rms
from xcam.comparison.stretch import CannotStartError, NamePair, Stretch, Which
from xcam.contract import Array

GONE = 0.02
"""A cause is proven where not more than this share of the difference is left."""
FITS = 0.1
"""A cause fits where not more than this share of the difference is left."""
ROUNDING = 1e-6
"""Differences of this share of the largest magnitude are rounding."""
EQUAL = 0.005
"""Causes whose shares differ by less than this are equally good: the simplest is preferred."""


class Undone(NamedTuple):
    """The values at the end of a stretch, without and with a mistake undone; all of one shape, or parts of it."""

    wanted: Array
    value: Array
    before: Array

    @property
    def left(self) -> float:
        """The share of the difference that is left; infinite where there is hardly any difference."""
        wanted, value, before = (np.asarray(each, np.float64) for each in self)
        if not wanted.size:
            return np.inf
        rounding = ROUNDING * float(np.abs(wanted).max())
        now = rms(before - wanted)
        after = rms(value - wanted)
        return max(0.0, after - rounding) / now if np.isfinite(after) and now > 2 * rounding else np.inf


@dataclass(frozen=True)
class Case:
    """A stretch of two models on a batch."""

    stretch: Stretch
    z: Array
    """The second model's value at the start: that of the first model, where it can be run from there."""
    a: Array
    """The first model's value at the end."""
    b: Array
    """The value at the end that the second model computes from `z`."""

    @classmethod
    def of(cls, stretch: Stretch, separate: bool = False) -> Case:
        """Run both models.

        Args:
            stretch: The stretch, with a batch.
            separate: Whether the second model has its own value at the start: the orders of the channels differ there.
        """
        z, a = stretch.start_value(1), stretch.end_value(0)
        start = stretch.start_value(0)
        if separate or stretch.start is None or not stretch.can_run(1) or start.shape != z.shape:
            return cls(stretch, z, a, stretch.end_value(1))
        return cls(stretch, start, a, stretch.run(1, start))

    def rerun(self, values: Array) -> Array:
        """Return the second model's value at the end, given other values at the start."""
        return self.stretch.run(1, values)

    def inner(self, which: Which, name: str | None) -> Array:
        """Return a model's value at a layer within the stretch, computed from the values at the start."""
        stretch = self.stretch
        start = None if stretch.start is None else stretch.start[which]
        if name == start:
            return self.z if which == 1 else stretch.start_value(0)
        if which == 0 or start is None or name is None or not stretch.can_run(1):
            return stretch.runs[which].value(name)
        return stretch.runs[1].run(start, self.z, name)

    @property
    def end(self) -> NamePair:
        """The pair of layers at the end."""
        return self.stretch.end


@dataclass(frozen=True)
class Suspicion:
    """A suspected cause, and how its mistake is undone on a case."""

    code: str
    text: str
    undo: Callable[[Case], Undone]
    size: int = 1
    """The number of fitted values: of causes that are equally good, the one with the fewest is preferred."""


def judge(suspicion: Suspicion, fitted: Sequence[Case], further: Case) -> Diagnosis | None:
    """Return a cause with its proof; None where it does not fit.

    Args:
        suspicion: The suspected cause.
        fitted: The cases that were used to fit it.
        further: A case that was not.
    """
    worst = 0.0
    for case in (*fitted, further):
        try:
            worst = max(worst, suspicion.undo(case).left)
        except CannotStartError:  # it cannot be undone
            return None
        if not worst <= FITS:
            return None
    return Diagnosis(suspicion.code, suspicion.text, "rerun" if worst <= GONE else "fit", worst)


def ranked(results: Iterable[tuple[Diagnosis, int]]) -> list[Diagnosis]:
    """Return causes in order: proven ones first, then by the share that is left; of equally good ones the simplest.

    Args:
        results: Each cause with its size, in order of preference.
    """
    rest = list(results)
    order: list[Diagnosis] = []
    while rest:
        best = min(rest, key=lambda each: (each[0].proof == "fit", _share(each[0])))[0]
        near = [each for each in rest if each[0].proof == best.proof and _share(each[0]) <= _share(best) + EQUAL]
        chosen = min(near, key=lambda each: each[1])
        order.append(chosen[0])
        rest.remove(chosen)
    return order


def _share(diagnosis: Diagnosis) -> float:
    return 1.0 if diagnosis.left is None and diagnosis.proof == "fit" else diagnosis.left or 0.0


def other_images(x: Array, axes: Sequence[int], variant: int) -> Array:
    """Return other images, derived from a batch: mirrored along an axis, with a contrast that fades along another.

    Each image becomes w · image + (1 − w) · largest or smallest value of each channel. So two models whose inputs are
    scaled differently get the same other images. Integers are mirrored and shifted only, as rounding would differ.

    Args:
        x: A batch.
        axes: The axes of space.
        variant: A number; each gives other images.
    """
    if not axes:
        return np.ascontiguousarray(
            x * x.dtype.type((0.5, 1.5, 0.75)[variant % 3]) if x.dtype.kind == "f" else x[::-1]
        )
    along, across = axes[(variant + 1) % len(axes)], axes[variant % len(axes)]
    turned = np.roll(np.flip(x, along), (variant + 1) * x.shape[across] // 5, across)
    if x.dtype.kind != "f":
        return np.ascontiguousarray(turned)
    shape = [1] * x.ndim
    shape[across] = x.shape[across]
    weight = np.linspace(0.45, 0.95, x.shape[across]).reshape(shape)
    level = (x.min if variant % 2 else x.max)(axis=tuple(axes), keepdims=True)
    return np.ascontiguousarray(weight * turned + (1 - weight) * level, x.dtype)
