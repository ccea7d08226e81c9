"""Everything that a check for causes may use: a stretch on several images, and the layers around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xcam.comparison.causes.case import Case
from xcam.comparison.stretch import NamePair, Stretch
from xcam.contract import Array


@dataclass(frozen=True)
class Scene:
    """A stretch in which two models differ, on images for fitting and on one more."""

    fitted: tuple[Case, ...]
    """For fitting, and for judging."""
    further: Case
    """For judging only."""
    kinds: str = ""
    """The kinds of the layers within the stretch and at its end, in lower case."""
    at_input: bool = False
    """Whether the values ahead of the stretch are those of the input: images with its channels."""
    inner: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """The layers of each model within the stretch, without those at its ends."""
    earlier: tuple[NamePair, ...] = ()
    """Pairs ahead of the end that agree, the nearest first."""
    later: tuple[tuple[NamePair, NamePair], ...] = ()
    """Later stretches, each with its start and its end."""

    @property
    def case(self) -> Case:
        """The first case."""
        return self.fitted[0]

    @property
    def values(self) -> tuple[Array, Array]:
        """The values at the end in both models [N, C, *spatial], of all cases for fitting."""
        return np.concatenate([case.a for case in self.fitted]), np.concatenate([case.b for case in self.fitted])

    @property
    def space(self) -> tuple[int, ...]:
        """The axes of space at the end, from the last, where it has any: (-2, -1)."""
        return spatial_axes(self.case.a)


def spatial_axes(values: Array) -> tuple[int, ...]:
    """Return the axes of space of [N, C, *spatial], counted from the last; () for a vector, or a single position."""
    space = values.shape[2:]
    return tuple(range(-len(space), 0)) if space and max(space) > 1 else ()


def cases(stretch: Stretch, batches: Sequence[tuple[Array, Array]], separate: bool) -> list[Case]:
    """Return a stretch on several batches."""
    return [Case.of(stretch.on(batch), separate) for batch in batches]
