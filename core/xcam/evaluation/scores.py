"""The record of an evaluation: a number for each method, measure and image; means with intervals; a ranking of methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from xcam.evaluation import ranking
from xcam.evaluation.registry import Measure
from xcam.methods.maps import Array

FLOOR = "random"
"""The baseline method, with which all others are compared."""
MIN_IMAGES = 10
"""The smallest number of images for `above` and `below`: the bootstrap interval of fewer is too narrow (that of two reaches
from one value to the other)."""


@dataclass(frozen=True)
class Row:
    """One method by one measure."""

    method: str
    measure: str
    mean: float
    """The mean over the images that have a value; NaN where none has."""
    low: float
    """The lower end of the bootstrap interval of the mean; NaN for fewer than two images."""
    high: float
    """The upper end."""
    n: int
    """The number of images that have a value."""
    better: str
    """`higher` or `lower`."""
    gain: float
    """The mean difference to `random` on the same images, positive where the method is better; NaN without `random`."""
    gain_low: float
    """The lower end of the interval of the gain."""
    gain_high: float
    """The upper end."""
    gain_n: int
    """The number of images on which both have a value."""

    @property
    def above(self) -> bool:
        """Whether the method is better than `random`: the interval of the gain is above zero, on ten or more images."""
        return self.gain_n >= MIN_IMAGES and self.gain_low > 0

    @property
    def below(self) -> bool:
        """Whether it is worse: the interval is below zero."""
        return self.gain_n >= MIN_IMAGES and self.gain_high < 0


@dataclass(frozen=True)
class Rank:
    """One method, over all measures that rank."""

    method: str
    mean_rank: float
    """The mean of its ranks: 1 if it is the best by every measure."""
    above: int
    """The number of measures by which it is better than `random`."""
    below: int
    """The number of measures by which it is worse than `random`."""
    of: int
    """The number of measures that rank."""


@dataclass(frozen=True)
class Scores:
    """The values of several methods by several measures, for one model and its images."""

    model: str
    layer: str
    images: tuple[str, ...]
    """Paths; `image 3` for an array."""
    targets: tuple[str, ...]
    """The explained target of each image, as text."""
    values: Mapping[str, Mapping[str, Array]] = field(repr=False)
    """method → measure → [n], one value for each image; NaN where there is none."""
    measures: tuple[Measure, ...]
    level: float = 0.95
    """The confidence level of the intervals."""
    seed: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    """Images that could not be evaluated, with the reason."""
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The score, and the options of methods and measures."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods."""
        return tuple(self.values)

    @cached_property
    def table(self) -> list[Row]:
        """A row for each measure and method: measures in their order, the best method first."""
        rows = []
        for measure in self.measures:
            sign = -1 if measure.better == "higher" else 1
            unsorted = [self._row(name, measure) for name in self.values]
            rows += sorted(unsorted, key=lambda row: (np.isnan(row.mean), sign * row.mean))
        return rows

    @cached_property
    def ranking(self) -> list[Rank]:
        """The methods by their mean rank over the measures that rank, the best first.

        By each measure they are compared on the images for which all methods that have values have one.
        """
        rows = {(row.method, row.measure): row for row in self.table}
        counted = [m for m in self.measures if m.ranks]
        ranks = [ranking.ranks(self._comparable_means(m.name), m.better) for m in counted]
        result = []
        for k, name in enumerate(self.values):
            selected = [rows[name, m.name] for m in counted]
            result.append(
                Rank(
                    name,
                    ranking.mean(np.array([row[k] for row in ranks])),
                    sum(row.above for row in selected),
                    sum(row.below for row in selected),
                    sum(bool(row.n) for row in selected),
                )
            )
        return sorted(result, key=lambda rank: (np.isnan(rank.mean_rank), rank.mean_rank))

    def row(self, method: str, measure: str) -> Row:
        """Return the row of one method and one measure.

        Raises:
            KeyError: The evaluation has no such row.
        """
        for row in self.table:
            if (row.method, row.measure) == (method, measure):
                return row
        raise KeyError(f"this evaluation has no row of {method!r} by {measure!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON, with None for NaN."""
        return {
            "model": self.model,
            "layer": self.layer,
            "level": self.level,
            "seed": self.seed,
            **self.settings,
            "ranking": [_plain(vars(rank)) for rank in self.ranking],
            "table": [_plain(vars(row)) for row in self.table],
            "measures": [
                {"name": m.name, "summary": m.summary, "better": m.better, "source": m.source} for m in self.measures
            ],
            "images": [
                {
                    "image": path,
                    "target": target,
                    "values": {
                        name: _plain({measure: float(column[k]) for measure, column in columns.items()})
                        for name, columns in self.values.items()
                    },
                }
                for k, (path, target) in enumerate(zip(self.images, self.targets, strict=True))
            ],
            "failed": [{"image": path, "error": reason} for path, reason in self.failed],
            "notes": list(self.notes),
        }

    def _comparable_means(self, measure: str) -> Array:
        """Return each method's mean over the images for which all methods that have values have one."""
        values = np.stack([columns[measure] for columns in self.values.values()])
        known = np.isfinite(values)
        common = known[known.any(axis=1)].all(axis=0)
        return np.array([ranking.mean(row[common]) for row in values])

    def _row(self, name: str, measure: Measure) -> Row:
        values = self.values[name][measure.name]
        low, high = ranking.interval(values, self.level, self.seed)
        gains = np.full(len(values), np.nan)
        if FLOOR in self.values and name != FLOOR:
            gains = (values - self.values[FLOOR][measure.name]) * (1 if measure.better == "higher" else -1)
        gain_low, gain_high = ranking.interval(gains, self.level, self.seed)
        return Row(
            method=name,
            measure=measure.name,
            mean=ranking.mean(values),
            low=low,
            high=high,
            n=int(np.isfinite(values).sum()),
            better=measure.better,
            gain=ranking.mean(gains),
            gain_low=gain_low,
            gain_high=gain_high,
            gain_n=int(np.isfinite(gains).sum()),
        )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in values.items()
    }
