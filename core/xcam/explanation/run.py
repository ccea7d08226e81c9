"""Explaining one batch of images at one layer: one trace, and the method's map for each target."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from xcam.contract import Array, InputSpec, Layer, Model, Outputs, Trace, one_output, validation
from xcam.errors import InputError, ModelError, XcamError, ZeroHeatmapWarning, first_line, warn
from xcam.explanation import outputs as output_checks
from xcam.explanation.checks import check_finite, zero_message
from xcam.explanation.context import MethodContext, by_differences, cotangent, pick, stack
from xcam.explanation.context import values as target_values
from xcam.explanation.fitting import fitted_grid
from xcam.explanation.inputs import AUGMENTATIONS, augmented, input_preprocessing, input_size
from xcam.explanation.result import Explanation, class_label
from xcam.explanation.samples import Sample
from xcam.explanation.settings import Settings
from xcam.images import batches, framing, reading, views
from xcam.images.framing import Frame
from xcam.models.labels import pair
from xcam.report import formatting
from xcam.targets import Classes, ClassScore, Detection, Target, probabilities, scores

ImageSource = str | os.PathLike[str] | Array
"""One image, as `explain` takes it: a path, RGB uint8 [H, W, 3], or an array as the model takes it."""


def explain_batch(
    model: Model,
    spec: InputSpec,
    sources: Sequence[ImageSource | Sample],
    layer: Layer,
    targets: Sequence[Sequence[Target]],
    settings: Settings,
) -> list[list[Explanation]]:
    """Explain a batch of images.

    Args:
        model: The model.
        spec: The size, layout and preprocessing of its input; may differ from `model.input`.
        sources: The images, or samples of one shape.
        layer: The layer of the maps.
        targets: For each image its targets, the same number for all.
        settings: The method and the other options.

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
            layer,
            targets,
            settings,
            [sample.values for sample in samples],
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
        explained = _explain(
            model, spec, x, same, [paths[n] for n in rows], layer, [targets[n] for n in rows], settings
        )
        for n, result in zip(rows, explained, strict=True):
            frame = framing.frame(images[n].shape, size, spec.fit)
            results[n] = [replace(e, frame=frame) for e in result]
            for e in results[n]:
                _warn_of_border(e, frame)
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
    layer: Layer,
    targets: Sequence[Sequence[Target]],
    settings: Settings,
    values: Sequence[Array | None] = (),
) -> list[list[Explanation]]:
    """Explain inputs that are one batch `x`; `values` where they are not RGB images."""
    values = values or [None] * len(images)
    rank = 2 if values[0] is None else values[0].ndim - 1
    if settings.augment and rank < 2:
        raise InputError("augment mirrors images, and a signal has no left and right; leave augment out")
    count = len(targets[0]) if "gradients" in settings.method.inputs else 0
    cotangents = _Cotangents(model, targets, count)
    trace = _clean_trace(model, x, layer, cotangents)
    resolved = cotangents.resolved
    for target in resolved[0]:
        output_checks.check(model, target, pick(trace.outputs, [0]))
    grid = fitted_grid(model, layer, trace, spec, x.shape, rank)

    def raw_maps(x: Array, trace: Trace) -> list[Array]:
        """Return for each target the maps [N, *spatial]."""
        check_finite(x, trace, model, layer)
        return [
            MethodContext(model, layer, grid, x, trace, [row[m] for row in resolved], m)(
                settings.method, settings.method_options
            )
            for m in range(len(targets[0]))
        ]

    cams = raw_maps(x, trace)
    if settings.augment:
        variants = [cams]
        for is_mirrored, factor in AUGMENTATIONS:
            changed = augmented(x, spec, is_mirrored, factor)
            maps = raw_maps(changed, validation.trace(model, changed, layer, cotangents if count else None))
            variants.append([np.flip(cam, -1) for cam in maps] if is_mirrored else maps)
        cams = [np.mean(same, axis=0) for same in zip(*variants, strict=True)]
    return [
        [
            _explanation(model, trace, n, resolved[n][m], cams[m][n], images[n], paths[n], layer, settings, values[n])
            for m in range(len(cams))
        ]
        for n in range(len(images))
    ]


class _Cotangents:
    """The cotangents of a batch: targets are resolved on the first, clean outputs, and then fixed."""

    def __init__(self, model: Model, targets: Sequence[Sequence[Target]], count: int) -> None:
        self.model, self.targets, self.count = model, targets, count
        self.resolved: list[list[Target]] = []
        self.errors: list[BaseException] = []
        """Errors that a target raised: they reach the caller unchanged."""

    def __call__(self, outputs: Outputs) -> list[Outputs]:
        try:
            if not self.resolved:
                validation.check_rows(self.model, outputs, len(self.targets))
                self.resolved = [
                    [resolved(target, pick(outputs, [n]), self.model) for target in row]
                    for n, row in enumerate(self.targets)
                ]
            return [
                stack([cotangent(row[m], pick(outputs, [n])) for n, row in enumerate(self.resolved)])
                for m in range(self.count)
            ]
        except Exception as error:
            self.errors.append(error)
            raise


def _clean_trace(model: Model, x: Array, layer: Layer, cotangents: _Cotangents) -> Trace:
    """Trace the model; an error of the model becomes a ModelError with a remedy."""
    try:
        trace = validation.trace(model, x, layer, cotangents if cotangents.count else None)
        if not cotangents.count:
            cotangents(trace.outputs)
        return trace
    except (XcamError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if error in cotangents.errors:
            raise
        fewer = ", or explain fewer images at once: batch=1 (--batch 1 of `xcam batch`)" if len(x) > 1 else ""
        raise ModelError(
            f"{model.name} fails on a batch of {len(x)}: {first_line(error)}; check that it runs without xcam{fewer}"
        ) from error


def resolved(target: Target, outputs: Outputs, model: Model) -> Target:
    """Return a target whose class, activation and number of classes are fixed on the outputs for one image."""
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
    trace: Trace,
    n: int,
    target: Target,
    cam: Array,
    image: reading.Image,
    path: Path | None,
    layer: Layer,
    settings: Settings,
    values: Array | None,
) -> Explanation:
    outputs = pick(trace.outputs, [n])
    index = target.index if isinstance(target, ClassScore) else None
    name = target.output if isinstance(target, ClassScore | Classes) else None
    raw = one_output(outputs, name)
    raw = raw[:, None] if raw.ndim == 1 else raw
    probability = raw
    if isinstance(target, ClassScore | Classes):
        fixed = target.activation if isinstance(target, ClassScore) else None
        link = fixed if isinstance(fixed, str) else output_checks.activation_of(model, outputs, name)
        raw, probability = scores(raw, activation=link), probabilities(raw, link)
    if not cam.max() > 0:
        warn(zero_message(path, layer, cam, trace, n), ZeroHeatmapWarning)
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
