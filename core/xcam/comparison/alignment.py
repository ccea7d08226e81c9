"""Aligning the layers of two models by their values on the same images.

To save memory, only a sample of each layer is kept: the values of all channels at some positions.
Layers of one model that have one value, such as a block and its last ReLU, count once. Values correspond when they have
the same shape and are similar, in the same order of execution; names and kinds decide only where values do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from xcam.comparison import matching
from xcam.contract import Array, Layer, Model, validation

POSITIONS = 196
"""The number of positions in a layer's sample …"""
FEWEST = 16
"""… and the smallest, for models with very many layers."""
KEPT = 768_000_000
"""Bytes of samples that are kept of a model."""
BUDGET = 512_000_000
"""Bytes of activations that one forward pass may return."""
SAME = 1e-3
"""Layers whose error is below this have the same values."""
ROUNDING = 1e-4
"""Layers of one model whose distance from a layer of the other is below this have its value."""
CLEAR = 0.05
"""Below this error, layers out of order correspond."""
CERTAIN = 0.3
"""Below this unexplained part, where a precision is reduced: a correlation of 0.95 or more."""
REORDERED = 0.4
"""The part that counts as unexplained of values that are the same in another order."""
BLOCK = 256
"""The number of values that are compared at once: this limits the memory."""
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


@dataclass(frozen=True)
class Match:
    """A value of both models, by the indices of its layers among the samples."""

    first: int
    second: int
    error: float
    order: tuple[int, ...] | None = None
    """The indices of the first layer's channels in the second, where the order differs."""
    firsts: tuple[int, ...] = ()
    """All layers of the first model that have the value: `first` and those right behind it, then others."""
    seconds: tuple[int, ...] = ()
    """All layers of the second model that have the value."""


def samples(
    model: Model, x: Array, positions: int = POSITIONS, inner: Collection[str] = frozenset()
) -> list[LayerSample]:
    """Return a sample of every layer before the outputs, and of values inside layers that have one of the names `inner`.

    They come from one forward pass, or several to bound the memory.
    """
    layers = [
        layer
        for layer in validation.layers(model)
        if not layer.folds_batch
        and not layer.is_output
        and (not layer.inner or {layer.name, *layer.aliases} & {*inner})
    ]
    return sampled(model, x, layers, positions)


def sampled(model: Model, x: Array, layers: Sequence[Layer], positions: int = POSITIONS) -> list[LayerSample]:
    """Return samples of some layers."""
    results: list[LayerSample] = []
    group: list[Layer] = []
    size = 0
    for layer in [*layers, None]:
        bytes_ = 4 * len(x) * int(np.prod([n or 1 for n in layer.shape])) if layer else BUDGET
        if group and size + bytes_ > BUDGET:
            values = validation.activations(model, x, [each.name for each in group])
            results += [sample(each, values[each.name], positions) for each in group]
            group, size = [], 0
        if layer is not None:
            group.append(layer)
            size += bytes_
    return results


def inner_integers(models: Sequence[Model]) -> frozenset[str]:
    """Return the names of values that one model stores as integers, and another has inside a layer: a Concat, for example.

    A mistake of the range of such a value does not show as one at the next layer.
    """
    layers = [validation.layers(model) for model in models]
    listed = [{n for layer in each if not layer.inner for n in (layer.name, *layer.aliases)} for each in layers]
    stored = [{layer.name, *layer.aliases} for each in layers for layer in each if "int" in layer.dtype]
    return frozenset(n for group in stored if any(not group & each for each in listed) for n in group)


