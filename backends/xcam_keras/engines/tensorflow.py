"""A Keras model on TensorFlow, traced once into a graph and cut there.

The whole forward pass is recorded once for each input shape. Every cut is then made in that graph: the forward part
hands out the few tensors that the backward part needs, the backward part takes them and a cotangent. So cotangents are
made in plain Python between two compiled functions, nothing before the layer is differentiated, and the model itself
is never changed. (A gradient tape with a callback inside one compiled function costs the same; this needs no callback,
no call ids, and gives `resume` the very same pieces.)
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xcam.contract import Array
from xcam.errors import InputError
from xcam_keras import calls
from xcam_keras.engines import Call, NoGradient

tf.config.list_logical_devices()  # the first use of the runtime talks: here it is held back

TRACING = threading.RLock()
"""Held while a model is recorded or a graph is added to: two threads tracing at once break each other."""

CONTROL_FLOW = ("While", "StatelessWhile", "If", "StatelessIf")
ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}


def device_name(device: str | None) -> str | None:
    """`cpu`, `cuda`, `cuda:1`, `gpu:0` → TensorFlow's `/CPU:0`, `/GPU:1`. Raises InputError when it is not there."""
    if device is None:
        return None
    kind, _, number = device.lower().partition(":")
    kind = {"cuda": "GPU", "gpu": "GPU", "cpu": "CPU"}.get(kind, kind)
    known = [d.name.removeprefix("/physical_device:") for d in tf.config.list_physical_devices()]
    if f"{kind}:{number or 0}" not in known:
        raise InputError(f"no device {device!r} here; TensorFlow sees: {', '.join(known)}")
    return f"/{kind}:{number or 0}"


@contextlib.contextmanager
def running(device: str | None) -> Iterator[None]:
    """On the device; memory that runs out is a MemoryError."""
    try:
        with tf.device(device):
            yield
    except tf.errors.ResourceExhaustedError as error:
        raise MemoryError(str(error).splitlines()[0]) from error


class Recording:
    """The forward pass of one model for one input shape, as a graph, and the cuts that were made in it."""

    def __init__(self, model: keras.Model, shape: Sequence[int | None], dtype: str) -> None:
        with TRACING:
            self.function, seen = record(model, tf.TensorSpec((None, *shape), dtype))
            self.graph = self.function.graph
            self.x: tf.Tensor = self.function.inputs[0]
            structured = self.function.structured_outputs
            said = calls.outputs(model, structured, lambda t: t.dtype.is_floating)
            cut_off = {name: _logits(tensor) for name, tensor in said.items()}
            self.outputs = {name: tensor for name, (tensor, _) in cut_off.items()}
            self.activations = {name: activation for name, (_, activation) in cut_off.items()}
            found = named(seen, self.graph)
            self.tensors = {name: call.value for name, call in found.items()}
            self._depends: dict[str, bool] = {}
            self._made: dict[Any, Any] = {}
            reach = self.reaches_output(self.tensors.values())
            ends = {t.name for t in [*self.outputs.values(), *tf.nest.flatten(structured)]}
            self.calls = {
                name: Call(
                    call.layer,
                    tuple(call.value.shape.as_list()[1:]),
                    is_output=call.value.name in ends,
                    reaches_output=call.value.name in reach,
                )
                for name, call in found.items()
            }

    def predict(self, x: Array) -> list[Array]:
        """See xcam_keras.engines.Recording."""
        run = self.once("predict", lambda: self.run([self.x], list(self.outputs.values())))
        return [_float32(t) for t in run(self.tensor(x))]

    def values(self, x: Array, names: Sequence[str]) -> list[Array]:
        """See xcam_keras.engines.Recording."""
        run = self.once(("values", *names), lambda: self.run([self.x], [self.tensors[name] for name in names]))
        return [_float32(t) for t in run(self.tensor(x))]

    def open(self, x: Array, name: str, differentiate: bool = True) -> Opened:
        """See xcam_keras.engines.Recording."""
        layer = self.tensors[name]
        cut = self.once(("cut", layer.ref()), lambda: Cut(self, layer))
        found = list(cut.forward(self.tensor(x)))
        outputs, value, inside, beside, frontier = _split(
            found, len(self.outputs), 1, len(cut.inside), len(cut.beside), len(cut.frontier)
        )
        return Opened(cut, x, outputs, value[0], inside, beside, frontier)

    def tensor(self, x: Array) -> tf.Tensor:
        """The input, as the graph takes it."""
        return tf.constant(x, dtype=self.x.dtype)

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

    def depends_on_input(self, operation: tf.Operation) -> bool:
        """Whether an operation's value can change with the model's input; if not, it is a weight or a constant."""
        return _reached(operation, {self.x.op.name: True}, self._depends)

    def reaches_output(self, tensors: Iterable[tf.Tensor]) -> set[str]:
        """The names of those tensors that some output is computed from."""
        ahead = {op.name for output in self.outputs.values() for op in ancestors(output.op)}
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
            cotangents = [tf.compat.v1.placeholder(output.dtype, output.shape) for output in outputs]
            gradient = tf.gradients(outputs, [layer], grad_ys=cotangents)[0]
        if gradient is None:
            raise NoGradient
        needed = self._needed(gradient, existing)
        # What backward needs is made in the tail, or beside it: then the trace keeps it for `resume`.
        self.inside = [t for t in needed if _reached(t.op, known, tail) or t is layer]
        self.beside = [t for t in needed if not any(t is other for other in self.inside)]
        self.frontier = frontier
        self.forward = recording.run([recording.x], [*outputs, layer, *self.inside, *self.beside, *frontier])
        self.backward = recording.run([*cotangents, *self.inside, *self.beside], [gradient])
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


