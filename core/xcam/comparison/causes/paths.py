"""Suspected mistakes of the graph: a skip left out, layers exchanged, layers in training mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from xcam.comparison import value_checks
from xcam.comparison.causes.case import Case, Suspicion, Undone
from xcam.comparison.causes.scene import Scene
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.stretch import BOTH, NamePair, Which
from xcam.contract import Array, one_output, validation

AFTER_ADD = ("none", "ReLU", "ReLU6", "SiLU", "exact GELU")
"""The activations that may follow a skip connection."""
MODELS: tuple[tuple[Which, str], ...] = ((1, "second"), (0, "first"))
SKIPS = 16
"""The number of earlier values that are tried as the skip."""


def missing_skip(scene: Scene) -> Iterator[Suspicion]:
    """Suspect a skip connection that one model lacks: its value, added again, gives the other model's value."""
    case = scene.case
    for which, name in MODELS:
        wanted, value = (case.a, case.b) if which else (case.b, case.a)
        for pair in scene.earlier[:SKIPS]:
            skip = case.stretch.runs[which].value(pair[which])
            if skip.shape != wanted.shape:
                continue
            for activation in AFTER_ADD:
                function = value_checks.ACTIVATIONS[activation]
                ahead = value if activation == "none" else case.z
                if ahead.shape != wanted.shape:
                    continue
                few = (slice(None), slice(None, 8))
                result = function((ahead + skip)[few].astype(np.float64))
                if np.abs(result - wanted[few]).max() > 0.02 * np.abs((wanted - value)[few]).max():
                    continue

                def undo(
                    case: Case, which: Which = which, pair: NamePair = pair, activation: str = activation
                ) -> Undone:
                    wanted, value = (case.a, case.b) if which else (case.b, case.a)
                    ahead = value if activation == "none" else case.z
                    skip = case.stretch.runs[which].value(pair[which])
                    return Undone(wanted, value_checks.ACTIVATIONS[activation](ahead + skip), value)

                yield Suspicion(
                    "missing-skip",
                    f"the skip connection from {pair[which]} is missing in the {name} model",
                    undo,
                    0,
                )
                return


def exchanged_layers(scene: Scene) -> Iterator[Suspicion]:
    """Suspect that two layers of equal shapes are exchanged: each, run in place of the other, gives its value."""
    case = scene.case
    stretch = case.stretch
    if not stretch.can_run(1):
        return
    for start, end in scene.later:
        other = _OtherStretch(start, end)
        if not other.fits(case):
            continue
        text = f"this layer and {end.second} are exchanged"
        yield Suspicion("exchanged-layers", text, other.undo, 0)
        fitted = 4 * case.a.shape[1]  # a scale and an offset of each channel, of both layers
        yield Suspicion("exchanged-layers", f"{text}, ahead of their normalisation", other.rescaled(scene), fitted)


class _OtherStretch:
    """A later stretch that may do the work of the first, and the other way round."""

    def __init__(self, start: NamePair, end: NamePair) -> None:
        self.start, self.end = start, end

    def fits(self, case: Case) -> bool:
        first, second = case.stretch.runs
        starts = second.value(self.start.second), first.value(self.start.first)
        ends = second.value(self.end.second), first.value(self.end.first)
        return all(v.shape == case.z.shape for v in starts) and all(v.shape == case.a.shape for v in ends)

    def undo(self, case: Case) -> Undone:
        first, second = case.stretch.runs
        here = second.run(self.start.second, case.z, self.end.second)
        ahead, wanted = first.value(self.start.first), first.value(self.end.first)
        there = case.rerun(ahead)
        now = second.run(self.start.second, ahead, self.end.second)
        return Undone(np.stack([case.a, wanted]), np.stack([here, there]), np.stack([case.b, now]))

    def rescaled(self, scene: Scene) -> Callable[[Case], Undone]:
        """Return the same with a scale and an offset of each channel, fitted: those of a normalisation that stayed."""
        parts = [self.undo(case) for case in scene.fitted]
        fits = [
            value_checks.affine(
                *(np.concatenate([getattr(part, name)[k] for part in parts]) for name in ("value", "wanted"))
            )[:2]
            for k in BOTH
        ]

        def undo(case: Case) -> Undone:
            wanted, value, before = self.undo(case)
            shape = (-1, *[1] * (case.a.ndim - 2))
            value = np.stack([v * s.reshape(shape) + t.reshape(shape) for v, (s, t) in zip(value, fits, strict=True)])
            is_clipped = (wanted >= 0).all() and (value < 0).any()
            return Undone(wanted, np.maximum(value, 0) if is_clipped else value, before)

        return undo


