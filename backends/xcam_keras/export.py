"""A model written to an ONNX file, by tf2onnx.

tf2onnx is shown the architecture alone. It copies what it is given some thirty times, which for VGG16's weights makes
20 GB; so here every weight of two or more axes is an input of the graph that it converts, and becomes an initializer
afterwards. (Kernels also stay what they are in Keras: a batch normalisation behind one is not multiplied into it.)
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xcam.contract import Array
from xcam.errors import BackendError, InputError, ModelError, first_line
from xcam_keras.engines.tensorflow import TRACING, ancestors, named, record
from xcam_keras.model import data_format, input_spec
from xcam_keras.quiet import quiet

OPSET = 18
"""The newest that tf2onnx 1.17 writes."""
BATCH = "batch"
"""What the ONNX model calls the size of the batch."""
LAYERS = "xcam.layers"
"""The key of the metadata that says, in JSON, which tensor holds which layer's value, in Keras' layout or turned."""
LIMIT = 1_500_000_000
"""Bytes of weights that one file holds; protobuf ends at 2 GiB."""
ADDING = ("Add", "AddV2", "BiasAdd", "Sub", "Identity", "Reshape")
REARRANGING = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Done to a weight before it is written, and not by the graph."""


def to_onnx(model: keras.Model, path: Path, size: tuple[int, int] | None = None) -> None:
    """Write `model`, in evaluation mode, as an ONNX model of one input, of Keras' name and layout, with any batch.

    size: height and width where the model leaves them open; None leaves them open too. Outputs are the model's, by
    Keras' names; weights have the names of their variables. Weights of more than 1.5 GB lie beside the file, in
    `<name>.data`. The file appears when it is complete. Raises BackendError without tf2onnx, ModelError where the
    model cannot be converted, InputError where the size is not the model's or the file cannot be written.
    """
    for package in ("onnx", "tf2onnx"):
        if importlib.util.find_spec(package) is None:
            raise BackendError(f"Keras exports to ONNX with {package}, which is not installed: pip install {package}")
    spec = _spec(model, size)
    with TRACING, quiet():
        network = _Network(model, spec)
        written = _converted(network)
    _describe(written, network)
    made = _rearranged(written.graph, network.weights)
    _fill(written.graph, network.weights, made)
    try:
        _save(written, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; give a folder that exists and has room"
        ) from error


def _spec(model: keras.Model, size: tuple[int, int] | None) -> tf.TensorSpec:
    """The input's shape, with an open batch, its type and Keras' name for it."""
    layout = data_format(model)
    known = input_spec(model, layout, None, size)
    if size is not None and known.size != tuple(size):
        raise InputError(f"{model.name} takes pictures of {known.size}, not of {tuple(size)}; leave size out")
    symbol = next(iter(getattr(model, "inputs", None) or ()), None)  # a subclassed model has none
    space = known.size or (None, None)
    shape = [known.channels, *space] if layout == "channels_first" else [*space, known.channels]
    if size is None and symbol is not None:
        shape = list(symbol.shape[1:])
    return tf.TensorSpec((None, *shape), known.dtype, symbol.name if symbol is not None else "input")


class _Network:
    """A forward pass recorded with the large weights as inputs."""

    def __init__(self, model: keras.Model, spec: tf.TensorSpec) -> None:
        self.name, self.spec = model.name, spec
        variables = [v for v in model.variables if len(v.shape) > 1]
        symbols: list[tf.Tensor] = []
        self.outputs: dict[str, tf.Tensor] = {}
        eager = tf.config.functions_run_eagerly()
        tf.config.run_functions_eagerly(True)  # a grouped convolution hides in a function, which must be written out

        def lifted(x: tf.Tensor, training: bool) -> Any:
            symbols.extend(tf.compat.v1.placeholder(v.dtype, v.shape, "weight") for v in variables)
            with keras.StatelessScope(list(zip(variables, symbols, strict=True))):
                value = model(x, training=training)
            self.outputs = {name: tf.identity(t) for name, t in _output_names(model, value)}
            return value

        try:
            recorded, calls = record(lifted, spec)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(
                f"{model.name} cannot run on an input of shape {spec.shape.as_list()[1:]}: {first_line(error)}; "
                "check size and channels, and that it runs on a batch without xcam"
            ) from error
        finally:
            tf.config.run_functions_eagerly(eager)
        outputs = list(self.outputs.values())
        read = {op.name for output in outputs for op in ancestors(output.op)}
        self.weights: dict[str, Any] = {}
        """By the name in the ONNX model: the variable's path, and a number where two have the same."""
        self.names = {recorded.inputs[0].name: spec.name}
        """What tensors are to be called, by their names in the graph."""
        inputs = [recorded.inputs[0]]
        for variable, symbol in zip(variables, symbols, strict=True):
            if symbol.op.name in read:
                name = _free(variable.path, self.weights)
                self.weights[name], self.names[symbol.name] = variable, name
                inputs.append(symbol)
        self.names |= {tensor.name: name for name, tensor in self.outputs.items()}
        self.layers = {name: call.value for name, call in named(calls, recorded.graph).items()}
        self.function = recorded.prune(inputs, outputs)
        captured = zip(self.function.captured_inputs, self.function.inputs[len(inputs) :], strict=True)
        self.weights |= {  # tensors that a layer keeps outside of variables, as Normalization does
            inner.name: outer for outer, inner in captured if outer.dtype not in (tf.resource, tf.variant)
        }


