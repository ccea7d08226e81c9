"""Loading of Keras models from a file, a name or a live object."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from xcam.contract.messages import one_line, own_weights
from xcam.contract.types import Layout
from xcam.errors import BackendError, InputError, ModelError
from xcam_keras.quiet import quiet

with quiet():
    import keras

    from xcam_keras.engine import engine

    with contextlib.suppress(BackendError):  # load() raises it again
        engine()

from xcam_keras import demo, zoo
from xcam_keras.model import KerasModel


class KerasBackend:
    """The backend for Keras 3 on TensorFlow, torch or JAX."""

    def load(
        self,
        source: Any,
        *,
        size: tuple[int | None, int | None] | None = None,
        device: str | None = None,
        layout: Layout | None = None,
        weights: str | None = None,
    ) -> KerasModel:
        """Load a model.

        Args:
            source: path of a `.keras` or `.h5` file, a name of keras.applications, `demo`, or a live keras.Model.
            size: (H, W) of a model that is known by name.
            device: `cpu`, `gpu`, `cuda:1`, …; default: Keras chooses.
            layout: layout of the input and of layers that do not declare one.
            weights: for a name: `imagenet`, `none`, or a file of weights.

        Raises:
            InputError: an argument cannot be used.
            ModelError: the model cannot be read.
            BackendError: Keras runs on an engine that is not supported.
        """
        if weights is not None and not isinstance(source, str):
            raise own_weights("a file or a live model", weights)
        device = engine().device_name(device)
        with engine().running(device):
            if isinstance(source, str):
                build = demo.build if source == "demo" else zoo.build
                model, facts = build(source, size=size, weights=weights)
            else:
                model = read(source) if isinstance(source, Path) else source
                facts = zoo.known(model) | ({"name": source.name} if isinstance(source, Path) else {})
            return KerasModel(model, device=device, layout=layout, **facts)


def read(path: Path) -> keras.Model:
    """Return a saved model. `safe_mode` stays on: a file must not run Python code.

    Raises:
        InputError: the file is not of a kind that Keras loads.
        ModelError: it cannot be read.
    """
    if path.name.endswith(".weights.h5"):
        raise InputError(f"cannot load {path}: it holds weights only; name the model too: -m vgg16 --weights {path}")
    if path.suffix.lower() not in (".keras", ".h5", ".hdf5"):
        raise InputError(f"cannot load {path}: Keras does not read this kind of file; give a .keras or .h5 file")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        text = " ".join(str(error).split())
        if "safe_mode" in text or "unsafe" in text.lower():
            remedy = "it contains Python code: load it yourself if you trust it, and pass the model object"
        elif "ould not locate" in text or "Unknown layer" in text or "custom_objects" in text:
            remedy = "register its classes with keras.saving.register_keras_serializable, or pass the model object"
        else:
            remedy = "check that it was saved by model.save(), by Keras 3 or in the h5 format, and is complete"
        raise ModelError(f"cannot load {path}: {one_line(error)}; {remedy}") from error
    if not isinstance(model, keras.Model):
        raise ModelError(f"cannot load {path}: it holds a {type(model).__name__}, not a model; save the whole model")
    return model
