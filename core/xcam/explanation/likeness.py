"""The target `like:other.jpg`: the similarity of the embedding of an image to that of another image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xcam.contract import InputSpec, Model, one_output, validation
from xcam.errors import InputError
from xcam.explanation.inputs import input_preprocessing, input_size
from xcam.images import batches, reading
from xcam.targets import Similarity

PREFIX = "like:"


def likeness(aim: Any, model: Model, spec: InputSpec | None) -> Any:
    """Return the target that `like:FILE` means: the cosine similarity to the model's output for that image.

    The image is prepared as the model's own images are.

    Args:
        aim: A target, as `explain` takes it; others are returned as they are.
        model: The model.
        spec: The model's input, where the caller states another preprocessing; None: the model's own.

    Raises:
        InputError: The image cannot be read.
    """
    if not isinstance(aim, str) or not aim.casefold().startswith(PREFIX) or _is_label(aim, model.labels):
        return aim
    path = Path(aim[len(PREFIX) :].strip())
    if path.name == "":
        raise InputError(f"cannot use {aim!r} as a target; give an image, as in like:other.jpg")
    image = reading.read(path)
    # `spec` may be that of images that have the model's size already.
    stated = model.input if spec is None else replace(model.input, preprocessing=spec.preprocessing)
    size = input_size(stated, image.shape)
    x = batches.batch([image], stated, size, input_preprocessing(stated, model.name))
    return Similarity(one_output(validation.predict(model, x))[0], name=f"like {path.name}")


def _is_label(text: str, labels: Sequence[str] | None) -> bool:
    return text in (labels or ())
