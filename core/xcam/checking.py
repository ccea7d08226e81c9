"""The contract's edge: what a backend hands over is looked at before the core works with it.

The core calls a model through these functions. Types, dtypes, shapes and counts are looked at; values are not, and
nothing is copied. A broken promise is a ContractError that names the plugin, so that the report reaches its authors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, get_args

import numpy as np

from xcam.contract import Array, Capability, InputSpec, Layer, Layout, Model, Outputs, Seeds, Trace
from xcam.errors import ContractError, InputError, ModelError
from xcam.plugins import described

PARTS = [name for name in (*Model.__annotations__, *vars(Model)) if not name.startswith("_")]
METHODS = ("predict", "activations", "trace", "resume")


def model(opened: Any, backend: str) -> Model:
    """What `load` of a backend returned, if it is a model. Raises ContractError."""
    missing = [part for part in PARTS if not _has(opened, part)]
    if missing:
        raise _broken(backend, f"load() returned {_kind(opened)}, which lacks {', '.join(missing)}", "a Model")
    declared, known = opened.capabilities, get_args(Capability)
    if not isinstance(declared, AbstractSet) or not declared <= set(known):
        raise _broken(backend, f"its model's capabilities are {declared!r}", f"a set of {', '.join(known)}")
    methods = (*METHODS, *({"hvp"} & set(declared)))
    absent = [name for name in methods if not callable(getattr(opened, name, None))]
    if absent:
        raise _broken(
            backend, f"its model has no method {', '.join(absent)}", f"one: {sorted(declared)} are declared"
        )
    spec = opened.input
    if not isinstance(spec, InputSpec):
        raise _broken(backend, f"its model's input is {_kind(spec)}", "an InputSpec")
    if spec.layout not in get_args(Layout) or not (spec.size is None or _whole(spec.size)):
        raise _broken(
            backend, f"its model's input is {spec}", f"size (H, W) or None, and a layout: {get_args(Layout)}"
        )
    for part, optional in (("labels", True), ("notes", False)):
        words = getattr(opened, part)
        if not (optional and words is None) and not _words(words):
            raise _broken(backend, f"its model's {part} are {_kind(words)}", "a sequence of str")
    found: Model = opened
    return found


def layers(model: Model) -> Sequence[Layer]:
    """The model's layers. Raises ContractError where they are none."""
    found = model.layers
    if not isinstance(found, Sequence):
        raise _broken(model.backend, f"layers is {_kind(found)}", "a sequence of Layer")
    for k, layer in enumerate(found):
        if not isinstance(layer, Layer):
            raise _broken(model.backend, f"layers[{k}] is {_kind(layer)}", "a sequence of Layer")
    return found


def predict(model: Model, x: Array) -> Outputs:
    """See Model.predict. Raises ContractError, ModelError."""
    found = model.predict(x)
    _outputs(model, found, "predict()")
    check_rows(model, found, len(x))
    return found


