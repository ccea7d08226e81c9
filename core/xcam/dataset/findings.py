"""Possible faults in a set of explanations: the worst of each kind, and sums, from one pass over the table of a batch.

Memory does not grow with the table. Nothing here reads an image or writes a file.
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
"""The kinds of findings, in the order in which they should be inspected."""

CONFIDENT = EDGE = 0.5
"""Thresholds of `excess`: halfway from a uniform map to one with all its energy in the region."""
SAME = 0.95
"""The correlation of the maps of two classes above which the difference is hardly visible."""
WORST = 12
"""The number of findings of a kind that are kept."""
FAILURES = 50
"""The number of failed images that are kept by name."""
GRID = 14
"""The sides of an average map, at most: the size of VGG's last layer."""
CLASSES = 10_000
"""The number of classes with an average map (1.6 kB each); later classes are counted together."""
BINS = 10
"""Bins of the histogram of probabilities."""
BLOCK = 512
"""Rows that are processed together: 25 MB of maps of 112×112."""


@dataclass(frozen=True)
class Finding:
    """A row of the table that should be inspected."""

    path: str
    label: str | None
    """The class that the table or the shard gives."""
    prediction: str | None
    probability: float | None
    target: str | None
    severity: float
    region: str = ""
    """`hottest fifth`, `border`, or a corner."""
    share: float = 0.0
    """The share of the map's energy in that region."""
    expected: float = 0.0
    """The share of a uniform map."""
    rival: str | None = None
    correlation: float = 0.0
    cam: Floats | None = None
    """[h, w], after ReLU, with a maximum of 1; None where the table has no maps."""
    box: tuple[float, ...] | None = None
    """The rectangle (x0, y0, x1, y1) that the map covers, in pixels of the image; None: the whole image."""


@dataclass
class Worst:
    """The number of findings of a kind, and the worst of them."""

    count: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass
class Average:
    """The mean map of a class: explained, labelled, or predicted (see Findings). All-zero maps are included."""

    name: str
    count: int = 0
    """Maps."""
    labelled: int = 0
    """Maps for which it is known whether the prediction is correct."""
    correct: int = 0
    total: npt.NDArray[np.float64] | float = 0.0
    """The sum of the maps, [h, w]."""

    @property
    def cam(self) -> Floats:
        """The mean map [h, w], in 0…1."""
        return np.asarray(self.total / max(self.count, 1), np.float32)

    def add(self, count: int, labelled: int, correct: int, total: npt.NDArray[np.float64] | float) -> None:
        """Add the sum of `count` maps."""
        self.count, self.labelled, self.correct = self.count + count, self.labelled + labelled, self.correct + correct
        self.total = self.total + total


