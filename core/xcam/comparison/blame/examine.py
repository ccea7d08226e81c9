"""A closer look at the stretches that matter: their parts, the other direction, and causes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from xcam.comparison import alignment
from xcam.comparison.alignment import LayerSample
from xcam.comparison.blame import locations
from xcam.comparison.blame.locations import Location
from xcam.comparison.blame.measure import contributions
from xcam.comparison.blame.swaps import Pair
from xcam.contract import Array, Layer, validation

MOST_PARTS = 256
"""The largest number of pairs of layers within a stretch that are examined."""


@dataclass(frozen=True)
class Part:
    """A part of a stretch."""

    start: Location | None
    """The pair of layers ahead of it; None: the input."""
    end: Location | None
    """The pair at its end; None: the output."""
    errors: tuple[float, ...]
    """The local error on each image."""
    scores: tuple[float, ...]
    """The contribution to the class scores on each image."""
    heatmap: tuple[float, ...]
    """The contribution to the heatmap on each image."""

    @property
    def stretch(self) -> Stretch:
        """The part as a stretch."""
        return Stretch(self.start, self.end)


@dataclass(frozen=True)
class Stretch:
    """The layers between two locations."""

    start: Location | None
    """None: the input."""
    end: Location | None
    """None: the output."""

    @property
    def ends(self) -> list[Location]:
        """The locations at its ends."""
        return [location for location in (self.start, self.end) if location is not None]

    @property
    def span(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The positions of its start and its end among the layers of both models."""
        start = (-1, -1) if self.start is None else self.start.positions
        end = (1 << 60, 1 << 60) if self.end is None else self.end.positions
        return start, end


def within(samples: Sequence[LayerSample], stretch: Stretch, which: int) -> list[Layer]:
    """Return the layers of a model within a stretch."""
    start, end = stretch.span
    return [
        sample.layer
        for sample in samples[max(start[which] + 1, 0) : end[which]]
        if not sample.layer.is_output and not sample.layer.folds_batch
    ]


def inner_locations(
    samples: tuple[Sequence[LayerSample], Sequence[LayerSample]],
    stretch: Stretch,
    second: Mapping[str, Array],
    explained: tuple[str, str],
) -> list[Location]:
    """Return the corresponding layers within a stretch, in the order of the second model.

    They are aligned by the values that follow from the first model's value at the start: without the errors of earlier stretches.

    Args:
        samples: The samples of both models.
        stretch: The stretch.
        second: The values of the second model's layers within it, computed from the first model's value at the start.
        explained: The explained layers.
    """
    start, end = stretch.span
    offsets = [max(position + 1, 0) for position in start]
    inside = [list(samples[k][offsets[k] : end[k]]) for k in range(2)]
    names = [sample.layer.name for sample in samples[1]]
    positions = max((sample.values.shape[2] for sample in inside[0]), default=1)
    local = [
        alignment.sample(samples[1][names.index(name)].layer, value, positions) for name, value in second.items()
    ]
    one = [_first_image(sample) for sample in inside[0]]
    matches = alignment.align(one, local)
    pairs = locations.pairs((one, local), matches, explained)
    order = [names.index(location.second.name) for location in pairs]
    shifted = [
        replace(location, positions=(location.positions[0] + offsets[0], position))
        for location, position in zip(pairs, order, strict=True)
    ]
    return sorted(shifted, key=lambda location: location.positions[1])[:MOST_PARTS]


def _first_image(sample: LayerSample) -> LayerSample:
    return replace(sample, values=sample.values[:1])


