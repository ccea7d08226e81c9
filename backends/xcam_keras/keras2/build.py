"""A Keras 3 model from the configuration of a Keras 2 model.

Keras 3 reads simple configurations of Keras 2 itself. It fails at nested models, names with `/`, functions of TensorFlow
and removed arguments, and computes some parts differently without an error (hard_sigmoid). Here every layer is created
from a repaired configuration, and called as the configuration's nodes say.
"""

from __future__ import annotations

import base64
import copy
import json
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from xcam.errors import ModelError
from xcam_keras.causes import cause
from xcam_keras.keras2.operations import FUNCTIONS, PACKAGE, Operation, Preprocess, hard_sigmoid, index, public_name

MODELS = ("Functional", "Model", "Sequential")
OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "InstanceProperty")
RENAMED = {
    "SyncBatchNormalization": "BatchNormalization",
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
    "RandomHeight": "Identity",
    "RandomWidth": "Identity",
    "LSTMV2": "LSTM",
    "GRUV2": "GRU",
    "LSTMV1": "LSTM",
    "GRUV1": "GRU",
    "Convolution2D": "Conv2D",
    "FixedDropout": "Dropout",  # of the package efficientnet
}
"""Classes of Keras 2 by the class of Keras 3 that computes the same in evaluation mode."""
DROPPED = {
    "adjustment": (None,),
    "batch_input_shape": None,
    "experimental_autocast": None,
    "fused": None,
    "implementation": None,
    "optional": None,
    "ragged": (False, None),
    "renorm": None,
    "renorm_clipping": None,
    "renorm_momentum": None,
    "rng_type": None,
    "synchronized": None,
    "time_major": (False, None),
    "virtual_batch_size": (None,),
    "input_spec": None,
    "input_dim": None,
    "input_length": None,
    "key_shape": None,
    "query_shape": None,
    "softmax_robust_masking": None,
    "value_shape": None,
}
"""Arguments that Keras 3 lacks, each with the values that mean what Keras 3 does; None: any, in evaluation mode."""
UNUSED = ("_initializer", "_regularizer", "_constraint")
"""Ends of the names of arguments without an effect once the weights are set."""
ACTIVATIONS = {"hard_sigmoid": hard_sigmoid, "swish": "silu", "relu_v2": "relu", "softmax_v2": "softmax"}
CONSTANT = "_CONSTANT_VALUE"


def build(config: Mapping[str, Any]) -> keras.Model:
    """Return the model, with new weights.

    Args:
        config: the model's serialised configuration, with `class_name` and `config`. It is not changed.

    Raises:
        ModelError: a part has no equivalent in Keras 3; the message names it.
    """
    return _Builder().layer(copy.deepcopy(dict(config)))


