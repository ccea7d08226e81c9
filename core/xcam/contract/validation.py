"""The contract's edge: what a backend hands over is looked at before the core works with it.

The core calls a model through these functions. Types, dtypes, shapes and counts are looked at; values are not, and
nothing is copied. A broken promise is a ContractError that names the plugin, so that the report reaches its authors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeGuard, get_args

import numpy as np

from xcam.contract import Activation, Array, Capability, Cotangents, InputSpec, Layer, Layout, Model, Outputs, Trace
from xcam.contract.plugins import described
from xcam.contract.preprocessing import Preprocessing
from xcam.errors import ContractError, InputError, ModelError, XcamError, first_line

PARTS = [name for name in (*Model.__annotations__, *vars(Model)) if not name.startswith("_")]
METHODS = {
    "predict": "x",
    "activations": "x, layers",
    "trace": "x, layer, cotangents=None",
    "resume": "trace, activations, rows=None, cotangents=None",
    "hvp": "x, layer, cotangents, vectors",
}
"""What the core calls, and what it hands over, by place."""


def model(opened: Any, backend: str) -> Model:
    """What `load` of a backend returned, if it is a model. Raises ContractError."""
    if not is_model(opened):
        missing = [part for part in PARTS if not _has(opened, part)]
        raise _broken(backend, f"load() returned {_kind(opened)}, which lacks {', '.join(missing)}", "a Model")
    name, own = (_asked(opened, part, backend) for part in ("name", "backend"))
    if own != backend:
        raise _broken(backend, f"its model's backend is {own!r}", "the name under which the plugin is known")
    if not isinstance(name, str):
        raise _broken(backend, f"its model's name is {_kind(name)}", "a str")
    declared, known = _asked(opened, "capabilities", backend), get_args(Capability)
    if not isinstance(declared, AbstractSet) or not declared <= set(known):
        raise _broken(backend, f"its model's capabilities are {declared!r}", f"a set of {', '.join(known)}")
    methods = [method for method in METHODS if method != "hvp" or method in declared]
    absent = [method for method in methods if not callable(getattr(opened, method, None))]
    if absent:
        raise _broken(
            backend, f"its model has no method {', '.join(absent)}", f"one: {sorted(declared)} are declared"
        )
    for method in methods:
        _check_signature(getattr(opened, method), method, backend)
    spec = _asked(opened, "input", backend)
    if not isinstance(spec, InputSpec):
        raise _broken(backend, f"its model's input is {_kind(spec)}", "an InputSpec")
    if not _right(spec):
        raise _broken(
            backend,
            f"its model's input is {spec}",
            f"size (H, W) or None, channels, a layout: {get_args(Layout)}, a NumPy dtype, a Preprocessing or None",
        )
    for part, optional in (("labels", True), ("notes", False)):
        words = _asked(opened, part, backend)
        if not (optional and words is None) and not _words(words):
            raise _broken(backend, f"its model's {part} are {_kind(words)}", "a sequence of str")
    found: Model = opened
    return found


def is_model(value: Any) -> TypeGuard[Model]:
    """Whether it has a Model's parts. (Python 3.11's isinstance would compute each property to see that it is there.)"""
    return all(_has(value, part) for part in PARTS)


def layers(model: Model) -> Sequence[Layer]:
    """The model's layers. Raises ContractError where they are none."""
    found = _asked(model, "layers", model.backend)
    if not isinstance(found, Sequence):
        raise _broken(model.backend, f"layers is {_kind(found)}", "a sequence of Layer")
    for k, layer in enumerate(found):
        if not isinstance(layer, Layer):
            raise _broken(model.backend, f"layers[{k}] is {_kind(layer)}", "a sequence of Layer")
        if not (
            _words([layer.name, layer.kind])
            and _words(layer.aliases)
            and isinstance(layer.shape, list | tuple)
            and all(isinstance(n, int | np.integer | None) for n in layer.shape)
            and layer.layout in get_args(Layout)
        ):
            wanted = f"name and kind in words, a shape of whole numbers or None, a layout: {get_args(Layout)}"
            raise _broken(model.backend, f"layers[{k}] is {layer}", wanted)
    return found


