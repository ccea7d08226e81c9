"""The contract for a Keras model. Engine-specific parts are in xcam_keras.engines."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import keras

from xcam.contract.preprocessing import Preprocessing
from xcam.contract.recorded import RecordedModel, Recording
from xcam.contract.scaling import warn_of_two
from xcam.contract.types import Capability, Layout
from xcam.errors import BackendError, ModelError
from xcam_keras import seeds, several, shuffling
from xcam_keras.engine import engine
from xcam_keras.inputs import data_format, input_spec
from xcam_keras.scaling import computed


class KerasModel(RecordedModel[Recording]):
    """A keras.Model behind xcam's contract. See xcam.contract.Model."""

    backend = "keras"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume"})

    def __init__(
        self,
        model: keras.Model,
        *,
        name: str | None = None,
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        device: str | None = None,
        layout: Layout | None = None,
        size: tuple[int | None, ...] | None = None,
    ) -> None:
        """Wrap `model`.

        Args:
            model: a Keras model of any kind.
            name: default: the model's own.
            preprocessing: None: unknown, or `raw` where the model scales pixels itself.
            labels: names of its classes.
            notes: see xcam.contract.Model.
            device: the engine's name of a device; None: Keras chooses.
            layout: layout of its input and of layers that do not declare one; default: that of its first layers.
            size: (H, W) to use where the model leaves it open.
        """
        self.model = model
        self.device = device
        self.layout: Layout = layout or data_format(model)
        super().__init__(name or model.name, input_spec(model, self.layout, preprocessing, size), labels, notes)

    def to_onnx(self, path: Path) -> None:
        """Write the model as an ONNX file: see xcam_keras.export. Raises BackendError where Keras is not on TensorFlow."""
        if keras.backend.backend() != "tensorflow":
            raise BackendError(
                f"cannot export to ONNX: Keras runs on {keras.backend.backend()}, and the exporter needs TensorFlow; "
                "save the model as a .keras file, and export that with KERAS_BACKEND=tensorflow"
            )
        from xcam_keras.export import to_onnx

        to_onnx(self.model, path, self.input.size if len(self.input.size or ()) == 2 else None)

    @property
    def parameter_layers(self) -> Sequence[str]:
        """See xcam.contract.abilities.Randomizable."""
        return list(shuffling.parameter_layers(self.model))

    def with_shuffled_weights(self, parts: Sequence[str], seed: int = 0) -> KerasModel:
        """See xcam.contract.abilities.Randomizable."""
        whole = self.model.model if isinstance(self.model, several.OneInput) else self.model
        shuffled = shuffling.with_shuffled_weights(whole, parts, seed)
        return KerasModel(
            shuffled if whole is self.model else replace(self.model, model=shuffled),
            name=f"{self.name}, shuffled",
            preprocessing=self.input.preprocessing,
            labels=self.labels,
            notes=self.notes,
            device=self.device,
            layout=self.layout,
            size=self.input.size,
        )

    def is_live(self, source: object) -> bool:
        """See xcam.contract.abilities.ExplainsInTraining."""
        return source is self.model

    def random_state(self) -> AbstractContextManager[None]:
        """See xcam.contract.abilities.ExplainsInTraining."""
        return seeds.kept(self.model)

    def _running(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = engine().running(self.device)
        return context

    def _record(self, shape: tuple[int, ...], batch: int) -> Recording:
        if not all(layer.built for layer in self.model._flatten_layers()):
            # Weights that are created while an engine records are only half initialised: Keras then fails at its next
            # StatelessScope, in any other model.
            self.model(keras.ops.zeros((1, *shape), self.input.dtype), training=False)
            self._find_scaling(shape)
        if not several.decide(self.model, shape, self.input.dtype) and batch != 1:
            raise ModelError(f"{self.name} takes one image at a time with its other inputs; give one")
        recording: Recording = engine().Recording(
            self.model, shape, self.input.dtype, self.layout, 1 if batch == 1 else None
        )
        return recording

    def _find_scaling(self, shape: tuple[int, ...]) -> None:
        """Look for the scaling of a subclassed model, which its first call built."""
        axis = slice(1, None) if self.input.layout == "channels_first" else slice(None, -1)
        space = shape[axis] if self.input.channels else shape
        needed = computed(self.model, replace(self.input, size=space))
        warn_of_two(self.name, self.input.preprocessing, needed)
        self.input = replace(self.input, preprocessing=self.input.preprocessing or needed, needs=needed)
