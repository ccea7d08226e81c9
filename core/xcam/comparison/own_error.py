"""The own error of each layer of a model of reduced precision: each stretch of it is computed from the other model's values.

A model of reduced precision differs a little at every layer, and the differences add up. Computed from the exact values at the layers
ahead of it, a layer has its own error only. That is compared with the error that its precision explains: the rounding of
values to steps of their range (variance step² / 12), and of weights to steps of each channel's range.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xcam.comparison import alignment
from xcam.comparison.rerun_checks import ComparedModel
from xcam.contract import Array, validation
from xcam.contract.abilities import RunsStretches, supports
from xcam.contract.quantization import Quantization, Stretch, levels

ABOVE = 3.0
"""A layer stands out where its own error is this many times as large as its precision explains …"""
ABOVE_OTHERS = 3.0
"""… and the ratio of the two is this many times as large as at most layers."""
EVEN = 5.0
"""Up to this ratio at most layers, precision explains the differences of two models."""
UNUSED = 0.6
"""A range of which at most this share is used is too wide, where most layers use twice as much of theirs."""
PER_TENSOR = 4.0
"""Weights with one scale stand out where their error is this many times that of a scale of each channel, and most have the latter."""
EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}
"""The largest relative error of rounding to a type."""
ROUNDED = 4
"""Roundings to float of a typical layer: weights, products, sums, the value."""


@dataclass(frozen=True)
class Pair:
    """A layer of the reference, and the layer of the model of reduced precision that corresponds to it."""

    reference: str
    reduced: str


@dataclass(frozen=True)
class OwnError:
    """The error that a layer adds, in the units of its values."""

    added: float
    """Root of the mean square difference from the reference."""
    expected: float
    """The same, as the precision explains it."""
    largest: float
    """The largest magnitude of the reference."""
    is_reduced: bool
    """Whether values or weights of the stretch have a reduced precision."""
    reach: float | None = None
    """How far the reference reaches, relative to the range of the quantisation: 1 where it fits. None: not quantised."""
    per_tensor: float | None = None
    """The error of the weights, relative to that with a scale of each channel. None: not quantised."""

    @property
    def ratio(self) -> float:
        """The own error, relative to the expected one."""
        return self.added / self.expected if self.expected > 0 else float(self.added > 0) * np.inf


def precision(model: object) -> str | None:
    """Return the type to which a model is reduced, where its layers can be computed from given values; else None."""
    return model.precision if supports(model, RunsStretches) else None


def own_errors(reference: ComparedModel, reduced: ComparedModel, pairs: Sequence[Pair]) -> list[OwnError]:
    """Return the own error at each pair."""
    types = {layer.name: layer.dtype for layer in validation.layers(reduced.model)}
    kind = precision(reduced.model) or "float32"
    return [
        measured(values, stretch, types.get(pair.reduced, "float32"), kind)
        for pair, values, stretch in stretches(reference, reduced, pairs, pairs)
    ]


def stretches(
    reference: ComparedModel, reduced: ComparedModel, pairs: Sequence[Pair], chosen: Sequence[Pair]
) -> Iterator[tuple[Pair, Array, Stretch]]:
    """Yield some pairs, the reference's value there, and the other model's stretch from the reference's values.

    Args:
        reference: The model whose values are given.
        reduced: The model that is run.
        pairs: All corresponding layers.
        chosen: The pairs to compute.
    """
    model = reduced.model
    assert supports(model, RunsStretches)
    partner = {pair.reduced: pair.reference for pair in pairs}
    for group in _groups(reference, chosen):
        names = [pair.reduced for pair in group]
        sources = list(model.stretch_sources(names, list(partner)))
        values = validation.activations(
            reference.model, reference.x, list(dict.fromkeys(partner[name] for name in (*sources, *names)))
        )
        results = model.stretches(reduced.x, {name: values[partner[name]] for name in sources}, names)
        for pair in group:
            yield pair, values[pair.reference], results[pair.reduced]


def _groups(reference: ComparedModel, pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Yield the pairs in groups of bounded memory."""
    shapes = {layer.name: layer.shape for layer in validation.layers(reference.model)}
    group: list[Pair] = []
    size = 0
    for pair in pairs:
        # A value of the reference, and two of the stretch; the sources have about the same size again.
        bytes_ = 4 * 4 * len(reference.x) * int(np.prod([n or 1 for n in shapes.get(pair.reference, ())]))
        if group and size + bytes_ > alignment.BUDGET:
            yield group
            group, size = [], 0
        group.append(pair)
        size += bytes_
    if group:
        yield group


