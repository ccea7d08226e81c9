"""A SavedModel folder, or a live model of Keras 2, as a graph of TensorFlow: the layers are the scopes of its operations."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from xcam.contract import scaling
from xcam.contract.fixed import FixedInputs, TakenInput, chosen, fitted
from xcam.contract.layouts import filled, shape_to_channels_first
from xcam.contract.recorded import RecordedModel
from xcam.contract.types import Array, Capability, InputSpec, Layer, Layout
from xcam.errors import ModelError
from xcam_keras.causes import cause
from xcam_keras.engine import engine
from xcam_keras.engines import tensorflow as tensorflow_engine
from xcam_keras.engines.tensorflow_graph import TRACING

SIGNATURE = "serving_default"
KERNELS = re.compile(r"Conv|MatMul|Einsum|BatchNorm")
"""Types of operations of which a layer has one."""
PARTS = re.compile(r"(moments|batchnorm|Tensordot|Gelu|einsum|l2_normalize)(_\d+)?$")
"""Scopes that TensorFlow's functions open inside a layer."""
NORMS = re.compile(r"/moments/|/batchnorm/|BatchNorm")
"""Scopes and types of operations that a layer has when it normalises."""
POOLS = re.compile(r"Pool|^(Mean|Max|Sum)$")
CALLS = re.compile(r"(Stateful)?PartitionedCall(_\d+)?$")
"""A part of the names of operations, where a function was inlined."""


@dataclass
class Graph:
    """A frozen graph with one input."""

    definition: Any
    """tf.compat.v1.GraphDef, with the weights as constants and without function calls."""
    input: str
    """Name of the input's tensor."""
    spec: tf.TensorSpec
    outputs: Mapping[str, str]
    """Names of the outputs' tensors by the outputs' names."""
    fixed: Mapping[str, Array] = field(default_factory=dict)
    """Values of the other inputs, by the names of their tensors."""


def read(folder: Path, fixed: FixedInputs) -> Graph:
    """Return the graph of a SavedModel's signature.

    Args:
        folder: written by Keras 2, by `model.export` of Keras 3, or by tf.saved_model.save.
        fixed: the values of its other inputs.

    Raises:
        ModelError: it cannot be read, or has no signature with one input.
    """
    try:
        loaded = tf.saved_model.load(str(folder))
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(
            f"cannot load {folder}: {cause(error)}; check that the folder is complete, and that this version of "
            "TensorFlow reads it"
        ) from error
    signatures = dict(loaded.signatures)
    name = SIGNATURE if SIGNATURE in signatures else next(iter(signatures), None)
    if name is None or (name != SIGNATURE and len(signatures) > 1):
        reason = f"none of its signatures {sorted(signatures)} is called" if signatures else "it has no signature"
        raise ModelError(
            f"cannot load {folder}: {reason} {SIGNATURE}; save it with tf.saved_model.save(model, folder, "
            "signatures=function), where function is a tf.function with an input_signature"
        )
    function = signatures[name]
    function._loaded = loaded  # the variables live as long as the object that was loaded
    return frozen(function, folder.name, fixed)


