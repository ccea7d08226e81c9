"""Recording of a Keras model as a TensorFlow graph, and traversal of the graph."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import backprop_util
from tensorflow.python.framework.ops import get_gradient_function

from xcam.contract.graphs import reachable
from xcam_keras import calls

TRACING = threading.RLock()
"""The lock for recording a model or extending a graph: concurrent tracing in two threads fails."""

OUTPUT_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}

SHAPE_ONLY = {"Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "BroadcastGradientArgs"}
"""Operations that read the shape of their inputs, and not the values."""
STEPS = {"Round", "Rint", "Floor", "Ceil", "FloorDiv", "Sign", "StopGradient"}
"""Operations whose gradient is none or zero everywhere."""
CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
"""Operations that call a function: TensorFlow differentiates the function."""


def traced(model: Callable[..., Any], spec: tf.TensorSpec) -> tuple[Any, list[calls.Call]]:
    """Trace a model, or a function that calls one, into a graph; return it with every layer call of this thread."""
    seen: list[calls.Call] = []

    def note(call: calls.Call) -> Any:
        seen.append(call)
        return call.value

    with calls.watching(note):
        return tf.compat.v1.wrap_function(lambda x: model(x, training=False), [spec]), seen


def named(seen: Sequence[calls.Call], graph: tf.Graph) -> dict[str, calls.Call]:
    """Return the calls with a float tensor of this graph, by name: see xcam_keras.calls.named."""
    return calls.named(
        seen, lambda t: tf.is_tensor(t) and t.dtype.is_floating and t.graph is graph and t.shape.rank is not None
    )


def activation_of(tensor: tf.Tensor) -> tuple[str | None, tf.Tensor] | None:
    """Return the softmax or sigmoid that computes a tensor, and its input: see xcam.contract.outputs.cut_activation."""
    op = tensor.op
    if op.type in OUTPUT_ACTIVATIONS:
        return OUTPUT_ACTIVATIONS[op.type], op.inputs[0]
    if op.type == "Identity" or (op.type == "Cast" and op.inputs[0].dtype.is_floating):
        return None, op.inputs[0]
    return None


def ancestors(tensors: Iterable[tf.Tensor]) -> set[str]:
    """Return the names of all operations that the tensors are computed from."""
    return {op.name for op in reachable((t.op for t in tensors), lambda op: [t.op for t in op.inputs])}


def read_by(tensor: tf.Tensor) -> set[str]:
    """Return the names of the operations on whose values a tensor depends, and not only on their shapes."""
    return {op.name for op in reachable([tensor.op], lambda op: [t.op for t in values_read(op)])}


def differentiable(tensors: Iterable[tf.Tensor]) -> set[str]:
    """Return the names of the operations to which a gradient leads from the tensors."""
    return {
        op.name
        for op in reachable(
            (t.op for t in tensors),
            lambda op: [t.op for t in op.inputs if backprop_util.IsTrainable(t)] if _has_gradient(op) else [],
        )
    }


def _has_gradient(op: tf.Operation) -> bool:
    if op.type in STEPS:
        return False
    try:
        return op.type in CALLS or get_gradient_function(op) is not None
    except LookupError:  # none is registered
        return False


def values_read(op: tf.Operation) -> Sequence[tf.Tensor]:
    """Return the inputs whose values an operation reads."""
    return () if op.type in SHAPE_ONLY else op.inputs


def following(
    start: tf.Operation,
    operations: Sequence[tf.Operation],
    reads: Callable[[tf.Operation], Sequence[tf.Tensor]] = lambda op: op.inputs,
) -> set[str]:
    """Return the names of those operations that are computed from `start`, and its own; they are in execution order."""
    result = {start.name}
    for op in operations:
        if any(t.op.name in result for t in reads(op)):
            result.add(op.name)
    return result
