"""What a method asks of a model, answered through the contract: see xcam.methods.needs.

Variants of pictures and of layer values go in, the target's values come out; tokens are seen as a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xcam.contract import Array, Layer, Model, Outputs, Trace, one_output
from xcam.errors import BackendError, ModelError
from xcam.methods import Method, methods
from xcam.methods.needs import CAPABILITIES
from xcam.targets import Target
from xcam.tokens import Grid

EPSILON = 1e-2
"""Relative step of the difference that stands for a second derivative."""


class Supply:
    """A batch of pictures at one layer, with one target for each picture."""

    def __init__(
        self, model: Model, layer: Layer, grid: Grid, batch: Array, trace: Trace, targets: Sequence[Target], m: int
    ) -> None:
        self._model, self._layer, self._grid = model, layer, grid
        self._batch, self._trace, self._targets, self._m = batch, trace, list(targets), m

    def __call__(self, method: Method, options: Mapping[str, Any]) -> Array:
        """The method's map [N, *spatial]."""
        return np.asarray(method.function(*(getattr(self, need) for need in method.needs), **options))

    @property
    def activations(self) -> Array:
        return self._grid.view(self._trace.activations)

    @property
    def gradients(self) -> Array:
        return self._grid.view(self._trace.gradients[self._m])

    @property
    def x(self) -> Array:
        return np.moveaxis(self._batch, -1, 1) if self._last else self._batch

    @property
    def value(self) -> Array:
        return self._values(self._trace.outputs, range(len(self._batch)))

    def forward(self, x: Array, rows: Sequence[int]) -> Array:
        return self._values(self._model.predict(self._native(x)), rows)

    def resume(self, activations: Array, rows: Sequence[int]) -> Array:
        return self._values(self._resumed(activations, rows, None).outputs, rows)

    def trace(self, x: Array, rows: Sequence[int]) -> tuple[Array, Array]:
        trace = self._model.trace(self._native(x), self._layer.name, self._seeds(rows))
        return self._grid.view(trace.activations), self._grid.view(trace.gradients[0])

    def hvp(self, vector: Array) -> Array:
        """By a double backward pass, where the backend has one; else by the difference of two gradients.

        A backend's own takes the cotangent v for a constant. For a value that is not linear in the outputs (a
        probability) v changes too: Jᵀ·(∂v/∂outputs)·J·vector is added, J·vector and ∂v by differences.
        """
        rows = range(len(self._batch))
        seeds = self._seeds(rows)
        own: Callable[..., list[Array]] | None = getattr(self._model, "hvp", None)
        if own is None or "hvp" not in self._model.capabilities:
            up, down = (
                self._resumed(self.activations + sign * EPSILON * vector, rows, seeds).gradients[0]
                for sign in (1, -1)
            )
            return self._grid.view(np.asarray((up - down) / np.float32(2 * EPSILON)))
        whole = self._grid.restore(vector, self._trace.activations)
        found = own(self._batch, self._layer.name, seeds, [whole])[0]
        up_, down_ = (
            self._resumed(self.activations + sign * EPSILON * vector, rows, None).outputs for sign in (1, -1)
        )
        (above,), (below,) = seeds(up_), seeds(down_)
        change = each(lambda a, b: np.asarray((a - b) / np.float32(2 * EPSILON)), above, below)
        if any(np.any(one_output(change, name)) for name in (change if isinstance(change, Mapping) else [None])):
            found = found + self._model.trace(self._batch, self._layer.name, lambda _: [change]).gradients[0]
        return self._grid.view(found)

    @property
    def _last(self) -> bool:
        return self._model.input.layout == "channels_last"

    def _native(self, x: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if self._last else np.ascontiguousarray(x)

    def _resumed(self, activations: Array, rows: Sequence[int], seeds: Any) -> Trace:
        whole = self._grid.restore(activations, self._trace.activations[list(rows)])
        return self._model.resume(self._trace, whole.astype(np.float32, copy=False), list(rows), seeds)

    def _seeds(self, rows: Sequence[int]) -> Callable[[Outputs], list[Outputs]]:
        def seeds(outputs: Outputs) -> list[Outputs]:
            return [stack([self._targets[row].cotangent(pick(outputs, [k])) for k, row in enumerate(rows)])]

        return seeds

    def _values(self, outputs: Outputs, rows: Sequence[int]) -> Array:
        """The value of each row's own target."""
        wanted = np.asarray(rows)
        found = np.empty(len(wanted), np.float64)
        for row in np.unique(wanted):
            places = np.flatnonzero(wanted == row)
            found[places] = np.ravel(self._targets[row].value(pick(outputs, places.tolist())))
        if not np.isfinite(found).all():
            raise ModelError(
                f"{self._model.name} gives NaN or infinity on changed pictures or layer values; check the weights and "
                "float16 overflow"
            )
        return found


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
    asked = {capability for need in method.needs for capability in CAPABILITIES.get(need, ())}
    return sorted(asked - set(model.capabilities))


def require(model: Model, method: Method) -> None:
    """Raises BackendError, with the methods that do work, where the model's backend lacks what the method needs."""
    missing = lacking(model, method)
    if missing:
        able = [other.name for other in methods().values() if not lacking(model, other)]
        raise BackendError(
            f"method {method.name!r} needs {' and '.join(missing)}, which backend {model.backend!r} does not have; "
            f"these work: {', '.join(able)}"
        )


def without_gradients() -> list[str]:
    """The methods that need no gradient."""
    return [name for name, method in methods().items() if not {"gradients", "trace", "hvp"} & set(method.needs)]
