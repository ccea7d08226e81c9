"""The contract for a Keras model. What depends on the engine that Keras runs on is in xcam_keras.engines."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from xcam.contract import (
    DEFAULT_SIZE,
    Activation,
    Array,
    Capability,
    Cotangents,
    InputSpec,
    Layer,
    Layout,
    Outputs,
    Trace,
    rows_of,
)
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import BackendError, InputError, ModelError, nearest
from xcam_keras.engine import engine
from xcam_keras.engines import Call, NoGradient, Opened, Recording

RECORDINGS = 4
"""Input shapes whose recordings are kept."""


@dataclass(eq=False)
class _State:
    """What `resume` needs of a trace."""

    recording: Recording
    call: Call
    rows: int
    opened: Opened


class KerasModel:
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
        size: tuple[int, int] | None = None,
    ) -> None:
        self.model = model
        self.name = name or model.name
        self.labels = labels
        self.notes = tuple(notes)
        self.device = device
        self.layout: Layout = layout or data_format(model)
        self.input = input_spec(model, self.layout, preprocessing, size)
        self._recordings: dict[tuple[int | None, ...], Recording] = {}
        self._lock = threading.RLock()

    @property
    def output_activation(self) -> Activation:
        """What was cut off the output: `softmax`, `sigmoid`, None; by output name when there are several."""
        found = self._recording(None).activations
        return found if len(found) > 1 else next(iter(found.values()))

    @property
    def layers(self) -> Sequence[Layer]:
        """Every layer call with a float value, in execution order."""
        return [self._layer(name, call) for name, call in self._recording(None).calls.items()]

    def predict(self, x: Array) -> Outputs:
        """See xcam.contract.Model.predict."""
        recording = self._recording(x)
        with self._running():
            return _by_name(recording, recording.predict(x))

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """See xcam.contract.Model.activations."""
        recording = self._recording(x)
        calls = [self._call(recording, name) for name in layers]
        with self._running():
            values = recording.values(x, layers)
        return {name: self._moved(value, call) for name, call, value in zip(layers, calls, values, strict=True)}

    def trace(self, x: Array, layer: str, cotangents: Cotangents | None = None) -> Trace:
        """See xcam.contract.Model.trace."""
        recording = self._recording(x)
        call = self._call(recording, layer)
        x = np.asarray(x)
        with self._running():
            opened = self._open(recording, x, layer, cotangents is not None)
        return self._finish(_State(recording, call, len(x), opened), cotangents)

    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
    ) -> Trace:
        """See xcam.contract.Model.resume."""
        state: _State = trace.state
        picked = rows_of(rows, state.rows, len(activations))
        value = activations
        if self._layout(state.call) != "channels_first" and value.ndim > 2:
            value = np.moveaxis(value, 1, -1)
        with self._running():
            opened = state.opened.resumed(value, picked, cotangents is not None)
        return self._finish(_State(state.recording, state.call, len(picked), opened), cotangents)

    def to_onnx(self, path: Path) -> None:
        """See xcam_keras.export. Raises BackendError where Keras does not run on TensorFlow."""
        if keras.backend.backend() != "tensorflow":
            raise BackendError(
                f"Keras runs on {keras.backend.backend()} here, and is exported to ONNX by way of TensorFlow; save the "
                "model as a .keras file, and export that with KERAS_BACKEND=tensorflow"
            )
        from xcam_keras.export import to_onnx

        to_onnx(self.model, path, self.input.size if len(self.input.size or ()) == 2 else None)  # type: ignore[arg-type]

    @property
    def parameter_layers(self) -> Sequence[str]:
        """See xcam_keras.randomizing."""
        from xcam_keras.randomizing import parameter_layers

        return parameter_layers(self.model)

    def with_shuffled_weights(self, parts: Sequence[str], seed: int = 0) -> KerasModel:
        """See xcam_keras.randomizing."""
        from xcam_keras.randomizing import shuffled

        return KerasModel(
            shuffled(self.model, parts, seed),
            name=f"{self.name}, shuffled",
            preprocessing=self.input.preprocessing,
            labels=self.labels,
            notes=self.notes,
            device=self.device,
            layout=self.layout,
            size=self.input.size,  # type: ignore[arg-type]
        )

    def _finish(self, state: _State, cotangents: Cotangents | None) -> Trace:
        """Ask for the cotangents, run backward for each."""
        recording, opened = state.recording, state.opened
        with self._running():
            said, value = _by_name(recording, opened.outputs), self._channels_first(opened.value, state.call)
        gradients = []
        for cotangent in cotangents(said) if cotangents else []:
            named = cotangent if isinstance(cotangent, Mapping) else {next(iter(recording.activations)): cotangent}
            with self._running():
                found = opened.gradient([np.asarray(named[name]) for name in recording.activations])
            gradients.append(self._channels_first(found, state.call))
        return Trace(said, value, gradients, state)

    def _running(self) -> contextlib.AbstractContextManager[None]:
        return engine().running(self.device)

    def _recording(self, x: Array | None) -> Recording:
        """What was found for the shape of `x`, or for the model's own input shape."""
        if x is None:
            size = self.input.size or DEFAULT_SIZE
            shape = (
                (self.input.channels, *size)
                if self.input.layout == "channels_first"
                else (*size, self.input.channels)
            )
        else:
            shape = np.shape(x)[1:]
        with self._lock:
            recording = self._recordings.get(shape)
            if recording is None:
                while len(self._recordings) >= RECORDINGS:
                    del self._recordings[next(iter(self._recordings))]
                recording = self._recordings[shape] = self._recorded(shape)
            return recording

    def _recorded(self, shape: tuple[int, ...]) -> Recording:
        try:
            with self._running():
                _build(self.model, shape, self.input.dtype)
                return engine().Recording(self.model, shape, self.input.dtype)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{self.name} cannot run on an input of shape {list(shape)}: {text}; "
                "check size and channels, and that it runs on a batch without xcam"
            ) from error

    def _layer(self, name: str, call: Call) -> Layer:
        layout = self._layout(call)
        shape = call.shape
        return Layer(
            name=name,
            kind=type(call.layer).__name__,
            shape=(shape[-1], *shape[:-1]) if layout != "channels_first" and shape else shape,
            layout=layout,
            is_output=call.is_output,
            folds_batch=call.folds_batch,
            reaches_output=call.reaches_output,
        )

    def _layout(self, call: Call) -> Layout:
        if len(call.shape) == 2 and len(self.input.size or DEFAULT_SIZE) == 2:
            return "tokens"
        own = getattr(call.layer, "data_format", None)
        return own if own in ("channels_first", "channels_last") else self.layout

    def _call(self, recording: Recording, name: str) -> Call:
        if name not in recording.calls:
            raise InputError(f"no layer {name!r} in {self.name}; {nearest(name, recording.calls)}")
        return recording.calls[name]

    def _open(self, recording: Recording, x: Array, name: str, differentiate: bool) -> Opened:
        try:
            return recording.open(x, name, differentiate)
        except NoGradient as error:
            raise ModelError(
                f"no output of {self.name} depends on layer {name!r} (or it stands after the softmax that is cut "
                "off); choose an earlier one"
            ) from error

    def _channels_first(self, array: Array, call: Call) -> Array:
        return np.ascontiguousarray(self._moved(array, call))

    def _moved(self, array: Array, call: Call) -> Array:
        """Channels first, not copied: of many layers few values may be wanted."""
        return np.moveaxis(array, -1, 1) if self._layout(call) != "channels_first" and array.ndim > 2 else array


