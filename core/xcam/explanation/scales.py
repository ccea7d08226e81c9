"""The default layers of detectors and of segmentation: the last features that all classes, or a box and its score, share.

A detector has a layer for each of its scales. Behind the last layer that a box's position and its score share are branches
that know one of them only; and the last layer of a map of classes has one channel for each class: such layers say
where a class is predicted, and not why.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from xcam.contract import Array, Layer, Model, Outputs, Trace, one_output, validation
from xcam.errors import InputError, ModelError, ZeroHeatmapWarning
from xcam.explanation.recognition import input_of, task_of
from xcam.explanation.samples import opened_for
from xcam.models import layers
from xcam.targets import Task
from xcam.targets.layouts import BoxLayout, MapLayout

STEP = 16
"""Layers of a grid that are tried at once, from the last backwards."""
TRIALS = 8
"""Layers of a grid whose boxes are looked for."""
MOST = 6
"""The largest number of scales."""
QUERIES = 1000
"""Detectors with at most this many boxes choose them by queries, which read all scales."""

SHARES = (0, 0.0015, 0.008, 0.03, 0.1, 0.3, 0.9, 0.97, 0.995)
"""The positions of the sampled boxes, from the end, as shares of the boxes."""

_chosen: MutableMapping[Model, dict[Any, Scales]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Scales:
    """The default layers of a model."""

    layers: tuple[Layer, ...] = ()
    """In execution order."""
    exclusive: bool = False
    """Whether each box belongs to one of them: the last that leads to it."""


def default_scales(model: Model, task: Task, source: Any) -> Scales:
    """Return the default layers of a detector, one for each scale, or of segmentation.

    Args:
        model: The model.
        task: Its task.
        source: An image, as `explain` takes it; None: noise.

    Returns:
        The layers; none where the task has no such layers, or the model has no gradients.
    """
    if (task.boxes is None and task.map is None) or "gradients" not in model.capabilities:
        return Scales()
    if getattr(model, "default_layer", None) is not None:
        return Scales()
    key = task, model.input.size
    known = _chosen.setdefault(model, {})
    if key not in known:
        try:
            known[key] = _shared(model, task, input_of(opened_for(model, source), source))
        except ModelError:  # a layer has no gradient: today's rule reports it
            known[key] = Scales()
    return known[key]


def find(model: Model, name: str | Layer | None) -> Layer:
    """Return the layer of a command that works at one layer: see `xcam.models.layers.find`.

    Raises:
        InputError: No name is given, and the model is a detector of several scales.
    """
    task = task_of(model) if name is None else None
    scales = Scales() if task is None else default_scales(model, task, None)
    if len(scales.layers) > 1:
        names = ", ".join(layer.name for layer in scales.layers)
        raise InputError(
            f"{model.name} is a detector with several scales, and one layer is evaluated; give one with layer= (--layer): {names}"
        )
    return scales.layers[0] if scales.layers else layers.find(model, name)


def of_image(model: Model, image: Any, explained: Callable[[str], Array]) -> str | None:
    """Return the name of the layer at which a model of several scales is explained for one image; None for other models.

    Args:
        model: The model.
        image: The image, as `explain` takes it.
        explained: Returns the raw map at a layer.
    """
    task = task_of(model, image)
    scales = Scales() if task is None else default_scales(model, task, image)
    names = [layer.name for layer in scales.layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroHeatmapWarning)
        return next((name for name in reversed(names) if np.any(explained(name))), None)


def own_scale(traces: Sequence[Trace], n: int, m: int) -> list[int]:
    """Return the numbers of the layers whose maps count for one box: the last that leads to it.

    With the values of the other scales held fixed, the box has no gradient there.

    Args:
        traces: A trace at each layer, in execution order.
        n: The row.
        m: The cotangent.
    """
    every = list(range(len(traces)))
    reached = [k for k in every if traces[k].gradients and np.any(traces[k].gradients[m][n])]
    return reached[-1:] or every


def _shared(model: Model, task: Task, x: Array) -> Scales:
    """Return the last layer of each grid of which channels lead to both of two cotangents, and that gives boxes of its own."""
    layout = task.boxes or task.map
    assert layout is not None
    read = {layout.output, getattr(layout, "boxes", None)} - {None}
    able = [
        layer
        for layer in layers.candidates(model, None)
        if layer.differentiable and None not in layer.shape and read <= set(layer.leads_to or read)
    ]
    by_grid: dict[tuple[int, ...], list[Layer]] = {}
    for layer in able:
        size = layers.grid_size(model, layer)
        if size is not None and min(size) > layers.COARSE:
            by_grid.setdefault(size, []).append(layer)
    sizes = sorted(by_grid, key=lambda size: int(np.prod(size)))
    if task.map is not None:
        for size in sizes:
            same = [layer for layer in by_grid[size] if layer.shape[0] != 1]
            for layer in _shared_backwards(model, task, x, same):
                return Scales((layer,))
        return Scales()
    assert task.boxes is not None
    chosen: list[Layer] = []
    covered = np.zeros(len(_samples(task.boxes)), bool)
    for size in sizes:
        for layer in itertools.islice(_shared_backwards(model, task, x, by_grid[size]), TRIALS):
            boxes = _reached(model, task.boxes, x, layer)
            if (boxes & ~covered).any():
                chosen.append(layer)
                covered |= boxes
                break
        if covered.all():
            break
    exclusive = len(chosen) > 1 or task.boxes.selected or task.boxes.count > QUERIES
    if chosen and not exclusive:  # queries, which read all scales
        for size in sizes[sizes.index(layers.grid_size(model, chosen[0]) or ()) + 1 :]:
            if by_grid[size][-1].bypassed:  # else the whole image passes through it: it is ahead of all scales
                chosen += list(itertools.islice(_shared_backwards(model, task, x, by_grid[size]), 1))
    order = {layer.name: k for k, layer in enumerate(able)}
    return Scales(tuple(sorted(chosen[:MOST], key=lambda layer: order[layer.name])), exclusive)


def _shared_backwards(model: Model, task: Task, x: Array, same: Sequence[Layer]) -> Iterator[Layer]:
    """Yield the shared layers of a grid, from the last backwards."""
    for stop in range(len(same), 0, -STEP):
        part = list(same[max(stop - STEP, 0) : stop])
        traces = validation.trace(model, x, part, lambda outputs: _cotangents(task, outputs))
        for layer, trace in zip(reversed(part), reversed(traces), strict=True):
            first, second = (np.abs(g).reshape(*g.shape[:2], -1).max(axis=(0, 2)) > 0 for g in trace.gradients)
            if (first & second).any():
                yield layer


def _samples(layout: BoxLayout) -> list[int]:
    """Return boxes of all scales: most at the end, where detectors have those of coarse scales."""
    last = layout.count - 1
    if layout.selected:
        return sorted({round(last * k / 23) for k in range(24)})
    return sorted({last - round(last * share) for share in SHARES})


def _reached(model: Model, layout: BoxLayout, x: Array, layer: Layer) -> Array:
    """Return which of the sampled boxes have a score that depends on a layer."""

    def cotangents(outputs: Outputs) -> list[Outputs]:
        result = []
        for box in _samples(layout):
            slope = np.zeros_like(one_output(outputs, layout.output))
            columns = _score_columns(slope, layout)
            columns[:, box] = np.random.default_rng(0).uniform(0.5, 1.5, columns.shape[2])
            result.append(_at(outputs, layout.output, slope))
        return result

    trace = validation.trace(model, x, layer, cotangents)
    return np.array([bool(np.any(gradient)) for gradient in trace.gradients])


def _at(outputs: Outputs, name: str | None, value: Array) -> Outputs:
    """Return a cotangent that is `value` at the output `name`, the first for None, and 0 at the others."""
    if not isinstance(outputs, Mapping):
        return value
    return {**{other: np.zeros_like(y) for other, y in outputs.items()}, (name or next(iter(outputs))): value}


def _score_columns(slope: Array, layout: BoxLayout) -> Array:
    """Return a view [N, B, K] of the scores in an array like the output with the scores."""
    flat = slope[:, :, None] if slope.ndim == 2 else slope
    columns = np.moveaxis(flat, 2, 1) if layout.axis == 2 else flat
    first = layout.offset if not layout.selected or layout.boxes is not None else 4
    return columns[..., first : first + (1 if layout.selected else layout.classes)]


def _cotangents(task: Task, outputs: Outputs) -> list[Outputs]:
    """Return two cotangents: of scores and of boxes, or of two halves of the classes of a map."""
    if task.map is not None:
        return _of_map(task.map, outputs)
    layout = task.boxes
    assert layout is not None
    scores = np.zeros_like(one_output(outputs, layout.output))
    columns = _score_columns(scores, layout)
    columns[:] = np.random.default_rng(0).uniform(0.5, 1.5, columns.shape)  # the sum of a softmax has no gradient
    boxes = np.zeros_like(one_output(outputs, layout.boxes or layout.output))
    if layout.boxes is not None:
        boxes[:] = 1
    else:
        (np.moveaxis(boxes, 2, 1) if layout.axis == 2 else boxes)[..., :4] = 1
    return [_at(outputs, layout.output, scores), _at(outputs, layout.boxes or layout.output, boxes)]


def _of_map(layout: MapLayout, outputs: Outputs) -> list[Outputs]:
    result = []
    for k in range(2):
        slope = np.zeros_like(one_output(outputs, layout.output))
        classes = np.moveaxis(slope, -1, 1) if layout.last else slope
        classes[:, (k if layout.classes > 1 else 0) :: 2] = 1
        result.append(_at(outputs, layout.output, slope))
    return result
