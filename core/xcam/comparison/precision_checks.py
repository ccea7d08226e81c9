"""The cause of a layer's own error in a model of reduced precision: pure functions of its values, with figures.

The error has two parts: that of the value before it is quantised, from the weights; and that of the quantisation. The larger one is
examined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xcam.comparison.diagnosis import Diagnosis
from xcam.contract import Array
from xcam.contract.quantization import Quantization, Stretch, levels

LEFT = 0.5
"""The share of the error that a cause may leave."""
CONSTANT = 0.2
"""The share of the error that varies within a channel, where a bias is wrong."""
FITS = 3.0
"""A range fits the values where not more than this number of levels is left over or missing."""
OFFSET = 5.0
"""The number of levels from which on the ends of a range are away from those of the values."""
UNUSED = 2**-0.5
"""A range is too wide where the values reach less than this share of it."""
FEW = 3
"""Up to this number of equal values is a coincidence, and not an activation."""
QUARTER = 0.25
"""A zero point that is off by more than this share of the levels is meant: the range is symmetric, for example."""
MOST = 0.5
"""The share of the error's energy that clipped values must have, where the range is too narrow."""
LARGEST = 65504.0
"""The largest float16."""
NORMAL = 2.0**-14
"""The smallest float16 of full precision; smaller ones lose digits, and vanish below 2⁻²⁵."""


def ends(reference: Array) -> tuple[float, float]:
    """Return the values to which an activation clips (ReLU, ReLU6): many values are equal to them; else −∞ and ∞."""
    low, high = float(reference.min(initial=0)), float(reference.max(initial=0))
    counts = int((reference == low).sum()), int((reference == high).sum())
    least = low if counts[0] > max(0.01 * reference.size, FEW) else -np.inf
    most = high if counts[1] > max(0.001 * reference.size, FEW) and low < high else np.inf
    return least, most


def extremes(reference: Array, quantization: Quantization) -> tuple[Array, Array]:
    """Return the smallest and largest value, zero included: [] for one range, [C] for one of each channel."""
    axes = None if np.size(quantization.scale) == 1 else (0, *range(2, reference.ndim))
    return reference.min(axes, initial=0), reference.max(axes, initial=0)


def reach(reference: Array, quantization: Quantization) -> float:
    """Return how far values reach, relative to the range of a quantisation: 2 where it is too narrow by half."""
    low, high = extremes(reference, quantization)
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


def spare(reference: Array, quantization: Quantization) -> tuple[float, float]:
    """Return how many levels of a range are left over below the smallest value, and above the largest; negative: clipped."""
    low, high = extremes(reference, quantization)
    below, above = (low - quantization.low) / quantization.scale, (quantization.high - high) / quantization.scale
    return float(np.median(below)), float(np.median(above))


def unused(reference: Array, quantization: Quantization) -> float | None:
    """Return how many levels of a range lie below 0, where an activation (ReLU) leaves no such values; None without one."""
    if ends(reference)[0] != 0 or np.size(quantization.scale) != 1:
        return None
    return max(float(-quantization.low / quantization.scale), 0.0)


def offset(evidence: Evidence) -> Diagnosis | None:
    """Check whether the ends of the range are some levels away from those of the values."""
    quantization = evidence.stretch.quantization
    assert quantization is not None
    lowest, highest = levels(quantization.dtype)
    free = unused(evidence.reference, quantization)
    if free is not None and OFFSET < free < QUARTER * (highest - lowest):
        return Diagnosis(
            "wrong-zero-point",
            f"its zero point is off by {free:.0f} levels: values are not negative, and {free:.0f} levels below 0 are not used",
        )
    below, above = spare(evidence.reference, quantization)
    if abs(below + above) > FITS or abs(below - above) < 2 * OFFSET:
        return None
    count = round(abs(below - above) / 2)
    return Diagnosis(
        "wrong-zero-point",
        f"its zero point is off by {count} levels: at one end of the range {count} levels are not used, and at the other values "
        f"are clipped by as many",
    )