@dataclass
class Findings:
    """The findings in a table, collected part by part with `add`."""

    by_target: bool = False
    """Several targets are explained: maps belong to them, not to the labelled or predicted class."""
    images: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    explained: int = 0
    """Rows without errors: one for each target of an image."""
    labelled: int = 0
    """Images for which it is known whether the prediction is correct."""
    correct: int = 0
    maps: bool = False
    """The table has maps."""
    rivals: bool = False
    """The map of the second best class was compared with that of the best."""
    drawn: int = 0
    """Maps in the table that are not all zero."""
    border: float = 0.0
    """The sum of their shares on the border."""
    border_expected: float = 0.0
    """The same sum if they were uniform."""
    worst: dict[Kind, Worst] = field(default_factory=lambda: {kind: Worst() for kind in KINDS})
    everything: Average = field(default_factory=lambda: Average(""))
    averages: dict[str, Average] = field(default_factory=dict)
    others: int = 0
    """Maps of classes that came after CLASSES others."""
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((BINS, 2), np.int64))
    """Images by the probability of the prediction: [BINS, (all, those known to be wrong)]."""
    names: dict[str, str] = field(default_factory=dict)
    """The index of a class, as text → its name: tables and shards may use either."""
    _last: str | None = None
    _grid: tuple[int, int] | None = None

    def add(self, part: Any) -> None:
        """Add the rows of a pyarrow table with the columns of `xcam.dataset.output.schema`."""
        self.maps |= "map" in part.column_names
        self.rivals |= "rival_correlation" in part.column_names
        for block in part.to_batches(max_chunksize=BLOCK):
            if len(block):
                self._add(block)

    def _add(self, block: Any) -> None:
        paths = block["path"].to_pylist()
        good = block["error"].is_null().to_numpy(zero_copy_only=False)
        # An image with several targets has a row for each.
        first = np.array([path != before for path, before in zip(paths, [self._last, *paths[:-1]], strict=True)])
        self._last = paths[-1]
        labelled = block["correct"].is_valid().to_numpy(zero_copy_only=False) & good
        correct = _flags(block["correct"]) & labelled
        zero = _flags(block["zero"]) & good
        scores = _numbers(block["probability"])
        probability = np.nan_to_num(scores)
        self.images += int(first.sum())
        self.failed += int((~good).sum())
        self.explained += int(good.sum())
        self.labelled += int((labelled & first).sum())
        self.correct += int((correct & first).sum())
        for row in np.flatnonzero(~good)[: FAILURES - len(self.failures)]:
            self.failures.append((paths[row], block["error"][int(row)].as_py()))
        for index, name in zip(block["prediction_index"].to_pylist(), block["prediction"].to_pylist(), strict=True):
            if name is not None and len(self.names) < CLASSES:
                self.names[str(index)] = name
        is_probability = first & good & (scores >= 0) & (scores < 1.0001)  # it may be missing, or a logit
        bins = np.minimum((probability * BINS).astype(int), BINS - 1)
        self.histogram[:, 0] += np.bincount(bins[is_probability], minlength=BINS)
        self.histogram[:, 1] += np.bincount(bins[is_probability & labelled & ~correct], minlength=BINS)

        self._keep("zero", block, zero, probability)
        if self.rivals:
            correlations = np.nan_to_num(_numbers(block["rival_correlation"]))
            self._keep("same", block, good & ~zero & (correlations > SAME), correlations)
        predictions, targets = block["prediction"].to_pylist(), block["target"].to_pylist()
        is_prediction = (
            np.array([a == b for a, b in zip(predictions, targets, strict=True)]) if self.by_target else first
        )
        labels = targets if self.by_target else block["class"].to_pylist()
        names = np.array(
            [p or "" if label is None else label for label, p in zip(labels, predictions, strict=True)], object
        )
        for rows, cams in _cams(block):
            self._examine(block, rows, cams, (is_prediction & labelled & ~correct)[rows], probability[rows])
            self._average(names[rows], cams, labelled[rows], correct[rows])

    def _examine(
        self, block: Any, rows: npt.NDArray[np.int64], cams: Floats, wrong: npt.NDArray[np.bool_], probability: Floats
    ) -> None:
        """Examine where the energy of the maps of some rows is concentrated."""
        nonzero = cams.any(axis=(1, 2))
        hottest, uniform = concentration(cams)
        confidence = excess(hottest, uniform)
        chosen = wrong & nonzero & (confidence >= CONFIDENT)
        severity = confidence * np.clip(probability, 0, 1)
        self._keep("wrong", block, chosen, severity, rows, [("hottest fifth", s, uniform) for s in hottest])

        size = (cams.shape[1], cams.shape[2])
        regions = np.concatenate([corners(size), ring(size)[None]])
        expected = regions.mean(axis=(1, 2))
        shares = np.stack([share(cams, region) for region in regions])
        beyond = np.stack([excess(s, float(e)) for s, e in zip(shares, expected, strict=True)])
        largest = beyond.argmax(axis=0)
        details = [((*CORNERS, "border")[k], shares[k, n], float(expected[k])) for n, k in enumerate(largest)]
        self._keep("edge", block, nonzero & (beyond.max(axis=0) >= EDGE), beyond.max(axis=0), rows, details)
        self.drawn += int(nonzero.sum())
        self.border += float(shares[-1].sum())
        self.border_expected += float(expected[-1]) * int(nonzero.sum())

    def _keep(
        self,
        kind: Kind,
        block: Any,
        chosen: npt.NDArray[np.bool_],
        severity: Floats,
        rows: npt.NDArray[np.int64] | None = None,
        details: Sequence[tuple[str, float, float]] = (),
    ) -> None:
        """Count the chosen rows, and keep the worst. `rows`: those of the arrays, if they are not the whole block."""
        worst = self.worst[kind]
        worst.count += int(chosen.sum())
        least = worst.findings[-1].severity if len(worst.findings) == WORST else -np.inf
        indices = np.flatnonzero(chosen & (severity > least))
        for k in indices[np.argsort(-severity[indices], kind="stable")][:WORST]:
            row = int(k if rows is None else rows[k])
            worst.findings.append(_finding(block, row, float(severity[k]), details[k] if details else ("", 0.0, 0.0)))
        # The sort is stable: of equals, the first remain.
        worst.findings = sorted(worst.findings, key=lambda f: -f.severity)[:WORST]

    def _average(
        self,
        names: npt.NDArray[np.object_],
        cams: Floats,
        labelled: npt.NDArray[np.bool_],
        correct: npt.NDArray[np.bool_],
    ) -> None:
        self._grid = self._grid or (min(cams.shape[1], GRID), min(cams.shape[2], GRID))
        small = grid(cams, self._grid).astype(np.float64)
        self.everything.add(len(small), int(labelled.sum()), int(correct.sum()), small.sum(axis=0))
        classes, codes = np.unique(names, return_inverse=True)
        sums = np.zeros((len(classes), *self._grid))
        np.add.at(sums, codes, small)
        counts = [np.bincount(codes[rows], minlength=len(classes)) for rows in (slice(None), labelled, correct)]
        for k, name in enumerate(classes):
            if not name or (name not in self.averages and len(self.averages) >= CLASSES):
                self.others += int(counts[0][k])
                continue
            count, known, right = (int(values[k]) for values in counts)
            self.averages.setdefault(name, Average(name)).add(count, known, right, sums[k])

    def class_name(self, label: str) -> str:
        """Return the name of a class that may be given by its index."""
        return self.names.get(label, label) if label not in self.names.values() else label

    def classes(self) -> list[Average]:
        """Return the average maps, the most frequent class first; of equals, the one that is wrong more often."""
        merged: dict[str, Average] = {}
        known = set(self.names.values())
        for a in self.averages.values():
            name = a.name if a.name in known else self.names.get(a.name, a.name)
            merged.setdefault(name, Average(name)).add(a.count, a.labelled, a.correct, a.total)
        return sorted(
            merged.values(), key=lambda a: (-a.count, a.correct / a.labelled if a.labelled else 1.0, a.name)
        )


