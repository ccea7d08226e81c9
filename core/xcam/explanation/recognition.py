"""The task of a model, recognised once from its outputs for an image."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from xcam.contract import Array, Model, Outputs, validation
from xcam.contract.layouts import input_shape
from xcam.contract.preprocessing import PRESETS
from xcam.errors import warn
from xcam.explanation.inputs import input_size
from xcam.explanation.result import Explanation, class_label
from xcam.explanation.samples import Sample, opened_for
from xcam.images import batches, reading
from xcam.targets import BoxScore, ClassScore, Located, Segmentation, Task, recognised, statement
from xcam.targets.regions import detected

_tasks: MutableMapping[Model, dict[Any, Task]] = WeakKeyDictionary()
"""By model, and by the other facts on which the task depends."""


def is_open(aim: Any) -> bool:
    """Return whether the meaning of a target depends on the task: a class or a text, and not an object."""
    return aim is None or isinstance(aim, int | np.integer | str | ClassScore | Located | BoxScore)


def task_of(model: Model, source: Any = None) -> Task | None:
    """Return the task of a model.

    Args:
        model: The model.
        source: An image on which it is run where it was not yet, as `explain` takes it; None: noise.

    Returns:
        The task; None where the model has only vectors of class scores, which need no task, or does not run.

    Raises:
        InputError: What `load` was given contradicts the outputs.

    Warns:
        XcamWarning: The outputs leave open what the boxes mean.
    """
    stated = statement(getattr(model, "task", None), getattr(model, "boxes", None))
    model = opened_for(model, source)
    if stated.kind is None and _has_vectors_alone(model):
        return None
    key = (stated, model.input.size, len(model.labels or ()), getattr(model, "chosen_output", None))
    known = _tasks.setdefault(model, {})
    if key not in known:
        x = input_of(model, source)
        try:
            outputs = validation.predict(model, x)
        except MemoryError:
            raise
        except Exception:  # the trace raises it again, with a remedy
            return None
        size = x.shape[1:-1] if model.input.layout == "channels_last" else x.shape[2:]
        known[key] = recognised(
            outputs,
            size,
            model.output_activation,
            model.labels,
            stated,
            key[3],
            model.input.layout == "channels_last",
        )
        for caution in known[key].cautions:
            warn(caution)
    return known[key]


def _has_vectors_alone(model: Model) -> bool:
    """Return whether every output is listed among the layers, as a vector."""
    activation = validation.activation(model)
    count = len(activation) if isinstance(activation, Mapping) else 1
    shapes = [layer.shape for layer in validation.layers(model) if layer.is_output]
    return len(shapes) >= count and all(len(shape) == 1 for shape in shapes)


def input_of(model: Model, source: Any) -> Array:
    """Return the input [1, …] for an image, a sample, or None."""
    if isinstance(source, Sample):
        return source.x[None]
    spec = model.input
    if source is None:
        noise = np.random.default_rng(0).uniform(size=(1, *input_shape(spec)))
        return (noise if np.dtype(spec.dtype).kind == "f" else noise * 255).astype(spec.dtype)
    image = reading.check(source) if isinstance(source, np.ndarray) else reading.read(source)
    default = PRESETS["unit" if np.dtype(spec.dtype).kind == "f" else "raw"]
    return batches.batch([image], spec, input_size(spec, image.shape), spec.preprocessing or default)


def with_regions(e: Explanation, task: Task | None, outputs: Outputs, labels: Sequence[str] | None) -> Explanation:
    """Return an explanation with the boxes or the region that it explains, and with the scores of their classes.

    Args:
        e: The explanation of a resolved target.
        task: The model's task.
        outputs: The outputs for the image, [1, …].
        labels: The model's labels.
    """
    if task is None:
        return e
    labels, target = task.labels(labels), e.target
    if isinstance(target, BoxScore):
        layout = target.layout
        p = target.probability(outputs)[0]
        raw = p if layout.selected else layout.columns(outputs)[0, target.box, layout.offset : layout.offset + len(p)]
        return replace(
            e,
            outputs=raw,
            scores=p.astype(np.float32),
            index=target.index,
            label=class_label(labels, target.index),
            labels=labels,
            boxes=detected(target, outputs, e.frame, labels),
            task=task.text,
        )
    if isinstance(target, Segmentation) and task.map is not None and target.mask is not None:
        mask = target.mask > 0
        return replace(
            e,
            outputs=task.map.scores(outputs)[0][:, mask].mean(axis=1),
            scores=task.map.probabilities(outputs)[0][:, mask].mean(axis=1).astype(np.float32),
            index=target.index,
            label=class_label(labels, target.index),
            labels=labels,
            region=mask,
            task=task.text,
        )
    return replace(e, task=task.text)
