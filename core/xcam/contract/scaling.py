"""The scaling that a model computes itself, from the values that its first layers give for plain colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from xcam.contract.layouts import full_size, without_channel_axis
from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.contract.types import Array, InputSpec
from xcam.errors import warn

GREY = 128.0
BGR = {preset: Preprocessing(f"{preset}, BGR", PRESETS[preset].scale, order="BGR") for preset in ("raw", "unit")}
"""The preprocessing of models that take blue first, as OpenCV reads images."""
RANGES = {
    "raw": "pixels in 0…255",
    "unit": "values in 0…1",
    "tf": "values in −1…1",
    "torch": "ImageNet's mean and std",
}
MEANS = np.divide(PRESETS["caffe"].mean, 255)
"""ImageNet's mean colour, in 0…1, blue first."""
TOLERANCE = 0.02
"""Relative to the span of values from black to white: 1/256 counts as 1/255."""
MOST = 0.95
"""The share of values that must agree: a resize or a padding changes those at the border."""
DISTINCT = 3
"""The number of scalings that a model applies to pixels in more than one channel, or in grey."""

Reach = Callable[[Array], Array | None]
"""A batch with one image → the value that reaches the model's first layer with a kernel; None: there is none."""


def computed(spec: InputSpec, reach: Reach) -> Preprocessing | None:
    """Return the preprocessing that a model's own scaling needs; None: it does not scale its input, or nobody knows.

    A model that maps 0…255 to numbers near zero takes `raw` pixels, one that does so with 0…1 takes `unit`. Models that
    convert −1…1, or the values of `torch`, to another preset take `tf` or `torch`.

    Args:
        spec: the model's input; its own preprocessing is not read.
        reach: runs the model up to its first layer with a kernel. Its errors pass.
    """
    if not spec.channels:
        return computed(replace(spec, channels=1), lambda x: reach(without_channel_axis(x, spec)))
    is_image = spec.rank in (None, 2) and spec.channels in (1, 3)
    if not is_image or not spec.dtype.startswith(("float", "bfloat")):
        return None
    white = reach(_plain(spec, [255.0] * spec.channels))
    if white is None or (np.isin(white, (0, 255)).all() and white.any()):  # unchanged, apart from padding
        return None
    values = [white]
    for colour in [[0.0], [GREY], *(np.eye(spec.channels) * 255 if spec.channels == 3 else [])]:
        value = reach(_plain(spec, np.broadcast_to(colour, spec.channels)))
        if value is None or value.shape != white.shape:
            return None
        values.append(value)
    high, low, grey, *pure = (value.astype(np.float64).ravel() for value in values)
    used = np.isfinite(high) & np.isfinite(low) & (high != low)
    if not used.any():
        return None
    high, low, grey = high[used], low[used], grey[used]
    is_linear = np.abs(grey - low - (high - low) * (GREY / 255)) <= TOLERANCE / 2 * np.abs(high - low)
    if is_linear.mean() < MOST:
        return None
    slope = (high - low) / 255
    colours = np.stack([value[used] - low for value in pure]) if pure else None
    return _needed(slope, low, colours) if _is_of_pixels(slope, low, colours) else None


def _is_of_pixels(slope: Array, offset: Array, pure: Array | None) -> bool:
    """Return whether values are scaled pixels, and not features of a kernel that was not seen as one.

    Each is of one channel; or they differ in no more than `DISTINCT` scalings, as those of a grey image do.
    """
    if pure is not None:
        shares = np.abs(pure)
        if (shares.max(0) >= (1 - TOLERANCE) * shares.sum(0)).mean() >= MOST:
            return True
    pairs = np.stack([slope, offset], 1)
    rounded = np.round(pairs / np.abs(pairs).max(0, initial=1e-12), 3)
    return len(np.unique(rounded, axis=0)) <= DISTINCT


