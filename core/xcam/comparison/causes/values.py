"""Suspected mistakes that transform the value at the end: its order, a scale and an offset, constant channels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xcam.comparison import value_checks
from xcam.comparison.alignment import permutation
from xcam.comparison.causes.case import Case, Suspicion, Undone
from xcam.comparison.causes.scene import Scene, spatial_axes
from xcam.contract import Array

FEW = 0.5
"""At most this share of the channels may be constant for a constant channel to be the cause."""


def reordered(scene: Scene) -> Iterator[Suspicion]:
    """Suspect another order of channels, also with a scale and an offset of each."""
    a, b = (_positions(value) for value in scene.values)
    if a.shape != b.shape:
        return
    order, scale, offset = permutation(a, b), None, None
    if order is None:
        order = value_checks.correlated_order(a, b)
        if order is None:
            return
        scale, offset, _ = value_checks.affine(b[:, order], a)
    if len(scene.case.a.shape) == 2:
        last = _channels_last(scene, a.shape[1])
        is_flat = any(len(flat) == len(order) and (order == flat).all() for flat in last)
        code = "flattening-order" if is_flat else "value-order"
        text = FLATTENING if is_flat else "its values are in another order"
    else:
        code, text = "channel-order", "its channels are in another order"

    def undo(case: Case) -> Undone:
        value = case.b[:, order]
        return Undone(case.a, value if scale is None else _affine(value, scale, offset), case.b)

    yield Suspicion(code, text, undo, 0 if scale is None else 2)


FLATTENING = "the order of flattening differs: [channels, height, width] against [height, width, channels]"


def _channels_last(scene: Scene, count: int) -> list[Array]:
    """Return the orders of a vector that was flattened channels last, and of one that was flattened channels first."""
    shapes = [case.shape for case in _spatial_values(scene) if np.prod(case.shape[1:]) == count]
    if not shapes:
        return []
    shape = shapes[0][1:]
    last = np.arange(count).reshape(shape[0], -1).T.ravel()
    return [last, np.argsort(last)]


def _spatial_values(scene: Scene) -> Iterator[Array]:
    if spatial_axes(scene.case.z):
        yield scene.case.z
    for pair in scene.earlier:
        value = scene.case.stretch.runs[0].value(pair.first)
        if spatial_axes(value):
            yield value
            return


def scaled(scene: Scene) -> Iterator[Suspicion]:
    """Suspect a bias, one factor, or a scale and an offset of each channel: batch normalisation."""
    a, b = (_positions(value) for value in scene.values)
    if a.shape != b.shape:
        return
    scale, offset, _ = value_checks.affine(b, a)
    shift, known = _shift(a, b)
    has_batchnorm = "batchnorm" in scene.kinds
    if has_batchnorm:
        text = (
            "each channel has another offset: the mean or the offset of a batch normalisation, or a bias ahead of it",
            value_checks.SCALED,
        )
        codes = "batchnorm-statistics", "batchnorm-statistics"
    else:
        missing = _missing_bias(scene, shift)
        text = (
            missing or "each channel has another offset: a bias, or the mean of a batch normalisation",
            value_checks.SCALED,
        )
        codes = "missing-bias" if missing else "channel-scale", "channel-scale"
    ones, zeros = np.ones_like(shift), np.zeros_like(shift)
    yield Suspicion(codes[0], text[0], lambda case: _rescaled(case, ones, shift, known), a.shape[1])
    rows = a.shape[0] * a.shape[2]
    live = np.abs(b).max(axis=(0, 2)) > 1e-3 * np.abs(b).max()
    if rows >= 6 and not has_batchnorm and live.any():
        factor = _factor(a, b)
        if abs(factor - 1) > 5e-3:
            yield Suspicion(
                "constant-factor",
                f"all values are multiplied by {1 / factor:.4g}",
                lambda case: _rescaled(case, ones * factor, zeros),
            )
    if rows >= 4:
        yield Suspicion(codes[1], text[1], lambda case: _rescaled(case, scale, offset), 2 * a.shape[1])


def _factor(a: Array, b: Array) -> float:
    """Return the factor that maps b to a, where neither is clipped."""
    live = value_checks.live(a, b)
    x, y = b[live].astype(np.float64), a[live].astype(np.float64)
    factor = float((x * y).sum() / max(float((x * x).sum()), 1e-30))
    return factor if factor else 1e-30


def _shift(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the offset of each channel that maps b to a, the median, and whether it is known: where neither is clipped."""
    live = value_checks.live(a, b)
    difference = np.where(live, a.astype(np.float64) - b, np.nan)
    used = np.asarray(live.any(axis=(0, 2)))
    result = np.zeros(a.shape[1])
    if used.any():
        result[used] = np.nanmedian(np.moveaxis(difference, 1, 0)[used].reshape(int(used.sum()), -1), axis=1)
    return result, used