def explain_missing_layer(model: Model, name: str) -> str | None:
    """Why there is no layer of this name, where the model has a word for it. Raises ContractError."""
    ask = getattr(model, "explain_missing_layer", None)
    found = ask and _guarded(lambda: ask(name), model.backend, "explain_missing_layer()")
    if not isinstance(found, str | None):
        raise _broken(model.backend, f"explain_missing_layer() returned {_kind(found)}", "a line, or None")
    return found


def activation(model: Model) -> Activation:
    """What the model cuts off its outputs. Raises ContractError."""
    found: Activation = _asked(model, "output_activation", model.backend)
    kinds = list(found.values()) if isinstance(found, Mapping) else [found]
    if not kinds or any(kind not in (None, "softmax", "sigmoid") for kind in kinds):
        wanted = "'softmax', 'sigmoid' or None, or a mapping from the outputs' names to these"
        raise _broken(model.backend, f"its model's output_activation is {found!r}", wanted)
    return found


def predict(model: Model, x: Array) -> Outputs:
    """See Model.predict. Raises ContractError, ModelError."""
    found = model.predict(x)
    _outputs(model, found, "predict()")
    check_rows(model, found, len(x))
    return found


def activations(model: Model, x: Array, names: Sequence[str]) -> Mapping[str, Array]:
    """See Model.activations. Raises ContractError."""
    found = model.activations(x, names)
    if not isinstance(found, Mapping):
        raise _broken(model.backend, f"activations() returned {_kind(found)}", "a mapping from names to arrays")
    missing = [name for name in names if name not in found]
    if missing:
        raise _broken(
            model.backend, f"activations() left out {', '.join(map(repr, missing))}", "every layer asked for"
        )
    listed = {layer.name: layer for layer in layers(model)}
    for name in names:
        what, value = f"activations() of {name!r}", found[name]
        _float32(model, value, what)
        layer = listed.get(name)
        if layer is None or layer.folds_batch:
            continue
        if len(layer.shape) > 1:  # rows of vectors may be places, which a model set side by side
            _float32(model, value, what, None, len(x))
        _as_listed(model, value, layer, x, what)
    return found


def trace(model: Model, x: Array, layer: Layer, cotangents: Cotangents | None = None) -> Trace:
    """See Model.trace; `layer` as `layers` lists it. Raises ContractError, InputError."""
    given = _Given(model, cotangents, activation(model))
    found = _declared(model, "gradients", given, lambda: model.trace(x, layer.name, given.cotangents))
    found = _checked(model, found, len(x), given, layer, "trace()")
    _as_listed(model, found.activations, layer, x, f"activations of layer {layer.name!r}")
    return found


def resume(
    model: Model,
    trace: Trace,
    activations: Array,
    rows: Sequence[int] | None = None,
    cotangents: Cotangents | None = None,
) -> Trace:
    """See Model.resume. Raises ContractError."""
    given = _Given(model, cotangents)
    found = _declared(model, "resume", given, lambda: model.resume(trace, activations, rows, given.cotangents))
    return _checked(model, found, len(activations), given, None, "resume()")


def hvp(model: Model, x: Array, layer: str, cotangents: Cotangents, vectors: Sequence[Array]) -> list[Array]:
    """See xcam.contract on `hvp`. Raises ContractError."""
    given = _Given(model, cotangents)
    found: Any = _declared(model, "hvp", given, lambda: model.hvp(x, layer, given.cotangents, vectors))  # type: ignore[attr-defined]
    if not isinstance(found, list | tuple) or len(found) != len(vectors):
        raise _broken(
            model.backend, f"hvp() returned {_kind(found)} for {len(vectors)} vectors", "a list, one for each"
        )
    for k, (product, vector) in enumerate(zip(found, vectors, strict=True)):
        _float32(model, product, f"hvp()[{k}]", vector.shape)
    return list(found)


def check_rows(model: Model, outputs: Outputs, count: int) -> None:
    """Every output has a row for each picture. Raises ModelError."""
    array = _rowless(outputs, count)
    if array is not None:
        raise ModelError(
            f"{model.name} gives an output of shape {array.shape} for {count} pictures, and each needs a row of its "
            "own; wrap it in a model that returns [batch, classes]"
        )


