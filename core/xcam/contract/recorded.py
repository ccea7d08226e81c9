"""A base class for models whose layers are known only after a run; the backends share it.

A backend may implement `Model` directly. A backend that must run a model to know its layers implements a `Recording`
(the layers for one input shape) and a `ForwardPass` (one pass, opened at some layers), and inherits from `RecordedModel`.
Arrays are NumPy, float32, in the layout in which the framework stores the layer's value. Conversion to channels first,
fixed names of outputs, rows, cotangents and errors are handled here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, Self, TypeVar, cast, overload

import numpy as np

from xcam.contract.abilities import ExplainsMissingLayers, supports
from xcam.contract.caches import BoundedCache
from xcam.contract.layouts import from_trace, input_shape, to_trace, without_channel_axis
from xcam.contract.messages import first_run, no_gradient, unknown_layer
from xcam.contract.outputs import ask, one_or_mapping
from xcam.contract.probing import probed
from xcam.contract.rows import rows_of
from xcam.contract.types import (
    Activation,
    Array,
    Capability,
    Cotangents,
    InputSpec,
    Layer,
    Layout,
    Names,
    Outputs,
    Trace,
)
from xcam.errors import InputError, ModelError, XcamError, nearest

RECORDINGS = 4
"""Input shapes whose recordings are kept."""
LOSS_SCALE = np.float32(1024)
"""The factor of cotangents in float16."""
ANY_BATCH = 2
"""The batch size with which a model is recorded that takes any."""


class NoGradient(Exception):  # noqa: N818
    """No differentiable path leads from a layer to an output."""

    def __init__(self, layer: str | None = None) -> None:
        """`layer`: its name; None: the first of the layers at which the pass is opened."""
        super().__init__(layer)
        self.layer = layer


class ForwardPass(Protocol):
    """One forward pass, opened at some layers: names of `Recording.layers`, each once."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """Every output by name, as logits where an activation is cut off."""

    def value(self, layer: str) -> Array:
        """Return the value of one of the layers."""

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterable[Mapping[str, Array]]:
        """Return ∂⟨v, outputs⟩/∂value of each layer, by name, for each cotangent v, from one backward pass.

        Called only where `differentiate` was given. A gradient is the total derivative: it leads through the other
        layers too.

        Raises:
            NoGradient: no path leads from a layer to the outputs at which a cotangent is not zero.
        """

    def resumed(self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool) -> Self:
        """Run the tail behind some layers again, from given values, opened at the layers `at`.

        Values that are computed from none of these layers are those of this pass. Called on results of
        `Recording.forward` alone, and not on those of this method.

        Args:
            values: the values by layer, constants of the new pass, through which no gradient leads; variant k belongs to
                row rows[k] of this pass.
            rows: rows of this pass.
            at: the layers at which the new pass is opened, which may be some of `values`.
            differentiate: whether `gradients` will be called.
        """


class SecondOrderPass(ForwardPass, Protocol):
    """A forward pass, opened at one layer, that can be differentiated twice, for `RecordedModel._hvp`."""

    def hvp(self, layer: str, cotangents: Sequence[Mapping[str, Array]], vectors: Sequence[Array]) -> Iterable[Array]:
        """Return ∂²⟨v, outputs⟩/∂value² times vectors[m] for each cotangent v, taken as a constant."""


class Recording(Protocol):
    """The forward pass of a model for one input shape and any batch."""

    @property
    def batch(self) -> int | None:
        """The batch size that the model is fixed to; None: any."""

    @property
    def current(self) -> bool:
        """Whether the model still has the parts that were recorded."""

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer that can be explained, by name, in execution order."""

    @property
    def output_activations(self) -> Mapping[str, str | None]:
        """The activation that is cut off each output, by the output's name; the first is explained: see `main_first`."""

    def predict(self, x: Array) -> Mapping[str, Array]:
        """Return the outputs by name, as logits where an activation is cut off."""

    def values(self, x: Array, layers: Sequence[str]) -> Sequence[Array]:
        """Return the values of several layers from one forward pass."""

    def forward(self, x: Array, layers: Sequence[str], differentiate: bool) -> ForwardPass:
        """Run a forward pass, opened at some layers.

        Raises:
            NoGradient: a layer cannot be differentiated.
        """


R = TypeVar("R", bound=Recording)
T = TypeVar("T")


