"""Loading of Keras models from a file, a name or a live object."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from xcam.contract.fixed import FixedInputs, note
from xcam.contract.messages import own_weights
from xcam.contract.plugins import DEMOS
from xcam.contract.types import Layout, Model
from xcam.errors import BackendError
from xcam_keras.quiet import quiet

with quiet():
    import keras

    from xcam_keras.engine import engine

    with contextlib.suppress(BackendError):  # load() raises it again
        engine()

from xcam_keras import demo, zoo
from xcam_keras.files import read
from xcam_keras.keras2.live import is_keras2, rebuilt
from xcam_keras.model import KerasModel
from xcam_keras.several import with_fixed


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
        inputs: FixedInputs | None = None,
    ) -> Model:
        """Load a model.

        Args:
            source: path of a `.keras` or `.h5` file or of a SavedModel folder, a name of keras.applications, `demo`, or
                a live model of Keras 3 or of tf_keras.
            size: (H, W) of a model that is known by name.
            device: `cpu`, `gpu`, `cuda:1`, …; default: Keras chooses.
            layout: layout of the input and of layers that do not declare one.
            weights: for a name: `imagenet`, `none`, or a file of weights.
            inputs: the values of the other inputs.

        Raises:
            InputError: an argument cannot be used.
            ModelError: the model cannot be read.
            BackendError: Keras runs on an engine that is not supported.
        """
        if weights is not None and not isinstance(source, str):
            raise own_weights("a file or a live model", weights)
        device = engine().device_name(device)
        fixed = inputs or FixedInputs()
        with engine().running(device):
            if isinstance(source, Path) and source.is_dir():
                return _graph_model(source, device, layout, source.name, fixed)
            if is_keras2(source):
                model = rebuilt(source)
                if model is None:
                    return _graph_model(source, device, layout, source.name, fixed)
                return _keras_model(model, zoo.known(model), device, layout, fixed)
            if isinstance(source, str):
                build = demo.build if source in DEMOS else zoo.build
                model, facts = build(source, size=size, weights=weights)
            else:
                model = read(source) if isinstance(source, Path) else source
                facts = zoo.known(model) | ({"name": source.name} if isinstance(source, Path) else {})
            return _keras_model(model, facts, device, layout, fixed)


def _keras_model(
    model: keras.Model, facts: dict[str, Any], device: str | None, layout: Layout | None, fixed: FixedInputs
) -> Model:
    notes = (*facts.pop("notes", ()), *note(fixed.values))
    return KerasModel(with_fixed(model, fixed, facts.get("size")), device=device, layout=layout, notes=notes, **facts)


def _graph_model(source: Any, device: str | None, layout: Layout | None, name: str, fixed: FixedInputs) -> Model:
    """Return a SavedModel folder or a live model of Keras 2 as a graph of TensorFlow. Raises BackendError, ModelError."""
    if keras.backend.backend() != "tensorflow":
        raise BackendError(
            f"cannot load {name} with Keras on {keras.backend.backend()}: it is a graph of TensorFlow; set "
            "KERAS_BACKEND=tensorflow before Keras is imported"
        )
    from xcam_keras import saved_model

    read = saved_model.read if isinstance(source, Path) else saved_model.live
    return saved_model.GraphModel(
        read(source, fixed), name=name, device=device, layout=layout, notes=note(fixed.values)
    )