@dataclass(frozen=True)
class Evidence:
    """A layer's value in both models."""

    reference: Array
    """[N, C, *spatial]"""
    stretch: Stretch
    """The layer, computed from the reference's values."""

    @property
    def unrounded(self) -> Array:
        """The value before it is quantised."""
        return self.stretch.value if self.stretch.unrounded is None else self.stretch.unrounded

    @cached_property
    def before(self) -> Array:
        """The value before it is quantised, behind an activation that the quantisation absorbed."""
        return np.clip(self.unrounded, *ends(self.reference))

    @property
    def step(self) -> Array:
        """The step of the quantisation, with the axes of the value."""
        assert self.stretch.quantization is not None
        return self.per_channel(self.stretch.quantization.scale)

    def per_channel(self, values: Array) -> Array:
        """Return [] or [C] with the axes of the value."""
        return np.reshape(values, (-1, *[1] * (self.reference.ndim - 2)))

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        """The range of the quantisation, with the axes of the value."""
        assert self.stretch.quantization is not None
        return self.per_channel(self.stretch.quantization.low), self.per_channel(self.stretch.quantization.high)


def energy(values: Array) -> float:
    """Return the sum of squares."""
    return float(np.sum(np.square(values, dtype=np.float64)))


def diagnose(reference: Array, stretch: Stretch, dtype: str) -> Diagnosis | None:
    """Return the cause of a layer's own error; None where no known one fits.

    Args:
        reference: The reference's value [N, C, *spatial].
        stretch: The layer, computed from the reference's values.
        dtype: The type in which the layer is stored.
    """
    if dtype in ("float16", "bfloat16"):
        return half(reference, stretch.value, dtype)
    evidence = Evidence(reference, stretch)
    if stretch.quantization is None:
        return weights(evidence) or one_scale(evidence)
    rounding = energy(stretch.value - evidence.before)
    if rounding < energy(evidence.before - reference) and stretch.weights:
        return weights(evidence) or one_scale(evidence) or wide(evidence) or offset(evidence)
    return moved(evidence) or offset(evidence) or narrow(evidence) or wide(evidence) or one_scale(evidence)


def half(reference: Array, value: Array, dtype: str) -> Diagnosis | None:
    """Check for values that are too large or too small for half precision."""
    over = ~np.isfinite(value) | (np.abs(value) >= LARGEST)
    if dtype == "float16" and over.any():
        return Diagnosis(
            "half-overflow",
            f"{_share(over)} of its values are too large for float16: they reach {np.abs(reference).max():.4g}, and the "
            f"largest float16 is {LARGEST:.0f}",
        )
    small = (reference != 0) & (np.abs(reference) < NORMAL)
    if dtype == "float16" and energy((value - reference)[small]) > MOST * energy(value - reference):
        lost = small & (value == 0)
        return Diagnosis(
            "half-underflow",
            f"{_share(small)} of its values are too small for float16, and {_share(lost)} became 0: numbers below "
            f"{NORMAL:.1e} lose digits",
        )
    return None


def moved(evidence: Evidence) -> Diagnosis | None:
    """Check whether the values behind the quantisation are those before it, with another scale or offset."""
    low, high = evidence.bounds
    before, value, step = evidence.before, evidence.stretch.value, evidence.step
    inside = (evidence.unrounded > low + step) & (evidence.unrounded < high - step)
    x, y = evidence.unrounded[inside].astype(np.float64), value[inside].astype(np.float64)
    typical_step = float(np.mean(step))
    negative = (evidence.reference == evidence.reference.min()) & (value < evidence.reference.min() - 1.5 * step)
    if (
        evidence.reference.min() == 0
        and negative.any()
        and energy((value - before)[negative]) > MOST * energy(value - before)
    ):
        levels_ = round(float(-value.min() / typical_step))
        return _shift(
            levels_, levels_ * typical_step, f"{_share(negative)} of the values, which a ReLU makes 0, are negative"
        )
    if len(x) < 16 or x.std() == 0:
        return None
    error = energy(y - x)
    shift = float(np.median(y - x))
    if abs(shift) > 1.5 * typical_step and energy(y - x - shift) < LEFT**2 * error:
        return _shift(round(shift / typical_step), shift, "all values are shifted")
    scale, offset = np.polyfit(x, y, 1)
    if abs(scale - 1) > 0.02 and energy(y - scale * x - offset) < LEFT**2 * error:
        return Diagnosis(
            "wrong-scale",
            f"its values are multiplied by {scale:.3g}: they are quantised with one scale, and restored with another",
        )
    return None


def _shift(count: int, size: float, fact: str) -> Diagnosis:
    return Diagnosis("wrong-zero-point", f"its zero point is off by {abs(count)} levels ({abs(size):.3g}): {fact}")