def measured(reference: Array, stretch: Stretch, dtype: str = "float32", kind: str = "float32") -> OwnError:
    """Return the own error of a layer.

    Args:
        reference: The reference's value [N, C, *spatial].
        stretch: The layer, computed from the reference's values.
        dtype: The type in which the layer is stored.
        kind: The precision of most of the model: that of weights, where the layer itself is stored in full.
    """
    added = _rms(stretch.value - reference)
    variance = 0.0 if stretch.noise is None else stretch.noise
    quantization = stretch.quantization
    if quantization is not None:
        variance += honest_step(reference, quantization) ** 2 / 12
    least, most = ends(reference)
    variance *= float(((reference != least) & (reference != most)).mean())  # clipped values have no error
    integers = quantization is not None or bool(stretch.weights)
    epsilon = EPSILON.get(dtype if dtype in EPSILON and dtype != "float32" else kind, EPSILON["float32"])
    if integers:
        epsilon = EPSILON["float32"]
    variance += ROUNDED * (epsilon * _rms(reference)) ** 2
    return OwnError(
        added,
        float(np.sqrt(variance)),
        float(np.abs(reference).max(initial=0)),
        integers or epsilon > EPSILON["float32"],
        None if quantization is None else reach(reference, quantization),
        max(
            (
                _per_tensor(weights.scale, weights.largest, weights.dtype)
                for weights in stretch.weights
                if not weights.is_bias
            ),
            default=None,
        ),
    )


def ends(reference: Array) -> tuple[float, float]:
    """Return the values to which an activation clips (ReLU, ReLU6): many values are equal to them; else −∞ and ∞."""
    low, high = float(reference.min(initial=0)), float(reference.max(initial=0))
    least = low if (reference == low).mean() > 0.01 else -np.inf
    most = high if (reference == high).mean() > 0.001 and low < high else np.inf
    return least, most


def honest_step(reference: Array, quantization: Quantization) -> float:
    """Return the step of a range that just contains zero and the values (root of the mean square, for several ranges)."""
    low, high = _extremes(reference, quantization)
    lowest, highest = levels(quantization.dtype)
    return _rms((high - low) / (highest - lowest))


def _extremes(reference: Array, quantization: Quantization) -> tuple[Array, Array]:
    """Return the smallest and largest value, zero included: [] for one range, [C] for one of each channel."""
    axes = None if np.size(quantization.scale) == 1 else (0, *range(2, reference.ndim))
    return reference.min(axes, initial=0), reference.max(axes, initial=0)


def reach(reference: Array, quantization: Quantization) -> float:
    """Return how far values reach, relative to the range of a quantisation: 2 where it is too narrow by half."""
    low, high = _extremes(reference, quantization)
    sides = []
    for extreme, bound in ((low, np.minimum(quantization.low, 0)), (high, np.maximum(quantization.high, 0))):
        outside = np.where(extreme == 0, 0.0, np.inf)
        sides.append(
            np.divide(
                extreme,
                bound,
                out=np.broadcast_to(outside, np.broadcast(extreme, bound).shape).copy(),
                where=bound != 0,
            )
        )
    return float(np.median(np.maximum(*sides)))


def _per_tensor(scale: Array, largest: Array, dtype: str) -> float:
    """Return the error of weights, relative to that with a scale of each channel."""
    live = largest > 0
    if np.size(scale) not in (1, np.size(largest)) or not live.any():
        return 1.0  # blocks
    actual = np.broadcast_to(np.ravel(scale), largest.shape)[live]
    honest = largest[live] / levels(dtype.replace("uint", "int"))[1]
    return float(np.exp(np.mean(np.log(np.maximum(actual / honest, 1e-9)))))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if np.size(values) else 0.0


def typical(errors: Sequence[OwnError]) -> float:
    """Return the ratio of own and expected error at most layers of reduced precision; 0 where there is none."""
    return statistics.median([error.ratio for error in errors if error.is_reduced] or [0.0])


def tolerance(errors: Sequence[OwnError]) -> float:
    """Return the ratio of own and expected error above which a layer stands out."""
    return max(ABOVE, ABOVE_OTHERS * typical(errors))


def outlier(errors: Sequence[OwnError]) -> int | None:
    """Return the index of the layer that stands out most; None where none does."""
    above = tolerance(errors)
    scores = [error.ratio / above for error in errors]
    worst = max(range(len(errors)), key=scores.__getitem__, default=None)
    if worst is not None and scores[worst] > 1:
        return worst
    reaches = {k: error.reach for k, error in enumerate(errors) if error.reach}
    usual = statistics.median([min(value, 1.0) for value in reaches.values()] or [0.0])
    least = min(reaches, key=reaches.__getitem__, default=None)
    if least is not None and reaches[least] < min(UNUSED, UNUSED * usual):
        return least
    weights = {k: error.per_tensor for k, error in enumerate(errors) if error.per_tensor is not None}
    usual = statistics.median(list(weights.values()) or [0.0])
    most = max(weights, key=weights.__getitem__, default=None)
    return most if most is not None and usual < 1.5 and weights[most] > PER_TENSOR else None