def collect(parts: Iterable[Any], by_target: bool = False) -> Findings:
    """Return the findings in a table that comes in parts, in one pass. `by_target`: see Findings."""
    findings = Findings(by_target)
    for part in parts:
        findings.add(part)
    return findings


def _numbers(column: Any) -> Floats:
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float32)


def _flags(column: Any) -> npt.NDArray[np.bool_]:
    return np.asarray(column.fill_null(False).to_numpy(zero_copy_only=False), bool)


def _cams(block: Any) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """Yield the maps of a block, grouped by size: their rows, and the maps after ReLU with a maximum of 1."""
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


def _finding(block: Any, row: int, severity: float, details: tuple[str, float, float]) -> Finding:
    single = block.slice(row, 1)
    cam = next((cams[0] for _, cams in _cams(single)), None)
    values = single.select([name for name in single.schema.names if name != "map"]).to_pylist()[0]
    region, energy_share, expected = details
    return Finding(
        path=values["path"],
        label=values["class"],
        prediction=values["prediction"],
        probability=values["probability"],
        target=values["target"],
        severity=severity,
        region=region,
        share=float(energy_share),
        expected=expected,
        rival=values.get("rival"),
        correlation=values.get("rival_correlation") or 0.0,
        cam=cam,
        box=tuple(values["map_box"]) if len(values.get("map_box") or ()) == 4 else None,
    )