def warn_of_two(name: str, chosen: Preprocessing | None, needed: Preprocessing | None) -> None:
    """Warn that images are scaled twice, where a model's own scaling needs another preprocessing than the chosen one."""
    if chosen is None or needed is None:
        return
    # The values show that blue is first by ImageNet's means alone, so that RGB may be a lack of knowledge.
    if (replace(chosen, order="RGB") if needed.order == "RGB" else chosen).same_as(needed):
        return
    takes = RANGES[needed.name.partition(",")[0]] + (", blue first" if needed.order == "BGR" else "")
    remedy = (
        f"use preprocess={needed.name!r} (--preprocess {needed.name})" if needed.name in PRESETS else "leave it out"
    )
    warn(f"{name} scales its input itself and takes {takes}, and {chosen.name!r} scales images before it; {remedy}")


def _plain(spec: InputSpec, colour: Array | list[float]) -> Array:
    """Return a batch with one image of one colour, as the model takes it."""
    size = full_size(spec.size)
    x = np.empty((1, *size, spec.channels), spec.dtype if spec.dtype != "bfloat16" else np.float32)
    x[...] = np.asarray(colour, x.dtype)
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if spec.layout == "channels_first" else x


def _needed(slope: Array, offset: Array, pure: Array | None) -> Preprocessing | None:
    """Return the preprocessing for which slope · x + offset gives usual inputs of a network.

    Args:
        slope: of each value with the brightness of the input, [n].
        offset: each value for an input of zeros, [n].
        pure: the change of each value from black to pure red, green and blue, [3, n], in the order of the input; None:
            the input is grey.
    """
    zero = -offset / slope
    """The input that gives zero."""

    def most(condition: Array) -> bool:
        return bool(condition.mean() >= MOST)

    if most((np.abs(slope - 1) < TOLERANCE / 2) & (np.abs(offset) < TOLERANCE / 2)):
        return None
    size = np.abs(slope)
    keeps = np.abs(size - 1) < TOLERANCE / 2
    if most(_within(size * 255, 0.3, 30) & _within(zero / 255, 0, 1)) or most(keeps & _within(zero / 255, 0.2, 0.8)):
        return _ordered("raw", zero / 255, pure)
    if (
        most(_within(size, 1.9, 30) & _within(zero, 0.1, 0.9))
        or most(_within(size, 100, 300) & _within(zero, 0, 0.9))
        or most(keeps & _within(zero, 0.2, 0.8))
    ):
        return _ordered("unit", zero, pure)
    channel = np.zeros(len(slope), int) if pure is None else np.abs(pure).argmax(0)
    for name in ("tf", "torch"):
        black, white = (_row(name, level)[channel] * slope + offset for level in (0.0, 255.0))
        for other in ("unit", "tf", "torch", "caffe", "raw"):
            expected = [_row(other, level)[channel] for level in (0.0, 255.0)]
            span = np.abs(expected[1] - expected[0])
            if most(np.maximum(np.abs(black - expected[0]), np.abs(white - expected[1])) < TOLERANCE * span):
                return PRESETS[name]
    return None


def _within(values: Array, low: float, high: float) -> Array:
    return (values >= low - TOLERANCE) & (values <= high + TOLERANCE)


def _row(name: str, level: float) -> Array:
    """Return the values of red, green and blue that a preset gives for a grey level."""
    values = PRESETS[name](np.full((1, 3), level))[0].astype(np.float64)
    return values[::-1] if PRESETS[name].order == "BGR" else values


def _ordered(name: str, zero: Array, pure: Array | None) -> Preprocessing:
    """Return a preset, with blue first where the mean colour that the model subtracts is ImageNet's, blue first.

    Args:
        name: the preset.
        zero: the input that gives zero, for each value, as a fraction of white.
        pure: see `_needed`.
    """
    if pure is not None:
        channel = np.abs(pure).argmax(0)
        means = [np.median(zero[channel == k]) if (channel == k).any() else np.nan for k in range(3)]
        if np.all(np.abs(means - MEANS) < TOLERANCE):
            return BGR[name]
    return PRESETS[name]
