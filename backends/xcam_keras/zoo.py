"""keras.applications: models by name, each with its own size, preprocessing and class names."""

from __future__ import annotations

import random
import re
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from xcam.contract import DEFAULT_SIZE
from xcam.contract.preprocessing import PRESETS, Preprocessing
from xcam.errors import InputError, ModelError, nearest
from xcam.models import labels

RANDOM_WEIGHTS = "random weights: this shows nothing about a trained model"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def names() -> dict[str, Callable[..., keras.Model]]:
    """Every builder of keras.applications by its name in lower case without `_` and `-`."""
    return {_plain(name): getattr(keras.applications, name) for name in dir(keras.applications) if name[0].isupper()}


def build(name: str, *, size: tuple[int, int] | None, weights: str | None) -> tuple[keras.Model, dict[str, Any]]:
    """A model of the zoo and what is known of it. weights: `imagenet` (default), `none` (seeded random), or a file."""
    builder = names().get(_plain(name))
    if builder is None:
        raise InputError(
            f"keras.applications has no {name!r}; {nearest(_plain(name), names())}; or give a model file"
        )
    shape = {} if size is None else {"input_shape": (*size, 3)}
    path = None if weights in (None, "imagenet", "none") else Path(str(weights))
    if path and not path.is_file():
        raise InputError(f"no such weights file: {path}; give a .weights.h5 file, imagenet or none")
    state = random.getstate()
    random.seed(0)  # Keras draws the cotangents of its initialisers from here
    try:
        model = builder(weights="imagenet" if weights in (None, "imagenet") else None, **shape)
        if path:
            model.load_weights(path)
    except ValueError as error:
        if size is not None and "input" in str(error):
            raise InputError(
                f"{name} cannot take {size[0]}×{size[1]} with these weights; leave size out, or use weights none"
            ) from error
        if path is None:
            raise
        raise ModelError(
            f"{path} does not fit {name}: {' '.join(str(error).split())[:200]}; check the file"
        ) from error
    except OSError as error:
        if path:
            raise ModelError(f"cannot read weights from {path}: {error}; check the file") from error
        raise _no_download(name, error) from error
    except Exception as error:
        if isinstance(error.__cause__ or error.__context__, urllib.error.URLError | OSError) or "URL" in str(error):
            raise _no_download(name, error) from error
        raise
    finally:
        random.setstate(state)
    facts = _facts(builder, model)
    return model, facts | {"name": _plain(name), "notes": (RANDOM_WEIGHTS,) if weights == "none" else ()}


def _no_download(name: str, error: Exception) -> ModelError:
    file = re.search(r"/([^/\s]+\.h5)", str(error))
    what = file[1] if file else f"the weights of {name}"
    folder = Path(keras.config.keras_home() if hasattr(keras.config, "keras_home") else "~/.keras") / "models"
    return ModelError(
        f"the ImageNet weights of {name} cannot be downloaded; put {what} into {folder} by hand, "
        "or use --weights FILE, or --weights none for random ones"
    )


def known(model: keras.Model) -> dict[str, Any]:
    """What the zoo knows of a model that is one of its own, seen from name and number of classes; else nothing."""
    builder = names().get(_plain(re.sub(r"_?1\.00_224$", "", model.name)))
    shape = getattr(model, "output_shape", None)
    if builder is None or not isinstance(shape, tuple) or shape[-1:] != (1000,):
        return {}
    return _facts(builder, model)


def _facts(builder: Callable[..., keras.Model], model: keras.Model) -> dict[str, Any]:
    classes = model.output_shape[-1]
    return {
        "preprocessing": preprocessing_of(sys.modules[builder.__module__].preprocess_input),
        "size": DEFAULT_SIZE,  # where the model itself fixes none: MobileNetV3
        "labels": labels.imagenet() if classes == 1000 else None,
    }


def preprocessing_of(function: Callable[[np.ndarray], np.ndarray]) -> Preprocessing:
    """The affine form of one of Keras' `preprocess_input` functions, found by giving it black and pure colours.

    So no table of models has to be kept here, and the core does the arithmetic for all frameworks.
    """
    black = function(np.zeros((1, 1, 1, 3), np.float32)).ravel()
    colours = np.stack([function(255 * colour.reshape(1, 1, 1, 3)).ravel() for colour in np.eye(3, dtype=np.float32)])
    gain = (colours - black) / 255  # [RGB in, channel out]
    order = "BGR" if abs(gain[0, 2]) > abs(gain[0, 0]) else "RGB"
    scale = np.diag(gain[::-1] if order == "BGR" else gain)
    for preset in PRESETS.values():
        p_scale = np.float32(preset.scale) / np.float32(preset.std)
        p_black = -np.float32(preset.mean) / np.float32(preset.std)
        if (
            preset.order == order
            and np.allclose(scale, p_scale, rtol=1e-4)
            and np.allclose(black, p_black, atol=1e-4)
        ):
            return preset
    return Preprocessing("keras", mean=tuple((-black / scale).tolist()), std=tuple((1 / scale).tolist()), order=order)