def positions(models: Sequence[Model], count: int) -> int:
    """Return the number of positions in the samples of several models on `count` images: fewer where layers are many."""
    channels = max(sum(layer.shape[0] or 1 for layer in _known(model) if layer.shape) for model in models)
    return min(POSITIONS, max(FEWEST, KEPT // (4 * max(1, count * channels))))


def output_sample(model: Model, logits: Array) -> LayerSample | None:
    """Return the sample of the last output, as its logits [N, …]: some output layers contain a softmax, others do not."""
    outputs = [layer for layer in _known(model) if layer.is_output]
    return sample(outputs[-1], logits) if outputs and logits.ndim > 1 else None


def _known(model: Model) -> list[Layer]:
    return [layer for layer in validation.layers(model) if not layer.inner and not layer.folds_batch]


def sample(layer: Layer, values: Array, positions: int = POSITIONS) -> LayerSample:
    """Return a layer's values at evenly spaced positions; only these are copied."""
    shape = values.shape[1:]
    values = values.reshape(*values.shape, *[1] * (3 - values.ndim))  # a vector has one position
    space = values.shape[2:]
    count = int(np.prod(space))
    indices = np.unique(np.linspace(0, count - 1, min(count, positions)).astype(int))
    where: tuple[Any, ...] = np.unravel_index(indices, space)
    return LayerSample(layer, np.ascontiguousarray(values[(..., *where)]), shape)


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


def names(samples: Sequence[LayerSample], indices: Sequence[int]) -> tuple[str, ...]:
    """Return all names of one value: first the innermost part that computes it, then all others in execution order."""
    layers = [samples[i].layer for i in indices]
    ordered = list(dict.fromkeys(name for layer in layers for name in (layer.name, *layer.aliases)))
    inner = next(n for n in ordered if not any(other.startswith((f"{n}.", f"{n}/")) for other in ordered))
    return (inner, *(name for name in ordered if name != inner))


def align(
    first: Sequence[LayerSample], second: Sequence[LayerSample], reduced: Literal[0, 1] | None = None
) -> list[Match]:
    """Return the values that both models have, in the first model's order of execution.

    Args:
        first: The samples of a model.
        second: The samples of another.
        reduced: Which of them has a reduced precision, if any: its errors add up, and a quantisation may absorb an
            activation, so that a name is that of the value before it in one model, and of the value behind it in the other.
    """
    listed = [[i for i, sample in enumerate(samples) if not sample.layer.inner] for samples in (first, second)]
    with np.errstate(over="ignore", invalid="ignore"):  # values may be infinite
        matches = _Alignment([first[i] for i in listed[0]], [second[j] for j in listed[1]], reduced).matches()
        matches = [
            replace(
                m,
                first=listed[0][m.first],
                second=listed[1][m.second],
                firsts=tuple(listed[0][i] for i in m.firsts),
                seconds=tuple(listed[1][j] for j in m.seconds),
            )
            for m in matches
        ]
        return sorted([*matches, *_inner_matches(first, second, matches)], key=lambda m: m.first)


def _inner_matches(
    first: Sequence[LayerSample], second: Sequence[LayerSample], matches: Sequence[Match]
) -> Iterator[Match]:
    """Yield the values inside layers of either model that have the same name in the other, between the same matches."""
    taken = {j for m in matches for j in (m.second, *m.seconds)}
    number = {n: j for j, b in enumerate(second) if j not in taken for n in (b.layer.name, *b.layer.aliases)}
    taken = {i for m in matches for i in (m.first, *m.firsts)}
    for i, a in enumerate(first):
        j = next((number[n] for n in (a.layer.name, *a.layer.aliases) if n in number), None)
        if i in taken or j is None or not (a.layer.inner or second[j].layer.inner) or a.shape != second[j].shape:
            continue
        if all((m.first < i) == (m.second < j) for m in matches):
            yield replace(match(first, second, i, j), firsts=(i,), seconds=(j,))


def _kind(layer: Layer) -> str:
    kind = layer.kind.lower().replace("2d", "").replace("ing", "")
    for part in ("conv", "batchnorm", "relu", "maxpool", "averagepool", "dense", "linear", "gemm", "add", "norm"):
        if part in kind:
            return {"linear": "dense", "gemm": "dense"}.get(part, part)
    return kind


def _name(layer: Layer) -> str:
    return layer.name


def _last(layer: Layer) -> str:
    return layer.name.replace("/", ".").rpartition(".")[2]


UNLIKE = 0.5
"""Above this unexplained share of the variance, a sum does not correspond to a normalisation that was folded away."""
LABELS: tuple[tuple[float, Callable[[Layer], str]], ...] = ((0.5, _name), (0.1, _last), (0.1, _kind))
"""The labels that layers can have in common, with their weights."""


@dataclass(frozen=True)
class _Value:
    """Layers that have one value, and run one after the other."""

    samples: Sequence[LayerSample]
    indices: tuple[int, ...]
    fingerprint: Array
    moments: Array
    labelled: tuple[int, ...]
    """The layers by whose labels it is matched."""

    @property
    def sample(self) -> LayerSample:
        return self.samples[self.indices[0]]

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Values are compared with those of the same key."""
        return self.sample.shape, self.sample.values.shape

    def is_same(self, other: _Value) -> bool:
        return np.array_equal(self.fingerprint, other.fingerprint) and _is_same(self.sample, other.sample)

    def is_folded(self) -> bool:
        """Return whether it is matched by the labels of another layer."""
        return len(self.labelled) > len(self.indices)

    def is_sum(self) -> bool:
        return self.labels(_kind) == {"add"}

    def labels(self, label: Callable[[Layer], str]) -> set[str]:
        return {label(self.samples[i].layer) for i in self.labelled}


def _with_folded(values: Sequence[_Value], others: Sequence[_Value]) -> list[_Value]:
    """Return values among which a batch normalisation has the labels of the convolution ahead of it, which has none.

    Only where the other model has no batch normalisation, and no product that may be a part of one: there it is folded
    into the convolution.
    """
    results = list(values)
    if any(other.labels(_kind) & {"batchnorm", "mul"} for other in others):
        return results
    for k, (before, value) in enumerate(itertools.pairwise(values), 1):
        is_norm = "batchnorm" in value.labels(_kind) and before.labels(_kind) & {"conv", "dense"}
        if is_norm and before.key == value.key:
            results[k] = replace(value, labelled=(*before.indices, *value.indices))
            results[k - 1] = replace(before, labelled=())
    return results


def _values(samples: Sequence[LayerSample]) -> list[_Value]:
    """Return the distinct consecutive values; constant maps, such as zeros of dead units, count each for itself."""
    groups: list[list[int]] = []
    for k, each in enumerate(samples):
        if groups and _is_same(samples[groups[-1][0]], each) and not is_constant(each.values):
            groups[-1].append(k)
        else:
            groups.append([k])
    values = [samples[group[0]].values for group in groups]
    return [
        _Value(samples, tuple(group), matching.fingerprint(value), matching.moments(value), tuple(group))
        for group, value in zip(groups, values, strict=True)
    ]


def _is_same(a: LayerSample, b: LayerSample) -> bool:
    return a.shape == b.shape and np.array_equal(a.values, b.values)


def is_constant(values: Array) -> bool:
    """Return whether all values are the same number: zero, behind dead units."""
    return bool(values.size == 0 or (values == values.flat[0]).all())


def nearest(value: LayerSample, others: Sequence[LayerSample]) -> Layer | None:
    """Return the layer whose value is that of another layer, or nearly; None where none is."""
    fits = [other for other in others if other.shape == value.shape and other.values.shape == value.values.shape]
    if not fits:
        return None
    near, _ = matching.distances(
        [matching.fingerprint(value.values)], [matching.fingerprint(other.values) for other in fits]
    )
    index = int(near[0].argmin())
    return fits[index].layer if near[0, index] < CLEAR else None


class _Alignment:
    """The values of two models, and the distances of those of one shape."""

    def __init__(
        self, first: Sequence[LayerSample], second: Sequence[LayerSample], reduced: Literal[0, 1] | None
    ) -> None:
        self.samples = first, second
        values = _values(first), _values(second)
        self.values = _with_folded(*values), _with_folded(*values[::-1])
        self.alike = _by(_bytes, self.values[0]), _by(_bytes, self.values[1])
        self.reduced = reduced
        n, m = map(len, self.values)
        self.gain = np.zeros((n, m), np.float32)
        self.near = np.full((n, m), np.inf, np.float32)
        self.unexplained = np.ones((n, m), np.float32)
        rows, columns = (_by(lambda value: value.key, values) for values in self.values)
        for key in rows.keys() & columns.keys():
            for start in range(0, len(rows[key]), BLOCK):
                self._compare(rows[key][start : start + BLOCK], columns[key])

    def _compare(self, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Compare all values of one shape."""
        a, b = [self.values[0][i] for i in rows], [self.values[1][j] for j in columns]
        near, unexplained = matching.distances([v.fingerprint for v in a], [v.fingerprint for v in b])
        likeness = np.zeros_like(near)
        for weight, label in LABELS:
            likeness += weight * matching.shared([v.labels(label) for v in a], [v.labels(label) for v in b])
        moments = [np.stack([v.moments for v in values]) for values in (a, b)]
        is_reordered = matching.same_moments(moments[0], moments[1]) & (near > CLEAR)
        unexplained = np.where(is_reordered, np.minimum(unexplained, REORDERED), unexplained)
        # Values that are alike leave less to names: these may be those of the layer before one that was folded away.
        gain = 3 * (1 - unexplained) - 0.5 * np.log10(np.clip(near, matching.TINY, 1))
        gain += 0.05 + likeness * (0.2 + 0.8 * unexplained)
        folded, sums = (
            [np.array([test(v) for v in values]) for values in (a, b)] for test in (_Value.is_folded, _Value.is_sum)
        )
        unlike = (folded[0][:, None] & sums[1]) | (sums[0][:, None] & folded[1])
        gain[unlike & (unexplained > UNLIKE) & (near > CLEAR)] = 0
        if self.reduced is not None:
            below = [np.array([_below_zero(v.sample.values) for v in values]) for values in (a, b)]
            reference, quantized = (below[0][:, None], below[1]) if self.reduced else (below[1], below[0][:, None])
            gain[(reference > ABSORBED) & (quantized == 0)] = 0
        grid = np.ix_(rows, columns)
        self.near[grid], self.unexplained[grid], self.gain[grid] = near, unexplained, gain

    def matches(self) -> list[Match]:
        """Return the pairs in order and out of order, each with the other values of its model that are the same."""
        pairs = self._without_elsewhere(matching.in_order(self.gain))
        pairs += self._out_of_order(pairs)
        partners = dict(pairs), {j: i for i, j in pairs}
        members = {(i, j): (list(self.values[0][i].indices), list(self.values[1][j].indices)) for i, j in pairs}
        groups = list(members.values())
        for side in (0, 1):
            for k, value in enumerate(self.values[side]):
                if k in partners[side]:
                    continue
                twin = self._twin(side, k, partners)
                if twin is not None:
                    other = partners[side][twin]
                    members[(twin, other) if side == 0 else (other, twin)][side].extend(value.indices)
                elif self.reduced is None and k - 1 in partners[side]:  # else it is ahead of an absorbed activation
                    other = partners[side][k - 1]
                    split = self._split(
                        side, value, members[(k - 1, other) if side == 0 else (other, k - 1)][1 - side]
                    )
                    groups += (
                        [(list(value.indices), split) if side == 0 else (split, list(value.indices))] if split else []
                    )
        return sorted((self._match(*group) for group in groups), key=lambda match: match.first)

    def _without_elsewhere(self, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Leave out pairs that differ where one of their values exists elsewhere, without a partner there."""
        exact = [pair for pair in pairs if self.near[pair] < SAME]
        rest = self.near.copy()
        rest[[i for i, _ in exact]] = np.inf
        columns = rest.min(axis=0, initial=np.inf)
        rest[:] = self.near
        rest[:, [j for _, j in exact]] = np.inf
        rows = rest.min(axis=1, initial=np.inf)
        return [(i, j) for i, j in pairs if not min(rows[i], columns[j]) < SAME < self.near[i, j]]

    def _out_of_order(self, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return further pairs: branches that run side by side may have another order in the other model."""
        rest = self.gain.copy()
        rest[self.near > CLEAR if self.reduced is None else self.unexplained > CERTAIN] = 0
        rest[[i for i, _ in pairs]] = 0
        rest[:, [j for _, j in pairs]] = 0
        best = rest.argmax(axis=1) if rest.size else np.zeros(0, int)
        return [(i, int(j)) for i, j in enumerate(best) if rest[i, j] > 0 and rest[:, j].argmax() == i]

    def _twin(self, side: int, k: int, partners: tuple[dict[int, int], dict[int, int]]) -> int | None:
        """Return the nearest value of the same model, among those with a partner, that is the same; None where none is."""
        values = self.values[side]
        value = values[k]
        if is_constant(value.sample.values):  # only those of the same run of constant values
            before, after = range(k - 1, -1, -1), range(k + 1, len(values))
            run = (itertools.takewhile(lambda i: values[i].is_same(value), indices) for indices in (before, after))
            same = [i for i in itertools.chain(*run) if i in partners[side]]
        else:
            same = [i for i in self.alike[side][_bytes(value)] if i in partners[side] and values[i].is_same(value)]
            if not same:  # a value of the other model is the same except for rounding
                near = self.near[k] if side == 0 else self.near[:, k]
                same = [
                    partners[1 - side][int(j)]
                    for j in np.flatnonzero(near < ROUNDING)
                    if int(j) in partners[1 - side]
                ]
        return min(same, key=lambda i: abs(i - k), default=None)

    def _split(self, side: int, value: _Value, names: list[int]) -> list[int]:
        """Take from names of one value the first, and all behind it, that are the counterpart of another value.

        In inference Dropout has the value ahead of it; in a model that was left in training mode it has another one.
        """
        samples = self.samples[1 - side]
        for k, index in enumerate(names[1:], 1):
            layer = samples[index].layer
            is_other = samples[index].shape == value.sample.shape and _kind(layer) != _kind(samples[names[0]].layer)
            if is_other and _kind(layer) in value.labels(_kind):
                split, names[k:] = names[k:], []
                return split
        return []

    def _match(self, firsts: Sequence[int], seconds: Sequence[int]) -> Match:
        return replace(match(*self.samples, firsts[0], seconds[0]), firsts=tuple(firsts), seconds=tuple(seconds))


def _by(key: Callable[[_Value], Any], values: Sequence[_Value]) -> dict[Any, list[int]]:
    """Return the indices of the values with each key."""
    result: dict[Any, list[int]] = {}
    for k, value in enumerate(values):
        result.setdefault(key(value), []).append(k)
    return result


def _bytes(value: _Value) -> bytes:
    return (value.fingerprint + 0.0).tobytes()  # −0 is 0


def _below_zero(values: Array) -> float:
    """Return the share of negative values, weighted by their magnitudes: 0 behind a ReLU."""
    total = float(np.abs(values).sum())
    return float(-np.minimum(values, 0).sum()) / total if total > 0 else 0.0


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
    peaks = [np.sort(np.maximum(v.max(axis=(0, 2)), -v.min(axis=(0, 2)))) for v in (a, b)]
    if np.abs(peaks[0] - peaks[1]).max() > 1e-3 * peaks[0][-1]:  # fast: no order makes these equal
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
