"""The own error of each layer of a model of reduced precision: each stretch of it is computed from the other model's values.

A model of reduced precision differs a little at every layer, and the differences add up. Computed from the exact values at the layers
ahead of it, a layer has its own error only. That is compared with the error that its precision explains: the rounding of
values to steps of their range (variance step² / 12), and of weights to steps of each channel's range.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xcam.comparison import alignment, precision_checks
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.similarity import rms
from xcam.comparison.stretch import ComparedModel
from xcam.contract import Array, validation
from xcam.contract.abilities import RunsStretches, supports
from xcam.contract.quantization import Quantization, Stretch, levels

ABOVE = 2.5
"""A layer stands out where its own error is this many times as large as its precision explains …"""
ABOVE_OTHERS = 2.5
"""… and the ratio of the two is this many times as large as at most layers."""
EVEN = 5.0
"""Up to this ratio at most layers, precision explains the differences of two models."""
NARROW = 1.7
"""A range is too narrow where values reach this many times as far, and the error is far larger than at other layers."""
FACTOR = 2**0.5
"""A range has another width than those of other layers where it differs by this factor: half of the way, on a scale of
octaves, to one that is halved or doubled …"""
SCATTER = 2.5
"""… and by this many times the distance from the median of the others to the one of twenty that is farthest: four standard
deviations."""
FAR = 3.0
"""A range is too narrow, too, where the error is this many times that of almost all other layers."""
UNNAMED = 2.0
"""An error without a certain cause is this many times larger, if it stands out."""
PER_TENSOR = 4.0
"""Weights with one scale stand out where their steps are this many times those of a scale of each channel …"""
SINGLE = 1.5
"""… and those of most other weights are not this many times as large."""
SIMILAR = 20
"""Layers whose errors differ by less than this factor may have one cause."""
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
    spare: tuple[float, float] | None = None
    """The levels of the range below the smallest value, and above the largest. None: not quantised."""
    per_tensor: float | None = None
    """The steps of the weights, relative to those of a scale of each channel. None: not quantised."""
    cause: Diagnosis | None = None
    """Its cause; only where the error is large, or the scale unusual."""
    unused: float | None = None
    """The levels of the range below 0, where an activation leaves no values. None: not quantised, or no such activation."""

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
    partner = {pair.reduced: pair for pair in pairs}  # several layers of the reference may have the same value
    results = {}
    for pair, values, stretch in stretches(reference, reduced, list(partner.values())):
        dtype = types.get(pair.reduced, "float32")
        error = measured(values, stretch, dtype, kind)
        if suspicious(error):
            with np.errstate(over="ignore", invalid="ignore"):
                error = replace(error, cause=precision_checks.diagnose(values, stretch, dtype))
        results[pair.reduced] = error
    return [results[pair.reduced] for pair in pairs]


def stretches(
    reference: ComparedModel, reduced: ComparedModel, pairs: Sequence[Pair]
) -> Iterator[tuple[Pair, Array, Stretch]]:
    """Yield each pair, the reference's value there, and the other model's stretch from the reference's values.

    Args:
        reference: The model whose values are given.
        reduced: The model that is run.
        pairs: The corresponding layers, each of the reduced model at most once.
    """
    model = reduced.model
    assert supports(model, RunsStretches)
    partner = {pair.reduced: pair.reference for pair in pairs}
    for group in _groups(reference, pairs):
        names = [pair.reduced for pair in group]
        sources = list(model.stretch_sources(names, list(partner)))
        needed = list(dict.fromkeys(partner[name] for name in (*sources, *names)))
        values = validation.activations(reference.model, reference.x, needed)
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
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float16 are infinite
        added = rms(stretch.value - reference)
    variance = 0.0 if stretch.noise is None else stretch.noise
    quantization = stretch.quantization
    if quantization is not None:
        variance += honest_step(reference, quantization) ** 2 / 12
    least, most = precision_checks.ends(reference)
    variance *= float(((reference != least) & (reference != most)).mean())  # clipped values have no error
    integers = quantization is not None or bool(stretch.weights)
    epsilon = EPSILON.get(dtype if dtype in EPSILON and dtype != "float32" else kind, EPSILON["float32"])
    if integers:
        epsilon = EPSILON["float32"]
    variance += ROUNDED * (epsilon * rms(reference)) ** 2
    return OwnError(
        added,
        float(np.sqrt(variance)),
        float(np.abs(reference).max(initial=0)),
        integers or epsilon > EPSILON["float32"],
        None if quantization is None else precision_checks.reach(reference, quantization),
        None if quantization is None else precision_checks.spare(reference, quantization),
        max(
            (
                _per_tensor(weights.scale, weights.largest, weights.dtype)
                for weights in stretch.weights
                if not weights.is_bias
            ),
            default=None,
        ),
        unused=None if quantization is None else precision_checks.unused(reference, quantization),
    )


def honest_step(reference: Array, quantization: Quantization) -> float:
    """Return the step of a range that just contains zero and the values (root of the mean square, for several ranges)."""
    low, high = precision_checks.extremes(reference, quantization)
    lowest, highest = levels(quantization.dtype)
    return rms((high - low) / (highest - lowest))


def _per_tensor(scale: Array, largest: Array, dtype: str) -> float:
    """Return the error of weights, relative to that with a scale of each channel."""
    live = largest > 0
    if np.size(scale) not in (1, np.size(largest)) or not live.any():
        return 1.0  # blocks
    actual = np.broadcast_to(np.ravel(scale), largest.shape)[live]
    honest = largest[live] / levels(dtype.replace("uint", "int"))[1]
    return float(np.exp(np.mean(np.log(np.maximum(actual / honest, 1e-9)))))


def suspicious(error: OwnError) -> bool:
    """Return whether a layer may stand out."""
    reach = 1.0 if error.reach is None else error.reach
    return (
        error.ratio > ABOVE
        or (reach > FACTOR and error.ratio > FACTOR)
        or reach < 1 / FACTOR
        or (error.per_tensor is not None and error.per_tensor > PER_TENSOR)
        or abs(shift(error)) > precision_checks.OFFSET
        or (error.unused is not None and error.unused > precision_checks.OFFSET)
    )


def shift(error: OwnError) -> float:
    """Return by how many levels the range of a layer lies too low; 0 where it is not quantised."""
    return 0.0 if error.spare is None else (error.spare[0] - error.spare[1]) / 2


def typical(errors: Sequence[OwnError]) -> float:
    """Return the ratio of own and expected error at most layers of reduced precision; 0 where there is none."""
    return statistics.median([error.ratio for error in errors if error.is_reduced] or [0.0])


def tolerance(errors: Sequence[OwnError]) -> float:
    """Return the ratio of own and expected error above which a layer stands out."""
    return max(ABOVE, ABOVE_OTHERS * typical(errors))


def outlier(errors: Sequence[OwnError]) -> int | None:
    """Return the index of the layer that stands out most; None where none does.

    Where the calibration did not see such images, ranges are too narrow or too wide by different factors at all layers: there,
    the range of a layer stands out only if it differs from those of the others by more than these do. Where it saw these
    images, most ranges fit exactly, and one that does not is a mistake even if its error is small.
    """
    above = tolerance(errors)
    ratios_of = [error.ratio for error in errors if error.is_reduced]

    def stands_out(error: OwnError) -> bool:
        code = error.cause.code if error.cause else ""
        if code in ("narrow-range", "wide-range"):
            low, high = usual([each.reach for each in errors if each.reach not in (None, error.reach)])
            reach = 1.0 if error.reach is None else error.reach
            if code == "wide-range":
                return reach < low
            others = [ratio for ratio in ratios_of if ratio != error.ratio]
            is_narrowest = reach > NARROW and error.ratio > FAR * max(above, _quantile(others, 0.95))
            return is_narrowest or (reach > high and error.ratio > usual(others)[1])
        if code == "wrong-zero-point":
            return error.ratio > UNNAMED * above or is_shifted(error, errors)
        if code == "per-tensor-weights" and (error.per_tensor or 1) > PER_TENSOR:
            others = [each.per_tensor for each in errors if each.per_tensor is not None and each is not error]
            return _quantile(others, 0.5) < SINGLE  # else one scale is the precision of the whole model
        if code in ("", "channel-scale"):  # rounding may look like that
            return error.ratio > UNNAMED * above
        return error.ratio > above

    ratios = {k: error.ratio for k, error in enumerate(errors) if stands_out(error)}
    # A wrong scale makes the biases of the next layer wrong too: the first of several large errors is the cause.
    return next((k for k, ratio in ratios.items() if ratio * SIMILAR >= max(ratios.values())), None)


def usual(values: Sequence[float]) -> tuple[float, float]:
    """Return between which values a range is about as wide, or an error about as large, as others are."""
    low, middle, high = (_quantile(values, share) for share in (0.05, 0.5, 0.95))
    if low == 0:
        return 0.0, high * FACTOR
    scatter = max(middle / low, high / middle) ** SCATTER
    return min(low / FACTOR, middle / scatter), max(high * FACTOR, middle * scatter)


def is_shifted(error: OwnError, errors: Sequence[OwnError]) -> bool:
    """Return whether the range of a layer is shifted, and those of most others are not."""
    unused = [each.unused for each in errors if each.unused is not None and each is not error]
    if error.unused is not None and unused and _quantile(unused, 0.9) <= precision_checks.FITS:
        return error.unused > precision_checks.OFFSET
    others = [max(map(abs, each.spare)) for each in errors if each.spare is not None and each.spare != error.spare]
    is_as_wide = error.spare is not None and abs(sum(error.spare)) <= precision_checks.FITS
    return is_as_wide and abs(shift(error)) > max(precision_checks.OFFSET, SCATTER * _quantile(others, 0.9))


def _quantile(values: Sequence[float], share: float) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.quantile(finite, share)) if finite else 1.0
