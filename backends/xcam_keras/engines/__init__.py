"""What each of Keras' engines does for KerasModel. One file for each; only that of the engine in use is imported.

An engine's module has three names:

    Recording(model, shape, dtype)   looks through a model once, for inputs [N, *shape]
    device_name(device)              what the user calls a device → what the engine calls it; raises InputError
    running(device)                  a context: on that device, and memory that runs out is a MemoryError

Arrays go in and come out as NumPy, in the layout that the layer has in Keras. What comes out is float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xcam.contract import Array


class NoGradient(Exception):  # noqa: N818
    """No output can be differentiated by the layer's value."""


@dataclass(frozen=True)
class Call:
    """One call of one Keras layer, as a recording found it."""

    layer: Any
    """The keras.layers.Layer."""
    shape: tuple[int | None, ...]
    """As in Keras, without the batch."""
    is_output: bool
    reaches_output: bool
    folds_batch: bool = False


class Recording(Protocol):
    """The forward pass of one model for one input shape, with any batch."""

    calls: Mapping[str, Call]
    """By name, in execution order."""
    activations: Mapping[str, str | None]
    """What is cut off each output, by the output's name."""

    def predict(self, x: Array) -> list[Array]:
        """The outputs, in the order of `activations`; logits where something was cut off."""

    def values(self, x: Array, names: Sequence[str]) -> list[Array]:
        """The values of several calls, from one forward pass."""

    def open(self, x: Array, name: str, differentiate: bool) -> Opened:
        """A forward pass, cut open at a call. Raises NoGradient."""


class Opened(Protocol):
    """A forward pass, cut open at a layer."""

    @property
    def outputs(self) -> list[Array]: ...

    @property
    def value(self) -> Array: ...

    def gradient(self, cotangents: Sequence[Array]) -> Array:
        """∂⟨cotangents, outputs⟩/∂value. Only where it was opened to be differentiated."""

    def resumed(self, value: Array, rows: Sequence[int], differentiate: bool) -> Opened:
        """What follows the layer, run again on `value`; value[k] belongs to row rows[k]."""
