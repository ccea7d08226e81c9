"""Weights of a Keras 2 model, assigned to the model of Keras 3 that was built from its configuration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from xcam.contract.types import Array
from xcam.errors import ModelError
from xcam_keras.keras2.build import entries_of, entry_name, new_names

Weights = Mapping[str, Sequence[tuple[str, Array]]]
"""Names and values of the weights of each layer of a model, by the layer's name, in Keras 2's order."""

UNUSED = re.compile(r"(StateVar|seed_generator_state|count|renorm_\w+)(_\d+)?$")
"""Weights without an effect in evaluation mode, which not every version of Keras has."""
KNOWN = frozenset(
    ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "mean", "variance", "embeddings", "alpha")
)
"""Names of weights that mean the same in both versions."""


def assign(model: keras.Model, serialized: Mapping[str, Any], weights: Weights) -> None:
    """Set every weight of a model.

    Args:
        model: the result of `xcam_keras.keras2.build.build`.
        serialized: the configuration that it was built from.
        weights: the values. Layers of the same number, names or shapes as in the model.

    Raises:
        ModelError: the values do not fit.
    """
    done: set[int] = set()
    for layer, entry in _parts(model, serialized):
        variables = [v for v in _in_keras2_order(layer, entry) if not UNUSED.search(v.path)]
        values = [
            (name, value) for name, value in weights.get(entry_name(entry), ()) if not UNUSED.search(_stem(name))
        ]
        if len(values) != len(variables):
            raise ModelError(
                f"layer {layer.name} has {len(variables)} weights, and the file has {len(values)} for it"
            )
        for variable, (name, value) in zip(variables, _matched(variables, values), strict=True):
            _set(layer, variable, name, value, done)
    _finish(model, done)


def assign_parts(model: keras.Model, serialized: Mapping[str, Any], group: Any) -> None:
    """Set every weight of a model from the tree of groups in a .keras file.

    Args:
        model: the result of `xcam_keras.keras2.build.build`.
        serialized: the configuration that it was built from.
        group: the h5py group of the model.

    Raises:
        ModelError: the values do not fit.
    """
    done: set[int] = set()
    _assign_layers(model, serialized, group, done)
    _finish(model, done)


def _finish(model: keras.Model, done: set[int]) -> None:
    """Check that every weight is set. Raises ModelError."""
    for variable in model.weights:
        if id(variable) not in done and not UNUSED.search(variable.path):
            raise ModelError(f"the file has no values for {variable.path}")
    for layer in model._flatten_layers():
        if hasattr(layer, "finalize_state") and layer.built:
            layer.finalize_state()


def _assign_layers(model: keras.Model, serialized: Mapping[str, Any], group: Any, done: set[int]) -> None:
    """Set the weights of a model's layers: Keras 2 numbers the groups of layers of the same class."""
    group = next((group[key] for key in ("layers", "_layer_checkpoint_dependencies") if key in group), {})
    parts = {id(entry): layer for layer, entry in _parts(model, serialized)}
    count: Counter[str] = Counter()
    for entry in entries_of(serialized) or []:
        kind = _snake_case(entry["class_name"].rpartition(">")[2])
        key = f"{kind}_{count[kind]}" if count[kind] else kind
        count[kind] += 1
        layer = parts.get(id(entry))
        if layer is not None and entries_of(entry) is not None:
            _assign_layers(layer, entry, group.get(key, {}), done)
        elif layer is not None:
            _assign_attributes(layer, group.get(key, {}), done)


def _assign_attributes(layer: Any, group: Any, done: set[int]) -> None:
    """Set a layer's own weights, and those of the layers in its attributes."""
    variables = [
        v for v in [*layer._trainable_variables, *layer._non_trainable_variables] if not UNUSED.search(v.path)
    ]
    stored = group.get("vars", {})
    if len(stored) < len(variables):
        raise ModelError(f"layer {layer.name} has {len(variables)} weights, and the file has {len(stored)} for it")
    for index, variable in enumerate(variables):
        _set(layer, variable, str(index), np.asarray(stored[str(index)]), done)
    for key, part in _attributes(layer):
        if part.variables:
            _assign_attributes(part, group.get(key, {}), done)