class _Builder:
    """Layers by the number under which Keras 2 shared them."""

    def layer(self, serialized: dict[str, Any]) -> Any:
        """Return a layer or a model from its serialised configuration."""
        kind, config = serialized["class_name"], serialized["config"]
        if kind in MODELS:
            config = {"layers": config} if isinstance(config, list) else config
            if kind != "Sequential" and "input_layers" in config:
                return self.functional(config)
            if kind != "Sequential" and "layers" not in config:
                raise ModelError(
                    f"cannot rebuild {config.get('name', kind)}: a subclassed model has no configuration"
                )
            return self.sequential(config)
        name = config.get("name", kind)
        try:
            return self.plain(kind.rpartition(">")[2], config)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"cannot rebuild layer {name} ({kind}): {cause(error)}") from error

    def named(self, entry: dict[str, Any], name: str) -> Any:
        """Return a layer of a model, with a name that Keras 3 allows."""
        if isinstance(entry["config"], dict):
            entry["config"]["name"] = name
        return self.layer(entry)

    def plain(self, kind: str, config: dict[str, Any]) -> keras.layers.Layer:
        """Return a layer that is not a model."""
        config = self.repaired(kind, config)
        trainable = config.pop("trainable", True)
        if hasattr(keras.layers, RENAMED.get(kind, kind)):  # their weights are all set afterwards; None is a default
            config = {k: v for k, v in config.items() if v is not None and not k.endswith(UNUSED)}
        if kind == "Lambda":
            return _lambda(config)
        for key in ("layer", "backward_layer", "cell"):
            if isinstance(config.get(key), dict):
                config[key] = self.layer(config[key])
            elif isinstance(config.get(key), list):
                config[key] = [self.layer(cell) for cell in config[key]]
        if kind == "StackedRNNCells":
            config["cells"] = [self.layer(cell) for cell in config["cells"]]
        kind = RENAMED.get(kind, kind)
        registered = keras.saving.get_registered_object
        cls = getattr(keras.layers, kind, None) or registered(f"{PACKAGE}>{kind}") or registered(kind)
        if cls is None:
            raise ModelError(f"cannot rebuild layer {config.get('name')}: Keras 3 has no layer {kind}")
        built = any(isinstance(value, keras.layers.Layer) for value in config.values()) or "cells" in config
        result: keras.layers.Layer = cls(**config) if built else cls.from_config(config)
        result.trainable = trainable
        return result

    def repaired(self, kind: str, config: dict[str, Any]) -> dict[str, Any]:
        """Return a layer's configuration as Keras 3 takes it."""
        config = _plain(config)
        if isinstance(config.get("dtype"), dict):
            config["dtype"] = config["dtype"]["config"].get("name", "float32")
        if kind == "InputLayer":
            shape = config.pop("batch_input_shape", None) or config.pop("batch_shape", None)
            return {"batch_shape": shape, "dtype": config.get("dtype") or "float32", "name": config.get("name")}
        for name, allowed in DROPPED.items():
            if name in config and not (kind == "Embedding" and name == "input_dim"):
                value = config.pop(name)
                if allowed is not None and value not in allowed:
                    raise ModelError(f"cannot rebuild layer {config.get('name')}: Keras 3 has no {name}={value!r}")
        axis = config.get("axis")
        if isinstance(axis, list) and kind != "Normalization":
            config["axis"] = axis[0] if len(axis) == 1 else axis
        if kind.startswith("DepthwiseConv") or ("Conv" in kind and config.get("groups") == 1):
            config.pop("groups", None)
        if kind == "ThresholdedReLU":
            config["threshold"] = float(config.pop("theta"))
        if kind == "LeakyReLU" and "alpha" in config:
            config["negative_slope"] = config.pop("alpha")
        if kind in ("LeakyReLU", "ReLU", "ELU", "ThresholdedReLU"):
            config = {key: _number(value) for key, value in config.items()}
        if kind in ("RandomHeight", "RandomWidth"):
            config = {"name": config.get("name"), "dtype": config.get("dtype")}
        for key in ("activation", "recurrent_activation"):
            if key in config:
                config[key] = self.activation(config[key])
        return config

    def activation(self, value: Any) -> Any:
        """Return an activation: a name, a function, or a layer."""
        if isinstance(value, dict):
            if value["class_name"] not in ("function", "Activation") and isinstance(value.get("config"), dict):
                return self.layer(value)
            value = value["config"]
            value = value.get("activation") if isinstance(value, dict) else value
        return ACTIVATIONS.get(value, value) if isinstance(value, str) else value

    def sequential(self, config: dict[str, Any]) -> keras.Model:
        """Return a Sequential model."""
        layers = [
            self.named(entry, name) for entry, name in zip(config["layers"], new_names(config["layers"]), strict=True)
        ]
        if not layers:
            raise ModelError(f"cannot rebuild {config.get('name')}: it has no layers")
        first = config["layers"][0]["config"]
        shape = first.get("batch_input_shape") if isinstance(first, dict) else None
        shape = shape or config.get("build_input_shape")
        if not isinstance(layers[0], keras.layers.InputLayer) and not isinstance(layers[0], keras.Model):
            if shape is None:
                raise ModelError(f"cannot rebuild {config.get('name')}: it does not state the shape of its input")
            dtype = (
                "float32"
                if not isinstance(first, dict) or isinstance(first.get("dtype"), dict)
                else first.get("dtype")
            )
            layers.insert(0, keras.layers.InputLayer(batch_shape=_plain(shape), dtype=dtype or "float32"))
        return keras.Sequential(layers, name=_name(config))

    def functional(self, config: dict[str, Any]) -> keras.Model:
        """Return a functional model: its layers, called in the order in which their inputs become known."""
        entries = config["layers"]
        names = [entry_name(entry) for entry in entries]
        renamed = dict(zip(names, new_names(entries), strict=True))
        values: dict[tuple[str, int], list[Any]] = {}
        layers: dict[str, Any] = {}
        waiting: dict[str, list[Any]] = {}
        for name, entry in zip(names, entries, strict=True):
            if entry["class_name"] not in (*OPERATIONS, "TensorFlowOpLayer"):
                layers[name] = self.named(entry, renamed[name])
            waiting[name] = list(entry["inbound_nodes"])
            if entry["class_name"] == "InputLayer":
                values[name, 0] = [layers[name].output]
        # Keras 2 counts from 1 the calls of a model inside a model: call 0 is the model's own.
        calls = {name: int(isinstance(layers.get(name), keras.Model)) for name in names}
        by_name = dict(zip(names, entries, strict=True))
        while any(waiting.values()):
            progress = False
            for name, nodes in waiting.items():
                while nodes:
                    try:
                        args, kwargs = _arguments(nodes[0], values, set(names))
                    except KeyError:
                        break
                    node, progress = nodes.pop(0), True
                    layer = layers.get(name)
                    if layer is None:
                        value = _operation(by_name[name], args, kwargs, renamed[name], calls[name])
                    else:
                        value = layer(_single(args, node), **_kept(layer, kwargs))
                    flat = [value] if isinstance(value, Shape) else value
                    if not (isinstance(flat, list) and any(isinstance(part, Shape) for part in flat)):
                        flat = keras.tree.flatten(value)
                    values[name, calls[name]] = flat
                    calls[name] += 1
            if not progress:
                raise ModelError(f"cannot rebuild {config.get('name')}: its graph of layers is not complete")

        def tensors(structure: Any) -> Any:
            if _is_reference(structure, set(names)):
                return values[structure[0], structure[1]][structure[2]]
            if isinstance(structure, dict):
                return {key: tensors(value) for key, value in structure.items()}
            return [tensors(value) for value in structure]

        inputs, outputs = tensors(_plain(config["input_layers"])), tensors(_plain(config["output_layers"]))
        return keras.Model(_only(inputs), _only(outputs), name=_name(config))