@dataclass(eq=False)
class State:
    """The `state` of a Trace."""

    layer: Layer
    opened: _Opened[Any]
    """The recording that it is a result of."""
    forward_pass: ForwardPass
    """The pass from the input, of which rows are run again."""
    rows: list[int]
    """The row of that pass for each row of the batch."""
    constants: Mapping[str, tuple[Layer, Array]]
    """The given values that it was run with, by layer: [N, C, *spatial]."""
    names: Sequence[str]
    """Names of the outputs, in the order in which targets read them."""


@dataclass(eq=False)
class _Opened(Generic[R]):
    """A recording, and the facts that a probe adds to it."""

    recording: R
    shape: tuple[int, ...]
    batch: int
    """ANY_BATCH, or another number: the model takes batches of this size only."""
    layers: Mapping[str, Layer] = field(default_factory=dict)
    """The layers as the probe describes them; empty before the probe."""


@dataclass(eq=False)
class _Pass(Generic[R]):
    """A forward pass that was run."""

    layers: Sequence[Layer]
    """The layers that the caller asks for; one may be there twice."""
    opened: _Opened[R]
    forward_pass: ForwardPass
    outputs: Mapping[str, Array]
    """By name, in the order in which targets read them."""
    root: ForwardPass
    """The pass from the input."""
    rows: list[int]
    """See State, also for `given`."""
    constants: Mapping[str, tuple[Layer, Array]] = field(default_factory=dict)


def _gradients(
    forward_pass: ForwardPass, layers: Collection[Layer], cotangents: Sequence[Mapping[str, Array]]
) -> Iterator[Mapping[str, Array]]:
    """Yield the gradient at each layer for each cotangent.

    With a layer in float16 that of a scaled cotangent, as float16 would round small gradients to zero.

    Source: Micikevicius et al. 2018, Mixed Precision Training, section 3.2. Where a scaled gradient is too large for
    float16, it is computed without the scale.
    """
    run = forward_pass.gradients
    if all(layer.dtype != "float16" for layer in layers):
        yield from run(cotangents)
        return
    scaled = [{name: LOSS_SCALE * np.asarray(v, np.float32) for name, v in each.items()} for each in cotangents]
    with np.errstate(over="ignore"):
        gradients = list(run(scaled))
    for each, cotangent in zip(gradients, cotangents, strict=True):
        finite = {name: g / LOSS_SCALE for name, g in each.items() if np.isfinite(g).all()}
        yield finite if len(finite) == len(each) else {**next(iter(run([cotangent]))), **finite}


