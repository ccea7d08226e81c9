"""A base class for models whose layers are known only after a run; the backends share it.

A backend may implement `Model` directly. A backend that must run a model to know its layers implements a `Recording`
(the layers for one input shape) and a `ForwardPass` (one pass, opened at a layer), and inherits from `RecordedModel`.
Arrays are NumPy, float32, in the layout in which the framework stores the layer's value. Conversion to channels first,
fixed names of outputs, rows, cotangents and errors are handled here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar, cast

import numpy as np

from xcam.contract.abilities import ExplainsMissingLayers, supports
from xcam.contract.caches import BoundedCache
from xcam.contract.layouts import from_channels_first, input_shape, joined, to_channels_first, without_channel_axis
from xcam.contract.messages import first_run, no_gradient, unknown_layer
from xcam.contract.outputs import ask, one_or_mapping
from xcam.contract.rows import rows_of
from xcam.contract.types import Activation, Array, Capability, Cotangents, InputSpec, Layer, Outputs, Trace
from xcam.errors import InputError

RECORDINGS = 4
"""Input shapes whose recordings are kept."""


class NoGradient(Exception):  # noqa: N818
    """No differentiable path leads from the layer to an output."""


class ForwardPass(Protocol):
    """One forward pass, opened at a layer."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """Every output by name, as logits where an activation is cut off."""

    @property
    def value(self) -> Array:
        """The layer's value."""

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterable[Array]:
        """Return ∂⟨v, outputs⟩/∂value for each cotangent v. Called only where `differentiate` was given.

        Raises:
            NoGradient: no path leads from the layer to the outputs at which a cotangent is not zero.
        """

    def resumed(self, value: Array, rows: list[int], differentiate: bool) -> Self:
        """Run the tail again on `value`; value[k] belongs to row rows[k] of this pass."""


class SecondOrderPass(ForwardPass, Protocol):
    """A forward pass that can be differentiated twice, for `RecordedModel._hvp`."""

    def hvp(self, cotangents: Sequence[Mapping[str, Array]], vectors: Sequence[Array]) -> Iterable[Array]:
        """Return ∂²⟨v, outputs⟩/∂value² times vectors[m] for each cotangent v, taken as a constant."""


class Recording(Protocol):
    """The forward pass of a model for one input shape and any batch."""

    @property
    def current(self) -> bool:
        """Whether the model still has the parts that were recorded."""

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer that can be explained, by name, in execution order."""

    @property
    def output_activations(self) -> Mapping[str, str | None]:
        """The activation that is cut off each output, by the output's name."""

    def predict(self, x: Array) -> Mapping[str, Array]:
        """Return the outputs by name, as logits where an activation is cut off."""

    def values(self, x: Array, layers: Sequence[str]) -> Sequence[Array]:
        """Return the values of several layers from one forward pass."""

    def forward(self, x: Array, layer: str, differentiate: bool) -> ForwardPass:
        """Run a forward pass, opened at a layer.

        Raises:
            NoGradient: the layer cannot be differentiated.
        """


R = TypeVar("R", bound=Recording)


@dataclass(eq=False)
class State:
    """The `state` of a Trace."""

    layer: Layer
    rows: int
    """Number of rows of the batch."""
    forward_pass: ForwardPass


