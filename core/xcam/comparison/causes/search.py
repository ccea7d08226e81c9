"""The search for the cause of a difference: every check is tried on a stretch of two models, and judged by reruns."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from xcam.comparison import value_checks
from xcam.comparison.causes import functions, inputs, kernels, paths, values
from xcam.comparison.causes.case import Case, Suspicion, judge, other_images, ranked
from xcam.comparison.causes.scene import Scene, cases
from xcam.comparison.diagnosis import Diagnosis
from xcam.comparison.stretch import BOTH, ComparedModel, NamePair, Stretch
from xcam.contract import Array, Layer, validation
from xcam.errors import XcamWarning, first_line

AHEAD = 6
"""The number of earlier pairs that are tried as the start of a stretch."""
LATER = 8
"""The number of later stretches that are tried as the exchanged one."""
AGREES = 1e-3
"""Values agree where their largest difference is below this share of their largest magnitude, or a fifth of the error."""

Check = Callable[[Scene], Iterable[Suspicion]]
CHECKS: tuple[tuple[str, Check], ...] = (
    ("another order", values.reordered),
    ("the channels of the input", inputs.exchanged_channels),
    ("a mirrored input", inputs.mirrored),
    ("another scale of the input", inputs.scaled),
    ("another function", functions.exchanged),
    ("the last activation", functions.last_activation),
    ("a hidden activation", functions.hidden_activation),
    ("a missing skip connection", paths.missing_skip),
    ("a constant channel", values.constant),
    ("another padding", kernels.shifted),
    ("another border", kernels.border),
    ("a flipped kernel", kernels.flipped),
    ("another flattening", kernels.flattened),
    ("another order of a vector", kernels.reordered_vector),
    ("exchanged layers", paths.exchanged_layers),
    ("layer normalisation", functions.other_epsilon),
    ("batch statistics", paths.batch_statistics),
    ("scale and offset", values.scaled),
)
"""All checks by name, those for certain causes first."""


def scene_at(
    models: tuple[ComparedModel, ComparedModel],
    pairs: Sequence[NamePair],
    index: int,
    errors: Sequence[float],
    reordered: Sequence[bool] | None = None,
) -> Scene:
    """Return the stretch that ends at a pair of layers, on these images and on others.

    Its start is the nearest pair ahead that agrees, and from which the value at the end follows.

    Args:
        models: The reference, and the model that is examined.
        pairs: The corresponding layers, in order of execution.
        index: The pair at the end.
        errors: The relative error of each pair.
        reordered: Whether the channels of a pair have another order in the second model.
    """
    pairs = list(pairs)
    layers = [list(validation.layers(each.model)) for each in models]
    pairs[index] = _behind_norm(layers, pairs, index)
    moved = list(reordered or [False] * len(pairs))
    limit = max(AGREES, errors[index] / 5) if errors[index] < 5 * AGREES else AGREES
    limit = min(limit, errors[index] / 5)
    agreeing = [k for k in range(index - 1, -1, -1) if errors[k] <= limit]
    start = _start(models, [pairs[k] for k in agreeing[:AHEAD]], pairs[index])
    is_moved = start is not None and moved[pairs.index(start)]
    between = [_between(layers[k], None if start is None else start[k], pairs[index][k]) for k in BOTH]
    channels = models[0].spec.channels or 1
    stretch = Stretch(models, start, pairs[index])
    first, second, third = _batches(models)
    fitted = cases(stretch, [first, second], is_moved)
    shapes = {layer.name: layer.shape for layer in layers[0]}
    at_input = all(shapes[pair.first][:1] == (channels,) for pair in pairs[:index])
    later = zip(pairs[index:], pairs[index + 1 :], strict=False)
    return Scene(
        tuple(fitted),
        Case.of(stretch.on(third), is_moved),
        " ".join(_kinds(layers[k], between[k], pairs[index][k]) for k in BOTH).lower(),
        at_input,
        (tuple(layer.name for layer in between[0]), tuple(layer.name for layer in between[1])),
        tuple(pairs[k] for k in agreeing),
        tuple(later)[:LATER],
    )


def _behind_norm(layers: Sequence[Sequence[Layer]], pairs: Sequence[NamePair], index: int) -> NamePair:
    """Return a pair whose layer has the value behind the batch normalisation that the other model has folded into it.

    Where a mistake changes the values much, such layers are paired by their names: the convolution ahead of the
    normalisation with the one that contains it.
    """
    names = [pairs[index].first, pairs[index].second]
    following = [_following(layers[k], names[k]) for k in BOTH]
    partners = {0: {p.first: p.second for p in pairs}, 1: {p.second: p.first for p in pairs}}
    for which in BOTH:
        norm, other = following[which], following[1 - which]
        if norm is None or not _is_norm(norm) or (other is not None and _is_norm(other)):
            continue
        kinds = {layer.name: layer for layer in layers[1 - which]}
        partner = kinds.get(partners[which].get(norm.name, ""))
        there = kinds.get(names[1 - which])
        if (partner is None or not _is_norm(partner)) and there is not None and not _is_norm(there):
            names[which] = norm.name
    return NamePair(*names)


def _following(layers: Sequence[Layer], name: str) -> Layer | None:
    """Return the layer right behind another one, of the same shape; None where there is none."""
    index = next((k for k, layer in enumerate(layers) if layer.name == name), len(layers))
    after = layers[index + 1] if index + 1 < len(layers) else None
    return after if after is not None and after.shape == layers[index].shape else None


def _is_norm(layer: Layer) -> bool:
    return "batchnorm" in layer.kind.lower()


def _start(models: tuple[ComparedModel, ComparedModel], ahead: Sequence[NamePair], end: NamePair) -> NamePair | None:
    """Return the nearest pair from which the second model's value at the end follows; None: the input."""
    for pair in ahead:
        stretch = Stretch(models, pair, end)
        if not stretch.can_run(1):
            return None
        start = stretch.start_value(1)
        noise = np.random.default_rng(0).uniform(0.5, 1.5, start.shape).astype(np.float32)
        value = stretch.end_value(1)
        try:
            moved = stretch.run(1, start * noise)
        except Exception:  # it cannot be run from there
            continue
        if np.abs(moved - value).max() > 1e-4 * np.abs(value).max():
            return pair
    return None