def narrow(evidence: Evidence) -> Diagnosis | None:
    """Check whether the range clips values."""
    low, high = evidence.bounds
    before, step = evidence.before, evidence.step
    clipped = (before > high + step) | (before < low - step)
    error = evidence.stretch.value - before
    if energy(error[clipped]) < MOST * energy(error):
        return None
    reaches = max(
        float((np.maximum(before, 0) / np.maximum(high, 1e-30)).max()) if (high > 0).any() else 0.0,
        float((np.minimum(before, 0) / np.minimum(low, -1e-30)).max()) if (low < 0).any() else 0.0,
    )
    return Diagnosis(
        "narrow-range",
        f"its range is too narrow for these images: {_share(clipped)} of the values are clipped, and they reach {reaches:.3g} times as far "
        f"as the range ({float(before.min()):.3g} to {float(before.max()):.3g} against {float(low.min()):.3g} to "
        f"{float(high.max()):.3g})",
    )


def wide(evidence: Evidence) -> Diagnosis | None:
    """Check whether the values use few levels of the range."""
    quantization = evidence.stretch.quantization
    assert quantization is not None
    rounding = evidence.reference.size * float(np.mean(np.square(evidence.step))) / 12
    explained = energy(evidence.stretch.value - evidence.before) < rounding / LEFT**2
    if not explained or reach(evidence.reference, quantization) > UNUSED:
        return None
    lowest, highest = levels(quantization.dtype)
    low, high = evidence.bounds
    integers = np.clip(np.round((evidence.before - low) / evidence.step), 0, highest - lowest)
    return Diagnosis(
        "wide-range",
        f"its range is too wide: {int(np.ptp(integers)) + 1} of {highest - lowest + 1} levels are used "
        f"({float(evidence.before.min()):.3g} to {float(evidence.before.max()):.3g} of {float(low.min()):.3g} to "
        f"{float(high.max()):.3g})",
    )


def weights(evidence: Evidence) -> Diagnosis | None:
    """Check the value before its quantisation: for a wrong scale of the weights, a coarse bias, one scale of many ranges."""
    before, reference = evidence.before, evidence.reference
    axes = (0, *range(2, before.ndim))
    low, high = reference.min(), reference.max()
    inside = (before != low) & (before != high) & (reference != low) & (reference != high)
    count = np.maximum(inside.sum(axes, keepdims=True), 1)

    def centred(values: Array) -> Array:
        return np.where(inside, values - (values * inside).sum(axes, keepdims=True) / count, 0)

    x, y = (centred(values.astype(np.float64)) for values in (reference, before))
    total = energy((before - reference)[inside])
    number = max(int(inside.sum()), 1)
    chance = 1 - np.count_nonzero(inside.any(axes)) / number  # the share that remains where constants fit nothing
    scale = float((x * y).sum() / max(energy(x), 1e-300))
    name = next((each.name for each in evidence.stretch.weights if not each.is_bias), "the weights")
    if abs(scale - 1) > 0.02 and energy(y - scale * x) < LEFT**2 * energy(y - x):
        return Diagnosis(
            "wrong-scale", f"the sum over its weights is multiplied by {scale:.3g}: the scale of {name} is wrong"
        )
    shift = ((before - reference) * inside).sum(axes) / count.reshape(-1)
    size = float(np.abs(shift).max())
    biases = [float(np.max(each.scale)) for each in evidence.stretch.weights if each.is_bias]
    if biases and size < max(biases) and energy(y - x) < LEFT**2 * chance * total:
        return Diagnosis(
            "coarse-bias",
            f"each channel is shifted by a constant, up to {size:.3g}: its bias is quantised in steps of {max(biases):.3g}",
        )
    if energy(y - x) < CONSTANT**2 * chance * total:
        return Diagnosis("channel-scale", f"each channel is shifted by a constant, up to {size:.3g}: its bias")
    return None


def one_scale(evidence: Evidence) -> Diagnosis | None:
    """Check for weights with one scale, whose channels have different ranges."""
    for each in evidence.stretch.weights:
        ranges = each.largest[each.largest > 0]
        if not each.per_tensor or each.is_bias or not len(ranges):
            continue
        factor = float(ranges.max() / np.median(ranges))
        if factor > 2:
            return Diagnosis(
                "per-tensor-weights",
                f"{each.name} has one scale for all channels, and their ranges differ by a factor of {factor:.3g} (largest "
                f"against median): with a scale of each channel the steps of most would be {factor:.3g} times smaller",
            )
    return None


def _share(mask: Array) -> str:
    share = float(np.mean(mask))
    return f"{share:.2%}" if share >= 1e-4 else f"{int(np.sum(mask))} of {np.size(mask)}"
