"""An OpenVINO graph opened at its layers, for one size of the input: see xcam.contract.recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from xcam.contract import Array, Layer
from xcam.contract.caches import BoundedCache
from xcam.contract.graphs import reachable
from xcam.contract.messages import WITHOUT_GRADIENT
from xcam.contract.outputs import main_first
from xcam.contract.rows import batch_slices
from xcam.errors import ModelError
from xcam_openvino.graph import FLOATS, Graph, Sizes, Tail, Tensor, tail
from xcam_openvino.layers import Entry, read_layers
from xcam_openvino.sessions import Runtime, Session

HEADS = 2
"""Passes from the input whose sessions are kept, by the layers at which they are opened: each holds weights."""
MOST_TAILS, TAIL_WEIGHTS = 64, 2**31
"""Tails whose sessions are kept, and the bytes of their weights."""


@dataclass(frozen=True)
class Output:
    """An output of the model."""

    name: str
    tensor: Tensor
    """The tensor that is returned for it: the logits, where a softmax or sigmoid ends the model."""
    activation: str | None


class Recording:
    """A model's graph for one size of the input, its layers, and the sessions of its parts.

    Args:
        graph: The graph; the batch may be open.
        name: The model's name, for messages.
        outputs: Its outputs.
        shape: The shape of one input.
        channel: The channel axis of the input.
        batch: The batch size that the model is fixed to.
        runtime: Creates sessions.
        whole: Runs the outputs alone.
        whole_batch: The batch size that it takes; None: any.
    """

    current = True

    def __init__(
        self,
        graph: Graph,
        name: str,
        outputs: Sequence[Output],
        shape: Sequence[int],
        channel: int,
        batch: int | None,
        runtime: Runtime,
        whole: Session,
        whole_batch: int | None,
    ) -> None:
        self.graph, self.name, self.signature, self.shape = graph, name, outputs, tuple(shape)
        self.channel, self.batch, self.runtime, self._whole = channel, batch, runtime, whole
        self._whole_batch = whole_batch
        self._heads = BoundedCache[tuple[Tensor, ...], Session](HEADS)
        self._many = BoundedCache[tuple[Tensor, ...], Session](1)
        size = max(1, graph.weight)
        self._tails = BoundedCache[tuple[tuple[Tensor, ...], ...], tuple[Tail, Session | None]](
            min(MOST_TAILS, max(HEADS, TAIL_WEIGHTS // size))
        )

    @cached_property
    def _sized(self) -> list[Graph]:
        """The graph for batches of known sizes, in which all shapes are known."""
        counts = (2, 3) if self.batch is None else (self.batch,)
        return [self.graph.reshaped((count, *self.shape)) for count in counts]

    def multiples(self, tensor: Tensor) -> Sizes | None:
        """Return the size of each axis for each image, None for axes that do not depend on the batch; None: not known."""
        sizes = [graph.shape(tensor) for graph in self._sized]
        if any(size is None or None in size for size in sizes):
            return None
        if self.batch is not None:
            first = sizes[0] or ()
            return tuple(
                (n or 0) // self.batch if not k and not (n or 0) % self.batch else None for k, n in enumerate(first)
            )
        result: list[int | None] = []
        for two, three in zip(*[size or () for size in sizes], strict=True):
            assert two is not None
            assert three is not None
            if two != three and (two % 2 or two // 2 * 3 != three):
                return None
            result.append(None if two == three else two // 2)
        return tuple(result)

    @property
    def keeps_rows_apart(self) -> bool:
        """Whether each value that depends on the input has one axis of the batch, and each output has it first."""
        graph = self.graph
        for tensor in graph.tensors:
            if tensor[0] not in graph.dependent or graph.dtype(tensor) not in FLOATS or not graph.shape(tensor):
                continue
            multiples, shape = self.multiples(tensor), graph.shape(tensor) or ()
            axes = [] if multiples is None else [k for k, n in enumerate(multiples) if n is not None]
            if multiples is None or len(axes) != 1:
                return False
            (axis,) = axes
            if axis and multiples[axis] != 1 and set(shape[:axis]) == {1}:  # rows became a part of the positions
                return False
        return all((self.multiples(output.tensor) or (None,))[0] == 1 for output in self.signature)

    @cached_property
    def output_activations(self) -> Mapping[str, str | None]:
        """The activation that is cut off each output, by the output's name; the first is explained."""
        return main_first(
            {output.name: output.activation for output in self.signature},
            {output.name: self._sized[0].shape(output.tensor) for output in self.signature},
            {output.name: output.tensor for output in self.signature},
            lambda tensor: reachable([tensor], lambda t: self.graph.reads(t[0])),
        )

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """The layers with their tensors, by name."""
        outputs = {output.name: output.tensor for output in self.signature}
        main = next(iter(self.output_activations))
        rows = self.batch or 2
        return read_layers(self.graph, self._sized[0], rows, self.channel, outputs, main, len(self.shape) - 1)

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """See xcam.contract.recorded.Recording."""
        return {name: entry.layer for name, entry in self.entries.items()}

    @cached_property
    def quantised(self) -> bool:
        """Whether values are quantised: the runtime rounds them otherwise where further values are returned."""
        return any(self.graph.is_quantiser(k) for k in range(len(self.graph.ops)))

    def predict(self, x: Array) -> Mapping[str, Array]:
        """Return the outputs by name, as the runtime computes them from the whole model."""
        slices = batch_slices(len(x), self._whole_batch, self.name)
        batches = [self._whole([self.feed(x[rows])]) for rows in slices]
        return {output.name: _joined([b[k] for b in batches]) for k, output in enumerate(self.signature)}

    def values(self, x: Array, layers: Sequence[str]) -> Sequence[Array]:
        """Return the values of several layers from one forward pass."""
        tensors = [self.entries[layer].read for layer in layers]
        distinct = tuple(dict.fromkeys(tensors))
        known = self.run(self._many.get(distinct, lambda: self.session(distinct)), distinct, x)
        return [known[tensor] for tensor in tensors]

    def session(self, tensors: Sequence[Tensor]) -> Session:
        """Compile the part from the input to some tensors."""
        return self.runtime.session(self.graph.head(tensors))

    def run(self, session: Session, tensors: Sequence[Tensor], x: Array) -> dict[Tensor, Array]:
        """Return the tensors that a session computes from a batch."""
        batches = [session([self.feed(x[rows])]) for rows in self.slices(len(x))]
        return {tensor: _joined([batch[k] for batch in batches]) for k, tensor in enumerate(tensors)}

    def forward(self, x: Array, layers: Sequence[str], differentiate: bool) -> ForwardPass:
        """Run a forward pass, opened at some layers."""
        tensors = {layer: self.entries[layer].read for layer in layers}
        logits = [output.tensor for output in self.signature]
        distinct = tuple(dict.fromkeys([*tensors.values(), *([] if self.quantised else logits)]))
        known = self.run(self._heads.get(distinct, lambda: self.session(distinct)), distinct, x)
        outputs = (
            self.predict(x) if self.quantised else {output.name: known[output.tensor] for output in self.signature}
        )
        return ForwardPass(self, {layer: known[tensor] for layer, tensor in tensors.items()}, outputs, x)

    def tail(self, constants: Sequence[Tensor], at: Sequence[Tensor]) -> tuple[Tail, Session | None]:
        """Return the part behind some tensors that computes the outputs and the values at others, and its session."""
        targets = [output.tensor for output in self.signature]

        def create() -> tuple[Tail, Session | None]:
            part = tail(self.graph, constants, [*at, *targets], self.multiples)
            return part, None if part.model is None else self.runtime.session(part.model)

        return self._tails.get((tuple(constants), tuple(at)), create)

    def slices(self, count: int) -> list[slice]:
        """Return the slices of `count` rows that the model takes."""
        return batch_slices(count, self.batch, self.name)

    def feed(self, x: Array) -> Array:
        """Return a batch in the type of the input."""
        dtype = self.graph.output(self.graph.source).get_element_type().to_dtype()
        return np.ascontiguousarray(x, dtype)


