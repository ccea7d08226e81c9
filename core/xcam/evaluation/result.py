"""What an evaluation answers: numbers for each picture, means with intervals, and an order of methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xcam.evaluation import ranking
from xcam.evaluation.registry import Measure
from xcam.methods.maps import Array

FLOOR = "random"
"""The method that every other has to beat."""
ENOUGH = 10
"""Pictures from which on an interval may say that a method is better: with fewer, the bootstrap's is too narrow (with two it
reaches from one value to the other)."""


@dataclass(frozen=True)
class Row:
    """One method by one measure."""

    method: str
    measure: str
    mean: float
    """Over the pictures that have a value; NaN where none has."""
    low: float
    high: float
    """The bootstrap interval of the mean; NaN with fewer than two pictures."""
    n: int
    """Pictures that have a value."""
    better: str
    gain: float
    """By how much it is better than `random` on the same pictures, on average; NaN without that floor."""
    gain_low: float
    gain_high: float
    """The interval of that. Above `random` means: wholly above zero."""
    gain_n: int
    """Pictures on which both have a value."""

    @property
    def above(self) -> bool:
        """Better than `random`, the interval says, on ten pictures or more."""
        return self.gain_n >= ENOUGH and self.gain_low > 0

    @property
    def below(self) -> bool:
        """Worse, it says."""
        return self.gain_n >= ENOUGH and self.gain_high < 0


@dataclass(frozen=True)
class Rank:
    """One method, over all measures that rank."""

    method: str
    place: float
    """Its mean place: 1 is best by every measure."""
    above: int
    """By so many measures it is better than `random`, with an interval that says so …"""
    below: int
    """… and by so many it is worse."""
    of: int
    """Measures that rank."""


@dataclass(frozen=True)
class Evaluation:
    """Several methods on one model and its pictures."""

    model: str
    layer: str
    pictures: tuple[str, ...]
    """Paths; `picture 3` where there is none."""
    targets: tuple[str, ...]
    """What was explained on each picture."""
    values: Mapping[str, Mapping[str, Array]] = field(repr=False)
    """method → measure → [n], one value for each picture; NaN where there is none."""
    measures: tuple[Measure, ...]
    level: float = 0.95
    seed: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    """Pictures that could not be evaluated, and why."""
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for: score, and the options of methods and measures."""

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(self.values)

    @cached_property
    def table(self) -> list[Row]:
        """A row for each measure and method: measures in their order, methods the best first."""
        rows = []
        for measure in self.measures:
            made = [self._row(name, measure) for name in self.values]
            sign = -1 if measure.better == "higher" else 1
            rows += sorted(made, key=lambda row: (np.isnan(row.mean), sign * row.mean))
        return rows

    @cached_property
    def ranking(self) -> list[Rank]:
        """The methods by their mean place over the measures that rank, the best first.

        By each measure they are compared on the pictures that have a value of all methods that have any.
        """
        means = {(row.method, row.measure): row for row in self.table}
        counted = [m for m in self.measures if m.ranks]
        places = [ranking.places(self._comparable(m.name), m.better) for m in counted]
        found = []
        for k, name in enumerate(self.values):
            rows = [means[name, m.name] for m in counted]
            found.append(
                Rank(
                    name,
                    ranking.mean(np.array([row[k] for row in places])),
                    sum(row.above for row in rows),
                    sum(row.below for row in rows),
                    sum(bool(row.n) for row in rows),
                )
            )
        return sorted(found, key=lambda rank: (np.isnan(rank.place), rank.place))

    def row(self, method: str, measure: str) -> Row:
        """The row of one method and one measure. Raises KeyError."""
        return next((row for row in self.table if (row.method, row.measure) == (method, measure)), None) or _no(
            method, measure
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; None stands for what is no number."""
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
            "pictures": [
                {
                    "image": path,
                    "target": target,
                    "values": {
                        name: _plain({measure: float(column[k]) for measure, column in columns.items()})
                        for name, columns in self.values.items()
                    },
                }
                for k, (path, target) in enumerate(zip(self.pictures, self.targets, strict=True))
            ],
            "failed": [{"image": path, "error": why} for path, why in self.failed],
            "notes": list(self.notes),
        }

    def save(self, path: str | Path) -> None:
        """Write the report, one HTML file that needs nothing else. Raises InputError."""
        from xcam.evaluation.page import write

        write(self, Path(path))

    def _comparable(self, measure: str) -> Array:
        """Each method's mean over the pictures that have a value of all methods that have any."""
        values = np.stack([columns[measure] for columns in self.values.values()])
        known = np.isfinite(values)
        common = known[known.any(axis=1)].all(axis=0)
        return np.array([ranking.mean(row[common]) for row in values])

    def _row(self, name: str, measure: Measure) -> Row:
        mine = self.values[name][measure.name]
        low, high = ranking.interval(mine, self.level, self.seed)
        gains = np.full(len(mine), np.nan)
        if FLOOR in self.values and name != FLOOR:
            gains = (mine - self.values[FLOOR][measure.name]) * (1 if measure.better == "higher" else -1)
        return Row(
            name,
            measure.name,
            ranking.mean(mine),
            low,
            high,
            int(np.isfinite(mine).sum()),
            measure.better,
            ranking.mean(gains),
            *ranking.interval(gains, self.level, self.seed),
            int(np.isfinite(gains).sum()),
        )


def _no(method: str, measure: str) -> Row:
    raise KeyError(f"no {measure!r} of {method!r} in this evaluation")


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in values.items()
    }