class _Given:
    """The core's cotangents on their way to a backend: what they are asked is looked at, what they raise is theirs."""

    def __init__(self, model: Model, cotangents: Cotangents | None, cut: Activation = None) -> None:
        self._model, self._seeds, self._cut = model, cotangents, cut
        self.cotangents = None if cotangents is None else self
        self.count: int | None = 0 if cotangents is None else None
        self.shapes: Any = None
        self.raised: list[BaseException] = []

    def __call__(self, outputs: Outputs) -> Sequence[Outputs]:
        assert self._seeds
        try:
            self.look(outputs, "cotangents")
            self.shapes = _shapes(outputs)
            found = self._seeds(outputs)
        except BaseException as error:
            self.raised.append(error)
            raise
        self.count = len(found)
        return found

    def look(self, outputs: Any, call: str) -> None:
        """Arrays, the same that `cotangents` was given, with the names that the activations have."""
        model, cut = self._model, self._cut
        _outputs(model, outputs, call)
        if self.shapes not in (None, _shapes(outputs)):
            what = f"{call}: returned outputs of shape {_shapes(outputs)}, where `cotangents` was given {self.shapes}"
            raise _broken(model.backend, what, "the same outputs")
        if isinstance(cut, Mapping) and (
            list(cut) != list(outputs) if isinstance(outputs, Mapping) else len(cut) > 1
        ):
            what = f"its model's output_activation is {cut!r} for outputs of shape {_shapes(outputs)}"
            raise _broken(model.backend, what, "the outputs' names, in their order")


def _declared(model: Model, capability: Capability, given: _Given, call: Callable[[], Any]) -> Any:
    """What the call returns; that it is not written yet contradicts `capabilities`."""
    try:
        return call()
    except NotImplementedError as error:
        if capability not in model.capabilities or any(error is raised for raised in given.raised):
            raise
        what = f"it declares {capability!r}, and has none: NotImplementedError: {error}"
        raise _broken(model.backend, what, "what `capabilities` promises") from error


def _checked(model: Model, trace: Any, count: int, given: _Given, layer: Layer | None, call: str) -> Trace:
    """A Trace of `count` rows, its parts of the right type and shape."""
    if not isinstance(trace, Trace):
        raise _broken(model.backend, f"{call} returned {_kind(trace)}", "an xcam.Trace")
    given.look(trace.outputs, call)
    if layer is not None:
        check_rows(model, trace.outputs, count)
    elif _rowless(trace.outputs, count) is not None:  # behind a trace, whose outputs have their rows
        what = f"{call}: returned outputs of shape {_shapes(trace.outputs)} for {count} variants"
        raise _broken(model.backend, what, "a row for each")
    a = trace.activations
    folded = isinstance(a, np.ndarray) and a.ndim > 2 and len(a) > count and len(a) % count == 0
    if folded and layer is not None and a.ndim == len(layer.shape) + 1:
        raise InputError(
            f"layer {layer.name!r} gives {len(a)} values for {count} pictures: windows or frames are folded into its "
            "batch, and it has no map of a whole picture; choose another layer"
        )
    _float32(model, a, "activations", None, count)
    gradients = trace.gradients
    if not isinstance(gradients, list | tuple):
        raise _broken(model.backend, f"{call} returned gradients as {_kind(gradients)}", "a list of arrays")
    if given.count is None:
        raise _broken(model.backend, f"{call} never called `cotangents`", "one call, in every forward pass")
    if len(gradients) != given.count:
        raise _broken(
            model.backend, f"returned {len(gradients)} gradients for {given.count} cotangents", "one for each"
        )
    for m, gradient in enumerate(gradients):
        _float32(model, gradient, f"gradients[{m}]", a.shape, count)
    return trace


def _float32(
    model: Model, array: Any, what: str, shape: tuple[int, ...] | None = None, count: int | None = None
) -> None:
    right = _plain(array) and array.dtype == np.float32 and (shape is None or array.shape == shape)
    if right and (count is None or (array.ndim > 2 and len(array) == count)):
        return
    pictures = "" if count is None else f" for {count} pictures"
    wanted = "float32 NumPy arrays [N, C, *spatial]" + (f", here {shape}" if shape else "")
    raise _broken(model.backend, f"returned {what} as {_kind(array)}{pictures}", wanted)


