"""The causes of the local errors of named stretches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from xcam.comparison import alignment, divergence
from xcam.comparison.alignment import Match
from xcam.comparison.blame.locations import Location
from xcam.comparison.blame.measure import median
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.stretch import ComparedModel, NamePair, Stretch
from xcam.contract import Layer
from xcam.errors import first_line

NEAR = 0.1
"""The error of a stretch is the local error where they differ by this share: values that pass the start by add nothing."""

Cause = tuple[Diagnosis | None, tuple[str, ...]]
"""A cause, and notes on checks that failed."""


class Causes:
    """The causes of differences between two models, by stretch."""

    def __init__(
        self, models: tuple[ComparedModel, ComparedModel], outputs: tuple[Layer | None, Layer | None]
    ) -> None:
        """Prepare.

        Args:
            models: Both models, with a batch for each.
            outputs: The layer of each that is its output.
        """
        self._models, self._outputs = models, outputs

    def of(self, starts: Sequence[Location | None], end: Location | None, error: float) -> Cause:
        """Return the cause of a local error.

        Args:
            starts: Locations ahead of the end, the nearest first. The last is one through which everything passes.
            end: The location at the end; None: the output.
            error: The local error at the end, the median over the images.
        """
        layers = self._outputs if end is None else (end.first, end.second)
        if layers[0] is None or layers[1] is None:
            return None, ()
        try:
            for start in starts:
                result = self._from(start, (layers[0], layers[1]), error, start is starts[-1])
                if result is not None:
                    return result
        except Exception as failure:
            return None, (f"the cause could not be sought: {first_line(failure)}",)
        return None, ()

    def _from(self, start: Location | None, end: tuple[Layer, Layer], error: float, is_last: bool) -> Cause | None:
        """Return the cause, seen from one start; None where other values than that of the start count too."""
        ahead = None if start is None else NamePair(start.first.name, start.second.name)
        stretch = Stretch(self._models, ahead, NamePair(end[0].name, end[1].name))
        values = stretch.end_value(0), stretch.local()
        if values[0].shape != values[1].shape:
            return None, ()
        now = alignment.error(*values)
        usual = median([alignment.error(a, b) for a, b in zip(*values, strict=True)]).mean  # as `error` is
        if not is_last and abs(usual - error) > NEAR * error:
            return None
        samples = [[alignment.sample(layer, value)] for layer, value in zip(end, values, strict=True)]
        matches = [Match(0, 0, now, firsts=(0,), seconds=(0,))]
        if start is not None:
            value = stretch.start_value(0)
            for each, layer in zip(samples, (start.first, start.second), strict=True):
                each.insert(0, alignment.sample(layer, value))
            matches = [
                Match(0, 0, 0.0, firsts=(0,), seconds=(0,)),
                replace(matches[0], first=1, second=1, firsts=(1,), seconds=(1,)),
            ]
        cause, notes = divergence.diagnose(samples[0], samples[1], matches, len(matches) - 1, self._models)
        return cause, tuple(notes)
