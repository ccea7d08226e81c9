"""Validation of a model's members: those that a backend hands over once, and that the core reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeGuard, get_args

import numpy as np

from xcam.contract.abilities import ExplainsMissingLayers, has_member, members, supports
from xcam.contract.fit import Fit
from xcam.contract.preprocessing import Preprocessing
from xcam.contract.types import Activation, Capability, InputSpec, Layer, Layout, Model
from xcam.contract.violations import are_strings, get_member, guarded, kind, violation

MEMBERS = members(Model)
METHODS = {
    "predict": "x",
    "activations": "x, layers",
    "trace": "x, layer, cotangents=None",
    "resume": "trace, activations, rows=None, cotangents=None, at=None",
    "hvp": "x, layer, cotangents, vectors",
}
"""The methods that the core calls, with the arguments that it gives by position."""


def model(opened: Any, backend: str) -> Model:
    """Return what `load` of a backend returned, if it is a model.

    Raises:
        ContractError: it is not, or a member is wrong.
    """
    if not is_model(opened):
        missing = [name for name in MEMBERS if not has_member(opened, name)]
        raise violation(backend, f"load() returned {kind(opened)}, which lacks {', '.join(missing)}", "a Model")
    name, declared_backend = (get_member(opened, member, backend) for member in ("name", "backend"))
    if declared_backend != backend:
        raise violation(
            backend, f"its model's backend is {declared_backend!r}", "the name under which the plugin is known"
        )
    if not isinstance(name, str):
        raise violation(backend, f"its model's name is {kind(name)}", "a str")
    declared, known = get_member(opened, "capabilities", backend), get_args(Capability)
    if not isinstance(declared, AbstractSet) or not declared <= set(known):
        raise violation(backend, f"its model's capabilities are {declared!r}", f"a set of {', '.join(known)}")
    methods = [method for method in METHODS if method != "hvp" or method in declared]
    missing = [method for method in methods if not callable(getattr(opened, method, None))]
    if missing:
        raise violation(
            backend, f"its model lacks the method {', '.join(missing)}", f"it: {sorted(declared)} are declared"
        )
    for method in methods:
        _check_signature(getattr(opened, method), method, backend)
    _check_input(get_member(opened, "input", backend), backend)
    for member, optional in (("labels", True), ("notes", False)):
        strings = get_member(opened, member, backend)
        if not (optional and strings is None) and not are_strings(strings):
            raise violation(backend, f"its model's {member} are {kind(strings)}", "a sequence of str")
    result: Model = opened
    return result


def is_model(value: Any) -> TypeGuard[Model]:
    """Return whether an object has a Model's members. No property is evaluated."""
    return all(has_member(value, name) for name in MEMBERS)


def layers(model: Model) -> Sequence[Layer]:
    """Return the model's layers. Raises ContractError where one is not a valid Layer."""
    result = get_member(model, "layers", model.backend)
    if not isinstance(result, Sequence):
        raise violation(model.backend, f"layers is {kind(result)}", "a sequence of Layer")
    for index, layer in enumerate(result):
        if not isinstance(layer, Layer):
            raise violation(model.backend, f"layers[{index}] is {kind(layer)}", "a sequence of Layer")
        if not (
            are_strings([layer.name, layer.kind])
            and are_strings(layer.aliases)
            and isinstance(layer.shape, list | tuple)
            and all(isinstance(n, int | np.integer | None) for n in layer.shape)
            and layer.layout in get_args(Layout)
        ):
            required = f"name and kind as str, a shape of whole numbers or None, a layout: {get_args(Layout)}"
            raise violation(model.backend, f"layers[{index}] is {layer}", required)
    return result


def explain_missing_layer(model: Model, name: str) -> str | None:
    """Return why the model has no layer of this name, where it can explain it. Raises ContractError."""
    if not supports(model, ExplainsMissingLayers):
        return None
    explaining = model
    result = guarded(lambda: explaining.explain_missing_layer(name), explaining.backend, "explain_missing_layer()")
    if not isinstance(result, str | None):
        raise violation(explaining.backend, f"explain_missing_layer() returned {kind(result)}", "a line, or None")
    return result


def activation(model: Model) -> Activation:
    """Return the activations that the model cuts off its outputs. Raises ContractError."""
    result: Activation = get_member(model, "output_activation", model.backend)
    kinds = list(result.values()) if isinstance(result, Mapping) else [result]
    if not kinds or any(each not in (None, "softmax", "sigmoid") for each in kinds):
        required = "'softmax', 'sigmoid' or None, or a mapping from the outputs' names to these"
        raise violation(model.backend, f"its model's output_activation is {result!r}", required)
    return result


def _check_signature(method: Any, name: str, backend: str) -> None:
    """Check that a method takes the arguments that the core gives. Raises ContractError."""
    try:
        inspect.signature(method).bind(*METHODS[name].split(", "))
    except TypeError as error:
        fact = f"its model's {name}() does not take the arguments that it is given: {error}"
        raise violation(backend, fact, f"{name}({METHODS[name]})") from error
    except ValueError:  # compiled code may not have a signature
        return


def _is_side(length: Any) -> bool:
    return length is None or (isinstance(length, int) and length > 0)


def _check_input(spec: Any, backend: str) -> None:
    if not isinstance(spec, InputSpec):
        raise violation(backend, f"its model's input is {kind(spec)}", "an InputSpec")
    try:
        numeric = spec.dtype is not None and np.dtype(spec.dtype).kind in "fiuV"  # an added type, as bfloat16, is a V
    except TypeError:
        numeric = False
    if not (
        numeric
        and (spec.size is None or (isinstance(spec.size, tuple) and all(_is_side(n) for n in spec.size)))
        and isinstance(spec.channels, int)
        and spec.channels >= 0
        and spec.layout in get_args(Layout)
        and isinstance(spec.preprocessing, Preprocessing | None)
        and isinstance(spec.needs, Preprocessing | None)
        and isinstance(spec.fit, Fit | None)
    ):
        raise violation(
            backend,
            f"its model's input is {spec}",
            f"size (H, W) or None, channels, a layout: {get_args(Layout)}, a NumPy dtype, a Preprocessing or None, a Fit or None",
        )
