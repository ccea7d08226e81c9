"""Export of a Keras model to an ONNX file, by tf2onnx.

tf2onnx converts the architecture alone. It copies its input about thirty times, which takes 20 GB for VGG16's weights.
Therefore every weight of two or more axes is an input of the graph that it converts, and becomes an initializer
afterwards. (This also keeps the kernels unchanged: tf2onnx does not fold the following batch normalisation into them.)
"""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xcam.contract.files import whole_or_not
from xcam.contract.graphs import call_names
from xcam.contract.layouts import filled
from xcam.contract.messages import first_run, require
from xcam.contract.types import Array
from xcam.errors import InputError, ModelError, first_line
from xcam.models.export import LIMIT
from xcam_keras.calls import all_outputs
from xcam_keras.engines.tensorflow_graph import TRACING, ancestors, named, traced
from xcam_keras.inputs import data_format, input_spec, symbolic_inputs
from xcam_keras.quiet import quiet

OPSET = 18
"""The newest operator set that tf2onnx 1.17 writes."""
BATCH = "batch"
"""The ONNX model's name for the size of the batch."""
LAYERS = "xcam.layers"
"""Key of the metadata: a JSON object from layers to the tensors with their values, in Keras' layout or transposed."""
ADDING = ("Add", "AddV2", "BiasAdd", "Sub", "Identity", "Reshape")
REARRANGING = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that are applied to a weight before it is written, and not by the graph."""


def to_onnx(model: keras.Model, path: Path, size: tuple[int | None, ...] | None = None) -> None:
    """Write a model, in evaluation mode, as an ONNX file with one input, of Keras' name and layout, and any batch.

    Outputs have Keras' names, weights the names of their variables. Weights of more than 1.5 GB are written to
    `<name>.data` in the same folder. The file appears when it is complete.

    Args:
        model: the model.
        path: the file to write.
        size: (H, W) where the model leaves it open; None, also for one of them, leaves it open too.

    Raises:
        BackendError: tf2onnx is not installed.
        ModelError: the model cannot be converted.
        InputError: the size is not the model's, or the file cannot be written.
    """
    require(("onnx", "tf2onnx"), "export Keras models to ONNX")
    spec = _spec(model, size)
    with TRACING, quiet():
        network = _Network(model, spec)
        proto = _converted(network)
    _describe(proto, network)
    rearrangements = _take_rearrangements(proto.graph, network.weights)
    _fill(proto.graph, network.weights, rearrangements)
    import onnx

    weight_bytes = sum(len(constant.raw_data) for constant in proto.graph.initializer)
    with whole_or_not(path) as file:
        onnx.save_model(proto, file, save_as_external_data=weight_bytes > LIMIT, location=f"{path.name}.data")


def _spec(model: keras.Model, size: tuple[int | None, ...] | None) -> tf.TensorSpec:
    """Return the input's shape, with an open batch, its dtype and Keras' name of it."""
    layout = data_format(model)
    spec = input_spec(model, layout, None, size)
    space = filled(spec.size, size)
    if size is not None and filled(size, space) != space:
        raise InputError(f"cannot use size={tuple(size)}: {model.name} takes images of {spec.size}; leave size out")
    symbol = next(iter(symbolic_inputs(model)), None)
    space = space or (None, None)
    shape: list[int | None] = list(space)
    if spec.channels:
        shape = [spec.channels, *space] if layout == "channels_first" else [*space, spec.channels]
    if size is None and symbol is not None:
        shape = list(symbol.shape[1:])
    return tf.TensorSpec((None, *shape), spec.dtype, symbol.name if symbol is not None else "input")


class _Network:
    """A forward pass, recorded with the large weights as inputs."""

    def __init__(self, model: keras.Model, spec: tf.TensorSpec) -> None:
        self.name, self.spec = model.name, spec
        variables = [v for v in model.variables if len(v.shape) > 1]
        symbols: list[tf.Tensor] = []
        self.outputs: dict[str, tf.Tensor] = {}
        eager = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)  # a grouped convolution is inside a function, which must be inlined

        def lifted(x: tf.Tensor, training: bool) -> Any:
            symbols.extend(tf.compat.v1.placeholder(v.dtype, v.shape, "weight") for v in variables)
            with keras.StatelessScope(list(zip(variables, symbols, strict=True))):
                value = model(x, training=training)
            self.outputs = {name: tf.identity(t) for name, t in all_outputs(model, value).items()}
            return value

        try:
            with first_run(model.name, spec.shape.as_list()[1:]):
                recorded, calls = traced(lifted, spec)
        finally:
            tf.config.run_functions_eagerly(eager)
        outputs = list(self.outputs.values())
        read = ancestors(outputs)
        self.weights: dict[str, Any] = {}
        """Weights by name in the ONNX model: the variable's path, with a number for a repeated path."""
        self.names = {recorded.inputs[0].name: spec.name}
        """The names of tensors in the ONNX model, by their names in the graph."""
        inputs = [recorded.inputs[0]]
        used = [(v, symbol) for v, symbol in zip(variables, symbols, strict=True) if symbol.op.name in read]
        for name, (variable, symbol) in zip(call_names([v.path for v, _ in used]), used, strict=True):
            self.weights[name], self.names[symbol.name] = variable, name
            inputs.append(symbol)
        self.names |= {tensor.name: name for name, tensor in self.outputs.items()}
        self.layers = {name: call.value for name, call in named(calls, recorded.graph).items()}
        self.function = recorded.prune(inputs, outputs)
        captured = zip(self.function.captured_inputs, self.function.inputs[len(inputs) :], strict=True)
        self.weights |= {  # tensors that a layer stores outside of variables, as Normalization does
            inner.name: outer for outer, inner in captured if outer.dtype not in (tf.resource, tf.variant)
        }


