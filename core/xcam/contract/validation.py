"""Validation of the values that a backend returns, before the core works with them.

The core calls a model through these functions. Types, dtypes, shapes and counts are checked; values are not, and nothing
is copied. A violation is a ContractError that names the plugin, so that users report it to its authors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from xcam.contract import differences
from xcam.contract.abilities import SupportsHvp, supports
from xcam.contract.model_validation import activation, explain_missing_layer, is_model, layers, model
from xcam.contract.types import Activation, Array, Capability, Cotangents, Layer, Model, Outputs, Trace
from xcam.contract.violations import is_array, kind, violation
from xcam.errors import InputError, ModelError

__all__ = [
    "activation",
    "activations",
    "check_rows",
    "explain_missing_layer",
    "hvp",
    "is_model",
    "layers",
    "model",
    "predict",
    "resume",
    "tail",
    "trace",
]


def predict(model: Model, x: Array) -> Outputs:
    """See Model.predict. Raises ContractError, ModelError."""
    outputs = model.predict(x)
    _check_outputs(model, outputs, "predict()")
    check_rows(model, outputs, len(x))
    return outputs


def activations(model: Model, x: Array, names: Sequence[str]) -> Mapping[str, Array]:
    """See Model.activations. Raises ContractError."""
    result = model.activations(x, names)
    if not isinstance(result, Mapping):
        raise violation(model.backend, f"activations() returned {kind(result)}", "a mapping from names to arrays")
    missing = [name for name in names if name not in result]
    if missing:
        raise violation(
            model.backend, f"activations() left out {', '.join(map(repr, missing))}", "every requested layer"
        )
    listed = {layer.name: layer for layer in layers(model)}
    for name in names:
        subject, value = f"activations() of {name!r}", result[name]
        _check_float32(model, value, subject)
        layer = listed.get(name)
        if layer is None or layer.folds_batch:
            continue
        if len(layer.shape) > 1:  # rows of vectors may be positions that the model moved to the batch axis
            _check_float32(model, value, subject, None, len(x))
        _check_axes(model, value, layer, x, subject)
    return result


@overload
def trace(model: Model, x: Array, layer: Layer, cotangents: Cotangents | None = None) -> Trace: ...
@overload
def trace(model: Model, x: Array, layer: Sequence[Layer], cotangents: Cotangents | None = None) -> list[Trace]: ...
def trace(
    model: Model, x: Array, layer: Layer | Sequence[Layer], cotangents: Cotangents | None = None
) -> Trace | list[Trace]:
    """See Model.trace; layers as `layers` lists them. Raises ContractError, InputError.

    Without the capability "gradients", they are computed by differences: see `differences`.
    """
    if cotangents is not None and "gradients" not in model.capabilities:
        opened = trace(model, x, [layer] if isinstance(layer, Layer) else layer)
        traces = _by_differences(model, opened, layer, cotangents)
        return traces[0] if isinstance(layer, Layer) else traces
    checked = _Cotangents(model, cotangents, activation(model))
    names: Any = _names(layer)
    result = _declared(model, "gradients", checked, lambda: model.trace(x, names, checked.cotangents))
    if isinstance(layer, Layer):
        return _check_layer(model, _check_trace(model, result, len(x), checked, layer, "trace()"), layer, x)
    traces = _check_list(model, result, len(layer), "trace()")
    return [
        _check_layer(model, _check_trace(model, one, len(x), checked, each, "trace()"), each, x)
        for one, each in zip(traces, layer, strict=True)
    ]


@overload
def resume(
    model: Model,
    trace: Trace,
    activations: Array,
    rows: Sequence[int] | None = None,
    cotangents: Cotangents | None = None,
    at: Layer | None = None,
) -> Trace: ...
@overload
def resume(
    model: Model,
    trace: Trace,
    activations: Array,
    rows: Sequence[int] | None = None,
    cotangents: Cotangents | None = None,
    *,
    at: Sequence[Layer],
) -> list[Trace]: ...
def resume(
    model: Model,
    trace: Trace,
    activations: Array,
    rows: Sequence[int] | None = None,
    cotangents: Cotangents | None = None,
    at: Layer | Sequence[Layer] | None = None,
) -> Trace | list[Trace]:
    """See Model.resume; layers as `layers` lists them. Raises ContractError.

    Without the capability "gradients", they are computed by differences where `at` states the layers: see `differences`.
    """
    if cotangents is not None and at is not None and "gradients" not in model.capabilities:
        opened = resume(model, trace, activations, rows, at=[at] if isinstance(at, Layer) else at)
        traces = _by_differences(model, opened, at, cotangents)
        return traces[0] if isinstance(at, Layer) else traces
    checked, count = _Cotangents(model, cotangents), len(activations)
    names: Any = None if at is None else _names(at)
    call = {} if at is None else {"at": names}
    result = _declared(
        model, "resume", checked, lambda: model.resume(trace, activations, rows, checked.cotangents, **call)
    )
    if at is None:
        return _check_trace(model, result, count, checked, None, "resume()")
    if isinstance(at, Layer):
        return _check_layer(model, _check_trace(model, result, count, checked, None, "resume()"), at)
    traces = _check_list(model, result, len(at), "resume()")
    return [
        _check_layer(model, _check_trace(model, one, count, checked, None, "resume()"), each)
        for one, each in zip(traces, at, strict=True)
    ]


def _by_differences(
    model: Model, traces: Sequence[Trace], layer: Layer | Sequence[Layer], cotangents: Cotangents
) -> list[Trace]:
    """Return traces at layers with gradients by differences."""
    checked = _Cotangents(model, cotangents, activation(model))
    fixed = checked(traces[0].outputs)
    opened, known = [layer] if isinstance(layer, Layer) else layer, layers(model)
    return [
        differences.gradients(each, one, fixed, tail(model), known) for each, one in zip(opened, traces, strict=True)
    ]


def tail(model: Model) -> differences.Resume:
    """Return `resume` of a model, as `differences` calls it."""

    def run(trace: Trace, values: Array, rows: Sequence[int], at: Sequence[Layer] | None) -> list[Trace]:
        return [resume(model, trace, values, rows)] if at is None else resume(model, trace, values, rows, at=at)

    return run


def hvp(model: Model, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
    """See SupportsHvp.hvp. Raises ContractError."""
    if not supports(model, SupportsHvp):
        raise violation(model.backend, "has no hvp()", "one where the core asks for it")
    able, checked = model, _Cotangents(model, cotangents)
    products: Any = _declared(able, "hvp", checked, lambda: able.hvp(x, layer, checked, vectors))
    if not isinstance(products, list | tuple) or len(products) != len(vectors):
        raise violation(
            able.backend,
            f"hvp() returned {kind(products)} for {len(vectors)} vectors",
            "a list with one product for each",
        )
    for m, (product, vector) in enumerate(zip(products, vectors, strict=True)):
        _check_float32(able, product, f"hvp()[{m}]", vector.shape)
    return list(products)


def check_rows(model: Model, outputs: Outputs, count: int) -> None:
    """Check that every output has a row for each image. Raises ModelError."""
    array = _without_rows(outputs, count)
    if array is not None:
        raise ModelError(
            f"cannot explain {model.name}: an output has the shape {array.shape} for {count} images, and each image "
            "needs its own row; wrap it in a model that returns [batch, classes]"
        )


class _Cotangents:
    """The core's cotangent function as passed to a backend: outputs are checked, and its own errors pass unchanged."""

    def __init__(self, model: Model, cotangents: Cotangents | None, activation: Activation = None) -> None:
        self._model, self._cotangents, self._activation = model, cotangents, activation
        self.cotangents = None if cotangents is None else self
        self.count: int | None = 0 if cotangents is None else None
        self.shapes: Any = None
        self.raised: list[BaseException] = []

    def __call__(self, outputs: Outputs) -> Sequence[Outputs]:
        assert self._cotangents
        try:
            self.check(outputs, "cotangents")
            self.shapes = _shapes(outputs)
            result = self._cotangents(outputs)
        except BaseException as error:
            self.raised.append(error)
            raise
        self.count = len(result)
        return result

    def check(self, outputs: Any, call: str) -> None:
        """Check that outputs are arrays, those that `cotangents` was given, named as the output activations are."""
        model, activation = self._model, self._activation
        _check_outputs(model, outputs, call)
        if self.shapes not in (None, _shapes(outputs)):
            fact = f"{call}: returned outputs of shape {_shapes(outputs)}, where `cotangents` was given {self.shapes}"
            raise violation(model.backend, fact, "the same outputs")
        if isinstance(activation, Mapping) and (
            list(activation) != list(outputs) if isinstance(outputs, Mapping) else len(activation) > 1
        ):
            fact = f"its model's output_activation is {activation!r} for outputs of shape {_shapes(outputs)}"
            raise violation(model.backend, fact, "the outputs' names, in their order")