def activations(model: Model, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
    """See Model.activations. Raises ContractError."""
    found = model.activations(x, layers)
    if not isinstance(found, Mapping):
        raise _broken(model.backend, f"activations() returned {_kind(found)}", "a mapping from names to arrays")
    missing = [name for name in layers if name not in found]
    if missing:
        raise _broken(
            model.backend, f"activations() left out {', '.join(map(repr, missing))}", "every layer asked for"
        )
    for name in layers:
        _float32(model, found[name], f"activations() of {name!r}")
    return found


def trace(model: Model, x: Array, layer: Layer, seeds: Seeds | None = None) -> Trace:
    """See Model.trace; `layer` as `layers` lists it. Raises ContractError, InputError."""
    given = _Given(model, seeds)
    found = _declared(model, "gradients", given, lambda: model.trace(x, layer.name, given.seeds))
    return _checked(model, found, len(x), given, layer, "trace()")


def resume(
    model: Model, trace: Trace, activations: Array, rows: Sequence[int] | None = None, seeds: Seeds | None = None
) -> Trace:
    """See Model.resume. Raises ContractError."""
    given = _Given(model, seeds)
    found = _declared(model, "resume", given, lambda: model.resume(trace, activations, rows, given.seeds))
    return _checked(model, found, len(activations), given, None, "resume()")


def hvp(model: Model, x: Array, layer: str, seeds: Seeds, vectors: Sequence[Array]) -> list[Array]:
    """See xcam.contract on `hvp`. Raises ContractError."""
    given = _Given(model, seeds)
    found: Any = _declared(model, "hvp", given, lambda: model.hvp(x, layer, given.seeds, vectors))  # type: ignore[attr-defined]
    if not isinstance(found, list | tuple) or len(found) != len(vectors):
        raise _broken(
            model.backend, f"hvp() returned {_kind(found)} for {len(vectors)} vectors", "a list, one for each"
        )
    for k, (product, vector) in enumerate(zip(found, vectors, strict=True)):
        _float32(model, product, f"hvp()[{k}]", vector.shape)
    return list(found)


def check_rows(model: Model, outputs: Outputs, count: int) -> None:
    """Every output has a row for each picture. Raises ModelError."""
    for array in outputs.values() if isinstance(outputs, Mapping) else [outputs]:
        if array.ndim == 0 or len(array) != count:
            raise ModelError(
                f"{model.name} gives an output of shape {array.shape} for {count} pictures, and each needs a row of its "
                "own; wrap it in a model that returns [batch, classes]"
            )


class _Given:
    """The core's seeds on their way to a backend: what they are asked is looked at, what they raise is theirs."""

    def __init__(self, model: Model, seeds: Seeds | None) -> None:
        self._model, self._seeds = model, seeds
        self.seeds = None if seeds is None else self
        self.count: int | None = 0 if seeds is None else None
        self.raised: list[BaseException] = []

    def __call__(self, outputs: Outputs) -> Sequence[Outputs]:
        assert self._seeds
        try:
            _outputs(self._model, outputs, "seeds")
            found = self._seeds(outputs)
        except BaseException as error:
            self.raised.append(error)
            raise
        self.count = len(found)
        return found


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
    _outputs(model, trace.outputs, call)
    a = trace.activations
    folded = isinstance(a, np.ndarray) and a.ndim > 2 and len(a) > count and len(a) % count == 0
    if folded and layer is not None:
        raise InputError(
            f"layer {layer.name!r} gives {len(a)} values for {count} pictures: windows or frames are folded into its "
            "batch, and it has no map of a whole picture; choose another layer"
        )
    _float32(model, a, "activations", None, count)
    if layer is not None:
        _channels(model, a, layer)
    gradients = trace.gradients
    if not isinstance(gradients, list | tuple):
        raise _broken(model.backend, f"{call} returned gradients as {_kind(gradients)}", "a list of arrays")
    if given.count is None:
        raise _broken(model.backend, f"{call} never called `seeds`", "one call, in every forward pass")
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
    right = isinstance(array, np.ndarray) and array.dtype == np.float32 and (shape is None or array.shape == shape)
    if right and (count is None or (array.ndim > 2 and len(array) == count)):
        return
    pictures = "" if count is None else f" for {count} pictures"
    wanted = "float32 NumPy arrays [N, C, *spatial]" + (f", here {shape}" if shape else "")
    raise _broken(model.backend, f"returned {what} as {_kind(array)}{pictures}", wanted)


def _channels(model: Model, a: Array, layer: Layer) -> None:
    """Channels first, as many as the layer is said to have."""
    channels = layer.shape[0] if layer.shape else None
    if channels is None or a.shape[1] == channels:
        return
    last = " (channels last?)" if a.shape[-1] == channels else ""
    raise _broken(
        model.backend,
        f"returned activations of layer {layer.name!r} as {_kind(a)}{last}, and lists it with the shape {layer.shape}",
        "[N, C, *spatial] with the C of Layer.shape",
    )


def _outputs(model: Model, outputs: Any, call: str) -> None:
    arrays = outputs if isinstance(outputs, Mapping) else {"": outputs}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            where = f"output {name!r}" if name else "outputs"
            given = "gave" if call == "seeds" else "returned"
            raise _broken(
                model.backend,
                f"{call}: {given} {where} as {_kind(array)}",
                "a NumPy array of numbers, or a mapping of such",
            )
    if not arrays:
        raise _broken(model.backend, f"{call}: the mapping of outputs is empty", "one output or more")


def _broken(backend: str, what: str, wanted: str) -> ContractError:
    return ContractError(
        f"{described(backend)} {what}; the contract asks for {wanted}: report it to the plugin's authors"
    )


def _kind(value: Any) -> str:
    """`float64 (3, 8)`, `a torch Tensor`, `None`, `'text'`."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    package = type(value).__module__.partition(".")[0]
    return f"a {type(value).__name__}" if package == "builtins" else f"a {package} {type(value).__name__}"


def _has(value: Any, part: str) -> bool:
    """Without asking a property for its value, which may take its time."""
    return hasattr(type(value), part) or part in getattr(value, "__dict__", ()) or hasattr(value, part)


def _whole(size: Any) -> bool:
    return isinstance(size, tuple) and all(isinstance(n, int) for n in size)


def _words(words: Any) -> bool:
    return isinstance(words, Sequence) and not isinstance(words, str) and all(isinstance(w, str) for w in words)
