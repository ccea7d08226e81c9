"""The own error of each layer of a model of reduced precision: each stretch of it is computed from the other model's values.

A model of reduced precision differs a little at every layer, and the differences add up. Computed from the exact values at the layers
ahead of it, a layer has its own error only. That is compared with the error that its precision explains: the rounding of
values to steps of their range (variance step² / 12), and of weights to steps of each channel's range.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xcam.comparison import alignment, precision_checks
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.rerun_checks import ComparedModel
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
"""A range is too narrow where values reach this many times as far, relative to the range, as at most other layers."""
CLIPPED = 1.5
"""The ratio of own and expected error from which on such a range counts: where it clips few values, the error is small."""
WIDE = 0.55
"""A range is too wide where values reach less than this share of it, relative to most other layers."""
REACHED = 0.85
"""The calibration saw such images where values reach this share of almost every range."""
FAR = 3.0
"""A range is too narrow, too, where the error is this many times that of almost all other layers."""
UNNAMED = 2.0
"""An error without a certain cause is this many times larger, if it stands out."""
UNUSUAL = 0.4
"""The same on images that the calibration did not see, as values reach less far in most ranges."""
PER_TENSOR = 4.0
"""Weights with one scale stand out where their steps are this many times those of a scale of each channel …"""
SINGLE = 1.5
"""… and those of most other weights are not this many times as large."""
MOST = 0.6
"""The share of the ranges that fit where the images are those of the calibration."""
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
        added = _rms(stretch.value - reference)
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
    variance += ROUNDED * (epsilon * _rms(reference)) ** 2
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
    )


def honest_step(reference: Array, quantization: Quantization) -> float:
    """Return the step of a range that just contains zero and the values (root of the mean square, for several ranges)."""
    low, high = precision_checks.extremes(reference, quantization)
    lowest, highest = levels(quantization.dtype)
    return _rms((high - low) / (highest - lowest))


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


def suspicious(error: OwnError) -> bool:
    """Return whether a layer may stand out."""
    return (
        error.ratio > ABOVE
        or (error.reach is not None and error.reach > NARROW and error.ratio > CLIPPED)
        or (error.reach is not None and error.reach < WIDE)
        or (error.per_tensor is not None and error.per_tensor > PER_TENSOR)
        or (error.spare is not None and abs(error.spare[0] - error.spare[1]) > 2 * precision_checks.OFFSET)
    )


def typical(errors: Sequence[OwnError]) -> float:
    """Return the ratio of own and expected error at most layers of reduced precision; 0 where there is none."""
    return statistics.median([error.ratio for error in errors if error.is_reduced] or [0.0])


def tolerance(errors: Sequence[OwnError]) -> float:
    """Return the ratio of own and expected error above which a layer stands out."""
    return max(ABOVE, ABOVE_OTHERS * typical(errors))


def outlier(errors: Sequence[OwnError]) -> int | None:
    """Return the index of the layer that stands out most; None where none does.

    Where the calibration did not see such images, ranges are too narrow by different factors at all layers: there, the
    range of a layer stands out only if it is narrower than those of most others. Where it saw these images, most ranges fit
    exactly, and one that does not is a mistake even if its error is small.
    """
    above = tolerance(errors)
    reaches = {id(error): error.reach for error in errors if error.reach is not None}  # a value counts once
    ratios_of = {id(error): error.ratio for error in errors if error.is_reduced}
    tensors = {id(error): error.per_tensor for error in errors if error.per_tensor is not None}

    spares = [error.spare for error in errors if error.spare is not None]
    fit = sum(max(map(abs, each)) <= precision_checks.FITS for each in spares) > MOST * len(spares)
    seen = fit or (bool(reaches) and float(np.quantile(list(reaches.values()), 0.1)) > REACHED)

    def others(values: Mapping[int, float], error: OwnError, quantile: float) -> float:
        rest = [value for key, value in values.items() if key != id(error)]
        return float(np.quantile(rest, quantile)) if rest else 1.0

    def stands_out(error: OwnError) -> bool:
        code = error.cause.code if error.cause else ""
        reach = error.reach or 1.0
        if code == "narrow-range":
            is_narrowest = reach > NARROW and error.ratio > FAR * max(above, others(ratios_of, error, 0.95))
            usual = max(1.0, others(reaches, error, 0.95))
            return is_narrowest or (error.ratio > above * CLIPPED / ABOVE and reach > NARROW * usual)
        if code == "wide-range":
            usual = min(1.0, others(reaches, error, 0.1))
            return (seen and reach < WIDE * usual) or (error.ratio > above and (seen or reach < UNUSUAL * usual))
        if code == "wrong-zero-point" and fit and error.spare is not None:
            return error.ratio > above or abs(sum(error.spare)) <= precision_checks.FITS
        if code == "per-tensor-weights" and (error.per_tensor or 1) > PER_TENSOR:
            return others(tensors, error, 0.5) < SINGLE  # else one scale is the precision of the whole model
        if code in ("", "channel-scale"):  # rounding may look like that
            return error.ratio > UNNAMED * above
        return error.ratio > above

    ratios = {k: error.ratio for k, error in enumerate(errors) if stands_out(error)}
    # A wrong scale makes the biases of the next layer wrong too: the first of several large errors is the cause.
    return next((k for k, ratio in ratios.items() if ratio * SIMILAR >= max(ratios.values())), None)
