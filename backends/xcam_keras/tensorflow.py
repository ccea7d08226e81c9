"""A Keras model on TensorFlow, traced once into a graph and cut there.

The whole forward pass is recorded once for each input shape. Every cut is then made in that graph: the forward part
hands out the few tensors that the backward part needs, the backward part takes them and a cotangent. So cotangents are
made in plain Python between two compiled functions, nothing before the layer is differentiated, and the model itself
is never changed. (A gradient tape with a callback inside one compiled function costs the same; this needs no callback,
no call ids, and gives `resume` the very same pieces.)
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from xcam.errors import ModelError

TRACING = threading.RLock()
"""Held while a model is recorded or a graph is added to: two threads tracing at once break each other."""

CONTROL_FLOW = ("While", "StatelessWhile", "If", "StatelessIf")
ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


@dataclass(frozen=True)
class Call:
    """One call of one Keras layer during the forward pass."""

    start: int
    """Its place in the order in which calls began; a container begins before its parts and ends after them."""
    name: str
    layer: keras.layers.Layer
    tensor: tf.Tensor


class Recording:
    """The forward pass of one model for one input shape, as a graph, and the cuts that were made in it."""

    def __init__(self, model: keras.Model, spec: tf.TensorSpec) -> None:
        with TRACING:
            self.function, calls = _record(model, spec)
            self.graph = self.function.graph
            self.x: tf.Tensor = self.function.inputs[0]
            self.outputs, self.activations = _outputs(model, self.function.structured_outputs)
            self.calls = _named(calls, self.graph)
            self._depends: dict[str, bool] = {}
            self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once for `key`, by one thread at a time."""
        if key not in self._made:
            with TRACING:
                if key not in self._made:
                    self._made[key] = make()
        return self._made[key]

    def run(self, feeds: Sequence[tf.Tensor], fetches: Sequence[tf.Tensor]) -> Callable[..., Sequence[tf.Tensor]]:
        """A compiled function from `feeds` to `fetches`, tensors of this graph."""
        pruned = self.function.prune(list(feeds), list(fetches))
        signature = [tf.TensorSpec(t.shape, t.dtype) for t in feeds]
        # Called bare, a pruned function reads every variable of the whole model: 4 ms for MobileNetV2's 160.
        function = tf.function(lambda *tensors: pruned(*tensors), input_signature=signature, autograph=False)
        return function.get_concrete_function()

    def cut(self, layer: tf.Tensor) -> Cut:
        """The cut at a layer's output."""
        return self.once(("cut", layer.ref()), lambda: Cut(self, layer))

    def depends_on_input(self, operation: tf.Operation) -> bool:
        """Whether an operation's value can change with the model's input; if not, it is a weight or a constant."""
        return _reached(operation, {self.x.op.name: True}, self._depends)

    def reaches_output(self, tensors: Iterable[tf.Tensor]) -> set[str]:
        """The names of those tensors that some output is computed from."""
        ahead = {op.name for output in self.outputs.values() for op in _ancestors(output.op)}
        return {t.name for t in tensors if t.op.name in ahead}


class Cut:
    """A recording, cut open at one layer."""

    def __init__(self, recording: Recording, layer: tf.Tensor) -> None:
        self.recording = recording
        self.layer = layer
        outputs = list(recording.outputs.values())
        known: dict[str, bool] = {layer.op.name: True}
        tail: dict[str, bool] = {}
        frontier = self._frontier(outputs, known, tail)
        existing = {op.name for op in recording.graph.get_operations()}
        with recording.graph.as_default():
            seeds = [tf.compat.v1.placeholder(output.dtype, output.shape) for output in outputs]
            gradient = tf.gradients(outputs, [layer], grad_ys=seeds)[0]
        if gradient is None:
            raise ModelError("no gradient reaches this layer")
        needed = self._needed(gradient, existing)
        # What backward needs is made in the tail, or beside it: then the trace keeps it for `resume`.
        self.inside = [t for t in needed if _reached(t.op, known, tail) or t is layer]
        self.beside = [t for t in needed if not any(t is other for other in self.inside)]
        self.frontier = frontier
        self.forward = recording.run([recording.x], [*outputs, layer, *self.inside, *self.beside, *frontier])
        self.backward = recording.run([*seeds, *self.inside, *self.beside], [gradient])
        self._outputs = outputs

    def tail(self) -> Callable[..., Sequence[tf.Tensor]]:
        """From the layer's value and the frontier to the outputs and what backward needs of the tail."""
        return self.recording.once(
            ("tail", self.layer.ref()),
            lambda: self.recording.run([self.layer, *self.frontier], [*self._outputs, *self.inside]),
        )

    def side(self) -> Callable[..., Sequence[tf.Tensor]]:
        """From the input to what the trace keeps for `resume`: `beside` and `frontier`."""
        return self.recording.once(
            ("side", self.layer.ref()),
            lambda: self.recording.run([self.recording.x], [*self.beside, *self.frontier]),
        )

    def _frontier(
        self, outputs: Sequence[tf.Tensor], known: Mapping[str, bool], tail: dict[str, bool]
    ) -> list[tf.Tensor]:
        """The tensors that pass the layer by: made from the input alone, read by what follows the layer.

        Integers (shapes of the batch) are computed again from the tensors they come from, because the batch that
        `resume` runs has another size.
        """
        found: dict[str, tf.Tensor] = {}
        seen: set[str] = {self.layer.op.name}
        todo = [output.op for output in outputs]
        while todo:
            op = todo.pop()
            if op.name in seen:
                continue
            seen.add(op.name)
            for t in op.inputs:
                if t is self.layer or not self.recording.depends_on_input(t.op):
                    continue
                if _reached(t.op, known, tail) or (not t.dtype.is_floating and t is not self.recording.x):
                    todo.append(t.op)
                else:
                    found[t.name] = t
        return list(found.values())

    def _needed(self, gradient: tf.Tensor, existing: set[str]) -> list[tf.Tensor]:
        """The tensors of the forward pass that the backward operations read, weights and constants apart."""
        found: dict[str, tf.Tensor] = {}
        seen: set[str] = set()
        todo = [gradient.op]
        while todo:
            op = todo.pop()
            if op.name in seen or op.name in existing:
                continue
            seen.add(op.name)
            for t in op.inputs:
                if t.op.name not in existing:
                    todo.append(t.op)
                elif self.recording.depends_on_input(t.op):
                    # Of a loop or a branch all outputs are handed over: pruning meets the others on its way.
                    whole = t.op.outputs if t.op.type in CONTROL_FLOW else [t]
                    found.update({other.name: other for other in whole})
        return list(found.values())