def _attributes(layer: Any) -> Iterator[tuple[str, Any]]:
    """Yield the layers in a layer's attributes, each with the key of its group."""
    parts = list(layer._layers)
    values = [(key, value) for key, value in vars(layer).items() if key != "_layers"]
    lists = [(key, value) for key, value in values if isinstance(value, list)]
    if isinstance(layer, keras.Model):  # inside a wrapper such as TimeDistributed
        values, lists = [], [("layers", parts)]
    for part in parts:
        key = next((key for key, value in values if value is part), None)
        for name, members in lists if key is None else ():
            alike = [member for member in members if type(member) is type(part)]
            index = next((i for i, member in enumerate(alike) if member is part), None)
            if index is not None:
                key = f"{name}/{_snake_case(type(part).__name__)}" + (f"_{index}" if index else "")
        if key is not None:
            yield key, part


def _snake_case(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _set(layer: Any, variable: Any, name: str, value: Array, done: set[int]) -> None:
    if tuple(variable.shape) != value.shape:
        raise ModelError(
            f"weight {name} of layer {layer.name} has the shape {value.shape}, not {tuple(variable.shape)}"
        )
    variable.assign(value.astype(keras.backend.standardize_dtype(variable.dtype)))
    done.add(id(variable))


def _parts(model: keras.Model, serialized: Mapping[str, Any]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """Yield the layers of a model that may have weights, with their configurations."""
    layers = {layer.name: layer for layer in model.layers}
    entries = entries_of(serialized) or []
    for entry, name in zip(entries, new_names(entries), strict=True):
        if name in layers:
            yield layers[name], entry


def _in_keras2_order(layer: Any, entry: Mapping[str, Any]) -> list[Any]:
    """Return the weights in the order of an .h5 file: all that are trained, then all that are not."""

    def single(layer: Any, entry: Mapping[str, Any]) -> Iterator[Any]:
        if entries_of(entry) is None:
            yield layer
        else:
            for part, inner in _parts(layer, entry):
                yield from single(part, inner)

    parts = list({id(part): part for part in single(layer, entry)}.values())
    ordered = [v for part in parts for v in part.trainable_weights]
    return ordered + [v for part in parts for v in part.non_trainable_weights]


def _matched(variables: Sequence[Any], values: Sequence[tuple[str, Array]]) -> Sequence[tuple[str, Array]]:
    """Return the values in the order of the variables: by their names where all of them are unique, else by position.

    Raises:
        ModelError: names contradict the position.
    """
    by_name: dict[str, list[int]] = {}
    for index, (name, _) in enumerate(values):
        for tail in _tails(_stem(name)):
            by_name.setdefault(tail, []).append(index)
    order = []
    for variable in variables:
        hits = (by_name[tail] for tail in _tails(variable.path) if tail in by_name)
        order.append(next((hit[0] for hit in hits if len(hit) == 1), None))
    if None not in order and len(set(order)) == len(order):
        return [values[index] for index in order if index is not None]
    for variable, (name, _) in zip(variables, values, strict=True):
        stated, wanted = (_last(n) for n in (_stem(name), variable.path))
        if stated != wanted and {stated, wanted} <= KNOWN:
            raise ModelError(f"weight {name} is stored where {variable.path} is expected")
    return values


def _stem(name: str) -> str:
    return name.partition(":")[0]


def _last(path: str) -> str:
    name = re.sub(r"_\d+$", "", path.rpartition("/")[2])
    return "kernel" if name == "depthwise_kernel" else name


def _tails(path: str) -> list[str]:
    """Return the ends of a path of at least two names, the longest first, with `_` for `/`."""
    parts = path.split("/")
    parts[-1] = _last(path)
    return ["_".join(parts[i:]) for i in range(max(1, len(parts) - 1))]
