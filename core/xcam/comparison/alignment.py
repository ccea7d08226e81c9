"""Which layer of one model is which of another: found from what they compute on the same pictures.

Every layer is kept as a sketch, the values of all channels at some places, so that a large network takes little memory.
Layers correspond when they have the same shape and much the same values, in the same order of execution: the best such
matching is found by dynamic programming (Needleman and Wunsch 1970).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xcam.contract import Array, Layer, Model, validation

PLACES = 196
"""Positions of a layer that a sketch keeps."""
BUDGET = 512_000_000
"""Bytes of activations that are asked for at once."""
SAME = 1e-3
"""Layers within this error hold the same."""
CLEAR = 0.05
"""Errors below this speak for themselves; above it, names and kinds have a say."""


@dataclass(frozen=True)
class LayerSample:
    """A layer's values on the pictures: [N, C, places], channels first."""

    layer: Layer
    values: Array
    shape: tuple[int, ...]
    """(C, *space)."""

    @property
    def is_spread(self) -> bool:
        """It has more than one place."""
        return len(self.shape) > 1 and int(np.prod(self.shape[1:])) > 1


@dataclass(frozen=True)
class Match:
    """A pair of layers, by their places among the sketches."""

    first: int
    second: int
    error: float
    order: tuple[int, ...] | None = None
    """Where the second model keeps the first one's channels, when not in the same order."""


def sketches(model: Model, x: Array) -> list[LayerSample]:
    """Every layer ahead of the outputs, as many forward passes as the memory asks for (one, for most networks)."""
    layers = [layer for layer in _known(model) if not layer.is_output]
    found: list[LayerSample] = []
    group: list[Layer] = []
    size = 0
    for layer in [*layers, None]:
        bytes_ = 4 * len(x) * int(np.prod([n or 1 for n in layer.shape])) if layer else BUDGET
        if group and size + bytes_ > BUDGET:
            values = validation.activations(model, x, [each.name for each in group])
            found += [sketch(each, values[each.name]) for each in group]
            group, size = [], 0
        if layer is not None:
            group.append(layer)
            size += bytes_
    return found


def end(model: Model, logits: Array) -> LayerSample | None:
    """The last output, which counts as its logits [N, …]: one framework's output layer has a softmax inside, another's not."""
    ends = [layer for layer in _known(model) if layer.is_output]
    return sketch(ends[-1], logits) if ends and logits.ndim > 1 else None


def _known(model: Model) -> list[Layer]:
    return [layer for layer in validation.layers(model) if not layer.inner and not layer.folds_batch]


def sketch(layer: Layer, values: Array) -> LayerSample:
    """A layer's values at evenly spread places; no more than these is copied."""
    shape = values.shape[1:]
    values = values.reshape(*values.shape, *[1] * (3 - values.ndim))  # of a vector, one place
    space = values.shape[2:]
    count = int(np.prod(space))
    picked = np.unique(np.linspace(0, count - 1, min(count, PLACES)).astype(int))
    places: tuple[Any, ...] = np.unravel_index(picked, space)
    return LayerSample(layer, np.ascontiguousarray(values[(..., *places)]), shape)


def error(a: Array, b: Array) -> float:
    """The largest difference, relative to the largest magnitude of the first."""
    size = float(np.abs(a).max())
    apart = float(np.abs(a - b).max())
    return apart / size if size > 0 else float(apart > 0)


def handing_on(sketches: Sequence[LayerSample], place: int) -> list[LayerSample]:
    """A layer, and those right behind it that hold the same value: the parts inside it that hand it on."""
    value = sketches[place].values
    return list(itertools.takewhile(lambda s: np.array_equal(s.values, value), sketches[place:]))


def innermost(sketches: Sequence[LayerSample], place: int) -> str:
    """The name of the innermost of the parts that hand on this layer's value: `features.7` → `features.7.conv.3`."""
    layer, *others = (sketch.layer for sketch in handing_on(sketches, place))
    names = [*layer.aliases, *(other.name for other in others)]
    return max((n for n in names if n.startswith((f"{layer.name}.", f"{layer.name}/"))), key=len, default=layer.name)