def frozen(function: Any, name: str, fixed: FixedInputs) -> Graph:
    """Return the graph of a concrete function, of which all inputs but the image are fixed. Raises InputError, ModelError."""
    positional, named = function.structured_input_signature
    specs = {spec.name: spec for spec in tf.nest.flatten(positional) if isinstance(spec, tf.TensorSpec)}
    specs |= {key: spec for key, spec in named.items() if isinstance(spec, tf.TensorSpec)}
    taken = {key: TakenInput(str(key), _shape(spec), spec.dtype.name) for key, spec in specs.items()}
    image = chosen(name, list(taken.values()), fixed) if len(specs) > 1 or fixed else next(iter(taken.values()))
    values = {key: fitted(value, taken[key], name, key in fixed.plain) for key, value in fixed.values.items()}
    graph = convert_variables_to_constants_v2(function, lower_control_flow=False, aggressive_inlining=True)
    outputs = function.structured_outputs
    names = sorted(outputs) if isinstance(outputs, dict) else [f"output_{i}" for i in range(len(graph.outputs))]
    if any(op.type == "XlaCallModule" for op in graph.graph.get_operations()):
        raise ModelError(
            f"cannot use {name}: it was exported from JAX, and shows no layers; export it from Keras on TensorFlow, "
            "with KERAS_BACKEND=tensorflow"
        )
    definition = graph.graph.as_graph_def()
    for node in definition.node:
        node.attr.pop("_output_shapes", None)
    tensors = [tensor.name for tensor in graph.outputs]
    tensor_of = dict(zip(_order(function, specs), (tensor.name for tensor in graph.inputs), strict=True))
    return Graph(
        definition,
        tensor_of[image.name],
        specs[image.name],
        dict(zip(names, tensors, strict=True)),
        {tensor_of[key]: value for key, value in values.items()},
    )


def _order(function: Any, specs: Mapping[str, Any]) -> list[str]:
    """Return the names of a function's inputs in the order of its tensors."""
    names = [tensor.name.partition(":")[0] for tensor in function.inputs]
    by_name = [name for name in names if name in specs]
    return by_name if len(by_name) == len(specs) else list(specs)


def _shape(spec: tf.TensorSpec) -> tuple[int | None, ...] | None:
    return None if spec.shape.rank is None else tuple(spec.shape)


