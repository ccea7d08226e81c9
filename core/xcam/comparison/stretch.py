"""A stretch of two models: the layers between a pair of corresponding layers, or the input, and a later pair.

Each model can be run from given values at the start to its value at the end. All values are [N, C, *spatial], those of the
input too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from xcam.contract import Array, InputSpec, Layer, Model, one_output, validation
from xcam.errors import ModelError

Which = Literal[0, 1]
"""One of two models, by its index."""
BOTH: tuple[Which, Which] = (0, 1)


@dataclass(frozen=True)
class ComparedModel:
    """A model with its input specification in the comparison, and a batch prepared for it."""

    model: Model
    spec: InputSpec
    x: Array


@dataclass(frozen=True)
class NamePair:
    """The names of two corresponding layers."""

    first: str
    """The name in the first model."""
    second: str
    """The name in the second model."""

    def __getitem__(self, which: Which) -> str:
        """Return the name in one of the models."""
        return (self.first, self.second)[which]


class CannotStartError(ModelError):
    """A model cannot be run from a layer."""


class Runs:
    """A model on its batch: the values of its layers, and those that follow from other values at an earlier layer."""

    def __init__(self, compared: ComparedModel) -> None:
        self.compared = compared
        self._layers = {layer.name: layer for layer in validation.layers(compared.model)}
        self._values: dict[str | None, Array] = {}
        self._traces: dict[str, Any] = {}

    def layer(self, name: str) -> Layer:
        """Return a layer by its name or an alias."""
        if name not in self._layers:
            alias = next((layer for layer in self._layers.values() if name in layer.aliases), None)
            assert alias is not None, name
            return alias
        return self._layers[name]

    def value(self, name: str | None) -> Array:
        """Return the value of a layer, or of the input (None)."""
        if name not in self._values:
            self.add([name])
        return self._values[name]

    def add(self, names: Sequence[str | None]) -> None:
        """Compute the values of several layers in one forward pass."""
        missing = [name for name in names if name is not None and name not in self._values]
        if None in names:
            self._values[None] = self._channels_first(self.compared.x)
        inner = [name for name in missing if not self.layer(name).is_output]
        if inner:
            self._values.update(validation.activations(self.compared.model, self.compared.x, inner))
        if len(inner) < len(missing):
            outputs = one_output(validation.predict(self.compared.model, self.compared.x))
            self._values |= {name: outputs for name in missing if name not in inner}

    def can_start_at(self, start: str | None) -> bool:
        """Return whether the model can be run from other values of a layer, or of the input (None)."""
        return start is None or "resume" in self.compared.model.capabilities

    def run(self, start: str | None, values: Array, end: str) -> Array:
        """Return the value of the layer `end` that follows from `values` at the layer `start`.

        A value that passes the start by is the model's own.

        Args:
            start: The name of a layer; None: the input.
            values: [N, C, *spatial], a row for each image of the batch.
            end: The name of a layer behind it; for the last output, its logits are returned.

        Raises:
            CannotStartError: The model cannot be run from this layer.
        """
        model, last = self.compared.model, self.layer(end)
        values = np.ascontiguousarray(values, np.float32)
        if start is None:
            x = self._as_input(values)
            if last.is_output:
                return one_output(validation.predict(model, x))
            return validation.activations(model, x, [end])[end]
        if start == end:
            return values
        if not self.can_start_at(start):
            raise CannotStartError(f"cannot run {model.name} from its layer {start!r}: its backend has no `resume`")
        try:
            return self._resumed(start, values, last)
        except ModelError as error:
            raise CannotStartError(str(error)) from error

    def _resumed(self, start: str, values: Array, end: Layer) -> Array:
        model, first = self.compared.model, self.layer(start)
        # The validation of a trace is for layers with a map: it would refuse a vector.
        is_checked = len(first.shape) > 1
        if start not in self._traces:
            x = self.compared.x
            self._traces[start] = validation.trace(model, x, first) if is_checked else model.trace(x, start)
        trace = self._traces[start]
        if end.is_output:
            resumed = validation.resume(model, trace, values) if is_checked else model.resume(trace, values)
            return one_output(resumed.outputs)
        if is_checked and len(end.shape) > 1:
            return validation.resume(model, trace, values, at=end).activations
        return model.resume(trace, values, at=end.name).activations

    def _channels_first(self, x: Array) -> Array:
        value = np.moveaxis(x, -1, 1) if self.compared.spec.layout == "channels_last" else x
        return np.ascontiguousarray(value, np.float32)

    def _as_input(self, values: Array) -> Array:
        dtype = self.compared.x.dtype
        if dtype.kind in "iu":
            values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
        value = np.moveaxis(values, 1, -1) if self.compared.spec.layout == "channels_last" else values
        return np.ascontiguousarray(value, dtype)


class Stretch:
    """The layers of two models between a pair of corresponding layers and a later pair."""

    def __init__(self, models: tuple[ComparedModel, ComparedModel], start: NamePair | None, end: NamePair) -> None:
        """Define a stretch.

        Args:
            models: The reference, and the model that is examined.
            start: The pair ahead of the stretch; None: the input.
            end: The pair at its end.
        """
        self.models = models
        self.start, self.end = start, end
        self.runs: tuple[Runs, Runs] = (Runs(models[0]), Runs(models[1]))

    def on(self, batches: tuple[Array, Array]) -> Stretch:
        """Return the same stretch on other images, as each of the models takes them."""
        first, second = (replace(each, x=x) for each, x in zip(self.models, batches, strict=True))
        return Stretch((first, second), self.start, self.end)

    def start_value(self, which: Which) -> Array:
        """Return a model's own value at the start."""
        return self.runs[which].value(None if self.start is None else self.start[which])

    def end_value(self, which: Which) -> Array:
        """Return a model's own value at the end."""
        return self.runs[which].value(self.end[which])

    def can_run(self, which: Which) -> bool:
        """Return whether a model can be run from other values at the start."""
        return self.runs[which].can_start_at(None if self.start is None else self.start[which])

    def run(self, which: Which, values: Array) -> Array:
        """Return a model's value at the end, given the values at the start. See `Runs.run`."""
        start = None if self.start is None else self.start[which]
        return self.runs[which].run(start, values, self.end[which])

    def local(self) -> Array:
        """Return the second model's value at the end, given the first model's value at the start.

        It is the model's own value where it cannot be run from there, or where the values have another shape.
        """
        values = self.start_value(0)
        if self.start is None or not self.can_run(1) or values.shape != self.start_value(1).shape:
            return self.end_value(1)
        return self.run(1, values)
