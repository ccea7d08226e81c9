"""An ONNX graph opened at its layers: see xcam.contract.recorded. One recording serves every input shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from xcam.contract import Array, InputSpec, Layer, Layout
from xcam.contract.caches import BoundedCache
from xcam.contract.graphs import reachable
from xcam.contract.layouts import joined
from xcam.contract.messages import WITHOUT_GRADIENT
from xcam.contract.outputs import main_first
from xcam.contract.recorded import NoGradient
from xcam.contract.rows import batch_slices
from xcam.errors import ModelError
from xcam_onnx.autodiff import NoPath
from xcam_onnx.control_flow import inlined
from xcam_onnx.cut import Cut, Parts, Run, earliest
from xcam_onnx.graph import INTEGERS, Graph, Shape, part
from xcam_onnx.sessions import Runtime, Session, array
from xcam_onnx.signature import Signature, read_layers, read_signature, sized
from xcam_onnx.standard.form import Quantised, StandardForm
from xcam_onnx.weights import external_size

CUTS = 2
"""Passes from the input whose sessions are kept, by the layers at which they are opened: each holds weights."""

MOST_TAILS = 64
TAIL_WEIGHTS = 2**31
"""Tails whose sessions are kept, and the bytes of their weights: a comparison uses those of many layers in turn."""

BYPASSES = 4
"""Tails whose bypass values are kept for one pass."""

SESSIONS = 2
"""Other sessions that are kept: of the outputs, and of several layers."""


class Recording:
    """A model's graph, its layers, and the sessions of its parts.

    Args:
        form: The model, its larger weights as external data.
        name: Its name, for messages.
        signature: Its input and outputs.
        spec: Its input, as the contract describes it.
        runtime: Creates sessions.
    """

    current = True

    def __init__(
        self, form: StandardForm, name: str, signature: Signature, spec: InputSpec, runtime: Runtime
    ) -> None:
        self.form, self.name, self.signature, self.spec, self.runtime = form, name, signature, spec, runtime
        self.sizes: Shape = ()
        """The shape of the input that the graph is correct for, None where a size is open; (): all are."""
        self._cuts = BoundedCache[tuple[str, ...], Cut](CUTS)
        self._sessions = BoundedCache[tuple[str, ...], Session](SESSIONS)

    @property
    def batch(self) -> int | None:
        """The batch size that the model is fixed to."""
        return self.signature.batch

    @cached_property
    def _tensors(self) -> list[str]:
        return [output.tensor for output in self.signature.outputs]

    @cached_property
    def output_activations(self) -> Mapping[str, str | None]:
        """The activation that is cut off each output, by the output's name; the first is explained."""
        outputs = self.signature.outputs
        tensors = {output.name: output.tensor for output in outputs}
        graph = self.graph if len(outputs) > 1 else self.form.graph

        def before(tensor: str) -> list[str]:
            return graph.reads[graph.producer[tensor]] if tensor in graph.producer else []

        return main_first(
            {output.name: output.activation for output in outputs},
            {name: graph.shape(tensor) for name, tensor in tensors.items()},
            tensors,
            lambda tensor: reachable([tensor], before),
        )

    def one_by_one(self) -> Recording:
        """Return the recording of the same model with a batch of one."""
        return Recording(self.form, self.name, replace(self.signature, batch=1), self.spec, self.runtime)

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every tensor with channels, by the names that the file gives: see xcam_onnx.names."""
        return {name: layer for name, (layer, _) in self._layers.items()}

    @cached_property
    def _layers(self) -> dict[str, tuple[Layer, str]]:
        graph = sized(self.form.model, self.signature.source, self.signature.sample_shape(self.spec))
        main = next(iter(self.output_activations))
        return read_layers(self.form, self._complete(graph, exact=True), self.signature, main)

    @cached_property
    def graph(self) -> Graph:
        """The graph of the standard form, in which every rank is known."""
        return self.with_ranks(self.form.model)

    @cached_property
    def runnable(self) -> Graph:
        """The graph that forward passes run: see xcam_onnx.standard.form."""
        return self.with_ranks(self.form.runnable) if self.form.is_changed else self.graph

    def with_ranks(self, model: ModelProto) -> Graph:
        """Return the graph of a model that contains the tensors of this one, with every rank known."""
        return self._complete(Graph(model), exact=False)

    def _complete(self, graph: Graph, exact: bool) -> Graph:
        """Add types and shapes that could not be inferred, from a run on zeros; unless `exact`, only ranks."""

        def is_unknown(name: str) -> bool:
            shape = graph.shape(name)
            return not graph.dtype(name) or shape is None or (exact and not all(isinstance(n, int) for n in shape))

        nodes = (node for node in graph.nodes if node.op_type != "ZipMap")  # its output is not a tensor
        names = (n for node in nodes for n in node.output if n in graph.live)
        unknown = [name for name in names if is_unknown(name)]
        if unknown:
            values = self._on_zeros(graph.model, unknown, self.signature.sample_shape(self.spec))
            for name, value in values.items():
                if value.is_tensor():  # not a sequence
                    shape = tuple(value.shape()) if exact else (None,) * len(value.shape())
                    graph.set_type(name, value.element_type(), shape)
        return graph

    def _on_zeros(self, model: ModelProto, tensors: Sequence[str], shape: Sequence[int]) -> dict[str, Any]:
        """Run a model that takes the same input on zeros, and return some of its tensors."""
        whole, source = Graph(model), self.signature.source
        zeros = np.zeros(shape, helper.tensor_dtype_to_np_dtype(whole.dtype(source)))
        return self.runtime.session(part(whole, [source], tensors)[0], once=True)({source: zeros})

    def specialised(self, sizes: Shape, shape: Sequence[int], layout: Layout | None) -> Recording:
        """Return a recording without the branches and loops that some sizes of the input decide.

        Args:
            sizes: The shape of the input, None where the decisions must hold for every size.
            shape: A shape of the input of that kind, on which the decisions are checked.
            layout: The layout of the input; None: read it from the graph.
        """

        def run(model: ModelProto, tensors: Sequence[str]) -> dict[str, Array]:
            return {name: value.numpy() for name, value in self._on_zeros(model, tensors, shape).items()}

        model = inlined(self.form.original, self.signature.source, sizes, run)
        if model is self.form.original:
            return self
        form = StandardForm(Graph(model), self.runtime.weights)
        signature = self.signature
        if not signature.is_rewritten:
            signature = read_signature(form, self.name, layout, self.spec.channels)
        if any(sizes):
            space = tuple(n for axis, n in enumerate(shape) if axis not in (0, signature.axis))
            batch = shape[0] if sizes[0] else signature.batch
            channels = 0 if signature.axis is None else shape[signature.axis]
            signature = replace(signature, size=space, channels=channels, batch=batch)
        result = Recording(form, self.name, signature, self.spec, self.runtime)
        result.sizes = sizes
        return result

    def tensor(self, layer: str) -> str:
        """Return the tensor that contains a layer's value."""
        return self._layers[layer][1]

    def predict(self, x: Array) -> Mapping[str, Array]:
        """Return the outputs by name."""
        session = self._session(
            self._tensors
        )  # of the outputs alone: the runtime fuses and rounds as it does without xcam
        return self.outputs([session(self.feed(x[rows]), self._tensors) for rows in self.slices(len(x))])

    def values(self, x: Array, layers: Sequence[str]) -> Sequence[Array]:
        """Return the values of several layers from one forward pass."""
        tensors = [self.tensor(layer) for layer in layers]
        session = self._session(sorted(set(tensors)), once=True)
        batches = [session(self.feed(x[rows])) for rows in self.slices(len(x))]
        return [joined([array(batch[tensor]) for batch in batches]) for tensor in tensors]

    def forward(self, x: Array, layers: Sequence[str], differentiate: bool) -> ForwardPass:
        """Run a forward pass, opened at some layers."""
        self.runtime.weights.check()
        tensors = {layer: self.tensor(layer) for layer in layers}
        cut = self._cuts.get(tuple(tensors.values()), lambda: Cut(self._parts, list(tensors.values())))
        further = self.standard(cut).taken if self.form.is_changed and differentiate else ()
        run = cut.run(differentiate, further)
        batches = []
        for rows in self.slices(len(x)):
            feed = self.feed(x[rows])
            batches.append(run.session(feed))
            if run.is_exact and len(cut.at) > 1:  # the runtime fuses fewer operators where it returns many values
                batches[-1] |= self._session(self._tensors)(feed, self._tensors)
        return ForwardPass(self, tensors, cut, run, x, batches)

    @cached_property
    def _parts(self) -> Parts:
        return Parts(self.graph, self.runnable, self.runtime, self.signature.source, self._tensors, self.form.ahead)

    @cached_property
    def _tails(self) -> BoundedCache[tuple[str, ...], Cut]:
        size = max(1, external_size(self.form.model.graph.initializer))
        return BoundedCache(min(MOST_TAILS, max(CUTS, TAIL_WEIGHTS // size)))

    def standard(self, cut: Cut) -> Cut:
        """Return the tail in standard form, behind the earliest layers of a pass, that gives its gradients."""
        return self.tail(earliest(self.graph, cut.at), cut.at)

    def tail(self, constants: Sequence[str], at: Sequence[str]) -> Cut:
        """Return the tail behind some tensors, opened at others."""
        return self._tails.get(
            (*constants, "", *at), lambda: Cut(self._parts, at, {tensor: self._entry(tensor) for tensor in constants})
        )

    def _session(self, tensors: Sequence[str], once: bool = False) -> Session:
        """Return a session from the input to `tensors`; the latest is kept."""

        def create() -> Session:
            self.runtime.weights.check()
            return self.runtime.session(part(self.runnable, [self.signature.source], tensors)[0], once=once)

        return self._sessions.get((str(once), *tensors), create)

    def outputs(self, batches: Sequence[Mapping[str, Any]]) -> Mapping[str, Array]:
        """Return the outputs by name, from the values of all batches."""
        return {
            output.name: joined([array(batch[output.tensor]) for batch in batches])
            for output in self.signature.outputs
        }

    def slices(self, count: int) -> list[slice]:
        """Return the slices of `count` rows that the model takes."""
        return batch_slices(count, self.signature.batch, self.name)

    def feed(self, x: Array) -> dict[str, Any]:
        """Return a batch as the input of a session; integers that represent real numbers are computed from these."""
        source = self.signature.source
        if self._input_scale is not None:
            scale, zero, low, high = self._input_scale
            x = np.clip(np.rint(np.asarray(x, np.float32) / scale) + zero, low, high)
        return {source: np.asarray(x).astype(self.dtype(source), copy=False)}

    @cached_property
    def _input_scale(self) -> tuple[Array, Array, int, int] | None:
        """Scale, zero point, and smallest and largest integer of a quantised input."""
        entry = self.signature.quantised
        if entry is None:
            return None
        scale = self.graph.constant(entry.scale)
        zero = self.graph.constant(entry.zero_point) if entry.zero_point else np.zeros((), np.int64)
        if scale is None or zero is None or entry.dtype not in INTEGERS:
            raise ModelError(
                f"cannot use {self.name}: the scale of its quantised input {entry.integers!r} is not a constant; export the "
                "model from its float input on"
            )
        return scale.astype(np.float32), zero.astype(np.float32), *INTEGERS[entry.dtype]

    def _entry(self, tensor: str) -> Quantised | None:
        """Return how a layer is quantised, where its scale is constant."""
        entry = self.form.quantised.get(tensor)
        return (
            None if entry is None or entry.scale in self.graph.live or entry.zero_point in self.graph.live else entry
        )

    def dtype(self, tensor: str) -> Any:
        """Return the NumPy type of a tensor."""
        return helper.tensor_dtype_to_np_dtype(self.graph.dtype(tensor))


class ForwardPass:
    """One forward pass, opened at some layers.

    Args:
        recording: The model.
        tensors: The tensor of each layer.
        cut: The sessions of the layers.
        run: The sessions that computed the pass.
        x: The input.
        batches: The computed tensors by name, one mapping for each slice of the rows.
    """

    def __init__(
        self,
        recording: Recording,
        tensors: Mapping[str, str],
        cut: Cut,
        run: Run,
        x: Array,
        batches: list[dict[str, Any]],
    ) -> None:
        self._recording, self._tensors, self._cut, self._run = recording, tensors, cut, run
        self._x, self._batches = x, batches
        self._kept = BoundedCache[Cut, dict[str, Array]](BYPASSES)
        """The values that tails take in addition to the given ones."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The outputs by name."""
        return self._recording.outputs(self._batches)

    def value(self, layer: str) -> Array:
        """Return a layer's value."""
        return joined([array(batch[self._tensors[layer]]) for batch in self._batches])

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """Yield the gradients for each cotangent."""
        if self._run.is_exact:  # the runtime's own pass: the tail is differentiated in standard form
            return self._standard.gradients(cotangents)
        if self._run.backward is None:
            refusal = self._run.refusal
            if isinstance(refusal, NoPath):
                layer = next(name for name, tensor in self._tensors.items() if tensor == refusal.tensor)
                raise NoGradient(layer) from refusal
            raise refusal or ModelError(
                f"cannot differentiate {self._recording.name}: its gradient is not known; choose a method that needs no "
                f"gradient: {', '.join(WITHOUT_GRADIENT)}"
            )
        return (self._gradients(cotangent) for cotangent in cotangents)

    def _gradients(self, cotangent: Mapping[str, Array]) -> Mapping[str, Array]:
        run = self._run
        assert run.backward is not None
        parts: dict[str, list[Array]] = {layer: [] for layer in self._tensors}
        for batch, rows in zip(self._batches, self._recording.slices(len(self._x)), strict=True):
            feeds: dict[str, Any] = {}
            for output in self._recording.signature.outputs:
                name = run.cotangents.get(output.tensor)
                if name is not None:
                    value = np.asarray(cotangent[output.name])[rows].astype(self._recording.dtype(output.tensor))
                    feeds[name] = feeds[name] + value if name in feeds else value  # outputs may share a tensor
            gradients = run.backward(batch | feeds)
            for layer, tensor in self._tensors.items():
                parts[layer].append(array(gradients[run.gradients[tensor]]))
        return {layer: joined(arrays) for layer, arrays in parts.items()}

    def resumed(
        self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool
    ) -> ForwardPass:
        """Run the tail behind some layers again; values[k] belongs to row rows[k] of this pass."""
        recording = self._recording
        constants = {recording.tensor(layer): value for layer, value in values.items()}
        tensors = {layer: recording.tensor(layer) for layer in at}
        return self._resumed(
            recording.tail(list(constants), list(tensors.values())), constants, tensors, rows, differentiate
        )

    def _resumed(
        self,
        cut: Cut,
        constants: Mapping[str, Array],
        tensors: Mapping[str, str],
        rows: list[int],
        differentiate: bool,
    ) -> ForwardPass:
        recording, x = self._recording, self._x[rows]
        values = self._taken_rows(cut, rows)
        values |= {tensor: value.astype(recording.dtype(tensor)) for tensor, value in constants.items()}
        run = cut.run(differentiate)
        batches = []
        for part_rows in recording.slices(len(x)):
            whole = part_rows == slice(0, len(x))
            feeds = {name: value if whole else value[part_rows] for name, value in values.items()}
            batches.append(feeds | run.session(feeds))
        return ForwardPass(recording, tensors, cut, run, x, batches)

    @cached_property
    def _standard(self) -> ForwardPass:
        """The tail of this pass, run once more in standard form."""
        cut = self._recording.standard(self._cut)
        layers = {tensor: layer for layer, tensor in self._tensors.items()}
        constants = {tensor: self.value(layers[tensor]) for tensor in cut.constants}
        return self._resumed(cut, constants, self._tensors, list(range(len(self._x))), True)

    def _taken(self, cut: Cut) -> dict[str, Array]:
        """Return the values of all rows that a tail takes in addition to the given ones."""
        batches = self._batches
        if not all(name in batches[0] for name in cut.taken):
            session = cut.head(cut.taken)
            batches = [session(self._recording.feed(self._x[rows])) for rows in self._recording.slices(len(self._x))]
        return {
            name: np.concatenate([batch[name].numpy() for batch in batches])
            if batches[0][name].shape()
            else batches[0][name].numpy()
            for name in cut.taken
        }

    def _taken_rows(self, cut: Cut, rows: list[int]) -> dict[str, Array]:
        """Return the values of some rows that a tail takes; those without a row for each input are computed again."""
        if not cut.taken:
            return {}
        count, taken = len(self._x), self._kept.get(cut, lambda: self._taken(cut))
        if rows == list(range(count)):
            return dict(taken)
        recording, others = self._recording, []
        result: dict[str, Array] = {}
        for name, value in taken.items():
            first = (recording.graph.shape(name) or (1,))[0]
            is_open = recording.signature.batch is not None or not isinstance(first, int)
            if value.ndim and len(value) % count == 0 and is_open:
                picked = value.reshape(count, -1, *value.shape[1:])[rows]
                result[name] = picked.reshape(-1, *value.shape[1:])
            else:
                others.append(name)
        if others:
            again = cut.head(others)(recording.feed(self._x[rows]))
            result |= {name: value.numpy() for name, value in again.items()}
        return result