def align(first: Sequence[LayerSample], second: Sequence[LayerSample]) -> list[Match]:
    """The best matching in order of execution."""
    n, m = len(first), len(second)
    gain = np.zeros((n, m))
    errors = np.full((n, m), np.inf)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            if a.shape == b.shape and a.values.shape == b.values.shape:
                errors[i, j] = error(a.values, b.values)
                gain[i, j] = _gain(a, b, errors[i, j])
    best = np.zeros((n + 1, m + 1))
    for i in range(n - 1, -1, -1):
        for j in range(m - 1, -1, -1):
            taken = best[i + 1, j + 1] + gain[i, j] if gain[i, j] > 0 else -1.0
            best[i, j] = max(taken, best[i + 1, j], best[i, j + 1])
    found = []
    i = j = 0
    while i < n and j < m:
        if gain[i, j] > 0 and np.isclose(best[i, j], best[i + 1, j + 1] + gain[i, j]):
            elsewhere = (
                min(errors[i].min(), errors[:, j].min()) < SAME < errors[i, j]
            )  # out of order, and no match here
            if not elsewhere:
                found.append(match(first, second, i, j))
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return found


def _gain(a: LayerSample, b: LayerSample, apart: float) -> float:
    """How much speaks for two layers of one shape being the same: their values first, then their kinds and names."""
    if apart < CLEAR:
        alike = 3.0 - np.log10(max(apart, 1e-7)) / 7
    else:
        alike = 1.5 * max(0.0, _correlation(a.values, b.values)) + 0.05
    kinds = 0.2 * (_kind(a.layer) == _kind(b.layer))
    names = (0.5 if apart < CLEAR else 1.0) * (a.layer.name == b.layer.name) + 0.2 * (
        _last(a.layer.name) == _last(b.layer.name)
    )
    return float(alike + kinds + names)


def _kind(layer: Layer) -> str:
    kind = layer.kind.lower().replace("2d", "").replace("ing", "")
    for word in ("conv", "batchnorm", "relu", "maxpool", "averagepool", "dense", "linear", "gemm", "add", "norm"):
        if word in kind:
            return {"linear": "dense", "gemm": "dense"}.get(word, word)
    return kind


def _last(name: str) -> str:
    return name.replace("/", ".").rpartition(".")[2]


def _correlation(a: Array, b: Array) -> float:
    x, y = (np.ravel(v).astype(np.float64) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y / norm) if norm > 0 else 0.0


def match(first: Sequence[LayerSample], second: Sequence[LayerSample], i: int, j: int) -> Match:
    """Two layers as a pair; with the order of channels, where another one than the given explains the difference."""
    a, b = first[i], second[j]
    apart = error(a.values, b.values)
    if apart > CLEAR:
        order = permutation(a.values, b.values)
        if order is not None:
            return Match(i, j, error(a.values, b.values[:, order]), tuple(int(k) for k in order))
    return Match(i, j, apart)


def permutation(a: Array, b: Array) -> Array | None:
    """The order in which b's channels [N, C, places] are a's, where there is one: b[:, order] = a. None where not."""
    count = a.shape[1]
    if count < 2 or a.shape != b.shape:
        return None
    x, y = (np.moveaxis(v, 1, 0).reshape(count, -1).astype(np.float64) for v in (a, b))
    scale = max(float(np.abs(x).max()), 1e-12)
    if x.shape[1] < 8:  # few values: a vector; ranks say what distances cannot
        order = np.argsort(y[:, 0], kind="stable")[np.argsort(np.argsort(x[:, 0], kind="stable"), kind="stable")]
    else:
        order = ((x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * x @ y.T).argmin(axis=1)
    if len(set(order.tolist())) < count or (order == np.arange(count)).all():
        return None
    return np.asarray(order) if float(np.abs(x - y[order]).max()) < 1e-3 * scale else None
