"""Aligning the layers of two models by their values on the same images.

To save memory, only a sample of each layer is kept: the values of all channels at some positions.
Layers correspond when they have the same shape and similar values, in the same order of execution: the best such
alignment is computed by dynamic programming (Needleman and Wunsch 1970).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from xcam.contract import Array, Layer, Model, validation

POSITIONS = 196
"""The number of positions in a layer's sample."""
BUDGET = 512_000_000
"""Bytes of activations that one forward pass may return."""
SAME = 1e-3
"""Layers whose error is below this have the same values."""
CLEAR = 0.05
"""Below this error the values decide; above it, names and kinds count too."""

FEW = 8192
"""Values of a layer that are compared with those of each other layer, for a model of reduced precision."""
CERTAIN = 2.0
"""The gain of layers whose values correlate at 0.95 or more."""
ABSORBED = 0.02
"""Where this share of the reference is negative and nothing of the reduced value, that is behind an absorbed activation."""


@dataclass(frozen=True)
class LayerSample:
    """A layer's values at some positions."""

    layer: Layer
    values: Array
    """[N, C, positions], channels first."""
    shape: tuple[int, ...]
    """The layer's shape (C, *space)."""

    @property
    def is_spatial(self) -> bool:
        """Whether the layer has more than one position."""
        return len(self.shape) > 1 and int(np.prod(self.shape[1:])) > 1


@dataclass(frozen=True)
class Match:
    """A pair of corresponding layers, by their indices among the samples."""

    first: int
    second: int
    error: float
    order: tuple[int, ...] | None = None
    """The indices of the first layer's channels in the second, where the order differs."""


def samples(model: Model, x: Array) -> list[LayerSample]:
    """Return a sample of every layer before the outputs, from one forward pass, or several to bound the memory."""
    layers = [layer for layer in _known(model) if not layer.is_output]
    results: list[LayerSample] = []
    group: list[Layer] = []
    size = 0
    for layer in [*layers, None]:
        bytes_ = 4 * len(x) * int(np.prod([n or 1 for n in layer.shape])) if layer else BUDGET
        if group and size + bytes_ > BUDGET:
            values = validation.activations(model, x, [each.name for each in group])
            results += [sample(each, values[each.name]) for each in group]
            group, size = [], 0
        if layer is not None:
            group.append(layer)
            size += bytes_
    return results


def output_sample(model: Model, logits: Array) -> LayerSample | None:
    """Return the sample of the last output, as its logits [N, …]: some output layers contain a softmax, others do not."""
    outputs = [layer for layer in _known(model) if layer.is_output]
    return sample(outputs[-1], logits) if outputs and logits.ndim > 1 else None


def _known(model: Model) -> list[Layer]:
    return [layer for layer in validation.layers(model) if not layer.inner and not layer.folds_batch]


def sample(layer: Layer, values: Array) -> LayerSample:
    """Return a layer's values at evenly spaced positions; only these are copied."""
    shape = values.shape[1:]
    values = values.reshape(*values.shape, *[1] * (3 - values.ndim))  # a vector has one position
    space = values.shape[2:]
    count = int(np.prod(space))
    indices = np.unique(np.linspace(0, count - 1, min(count, POSITIONS)).astype(int))
    positions: tuple[Any, ...] = np.unravel_index(indices, space)
    return LayerSample(layer, np.ascontiguousarray(values[(..., *positions)]), shape)


def error(a: Array, b: Array) -> float:
    """Return the largest difference, relative to the largest magnitude of the first."""
    size = float(np.abs(a).max())
    difference = float(np.abs(a - b).max())
    return difference / size if size > 0 else float(difference > 0)


def same_value_after(samples: Sequence[LayerSample], index: int) -> list[LayerSample]:
    """Return a layer and those right behind it that have the same value: its inner parts that return it."""
    value = samples[index].values
    return list(itertools.takewhile(lambda s: np.array_equal(s.values, value), samples[index:]))


def innermost(samples: Sequence[LayerSample], index: int) -> str:
    """Return the name of the innermost part that returns a layer's value: `features.7` → `features.7.conv.3`."""
    layer, *others = (sample.layer for sample in same_value_after(samples, index))
    names = [*layer.aliases, *(other.name for other in others)]
    return max((n for n in names if n.startswith((f"{layer.name}.", f"{layer.name}/"))), key=len, default=layer.name)