def _source(tensor: tf.Tensor) -> str:
    """Return the name of the tensor, or of the tensor that it copies."""
    while tensor.op.type in ("Identity", "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index]
    return str(tensor.name)


def _converted(network: _Network) -> Any:
    """Return the ONNX model (onnx.ModelProto), whose weights are inputs. Raises ModelError."""
    with _logging_captured() as errors:
        import onnx
        import tf2onnx.convert
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        try:
            frozen = convert_variables_to_constants_v2(
                network.function, lower_control_flow=False, aggressive_inlining=True
            )
            definition = frozen.graph.as_graph_def(add_shapes=True)
            proto, _ = tf2onnx.convert.from_graph_def(
                definition,
                network.name,
                input_names=[t.name for t in network.function.inputs if t.dtype != tf.resource],
                output_names=[t.name for t in network.outputs.values()],
                opset=OPSET,
                custom_op_handlers={"Erfc": (_erfc, [])},
                tensors_to_rename=network.names,
            )
            if errors:  # tf2onnx continues after an error, with part of the network missing
                raise ValueError(errors[0])
            onnx.checker.check_model(proto)
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(
                f"cannot convert {network.name} with tf2onnx: {first_line(error)}; change that part of the model, or "
                "export a model without it"
            ) from error
    return proto


def _erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """Convert 1 − erf(x), a part of Keras' GELU that tf2onnx cannot convert."""
    from onnx.helper import tensor_dtype_to_np_dtype

    shape, kind = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    one = graph.make_const(f"{name}/one", np.ones((), tensor_dtype_to_np_dtype(kind)))
    erf = graph.make_node("Erf", node.input[:1], name=f"{name}/Erf", shapes=[shape], dtypes=[kind])
    outputs = list(node.output)
    graph.remove_node(name)
    graph.make_node("Sub", [one.output[0], erf.output[0]], name=name, outputs=outputs, shapes=[shape], dtypes=[kind])


def _describe(proto: Any, network: _Network) -> None:
    """Name the open axes, and store the tensor of each layer's value in the metadata."""
    import onnx

    graph = proto.graph
    shapes = {network.spec.name: network.spec.shape} | {name: t.shape for name, t in network.outputs.items()}
    for value in [*graph.input, *graph.output]:
        if value.name in shapes:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if shapes[value.name][axis] is None:
                    dim.dim_param = BATCH if axis == 0 else f"{value.name}_{axis}"
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    shapes = {value.name: _dims(value) for value in [*inferred.value_info, *inferred.input, *inferred.output]}
    open_size = None in network.spec.shape[1:]
    padded = {name for node in graph.node if open_size and node.op_type == "ConvTranspose" for name in node.output}
    renamed = {_source(tensor): name for name, tensor in network.outputs.items()}
    layers = {}
    for layer, tensor in network.layers.items():
        name = _source(tensor)
        while name not in shapes and name not in renamed and tensor.op.type in ADDING:
            # tf2onnx removes the addition of zeros, such as a bias that was never trained.
            tensor = tensor.op.inputs[0]
            name = _source(tensor)
        name = name if name in shapes else renamed.get(name, "")
        # After an optimisation the name can belong to a value before cropping or squeezing.
        if name in shapes and name not in padded and _alike(shapes[name], tensor.shape.as_list()):
            layers[layer] = name
    entry = proto.metadata_props.add()
    entry.key, entry.value = LAYERS, json.dumps(layers)


def _dims(value: Any) -> list[int | None]:
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]


