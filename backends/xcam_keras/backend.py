"""From a file, a name or a live object to a Keras model behind the contract."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from xcam.contract import Layout
from xcam.errors import BackendError, InputError, ModelError
from xcam_keras.quiet import quiet

with quiet():
    import keras

    from xcam_keras.engine import engine

    with contextlib.suppress(BackendError):  # load() says so
        engine()

from xcam_keras import demo, zoo
from xcam_keras.model import KerasModel


class KerasBackend:
    """Keras 3, on whichever of TensorFlow, torch and JAX it runs."""

    def load(
        self,
        source: Any,
        *,
        size: tuple[int, int] | None = None,
        device: str | None = None,
        layout: Layout | None = None,
        weights: str | None = None,
    ) -> KerasModel:
        """A `.keras` or `.h5` file, a name of keras.applications, `demo`, or a live keras.Model."""
        if weights is not None and not isinstance(source, str):
            raise InputError("weights go with a model known by name; a file or a live model brings its own")
        where = engine().device_name(device)
        with engine().running(where):
            if isinstance(source, keras.Model):
                return KerasModel(source, device=where, layout=layout, **zoo.known(source))
            if isinstance(source, Path):
                model = read(source)
                return KerasModel(model, name=source.name, device=where, layout=layout, **zoo.known(model))
            build = demo.build if source == "demo" else zoo.build
            model, facts = build(source, size=size, weights=weights)
            return KerasModel(model, device=where, layout=layout, **facts)


def read(path: Path) -> keras.Model:
    """A saved model. `safe_mode` stays on: a file may not bring Python code with it. Raises ModelError, InputError."""
    if path.name.endswith(".weights.h5"):
        raise InputError(f"{path} holds weights without a model; name the model too: -m vgg16 --weights {path}")
    if path.suffix.lower() not in (".keras", ".h5", ".hdf5"):
        raise InputError(f"{path} is no file that Keras loads; give a .keras or .h5 file")
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        text = " ".join(str(error).split())
        if "safe_mode" in text or "unsafe" in text.lower():
            remedy = "it brings Python code with it; load it yourself if you trust it, and pass the model object"
        elif "ould not locate" in text or "Unknown layer" in text or "custom_objects" in text:
            remedy = "register its classes with keras.saving.register_keras_serializable, or pass the model object"
        else:
            remedy = "check that it was saved by model.save(), by Keras 3 or in the h5 format, and arrived whole"
        raise ModelError(f"cannot load {path}: {text[:200]}; {remedy}") from error
    if not isinstance(model, keras.Model):
        raise ModelError(f"{path} holds a {type(model).__name__}, not a model; save the whole model")
    return model