def align(
    first: Sequence[LayerSample], second: Sequence[LayerSample], reduced: Literal[0, 1] | None = None
) -> list[Match]:
    """Return the best alignment in order of execution.

    Args:
        first: The samples of a model.
        second: The samples of another.
        reduced: Which of them has a reduced precision, if any: its errors add up, and a quantisation may absorb an
            activation, so that a name is that of the value before it in one model, and of the value behind it in the other.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # values may be infinite
        if reduced is None:
            return _aligned(first, second)
        groups = [_distinct(samples) for samples in (first, second)]
        pairs = _aligned([first[g[0]] for g in groups[0]], [second[g[0]] for g in groups[1]], reduced)
    matches = []
    for pair in pairs:
        names = {second[j].layer.name: j for j in groups[1][pair.second]}
        matches += [
            replace(pair, first=i, second=names.get(first[i].layer.name, groups[1][pair.second][0]))
            for i in groups[0][pair.first]
        ]
    return matches


def _distinct(samples: Sequence[LayerSample]) -> list[list[int]]:
    """Return the indices of consecutive samples in groups of one value: a block and its last part, for example."""
    groups: list[list[int]] = []
    for k, each in enumerate(samples):
        if groups and np.array_equal(samples[groups[-1][0]].values, each.values):
            groups[-1].append(k)
        else:
            groups.append([k])
    return groups


def _aligned(
    first: Sequence[LayerSample], second: Sequence[LayerSample], reduced: Literal[0, 1] | None = None
) -> list[Match]:
    below = [
        [_below_zero(sample.values) if reduced is not None else 0.0 for sample in samples]
        for samples in (first, second)
    ]
    n, m = len(first), len(second)
    gain = np.zeros((n, m))
    errors = np.full((n, m), np.inf)
    few = [[_thinned(sample) if reduced is not None else sample for sample in samples] for samples in (first, second)]
    for i, a in enumerate(few[0]):
        for j, b in enumerate(few[1]):
            if a.shape == b.shape and a.values.shape == b.values.shape:
                errors[i, j] = error(a.values, b.values)
                shares = (below[0][i], below[1][j]) if reduced == 1 else (below[1][j], below[0][i])
                gain[i, j] = (
                    0.0 if shares[0] > ABSORBED and shares[1] == 0 else _gain(a, b, errors[i, j], reduced is not None)
                )
    best = np.zeros((n + 1, m + 1))
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            taken = best[i + 1, j + 1] + gain[i, j] if gain[i, j] > 0 else -1.0
            best[i, j] = max(taken, best[i + 1, j], best[i, j + 1])
    matches = []
    i = j = 0
    while i < n and j < m:
        if gain[i, j] > 0 and np.isclose(best[i, j], best[i + 1, j + 1] + gain[i, j]):
            # The same values exist elsewhere, out of order.
            is_elsewhere = min(errors[i].min(), errors[:, j].min()) < SAME < errors[i, j]
            if not is_elsewhere:
                matches.append(match(first, second, i, j))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    if reduced is not None:
        matches += _out_of_order(first, second, matches, gain)
    return sorted(matches, key=lambda m: m.first)


def _thinned(sample: LayerSample) -> LayerSample:
    """Return a sample of at most about FEW values: enough for values that differ a little anyway, and fast."""
    flat = sample.values.ravel()
    return replace(sample, values=flat[:: max(1, len(flat) // FEW)][None, None])


def _out_of_order(
    first: Sequence[LayerSample], second: Sequence[LayerSample], matches: Sequence[Match], gain: Array
) -> list[Match]:
    """Return further matches: branches that run side by side may have another order in the other model."""
    rest = gain.copy()
    rest[[m.first for m in matches]] = 0
    rest[:, [m.second for m in matches]] = 0
    pairs = ((i, int(rest[i].argmax())) for i in range(len(first)) if rest.size)
    return [match(first, second, i, j) for i, j in pairs if rest[i, j] > CERTAIN and rest[:, j].argmax() == i]


def _below_zero(values: Array) -> float:
    """Return the share of negative values, weighted by their magnitudes: 0 behind a ReLU."""
    total = float(np.abs(values).sum())
    return float(-np.minimum(values, 0).sum()) / total if total > 0 else 0.0


def _gain(a: LayerSample, b: LayerSample, error: float, reduced: bool = False) -> float:
    """Return the gain of matching two layers of one shape: by their values first, then by their kinds and names.

    In a model of reduced precision (`reduced`), names tell less: they may be those of the layer before an absorbed one.
    """
    correlation = max(0.0, _correlation(a.values, b.values)) if error >= CLEAR else 1.0
    if error < CLEAR:
        values = 3.0 - np.log10(max(error, 1e-7)) / 7
    elif reduced:
        values = 3.0 * (1.0 - (1.0 - min(correlation, 1.0) ** 2) ** 0.5) + 0.05
    else:
        values = 1.5 * correlation + 0.05
    kinds = 0.2 * (_kind(a.layer) == _kind(b.layer))
    names = (0.5 if error < CLEAR else 1.0) * (a.layer.name == b.layer.name) + 0.2 * (
        _last(a.layer.name) == _last(b.layer.name)
    )
    return float(values + (kinds + names) * (0.25 if reduced else 1.0))


def _kind(layer: Layer) -> str:
    kind = layer.kind.lower().replace("2d", "").replace("ing", "")
    for part in ("conv", "batchnorm", "relu", "maxpool", "averagepool", "dense", "linear", "gemm", "add", "norm"):
        if part in kind:
            return {"linear": "dense", "gemm": "dense"}.get(part, part)
    return kind


def _last(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _correlation(a: Array, b: Array) -> float:
    x, y = (np.ravel(v).astype(np.float64) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y / norm) if norm > 0 else 0.0


def match(first: Sequence[LayerSample], second: Sequence[LayerSample], i: int, j: int) -> Match:
    """Return two layers as a match, with the order of channels where another order explains the difference."""
    a, b = first[i], second[j]
    difference = error(a.values, b.values)
    if difference > CLEAR:
        order = permutation(a.values, b.values)
        if order is not None:
            return Match(i, j, error(a.values, b.values[:, order]), tuple(int(k) for k in order))
    return Match(i, j, difference)


def permutation(a: Array, b: Array) -> Array | None:
    """Return the order with b[:, order] = a, for channels [N, C, positions]; None where there is none or it is trivial."""
    count = a.shape[1]
    if count < 2 or a.shape != b.shape:
        return None
    x, y = (np.moveaxis(v, 1, 0).reshape(count, -1).astype(np.float64) for v in (a, b))
    scale = max(float(np.abs(x).max()), 1e-12)
    if x.shape[1] < 8:  # a vector has too few values for distances: match by rank
        order = np.argsort(y[:, 0], kind="stable")[np.argsort(np.argsort(x[:, 0], kind="stable"), kind="stable")]
    else:
        order = ((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * x @ y.T).argmin(axis=1)
    if len(set(order.tolist())) < count or (order == np.arange(count)).all():
        return None
    return np.asarray(order) if float(np.abs(x - y[order]).max()) < 1e-3 * scale else None
