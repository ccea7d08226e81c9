"""A Keras model on TensorFlow, traced once into a graph and cut there.

The whole forward pass is recorded once for each input shape. Every cut is then made in that graph: the forward part
returns the few tensors that the backward part needs, the backward part takes them and a cotangent. Cotangents are
computed in plain Python between two compiled functions. Nothing before the layer is differentiated, and the model
itself is never changed. (A gradient tape with a callback inside one compiled function is not faster. This way needs no
callback and no call ids, and `resume` uses the same parts.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xcam.contract.caches import BoundedCache
from xcam.contract.graphs import cuts, reachable
from xcam.contract.messages import out_of_memory
from xcam.contract.outputs import cut_activation, main_first
from xcam.contract.recorded import NoGradient
from xcam.contract.types import Array, Layout
from xcam_keras import calls
from xcam_keras.engines import standard_device
from xcam_keras.engines.tensorflow_graph import (
    TRACING,
    activation_of,
    differentiable,
    following,
    named,
    read_by,
    traced,
    values_read,
)

tf.config.list_logical_devices()  # the first use of the runtime writes messages: here they are suppressed

CONTROL_FLOW = ("While", "StatelessWhile", "If", "StatelessIf")

BYPASSES = 4
"""Cuts whose bypass values are kept for one pass."""

Run = Callable[..., Sequence[tf.Tensor]]
"""A compiled function from tensors to tensors."""


def device_name(device: str | None) -> str | None:
    """Return TensorFlow's name of a device: `cpu` → `/CPU:0`, `cuda:1` → `/GPU:1`. Raises InputError."""
    known = [d.name.removeprefix("/physical_device:") for d in tf.config.list_physical_devices()]
    aliases = {"cuda": "GPU", "gpu": "GPU", "cpu": "CPU"}
    return None if device is None else f"/{standard_device(device, aliases, known, 'TensorFlow')}"


@contextlib.contextmanager
def running(device: str | None) -> Iterator[None]:
    """Run on the device; exhausted memory is a MemoryError."""
    with out_of_memory(tf.errors.ResourceExhaustedError), tf.device(device):
        yield


random_state = contextlib.nullcontext
"""See xcam_keras.engines: a layer draws from the generators of Keras, which are variables."""