def _missing_bias(scene: Scene, shift: Array) -> str | None:
    """Return a text where one model's value for zeros at the start is zero, and the other's is the offset.

    Up to the offset, the models agree. So only the second has to be run on zeros.
    """
    stretch = scene.case.stretch
    if not stretch.can_run(1):
        return None
    bias = _positions(scene.case.rerun(np.zeros_like(scene.case.z)))[0]
    size = float(np.abs(shift).max())
    if np.abs(bias).max() < 1e-3 * size:
        return "the bias is missing in the second model"
    live = np.abs(bias).max(axis=-1) > 0  # not clipped
    is_bias = live.any() and np.abs(bias + shift[:, None])[live].max() < 0.02 * size
    return "the bias is missing in the first model" if is_bias else None


def _rescaled(case: Case, scale: Array, offset: Array, known: Array | None = None) -> Undone:
    """Undo a scale and an offset of each channel; positions where a value was clipped at zero do not count.

    Args:
        case: The case.
        scale: [C].
        offset: [C].
        known: [C], whether scale and offset are known; default: all are.
    """
    a, b = case.a, case.b
    live = value_checks.live(_positions(a), _positions(b), both=False).reshape(a.shape)
    if known is not None:
        live = live & known.reshape((-1, *[1] * (a.ndim - 2)))
    value = _affine(b, scale, offset)
    if not live.all():
        value = np.maximum(value, 0) if (a >= 0).all() else value
        if np.square(np.where(live, b - a, 0)).sum() < 0.3 * np.square(b - a).sum():
            return Undone(a[:0], b[:0], b[:0])
    return Undone(a[live], value[live], b[live])


def _affine(values: Array, scale: Array, offset: Array | None) -> Array:
    shape = (-1, *[1] * (values.ndim - 2))
    return values * scale.reshape(shape) + (0 if offset is None else offset.reshape(shape))


def constant(scene: Scene) -> Iterator[Suspicion]:
    """Suspect channels that are constant in one of the models."""
    values = [np.concatenate([_positions(v) for v in (*_of(scene, k), _further(scene, k))]) for k in (0, 1)]
    if values[0].shape != values[1].shape or values[0].shape[0] * values[0].shape[2] < 2:
        return
    size = float(np.abs(values[0]).max())
    flat = [np.ptp(np.moveaxis(v, 1, 0).reshape(v.shape[1], -1), axis=1) < 1e-6 * size for v in values]
    for which, name in ((1, "the second"), (0, "the first")):
        only = flat[which] & ~flat[1 - which]
        if not only.any() or only.mean() > FEW:
            continue
        indices = np.flatnonzero(only)
        listed = ", ".join(map(str, indices[:5])) + (f" and {len(indices) - 5} more" if len(indices) > 5 else "")
        channel = "channel" if scene.case.a.ndim > 2 else "value"
        subject = f"{channel} {listed} is" if len(indices) == 1 else f"{channel}s {listed} are"

        def undo(case: Case, only: Array = only) -> Undone:
            shape = (-1, *[1] * (case.a.ndim - 2))
            return Undone(case.a, np.where(only.reshape(shape), case.a, case.b), case.b)

        yield Suspicion("constant-channel", f"{subject} constant in {name} model", undo, 0)


def _of(scene: Scene, which: int) -> list[Array]:
    return [case.b if which else case.a for case in scene.fitted]


def _further(scene: Scene, which: int) -> Array:
    return scene.further.b if which else scene.further.a


def _positions(values: Array) -> Array:
    """Return [N, C, positions]."""
    return values.reshape(*values.shape[:2], -1)
