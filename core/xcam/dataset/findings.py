"""What may be wrong with a set of explanations: the worst of each kind, and sums, from one pass over a batch's table.

Memory does not grow with the table. Nothing here reads a picture or writes a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xcam.dataset.energy import CORNERS, Floats, concentration, corners, excess, grid, ring, share
from xcam.methods import maps

Kind = Literal["wrong", "edge", "same", "zero"]
KINDS: tuple[Kind, ...] = ("wrong", "edge", "same", "zero")
"""In the order in which a person would act."""

CONFIDENT = EDGE = 0.5
"""Of `excess`: half way from a map that is the same everywhere to one that lies in that place alone."""
SAME = 0.95
"""Correlation of the maps of two classes above which a person hardly sees a difference."""
WORST = 12
"""So many of a kind are kept."""
FAILURES = 50
"""So many failed pictures are kept by name."""
GRID = 14
"""The sides of an average map, at most: what VGG's last layer has."""
CLASSES = 10_000
"""So many classes get an average map (1.6 kB each); those that come later are counted together."""
BINS = 10
"""Of the probability's histogram."""
BLOCK = 512
"""Rows that are looked at together: 25 MB of maps of 112×112."""


@dataclass(frozen=True)
class Finding:
    """A row of the table that a person should look at."""

    path: str
    told: str | None
    prediction: str | None
    probability: float | None
    target: str | None
    badness: float
    where: str = ""
    """`hottest fifth`, `border`, or a corner."""
    share: float = 0.0
    """Of the map's energy, in that place."""
    expected: float = 0.0
    """Of a uniform map's."""
    rival: str | None = None
    correlation: float = 0.0
    cam: Floats | None = None
    """[h, w], ReLU and normalised to its maximum; None where the table has no maps."""


@dataclass
class Worst:
    """The worst of a kind, and how many there are."""

    count: int = 0
    found: list[Finding] = field(default_factory=list)


@dataclass
class Average:
    """The maps of a class: explained, told, or predicted (see Findings). A map that is zero counts as such."""

    name: str
    count: int = 0
    """Maps."""
    told: int = 0
    """Maps of which it is known whether the prediction is right."""
    right: int = 0
    total: npt.NDArray[np.float64] | float = 0.0
    """The sum of the maps, [h, w]."""

    @property
    def cam(self) -> Floats:
        """The mean map [h, w], in 0…1."""
        return np.asarray(self.total / max(self.count, 1), np.float32)

    def add(self, count: int, told: int, right: int, total: npt.NDArray[np.float64] | float) -> None:
        self.count, self.told, self.right = self.count + count, self.told + told, self.right + right
        self.total = self.total + total


