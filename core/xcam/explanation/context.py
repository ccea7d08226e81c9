"""What a method asks of a model, answered through the contract: see xcam.methods.inputs.

Variants of pictures and of layer values go in, the target's values come out; tokens are seen as a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from xcam.contract import Array, Layer, Model, Outputs, Trace, one_output, validation
from xcam.errors import BackendError, InputError, ModelError, XcamError, first_line
from xcam.explanation.tokens import Grid
from xcam.methods.inputs import CAPABILITIES
from xcam.methods.registry import Method, list_methods
from xcam.targets import Target

EPSILON = 1e-2
"""Relative step of the difference that stands for a second derivative."""

T = TypeVar("T")


class MethodContext:
    """A batch of pictures at one layer, with one target for each picture."""

    def __init__(
        self, model: Model, layer: Layer, grid: Grid, batch: Array, trace: Trace, targets: Sequence[Target], m: int
    ) -> None:
        self._model, self._layer, self._grid = model, layer, grid
        self._batch, self._trace, self._targets, self._m = batch, trace, list(targets), m
        self._own: list[Exception] = []  # what a target raised: it reaches the caller as it is

    def __call__(self, method: Method, options: Mapping[str, Any]) -> Array:
        """The method's map [N, *spatial]."""
        found = np.asarray(method.function(*(getattr(self, need) for need in method.inputs), **options))
        if not np.isfinite(found).all():
            raise ModelError(
                f"{method.name} of {self._model.name} gives NaN or infinity at layer {self._layer.name!r}; check the "
                "weights and the sizes of the layer's values"
            )
        return found

    @property
    def activations(self) -> Array:
        return self._grid.view(self._trace.activations)

    @property
    def gradients(self) -> Array:
        return self._grid.view(self._trace.gradients[self._m])

    @property
    def x(self) -> Array:
        x = np.moveaxis(self._batch, -1, 1) if self._last else self._batch
        return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)

    @property
    def value(self) -> Array:
        return self._values(self._trace.outputs, range(len(self._batch)))

    def forward(self, x: Array, rows: Sequence[int]) -> Array:
        return self._values(self._run(len(x), lambda: validation.predict(self._model, self._native(x))), rows)

    def resume(self, activations: Array, rows: Sequence[int]) -> Array:
        return self._values(self._resumed(activations, rows, None).outputs, rows)

    def trace(self, x: Array, rows: Sequence[int]) -> tuple[Array, Array]:
        cotangents = self._seeds(rows)
        trace = self._run(len(x), lambda: validation.trace(self._model, self._native(x), self._layer, cotangents))
        return self._grid.view(trace.activations), self._grid.view(trace.gradients[0])

    def hvp(self, vector: Array) -> Array:
        """By a double backward pass, where the backend has one; else by the difference of two gradients.

        A backend's own takes the cotangent v for a constant. For a value that is not linear in the outputs (a
        probability) v changes too: Jᵀ·(∂v/∂outputs)·J·vector is added, J·vector and ∂v by differences.
        """
        rows = range(len(self._batch))
        cotangents = self._seeds(rows)
        if "hvp" not in self._model.capabilities:
            up, down = (
                self._resumed(self.activations + sign * EPSILON * vector, rows, cotangents).gradients[0]
                for sign in (1, -1)
            )
            return self._grid.view(np.asarray((up - down) / np.float32(2 * EPSILON)))
        whole = self._grid.restore(vector, self._trace.activations)
        found = validation.hvp(self._model, self._batch, self._layer.name, cotangents, [whole])[0]
        up_, down_ = (
            self._resumed(self.activations + sign * EPSILON * vector, rows, None).outputs for sign in (1, -1)
        )
        (above,), (below,) = cotangents(up_), cotangents(down_)
        change = each(lambda a, b: np.asarray((a - b) / np.float32(2 * EPSILON)), above, below)
        if any(np.any(one_output(change, name)) for name in (change if isinstance(change, Mapping) else [None])):
            found = found + validation.trace(self._model, self._batch, self._layer, lambda _: [change]).gradients[0]
        return self._grid.view(found)

    @property
    def _last(self) -> bool:
        return self._model.input.layout == "channels_last"

    def _native(self, x: Array) -> Array:
        x = np.moveaxis(x, 1, -1) if self._last else x
        dtype = self._batch.dtype
        if np.issubdtype(dtype, np.integer):  # pixels
            x = np.clip(np.rint(x), 0, 255)
        return np.ascontiguousarray(x, dtype)

    def _resumed(self, activations: Array, rows: Sequence[int], cotangents: Any) -> Trace:
        whole = activations
        if self._grid.size is not None:
            whole = self._grid.restore(activations, self._trace.activations[list(rows)])
        whole = whole.astype(np.float32, copy=False)
        return self._run(
            len(whole), lambda: validation.resume(self._model, self._trace, whole, list(rows), cotangents)
        )

    def _run(self, count: int, work: Callable[[], T]) -> T:
        """What the model gives; where it fails, though it did well on the clean pictures, a line that says on what."""
        try:
            return work()
        except (XcamError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if error in self._own:
                raise
            raise ModelError(
                f"{self._model.name} fails on a batch of {count} changed pictures or layer values: {first_line(error)}; "
                "choose a method that changes none, such as gradcam, if the model takes no such batch"
            ) from error

    def _seeds(self, rows: Sequence[int]) -> Callable[[Outputs], list[Outputs]]:
        def cotangents(outputs: Outputs) -> list[Outputs]:
            try:
                return [stack([cotangent(self._targets[row], pick(outputs, [k])) for k, row in enumerate(rows)])]
            except Exception as error:
                self._own.append(error)
                raise

        return cotangents

    def _values(self, outputs: Outputs, rows: Sequence[int]) -> Array:
        """The value of each row's own target."""
        wanted = np.asarray(rows)
        found = np.empty(len(wanted), np.float64)
        for row in np.unique(wanted):
            places = np.flatnonzero(wanted == row)
            found[places] = values(self._targets[row], pick(outputs, places.tolist()), len(places))
        if not np.isfinite(found).all():
            raise ModelError(
                f"{self._model.name} gives NaN or infinity on changed pictures or layer values; check the weights and "
                "float16 overflow"
            )
        return found


def values(aim: Target, outputs: Outputs, count: int) -> Array:
    """The target's value [count], a number for each row, also where it says one for all rows. Raises InputError."""
    found = np.ravel(aim.value(outputs))
    if len(found) == count:
        return found
    if count == 1:
        raise InputError(
            f"the value of {type(aim).__name__} has {len(found)} numbers for one row of outputs; "
            "value() must return one for each row"
        )
    return np.concatenate([values(aim, pick(outputs, [k]), 1) for k in range(count)])


def cotangent(aim: Target, outputs: Outputs) -> Outputs:
    """The target's cotangent, in the outputs' own order, zero where it says nothing. Raises InputError."""
    given = aim.cotangent(outputs)
    expected = outputs if isinstance(outputs, Mapping) else {"the output": outputs}
    named = given if isinstance(given, Mapping) else {next(iter(expected)): given}
    found = {name: np.asarray(named.get(name, np.zeros_like(value))) for name, value in expected.items()}
    for name, value in found.items():
        if value.shape != expected[name].shape or not set(named) <= set(expected):
            raise InputError(
                f"the cotangent of {type(aim).__name__} has shape {value.shape}, the outputs {expected[name].shape}; "
                "cotangent() must return an array like its outputs, or a mapping with their names"
            )
    return found if isinstance(outputs, Mapping) else next(iter(found.values()))


def pick(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    """Rows of every output."""
    if isinstance(outputs, np.ndarray):
        return outputs[rows]
    return {name: array[rows] for name, array in outputs.items()}


def stack(rows: Sequence[Outputs]) -> Outputs:
    """Batches of one as one batch."""
    if isinstance(rows[0], np.ndarray):
        return np.concatenate([one_output(row) for row in rows])
    return {name: np.concatenate([one_output(row, name) for row in rows]) for name in rows[0]}


def each(function: Callable[..., Array], *outputs: Outputs) -> Outputs:
    """A function of arrays, on every output."""
    first = outputs[0]
    if isinstance(first, np.ndarray):
        return function(*outputs)
    return {name: function(*(one_output(output, name) for output in outputs)) for name in first}


def lacking(model: Model, method: Method) -> list[str]:
    """What the method needs and the model's backend cannot do."""
    asked = {capability for need in method.inputs for capability in CAPABILITIES.get(need, ())}
    return sorted(asked - set(model.capabilities))


def require(model: Model, method: Method) -> None:
    """Raises BackendError, with the methods that do work, where the model's backend lacks what the method needs."""
    missing = lacking(model, method)
    if missing:
        able = [other.name for other in list_methods().values() if not lacking(model, other)]
        raise BackendError(
            f"method {method.name!r} needs {' and '.join(missing)}, which backend {model.backend!r} does not have; "
            f"these work: {', '.join(able)}"
        )


def without_gradients() -> list[str]:
    """The methods that need no gradient."""
    return [name for name, method in list_methods().items() if not {"gradients", "trace", "hvp"} & set(method.inputs)]
