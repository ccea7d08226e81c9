"""Diagnosis by intervention: the second model is run with a suspected mistake undone.

If it then computes the same as the first, the mistake is confirmed. Each check returns a diagnosis, or None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from xcam.comparison.alignment import LayerSample, error, sample
from xcam.comparison.diagnosis import FLATTENING, Diagnosis
from xcam.comparison.stretch import ComparedModel as ComparedModel
from xcam.contract import Array, Layer, one_output, validation
from xcam.contract.preprocessing import PRESETS

GONE = 0.02
"""A mistake is confirmed where not more than this share of the difference remains."""
DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]


@dataclass(frozen=True)
class LayerMismatch:
    """A layer of two models whose values differ."""

    a: LayerSample
    b: LayerSample
    before: LayerSample | None
    """The last layer before it that agrees, in the first model; None where there is none."""
    models: tuple[ComparedModel, ComparedModel]

    def values(self, which: int, x: Array | None = None) -> Array:
        """Return the layer's values [N, C, *space] in one of the models, on its own batch or on `x`."""
        compared = self.models[which]
        name = (self.a, self.b)[which].layer.name
        x = compared.x if x is None else np.ascontiguousarray(x, compared.x.dtype)
        return validation.activations(compared.model, x, [name])[name]

    def error_on(self, x: Array) -> float:
        """Return the error that remains when the second model is given `x`."""
        return error(self.a.values, sample(self.b.layer, self.values(1, x), self.a.values.shape[2]).values)

    @property
    def error(self) -> float:
        """The error on the models' own batches."""
        return error(self.a.values, self.b.values)


def input_changes(mismatch: LayerMismatch) -> Diagnosis | None:
    """Check whether the second model expects other colour channels, or another scale."""
    x, spec = mismatch.models[1].x, mismatch.models[1].spec
    axis = -1 if spec.layout == "channels_last" else 1
    if x.shape[axis] == 3 and mismatch.error_on(np.flip(x, axis)) < GONE * mismatch.error:
        return Diagnosis("rgb-bgr", "the input's channels: RGB against BGR")
    for factor in (255.0, 127.5, 2.0):
        for scale in (factor, 1 / factor):
            if mismatch.error_on(x * np.float32(scale)) < GONE * mismatch.error:
                return Diagnosis(
                    "input-scale", f"the scale of the input: it takes values {1 / scale:.4g} times as large"
                )
    if x.shape[axis] != 3:
        return None
    current = spec.preprocessing or PRESETS["unit"]
    pixels = np.moveaxis(x, axis, -1) * current.std + np.asarray(current.mean)
    pixels = (pixels / current.scale)[..., :: -1 if current.order == "BGR" else 1]
    first = mismatch.models[0].spec.preprocessing
    for other in (*([first] if first else []), *PRESETS.values()):
        if replace(other, name=current.name) != current:
            changed = np.moveaxis(other(pixels), -1, axis)
            if mismatch.error_on(changed) < GONE * mismatch.error:
                return Diagnosis(
                    "input-scale",
                    f"the scale of the input: it agrees on images scaled as {other.name!r}, and is given images scaled "
                    f"as {current.name!r}",
                )
    return None


def padding(mismatch: LayerMismatch) -> Diagnosis | None:
    """Check whether values are shifted by a position or a part of one, or differ at the border only."""
    space = mismatch.a.shape[1:]
    if len(space) != 2 or min(space) < 4:
        return None
    expected, values = mismatch.values(0), mismatch.values(1)
    margin = max(1, min(space) // 6)
    inside = error(_within(expected, margin), _within(values, margin))
    shifts = (_shifted(expected, values, step) for step in DIRECTIONS)
    if any(error(a, b) < GONE * inside for a, b in shifts) or _follows_the_input(mismatch, expected, margin):
        return Diagnosis("uneven-padding", "shifted by a pixel: uneven padding (SAME) against even padding")
    if inside < GONE * mismatch.error and _differs_all_around(expected, values):
        return Diagnosis("border-padding", "its border: padding with zeros against another kind of padding")
    return None


def _within(values: Array, margin: int) -> Array:
    return values[..., margin:-margin, margin:-margin]


def _shifted(a: Array, b: Array, step: tuple[int, int]) -> tuple[Array, Array]:
    """Return the common part of both, without the border, where the second is the first shifted by `step`."""
    return _within(a, 1), np.roll(b, step, (-2, -1))[..., 1:-1, 1:-1]


def _follows_the_input(mismatch: LayerMismatch, expected: Array, margin: int) -> bool:
    """Check a strided layer: its values agree when the image is shifted by a position of the layer before it.

    Values near the border are wrong where the shifted image wraps around. Therefore the mean error decides, not the
    largest. It must fall to half in one direction.
    """
    x = mismatch.models[1].x
    axes = (-3, -2) if mismatch.models[1].spec.layout == "channels_last" else (-2, -1)
    rows = x.shape[axes[0]]
    finer = mismatch.before.shape[1] if mismatch.before is not None and mismatch.before.is_spatial else rows
    shifts = [max(1, rows // finer) * 2**k for k in range(8)]
    # Shifts of at most half the distance between two positions of this layer.
    shifts = [n for n in shifts if n * expected.shape[-2] <= rows / 2 or n == shifts[0]]

    def mean_error(batch: Array) -> float:
        return float(np.abs(_within(mismatch.values(1, batch), margin) - _within(expected, margin)).mean())

    now = mean_error(x)
    return any(mean_error(np.roll(x, (dy * n, dx * n), axes)) < now / 2 for n in shifts for dy, dx in DIRECTIONS)


def _differs_all_around(a: Array, b: Array) -> bool:
    """Return whether most positions of the border differ."""
    differs = np.abs(a - b).max(axis=(0, 1)) > 1e-4 * np.abs(a).max()
    border = np.ones_like(differs)
    border[1:-1, 1:-1] = False
    return bool(differs[border].mean() > 0.5)


def flattening(mismatch: LayerMismatch, spatial: Layer) -> Diagnosis | None:
    """Check whether the outputs agree when the second model's last spatial layer is flattened in another order."""
    first, second = mismatch.models
    if "resume" not in second.model.capabilities or spatial.layout == "tokens":
        return None
    expected = one_output(first.model.predict(first.x))
    trace = validation.trace(second.model, second.x, spatial)
    now = error(expected, one_output(trace.outputs))
    for values in _flattenings(trace.activations):
        outputs = one_output(validation.resume(second.model, trace, values).outputs)
        if outputs.shape == expected.shape and error(expected, outputs) < GONE * now:
            return FLATTENING
    return None


def _flattenings(values: Array) -> Iterator[Array]:
    """Yield [N, C, *space] such that flattening it in one order gives the vector of the other order."""
    last = np.moveaxis(values, 1, -1)
    yield np.ascontiguousarray(last).reshape(values.shape)
    yield np.ascontiguousarray(np.moveaxis(values.reshape(last.shape), -1, 1))