class Closer:
    """A closer look at the stretches of two models, on a few images."""

    def __init__(
        self,
        samples: tuple[Sequence[LayerSample], Sequence[LayerSample]],
        pairs: Sequence[Pair],
        explained: tuple[str, str],
    ) -> None:
        """Prepare.

        Args:
            samples: The samples of the layers of both models.
            pairs: Both models on each image, opened at all locations.
            explained: The explained layers.
        """
        self._samples, self._pairs, self._explained = samples, pairs, explained

    def inspect(self, stretch: Stretch, limit: float) -> list[Part]:
        """Return the parts of a stretch whose local error exceeds a limit, in the order of the second model."""
        inside = [within(self._samples[k], stretch, k) for k in range(2)]
        if not inside[0] or not inside[1]:
            return []
        inner = inner_locations(self._samples, stretch, _local(self._pairs[0], stretch, inside[1]), self._explained)
        if not inner:
            return []
        errors = []
        for pair in self._pairs:
            with _opened(pair, stretch, inner):
                errors.append(pair.chain(stretch.start, inner, stretch.end).errors)
        columns = list(zip(*errors, strict=True))
        ends: list[Location | None] = [*inner, stretch.end]
        candidates = [(inner[k - 1] if k else stretch.start, end, columns[k]) for k, end in enumerate(ends)]
        return self.costs(stretch, [each for each in candidates if float(np.median(each[2])) > limit])

    def costs(
        self, stretch: Stretch, parts: Sequence[tuple[Location | None, Location | None, Sequence[float]]]
    ) -> list[Part]:
        """Return parts of a stretch with their contributions, in the order of the second model.

        Args:
            stretch: The stretch.
            parts: For each part its start, its end, and its local error on each image. All other parts are taken for exact.
        """
        if not parts:
            return []
        inner = [end for _, end, _ in parts if end is not None and not _is_same(end, stretch.end)]
        chain = [*inner, *([stretch.end] if stretch.end is not None else [])]
        last = () if stretch.end is not None else (0.0,)
        scores, heatmap = [], []
        for pair in self._pairs:
            with _opened(pair, stretch, inner):
                walk = pair.chain(stretch.start, chain, None, pair.in_first)
            scores.append(contributions((*walk.scores, *last)))
            heatmap.append(contributions((*walk.heatmap, *last)))
        return [
            Part(start, end, tuple(errors), tuple(row[k] for row in scores), tuple(row[k] for row in heatmap))
            for k, (start, end, errors) in enumerate(parts)
        ]

    def opposite(self, stretches: Sequence[Stretch]) -> list[tuple[list[float], list[float]]]:
        """Return the contributions of stretches in the other direction, on each image."""
        ends = {id(p): p for s in stretches for p in s.ends}
        results: list[tuple[list[float], list[float]]] = [([], []) for _ in stretches]
        for pair in self._pairs:
            states = {key: pair.opposite(location, pair.in_first) for key, location in ends.items()}
            for stretch, (scores, heatmap) in zip(stretches, results, strict=True):
                before = pair.whole if stretch.start is None else states[id(stretch.start)]
                after = (0.0, 0.0) if stretch.end is None else states[id(stretch.end)]
                scores.append(before[0] - after[0])
                heatmap.append(before[1] - after[1])
        return results


def _is_same(end: Location, other: Location | None) -> bool:
    return other is not None and end.second.name == other.second.name


def _local(pair: Pair, stretch: Stretch, layers: Sequence[Layer]) -> dict[str, Array]:
    """Return the values of the second model's layers within a stretch, from the first model's value at its start."""
    if stretch.start is None:
        names = [layer.name for layer in layers]
        return dict(validation.activations(pair.second.side.model, pair.second.x, names))
    trace, value = pair.second.traces[stretch.start.second.name], pair.first.value(stretch.start.first.name)
    swap = pair.second.swapped(trace, value, layers, False)
    return {name: trace.activations for name, trace in swap.traces.items()}


@contextmanager
def _opened(pair: Pair, stretch: Stretch, inner: Sequence[Location]) -> Iterator[None]:
    """Open both models at layers within a stretch for a while."""
    start = stretch.start
    opened = [pair.first.open(start.first if start else None, [location.first for location in inner]), []]
    if start is None or pair.in_first:
        opened[1] = pair.second.open(start.second if start else None, [location.second for location in inner])
    yield
    for run, layers in zip((pair.first, pair.second), opened, strict=True):
        run.close(layers)
