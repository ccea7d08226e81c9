"""Loading of Keras models from a file, a name or a live object."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from xcam.contract.messages import own_weights
from xcam.contract.types import Layout
from xcam.errors import BackendError
from xcam_keras.quiet import quiet

with quiet():
    import keras  # noqa: F401

    from xcam_keras.engine import engine

    with contextlib.suppress(BackendError):  # load() raises it again
        engine()

from xcam_keras import demo, zoo
from xcam_keras.files import read
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
