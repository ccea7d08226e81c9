"""One model among several on the command line or in a configuration file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from xcam_cli.options import open_model


@dataclass
class ModelSpec:
    """A model and the options that belong to it alone."""

    model: str
    backend: str | None = None
    layer: str | None = None
    preprocess: str | None = None
    weights: str | None = None
    labels: str | None = None
    output: str | None = None

    def open(self, labels: str | None, output: str | None = None, **options: Any) -> Any:
        """Load the model; `labels` are used if the model has no class labels, `output` if none is its own."""
        from xcam.models.labels import load

        model = open_model(
            self.backend,
            self.model,
            preprocess=self.preprocess,
            weights=self.weights,
            labels=self.labels,
            output=self.output or output,
            **options,
        )
        if model.labels is None:
            model.labels = load(labels)
        return model

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Parse `onnx:vgg.onnx@features.29`: a known backend before the first colon, a layer after the last @."""
        from xcam.models.load import split_backend

        backend, text = split_backend(text)
        model, separator, layer = text.rpartition("@")
        if not separator or os.path.exists(text):
            model, layer = text, ""
        return cls(model, backend, layer or None)
