"""Models of keras.applications by name, each with its size, preprocessing and class names."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from xcam.contract.messages import RANDOM_WEIGHTS, one_line
from xcam.contract.preprocessing import PRESETS, Preprocessing, preset
from xcam.contract.types import DEFAULT_SIZE, Array
from xcam.errors import InputError, ModelError, nearest
from xcam.models import labels
from xcam.models.load import by


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def names() -> dict[str, Callable[..., keras.Model]]:
    """Return every builder of keras.applications by its name in lower case without `_` and `-`."""
    return {_plain(name): getattr(keras.applications, name) for name in dir(keras.applications) if name[0].isupper()}


def build(
    name: str, *, size: tuple[int | None, int | None] | None, weights: str | None
) -> tuple[keras.Model, dict[str, Any]]:
    """Return a model of keras.applications, and its name, preprocessing, labels and notes.

    Args:
        name: such as `vgg16` or `MobileNetV2`; case, `_` and `-` do not matter.
        size: (H, W); default: the model's own.
        weights: `imagenet` (default), `none` (seeded random weights), or a file.

    Raises:
        InputError: unknown name or file, or a size that the weights do not allow.
        ModelError: the weights cannot be read or downloaded.
    """
    builder = names().get(_plain(name))
    if builder is None:
        raise InputError(
            f"unknown model {name!r} in keras.applications; {nearest(_plain(name), names())}; or give a model file"
        )
    shape = {} if size is None else {"input_shape": (*size, 3)}
    path = None if weights in (None, "imagenet", "none") else Path(str(weights))
    if path and not path.is_file():
        raise InputError(f"cannot read weights from {path}: no such file; give a .weights.h5 file, imagenet or none")
    state = random.getstate()
    random.seed(0)  # Keras draws the seeds of its initialisers from this generator
    try:
        model = builder(weights="imagenet" if weights in (None, "imagenet") else None, **shape)
    except Exception as error:
        if size is not None and isinstance(error, ValueError) and "input" in str(error):
            raise InputError(
                f"cannot use size {by(size)} for {name} with these weights; leave size out, or give weights='none' (--weights none)"
            ) from error
        if any(isinstance(e, OSError) for e in (error, error.__cause__, error.__context__)) or "URL" in str(error):
            raise _no_download(name, error) from error
        raise
    finally:
        random.setstate(state)
    if path:
        try:
            model.load_weights(path)
        except (OSError, ValueError) as error:
            remedy = "check the file" if size is None else "check the file, or leave size out"
            raise ModelError(f"cannot load {path} into {name}: {one_line(error)}; {remedy}") from error
    facts = _facts(builder, model)
    return model, facts | {"name": _plain(name), "notes": (RANDOM_WEIGHTS,) if weights == "none" else ()}


def _no_download(name: str, error: Exception) -> ModelError:
    file = re.search(r"/([^/\s]+\.h5)", str(error))
    weights = file[1] if file else f"the weights of {name}"
    folder = Path(keras.config.keras_home() if hasattr(keras.config, "keras_home") else "~/.keras") / "models"
    return ModelError(
        f"cannot download the ImageNet weights of {name}; put {weights} into {folder} by hand, "
        "or use --weights FILE, or --weights none for random ones"
    )


def known(model: keras.Model) -> dict[str, Any]:
    """Return preprocessing and labels of a model of keras.applications, identified by name and number of classes."""
    builder = names().get(_plain(re.sub(r"_?1\.00_224$", "", model.name)))
    shape = getattr(model, "output_shape", None)
    if builder is None or not isinstance(shape, tuple) or shape[-1:] != (1000,):
        return {}
    return _facts(builder, model)


def _facts(builder: Callable[..., keras.Model], model: keras.Model) -> dict[str, Any]:
    classes = model.output_shape[-1]
    preprocessing = preprocessing_of(sys.modules[builder.__module__].preprocess_input)
    return {
        # A function that changes nothing says that the model scales pixels itself, unless it was built without this.
        "preprocessing": None if preprocessing == PRESETS["raw"] else preprocessing,
        "size": DEFAULT_SIZE,  # for models that leave it open: MobileNetV3
        "labels": labels.imagenet() if classes == 1000 else None,
    }


def preprocessing_of(function: Callable[[Array], Array]) -> Preprocessing:
    """Return the affine form of one of Keras' `preprocess_input` functions, from its values for black and pure colours.

    This avoids a table of models, and the core computes the preprocessing for all frameworks.
    """
    black = function(np.zeros((1, 1, 1, 3), np.float32)).ravel()
    colours = np.stack([function(255 * colour.reshape(1, 1, 1, 3)).ravel() for colour in np.eye(3, dtype=np.float32)])
    gain = (colours - black) / 255  # [RGB in, channel out]
    order = "BGR" if abs(gain[0, 2]) > abs(gain[0, 0]) else "RGB"
    scale = np.diag(gain[::-1] if order == "BGR" else gain)
    return preset(
        Preprocessing("keras", mean=tuple((-black / scale).tolist()), std=tuple((1 / scale).tolist()), order=order)
    )