@dataclass
class Findings:
    """What was found in a table. Filled by `add`, part by part."""

    by_target: bool = False
    """Several targets are explained: maps belong to them, not to what is told or predicted."""
    pictures: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    explained: int = 0
    """Rows of pictures that did not fail: one for each target."""
    told: int = 0
    """Pictures of which it is known whether the prediction is right."""
    right: int = 0
    maps: bool = False
    """The table has maps."""
    rivals: bool = False
    """The map of the second best class was held against the best one's."""
    drawn: int = 0
    """Maps that are in the table and not zero."""
    border: float = 0.0
    """The sum of their shares on the border; and what it would be if they were uniform."""
    border_expected: float = 0.0
    worst: dict[Kind, Worst] = field(default_factory=lambda: {kind: Worst() for kind in KINDS})
    everything: Average = field(default_factory=lambda: Average(""))
    averages: dict[str, Average] = field(default_factory=dict)
    others: int = 0
    """Maps of classes that came when there were CLASSES of them already."""
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((BINS, 2), np.int64))
    """Pictures by the probability of the prediction: [BINS, (all, those known to be wrong)]."""
    names: dict[str, str] = field(default_factory=dict)
    """A class's index, as text → its name: tables and shards may tell classes by either."""
    _last: str | None = None
    _grid: tuple[int, int] | None = None

    def add(self, part: Any) -> None:
        """The rows of a pyarrow table with the columns of `xcam.dataset.output.schema`."""
        self.maps |= "map" in part.column_names
        self.rivals |= "rival_correlation" in part.column_names
        for block in part.to_batches(max_chunksize=BLOCK):
            if len(block):
                self._add(block)

    def _add(self, block: Any) -> None:
        paths = block["path"].to_pylist()
        good = block["error"].is_null().to_numpy(zero_copy_only=False)
        # A picture with several targets has a row for each.
        first = np.array([now != then for now, then in zip(paths, [self._last, *paths[:-1]], strict=True)])
        self._last = paths[-1]
        told = block["correct"].is_valid().to_numpy(zero_copy_only=False) & good
        right = _flags(block["correct"]) & told
        zero = _flags(block["zero"]) & good
        scored = _numbers(block["probability"])
        probability = np.nan_to_num(scored)
        self.pictures += int(first.sum())
        self.failed += int((~good).sum())
        self.explained += int(good.sum())
        self.told += int((told & first).sum())
        self.right += int((right & first).sum())
        for row in np.flatnonzero(~good)[: FAILURES - len(self.failures)]:
            self.failures.append((paths[row], block["error"][int(row)].as_py()))
        for index, name in zip(block["prediction_index"].to_pylist(), block["prediction"].to_pylist(), strict=True):
            if name is not None and len(self.names) < CLASSES:
                self.names[str(index)] = name
        likely = first & good & (scored >= 0) & (scored < 1.0001)  # there may be none, or logits
        bins = np.minimum((probability * BINS).astype(int), BINS - 1)
        self.histogram[:, 0] += np.bincount(bins[likely], minlength=BINS)
        self.histogram[:, 1] += np.bincount(bins[likely & told & ~right], minlength=BINS)

        self._keep("zero", block, zero, probability)
        if self.rivals:
            alike = np.nan_to_num(_numbers(block["rival_correlation"]))
            self._keep("same", block, good & ~zero & (alike > SAME), alike)
        predictions, targets = block["prediction"].to_pylist(), block["target"].to_pylist()
        own = np.array([a == b for a, b in zip(predictions, targets, strict=True)]) if self.by_target else first
        labels = targets if self.by_target else block["class"].to_pylist()
        names = np.array(
            [p or "" if label is None else label for label, p in zip(labels, predictions, strict=True)], object
        )
        for rows, cams in _cams(block):
            self._look(block, rows, cams, (own & told & ~right)[rows], probability[rows])
            self._average(names[rows], cams, told[rows], right[rows])

    def _look(
        self, block: Any, rows: npt.NDArray[np.int64], cams: Floats, wrong: npt.NDArray[np.bool_], probability: Floats
    ) -> None:
        """Where the energy of maps lies; `rows` are theirs."""
        alive = cams.any(axis=(1, 2))
        hot, even = concentration(cams)
        confident = excess(hot, even)
        chosen = wrong & alive & (confident >= CONFIDENT)
        badness = confident * np.clip(probability, 0, 1)
        self._keep("wrong", block, chosen, badness, rows, [("hottest fifth", s, even) for s in hot])

        size = (cams.shape[1], cams.shape[2])
        places = np.concatenate([corners(size), ring(size)[None]])
        expected = places.mean(axis=(1, 2))
        shares = np.stack([share(cams, place) for place in places])
        beyond = np.stack([excess(s, float(e)) for s, e in zip(shares, expected, strict=True)])
        most = beyond.argmax(axis=0)
        where = [((*CORNERS, "border")[k], shares[k, n], float(expected[k])) for n, k in enumerate(most)]
        self._keep("edge", block, alive & (beyond.max(axis=0) >= EDGE), beyond.max(axis=0), rows, where)
        self.drawn += int(alive.sum())
        self.border += float(shares[-1].sum())
        self.border_expected += float(expected[-1]) * int(alive.sum())

    def _keep(
        self,
        kind: Kind,
        block: Any,
        chosen: npt.NDArray[np.bool_],
        badness: Floats,
        rows: npt.NDArray[np.int64] | None = None,
        where: Sequence[tuple[str, float, float]] = (),
    ) -> None:
        """Count what was chosen, and keep the worst. rows: what the arrays speak of, where it is not the whole block."""
        worst = self.worst[kind]
        worst.count += int(chosen.sum())
        least = worst.found[-1].badness if len(worst.found) == WORST else -np.inf
        places = np.flatnonzero(chosen & (badness > least))
        for k in places[np.argsort(-badness[places], kind="stable")][:WORST]:
            row = int(k if rows is None else rows[k])
            worst.found.append(_finding(block, row, float(badness[k]), where[k] if where else ("", 0.0, 0.0)))
        worst.found = sorted(worst.found, key=lambda f: -f.badness)[:WORST]  # stable: of equals, the first remain

    def _average(
        self, names: npt.NDArray[np.object_], cams: Floats, told: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]
    ) -> None:
        self._grid = self._grid or (min(cams.shape[1], GRID), min(cams.shape[2], GRID))
        small = grid(cams, self._grid).astype(np.float64)
        self.everything.add(len(small), int(told.sum()), int(right.sum()), small.sum(axis=0))
        found, codes = np.unique(names, return_inverse=True)
        sums = np.zeros((len(found), *self._grid))
        np.add.at(sums, codes, small)
        count, known, good = (np.bincount(codes[rows], minlength=len(found)) for rows in (slice(None), told, right))
        for k, name in enumerate(found):
            if not name or (name not in self.averages and len(self.averages) >= CLASSES):
                self.others += int(count[k])
                continue
            self.averages.setdefault(name, Average(name)).add(int(count[k]), int(known[k]), int(good[k]), sums[k])

    def named(self, told: str) -> str:
        """The name of a class that may be told by its index."""
        return self.names.get(told, told) if told not in self.names.values() else told

    def classes(self) -> list[Average]:
        """The average maps: the most frequent class first; of equals, the one that is more often wrong."""
        merged: dict[str, Average] = {}
        known = set(self.names.values())
        for a in self.averages.values():
            name = a.name if a.name in known else self.names.get(a.name, a.name)
            merged.setdefault(name, Average(name)).add(a.count, a.told, a.right, a.total)
        return sorted(merged.values(), key=lambda a: (-a.count, a.right / a.told if a.told else 1.0, a.name))


