"""The inputs of a comparison: one preprocessing and one size for all models, and the images, read one by one.

The models are not changed: each gets an `InputSpec` for the common input.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xcam.contract import DEFAULT_SIZE, Array, InputSpec, Model, preprocessing, validation
from xcam.contract.fit import STRETCH, Fit, for_size
from xcam.contract.layouts import filled
from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.errors import XcamError, warn
from xcam.explanation.inputs import input_size
from xcam.images import batches, reading
from xcam.models.load import by


def common_inputs(models: Sequence[Model], preprocess: str | Preprocessing | None) -> list[InputSpec]:
    """Return for each model its input, with the missing preprocessing, fit and size filled in.

    Models that do not state a preprocessing get `preprocess`, or that of the first model that states one, else `unit`
    with a warning. Models that do not state a fit get that of the first model that states one, so that all see the same
    pixels. Open sides are those of a model with a fixed size, else those that are stated first.
    """
    for model in models:
        validation.layers(model)  # the first run may correct the input
    preset = common_preprocessing(models, preprocess)
    if preset is None:
        warn("no model states how images are scaled: 'unit' (0…1) is used; choose with preprocess= (--preprocess)")
        preset = PRESETS["unit"]
    stated = sorted((model.input for model in models), key=lambda spec: not spec.fixed)
    fitting = [model.input for model in models if model.input.fit is not None][:1]
    return [
        dataclasses.replace(
            model.input,
            preprocessing=model.input.preprocessing or preset,
            size=functools.reduce(filled, (spec.size for spec in stated), model.input.size),
            fit=model.input.fit or (_fit_of(fitting[0], model.input) if fitting else None),
        )
        for model in models
    ]


def _fit_of(stated: InputSpec, other: InputSpec) -> Fit | None:
    """Return the fit that a model states, for the size of another model."""
    if stated.fit is None or other.size in (None, stated.size):
        return stated.fit
    return for_size(stated.fit, stated.size, other.size)


def common_preprocessing(models: Sequence[Model], preprocess: str | Preprocessing | None) -> Preprocessing | None:
    """Return the given preprocessing, or the first that a model states; None where no model states one."""
    stated = (model.input.preprocessing for model in models if model.input.preprocessing is not None)
    return preprocessing.preprocessing(preprocess) or next(stated, None)


def differences(
    models: Sequence[Model], specs: Sequence[InputSpec], preprocess: str | Preprocessing | None
) -> list[str]:
    """Return the differences of the models in preprocessing, size and labels, as text."""
    texts = []
    common = common_preprocessing(models, preprocess)
    for model in models:
        stated = model.input.preprocessing
        if stated is not None and common is not None and not _same(stated, common):
            texts.append(
                f"{model.name} ({model.backend}) states that it takes images scaled as {stated.name!r}, the others are "
                f"given {common.name!r}"
            )
    fits = {str(spec.fit or STRETCH): model for spec, model in zip(specs, models, strict=True)}
    if len({by(spec.size) for spec in specs}) == 1 and len(fits) > 1:
        listed = ", ".join(f"{model.name} ({model.backend}): {fit}" for fit, model in fits.items())
        texts.append(
            f"the models see different parts of an image, or other pixels of it, as each states its fit: {listed}"
        )
    sizes = {by(spec.size or DEFAULT_SIZE) for spec in specs}
    if len(sizes) > 1:
        texts.append(f"the models take images of different sizes: {', '.join(sorted(sizes))}")
    counts = [len(model.labels) if model.labels is not None else None for model in models]
    if len({count for count in counts if count is not None}) > 1:
        texts.append(f"the models have different numbers of labels: {', '.join(map(str, counts))}")
    return texts


def _same(first: Preprocessing, second: Preprocessing) -> bool:
    return dataclasses.replace(first, name="") == dataclasses.replace(second, name="")


def batch(spec: InputSpec, images: Sequence[reading.Image]) -> Array:
    """Return images as a model with this input takes them, all in the size of the first."""
    return batches.batch(images, spec, input_size(spec, images[0].shape), spec.preprocessing or PRESETS["unit"])


def read_images(sources: Sequence[Any], failed: list[tuple[str, str]]) -> Iterator[tuple[Path | None, reading.Image]]:
    """Yield the images one by one, arrays as copies; add those that cannot be read to `failed`."""
    for k, source in enumerate(sources):
        is_path = isinstance(source, str | os.PathLike)
        try:
            if is_path:
                yield Path(source), reading.read(source)
            else:
                yield None, np.array(reading.check(source))
        except XcamError as error:
            failed.append((str(source) if is_path else f"image {k + 1}", str(error)))
