"""The contract for a Keras model. What depends on the engine is in tensorflow.py."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xcam.contract import (
    DEFAULT_SIZE,
    Activation,
    Array,
    Capability,
    InputSpec,
    Layer,
    Layout,
    Outputs,
    Seeds,
    Trace,
    rows_of,
)
from xcam.errors import InputError, ModelError, nearest
from xcam.preprocessing import Preprocessing
from xcam_keras.tensorflow import Call, Cut, Recording

RECORDINGS = 4
"""Input shapes whose graphs are kept."""


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
    def activation(self) -> Activation:
        """What was cut off the output: `softmax`, `sigmoid`, None; by output name when there are several."""
        recording = self._recording(None)
        return recording.activations if len(recording.activations) > 1 else next(iter(recording.activations.values()))

    @property
    def layers(self) -> Sequence[Layer]:
        """Every layer call with a float value, in execution order, found without running the model."""
        recording = self._recording(None)
        return recording.once("layers", lambda: self._layers(recording))

    def predict(self, x: Array) -> Outputs:
        """See xcam.contract.Model.predict."""
        recording = self._recording(x)
        run = recording.once("predict", lambda: recording.run([recording.x], list(recording.outputs.values())))
        with self._running():
            return self._outputs(recording, run(self._tensor(x, recording)))

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """See xcam.contract.Model.activations."""
        recording = self._recording(x)
        calls = [self._call(recording, name) for name in layers]
        run = recording.once(
            ("activations", *layers), lambda: recording.run([recording.x], [call.tensor for call in calls])
        )
        with self._running():
            values = run(self._tensor(x, recording))
        return {
            name: self._channels_first(value, call) for name, call, value in zip(layers, calls, values, strict=True)
        }

    def trace(self, x: Array, layer: str, seeds: Seeds | None = None) -> Trace:
        """See xcam.contract.Model.trace."""
        recording = self._recording(x)
        call = self._call(recording, layer)
        cut = self._cut(recording, call)
        with self._running():
            values = list(cut.forward(self._tensor(x, recording)))
            outputs, values = values[: len(recording.outputs)], values[len(recording.outputs) :]
            value, values = values[0], values[1:]
            inside, values = values[: len(cut.inside)], values[len(cut.inside) :]
            beside, frontier = values[: len(cut.beside)], values[len(cut.beside) :]
            return self._finish(recording, cut, call, x, outputs, value, inside, beside, frontier, seeds)

    def to_onnx(self, path: Path) -> None:
        """See xcam_keras.export."""
        from xcam_keras.export import to_onnx

        to_onnx(self.model, path, self.input.size if len(self.input.size or ()) == 2 else None)  # type: ignore[arg-type]

    def resume(
        self, trace: Trace, activations: Array, rows: Sequence[int] | None = None, seeds: Seeds | None = None
    ) -> Trace:
        """See xcam.contract.Model.resume."""
        recording, cut, call, x, beside, frontier = trace.state
        picked = rows_of(rows, len(x), len(activations))
        with self._running():
            value = tf.cast(tf.constant(self._as_layer(activations, call)), call.tensor.dtype)
            kept = [*beside, *frontier]
            symbols = [*cut.beside, *cut.frontier]
            if all(_row_by_row(t, symbol, len(x)) for t, symbol in zip(kept, symbols, strict=True)):
                kept = [tf.gather(t, tf.constant(picked)) for t in kept]
            else:  # windows folded into the batch, or a value of the whole batch: made anew for these rows
                kept = list(cut.side()(self._tensor(x[picked], recording)))
            beside, frontier = kept[: len(beside)], kept[len(beside) :]
            values = list(cut.tail()(value, *frontier))
            outputs, inside = values[: len(recording.outputs)], values[len(recording.outputs) :]
            return self._finish(recording, cut, call, x[picked], outputs, value, inside, beside, frontier, seeds)

    def _finish(
        self,
        recording: Recording,
        cut: Cut,
        call: Call,
        x: Array,
        outputs: list[tf.Tensor],
        value: tf.Tensor,
        inside: list[tf.Tensor],
        beside: list[tf.Tensor],
        frontier: list[tf.Tensor],
        seeds: Seeds | None,
    ) -> Trace:
        """Ask for the cotangents, run backward for each."""
        said = self._outputs(recording, outputs)
        gradients = []
        for cotangent in seeds(said) if seeds else []:
            named = cotangent if isinstance(cotangent, Mapping) else {next(iter(recording.outputs)): cotangent}
            v = [
                tf.cast(tf.constant(np.asarray(named[name])), output.dtype)
                for name, output in zip(recording.outputs, outputs, strict=True)
            ]
            gradients.append(self._channels_first(cut.backward(*v, *inside, *beside)[0], call))
        state = (recording, cut, call, x, beside, frontier)
        return Trace(said, self._channels_first(value, call), gradients, state)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """On the model's device; memory that runs out is a MemoryError, for all backends alike."""
        try:
            with tf.device(self.device):
                yield
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(str(error).splitlines()[0]) from error

    def _recording(self, x: Array | None) -> Recording:
        """The graph for the shape of `x`, or for the model's own input shape."""
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
                spec = tf.TensorSpec((None, *shape), self.input.dtype)
                with tf.device(self.device):
                    recording = self._recordings[shape] = _readable(self.name, self.model, spec)
            return recording

    def _layers(self, recording: Recording) -> list[Layer]:
        reach = recording.reaches_output(call.tensor for call in recording.calls.values())
        ends = {
            t.name for t in [*recording.outputs.values(), *tf.nest.flatten(recording.function.structured_outputs)]
        }
        found = []
        for name, call in recording.calls.items():
            shape = call.tensor.shape.as_list()[1:]
            layout = self._layout(call)
            found.append(
                Layer(
                    name=name,
                    kind=type(call.layer).__name__,
                    shape=tuple([shape[-1], *shape[:-1]] if layout != "channels_first" and shape else shape),
                    layout=layout,
                    is_output=call.tensor.name in ends,
                    reaches_output=call.tensor.name in reach,
                )
            )
        return found

    def _layout(self, call: Call) -> Layout:
        rank = call.tensor.shape.rank
        if rank == 3 and len(self.input.size or DEFAULT_SIZE) == 2:
            return "tokens"
        own = getattr(call.layer, "data_format", None)
        return own if own in ("channels_first", "channels_last") else self.layout

    def _call(self, recording: Recording, name: str) -> Call:
        if name not in recording.calls:
            raise InputError(f"no layer {name!r} in {self.name}; {nearest(name, recording.calls)}")
        return recording.calls[name]

    def _cut(self, recording: Recording, call: Call) -> Cut:
        try:
            return recording.cut(call.tensor)
        except ModelError as error:
            raise ModelError(
                f"no output of {self.name} depends on layer {call.name!r} (or it stands after the softmax that is cut "
                "off); choose an earlier one"
            ) from error

    def _tensor(self, x: Array, recording: Recording) -> tf.Tensor:
        return tf.constant(x, dtype=recording.x.dtype)

    def _outputs(self, recording: Recording, tensors: Sequence[tf.Tensor]) -> Outputs:
        arrays = {name: _float32(t) for name, t in zip(recording.outputs, tensors, strict=False)}
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))

    def _channels_first(self, tensor: tf.Tensor, call: Call) -> Array:
        array = _float32(tensor)
        if self._layout(call) != "channels_first" and array.ndim > 2:
            array = np.ascontiguousarray(np.moveaxis(array, -1, 1))
        return array

    def _as_layer(self, activations: Array, call: Call) -> Array:
        if self._layout(call) != "channels_first" and activations.ndim > 2:
            return np.moveaxis(activations, 1, -1)
        return activations


def _readable(name: str, model: keras.Model, spec: tf.TensorSpec) -> Recording:
    try:
        return Recording(model, spec)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{name} cannot run on an input of shape {spec.shape.as_list()[1:]}: {text}; "
            "check size and channels, and that it runs on a batch without xcam"
        ) from error


def _row_by_row(value: tf.Tensor, symbol: tf.Tensor, rows: int) -> bool:
    """Whether a kept value has one row for each picture: its first axis is open in the graph, and as long as the batch."""
    return bool(symbol.dtype.is_floating and symbol.shape.rank and symbol.shape[0] is None and value.shape[0] == rows)


def _float32(tensor: tf.Tensor) -> Array:
    if tensor.dtype.is_floating and tensor.dtype != tf.float32:
        tensor = tf.cast(tensor, tf.float32)
    return np.asarray(tensor.numpy())


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
