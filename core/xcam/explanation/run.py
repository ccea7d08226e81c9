"""Explaining one batch of images at one layer: one trace, and the method's map for each target."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from xcam.contract import Array, InputSpec, Layer, Model, Outputs, Trace, one_output, validation
from xcam.errors import InputError, ModelError, XcamError, ZeroHeatmapWarning, first_line, warn
from xcam.explanation import outputs as output_checks
from xcam.explanation.checks import check_finite, zero_message
from xcam.explanation.context import MethodContext, by_differences, cotangent, pick, stack
from xcam.explanation.context import values as target_values
from xcam.explanation.fitting import fitted_grid
from xcam.explanation.fusion import fuse
from xcam.explanation.inputs import AUGMENTATIONS, augmented, input_preprocessing, input_size
from xcam.explanation.recognition import with_regions
from xcam.explanation.result import Explanation, class_label
from xcam.explanation.samples import Sample
from xcam.explanation.scales import own_scale
from xcam.explanation.settings import Settings
from xcam.images import batches, framing, reading, views
from xcam.images.framing import Frame
from xcam.models.labels import pair
from xcam.report import formatting
from xcam.targets import (
    Classes,
    ClassScore,
    Detection,
    Finer,
    Located,
    Target,
    Task,
    probabilities,
    regions,
    scores,
)

ImageSource = str | os.PathLike[str] | Array
"""One image, as `explain` takes it: a path, RGB uint8 [H, W, 3], or an array as the model takes it."""


def explain_batch(
    model: Model,
    spec: InputSpec,
    sources: Sequence[ImageSource | Sample],
    layers: Sequence[Layer],
    targets: Sequence[Sequence[Target]],
    settings: Settings,
    task: Task | None = None,
    exclusive: bool = False,
) -> list[list[Explanation]]:
    """Explain a batch of images.

    Args:
        model: The model.
        spec: The size, layout and preprocessing of its input; may differ from `model.input`.
        sources: The images, or samples of one shape.
        layers: The layer of the maps; of several the maps are fused by their maximum.
        targets: For each image its targets, the same number for all.
        settings: The method and the other options.
        task: The model's task, where a target depends on it.
        exclusive: Whether each box belongs to one of several layers.

    Returns:
        For each image one explanation for each target. Images that are resized to different sizes are run separately.
    """
    samples = [source for source in sources if isinstance(source, Sample)]
    if samples:
        return _explain(
            model,
            spec,
            np.stack([sample.x for sample in samples]),
            [views.view(sample.values).image for sample in samples],
            [sample.path for sample in samples],
            layers,
            targets,
            settings,
            task,
            exclusive,
            values=[sample.values for sample in samples],
        )
    paths = [Path(source) if isinstance(source, str | os.PathLike) else None for source in sources]
    images = [reading.read(s) if isinstance(s, str | os.PathLike) else reading.check(s) for s in sources]
    preprocessing = input_preprocessing(spec, model.name)
    sizes = [input_size(spec, image.shape) for image in images]
    results: list[list[Explanation]] = [[] for _ in images]
    for size in dict.fromkeys(sizes):
        rows = [n for n, other in enumerate(sizes) if other == size]
        same = [images[n] for n in rows]
        x = batches.batch(same, spec, size, preprocessing)
        frames = [framing.frame(image.shape, size, spec.fit) for image in same]
        explained = _explain(
            model,
            spec,
            x,
            same,
            [paths[n] for n in rows],
            layers,
            [targets[n] for n in rows],
            settings,
            task,
            exclusive,
            frames=frames,
        )
        for n, result in zip(rows, explained, strict=True):
            results[n] = result
            for e in result:
                _warn_of_border(e, framing.frame(images[n].shape, size, spec.fit))
    return results


def _warn_of_border(e: Explanation, frame: Frame) -> None:
    """Warn where a map has its maximum in the border around the image."""
    if frame.is_whole or not e.cam.max() > 0:
        return
    cell = np.unravel_index(int(e.cam.argmax()), e.cam.shape)
    centre = [(k + 0.5) * m / n for k, m, n in zip(cell, frame.input, e.cam.shape, strict=True)]
    (x, y), (height, width) = frame.to_image(centre[::-1]), frame.image
    margin = [m / n / s for m, n, s in zip(frame.input, e.cam.shape, frame.scale, strict=True)]
    if not (-margin[1] <= x <= width + margin[1] and -margin[0] <= y <= height + margin[0]):
        warn(
            f"{e.path or 'the image'}: the map of {e.label!r} at {e.layer} has its maximum in the border around the image, which "
            "is not drawn; look at another layer, or choose fit='stretch' or 'crop' (--fit)"
        )


def _explain(
    model: Model,
    spec: InputSpec,
    x: Array,
    images: Sequence[reading.Image],
    paths: Sequence[Path | None],
    layers: Sequence[Layer],
    targets: Sequence[Sequence[Target]],
    settings: Settings,
    task: Task | None,
    exclusive: bool,
    frames: Sequence[Frame | None] = (),
    values: Sequence[Array | None] = (),
) -> list[list[Explanation]]:
    """Explain inputs that are one batch `x`; `values` where they are not RGB images, else `frames`."""
    values, frames = values or [None] * len(images), frames or [None] * len(images)
    rank = 2 if values[0] is None else values[0].ndim - 1
    if settings.augment and rank < 2:
        raise InputError("augment mirrors images, and a signal has no left and right; leave augment out")
    count = len(targets[0]) if "gradients" in settings.method.inputs or len(layers) > 1 else 0
    cotangents = _Cotangents(model, targets, count, task, frames)
    traces = _clean_traces(model, x, layers, cotangents)
    resolved, outputs = cotangents.resolved, traces[0].outputs
    for target in resolved[0]:
        output_checks.check(model, target, pick(outputs, [0]))
    grids = [fitted_grid(model, layer, one, spec, x.shape, rank) for layer, one in zip(layers, traces, strict=True)]

    def raw_maps(x: Array, traces: Sequence[Trace]) -> list[list[Array]]:
        """Return for each layer, and each target, the maps [N, *spatial]."""
        result = []
        for layer, grid, one in zip(layers, grids, traces, strict=True):
            check_finite(x, one, model, layer)
            result.append(
                [
                    MethodContext(model, layer, grid, x, one, [row[m] for row in resolved], m)(
                        settings.method, settings.method_options
                    )
                    for m in range(len(targets[0]))
                ]
            )
        return result

    is_exclusive = exclusive and bool(set(settings.method.inputs) - {"activations", "x"})
    cams = raw_maps(x, traces)
    if settings.augment:
        variants = [cams]
        for is_mirrored, factor in AUGMENTATIONS:
            changed = augmented(x, spec, is_mirrored, factor)
            maps = raw_maps(changed, _traces(model, changed, layers, cotangents if count else None))
            variants.append([[np.flip(cam, -1) for cam in row] if is_mirrored else row for row in maps])
        cams = [
            [np.mean(same, axis=0) for same in zip(*of_layer, strict=True)]
            for of_layer in zip(*variants, strict=True)
        ]

    def explanation(n: int, m: int) -> Explanation:
        counted = own_scale(traces, n, m) if is_exclusive else range(len(layers))
        maps = [of_layer[m][n] if k in counted else np.zeros_like(of_layer[m][n]) for k, of_layer in enumerate(cams)]
        if not any(cam.max() > 0 for cam in maps):
            k = counted[-1]
            warn(zero_message(paths[n], layers[k], maps[k], traces[k], n), ZeroHeatmapWarning)
        e = _explanation(
            model, outputs, n, resolved[n][m], maps[0], images[n], paths[n], layers[0], settings, values[n]
        )
        e = with_regions(replace(e, frame=frames[n]), task, pick(outputs, [n]), model.labels)
        if len(layers) == 1:
            return e
        return fuse([replace(e, cam=cam, layer=layer.name) for cam, layer in zip(maps, layers, strict=True)], "max")

    return [[explanation(n, m) for m in range(len(targets[0]))] for n in range(len(images))]


class _Cotangents:
    """The cotangents of a batch: targets are resolved on the first, clean outputs, and then fixed."""

    def __init__(
        self,
        model: Model,
        targets: Sequence[Sequence[Target]],
        count: int,
        task: Task | None,
        frames: Sequence[Frame | None],
    ) -> None:
        self.model, self.targets, self.count = model, targets, count
        self.task, self.frames = task, frames
        self.resolved: list[list[Target]] = []
        self.errors: list[BaseException] = []
        """Errors that a target raised: they reach the caller unchanged."""

    def __call__(self, outputs: Outputs) -> list[Outputs]:
        try:
            if not self.resolved:
                validation.check_rows(self.model, outputs, len(self.targets))
                self.resolved = [
                    [resolved(target, pick(outputs, [n]), self.model, self.task, self.frames[n]) for target in row]
                    for n, row in enumerate(self.targets)
                ]
            return [
                stack([cotangent(row[m], pick(outputs, [n])) for n, row in enumerate(self.resolved)])
                for m in range(self.count)
            ]
        except Exception as error:
            self.errors.append(error)
            raise


def _traces(model: Model, x: Array, layers: Sequence[Layer], cotangents: _Cotangents | None) -> list[Trace]:
    """Return a trace at each layer, from one pass."""
    if len(layers) == 1:
        return [validation.trace(model, x, layers[0], cotangents)]
    return validation.trace(model, x, layers, cotangents)


def _clean_traces(model: Model, x: Array, layers: Sequence[Layer], cotangents: _Cotangents) -> list[Trace]:
    """Trace the model; an error of the model becomes a ModelError with a remedy."""
    try:
        traces = _traces(model, x, layers, cotangents if cotangents.count else None)
        if not cotangents.count:
            cotangents(traces[0].outputs)
        return traces
    except (XcamError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if error in cotangents.errors:
            raise
        fewer = ", or explain fewer images at once: batch=1 (--batch 1 of `xcam batch`)" if len(x) > 1 else ""
        raise ModelError(
            f"{model.name} fails on a batch of {len(x)}: {first_line(error)}; check that it runs without xcam{fewer}"
        ) from error


def resolved(
    target: Target, outputs: Outputs, model: Model, task: Task | None = None, frame: Frame | None = None
) -> Target:
    """Return a target whose class, box, region and activation are fixed on the outputs for one image."""
    if task is not None and task.kind in ("detection", "segmentation"):
        if isinstance(target, ClassScore) and target.output is None:
            target = Located(target.index, rank=target.rank, score=target.score)
        if isinstance(target, Finer) or (isinstance(target, Classes) and target.output is None):
            raise InputError(
                f"cannot explain a difference of classes: the task is {task.text}; give one class, or a class of a region, as "
                "in person@120,40,300,500"
            )
    if isinstance(target, Located):
        labels = None if task is None else task.labels(model.labels)
        return cast(Target, regions.resolved(target, task or Task("classification"), outputs, frame, labels))
    if isinstance(target, ClassScore) and target.output is None and model.labels is not None:
        count = scores(outputs).shape[1]
        if len(model.labels) != count:
            is_pair = len(model.labels) == 2 and list(model.labels) == list(pair(model.labels[1:]))
            labels = formatting.count(len(model.labels) - is_pair, "label")
            raise InputError(f"cannot use {labels} for the {count} classes of {model.name}; give one for each")
    is_known = not isinstance(outputs, Mapping) or getattr(target, "output", None) in (None, *outputs)
    if isinstance(target, ClassScore) and not isinstance(target.activation, str) and is_known:
        target = replace(target, activation=output_checks.activation_of(model, outputs, target.output))
    if isinstance(target, Detection) and target.classes is None and model.labels is not None and is_known:
        shape = one_output(outputs, target.output).shape
        if any(n - len(model.labels) in (4, 5) for n in shape[1:]):
            target = replace(target, classes=len(model.labels))
    resolve: Callable[[Outputs], Target] | None = getattr(target, "resolve", None)
    return resolve(outputs) if resolve else target


def _explanation(
    model: Model,
    outputs: Outputs,
    n: int,
    target: Target,
    cam: Array,
    image: reading.Image,
    path: Path | None,
    layer: Layer,
    settings: Settings,
    values: Array | None,
) -> Explanation:
    outputs = pick(outputs, [n])
    index = target.index if isinstance(target, ClassScore) else None
    name = target.output if isinstance(target, ClassScore | Classes) else None
    raw = one_output(outputs, name)
    raw = raw[:, None] if raw.ndim == 1 else raw
    probability = raw
    if isinstance(target, ClassScore | Classes):
        fixed = target.activation if isinstance(target, ClassScore) else None
        link = fixed if isinstance(fixed, str) else output_checks.activation_of(model, outputs, name)
        raw, probability = scores(raw, activation=link), probabilities(raw, link)
    return Explanation(
        image=image,
        cam=cam.astype(np.float32, copy=False),
        outputs=raw[0],
        scores=probability[0],
        target=target,
        index=index,
        label=getattr(target, "name", type(target).__name__) if index is None else class_label(model.labels, index),
        score=float(target_values(target, outputs, 1)[0]),
        layer=layer.name,
        method=settings.method.name,
        backend=model.backend,
        model=model.name,
        normalize=settings.normalize,
        path=path,
        notes=(*model.notes, *(["gradients: by differences"] if by_differences(model, settings.method) else [])),
        labels=model.labels,
        output=(getattr(target, "output", None) or next(iter(outputs))) if isinstance(outputs, Mapping) else None,
        values=values,
    )