class Shape(tuple[int | None, ...]):
    """The value of tf.shape: None for an axis that is open."""


def entry_name(entry: Mapping[str, Any]) -> str:
    """Return the name of a serialised layer in Keras 2. Raises ModelError where it has none."""
    name = entry.get("name") or (entry["config"].get("name") if isinstance(entry["config"], dict) else None)
    if name is None:  # before Keras 2.2.3
        raise ModelError(f"a {entry['class_name']} inside it has no name, by which its weights are stored")
    return str(name)


def entries_of(serialized: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """Return the serialised layers of a model; None for a single layer."""
    config = serialized["config"]
    if isinstance(config, list):  # Sequential, before Keras 2.2.3
        return config
    return config.get("layers") if serialized["class_name"] in MODELS else None


def new_names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of a model's layers in Keras 3, which allows no `/`."""
    names = [entry_name(entry) for entry in entries]
    used = {name for name in names if "/" not in name}
    result = []
    for name in names:
        new, count = name.replace("/", "_"), 1
        while "/" in name and new in used:
            new, count = f"{name.replace('/', '_')}_{count}", count + 1
        used.add(new)
        result.append(new)
    return result


def _name(config: Mapping[str, Any]) -> str | None:
    return str(config["name"]).replace("/", "_") if config.get("name") else None


def _only(structure: Any) -> Any:
    return structure[0] if isinstance(structure, list) and len(structure) == 1 else structure


def _plain(value: Any) -> Any:
    """Return a value of a configuration without Keras' marks of tuples, shapes and numbers; sizes stay lists."""
    if isinstance(value, dict):
        kind = value.get("class_name")
        if kind in ("__tuple__", "TensorShape"):
            return [_plain(v) for v in value["items"]]
        if kind == "__numpy__" or set(value) == {"type", "value"}:
            inner = value.get("config", value)
            return inner["value"]
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _number(value: Any) -> Any:
    """Return a number that was stored as an array."""
    return float(np.asarray(value)) if isinstance(value, list) and len(value) == 1 else value


def _is_reference(value: Any, names: set[str]) -> bool:
    return (
        isinstance(value, list)
        and len(value) in (3, 4)
        and isinstance(value[0], str)
        and (value[0] in names or value[0] == CONSTANT)
        and isinstance(value[1], int)
    )


def _arguments(node: Any, values: Mapping[tuple[str, int], list[Any]], names: set[str]) -> tuple[Any, dict[str, Any]]:
    """Return the first argument and the keyword arguments of a call. Raises KeyError where a tensor is not known yet."""
    kwargs: dict[str, Any] = {}

    def resolved(value: Any) -> Any:
        if _is_reference(value, names):
            if len(value) == 4:
                kwargs.update(value[3])
            return _plain(value[2]) if value[0] == CONSTANT else values[value[0], value[1]][value[2]]
        if isinstance(value, list):
            return [resolved(v) for v in value]
        return {key: resolved(v) for key, v in value.items()} if isinstance(value, dict) else value

    first = resolved(_plain(node))
    return first, {key: resolved(value) for key, value in dict(kwargs).items()}


def _single(args: Any, node: Any) -> Any:
    """Return the only tensor of a list of one: Keras 2 stores both in the same way."""
    return args[0] if isinstance(args, list) and len(args) == 1 else args


def _kept(layer: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments without those that are None, the default of all of them."""
    return {key: value for key, value in kwargs.items() if value is not None}


def _operation(entry: Mapping[str, Any], first: Any, kwargs: dict[str, Any], name: str, call: int) -> Any:
    """Return the value of a call of a TensorFlow function."""
    config = entry["config"]
    name = f"{name}_{call}" if call else name
    if entry["class_name"] == "TensorFlowOpLayer":
        function, first, kwargs = _node_definition(config, first)
    else:
        function = public_name(config["function"])
    if entry["class_name"] in OPERATIONS[2:] or (function not in FUNCTIONS and function != "shape"):
        raise ModelError(f"cannot rebuild layer {name}: xcam does not know tf.{function}")
    if function == "shape":
        return Shape(first.shape)
    if _has_shape(first) or isinstance(kwargs.get("y"), Shape):
        return _of_shape(function, first, kwargs, name)
    tensors: list[Any] = []

    def template(value: Any) -> Any:
        if isinstance(value, Shape):
            return value[0] if len(value) == 1 else list(value)
        if isinstance(value, keras.KerasTensor):
            tensors.append(value)
            return {"tensor": len(tensors) - 1}
        if isinstance(value, dict):
            return {key: template(v) for key, v in value.items()}
        return [template(v) for v in value] if isinstance(value, list | tuple) else value

    arguments = [[template(first)], template(kwargs)]
    if not tensors:
        raise ModelError(f"cannot rebuild layer {name}: Keras 2 did not write the inputs of tf.{function}")
    try:
        return Operation(function, arguments, name=name, dtype=config.get("dtype") or None)(tensors)
    except Exception as error:
        raise ModelError(f"cannot rebuild layer {name} (tf.{function}): {cause(error)}") from error


def _has_shape(value: Any) -> bool:
    return any(isinstance(part, Shape) for part in (value if isinstance(value, list) else [value]))


def _of_shape(function: str, first: Any, kwargs: Mapping[str, Any], name: str) -> Any:
    """Return the value of a function of a shape: a shape, a part of it, or a number. Raises ModelError."""
    if function == "__operators__.getitem":
        spec = kwargs["slice_spec"]
        value = tuple(first)[index(spec[0] if isinstance(spec, list) else spec)]
        return Shape(value if isinstance(value, tuple) else (value,))
    if function == "unstack":
        return [Shape((n,)) for n in first]
    if function in ("concat", "stack"):
        return Shape(n for part in first for n in (part if isinstance(part, tuple | list) else [part]))
    if function not in ON_SHAPES:
        raise ModelError(f"cannot rebuild layer {name}: tf.{function} of a shape")
    pair = [value[0] if isinstance(value, Shape) else value for value in (first, kwargs["y"])]
    return Shape((None if None in pair else ON_SHAPES[function](*pair),))


ON_SHAPES = {"math.multiply": operator.mul, "math.add": operator.add, "math.subtract": operator.sub}
"""Functions of two numbers, of which one is a part of a shape."""
ON_SHAPES |= {"__operators__.add": operator.add, "math.floordiv": operator.floordiv}

NODES = {
    "RealDiv": "math.truediv",
    "Sub": "math.subtract",
    "Mul": "math.multiply",
    "AddV2": "math.add",
    "Add": "math.add",
}
"""TensorFlow's operators in a TensorFlowOpLayer, which TensorFlow 2.0 to 2.3 wrote, by the function."""
NODES |= {"Relu": "nn.relu", "Relu6": "nn.relu6", "Sigmoid": "math.sigmoid", "Tanh": "math.tanh", "Pow": "math.pow"}
NODES |= {"Neg": "math.negative", "Square": "math.square", "Exp": "math.exp", "Sqrt": "math.sqrt", "Abs": "math.abs"}
NODES |= {"Maximum": "math.maximum", "Minimum": "math.minimum", "Softmax": "nn.softmax", "Identity": "identity"}


def _node_definition(config: Mapping[str, Any], first: Any) -> tuple[str, Any, dict[str, Any]]:
    """Return function and arguments of a TensorFlowOpLayer: its inputs, and constants between them."""
    node = config["node_def"]
    kind = json.loads(node)["op"] if isinstance(node, str) else node["op"]
    if kind not in NODES:
        raise ModelError(
            f"cannot rebuild layer {config['name']}: TensorFlow's operator {operator} is unknown to xcam"
        )
    inputs = list(first) if isinstance(first, list) else [first]
    for position, constant in sorted(config.get("constants", {}).items(), key=lambda item: int(item[0])):
        inputs.insert(int(position), constant)
    if len(inputs) > 2:
        raise ModelError(f"cannot rebuild layer {config['name']}: it has {len(inputs)} inputs")
    return NODES[kind], inputs[0], {"y": inputs[1]} if len(inputs) == 2 else {}


def _lambda(config: Mapping[str, Any]) -> keras.layers.Layer:
    """Return the layer of a Lambda that calls `preprocess_input` of keras.applications. Raises ModelError for any other."""
    function, module = config["function"], str(config.get("module") or "")
    if isinstance(function, dict) and function["class_name"] == "function":  # in a .keras file
        function, module = function["config"], str(function.get("module") or "")
    code = base64.b64decode(function[0]) if isinstance(function, list) else str(function).encode()
    part = module.rpartition(".")[2]
    if b"preprocess_input" in code and ".applications." in module and hasattr(keras.applications, part):
        return Preprocess(part, name=config["name"])
    if isinstance(function, str):
        reason = f"it is a Lambda that calls {module}.{function}, which the file does not contain"
    else:
        reason = "it is a Lambda with Python code, and code from a file is not run"
    raise ModelError(f"cannot rebuild layer {config['name']}: {reason}")