def _between(layers: Sequence[Layer], start: str | None, end: str) -> list[Layer]:
    names = [layer.name for layer in layers]
    first = names.index(start) + 1 if start in names else 0
    last = names.index(end) if end in names else len(names)
    return [layer for layer in layers[first:last] if not layer.folds_batch]


def _kinds(layers: Sequence[Layer], between: Sequence[Layer], end: str) -> str:
    return " ".join(layer.kind for layer in (*between, *(layer for layer in layers if layer.name == end)))


def _batches(models: tuple[ComparedModel, ComparedModel]) -> list[tuple[Array, Array]]:
    """Return three batches for both models: two for fitting, and one more for judging.

    The last image of several is kept for judging. Where there is only one, it is judged on an image derived from it.
    """
    both = [each.x for each in models]
    axes = []
    for each in models:
        last = each.spec.layout == "channels_last"
        count = each.x.ndim - 2
        axes.append(tuple(range(1, 1 + count)) if last else tuple(range(2, 2 + count)))
    if len(both[0]) > 1:
        known = [np.concatenate([x[:-1], x[:1]]) for x in both]
        further = [np.repeat(x[-1:], len(x), axis=0) for x in both]
    else:
        known = both
        further = [other_images(x, along, 1) for x, along in zip(both, axes, strict=True)]
    derived = [other_images(x, along, 0) for x, along in zip(known, axes, strict=True)]
    return [(known[0], known[1]), (derived[0], derived[1]), (further[0], further[1])]


def causes(scene: Scene) -> tuple[list[Diagnosis], list[str]]:
    """Return the causes of the difference at the end of a stretch, the best first, and a note for each failed check.

    A check that raises an error does not hide the results of the others.
    """
    results: list[tuple[Diagnosis, int]] = []
    notes: list[str] = []

    def attempt(name: str, find: Callable[[], list[tuple[Diagnosis, int]]]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", XcamWarning)
                results.extend(find())
        except Exception as error:
            notes.append(f"the check for {name} failed: {first_line(error)}")

    def training(check: Callable[[Scene], Diagnosis | None]) -> list[tuple[Diagnosis, int]]:
        result = check(scene)
        return [(result, 0)] if result else []

    attempt("noise", lambda: training(paths.random))
    if not results:
        with contextlib.suppress(Exception):  # a model of one image at a time
            results += training(paths.depends_on_batch)
    if results:
        return [results[0][0]], notes
    for name, check in CHECKS:
        attempt(name, lambda check=check: _judged(scene, check))  # type: ignore[misc]
    if not any(diagnosis.proof == "rerun" for diagnosis, _ in results):
        attempt("half precision", lambda: _half(scene))
    return ranked(results), notes


def _judged(scene: Scene, check: Check) -> list[tuple[Diagnosis, int]]:
    results = []
    for suspicion in check(scene):
        diagnosis = judge(suspicion, scene.fitted, scene.further)
        if diagnosis is not None:
            results.append((diagnosis, suspicion.size))
    return results


def _half(scene: Scene) -> list[tuple[Diagnosis, int]]:
    a, b = scene.values
    if a.shape != b.shape:
        return []
    result = value_checks.half_on_one_side(a, b) or value_checks.rounded(a, b)
    return [(result, 0)] if result else []