def _declared(model: Model, capability: Capability, checked: _Cotangents, call: Callable[[], Any]) -> Any:
    """Return the result of `call`; a NotImplementedError contradicts a declared capability."""
    try:
        return call()
    except NotImplementedError as error:
        if capability not in model.capabilities or any(error is raised for raised in checked.raised):
            raise
        fact = f"it declares {capability!r}, and does not implement it: NotImplementedError: {error}"
        raise violation(model.backend, fact, "every capability that the model declares") from error


def _check_trace(model: Model, trace: Any, count: int, checked: _Cotangents, layer: Layer | None, call: str) -> Trace:
    """Return a Trace of `count` rows whose parts have the right types and shapes."""
    if not isinstance(trace, Trace):
        raise violation(model.backend, f"{call} returned {kind(trace)}", "an xcam.Trace")
    checked.check(trace.outputs, call)
    if layer is not None:
        check_rows(model, trace.outputs, count)
    elif _without_rows(trace.outputs, count) is not None:  # resumed from a trace whose outputs had their rows
        fact = f"{call}: returned outputs of shape {_shapes(trace.outputs)} for {count} variants"
        raise violation(model.backend, fact, "a row for each")
    a = trace.activations
    folded = isinstance(a, np.ndarray) and a.ndim > 2 and len(a) > count and len(a) % count == 0
    if folded and layer is not None and a.ndim == len(layer.shape) + 1:
        raise InputError(
            f"cannot explain layer {layer.name!r}: it has {len(a)} values for {count} images, as windows or frames are "
            "folded into its batch, and so no map of a whole image; choose another layer"
        )
    _check_float32(model, a, "activations", None, count)
    gradients = trace.gradients
    if not isinstance(gradients, list | tuple):
        raise violation(model.backend, f"{call} returned gradients as {kind(gradients)}", "a list of arrays")
    if checked.count is None:
        raise violation(model.backend, f"{call} never called `cotangents`", "one call, in every forward pass")
    if len(gradients) != checked.count:
        raise violation(
            model.backend, f"returned {len(gradients)} gradients for {checked.count} cotangents", "one for each"
        )
    for m, gradient in enumerate(gradients):
        _check_float32(model, gradient, f"gradients[{m}]", a.shape, count)
    return trace


