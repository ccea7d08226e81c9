"""The inputs of a method, supplied by the model through the contract: see xcam.methods.inputs.

The target's values are computed for variants of images and of layer values. Tokens are arranged as a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from xcam.contract import Array, Layer, Model, Outputs, Trace, differences, one_output, validation
from xcam.errors import BackendError, InputError, ModelError, XcamError, first_line
from xcam.explanation.inputs import as_input
from xcam.explanation.tokens import Grid
from xcam.methods.inputs import CAPABILITIES, GRADIENTS
from xcam.methods.registry import Method, list_methods
from xcam.targets import Target

EPSILON = 1e-2
"""Relative step of the finite difference that replaces a second derivative."""

T = TypeVar("T")


class MethodContext:
    """A batch of images at one layer, with one target for each image."""

    def __init__(
        self, model: Model, layer: Layer, grid: Grid, batch: Array, trace: Trace, targets: Sequence[Target], m: int
    ) -> None:
        self._model, self._layer, self._grid = model, layer, grid
        self._batch, self._trace, self._targets, self._m = batch, trace, list(targets), m
        self._errors: list[Exception] = []  # raised by a target: they reach the caller unchanged

    def __call__(self, method: Method, options: Mapping[str, Any]) -> Array:
        """Return the method's map [N, *spatial]."""
        self._check_by_channel(method)
        inputs = (
            self._products if name == "gradients" and self._needs_products(method) else getattr(self, name)
            for name in method.inputs
        )
        cam = np.asarray(method.function(*inputs, **options))
        if not np.isfinite(cam).all():
            raise ModelError(
                f"{method.name} of {self._model.name} gives NaN or infinity at layer {self._layer.name!r}; check the "
                "weights and the sizes of the layer's values"
            )
        return cam

    @property
    def activations(self) -> Array:
        """The layer's value, [N, C, *spatial]; tokens as a grid."""
        return self._grid.view(self._trace.activations)

    @property
    def gradients(self) -> Array:
        """The gradient of the target's value, of the shape of `activations`."""
        return self._grid.view(self._trace.gradients[self._m])

    def _needs_products(self, method: Method) -> bool:
        return self._trace.by_channel and method.reads == "products"

    @property
    def _products(self) -> Array:
        """Gradients by differences, equal at all positions of a channel, with the true sums S(G·A)."""
        (v,) = self._cotangents(range(len(self._batch)))(self._trace.outputs)
        known = validation.layers(self._model)
        trace = differences.gradients(self._layer, self._trace, [v], validation.tail(self._model), known, "products")
        return self._grid.view(trace.gradients[0])

    def _check_by_channel(self, method: Method) -> None:
        """Raise BackendError where the gradients are means of each channel, and the method reads each position."""
        if self._trace.by_channel and "gradients" in method.inputs and method.reads == "positions":
            able = [m.name for m in list_methods().values() if not lacking(self._model, m) and not reads_positions(m)]
            raise BackendError(
                f"cannot compute {method.name!r} at layer {self._layer.name!r}: backend {self._model.backend!r} has no gradients, and "
                "differences give the mean gradient of each channel, not that of each position; choose another layer, or one of "
                f"{', '.join(able)}"
            )

    @property
    def x(self) -> Array:
        """The batch, channels first, in floating point."""
        x = np.moveaxis(self._batch, -1, 1) if self._last else self._batch
        return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)

    @property
    def value(self) -> Array:
        """The target's value [N] on the clean images."""
        return self._values(self._trace.outputs, range(len(self._batch)))

    def forward(self, x: Array, rows: Sequence[int]) -> Array:
        """Return the target's value [K] for changed images; the whole model runs."""
        return self._values(self._run(len(x), lambda: validation.predict(self._model, self._native(x))), rows)

    def resume(self, activations: Array, rows: Sequence[int]) -> Array:
        """Return the target's value [K] for changed values of the layer; the tail runs."""
        return self._values(self._resumed(activations, rows, None).outputs, rows)

    def trace(self, x: Array, rows: Sequence[int]) -> tuple[Array, Array]:
        """Return activations and gradients for changed images."""
        cotangents = self._cotangents(rows)
        trace = self._run(len(x), lambda: validation.trace(self._model, self._native(x), self._layer, cotangents))
        return self._grid.view(trace.activations), self._grid.view(trace.gradients[0])

    def hvp(self, vector: Array) -> Array:
        """Return the Hessian times `vector`: by differentiating twice, or by the difference of two gradients.

        A backend that differentiates twice takes the cotangent v for a constant. For a value that is not linear in the
        outputs (a probability) v changes too: Jᵀ·(∂v/∂outputs)·J·vector is added, J·vector and ∂v by differences.
        """
        rows = range(len(self._batch))
        cotangents = self._cotangents(rows)
        if "hvp" not in self._model.capabilities:
            up, down = (
                self._resumed(self.activations + sign * EPSILON * vector, rows, cotangents).gradients[0]
                for sign in (1, -1)
            )
            return self._grid.view(np.asarray((up - down) / np.float32(2 * EPSILON)))
        whole = self._grid.restore(vector, self._trace.activations)
        product = validation.hvp(self._model, self._batch, self._layer.name, cotangents, [whole])[0]
        up_, down_ = (
            self._resumed(self.activations + sign * EPSILON * vector, rows, None).outputs for sign in (1, -1)
        )
        (above,), (below,) = cotangents(up_), cotangents(down_)
        change = each(lambda a, b: np.asarray((a - b) / np.float32(2 * EPSILON)), above, below)
        if any(np.any(one_output(change, name)) for name in (change if isinstance(change, Mapping) else [None])):
            product = (
                product + validation.trace(self._model, self._batch, self._layer, lambda _: [change]).gradients[0]
            )
        return self._grid.view(product)

    @property
    def _last(self) -> bool:
        return self._model.input.layout == "channels_last"

    def _native(self, x: Array) -> Array:
        return as_input(np.moveaxis(x, 1, -1) if self._last else x, self._batch)

    def _resumed(self, activations: Array, rows: Sequence[int], cotangents: Any) -> Trace:
        whole = activations
        if self._grid.size is not None:
            whole = self._grid.restore(activations, self._trace.activations[list(rows)])
        whole = whole.astype(np.float32, copy=False)
        return self._run(
            len(whole), lambda: validation.resume(self._model, self._trace, whole, list(rows), cotangents)
        )

    def _run(self, count: int, work: Callable[[], T]) -> T:
        """Run the model on variants. A failure becomes a ModelError: the model has already run on the clean images."""
        try:
            return work()
        except (XcamError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if error in self._errors:
                raise
            raise ModelError(
                f"{self._model.name} fails on a batch of {count} changed images or layer values: {first_line(error)}; "
                "choose a method without variants, such as gradcam, if the model does not accept such a batch"
            ) from error

    def _cotangents(self, rows: Sequence[int]) -> Callable[[Outputs], list[Outputs]]:
        def cotangents(outputs: Outputs) -> list[Outputs]:
            try:
                return [stack([cotangent(self._targets[row], pick(outputs, [k])) for k, row in enumerate(rows)])]
            except Exception as error:
                self._errors.append(error)
                raise

        return cotangents

    def _values(self, outputs: Outputs, rows: Sequence[int]) -> Array:
        """Return the value of each variant's target."""
        row_of = np.asarray(rows)
        result = np.empty(len(row_of), np.float64)
        for row in np.unique(row_of):
            variants = np.flatnonzero(row_of == row)
            result[variants] = values(self._targets[row], pick(outputs, variants.tolist()), len(variants))
        if not np.isfinite(result).all():
            raise ModelError(
                f"{self._model.name} gives NaN or infinity on changed images or layer values; check the weights and "
                "float16 overflow"
            )
        return result


def values(target: Target, outputs: Outputs, count: int) -> Array:
    """Return the target's value [count] for each row, also where it returns one number. Raises InputError."""
    result = np.ravel(target.value(outputs))
    if len(result) == count:
        return result
    if count == 1:
        raise InputError(
            f"the value of {type(target).__name__} has {len(result)} numbers for one row of outputs; "
            "value() must return one for each row"
        )
    return np.concatenate([values(target, pick(outputs, [k]), 1) for k in range(count)])


def cotangent(target: Target, outputs: Outputs) -> Outputs:
    """Return the target's cotangent in the order of the outputs, zero where it is missing. Raises InputError."""
    result = target.cotangent(outputs)
    expected = outputs if isinstance(outputs, Mapping) else {"the output": outputs}
    named = result if isinstance(result, Mapping) else {next(iter(expected)): result}
    arrays = {name: np.asarray(named.get(name, np.zeros_like(value))) for name, value in expected.items()}
    for name, value in arrays.items():
        if value.shape != expected[name].shape or not set(named) <= set(expected):
            raise InputError(
                f"the cotangent of {type(target).__name__} has shape {value.shape}, the outputs {expected[name].shape}; "
                "cotangent() must return an array like its outputs, or a mapping with their names"
            )
    return arrays if isinstance(outputs, Mapping) else next(iter(arrays.values()))


def pick(outputs: Outputs, rows: Sequence[int]) -> Outputs:
    """Return rows of every output."""
    if isinstance(outputs, np.ndarray):
        return outputs[rows]
    return {name: array[rows] for name, array in outputs.items()}


def stack(rows: Sequence[Outputs]) -> Outputs:
    """Concatenate batches of one."""
    if isinstance(rows[0], np.ndarray):
        return np.concatenate([one_output(row) for row in rows])
    return {name: np.concatenate([one_output(row, name) for row in rows]) for name in rows[0]}


def each(function: Callable[..., Array], *outputs: Outputs) -> Outputs:
    """Apply a function of arrays to every output."""
    first = outputs[0]
    if isinstance(first, np.ndarray):
        return function(*outputs)
    return {name: function(*(one_output(output, name) for output in outputs)) for name in first}


def lacking(model: Model, method: Method) -> list[str]:
    """Return the capabilities that the method needs and the model lacks; gradients are computed by differences with `resume`."""
    known = set(model.capabilities)
    needed = {
        capability
        for name in method.inputs
        if name != "gradients" or "resume" not in known
        for capability in CAPABILITIES.get(name, ())
    }
    return sorted(needed - known)


def by_differences(model: Model, method: Method) -> bool:
    """Return whether the gradients of a method are computed by differences."""
    return "gradients" in method.inputs and "gradients" not in model.capabilities


def reads_positions(method: Method) -> bool:
    """Return whether a method reads the gradient of each position."""
    return bool(GRADIENTS & set(method.inputs)) and method.reads == "positions"


def require(model: Model, method: Method) -> None:
    """Raise BackendError, with the methods that work, where the model lacks a capability that the method needs."""
    missing = lacking(model, method)
    if missing:
        able = [other.name for other in list_methods().values() if not lacking(model, other)]
        raise BackendError(
            f"method {method.name!r} needs {' and '.join(missing)}, which backend {model.backend!r} does not have; "
            f"these work: {', '.join(able)}"
        )


def without_gradients() -> list[str]:
    """Return the names of the methods that need no gradients."""
    return [name for name, method in list_methods().items() if not GRADIENTS & set(method.inputs)]