class Recording:
    """See xcam.contract.recorded.Recording: the forward pass as a graph, and the cuts in it."""

    current = True

    def __init__(
        self, model: keras.Model, shape: Sequence[int | None], dtype: str, layout: Layout, batch: int | None = None
    ) -> None:
        self.batch = batch
        with TRACING:
            function, seen = traced(model, tf.TensorSpec((batch, *shape), dtype))
            structured = function.structured_outputs
            self._open(function, calls.float_outputs(model, structured, lambda t: t.dtype.is_floating))
            named_calls = named(seen, self.graph)
            self.tensors: dict[str, tf.Tensor] = {name: call.value for name, call in named_calls.items()}
            ends = {t.name for t in [*self.outputs.values(), *tf.nest.flatten(structured)]}
            facts, image = self._facts(len(shape) == 3), len(shape) == 3
            self.layers = {
                name: calls.described(
                    name,
                    call,
                    call.value.shape.as_list()[1:],
                    layout,
                    image,
                    is_output=call.value.name in ends,
                    **facts[name],
                )
                for name, call in named_calls.items()
            }

    def _open(self, function: Any, outputs: Mapping[str, tf.Tensor]) -> None:
        """Set the function whose graph is cut, and its outputs."""
        self.function = function
        self.graph = function.graph
        self.operations: Sequence[tf.Operation] = self.graph.get_operations()
        self.x: tf.Tensor = function.inputs[0]
        logits = {name: cut_activation(tensor, activation_of) for name, tensor in outputs.items()}
        self.outputs = {name: tensor for name, (tensor, _) in logits.items()}
        self.output_activations = main_first(
            {name: activation for name, (_, activation) in logits.items()},
            {name: None if t.shape.rank is None else t.shape.as_list() for name, t in self.outputs.items()},
            {name: tensor.op for name, tensor in self.outputs.items()},
            lambda op: reachable([op], lambda op: [t.op for t in op.inputs]),
        )
        self.from_x = following(self.x.op, self.operations)
        self._cache: BoundedCache[Any, Any] = BoundedCache()
        self._differentiated: set[Any] = set()
        """The cuts that have a backward pass."""

    def _facts(self, image: bool) -> dict[str, dict[str, Any]]:
        """Return `leads_to`, `differentiable`, … of each layer: see xcam.contract.Layer."""
        read = {output: read_by(tensor) for output, tensor in self.outputs.items()}
        reach = {
            output: {name for name, tensor in self.tensors.items() if tensor.op.name in operations}
            for output, operations in read.items()
        }
        tokens = [name for name, t in self.tensors.items() if calls.is_tokens(t.shape.as_list()[1:], image)]
        shares = calls.token_shares(reach, tokens, self._token_shares)
        with_gradient = differentiable(self.outputs.values())
        from_x = following(self.x.op, self.operations, values_read)
        main = self.outputs[next(iter(self.output_activations))]
        passed = cuts(self.operations, lambda op: [t.op for t in values_read(op)], self.x.op, main.op)
        return {
            name: {
                "leads_to": calls.leads_to(name, reach, shares),
                "differentiable": tensor.op.name in with_gradient,
                "depends_on_input": tensor.op.name in from_x,
                "bypassed": tensor.op not in passed,
            }
            for name, tensor in self.tensors.items()
        }

    def _token_shares(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return for each output the share of each layer's tokens at which its gradient arrives, on noise."""
        noise = tf.cast(np.random.default_rng(0).normal(size=(self.batch or 1, *self.x.shape[1:])), self.x.dtype)
        try:
            shares = {output: self._shares(tensor, names) for output, tensor in self.outputs.items()}
            flat = [share for of_output in shares.values() for share in of_output.values()]
            values = iter(self.function.prune([self.x], flat)(noise))
        except (LookupError, tf.errors.InvalidArgumentError):  # an operation without a gradient
            return {}
        return {output: {name: float(next(values)) for name in of_output} for output, of_output in shares.items()}

    def _shares(self, output: tf.Tensor, names: Sequence[str]) -> dict[str, tf.Tensor]:
        """Add the gradient of a fixed mixture of an output to the graph; return the shares of tokens where it is not 0."""
        tensors = [self.tensors[name] for name in names]
        with self.graph.as_default():
            mixture = tf.random.stateless_uniform(tf.shape(output), (0, 0), 1, 2, dtype=tf.float32)
            gradients = tf.gradients([output], tensors, grad_ys=[tf.cast(mixture, output.dtype)])
            return {
                name: tf.reduce_mean(tf.cast(tf.reduce_any(tf.convert_to_tensor(g) != 0, axis=-1), tf.float32))
                for name, g in zip(names, gradients, strict=True)
                if g is not None
            }

    def predict(self, x: Array) -> dict[str, Array]:
        """See xcam.contract.recorded.Recording."""
        return self.named(self.run("predict", lambda: ([self.x], [*self.outputs.values()]))(self.tensor(x)))

    def values(self, x: Array, names: Sequence[str]) -> list[Array]:
        """See xcam.contract.recorded.Recording."""
        run = self.run(("values", *names), lambda: ([self.x], [self.tensors[name] for name in names]))
        return _float32(run(self.tensor(x)))

    def forward(self, x: Array, layers: Sequence[str], differentiate: bool) -> ForwardPass:
        """See xcam.contract.recorded.Recording."""
        cut = self.cut(layers, [], differentiate)
        outputs, values, inside, bypass = _split(
            cut.forward()(self.tensor(x)), len(self.outputs), len(cut.at), len(cut.inside)
        )
        return ForwardPass(cut, x, outputs, values, inside, bypass)

    def cut(self, at: Sequence[str], constants: Sequence[str], differentiate: bool) -> Cut:
        """Return the cut at some layers; one with the backward pass also where none is needed, if it exists."""
        key = (*constants, "", *at)
        differentiate = differentiate or key in self._differentiated
        cut: Cut = self.once(("cut", key, differentiate), lambda: Cut(self, key, at, constants, differentiate))
        if differentiate:
            self._differentiated.add(key)
        return cut

    def named(self, outputs: Sequence[tf.Tensor]) -> dict[str, Array]:
        """Return outputs by name."""
        return dict(zip(self.outputs, _float32(outputs), strict=True))

    def tensor(self, x: Array) -> tf.Tensor:
        """Return the input as the graph takes it."""
        return tf.constant(x, dtype=self.x.dtype)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, which is called once for `key`, by one thread at a time."""

        def locked() -> Any:
            with TRACING:
                return make()

        return self._cache.get(key, locked)

    def run(self, key: Any, ends: Callable[[], tuple[Sequence[tf.Tensor], Sequence[tf.Tensor]]]) -> Run:
        """Return the compiled function from feeds to fetches, tensors of this graph, compiled once for `key`."""

        def compiled() -> Run:
            feeds, fetches = ends()
            pruned = self.function.prune(list(feeds), list(fetches))
            signature = [tf.TensorSpec(t.shape, t.dtype) for t in feeds]
            # Called directly, a pruned function reads every variable of the whole model: 4 ms for MobileNetV2's 160.
            function = tf.function(lambda *tensors: pruned(*tensors), input_signature=signature, autograph=False)
            concrete: Run = function.get_concrete_function()
            return concrete

        result: Run = self.once(key, compiled)
        return result


class Cut:
    """A recording, cut open at some layers: from the input on, or from given values of other layers on.

    Attributes:
        at: the tensors of the layers, by name.
        constants: the tensors with given values, by name.
        inside: the tensors behind the given ones that the backward pass needs; without given values, all.
        bypass: the tensors that are not computed from the given ones, and that the tail or the backward pass needs.
        backward: from one cotangent for each output, `inside` and `bypass` to the gradient at each layer; None where no
            gradient is needed.
    """

    def __init__(
        self, recording: Recording, key: Any, at: Sequence[str], constants: Sequence[str], differentiate: bool
    ) -> None:
        self.recording, self._key = recording, (key, differentiate)
        self.at = {name: recording.tensors[name] for name in at}
        self.constants = {name: recording.tensors[name] for name in constants}
        self._fed = {tensor.name for tensor in self.constants.values()}
        outputs = list(recording.outputs.values())
        tail = {
            name for tensor in self.constants.values() for name in following(tensor.op, recording.operations)
        } or recording.from_x
        cotangents, gradients, needed = self._gradients(outputs) if differentiate else ([], [], [])
        self.inside = [t for t in needed if t.name in self._fed or t.op.name in tail]
        outside = [t for t in (*needed, *self.at.values()) if t.name not in self._fed and t.op.name not in tail]
        self.bypass = list({t.name: t for t in [*outside, *(self._bypass(tail) if constants else ())]}.values())
        saved = [*self.inside, *self.bypass]
        self.backward = self._run("backward", [*cotangents, *saved], gradients) if differentiate else None

    def forward(self) -> Run:
        """The function from the input to the outputs, the layers, `inside` and `bypass`."""
        fetches = [*self.recording.outputs.values(), *self.at.values(), *self.inside, *self.bypass]
        return self._run("forward", [self.recording.x], fetches)

    def tail(self) -> Run:
        """The function from the given values and `bypass` to the outputs, the layers and `inside`."""
        fetches = [*self.recording.outputs.values(), *self.at.values(), *self.inside]
        feeds = {
            t.name: t for t in [*self.constants.values(), *self.bypass]
        }  # a layer and its last part are one tensor
        return self._run("tail", list(feeds.values()), fetches)

    def head(self) -> Run:
        """The function from the input to `bypass`."""
        return self._run("head", [self.recording.x], self.bypass)

    def _run(self, part: str, feeds: Sequence[tf.Tensor], fetches: Sequence[tf.Tensor]) -> Run:
        return self.recording.run((part, self._key), lambda: (feeds, fetches))

    def _gradients(self, outputs: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
        """Add the gradients at the layers to the graph; return cotangents, gradients, and the tensors that they read."""
        graph = self.recording.graph
        existing = {op.name for op in graph.get_operations()}
        with graph.as_default():
            cotangents = [tf.compat.v1.placeholder(output.dtype, output.shape) for output in outputs]
            constants = list(self.constants.values())
            try:
                gradients = tf.gradients(
                    outputs, list(self.at.values()), grad_ys=cotangents, stop_gradients=constants or None
                )
            except LookupError as error:  # an operation without a gradient
                raise NoGradient from error
            for name, gradient in zip(self.at, gradients, strict=True):
                if gradient is None:
                    raise NoGradient(name)
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]  # a Gather's is sparse
        return cotangents, gradients, self._needed(gradients, existing)

    def _bypass(self, tail: set[str]) -> list[tf.Tensor]:
        """Return the tensors that the tail reads and that are computed from the input, but not from the given values.

        Integers (shapes of the batch) are computed again from the tensors they come from, because the batch that
        `resume` runs has another size.
        """

        def reads(op: tf.Operation) -> list[tf.Tensor]:
            return [t for t in op.inputs if t.name not in self._fed and t.op.name in self.recording.from_x]

        def is_inside(t: tf.Tensor) -> bool:
            return t.op.name in tail or not (t.dtype.is_floating or t is self.recording.x)

        ends = [t.op for t in [*self.recording.outputs.values(), *self.at.values()]]
        starts = [tensor.op for tensor in self.constants.values()]
        operations = reachable(ends, lambda op: [t.op for t in reads(op) if is_inside(t)], stop=starts)
        for op in starts:
            operations.pop(op, None)
        result = [t for op in operations for t in reads(op) if not is_inside(t)]
        outputs = [t for t in self.recording.outputs.values() if t.op.name not in tail]
        return [*result, *outputs]

    def _needed(self, gradients: Sequence[tf.Tensor], existing: set[str]) -> list[tf.Tensor]:
        """Return the tensors of the forward pass that the backward operations read, without weights and constants."""
        known = existing & self.recording.from_x
        backward = reachable(
            [gradient.op for gradient in gradients], lambda op: [t.op for t in op.inputs if t.op.name not in existing]
        )
        read = [t for op in backward for t in op.inputs if t.op.name in known]
        # All outputs of a loop or a branch are passed, as pruning reads all of them.
        whole = [other for t in read for other in (t.op.outputs if t.op.type in CONTROL_FLOW else [t])]
        return list({t.name: t for t in whole}.values())


class ForwardPass:
    """See xcam.contract.recorded.ForwardPass."""

    def __init__(
        self,
        cut: Cut,
        x: Array,
        outputs: Sequence[tf.Tensor],
        values: Sequence[tf.Tensor],
        inside: Sequence[tf.Tensor],
        bypass: Sequence[tf.Tensor],
    ) -> None:
        self._cut, self._x, self._inside, self._bypass = cut, x, inside, bypass
        self._values = dict(zip(cut.at, values, strict=True))
        self.outputs = cut.recording.named(outputs)
        self._kept: BoundedCache[Cut, Sequence[tf.Tensor]] = BoundedCache(BYPASSES)

    def value(self, layer: str) -> Array:
        """See xcam.contract.recorded.ForwardPass."""
        return _float32([self._values[layer]])[0]

    def gradients(self, cotangents: Sequence[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """See xcam.contract.recorded.ForwardPass."""
        assert self._cut.backward
        for cotangent in cotangents:
            tensors = self._cut.recording.outputs.items()
            v = [tf.cast(tf.constant(cotangent[name]), tensor.dtype) for name, tensor in tensors]
            gradients = self._cut.backward(*v, *self._inside, *self._bypass)
            yield dict(zip(self._cut.at, _float32(gradients), strict=True))

    def resumed(
        self, values: Mapping[str, Array], rows: list[int], at: Sequence[str], differentiate: bool
    ) -> ForwardPass:
        """See xcam.contract.recorded.ForwardPass."""
        recording, x = self._cut.recording, self._x[rows]
        cut = recording.cut(at, list(values), differentiate)
        constants = {
            cut.constants[name].name: tf.cast(tf.constant(v), cut.constants[name].dtype) for name, v in values.items()
        }
        bypass: Sequence[tf.Tensor] = []
        if cut.bypass:
            everything = self._kept.get(cut, lambda: cut.head()(recording.tensor(self._x)))
            if all(map(partial(_row_by_row, rows=len(self._x)), everything, cut.bypass)):
                bypass = [tf.gather(t, tf.constant(rows)) for t in everything]
            else:  # windows folded into the batch, or a value of the whole batch: computed again for these rows
                bypass = cut.head()(recording.tensor(x))
        results = cut.tail()(*constants.values(), *bypass)
        outputs, layers, inside = _split(results, len(self.outputs), len(cut.at))
        return ForwardPass(cut, x, outputs, layers, inside, bypass)


def _split(tensors: Sequence[tf.Tensor], *lengths: int) -> list[list[tf.Tensor]]:
    """Return groups of the given lengths, and the rest."""
    rest = iter(tensors)
    return [*([next(rest) for _ in range(length)] for length in lengths), list(rest)]


def _row_by_row(value: tf.Tensor, symbol: tf.Tensor, rows: int) -> bool:
    """Return whether a value has one row for each image: its first axis is open in the graph, and as long as the batch."""
    return bool(symbol.dtype.is_floating and symbol.shape.rank and symbol.shape[0] is None and value.shape[0] == rows)


def _float32(tensors: Sequence[tf.Tensor]) -> list[Array]:
    return [np.asarray((t if t.dtype == tf.float32 else tf.cast(t, tf.float32)).numpy()) for t in tensors]