def _as_listed(model: Model, value: Array, layer: Layer, x: Array, what: str) -> None:
    """Channels first, with as many channels and axes as the layer is said to have; no axes exchanged.

    Sizes are not held against the list: `x` may be of another size than the one that the list is for.
    """
    listed, found, spec = tuple(layer.shape), value.shape[1:], model.input
    own = spec.size == (x.shape[1:-1] if spec.layout == "channels_last" else x.shape[2:])
    exchanged = own and None not in listed and found != listed and sorted(found) == sorted(listed)  # type: ignore[type-var]
    if not listed or (len(found) == len(listed) and listed[0] in (None, found[0]) and not exchanged):
        return
    hint = " (no batch axis?)" if value.shape == listed else ""
    hint = " (channels last?)" if found and found[-1] == listed[0] != found[0] else hint
    raise _broken(
        model.backend,
        f"returned {what} as {_kind(value)}{hint}, and lists it with the shape {layer.shape}",
        "[N, C, *spatial] with the axes of Layer.shape",
    )


def _outputs(model: Model, outputs: Any, call: str) -> None:
    arrays = outputs if isinstance(outputs, Mapping) else {"": outputs}
    for name, array in arrays.items():
        if not _plain(array) or array.dtype.kind != "f":
            where = f"output {name!r}" if name else "outputs"
            given = "gave" if call == "cotangents" else "returned"
            raise _broken(
                model.backend,
                f"{call}: {given} {where} as {_kind(array)}",
                "a NumPy array of floating point, or a mapping of such",
            )
    if not arrays:
        raise _broken(model.backend, f"{call}: the mapping of outputs is empty", "one output or more")


def _rowless(outputs: Outputs, count: int) -> Array | None:
    """The first output that has not a row for each of `count`."""
    arrays = outputs.values() if isinstance(outputs, Mapping) else [outputs]
    return next((array for array in arrays if array.ndim == 0 or len(array) != count), None)


def _shapes(outputs: Outputs) -> Any:
    return {name: a.shape for name, a in outputs.items()} if isinstance(outputs, Mapping) else outputs.shape


def _check_signature(method: Any, name: str, backend: str) -> None:
    """What the core hands to a method, it must take. Raises ContractError."""
    try:
        inspect.signature(method).bind(*METHODS[name].split(", "))
    except TypeError as error:
        what = f"its model's {name}() does not take what it is given: {error}"
        raise _broken(backend, what, f"{name}({METHODS[name]})") from error
    except ValueError:  # compiled code may not tell
        return


def _asked(model: Any, part: str, backend: str) -> Any:
    """A part of a model, which may be a property with work to do."""
    return _guarded(lambda: getattr(model, part), backend, f"its model's {part}")


def _guarded(ask: Callable[[], Any], backend: str, what: str) -> Any:
    """What is asked for; an error that is nobody's on purpose is the plugin's."""
    try:
        return ask()
    except (XcamError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise _broken(backend, f"{what} failed: {first_line(error)}", "an answer") from error


def _broken(backend: str, what: str, wanted: str) -> ContractError:
    return ContractError(
        f"{described(backend)} {what}; the contract asks for {wanted}: report it to the plugin's authors"
    )


def _kind(value: Any) -> str:
    """`float64 (3, 8)`, `a torch Tensor`, `None`, `'text'`."""
    if _plain(value):
        return f"{value.dtype} {value.shape}"
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    package = type(value).__module__.partition(".")[0]
    return f"a {type(value).__name__}" if package == "builtins" else f"a {package} {type(value).__name__}"


def _plain(value: Any) -> bool:
    """An array whose every value counts."""
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)


def _has(value: Any, part: str) -> bool:
    """Without asking a property for its value, which may take its time."""
    return hasattr(type(value), part) or part in getattr(value, "__dict__", ()) or hasattr(value, part)


def _right(spec: InputSpec) -> bool:
    """Every part of the type that it is said to have, its numbers above 0."""
    sizes = (*spec.size, spec.channels) if isinstance(spec.size, tuple) else (spec.channels,)
    try:
        known = spec.dtype is not None and np.dtype(spec.dtype).kind in "fiuV"  # bfloat16, as others add it, is a V
    except TypeError:
        known = False
    return (
        known
        and isinstance(spec.size, tuple | None)
        and all(isinstance(n, int) and n > 0 for n in sizes)
        and spec.layout in get_args(Layout)
        and isinstance(spec.preprocessing, Preprocessing | None)
    )


def _words(words: Any) -> bool:
    return isinstance(words, Sequence) and not isinstance(words, str) and all(isinstance(w, str) for w in words)