def collect(parts: Iterable[Any], by_target: bool = False) -> Findings:
    """What is in a table that comes in parts: one pass. by_target: see Findings."""
    found = Findings(by_target)
    for part in parts:
        found.add(part)
    return found


def _numbers(column: Any) -> Floats:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float32)


def _flags(column: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(column.fill_null(False).to_numpy(zero_copy_only=False), bool)


def _cams(block: Any) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """The maps of a block, those of one size together: their rows, and the maps as they are looked at."""
    if "map" not in block.schema.names:
        return
    column = block["map"]
    values = column.flatten().to_numpy(zero_copy_only=False)  # without the nulls
    lengths = np.nan_to_num(_numbers(column.value_lengths())).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    sizes = np.stack([np.nan_to_num(_numbers(block[f"map_{side}"])).astype(np.int64) for side in ("height", "width")])
    fits = (lengths > 0) & (sizes.prod(axis=0) == lengths)
    for height, width in np.unique(sizes[:, fits], axis=1).T:
        rows = np.flatnonzero(fits & (sizes[0] == height) & (sizes[1] == width))
        raw = values[starts[rows][:, None] + np.arange(height * width)].reshape(-1, height, width)
        yield rows, maps.normalize(maps.relu(np.nan_to_num(raw, posinf=0, neginf=0)), "max")


def _finding(block: Any, row: int, badness: float, where: tuple[str, float, float]) -> Finding:
    one = block.slice(row, 1)
    cam = next((cams[0] for _, cams in _cams(one)), None)
    row_of = one.select([name for name in one.schema.names if name != "map"]).to_pylist()[0]
    return Finding(
        path=row_of["path"],
        told=row_of["class"],
        prediction=row_of["prediction"],
        probability=row_of["probability"],
        target=row_of["target"],
        badness=badness,
        where=where[0],
        share=float(where[1]),
        expected=where[2],
        rival=row_of.get("rival"),
        correlation=row_of.get("rival_correlation") or 0.0,
        cam=cam,
    )