@dataclass(eq=False)
class Opened:
    """See xcam_keras.engines.Opened. What backward needs is at hand whether it is asked for or not."""

    cut: Cut
    x: Array
    said: list[tf.Tensor]
    layer: tf.Tensor
    inside: list[tf.Tensor]
    beside: list[tf.Tensor]
    frontier: list[tf.Tensor]

    @property
    def outputs(self) -> list[Array]:
        return [_float32(t) for t in self.said]

    @property
    def value(self) -> Array:
        return _float32(self.layer)

    def gradient(self, cotangents: Sequence[Array]) -> Array:
        """See xcam_keras.engines.Opened."""
        v = [tf.cast(tf.constant(c), output.dtype) for c, output in zip(cotangents, self.said, strict=True)]
        return _float32(self.cut.backward(*v, *self.inside, *self.beside)[0])

    def resumed(self, value: Array, rows: Sequence[int], differentiate: bool = True) -> Opened:
        """See xcam_keras.engines.Opened."""
        cut, x = self.cut, self.x[rows]
        layer = tf.cast(tf.constant(value), cut.layer.dtype)
        kept, symbols = [*self.beside, *self.frontier], [*cut.beside, *cut.frontier]
        if all(_row_by_row(t, symbol, len(self.x)) for t, symbol in zip(kept, symbols, strict=True)):
            kept = [tf.gather(t, tf.constant(rows)) for t in kept]
        else:  # windows folded into the batch, or a value of the whole batch: made anew for these rows
            kept = list(cut.side()(cut.recording.tensor(x)))
        beside, frontier = _split(kept, len(cut.beside), len(cut.frontier))
        outputs, inside = _split(list(cut.tail()(layer, *frontier)), len(self.said), len(cut.inside))
        return Opened(cut, x, outputs, layer, inside, beside, frontier)


def _split(tensors: list[tf.Tensor], *lengths: int) -> list[list[tf.Tensor]]:
    rest = iter(tensors)
    return [[next(rest) for _ in range(length)] for length in lengths]


def _row_by_row(value: tf.Tensor, symbol: tf.Tensor, rows: int) -> bool:
    """Whether a kept value has one row for each picture: its first axis is open in the graph, and as long as the batch."""
    return bool(symbol.dtype.is_floating and symbol.shape.rank and symbol.shape[0] is None and value.shape[0] == rows)


def _float32(tensor: tf.Tensor) -> Array:
    if tensor.dtype.is_floating and tensor.dtype != tf.float32:
        tensor = tf.cast(tensor, tf.float32)
    return np.asarray(tensor.numpy())


def record(model: Callable[..., Any], spec: tf.TensorSpec) -> tuple[Any, list[calls.Seen]]:
    """Trace the model, or a function that calls it; with it every layer call of this thread."""
    seen: list[calls.Seen] = []

    def note(call: calls.Seen) -> Any:
        seen.append(call)
        return call.value

    with calls.watching(note):
        return tf.compat.v1.wrap_function(lambda x: model(x, training=False), [spec]), seen


def named(seen: Sequence[calls.Seen], graph: tf.Graph) -> dict[str, calls.Seen]:
    """The calls with a float tensor of this graph, by name: see xcam_keras.calls.named."""
    return calls.named(
        seen, lambda t: tf.is_tensor(t) and t.dtype.is_floating and t.graph is graph and t.shape.rank is not None
    )


def _logits(output: tf.Tensor) -> tuple[tf.Tensor, str | None]:
    """The input of the Softmax or Sigmoid that makes the output, seen through identities and casts between floats."""
    op = output.op
    while op.type == "Identity" or (op.type == "Cast" and op.inputs[0].dtype.is_floating):
        op = op.inputs[0].op
    if op.type in ACTIVATIONS:
        return op.inputs[0], ACTIVATIONS[op.type]
    return output, None


def ancestors(operation: tf.Operation) -> list[tf.Operation]:
    """Every operation that the value is made from, and itself."""
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