def _names(layers: Layer | Sequence[Layer]) -> str | list[str]:
    return layers.name if isinstance(layers, Layer) else [layer.name for layer in layers]


def _check_list(model: Model, traces: Any, count: int, call: str) -> list[Any]:
    """Return the traces of `count` layers, if they are a list of that length."""
    if not isinstance(traces, list | tuple) or len(traces) != count:
        length = f" of {len(traces)}" if isinstance(traces, list | tuple) else ""
        raise violation(
            model.backend, f"{call} returned {kind(traces)}{length} for a list of {count} layers", "a Trace for each"
        )
    return list(traces)


def _check_layer(model: Model, trace: Trace, layer: Layer, x: Array | None = None) -> Trace:
    """Return a Trace whose activations have the axes that its layer lists."""
    _check_axes(model, trace.activations, layer, x, f"activations of layer {layer.name!r}")
    return trace


def _check_float32(
    model: Model, array: Any, subject: str, shape: tuple[int, ...] | None = None, count: int | None = None
) -> None:
    right = is_array(array) and array.dtype == np.float32 and (shape is None or array.shape == shape)
    if right and (count is None or (array.ndim > 1 and len(array) == count)):
        return
    images = "" if count is None else f" for {count} images"
    required = "float32 NumPy arrays [N, C, *spatial]" + (f", here {shape}" if shape else "")
    raise violation(model.backend, f"returned {subject} as {kind(array)}{images}", required)


def _check_axes(model: Model, value: Array, layer: Layer, x: Array | None, subject: str) -> None:
    """Check that a value is channels first, with the number of channels and axes that the layer lists.

    Sizes are not compared: `x` may be of another size than the one that the list is for; None: of any size.
    """
    listed, shape, spec = tuple(layer.shape), value.shape[1:], model.input
    same_size = x is not None and spec.size == (x.shape[1:-1] if spec.layout == "channels_last" else x.shape[2:])
    exchanged = same_size and None not in listed and shape != listed and sorted(shape) == sorted(listed)  # type: ignore[type-var]
    if not listed or (len(shape) == len(listed) and listed[0] in (None, shape[0]) and not exchanged):
        return
    hint = " (no batch axis?)" if value.shape == listed else ""
    hint = " (channels last?)" if shape and shape[-1] == listed[0] != shape[0] else hint
    raise violation(
        model.backend,
        f"returned {subject} as {kind(value)}{hint}, and lists it with the shape {layer.shape}",
        "[N, C, *spatial] with the axes of Layer.shape",
    )


def _check_outputs(model: Model, outputs: Any, call: str) -> None:
    arrays = outputs if isinstance(outputs, Mapping) else {"": outputs}
    for name, array in arrays.items():
        if not is_array(array) or array.dtype.kind != "f":
            subject = f"output {name!r}" if name else "outputs"
            verb = "gave" if call == "cotangents" else "returned"
            raise violation(
                model.backend,
                f"{call}: {verb} {subject} as {kind(array)}",
                "a NumPy array of floating point, or a mapping of such",
            )
    if not arrays:
        raise violation(model.backend, f"{call}: the mapping of outputs is empty", "one output or more")


def _without_rows(outputs: Outputs, count: int) -> Array | None:
    """Return the first output that does not have `count` rows, or None."""
    arrays = outputs.values() if isinstance(outputs, Mapping) else [outputs]
    return next((array for array in arrays if array.ndim == 0 or len(array) != count), None)


def _shapes(outputs: Outputs) -> Any:
    return {name: a.shape for name, a in outputs.items()} if isinstance(outputs, Mapping) else outputs.shape
