"""Why two layers differ, found by trying: the second model is run as the suspected mistake would have it.

If it then computes what the first does, that was the mistake. Each trial returns the cause in words, or an empty string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from xcam.comparison.alignment import LayerSample, error, sketch
from xcam.comparison.value_checks import FLATTENED
from xcam.contract import Array, Layer, Model, one_output, validation
from xcam.contract.preprocessing import PRESETS

GONE = 0.02
"""A mistake is found where no more than this share of the difference is left."""
DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]

Trial = Callable[..., str]


@dataclass(frozen=True)
class LayerMismatch:
    """A layer of two models whose values differ, and what the models were given."""

    a: LayerSample
    b: LayerSample
    before: LayerSample | None
    """The last layer that agrees, in the first model; None where there is none ahead of this one."""
    models: tuple[Model, Model]
    x: tuple[Array, Array]

    def values(self, which: int, x: Array | None = None) -> Array:
        """The layer's values [N, C, *space] in one of the models, on its own batch or another."""
        name = (self.a, self.b)[which].layer.name
        x = self.x[which] if x is None else np.ascontiguousarray(x, self.x[which].dtype)
        return validation.activations(self.models[which], x, [name])[name]

    def apart(self, x: Array) -> float:
        """The error that is left when the second model is given `x`."""
        return error(self.a.values, sketch(self.b.layer, self.values(1, x)).values)

    @property
    def error(self) -> float:
        return error(self.a.values, self.b.values)


def picture(site: LayerMismatch) -> str:
    """The second model takes pictures with other channels, or scaled in another way."""
    x, spec = site.x[1], site.models[1].input
    channel = -1 if spec.layout == "channels_last" else 1
    if x.shape[channel] == 3 and site.apart(np.flip(x, channel)) < GONE * site.error:
        return "the input's channels: RGB against BGR"
    for factor in (255.0, 127.5, 2.0):
        for scale in (factor, 1 / factor):
            if site.apart(x * np.float32(scale)) < GONE * site.error:
                return f"the scale of the input: it takes values {1 / scale:.4g} times as large"
    given = spec.preprocessing or PRESETS["unit"]
    if x.shape[channel] == 3:
        pixels = np.moveaxis(x, channel, -1) * given.std + np.asarray(given.mean)
        pixels = (pixels / given.scale)[..., :: -1 if given.order == "BGR" else 1]
        own = site.models[0].input.preprocessing
        for other in (*([own] if own else []), *PRESETS.values()):
            if replace(other, name=given.name) != given:
                changed = np.moveaxis(other(pixels), -1, channel)
                if site.apart(changed) < GONE * site.error:
                    return (
                        f"the scale of the input: it agrees when given pictures scaled as {other.name!r}, and takes "
                        f"them as {given.name!r}"
                    )
    return ""


def shift(site: LayerMismatch) -> str:
    """The second model's values are the first's, moved by one place or by a part of one; or they differ at the rim."""
    space = site.a.shape[1:]
    if len(space) != 2 or min(space) < 4:
        return ""
    truth, value = site.values(0), site.values(1)
    rim = max(1, min(space) // 6)
    inside = error(_within(truth, rim), _within(value, rim))
    moved = (_moved(truth, value, step) for step in DIRECTIONS)
    if any(error(a, b) < GONE * inside for a, b in moved) or _follows(site, truth, rim):
        return "shifted by a pixel: padding that is uneven (SAME) against even"
    if inside < GONE * site.error and _all_around(truth, value):
        return "its border: zeros against another kind of padding"
    return ""


def _within(values: Array, rim: int) -> Array:
    return values[..., rim:-rim, rim:-rim]


def _moved(a: Array, b: Array, step: tuple[int, int]) -> tuple[Array, Array]:
    """What the two have in common, without the rim, when the second is the first moved by `step`."""
    return _within(a, 1), np.roll(b, step, (-2, -1))[..., 1:-1, 1:-1]


def _follows(site: LayerMismatch, truth: Array, rim: int) -> bool:
    """A layer that skips places: it sees the same when the picture is moved by a place of the layer before it.

    What wraps around at the picture's edge spoils values near the rim, so the mean error is looked at, not the largest;
    it has to fall to half of what it was in one direction.
    """
    x = site.x[1]
    axes = (-3, -2) if site.models[1].input.layout == "channels_last" else (-2, -1)
    rows = x.shape[axes[0]]
    fine = site.before.shape[1] if site.before is not None and site.before.is_spread else rows
    pixels = [max(1, rows // fine) * 2**k for k in range(8)]
    pixels = [
        n for n in pixels if n * truth.shape[-2] <= rows / 2 or n == pixels[0]
    ]  # up to half a place of this layer

    def left(batch: Array) -> float:
        return float(np.abs(_within(site.values(1, batch), rim) - _within(truth, rim)).mean())

    now = left(x)
    return any(left(np.roll(x, (dy * n, dx * n), axes)) < now / 2 for n in pixels for dy, dx in DIRECTIONS)


def _all_around(a: Array, b: Array) -> bool:
    """Most places of the border differ."""
    off = np.abs(a - b).max(axis=(0, 1)) > 1e-4 * np.abs(a).max()
    edge = np.ones_like(off)
    edge[1:-1, 1:-1] = False
    return bool(off[edge].mean() > 0.5)


def flattening(site: LayerMismatch, spread: Layer) -> str:
    """Put in another order what had space last (`spread`, in the second model): do its outputs then agree?"""
    model, wanted = site.models[1], one_output(site.models[0].predict(site.x[0]))
    if "resume" not in model.capabilities or spread.layout == "tokens":
        return ""
    trace = validation.trace(model, site.x[1], spread)
    now = error(wanted, one_output(trace.outputs))
    for values in _flattenings(trace.activations):
        found = one_output(validation.resume(model, trace, values).outputs)
        if found.shape == wanted.shape and error(wanted, found) < GONE * now:
            return FLATTENED
    return ""


def _flattenings(values: Array) -> Iterator[Array]:
    """[N, C, *space], such that flattening one way reads what flattening the other way would have read."""
    last = np.moveaxis(values, 1, -1)
    yield np.ascontiguousarray(last).reshape(values.shape)
    yield np.ascontiguousarray(np.moveaxis(values.reshape(last.shape), -1, 1))