def _output_names(model: keras.Model, value: Any) -> list[tuple[str, tf.Tensor]]:
    """The outputs, with the names that KerasModel gives them."""
    flat = tf.nest.flatten(value)
    names = list(getattr(model, "output_names", None) or [])
    if isinstance(value, Mapping) and len(value) == len(flat):
        names, flat = [str(name) for name in value], list(value.values())
    if not len(names) == len(flat) == len(set(names)):
        names = [f"output_{i}" for i in range(len(flat))]
    return list(zip(names, flat, strict=True))


def _source(tensor: tf.Tensor) -> str:
    """The name of the tensor, or of the one that it repeats."""
    while tensor.op.type in ("Identity", "IdentityN"):
        tensor = tensor.op.inputs[tensor.value_index]
    return tensor.name


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, or with a number behind it."""
    numbered = (f"{name}#{i}" for i in range(1, len(taken) + 1))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _converted(network: _Network) -> Any:
    """The ONNX model (onnx.ModelProto), whose weights are inputs. Raises ModelError."""
    with _quiet() as complaints:
        import onnx
        import tf2onnx.convert
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        try:
            frozen = convert_variables_to_constants_v2(
                network.function, lower_control_flow=False, aggressive_inlining=True
            )
            definition = frozen.graph.as_graph_def(add_shapes=True)
            written, _ = tf2onnx.convert.from_graph_def(
                definition,
                network.name,
                input_names=[t.name for t in network.function.inputs if t.dtype != tf.resource],
                output_names=[t.name for t in network.outputs.values()],
                opset=OPSET,
                custom_op_handlers={"Erfc": (_erfc, [])},
                tensors_to_rename=network.names,
            )
            if complaints:  # it carries on after an error, with part of the network missing
                raise ValueError(complaints[0])
            onnx.checker.check_model(written)
        except MemoryError:
            raise
        except Exception as error:
            raise ModelError(
                f"tf2onnx cannot convert {network.name}: {first_line(error)}; change that part of the model, or export "
                "a model that leaves it out"
            ) from error
    return written


def _erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """1 − erf(x), which Keras' GELU is made of and tf2onnx does not know."""
    from onnx.helper import tensor_dtype_to_np_dtype

    shape, kind = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    one = graph.make_const(f"{name}/one", np.ones((), tensor_dtype_to_np_dtype(kind)))
    erf = graph.make_node("Erf", node.input[:1], name=f"{name}/Erf", shapes=[shape], dtypes=[kind])
    outputs = list(node.output)
    graph.remove_node(name)
    graph.make_node("Sub", [one.output[0], erf.output[0]], name=name, outputs=outputs, shapes=[shape], dtypes=[kind])