class ForwardPass:
    """One forward pass, opened at some layers.

    Args:
        recording: The model.
        values: The value of each layer.
        outputs: The outputs by name.
        x: The input.
    """

    def __init__(
        self, recording: Recording, values: Mapping[str, Array], outputs: Mapping[str, Array], x: Array
    ) -> None:
        self._recording, self._values, self._outputs, self._x = recording, values, outputs, x
        self._taken: dict[tuple[Tensor, ...], dict[Tensor, Array]] = {}

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The outputs by name."""
        return self._outputs

    def value(self, layer: str) -> Array:
        """Return a layer's value."""
        return self._values[layer]

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterable[Mapping[str, Array]]:
        """Refuse: the runtime has no gradients, and the core computes them by differences."""
        raise ModelError(
            f"cannot differentiate {self._recording.name}: OpenVINO has no gradients; choose a method that needs none: "
            f"{', '.join(WITHOUT_GRADIENT)}"
        )

    def resumed(
        self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool
    ) -> ForwardPass:
        """Run the tail behind some layers again; values[k] belongs to row rows[k] of this pass."""
        recording = self._recording
        entries = recording.entries
        constants = {entries[layer].tensor: value for layer, value in values.items()}
        replaced = {entries[layer].read: value for layer, value in values.items()}
        part, session = recording.tail(list(constants), [entries[layer].read for layer in at if layer not in values])
        known = self._rows(part, rows) | replaced | constants
        if session is not None:
            dtypes = {tensor: recording.graph.output(tensor).get_element_type().to_dtype() for tensor in part.inputs}
            batches = []
            for some in recording.slices(len(rows)):
                whole = some == slice(0, len(rows))
                feeds = [known[t] if whole else known[t][some] for t in part.inputs]
                batches.append(
                    session([np.ascontiguousarray(f, dtypes[t]) for f, t in zip(feeds, part.inputs, strict=True)])
                )
            known |= {tensor: _joined([batch[k] for batch in batches]) for k, tensor in enumerate(part.computed)}
        outputs = {output.name: known[output.tensor] for output in recording.signature}
        at_layers = {layer: values[layer] if layer in values else known[entries[layer].read] for layer in at}
        return ForwardPass(recording, at_layers, outputs, self._x)  # which is not resumed

    def _rows(self, part: Tail, rows: list[int]) -> dict[Tensor, Array]:
        """Return the values of some rows that a tail takes; those without a row for each input are computed again."""
        if not part.taken:
            return {}
        recording, count = self._recording, len(self._x)
        if part.taken not in self._taken:
            logits = {output.tensor: self._outputs[output.name] for output in recording.signature}
            known = {tensor: value for tensor, value in logits.items() if tensor in part.taken}
            left = tuple(tensor for tensor in part.taken if tensor not in known)
            if left:
                known |= recording.run(recording.session(left), left, self._x)
            self._taken[part.taken] = known
        taken = self._taken[part.taken]
        if rows == list(range(count)):
            return dict(taken)
        result: dict[Tensor, Array] = {}
        others: list[Tensor] = []
        for tensor, value in taken.items():
            multiples = recording.multiples(tensor)
            axis = next((k for k, n in enumerate(multiples or ()) if n is not None), None)
            if axis is None or value.shape[axis] % count:
                others.append(tensor)
                continue
            moved = np.moveaxis(value, axis, 0)
            picked = moved.reshape(count, -1, *moved.shape[1:])[rows].reshape(-1, *moved.shape[1:])
            result[tensor] = np.moveaxis(picked, 0, axis)
        if others:
            result |= recording.run(recording.session(others), others, self._x[rows])
        return result


def _joined(batches: Sequence[Array]) -> Array:
    return batches[0] if len(batches) == 1 else np.concatenate(batches)
