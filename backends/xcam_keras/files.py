"""Reading of model files: those of Keras 3, and those of Keras 2, whose configuration is repaired first."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from xcam.errors import InputError, ModelError
from xcam_keras.causes import cause
from xcam_keras.keras2.build import build
from xcam_keras.keras2.weights import assign, assign_parts

SUFFIXES = (".keras", ".h5", ".hdf5")


def read(path: Path) -> keras.Model:
    """Return a saved model. `safe_mode` stays on: a file must not run Python code. The file is not changed.

    Raises:
        InputError: the file is not of a kind that Keras loads.
        ModelError: it cannot be read.
    """
    weights_only = InputError(
        f"cannot load {path}: it holds weights only; name the model too: -m vgg16 --weights {path}"
    )
    if path.name.endswith(".weights.h5"):
        raise weights_only
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"cannot load {path}: Keras does not read this kind of file; give a .keras or .h5 file, or the folder of a SavedModel"
        )
    version = None
    try:
        saved = _keras2(path)
        if saved is None:
            model = keras.saving.load_model(path, compile=False)
        elif saved.config is None:
            raise weights_only
        else:
            version = saved.version
            model = build(saved.config)
            saved.fill(model)
    except InputError:
        raise
    except Exception as error:
        text = cause(error)
        if version:
            raise ModelError(
                f"cannot load {path}, written by Keras {version}: {text}; if you trust it, convert it to a folder that xcam "
                f"loads: pip install tf_keras; {_conversion(path)}"
            ) from error
        raise ModelError(f"cannot load {path}: {text}; {_remedy(str(error))}") from error
    if not isinstance(model, keras.Model):
        raise ModelError(f"cannot load {path}: it holds a {type(model).__name__}, not a model; save the whole model")
    return model


@dataclass
class Saved:
    """The content of a file of Keras 2."""

    version: str
    config: dict[str, Any] | None
    """None: the file has weights only."""
    fill: Callable[[keras.Model], None]
    """Sets the weights of the model that was built from `config`."""


def _keras2(path: Path) -> Saved | None:
    """Return the content of a file that Keras 2 wrote, else None."""
    import h5py

    if path.suffix.lower() == ".keras":
        return _keras2_archive(path) if zipfile.is_zipfile(path) else None
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        version = _text(file.attrs.get("keras_version", group.attrs.get("keras_version", "")))
        if not version.startswith("2."):
            return None
        if _text(group.attrs.get("backend", "")) == "theano":
            raise ModelError("it was written by Keras on Theano, whose kernels are mirrored")
        weights = {}
        for layer in _list(group, "layer_names"):
            names = _list(group[layer], "weight_names")
            weights[layer] = [(name, np.asarray(group[layer][name])) for name in names]
        text = file.attrs.get("model_config")
        config = None if text is None else json.loads(_text(text))
        return Saved(version, config, lambda model: assign(model, config or {}, weights))


def _keras2_archive(path: Path) -> Saved | None:
    """Return the content of a .keras file that Keras 2.12 or newer wrote, else None."""
    import h5py

    with zipfile.ZipFile(path) as archive:
        version = str(json.loads(archive.read("metadata.json")).get("keras_version", ""))
        if not version.startswith("2."):
            return None
        config = json.loads(archive.read("config.json"))
        data = archive.read("model.weights.h5")

    def fill(model: keras.Model) -> None:
        with h5py.File(io.BytesIO(data), "r") as group:
            assign_parts(model, config, group)

    return Saved(version, config, fill)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _list(group: Any, name: str) -> list[str]:
    """Return a list of names, which is divided into `name0`, `name1`, … where it is long."""
    if name in group.attrs:
        return [_text(value) for value in group.attrs[name]]
    result: list[str] = []
    while f"{name}{len(result)}" in group.attrs:
        result.append(f"{name}{len(result)}")
    return [_text(value) for part in result for value in group.attrs[part]]


def _remedy(text: str) -> str:
    if "safe_mode" in text or "unsafe" in text.lower():
        return "it contains Python code: load it yourself if you trust it, and pass the model object"
    if any(sign in text for sign in ("ould not locate", "Unknown layer", "custom_objects")):
        return "register its classes with keras.saving.register_keras_serializable, or pass the model object"
    return "check that it was saved by model.save(), by Keras 3 or in the h5 format, and is complete"


def _conversion(path: Path) -> str:
    """Return the shell command that converts a file of Keras 2 to a SavedModel, which xcam loads."""
    code = f"import tf_keras; tf_keras.models.load_model({str(path)!r}, compile=False).export({str(path.with_suffix(''))!r})"
    special = any(character in code for character in '"$`!\\')
    quoted = shlex.quote(code) if special else f'"{code}"'
    return f"python -c {quoted}"