def _describe(written: Any, network: _Network) -> None:
    """Name the open axes, and say which tensor is which layer's value."""
    import onnx

    graph = written.graph
    shapes = {network.spec.name: network.spec.shape} | {name: t.shape for name, t in network.outputs.items()}
    for value in [*graph.input, *graph.output]:
        if value.name in shapes:
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if shapes[value.name][axis] is None:
                    dim.dim_param = BATCH if axis == 0 else f"{value.name}_{axis}"
    inferred = onnx.shape_inference.infer_shapes(written).graph
    shapes = {value.name: _dims(value) for value in [*inferred.value_info, *inferred.input, *inferred.output]}
    open_size = None in network.spec.shape[1:]
    padded = {name for node in graph.node if open_size and node.op_type == "ConvTranspose" for name in node.output}
    renamed = {_source(tensor): name for name, tensor in network.outputs.items()}
    layers = {}
    for layer, tensor in network.layers.items():
        name = _source(tensor)
        while name not in shapes and name not in renamed and tensor.op.type in ADDING:
            tensor = tensor.op.inputs[0]  # what adds zeros, a bias that was never trained, tf2onnx leaves out
            name = _source(tensor)
        name = name if name in shapes else renamed.get(name, "")
        # An optimisation can leave a name to a value that is not yet cut to size, or squeezed.
        if name in shapes and name not in padded and _alike(shapes[name], tensor.shape.as_list()):
            layers[layer] = name
    entry = written.metadata_props.add()
    entry.key, entry.value = LAYERS, json.dumps(layers)


def _dims(value: Any) -> list[int | None]:
    return [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]


def _alike(shape: list[int | None], other: list[int | None]) -> bool:
    """Whether two shapes can be the same but for the order; None is any number."""
    known, unlike = Counter(filter(None, shape)), Counter(filter(None, other))
    return len(shape) == len(other) and (None in shape[1:] or None in other[1:] or known == unlike)


def _rearranged(graph: Any, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Take the nodes that only rearrange a weight out of the graph; they are returned, by what they make."""
    constants = {constant.name for constant in graph.initializer}
    outputs = {output.name for output in graph.output}
    made: dict[str, Any] = {}
    rest = []
    for node in graph.node:
        source, *others = node.input or [""]
        if (
            node.op_type in REARRANGING
            and (source in weights or source in made)
            and constants.issuperset(others)
            and outputs.isdisjoint(node.output)
        ):
            made[node.output[0]] = node
        else:
            rest.append(node)
    del graph.node[:]
    graph.node.extend(rest)
    return made


def _fill(graph: Any, weights: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Put the weights in, as the graph reads them. One that is read in one form only has its variable's name."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    constants = {constant.name: constant for constant in graph.initializer}
    reads = [(node, i, name) for node in _nodes(graph) for i, name in enumerate(node.input)]
    read = dict.fromkeys(name for _, _, name in reads)
    names: dict[str, str] = {name: name for name in read if name in weights}
    for name in read:
        if name in made:
            variable = made[name].input[0]
            while variable in made:
                variable = made[variable].input[0]
            names[name] = name if variable in names.values() else variable
    for node, i, name in reads:
        node.input[i] = names.get(name, name)

    def value(name: str) -> Array:
        if name in weights:
            return np.asarray(keras.ops.convert_to_numpy(weights[name]))
        if name in constants:
            return onnx.numpy_helper.to_array(constants[name])
        evaluator = ReferenceEvaluator(made[name])
        return evaluator.run(None, {source: value(source) for source in made[name].input})[0]

    inputs = [value for value in graph.input if value.name not in weights]
    kept = [constant for name, constant in constants.items() if name in read]
    del graph.input[:], graph.initializer[:]
    graph.input.extend(inputs)
    graph.initializer.extend(kept)
    for name, new in names.items():  # one at a time, and not by from_array, whose tensor would be copied again
        array = value(name)
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.initializer.add(name=new, dims=array.shape, data_type=kind, raw_data=array.tobytes())


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, and of the graphs inside its loops and branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from _nodes(inner)


def _save(written: Any, path: Path) -> None:
    """Write into a folder beside `path`, then move: weights first, for a model without them could not be read."""
    import onnx

    size = sum(len(constant.raw_data) for constant in written.graph.initializer)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        file = Path(folder, path.name)
        onnx.save_model(written, file, save_as_external_data=size > LIMIT, location=f"{path.name}.data")
        for part in sorted(Path(folder).iterdir(), key=lambda part: part == file):
            os.replace(part, path.with_name(part.name))


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Warnings and tf2onnx's log are held back; its errors, but for optimisations that it could not do, are given."""
    complaints: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "rewrite" not in record.getMessage():
                complaints.append(" ".join(record.getMessage().split()))

    loggers = [logging.getLogger("tf2onnx"), tf.get_logger()]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger, handlers in zip(loggers, [[Kept()], []], strict=True):
        logger.handlers, logger.propagate = handlers, False
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield complaints
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