class _OneByOne:
    """Forward passes of a model that takes one image at a time. See ForwardPass."""

    def __init__(self, passes: Sequence[ForwardPass], layers: Mapping[str, Layer]) -> None:
        """Join `passes`; `layers` as the probe describes them: they state the axis of the batch."""
        self._passes, self._layers = passes, layers

    @property
    def outputs(self) -> Mapping[str, Array]:
        return _stacked([forward_pass.outputs for forward_pass in self._passes])

    def value(self, layer: str) -> Array:
        return self._joined(layer, [forward_pass.value(layer) for forward_pass in self._passes])

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        rows = [list(one.gradients(_row(cotangents, k))) for k, one in enumerate(self._passes)]
        return (
            {name: self._joined(name, [part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*rows, strict=True)
        )

    def hvp(self, layer: str, cotangents: Sequence[Mapping[str, Array]], vectors: Sequence[Array]) -> Iterator[Array]:
        split = [self._split(layer, vector) for vector in vectors]
        rows = [
            list(cast(SecondOrderPass, one).hvp(layer, _row(cotangents, k), [parts[k] for parts in split]))
            for k, one in enumerate(self._passes)
        ]
        return (self._joined(layer, parts) for parts in zip(*rows, strict=True))

    def resumed(
        self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool
    ) -> _OneByOne:
        parts = {name: self._split(name, value) for name, value in values.items()}
        passes = [
            self._passes[row].resumed({name: part[k] for name, part in parts.items()}, [0], at, differentiate)
            for k, row in enumerate(rows)
        ]
        return _OneByOne(passes, self._layers)

    def _split(self, layer: str, value: Array) -> list[Array]:
        axis = self._layers[layer].batch_axis
        return np.split(value, value.shape[axis], axis)

    def _joined(self, layer: str, parts: Sequence[Array]) -> Array:
        return np.concatenate(parts, self._layers[layer].batch_axis)


def _names(layers: str | Names) -> list[str]:
    return [layers] if isinstance(layers, str) else list(layers)


def _distinct(layers: Sequence[Layer]) -> list[str]:
    return list(dict.fromkeys(layer.name for layer in layers))


def _row(cotangents: Sequence[Mapping[str, Array]], k: int) -> list[Mapping[str, Array]]:
    return [{name: value[k : k + 1] for name, value in cotangent.items()} for cotangent in cotangents]


def _stacked(outputs: Sequence[Mapping[str, Array]]) -> Mapping[str, Array]:
    return {name: np.concatenate([one[name] for one in outputs]) for name in outputs[0]}


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
        self._stated_layout: Layout | None = None
        """The layout that the caller states for all layers."""
        self.chosen_output: str | None = None
        self._recordings: BoundedCache[tuple[int, ...], _Opened[R]] = BoundedCache(RECORDINGS)

    @abstractmethod
    def _record(self, shape: tuple[int, ...], batch: int) -> R:
        """Record the model for inputs [N, *shape], under `_running`.

        Args:
            shape: of an input, without the batch.
            batch: the batch size to run with: ANY_BATCH first, and 1 where the model fails with that.
        """

    @abstractmethod
    def _running(self) -> AbstractContextManager[None]:
        """Enter the state in which the framework runs the model; restore the earlier state at the end.

        Evaluation mode, device, memory errors: entered around each call of a recording or a forward pass, and not
        around the caller's cotangents.
        """

    @property
    def output_activation(self) -> Activation:
        """See xcam.contract.Model."""
        recording = self._recording()
        return one_or_mapping({name: recording.output_activations[name] for name in self._names(recording)})

    @property
    def layers(self) -> Sequence[Layer]:
        """See xcam.contract.Model."""
        return list(self._probed(self._opened()).values())

    def predict(self, x: Array) -> Outputs:
        """See xcam.contract.Model."""
        x = without_channel_axis(x, self.input)
        opened = self._opened(x)

        def run(rows: Array) -> Mapping[str, Array]:
            with self._running():
                return opened.recording.predict(rows)

        outputs = self._by_rows(opened, x, run, _stacked, lambda outputs: outputs)
        return one_or_mapping({name: outputs[name] for name in self._names(opened.recording)})

    def with_output(self, name: str) -> Self:
        """See xcam.contract.abilities.ChoosesOutput. The copy shares the recordings."""
        known = list(self._recording().output_activations)
        if name not in known:
            raise InputError(f"unknown output {name!r} of {self.name}; {nearest(name, known)}")
        result = copy.copy(self)
        result.chosen_output = name
        return result

    def _names(self, recording: R) -> list[str]:
        """Return the names of the outputs, the chosen one first."""
        first = [] if self.chosen_output is None else [self.chosen_output]
        return list(dict.fromkeys([*first, *recording.output_activations]))

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """See xcam.contract.Model."""
        x = without_channel_axis(x, self.input)
        opened = self._opened(x)
        known = [self._layer(opened, name) for name in layers]
        names = [layer.name for layer in known]
        if not names:
            return {}
        with self._running():
            parts = [opened.recording.values(rows, names) for rows in (_rows(x) if opened.batch == 1 else [x])]
        result = {}
        for k, (name, layer) in enumerate(zip(layers, known, strict=True)):
            # Views, as the core may read only a few of many layers.
            views = [to_trace(values[k], layer) for values in parts]
            result[name] = views[0] if len(views) == 1 else np.concatenate(views)
        return result

    @overload
    def trace(self, x: Array, layer: str, cotangents: Cotangents | None = None) -> Trace: ...
    @overload
    def trace(self, x: Array, layer: Names, cotangents: Cotangents | None = None) -> list[Trace]: ...
    def trace(self, x: Array, layer: str | Names, cotangents: Cotangents | None = None) -> Trace | list[Trace]:
        """See xcam.contract.Model."""
        names = _names(layer)
        if not names:
            return []
        traces = self._finish(self._forward(x, names, cotangents is not None), cotangents)
        return traces[0] if isinstance(layer, str) else traces

    @overload
    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
        at: str | None = None,
    ) -> Trace: ...
    @overload
    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
        *,
        at: Names,
    ) -> list[Trace]: ...
    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
        at: str | Names | None = None,
    ) -> Trace | list[Trace]:
        """See xcam.contract.Model."""
        state: State = trace.state
        picked = rows_of(rows, len(state.rows), len(activations))
        layers = [state.layer] if at is None else [self._layer(state.opened, name) for name in _names(at)]
        if not layers:
            return []
        constants = {name: (layer, _picked(value, picked)) for name, (layer, value) in state.constants.items()}
        constants[state.layer.name] = state.layer, np.array(activations, np.float32)
        values = {name: from_trace(value, layer) for name, (layer, value) in constants.items()}
        root_rows = [state.rows[row] for row in picked]
        with self._running_at(layers):
            resumed = state.forward_pass.resumed(values, root_rows, _distinct(layers), cotangents is not None)
            outputs = {name: resumed.outputs[name] for name in state.names}
        one = _Pass(layers, state.opened, resumed, outputs, state.forward_pass, root_rows, constants)
        traces = self._finish(one, cotangents)
        return traces[0] if at is None or isinstance(at, str) else traces

    def _hvp(self, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
        """Implement `SupportsHvp.hvp` where `Recording.forward` returns a `SecondOrderPass`."""
        one = self._forward(x, [layer], True)
        (known,) = one.layers
        named = ask(cotangents, one_or_mapping(one.outputs), one.outputs)
        with self._running_at(one.layers):
            second_order = cast(SecondOrderPass, one.forward_pass)
            products = second_order.hvp(known.name, named, [from_trace(vector, known) for vector in vectors])
            return [np.ascontiguousarray(to_trace(product, known)) for product in products]

    def _forward(self, x: Array, names: Sequence[str], differentiate: bool) -> _Pass[R]:
        """Run a forward pass, opened at the layers of these names."""
        x = without_channel_axis(x, self.input)
        opened = self._opened(x)
        known = [self._layer(opened, name) for name in names]
        distinct = _distinct(known)

        def run(rows: Array) -> tuple[ForwardPass, Mapping[str, Array]]:
            with self._running_at(known):
                one = opened.recording.forward(rows, distinct, differentiate)
                return one, one.outputs

        def join(
            results: Sequence[tuple[ForwardPass, Mapping[str, Array]]],
        ) -> tuple[ForwardPass, Mapping[str, Array]]:
            passes, outputs = zip(*results, strict=True)
            return _OneByOne(passes, self._probed(opened)), _stacked(outputs)

        forward_pass, outputs = self._by_rows(opened, x, run, join, lambda result: result[1])
        outputs = {name: outputs[name] for name in self._names(opened.recording)}
        return _Pass(known, opened, forward_pass, outputs, forward_pass, list(range(len(x))))

    def _by_rows(
        self,
        opened: _Opened[R],
        x: Array,
        run: Callable[[Array], T],
        join: Callable[[Sequence[T]], T],
        outputs: Callable[[T], Mapping[str, Array]],
    ) -> T:
        """Run the model on a batch; image by image where it takes only one, or does not return a row for each."""
        if opened.batch != 1:
            try:
                result = run(x)
            except (NoGradient, MemoryError):
                raise
            except Exception:
                self._probed(opened)
                if opened.batch != 1:
                    raise
            else:
                each_row = all(array.ndim and len(array) == len(x) for array in outputs(result).values())
                if each_row or len(x) == 1 or opened.recording.batch is not None:
                    return result
        opened.batch = 1
        return join([run(rows) for rows in _rows(x)])

    def _finish(self, one: _Pass[R], cotangents: Cotangents | None) -> list[Trace]:
        """Ask for the cotangents, run backward for each, and return the Trace of each layer."""
        layers = {layer.name: layer for layer in one.layers}
        named = ask(cotangents, one_or_mapping(one.outputs), one.outputs)
        gradients: dict[str, list[Array]] = {name: [] for name in layers}
        if named:
            with self._running_at(one.layers):
                for each in _gradients(one.forward_pass, layers.values(), named):
                    for name, layer in layers.items():
                        gradients[name].append(np.ascontiguousarray(to_trace(each[name], layer)))
        traces = {}
        for name, layer in layers.items():
            state = State(layer, one.opened, one.root, one.rows, one.constants, list(one.outputs))
            value = (
                np.ascontiguousarray(one.constants[name][1])
                if name in one.constants
                else np.ascontiguousarray(to_trace(one.forward_pass.value(name), layer))
            )
            traces[name] = Trace(one_or_mapping(one.outputs), value, gradients[name], state)
        return [traces[layer.name] for layer in one.layers]

    @contextmanager
    def _running_at(self, layers: Sequence[Layer]) -> Iterator[None]:
        """`_running`, with the error for a layer that cannot be differentiated."""
        try:
            with self._running():
                yield
        except NoGradient as error:
            layer = next((layer for layer in layers if layer.name == error.layer), layers[0])
            raise no_gradient(layer.name, self.name, self._next_differentiable(layer)) from error

    def _next_differentiable(self, layer: Layer) -> str | None:
        """Return the name of the next layer that can be explained by its gradient, in the latest recording."""
        opened = self._recordings.latest
        listed = list(self._probed(opened).values()) if opened else []
        names = [other.name for other in listed]
        following = listed[names.index(layer.name) + 1 :] if layer.name in names else []
        able = (
            other.name
            for other in following
            if other.differentiable and other.reaches_output and other.has_space and not other.is_output
        )
        return next(able, None)

    def _recording(self, x: Array | None = None) -> R:
        """Return the recording for the shape of `x`, or for the model's own input shape. Raises ModelError."""
        return self._opened(x).recording

    def _opened(self, x: Array | None = None) -> _Opened[R]:
        """Return the recording for the shape of `x`, or for the model's own input shape.

        Raises:
            ModelError: the model cannot run on such an input.
        """
        if x is None and not self.input.channels_known:
            self._try_channels()
        shape = input_shape(self.input) if x is None else tuple(np.shape(x)[1:])
        return self._recordings.get(shape, lambda: self._record_any(shape), valid=lambda one: one.recording.current)

    def _try_channels(self) -> None:
        """Run the model with the number of channels that is a guess, then with 3 and with 1, then without a channel axis.

        The first number that works is kept.

        Raises:
            ModelError: the model fails with each of them; the error is that of the guess.
        """
        first: ModelError | None = None
        for channels in dict.fromkeys((self.input.channels, 3, 1, 0)):
            spec = replace(self.input, channels=channels, channels_known=True)
            shape = input_shape(spec)
            try:
                opened = self._recordings.get(shape, lambda shape=shape: self._record_any(shape))  # type: ignore[misc]
                with first_run(self.name, shape), self._running():
                    opened.recording.predict(np.zeros((opened.batch, *shape), self.input.dtype))
            except ModelError as error:
                first = first or error
            else:  # recording may have changed the other fields
                self.input = replace(self.input, channels=channels, channels_known=True)
                return
        assert first is not None
        raise first

    def _record_any(self, shape: tuple[int, ...]) -> _Opened[R]:
        """Record with two images, and with one where the model fails. A failure is that of the first attempt."""

        def record(batch: int) -> R:
            with first_run(self.name, shape), self._running():
                return self._record(shape, batch)

        try:
            recording, batch = record(ANY_BATCH), ANY_BATCH
        except ModelError as error:
            try:
                recording, batch = record(1), 1
            except XcamError as second:  # the model's own failure, or a reason why its result cannot be explained
                raise error if second.__cause__ else second from error.__cause__
        return _Opened(recording, shape, recording.batch or batch)

    def _probed(self, opened: _Opened[R]) -> Mapping[str, Layer]:
        """Return the layers of a recording as a probe describes them; the probe runs once."""
        if not opened.layers:
            with self._recordings.lock:
                if not opened.layers:
                    opened.layers = self._probe(opened)
        return opened.layers

    def _probe(self, opened: _Opened[R]) -> Mapping[str, Layer]:
        """Probe a recording: with one image where the model fails with several. Without a probe where it fails again."""
        for batch in dict.fromkeys((opened.batch, 1)):
            try:
                with self._running():
                    recording = opened.recording if batch == opened.batch else self._record(opened.shape, batch)
                    layers = probed(
                        recording.layers, recording.values, self.input, opened.shape, batch, self._stated_layout
                    )
            except MemoryError:
                raise
            except Exception:
                continue
            opened.recording, opened.batch = recording, batch
            return layers
        return dict(opened.recording.layers)

    def _layer(self, opened: _Opened[R], name: str) -> Layer:
        """Return a layer by its name or an alias. Raises InputError."""
        layers = self._probed(opened)
        if name in layers:
            return layers[name]
        alias = next((layer for layer in layers.values() if name in layer.aliases), None)
        if alias is not None:
            return alias
        reason = self.explain_missing_layer(name) if supports(self, ExplainsMissingLayers) else None
        if reason:
            raise InputError(reason)
        raise unknown_layer(name, self.name, [layer.name for layer in layers.values() if not layer.inner])


def _picked(value: Array, rows: Sequence[int]) -> Array:
    """Return rows of a value; a view where all are the same one, as a large value may be asked for thousands of times."""
    if len(set(rows)) == 1:
        return np.broadcast_to(value[rows[0]], (len(rows), *value.shape[1:]))
    return np.asarray(value[list(rows)])


def _rows(x: Array) -> Iterator[Array]:
    """Yield batches of one image."""
    return (x[k : k + 1] for k in range(len(x)))
