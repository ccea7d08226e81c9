"""The one contract between the core and a backend: a model, cut open at a layer.

A backend supplies activations and gradients for a named layer, as NumPy arrays. It knows nothing of methods,
targets, images or heatmaps; the core knows nothing of frameworks. Nothing here may import a framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy.typing as npt

from xcam.contract.preprocessing import Preprocessing

Array = npt.NDArray[Any]
Outputs = Array | Mapping[str, Array]
"""What a model said: an array [N, …], or a mapping from names to arrays when it has several outputs."""

Cotangents = Callable[[Outputs], Sequence[Outputs]]
"""outputs → M cotangents, each shaped like the outputs. Called once for each forward pass, in NumPy."""

Activation = str | None | Mapping[str, str | None]
"""`softmax` or `sigmoid` where one was seen at the end and cut off, None where none was; by name for several outputs."""

DEFAULT_SIZE = (224, 224)
"""(height, width) for a model that takes any and names none."""

Layout = Literal["channels_first", "channels_last", "tokens"]
Capability = Literal["gradients", "resume", "hvp"]


@dataclass(frozen=True)
class Layer:
    """One place where a model can be cut open."""

    name: str
    """The address that `trace` takes. Nested parts are joined by `/` or `.`, as the framework does."""
    kind: str
    """The framework's own word: `Conv2D`, `ReLU`, `MaxPool`."""
    shape: tuple[int | None, ...]
    """(C, *spatial), or (C, T) for tokens; without the batch; None where it is not fixed."""
    layout: Layout = "channels_first"
    """How the framework keeps it. A Trace is channels first whatever this says."""
    is_output: bool = False
    """The layer's value is a model output (or the logits under one): there is no tail to explain."""
    folds_batch: bool = False
    """Its first axis is not the batch alone (windows or frames are folded in): it has no value for each picture."""
    reaches_output: bool = True
    """Some path leads from the layer to an output."""
    aliases: tuple[str, ...] = ()
    """Other names of the same value, which `trace` takes too."""
    inner: bool = False
    """A value inside a layer: it can be explained by its name, and is neither listed nor chosen by default."""

    @property
    def has_space(self) -> bool:
        """More than one position is left: (512, 14, 14) has space, (512, 1, 1) and (1000,) have none."""
        return len(self.shape) > 1 and any(n is None or n > 1 for n in self.shape[1:])


@dataclass(frozen=True)
class InputSpec:
    """What a model takes: a batch [N, H, W, C] or [N, C, H, W] of `dtype`."""

    size: tuple[int, ...] | None
    """(H, W), or None where the model takes any."""
    channels: int = 3
    layout: Layout = "channels_first"
    dtype: str = "float32"
    preprocessing: Preprocessing | None = None
    """None: the model does not say."""
    fixed: bool = False
    """The model takes `size` and no other."""


@dataclass(eq=False)
class Trace:
    """What came out of a model that was cut open at a layer.

    outputs: raw scores (logits) wherever the backend can find them, [N, …], or a mapping of such arrays.
    activations: [N, C, *spatial] float32, always channels first; tokens stay [N, C, T].
    gradients: one [N, C, *spatial] float32 for each cotangent that `cotangents` returned.
    state: the backend's own: what `resume` needs besides the activations.
    """

    outputs: Outputs
    activations: Array
    gradients: list[Array] = field(default_factory=list)
    state: Any = None


@runtime_checkable
class Model(Protocol):
    """A model as the core sees it. Every backend's `load` returns one.

    Memory that runs out is a MemoryError, whatever the framework calls it: the core then halves the batch.
    """

    name: str
    backend: str
    input: InputSpec
    labels: Sequence[str] | None
    output_activation: Activation
    capabilities: frozenset[Capability]
    notes: Sequence[str]
    """What a reader of the picture must know: for example that the weights are random."""

    @property
    def layers(self) -> Sequence[Layer]:
        """Every layer that can be explained, in execution order."""

    def predict(self, x: Array) -> Outputs:
        """One forward pass over the batch `x`, which is as the model itself takes it."""

    def activations(self, x: Array, layers: Sequence[str]) -> Mapping[str, Array]:
        """The values of several layers, [N, C, *spatial] each, from ONE forward pass."""

    def trace(self, x: Array, layer: str, cotangents: Cotangents | None = None) -> Trace:
        """One forward pass; for each cotangent v of `cotangents`, the product ∂⟨v, outputs⟩/∂activations."""

    def resume(
        self,
        trace: Trace,
        activations: Array,
        rows: Sequence[int] | None = None,
        cotangents: Cotangents | None = None,
    ) -> Trace:
        """Run what follows the layer again, on `activations` [K, C, *spatial].

        rows[k] is the row of `trace` that variant k belongs to (default: all 0 when the trace has one row,
        else one for one).
        """


class Backend(Protocol):
    """What a plugin's `target` names: a class without arguments that turns a source into a Model."""

    def load(
        self,
        source: Any,
        *,
        size: tuple[int, int] | None = None,
        device: str | None = None,
        layout: Layout | None = None,
        weights: str | None = None,
    ) -> Model:
        """`source` is a pathlib.Path, a name that the backend knows, or a live model object."""