def _alike(shape: list[int | None], other: list[int | None]) -> bool:
    """Return whether two shapes can be the same except for the order; None is any number."""
    sizes, other_sizes = Counter(filter(None, shape)), Counter(filter(None, other))
    return len(shape) == len(other) and (None in shape[1:] or None in other[1:] or sizes == other_sizes)


def _take_rearrangements(graph: Any, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the nodes that only rearrange a weight; return them by the name of their output."""
    constants = {constant.name for constant in graph.initializer}
    outputs = {output.name for output in graph.output}
    removed: dict[str, Any] = {}
    rest = []
    for node in graph.node:
        source, *others = node.input or [""]
        if (
            node.op_type in REARRANGING
            and (source in weights or source in removed)
            and constants.issuperset(others)
            and outputs.isdisjoint(node.output)
        ):
            removed[node.output[0]] = node
        else:
            rest.append(node)
    del graph.node[:]
    graph.node.extend(rest)
    return removed


def _fill(graph: Any, weights: Mapping[str, Any], rearrangements: Mapping[str, Any]) -> None:
    """Store the weights as the graph reads them. One that is read in a single form has its variable's name."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    constants = {constant.name: constant for constant in graph.initializer}
    reads = [(node, i, name) for node in _nodes(graph) for i, name in enumerate(node.input)]
    read = dict.fromkeys(name for _, _, name in reads)
    names: dict[str, str] = {name: name for name in read if name in weights}
    for name in read:
        if name in rearrangements:
            variable = rearrangements[name].input[0]
            while variable in rearrangements:
                variable = rearrangements[variable].input[0]
            names[name] = name if variable in names.values() else variable
    for node, i, name in reads:
        node.input[i] = names.get(name, name)

    def value(name: str) -> Array:
        if name in weights:
            return np.asarray(keras.ops.convert_to_numpy(weights[name]))
        if name in constants:
            return np.asarray(onnx.numpy_helper.to_array(constants[name]))
        node = rearrangements[name]
        (result,) = ReferenceEvaluator(node).run(None, {source: value(source) for source in node.input})
        return np.asarray(result)

    inputs = [value for value in graph.input if value.name not in weights]
    initializers = [constant for name, constant in constants.items() if name in read]
    del graph.input[:], graph.initializer[:]
    graph.input.extend(inputs)
    graph.initializer.extend(initializers)
    for name, new in names.items():  # one at a time, and not by from_array, whose tensor would be copied again
        array = value(name)
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.initializer.add(name=new, dims=array.shape, data_type=kind, raw_data=array.tobytes())


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph, and of the graphs inside its loops and branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


@contextmanager
def _logging_captured() -> Iterator[list[str]]:
    """Suppress warnings and tf2onnx's log; give its errors, except for optimisations that failed."""
    errors: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "rewrite" not in record.getMessage():
                errors.append(" ".join(record.getMessage().split()))

    loggers = [logging.getLogger("tf2onnx"), tf.get_logger()]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger, handlers in zip(loggers, [[Handler()], []], strict=True):
        logger.handlers, logger.propagate = handlers, False
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield errors
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