def random(scene: Scene) -> Diagnosis | None:
    """Check whether two runs of a model on the same images differ: a dropout in training mode."""
    stretch = scene.case.stretch
    for which, name in MODELS:
        runs, end = stretch.runs[which], stretch.end[which]
        if runs.layer(end).is_output:
            continue
        again = validation.activations(runs.compared.model, runs.compared.x, [end])[end]
        value = runs.value(end)
        if np.abs(again - value).max() > 1e-3 * np.abs(value).max():
            text = (
                f"a dropout in training mode, or other noise: two runs of the {name} model on the same image differ"
            )
            return Diagnosis("dropout-training", text, "rerun")
    return None


def depends_on_batch(scene: Scene) -> Diagnosis | None:
    """Check whether a model's value for an image depends on the other image of a batch: batch statistics."""
    stretch = scene.case.stretch
    for which, name in MODELS:
        runs, end = stretch.runs[which], stretch.end[which]
        model, x = runs.compared.model, runs.compared.x
        other = scene.further.stretch.models[which].x
        if runs.layer(end).is_output:
            batches = [one_output(model.predict(np.concatenate([x[:1], each[:1]]))) for each in (x, other)]
        else:
            batches = [model.activations(np.concatenate([x[:1], each[:1]]), [end])[end] for each in (x, other)]
        if np.abs(batches[0][0] - batches[1][0]).max() > 1e-3 * np.abs(batches[0][0]).max():
            start = next((layer.name for layer in validation.layers(model) if layer.folds_batch), None)
            text = (
                f"a batch normalisation in training mode in the {name} model: its values for an image depend on the other "
                f"images of the batch{f', from layer {start!r} on' if start else ''}"
            )
            return Diagnosis("batchnorm-training", text, "rerun")
    return None


def batch_statistics(scene: Scene) -> Iterator[Suspicion]:
    """Suspect that one model normalises each channel by the statistics of the batch, or of the image."""
    cases = (*scene.fitted, scene.further)
    if scene.case.a.ndim < 3 or np.prod(scene.case.a.shape[2:]) < 8:
        return
    for which, name in MODELS:
        values = [(case.b if which else case.a).astype(np.float64) for case in cases]
        others = [(case.a if which else case.b).astype(np.float64) for case in cases]
        for axes, of in (
            ((0, *range(2, values[0].ndim)), "the batch"),
            (tuple(range(2, values[0].ndim)), "each image"),
        ):
            moments = [(v.mean(axes), v.std(axes)) for v in values]
            theirs = [(v.mean(axes), v.std(axes)) for v in others]
            if len(values[0]) == 1 and of == "each image":
                continue
            size = float(np.abs(values[0]).max())
            constant = _spread(moments) < 2e-3 * size and _spread(theirs) > 1e-2 * float(np.abs(others[0]).max())
            if not constant:
                continue
            subject = f"a batch normalisation in training mode in the {name} model: it uses the statistics of {of}"
            # The models agree up to a scale and an offset of each channel that depend on the images.
            yield Suspicion("batchnorm-training", subject, partial(_restored, axes=axes))
            return


def _spread(moments: list[tuple[Array, Array]]) -> float:
    """Return the largest difference of the means and deviations of channels between images."""
    rows = [np.concatenate([np.atleast_2d(m), np.atleast_2d(s)], axis=-1) for m, s in moments]
    every = np.concatenate(rows)
    return float(np.ptp(every, axis=0).max())


def _restored(case: Case, axes: tuple[int, ...]) -> Undone:
    """Give the second model's channels the mean and deviation of the first model's."""
    a, b = (v.astype(np.float64) for v in (case.a, case.b))
    mean = b.mean(axes, keepdims=True)
    scale = a.std(axes, keepdims=True) / np.maximum(b.std(axes, keepdims=True), 1e-12)
    return Undone(a, (b - mean) * scale + a.mean(axes, keepdims=True), b)