class RecordedModel(ABC, Generic[R]):
    """A `Model` whose layers are recorded once for each input shape. See `xcam.contract.Model`."""

    backend: str
    capabilities: frozenset[Capability]

    def __init__(
        self, name: str, spec: InputSpec, labels: Sequence[str] | None = None, notes: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.input = spec
        self.labels = labels
        self.notes: Sequence[str] = tuple(notes)
        self._recordings: BoundedCache[tuple[int, ...], R] = BoundedCache(RECORDINGS)

    @abstractmethod
    def _record(self, shape: tuple[int, ...]) -> R:
        """Record the model for inputs [N, *shape]. Called once for each shape, under `_running`."""

    @abstractmethod
    def _running(self) -> AbstractContextManager[None]:
        """Enter the state in which the framework runs the model; restore the earlier state at the end.

        Evaluation mode, device, memory errors: entered around each call of a recording or a forward pass, and not
        around the caller's cotangents.
        """

    @property
    def output_activation(self) -> Activation:
        """See xcam.contract.Model."""
        return one_or_mapping(self._recording().output_activations)

    @property
    def layers(self) -> Sequence[Layer]:
        """See xcam.contract.Model."""
        return list(self._recording().layers.values())

    def predict(self, x: Array) -> Outputs:
        """See xcam.contract.Model."""
        x = without_channel_axis(x, self.input)
        recording = self._recording(x)
        with self._running():
            return one_or_mapping(recording.predict(x))

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """See xcam.contract.Model."""
        x = without_channel_axis(x, self.input)
        recording = self._recording(x)
        known = [self._layer(recording, name) for name in layers]
        with self._running():
            values = recording.values(x, [layer.name for layer in known])
        # Views, as the core may read only a few of many layers.
        return {
            name: to_channels_first(value, layer.layout)
            for name, layer, value in zip(layers, known, values, strict=True)
        }

    def trace(self, x: Array, layer: str, cotangents: Cotangents | None = None) -> Trace:
        """See xcam.contract.Model."""
        x = without_channel_axis(x, self.input)
        recording = self._recording(x)
        known = self._layer(recording, layer)
        with self._running_at(known):
            forward_pass = recording.forward(x, known.name, cotangents is not None)
            value, outputs = joined([forward_pass.value], known.layout), forward_pass.outputs
        return self._finish(State(known, len(x), forward_pass), outputs, value, cotangents)

    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
    ) -> Trace:
        """See xcam.contract.Model."""
        state: State = trace.state
        variant_rows = rows_of(rows, state.rows, len(activations))
        activations = np.array(activations, np.float32)
        value = from_channels_first(activations, state.layer.layout)
        with self._running_at(state.layer):
            forward_pass = state.forward_pass.resumed(value, variant_rows, cotangents is not None)
            outputs = forward_pass.outputs
        state = State(state.layer, len(variant_rows), forward_pass)
        return self._finish(state, outputs, activations, cotangents)

    def _hvp(self, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
        """Implement `SupportsHvp.hvp` where `Recording.forward` returns a `SecondOrderPass`."""
        x = without_channel_axis(x, self.input)
        recording = self._recording(x)
        known = self._layer(recording, layer)
        with self._running_at(known):
            forward_pass = cast(SecondOrderPass, recording.forward(x, known.name, differentiate=True))
            outputs = forward_pass.outputs
        named = ask(cotangents, one_or_mapping(outputs), outputs)
        with self._running_at(known):
            products = forward_pass.hvp(named, [from_channels_first(vector, known.layout) for vector in vectors])
            return [joined([product], known.layout) for product in products]

    def _finish(
        self, state: State, outputs: Mapping[str, Array], activations: Array, cotangents: Cotangents | None
    ) -> Trace:
        """Ask for the cotangents, run backward for each, and return the Trace."""
        named, gradients = ask(cotangents, one_or_mapping(outputs), outputs), []
        if named:
            with self._running_at(state.layer):
                for gradient in state.forward_pass.gradients(named):
                    gradients.append(joined([gradient], state.layer.layout))
        return Trace(one_or_mapping(outputs), activations, gradients, state)

    @contextmanager
    def _running_at(self, layer: Layer) -> Iterator[None]:
        """`_running`, with the error for a layer that cannot be differentiated."""
        try:
            with self._running():
                yield
        except NoGradient as error:
            raise no_gradient(layer.name, self.name, self._next_differentiable(layer)) from error

    def _next_differentiable(self, layer: Layer) -> str | None:
        """Return the name of the next layer that can be explained by its gradient, in the latest recording."""
        recording = self._recordings.latest
        listed = list(recording.layers.values()) if recording else []
        names = [other.name for other in listed]
        following = listed[names.index(layer.name) + 1 :] if layer.name in names else []
        able = (
            other.name
            for other in following
            if other.differentiable and other.reaches_output and other.has_space and not other.is_output
        )
        return next(able, None)

    def _recording(self, x: Array | None = None) -> R:
        """Return the recording for the shape of `x`, or for the model's own input shape.

        Raises:
            ModelError: the model cannot run on such an input.
        """
        shape = input_shape(self.input) if x is None else tuple(np.shape(x)[1:])

        def record() -> R:
            with first_run(self.name, shape), self._running():
                return self._record(shape)

        return self._recordings.get(shape, record, valid=lambda recording: recording.current)

    def _layer(self, recording: R, name: str) -> Layer:
        """Return a layer by its name or an alias. Raises InputError."""
        layers = recording.layers
        if name in layers:
            return layers[name]
        alias = next((layer for layer in layers.values() if name in layer.aliases), None)
        if alias is not None:
            return alias
        reason = self.explain_missing_layer(name) if supports(self, ExplainsMissingLayers) else None
        if reason:
            raise InputError(reason)
        raise unknown_layer(name, self.name, [layer.name for layer in layers.values() if not layer.inner])