def _record(model: keras.Model, spec: tf.TensorSpec) -> tuple[Any, list[tuple[int, str, keras.layers.Layer, Any]]]:
    """Trace the model, noting every layer call of this thread: its path of names, the layer, and what it returned."""
    calls: list[tuple[int, str, keras.layers.Layer, Any]] = []
    path: list[str] = []
    starts = itertools.count()
    thread = threading.get_ident()
    original = keras.layers.Layer.__call__

    def noting(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return original(layer, *args, **kwargs)
        path.append(layer.name)
        start = next(starts)
        try:
            value = original(layer, *args, **kwargs)
        finally:
            name = "/".join(path[1:])
            path.pop()
        if name:
            calls.append((start, name, layer, value))
        return value

    keras.layers.Layer.__call__ = noting
    try:
        return tf.compat.v1.wrap_function(lambda x: model(x, training=False), [spec]), calls
    finally:
        keras.layers.Layer.__call__ = original


def _outputs(model: keras.Model, structured: Any) -> tuple[dict[str, tf.Tensor], dict[str, str | None]]:
    """The float outputs by name, without their trailing softmax or sigmoid, and what was taken off each."""
    flat = tf.nest.flatten(structured)
    if isinstance(structured, Mapping):
        names = [str(name) for name in structured] if len(flat) == len(structured) else []
        flat = [structured[name] for name in structured] if names else flat
    else:
        names = list(getattr(model, "output_names", None) or [])
    if len(names) != len(flat):
        names = [f"output_{i}" for i in range(len(flat))]
    pairs = {name: _logits(tensor) for name, tensor in zip(names, flat, strict=True) if tensor.dtype.is_floating}
    if not pairs:
        raise ModelError(f"{model.name} has no float output, and a score needs one; wrap it in a model that has")
    return {n: t for n, (t, _) in pairs.items()}, {n: activation for n, (_, activation) in pairs.items()}


def _logits(output: tf.Tensor) -> tuple[tf.Tensor, str | None]:
    """The input of the Softmax or Sigmoid that makes the output, seen through identities and casts between floats."""
    op = output.op
    while op.type == "Identity" or (op.type == "Cast" and op.inputs[0].dtype.is_floating):
        op = op.inputs[0].op
    if op.type in ACTIVATIONS:
        return op.inputs[0], ACTIVATIONS[op.type]
    return output, None


def _named(calls: list[tuple[int, str, keras.layers.Layer, Any]], graph: tf.Graph) -> dict[str, Call]:
    """Calls by name, in execution order. Of several calls of one layer the last has the plain name.

    A container whose value is a part's value (a backbone) stands before that part.
    """
    inside = []
    for start, name, layer, value in calls:
        tensor = next((t for t in tf.nest.flatten(value) if tf.is_tensor(t) and t.dtype.is_floating), None)
        if tensor is not None and tensor.graph is graph and tensor.shape.rank is not None:
            inside.append(Call(start, name, layer, tensor))
    count: dict[str, int] = {}
    total: dict[str, int] = {}
    for call in inside:
        total[call.name] = total.get(call.name, 0) + 1
    ordered: list[Call] = []
    for call in inside:
        k = count[call.name] = count.get(call.name, -1) + 1
        name = call.name if k == total[call.name] - 1 else f"{call.name}#{k}"
        parts = (i for i, part in enumerate(ordered) if part.tensor is call.tensor and part.start > call.start)
        ordered.insert(next(parts, len(ordered)), Call(call.start, name, call.layer, call.tensor))
    return {call.name: call for call in ordered}


def _ancestors(operation: tf.Operation) -> list[tf.Operation]:
    seen = {operation.name: operation}
    todo = [operation]
    while todo:
        for t in todo.pop().inputs:
            if t.op.name not in seen:
                seen[t.op.name] = t.op
                todo.append(t.op)
    return list(seen.values())


def _reached(operation: tf.Operation, sources: Mapping[str, bool], memo: dict[str, bool]) -> bool:
    """Whether a path leads from one of the `sources` to `operation`; a source is reached from itself."""
    todo = [operation]
    while todo:
        op = todo[-1]
        if op.name in memo:
            todo.pop()
        elif op.name in sources:
            memo[op.name] = True
        else:
            before = [t.op for t in op.inputs]
            unknown = [o for o in before if o.name not in memo]
            if unknown:
                todo.extend(unknown)
            else:
                memo[op.name] = any(memo[o.name] for o in before)
    return memo[operation.name]
