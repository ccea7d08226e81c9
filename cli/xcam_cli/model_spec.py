"""One model among several on the command line or in a configuration file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xcam_cli.options import open_model


def open_all(specs: Sequence[ModelSpec], **options: Any) -> list[Any]:
    """Load several models with shared options; the value of an input is for the models that have the input.

    Raises:
        InputError: None of them has an input of a name.
    """
    left_out: list[dict[str, Exception]] = [{} for _ in specs]
    models = [spec.open(unknown=unknown, **options) for spec, unknown in zip(specs, left_out, strict=True)]
    for name, error in left_out[0].items() if specs else ():
        if all(name in unknown for unknown in left_out):
            raise error
    return models


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
    inputs: Mapping[str, Any] | None = None
    image_input: str | None = None
    texts: str | None = None
    embeddings: str | None = None

    def open(
        self,
        labels: str | None,
        output: str | None = None,
        other_inputs: Mapping[str, Any] | None = None,
        image_input: str | None = None,
        unknown: dict[str, Exception] | None = None,
        texts: str | None = None,
        embeddings: str | None = None,
        **options: Any,
    ) -> Any:
        """Load the model.

        Args:
            labels: Used if the model has no class labels.
            output: Used if the model has none of its own.
            other_inputs: Values of other inputs; those that the model does not have are left out.
            image_input: The input that takes the image; likewise.
            texts: Used if the model has none of its own; `embeddings` likewise.
            embeddings: See `texts`.
            unknown: Set to the errors for the names that are left out.
            options: Further options of `xcam.load`.
        """
        from xcam.contract.fixed import UnknownInputError
        from xcam.models.labels import load

        shared = dict(other_inputs or {})
        of_this = dict(self.inputs or {})
        while True:
            try:
                model = open_model(
                    self.backend,
                    self.model,
                    preprocess=self.preprocess,
                    weights=self.weights,
                    labels=self.labels,
                    output=self.output or output,
                    other_inputs=shared | of_this,
                    image_input=self.image_input or image_input,
                    texts=self.texts or texts,
                    embeddings=self.embeddings or embeddings,
                    **options,
                )
                break
            except UnknownInputError as error:
                if unknown is None or error.name in (*of_this, self.image_input):
                    raise
                unknown[error.name] = error
                if shared.pop(error.name, None) is None:
                    image_input = None
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