class GraphModel(RecordedModel["GraphRecording"]):
    """A graph of TensorFlow behind xcam's contract. See xcam.contract.Model."""

    backend = "keras"
    capabilities: frozenset[Capability] = frozenset({"gradients", "resume"})

    def __init__(
        self,
        graph: Graph,
        *,
        name: str,
        device: str | None = None,
        layout: Layout | None = None,
        size: tuple[int, int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Wrap a graph.

        Args:
            graph: the result of `read` or `frozen`.
            name: the model's name.
            device: TensorFlow's name of a device; None: TensorFlow chooses.
            layout: layout of the input and of the layers; default: channels last, unless only axis 1 can be channels.
            size: (H, W) to use where the graph leaves it open.
            notes: see xcam.contract.Model.
        """
        self.graph, self.device = graph, device
        if graph.spec.shape.rank == 1 or not (graph.spec.dtype.is_floating or graph.spec.dtype.is_integer):
            raise ModelError(
                f"cannot use {name}: its input has the type {graph.spec.dtype.name} and the shape {graph.spec.shape}; "
                "save it with a signature that takes pixels"
            )
        dims = list(graph.spec.shape[1:]) if graph.spec.shape.rank else [None, None, None]
        first = len(dims) > 1 and dims[0] in (1, 3, 4) and dims[-1] not in (1, 3, 4, None)
        self.layout: Layout = layout or ("channels_first" if first else "channels_last")
        channels, space = (dims[0], dims[1:]) if self.layout == "channels_first" else (dims[-1], dims[:-1])
        spec = InputSpec(
            size=filled(tuple(space), None) or size,
            channels=channels or 3,
            layout=self.layout,
            dtype=graph.spec.dtype.name,
            fixed=any(space),
            channels_known=channels is not None,
        )
        super().__init__(name, spec, notes=notes)
        self.input = dataclasses.replace(spec, **self._scaling())

    def _scaling(self) -> dict[str, Any]:
        """Return the preprocessing that the graph's own scaling needs, where it has one."""

        def reach(x: Array) -> Array | None:
            recording = self._recording(x)
            with self._running():
                return recording.first_received(x)

        try:
            needed = scaling.computed(self.input, reach)
        except Exception:  # the model does not run on such an input: the first image shows why
            return {}
        return {"preprocessing": needed, "needs": needed}

    def _running(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = engine().running(self.device)
        return context

    def _record(self, shape: tuple[int, ...], batch: int) -> GraphRecording:
        return GraphRecording(self.graph, shape, self.layout, self.name, 1 if batch == 1 else None)


class GraphRecording(tensorflow_engine.Recording):
    """See xcam.contract.recorded.Recording: a frozen graph for one shape of the input."""

    def __init__(self, graph: Graph, shape: Sequence[int], layout: Layout, name: str, batch: int | None) -> None:
        self.batch = batch
        with TRACING:
            ends = list(graph.outputs.values())

            def imported(x: tf.Tensor) -> Any:
                others = {key: _repeated(value, x) for key, value in graph.fixed.items()}
                return tf.graph_util.import_graph_def(
                    graph.definition, input_map={graph.input: x, **others}, return_elements=ends, name=""
                )

            # A fixed batch is opened: operations that contain its size fail on another one.
            function = tf.compat.v1.wrap_function(imported, [tf.TensorSpec((batch, *shape), graph.spec.dtype)])
            tensors = dict(zip(graph.outputs, function.outputs, strict=True))
            floats = {name: tensor for name, tensor in tensors.items() if tensor.dtype.is_floating}
            if not floats:
                raise ModelError(
                    f"cannot explain {name}: it has no float output, which a score needs; save a model that returns its class "
                    "scores"
                )
            self._open(function, floats)
            self.operations = _in_order(self.operations)
            results = {t.name for t in [*self.outputs.values(), *tensors.values()]}
            values = [op for op in self.operations if op.name in self.from_x and _is_value(op, self.x.op)]
            named = named_operations(values)
            self.tensors = {layer_name: op.outputs[0] for layer_name, op, _, _ in named}
            facts = self._facts(len(shape) == 3)
            self.layers = {}
            for layer_name, op, kind, inner in named:
                tensor = op.outputs[0]
                dims = tensor.shape.as_list()[1:]
                axes: Layout = "tokens" if len(dims) == 2 and len(shape) == 3 else _layout(op, layout)
                self.layers[layer_name] = Layer(
                    layer_name,
                    kind,
                    shape_to_channels_first(dims, axes),
                    axes,
                    is_output=tensor.name in results,
                    reaches_output=bool(facts[layer_name]["leads_to"]),
                    inner=inner,
                    **facts[layer_name],
                )

    def first_received(self, x: Array) -> Array | None:
        """Return the value that the first operation with a kernel receives from the input."""
        for op in self.operations:
            if KERNELS.search(op.type) and op.name in self.from_x:
                value = next((t for t in op.inputs if t.op.name in self.from_x), None)
                if value is not None and value.dtype.is_floating:
                    ends = [self.x], [value]
                    return np.asarray(self.run("first", lambda: ends)(self.tensor(x))[0].numpy(), np.float32)  # noqa: B023
        return None


def _repeated(value: Array, x: tf.Tensor) -> tf.Tensor:
    """Return a fixed value, with a row for each image where it has a batch axis."""
    if not value.ndim or len(value) != 1:
        return tf.constant(value)
    return tf.broadcast_to(tf.constant(value), tf.concat([tf.shape(x)[:1], value.shape[1:]], 0))


def _is_value(op: tf.Operation, start: tf.Operation) -> bool:
    """Return whether an operation's value has rows and features, and is not that of its input."""
    if op is start or op.type in ("Identity", "IdentityN", "StopGradient", "Cast") or not op.outputs:
        return False
    tensor = op.outputs[0]
    return bool(tensor.dtype.is_floating and tensor.shape.rank is not None and tensor.shape.rank > 1)


def _layout(op: tf.Operation, default: Layout) -> Layout:
    """Return the layout that an operation states."""
    try:
        stated = op.get_attr("data_format")
    except ValueError:
        return default
    return "channels_first" if stated in (b"NCHW", b"NCDHW") else "channels_last"


def _in_order(operations: Sequence[tf.Operation]) -> list[tf.Operation]:
    """Return operations by their distance from the start: an order of execution in which the last one is the deepest."""
    depth: dict[str, int] = {}
    for op in operations:  # TensorFlow imports an operation after its inputs
        depth[op.name] = 1 + max((depth.get(t.op.name, 0) for t in op.inputs), default=0)
    return sorted(operations, key=lambda op: depth[op.name])


def named_operations(operations: Sequence[tf.Operation]) -> list[tuple[str, tf.Operation, str, bool]]:
    """Return name, operation, kind, and whether it is a value inside a layer, in execution order.

    A layer is a scope that contains no other scope, and at most one operation with a kernel, without pooling (`conv1/Conv2D`,
    `conv1/BiasAdd`, `conv1/Relu`): it has the value of its last operation. Operations outside of layers have their own
    names.
    """
    scopes = [_scope(op.name) for op in operations]
    while scopes and len({scope[:1] for scope in scopes}) == 1 and any(len(scope) > 1 for scope in scopes):
        scopes = [scope[1:] for scope in scopes]  # the name of the whole model
    containers = {scope[:n] for scope in scopes for n in range(len(scope))}
    kernels = Counter(scope for scope, op in zip(scopes, operations, strict=True) if KERNELS.search(op.type))
    pools = Counter(scope for scope, op in zip(scopes, operations, strict=True) if POOLS.search(op.type))
    last = dict(zip(scopes, operations, strict=True))
    renamed = _without_numbers(set(scopes))
    norms = {scope for scope, op in zip(scopes, operations, strict=True) if NORMS.search(f"{op.name}/{op.type}")}
    result = []
    used: Counter[str] = Counter()
    for scope, op in zip(scopes, operations, strict=True):
        single = kernels[scope] < 2 and not (kernels[scope] and pools[scope])
        is_layer = bool(scope) and scope not in containers and single
        is_last = is_layer and last[scope] is op
        name = "/".join(renamed[scope] if is_last else (*renamed[scope], op.name.rpartition("/")[2]))
        used[name] += 1
        name = f"{name}#{used[name] - 1}" if used[name] > 1 else name
        kind = "Normalization" if is_last and scope in norms else str(op.type)
        result.append((name, op, kind, is_layer and not is_last))
    return result


def _scope(name: str) -> tuple[str, ...]:
    """Return the scopes of an operation, without function calls and parts of a layer."""
    scopes = [scope for scope in name.split("/")[:-1] if not CALLS.match(scope)]
    while len(scopes) > 1 and PARTS.match(scopes[-1]):
        scopes.pop()
    return tuple(scopes)


def _without_numbers(scopes: set[tuple[str, ...]]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return scopes without the `_1` that TensorFlow appends to each of them where a model is traced again."""
    again = all(part.endswith("_1") for scope in scopes for part in scope)
    shorter = {scope: tuple(part.removesuffix("_1") if again else part for part in scope) for scope in scopes}
    return shorter if len(set(shorter.values())) == len(scopes) else {scope: scope for scope in scopes}


def live(model: Any, fixed: FixedInputs) -> Graph:
    """Return the graph of a live model of Keras 2, of which all inputs but the image are fixed.

    Raises:
        InputError: a value does not fit.
        ModelError: an input has no value.
    """
    specs = tf.nest.flatten(getattr(model, "inputs", None) or getattr(model, "_saved_model_inputs_spec", None))
    if not specs or specs[0] is None:  # a subclassed model that was never called
        specs = [tf.TensorSpec((None, None, None, 3), keras.config.floatx())]
    names = list(getattr(model, "input_names", None) or [f"input_{k}" for k in range(len(specs))])
    structure = getattr(model, "input", None)
    keys = list(structure) if isinstance(structure, Mapping) else None

    def call(*tensors: tf.Tensor) -> Any:
        arguments = list(tensors) if keys is None else dict(zip(keys, tensors, strict=True))
        return model(tensors[0] if len(tensors) == 1 and keys is None else arguments, training=False)

    function = tf.function(call, autograph=False)
    opened = [
        tf.TensorSpec((None, *spec.shape[1:]), spec.dtype, name)
        for spec, name in zip(specs, keys or names, strict=True)
    ]
    return frozen(function.get_concrete_function(*opened), model.name, fixed)