def _build(model: keras.Model, shape: Sequence[int | None], dtype: str) -> None:
    """Run a model that was never called, on zeros: weights made while an engine records are left half made.

    (Keras then fails at its next `StatelessScope`, which may belong to any other model.)
    """
    if not all(layer.built for layer in model._flatten_layers()):
        model(keras.ops.zeros((1, *(n or DEFAULT_SIZE[0] for n in shape)), dtype), training=False)


def _by_name(recording: Recording, arrays: Sequence[Array]) -> Outputs:
    """The outputs as the contract has them: an array, or several by name."""
    named = dict(zip(recording.activations, arrays, strict=True))
    return named if len(named) > 1 else next(iter(named.values()))


def data_format(model: keras.Model) -> Layout:
    """`channels_first` or `channels_last`: that of the first layer that says so, or Keras' setting."""
    for layer in model._flatten_layers(include_self=False):
        own = getattr(layer, "data_format", None)
        if own in ("channels_first", "channels_last"):
            return own
    return keras.config.image_data_format()


def input_spec(
    model: keras.Model, layout: Layout, preprocessing: Preprocessing | None, size: tuple[int, int] | None
) -> InputSpec:
    """What the model takes. Raises ModelError for several inputs."""
    try:
        shape = model.input_shape
    except (AttributeError, ValueError):  # subclassed: it has no symbolic input
        shape = getattr(model, "_build_shapes_dict", None) and next(iter(model._build_shapes_dict.values()))
    if isinstance(shape, dict | list) or (isinstance(shape, tuple) and any(isinstance(s, tuple) for s in shape)):
        values = list(shape.values()) if isinstance(shape, dict) else list(shape)
        if len(values) != 1 or not isinstance(values[0], tuple):
            raise ModelError(
                f"{model.name} has {len(values)} inputs, and a picture fills one; "
                "wrap it in a model with one input that fixes the others"
            )
        shape = values[0]
    dims = tuple(shape[1:]) if shape else (None, None, 3)
    channels, space = (dims[0], dims[1:]) if layout == "channels_first" else (dims[-1], dims[:-1])
    known = all(n is not None for n in space)
    if preprocessing is None and scales_itself(model):
        preprocessing = Preprocessing("raw")
    return InputSpec(
        size=tuple(space) if known else size,
        channels=channels or 3,
        layout=layout,
        dtype=next((keras.backend.standardize_dtype(t.dtype) for t in _inputs(model)), "float32"),
        preprocessing=preprocessing,
        fixed=known,
    )


def _inputs(model: keras.Model) -> Sequence[Any]:
    try:
        return model.inputs or ()
    except (AttributeError, ValueError):
        return ()


def scales_itself(model: keras.Model) -> bool:
    """A Rescaling or Normalization layer stands at the start: the model takes pixels in 0…255."""
    first = [layer for layer in getattr(model, "layers", ()) if not isinstance(layer, keras.layers.InputLayer)][:4]
    return any(isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization) for layer in first)
